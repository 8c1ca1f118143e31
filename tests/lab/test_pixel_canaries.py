"""Canaries whose secret is an image: what is planted, and how exposed it is by a student."""

import json
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from fedkd import run
from fedkd.data.canaries import places, planting
from fedkd.data.canaries.drawing import draw
from fedkd.data.canaries.images import ImageTemplate
from fedkd.data.dataset import Part, Task
from fedkd.data.federated import load
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.exposures import NULL_MEAN
from fedkd.lab import audit, measure
from fedkd.lab.exposure.conditionals import label_log_odds
from fedkd.lab.exposure.sequences import digits, sequence_numbers
from fedkd.results import Run
from fedkd.simulations.canary import notes
from fedkd.students import build
from fedkd.summaries import exposures

CLIENTS = 4
COLOUR = Task((3, 8, 8), 5, ("ant", "bee", "cat", "dog", "elk"))
TEXT = Task((16,), 20, tuple("abcdefghijklmnopqrst"), tokens=True)
PIXELS = ("canary.kind=pixels", "canary.secrets=1", "canary.repeats=[1, 4]", "canary.length=8")


def experiment(**table):
    table = {"kind": "pixels", "secrets": 2, "repeats": [1, 5], "length": 9, **table}
    return Experiment.from_dict({"data": {"clients": CLIENTS}, "canary": table})


@pytest.fixture(scope="module")
def pictures():
    """A store of random pictures, and the row numbers of four clients."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return Part(images, torch.arange(40) % 5), np.split(np.arange(36), CLIENTS)


def plant(pictures, **table):
    store, private = pictures
    return planting.plant(experiment(**table), COLOUR, store, private, store.images[36:])


# --- what is planted ------------------------------------------------------------------------


def test_each_secret_image_is_a_training_sample_of_its_holders_so_often(pictures):
    before, private = pictures
    store, planted, transfer, canaries = plant(pictures, spread=2, clients=[0, 3])
    assert canaries.kind == "pixels"
    assert torch.equal(store.images[: len(before)], before.images)
    assert torch.equal(transfer, before.images[36:])
    for client, rows in enumerate(planted):
        assert np.array_equal(rows[: len(private[client])], private[client])
        new = torch.from_numpy(rows[len(private[client]) :])
        assert len(new) == sum(canaries.copies(client))
        for secret, copies in enumerate(canaries.copies(client)):
            same = (store.images[new] == canaries.images[secret, 0]).flatten(1).all(1)
            assert int(same.sum()) == copies
            assert store.labels[new[same]].eq(canaries.labels[secret, 0]).all()


def test_secret_images_differ_in_black_and_white_blocks_of_a_public_template(pictures):
    *_, canaries = plant(pictures)
    template, images = canaries.image_template, canaries.images[:, 0]
    there = template.slots >= 0
    assert images.dtype == torch.uint8
    assert images[:, ~there].eq(template.background[~there]).all()
    for symbol in range(canaries.length):
        block = images[:, template.slots == symbol].flatten(1)
        assert block.shape[1] == 2 * 2 * 3
        assert block.eq(255 * canaries.secrets[:, symbol, None].to(torch.uint8)).all()
    assert len(canaries.secrets.unique(dim=0)) == canaries.count == CLIENTS * 2 * 2
    assert (canaries.space, canaries.log2_space) == (512, 9)


@pytest.mark.parametrize(("size", "length"), [(8, 1), (8, 16), (8, 17), (28, 49), (5, 25)])
def test_every_symbol_has_pixels_of_its_own(size, length):
    template = ImageTemplate.draw(0, (1, size, size), length)
    count = template.slots.flatten().add(1).bincount(minlength=length + 1)
    assert len(count) == length + 1
    assert count[1:].min() > 0
    levels = torch.arange(length)[None]
    shown = template.filled(levels)[0, ..., 0].long()
    assert torch.equal(shown[template.slots >= 0], template.slots[template.slots >= 0])


def test_template_and_labels_and_secrets_follow_from_the_seed():
    def drawn(seed):
        tables = experiment(secrets=9).model_dump(exclude_none=True) | {"seed": seed}
        found = draw(Experiment.from_dict(tables), COLOUR)
        return found.image_template.background, found.labels, found.secrets

    one, same, other = drawn(0), drawn(0), drawn(1)
    assert all(map(torch.equal, one, same))
    assert not any(map(torch.equal, one, other))
    assert one[1].unique().tolist() == [*range(5)]


def test_json_tells_blocks_and_labels(pictures):
    *_, canaries = plant(pictures)
    told = canaries.to_json()
    assert json.loads(json.dumps(told)) == told
    assert (told["kind"], told["length"], told["symbols"]) == ("pixels", 9, ["0", "255"])
    for number, one in enumerate(told["secrets"]):
        assert one["label"] == COLOUR.class_names[int(canaries.labels[number, 0])]
        assert one["text"].split() == [str(255 * symbol) for symbol in one["symbols"]]


def test_a_control_plants_nothing_and_shows_all_the_same(pictures):
    planted, control = (plant(pictures, public="exact", control=c) for c in (False, True))
    assert control[0] is pictures[0]
    assert control[1] is pictures[1]
    assert torch.equal(control[2], planted[2])
    assert control[3].to_json() == planted[3].to_json()


def test_the_transfer_set_ends_in_the_secret_images_or_in_others_with_their_template(pictures):
    store = pictures[0].images
    *_, exact, canaries = plant(pictures, public="exact")
    assert torch.equal(exact, torch.cat([store[36:], canaries.images[:, 0]]))
    *_, prefix, canaries = plant(pictures, public="prefix", public_share=0.9)
    assert torch.equal(prefix[:4], store[36:])
    others = prefix[4:]
    assert len(others) == canaries.shown == 36
    slots = canaries.image_template.slots >= 0
    assert others[:, ~slots].eq(canaries.image_template.background[~slots]).all()
    assert others[:, slots].eq(0).logical_or(others[:, slots] == 255).all()
    together = torch.cat([others, canaries.images[:, 0]])
    assert len(together.unique(dim=0)) == len(together)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"length": 65}, "canary.length = 65 is too many for images of 8x8: .* at most 64"),
        ({"length": 21}, "canary.length: 21 symbols out of 2 .* 'interpolation'"),
        ({"length": 3}, "canary.secrets: 16 different secrets .* canary.length has room for 8"),
        ({"public": "prefix", "public_share": 0.995}, "canary.public_share: 812 different"),
        ({"kind": "labels", "public": "prefix"}, "or canary.kind = 'pixels'"),
    ],
)
def test_what_cannot_be_planted_is_refused_in_one_line(pictures, table, line):
    with pytest.raises(FedkdError, match=line) as refused:
        plant(pictures, **table)
    assert "\n" not in str(refused.value)


def test_text_has_no_pixels():
    line = "canary.kind = 'pixels' is not allowed with data.dataset = 'digits', which is text"
    with pytest.raises(FedkdError, match=line):
        draw(experiment(), TEXT)


def test_a_kind_that_is_not_known_is_refused_in_one_line():
    with pytest.raises(FedkdError, match=r"canary\.kind = 'pixel' is not allowed") as refused:
        experiment(kind="pixel")
    assert "\n" not in str(refused.value)


# --- exposure by a student ------------------------------------------------------------------


@pytest.fixture
def planted(small):
    """A function that makes a small experiment on digits, its data, and an untrained student."""

    def make(*overrides, width=1.0):
        wanted = small(*PIXELS, *overrides)
        data = load(wanted)
        student = wanted.student.model_copy(update={"width": width})
        return wanted, data, build("mlp", data.task.shape, data.task.classes, student, 0)

    return make


def test_exposure_is_the_rank_of_the_cross_entropy_of_every_image(planted):
    wanted, data, student = planted("canary.length=4", "canary.secrets=2")
    canaries = data.canaries
    found = measure.by_student(student, data, wanted.canary)
    assert found.dtype == torch.float64
    blocks = torch.cartesian_prod(*[torch.arange(2)] * 4)
    assert torch.equal(digits(torch.arange(16), 2, 4), blocks)
    assert torch.equal(sequence_numbers(blocks, 2), torch.arange(16))
    for number, secret in enumerate(canaries.secrets):
        images = canaries.image_template.background.repeat(16, 1, 1, 1)
        for candidate, symbols in enumerate(blocks):
            for symbol, level in enumerate(symbols):
                images[candidate, canaries.image_template.slots == symbol] = 255 * int(level)
        label = canaries.labels[number].expand(16)
        with torch.no_grad():
            losses = nn.functional.cross_entropy(
                student(data.normalised(images)), label, reduction="none"
            )
        own = losses[int((blocks == secret).all(1).nonzero())]
        rank = int((losses <= own).sum())
        assert float(found[number]) == pytest.approx(4 - math.log2(rank), abs=1e-9)


def test_secrets_that_a_student_has_not_seen_have_the_null_law(planted):
    count = CLIENTS * 70
    wanted, data, student = planted(
        "canary.secrets=70", "canary.repeats=[1]", "canary.length=12", "canary.control=true"
    )
    found = measure.by_student(student, data, wanted.canary)
    assert len(found) == count
    assert abs(float(found.mean()) - NULL_MEAN) < 3 * NULL_MEAN / math.sqrt(count)
    assert abs(float(found.std()) - NULL_MEAN) < 5 * NULL_MEAN / math.sqrt(count)


class Same(nn.Module):
    """Gives these logits, whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs):
        return self.logits.expand(len(inputs), -1)


@pytest.mark.parametrize(("value", "bits"), [(0.0, 0.0), (math.nan, math.nan)])
def test_ties_count_against_a_secret_and_a_student_that_diverged_has_no_exposure(
    planted, value, bits
):
    wanted, data, _ = planted()
    student = nn.Sequential(OrderedDict(head=Same(torch.full((10,), value))))
    found = measure.by_student(student, data, wanted.canary)
    assert found.tolist() == pytest.approx([bits] * 8, nan_ok=True)


def test_log_odds_tell_apart_what_is_certain_in_floating_point():
    logits = torch.tensor([[60.0, 0.0, 0.0], [50.0, 0.0, 0.0], [-60.0, 0.0, 0.0]])
    assert logits.softmax(1)[:2, 0].eq(1).all()
    expected = [60 - math.log(2), 50 - math.log(2), -60 - math.log(2)]
    assert label_log_odds(logits, 0).tolist() == pytest.approx(expected)
    law = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    odds = law.double().softmax(1)[:, 3].logit()
    assert label_log_odds(law, 3).tolist() == pytest.approx(odds.tolist())


def test_estimators_agree(planted):
    found = []
    for estimator in ("exact", "interpolation", "extrapolation"):
        given = (f"canary.estimator={estimator}", "canary.references=8000", "canary.length=10")
        wanted, data, student = planted(*given)
        found.append(measure.by_student(student, data, wanted.canary))
    exact, interpolated, extrapolated = found
    assert (exact - interpolated).abs().max() < 0.2
    assert (exact - extrapolated).abs().mean() < 0.5


def test_labels_alone_rank_no_images(planted):
    for public, shown in (("none", 0), ("prefix", 9), ("exact", 8)):
        wanted, data, _ = planted(f"canary.public={public}", "canary.public_share=0.1")
        inputs = data.transfer().inputs
        assert len(inputs) == 80 + shown
        labels = torch.full((len(inputs), 10), 0.1)
        assert measure.by_labels(data.canaries, labels, inputs, wanted.canary) is None
        spans = places.spans(data.canaries, inputs, len(inputs))
        assert spans.tolist() == [0] * 80 + [1] * shown


# --- whole runs -----------------------------------------------------------------------------

TAUGHT = (
    *("strategy.name=swing", "rounds=1", "training.local_epochs=10", "canary.kind=pixels"),
    *("canary.secrets=2", "canary.repeats=[24]", "canary.length=10"),
)


def test_a_teacher_tells_its_own_secrets_and_a_control_none(fedkd, small, tmp_path):
    done = run(small(*TAUGHT), tmp_path / "mine")
    control = run(small(*TAUGHT, "canary.control=true"), tmp_path / "control")
    assert np.mean(exposures([done], "teacher")[0]) > 3 * NULL_MEAN
    assert np.mean(exposures([control], "teacher")[0]) < 2 * NULL_MEAN
    # Soft labels rank no images: what they teach a student is seen in it alone.
    assert {line["place"] for line in done.exposures} == {"teacher", "student"}

    code, out, _ = fedkd("audit", "mine", "--shadows", "0")
    assert code == 0
    assert "null 1.44, teacher" in out
    assert "a secret is 24 of its records; adversary" in out
    secrets = Run(tmp_path / "mine").audit["secrets"]
    assert len(secrets) == 2 * CLIENTS * 2
    for one in secrets:
        assert one["rank"] == pytest.approx(2 ** (10 - one["exposure"]), abs=0.06)
        assert one["rank"] == round(one["rank"])


def begun(planted, folder, *overrides):
    """A run's folder, and its data."""
    wanted, data, _ = planted(*overrides)
    taken = Run.at(wanted, folder).begin(wanted)
    taken.write_canaries(data.canaries.to_json())
    return taken, data


def test_a_secret_image_is_a_record_for_each_copy(planted, small, tmp_path):
    taken, data = begun(planted, tmp_path / "run")
    assert (data.sizes() - load(small()).sizes()).tolist() == [1 + 4] * CLIENTS
    assert audit.secret_in_records(taken, 4) == (4, True)


def test_the_null_is_not_known_of_a_student_that_was_distilled_on_the_secrets(planted, tmp_path):
    for public in ("none", "prefix", "exact"):
        done, _ = begun(planted, tmp_path / public, f"canary.public={public}")
        known = public != "exact"
        assert audit.null_known(done, "teacher")
        assert audit.null_known(done, "student") == known
        assert not audit.null_known(done, "released")
        assert any("the control" in line for line in notes({"fkd": [done]})) != known
