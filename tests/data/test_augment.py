import torch

from fedkd.data.augment import augment

INPUTS = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_same_generator_gives_the_same_images_and_the_global_one_is_left_alone():
    state = torch.get_rng_state()
    first = augment(INPUTS, generator())
    assert augment(INPUTS, generator()).equal(first)
    assert not augment(INPUTS, generator(1)).equal(first)
    assert torch.get_rng_state().equal(state)


def test_shape_and_strides_are_those_of_images():
    for shape in ((5, 1, 8, 8), (5, 3, 32, 32), (5, 1, 28, 20), (1, 2, 3, 3), (0, 1, 8, 8)):
        out = augment(torch.rand(shape), generator())
        assert out.shape == shape
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_every_image_is_a_shift_by_at_most_four_pixels_of_it_or_of_its_mirror_image():
    padded = torch.nn.functional.pad(INPUTS, (4, 4, 4, 4))
    out = augment(INPUTS, generator())
    seen = set()
    for number in range(len(INPUTS)):
        for flip in (False, True):
            image = padded[number].flip(2) if flip else padded[number]
            for y in range(9):
                for x in range(9):
                    if image[:, y : y + 32, x : x + 32].equal(out[number]):
                        seen.add((number, flip, y, x))
    assert {number for number, *_ in seen} == set(range(200))
    assert 60 < sum(flip for _, flip, *_ in seen) < 140
    assert {y for *_, y, _ in seen} == {x for *_, x in seen} == set(range(9))


def test_without_flip_letters_stay_letters():
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 16, 8:24] = torch.arange(1, 17)
    out = augment(image.expand(50, -1, -1, -1), generator(), flip=False)
    rows = out.amax(2)[:, 0]
    assert all((row[row > 0].diff() > 0).all() for row in rows)


def test_tiny_images_move_by_an_eighth():
    image = torch.zeros(100, 1, 8, 8)
    image[:, :, 4, 4] = 1
    places = augment(image, generator(), flip=False).nonzero()[:, 2:]
    assert places.min() == 3
    assert places.max() == 5
