"""Students of text: shapes, causality, state, and the lines a wrong setting gives."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedkd import registry
from fedkd.errors import FedkdError
from fedkd.sections import StudentTable
from fedkd.students import blocks, build, count_parameters, takes_tokens

TEXT = ("gpt", "gru", "lstm")
RECURRENT = {"gru": nn.GRU, "lstm": nn.LSTM}
BLOCKS = {
    "gpt": ("embed", "layer1", "layer2", "head"),
    "gru": ("embed", "gru1", "head"),
    "lstm": ("embed", "lstm1", "head"),
}
CONTEXT, VOCABULARY = 9, 23


def student(name, width=0.25, seed_key=7, norm="none", tokens=True):
    table = StudentTable(models=(name,), norm=norm, width=width)
    return build(name, (CONTEXT,), VOCABULARY, table, seed_key, tokens=tokens)


def rows(count=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (count, CONTEXT), generator=draw)


@pytest.mark.parametrize("name", TEXT)
def test_every_position_has_logits_of_the_next_token(name):
    model = student(name)
    assert blocks(model) == BLOCKS[name]
    assert model(rows()).shape == (3, CONTEXT, VOCABULARY)


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("length", [1, 4])
def test_shorter_rows_are_read_as_the_beginning_of_longer_ones(name, length):
    model, tokens = student(name), rows()
    assert torch.allclose(model(tokens[:, :length]), model(tokens)[:, :length], atol=1e-5)


@pytest.mark.parametrize("name", TEXT)
def test_a_later_token_changes_no_earlier_logits(name):
    model, tokens = student(name), rows()
    other = tokens.clone()
    other[:, 5] = (tokens[:, 5] + 1) % VOCABULARY
    before, after = model(tokens), model(other)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert (before[:, 5:] - after[:, 5:]).abs().amax((0, 2)).min() > 1e-4


@pytest.mark.parametrize("name", TEXT)
def test_a_row_does_not_depend_on_the_others_in_its_batch(name):
    model, tokens = student(name), rows()
    assert torch.allclose(model(tokens)[1:2], model(tokens[1:2]), atol=1e-6)


def test_the_transformer_tells_positions_apart():
    model = student("gpt")
    logits = model(torch.full((1, CONTEXT), 3))
    assert (logits[0, 0] - logits[0, 1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", RECURRENT)
def test_step_by_step_is_all_at_once(name):
    model, tokens = student(name), rows()
    embed, recurrent, head = model
    state, outputs = None, []
    for place in range(CONTEXT):
        output, state = recurrent.step(embed(tokens[:, place : place + 1]), state)
        outputs.append(head(output))
    assert torch.allclose(torch.cat(outputs, 1), model(tokens), atol=1e-5)


@pytest.mark.parametrize("name", RECURRENT)
def test_no_state_is_a_state_of_zeros(name):
    model, inputs = student(name), rows()
    embedded = model[0](inputs)
    zeros = torch.zeros(1, 3, 32)
    state = (zeros, zeros) if name == "lstm" else zeros
    assert torch.equal(model[1].step(embedded)[0], model[1].step(embedded, state)[0])


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_block_holds_torchs_own_layer(name):
    (layer,) = student(name)[1].children()
    assert type(layer) is RECURRENT[name]
    assert student(name)[1].rnn.batch_first


@pytest.mark.parametrize("name", TEXT)
def test_every_parameter_learns(name):
    model, tokens = student(name), rows()
    cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", TEXT)
def test_the_same_key_gives_the_same_student_and_another_key_another(name):
    once, again, other = student(name), student(name), student(name, seed_key=8)
    for key, value in once.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(once(rows()), other(rows()))


@pytest.mark.parametrize("name", TEXT)
def test_a_fresh_student_is_about_as_good_as_a_guess(name):
    tokens = rows(200)
    loss = cross_entropy(student(name)(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=0.3)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lstm", 1000 * 128 + 2 * 4 * (128 * 128 + 128) + 129 * 1000),
        ("gru", 1000 * 128 + 2 * 3 * (128 * 128 + 128) + 129 * 1000),
        ("gpt", 1032 * 128 + 2 * (12 * 128**2 + 13 * 128) + 2 * 128 + 129 * 1000),
    ],
)
def test_parameter_counts(name, parameters):
    model = build(name, (32,), 1000, StudentTable(), 0, tokens=True)
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(("width", "units"), [(0.01, 4), (0.1, 12), (1.0, 128), (1.02, 132)])
def test_the_transformers_width_is_a_multiple_of_its_heads(width, units):
    assert student("gpt", width)[0].tokens.embedding_dim == units


@pytest.mark.parametrize("name", ["mlp", "cnn2", "resnet8"])
def test_image_students_are_refused_on_text_in_one_line(name):
    line = rf"{name}' takes images or feature vectors, and the data set is text; allowed: .*lstm"
    with pytest.raises(FedkdError, match=line) as error:
        student(name, norm="group")
    assert "cnn" not in str(error.value).partition("allowed")[2]


@pytest.mark.parametrize("name", TEXT)
def test_text_students_are_refused_on_images_in_one_line(name):
    line = rf"{name}' takes text, and the data set is images or feature vectors; allowed: .*mlp"
    with pytest.raises(FedkdError, match=line) as error:
        build(name, (1, 8, 8), 10, StudentTable(), 0)
    assert "lstm" not in str(error.value).partition("allowed")[2]


@pytest.mark.parametrize("name", TEXT)
def test_other_normalisation_than_their_own_is_refused(name):
    with pytest.raises(FedkdError, match=rf"student\.norm = 'batch' does not work with {name}"):
        student(name, norm="batch")


def test_a_users_own_text_student_is_checked():
    @registry.register("students", "own")
    @takes_tokens
    def own(shape, classes, norm, width):
        """Tell the next token of the last position alone."""
        return nn.Sequential(nn.Embedding(classes, 4), nn.Flatten(), nn.Linear(4 * CONTEXT, 23))

    with pytest.raises(FedkdError, match=r"\(B, 9, 23\); got \(2, 23\)"):
        student("own")


@pytest.mark.parametrize("name", TEXT)
def test_every_architecture_says_in_a_line_what_it_is(name):
    said = registry.load("students", name).__doc__.strip()
    assert said.endswith(".")
    assert "\n" not in said
