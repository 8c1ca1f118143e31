"""Exposure of planted secrets by a student and by soft labels: known answers."""

import math
from collections import OrderedDict

import pytest
import texts
import torch
from torch import nn

from fedkd.data.canaries import places
from fedkd.data.federated import load
from fedkd.digests import digest, fingerprint
from fedkd.exposures import NULL_MEAN
from fedkd.lab import measure
from fedkd.privacy.candidates import over_candidates
from fedkd.students import build
from fedkd.training import item_labels

LINES = ("canary.secrets=2", "canary.repeats=[1, 4]")
IMAGES = ("canary.secrets=1", "canary.repeats=[1, 4]", "canary.length=2")
EXACT = "canary.public=exact"
ESTIMATORS = ["exact", "interpolation", "extrapolation"]
SPACE = math.log2(100)  # two digits, or two labels of ten classes


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A function that makes a small experiment on text with canaries, and its data."""
    place = tmp_path_factory.mktemp("texts")

    def make(*overrides):
        experiment = texts.small(place, *LINES, *overrides)
        return experiment, load(experiment)

    return make


@pytest.fixture
def images(small):
    """The same on digits."""

    def make(*overrides):
        experiment = small(*IMAGES, *overrides)
        return experiment, load(experiment)

    return make


def by_labels(experiment, data, labels, **over):
    return measure.by_labels(
        data.canaries, labels, data.transfer().inputs, experiment.canary, **over
    )


def uniform(data):
    """The uniform law at every item of a text."""
    items, classes = len(item_labels(data.transfer())), data.task.classes
    return torch.full((items, classes), 1 / classes)


def knowing(data):
    """Soft labels that are sure of what follows."""
    following = item_labels(data.transfer()).clamp_min(0)
    return torch.nn.functional.one_hot(following, data.task.classes).float()


class Says(nn.Module):
    """Gives these logits, whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs):
        return self.logits[: len(inputs)]


def saying(logits):
    return nn.Sequential(OrderedDict(head=Says(logits)))


# --- by labels, under two scores ------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["exact", "interpolation"])
def test_both_scores_find_what_labels_are_sure_of(estimator, text):
    experiment, data = text(EXACT, f"canary.estimator={estimator}")
    found = [by_labels(experiment, data, knowing(data), linear=linear) for linear in (False, True)]
    assert all(bool((bits >= found[0].min() - 3).all()) for bits in found)
    assert not torch.equal(*found) or float(found[0].min()) > SPACE - 1


def test_both_scores_of_labels_that_say_nothing_of_images_are_those_of_a_tie(images):
    experiment, data = images(EXACT)
    labels = torch.full((len(data.transfer().inputs), 10), 0.1)
    for linear in (False, True):
        assert by_labels(experiment, data, labels, linear=linear).eq(0).all()


# --- digests --------------------------------------------------------------------------------


def test_a_digest_depends_on_every_parameter_and_every_buffer():
    student = nn.Sequential(OrderedDict(fc=nn.Linear(3, 4), norm=nn.BatchNorm1d(4)))
    found = {digest(student)}
    for tensor in student.state_dict().values():
        before = tensor.clone()
        tensor.view(-1)[-1] += 1
        found.add(digest(student))
        tensor.copy_(before)
    assert len(found) == 1 + len(student.state_dict())
    assert digest(student) in found
    # A metric is a float64.
    assert all(int(float(one)) == one and 0 <= one < 2**48 for one in found)


def test_a_digest_is_of_values_and_not_of_the_object():
    one, other = (nn.Sequential(OrderedDict(fc=nn.Linear(3, 4))) for _ in range(2))
    assert digest(one) != digest(other)
    other.load_state_dict(one.state_dict())
    assert digest(one) == digest(other)


def test_a_fingerprint_is_of_values():
    values = torch.arange(12.0).view(3, 4)
    assert fingerprint(values) == fingerprint(values.T.contiguous().T)
    assert fingerprint(values) != fingerprint(values + 1e-6)
    assert fingerprint(None) == fingerprint(None) != fingerprint(values)


# --- soft labels on a text ------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS[:2])
def test_labels_sure_of_the_exact_lines_give_all_secrets_away(estimator, text):
    experiment, data = text(EXACT, f"canary.estimator={estimator}", "canary.references=1000")
    found = by_labels(experiment, data, knowing(data))
    assert found.shape == (12,)
    # They share their prefix: at best they are the twelve likeliest lines, or tie with those that
    # begin alike.
    assert found.min() > 0.5
    assert found.mean() > NULL_MEAN + 1
    assert found.max() > SPACE - math.log2(12) - 1


@pytest.mark.parametrize("public", ["prefix", "exact"])
def test_labels_that_say_nothing_expose_nothing(public, text):
    experiment, data = text(f"canary.public={public}")
    assert by_labels(experiment, data, uniform(data)).eq(0).all()  # all tie


def test_labels_on_a_corpus_without_the_prefix_cannot_be_measured(text):
    experiment, data = text()
    assert by_labels(experiment, data, knowing(data)) is None


def test_one_item_alone_can_give_a_first_symbol_away(text):
    experiment, data = text(EXACT)
    canaries = data.canaries
    labels = uniform(data)
    first = int(canaries.secrets[0, 0])
    spans = places.spans(canaries, data.transfer().inputs, len(labels)).bool()
    labels[spans, canaries.symbols[first]] += 0.5
    labels /= labels.sum(1, keepdim=True)
    found = by_labels(experiment, data, labels)
    begins = canaries.secrets[:, 0] == first
    assert found[begins].min() >= SPACE - math.log2(20)
    assert found[~begins].max() < found[begins].min()


def test_over_candidates_what_all_symbols_have_is_what_they_have(text):
    experiment, data = text(EXACT)
    torch.manual_seed(0)
    labels = torch.randn(len(uniform(data)), data.task.classes).softmax(1)
    among = data.canaries.symbols.expand(len(labels), -1)
    assert torch.equal(
        by_labels(
            experiment,
            data,
            over_candidates(labels, among),
            among=among,
            classes=data.task.classes,
        ),
        by_labels(experiment, data, labels),
    )


def test_labels_of_zeros_and_ones_are_measured_too(text, images):
    for make in (text, images):
        experiment, data = make(EXACT)
        count = len(data.transfer().inputs) if make is images else len(uniform(data))
        labels = torch.zeros(count, data.task.classes)
        labels[:, 4] = 1
        assert torch.isfinite(by_labels(experiment, data, labels)).all()


def test_estimators_agree(text):
    torch.manual_seed(0)
    found = {}
    for estimator in ESTIMATORS:
        table = [f"canary.estimator={estimator}", "canary.references=20000"]
        experiment, data = text(EXACT, *table)
        labels = torch.randn(uniform(data).shape, generator=torch.Generator().manual_seed(0))
        found[estimator] = by_labels(experiment, data, labels.softmax(1))
    exact, interpolated, extrapolated = found.values()
    # A rank of r in 100 is estimated from 200 r of 20,000; a law is fitted less well.
    assert (exact - interpolated).abs().max() < 0.3
    assert (exact - extrapolated).abs().mean() < 0.5


# --- soft labels on images ------------------------------------------------------------------


def test_labels_of_canary_images_are_the_last_rows(images):
    experiment, data = images(EXACT)
    count, classes = data.canaries.count, data.task.classes
    items = len(data.transfer().inputs)
    assert items == 80 + 2 * count
    labels = torch.full((items, classes), 0.01)
    secret = data.canaries.secrets.flatten()
    labels[torch.arange(80, items), secret] = 0.91
    assert by_labels(experiment, data, labels).tolist() == pytest.approx([SPACE] * count)
    # Rows before them do not count.
    labels[:80] = torch.eye(classes)[0]
    assert by_labels(experiment, data, labels).tolist() == pytest.approx([SPACE] * count)
    # One symbol told, the other unknown: ten sequences tie.
    labels[81::2] = 1 / classes
    assert by_labels(experiment, data, labels).tolist() == pytest.approx([SPACE / 2] * count)


def test_labels_say_nothing_of_images_that_are_not_in_the_transfer_set(images):
    experiment, data = images()
    assert by_labels(experiment, data, torch.full((80, 10), 0.1)) is None


# --- places ---------------------------------------------------------------------------------


def test_spans_are_where_labels_count(text):
    """Changing labels anywhere else changes no exposure; anywhere there, some."""
    experiment, data = text(EXACT)
    canaries, inputs = data.canaries, data.transfer().inputs
    labels = torch.randn(uniform(data).shape, generator=torch.Generator().manual_seed(1)).softmax(1)
    spans = places.spans(canaries, inputs, len(labels)).bool()
    assert int(spans.sum()) == 2 * canaries.count
    before = by_labels(experiment, data, labels)
    changed = labels.flip(1)
    assert torch.equal(
        by_labels(experiment, data, torch.where(spans[:, None], labels, changed)), before
    )
    after = by_labels(experiment, data, torch.where(spans[:, None], changed, labels))
    assert not torch.equal(after, before)


def test_spans_of_images_are_the_last(images):
    for public, expected in ((EXACT, 16), ("canary.public=none", 0)):
        _, data = images(public)
        inputs = data.transfer().inputs
        spans = places.spans(data.canaries, inputs, len(inputs))
        assert spans.sum() == expected
        assert spans[80:].eq(1).all()


# --- a student ------------------------------------------------------------------------------


def test_a_student_that_knows_the_labels_of_canary_images_exposes_all(images):
    experiment, data = images()
    secrets = data.canaries.secrets.flatten()
    student = saying(9 * torch.eye(10)[secrets])
    found = measure.by_student(student, data, experiment.canary)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([SPACE] * data.canaries.count)


def test_a_student_that_is_sure_of_the_wrong_labels_exposes_least(images):
    experiment, data = images()
    student = saying(-9 * torch.eye(10)[data.canaries.secrets.flatten()])
    assert measure.by_student(student, data, experiment.canary).eq(0).all()


def test_a_student_that_diverged_has_no_exposure(images, text):
    experiment, data = images()
    logits = torch.zeros(16, 10)
    logits[3] = torch.nan
    assert measure.by_student(saying(logits), data, experiment.canary).isnan().all()
    experiment, data = text()
    table = experiment.student
    student = build("lstm", data.task.shape, data.task.classes, table, 0, tokens=True)
    with torch.no_grad():
        student.head.bias.fill_(torch.nan)
    assert measure.by_student(student, data, experiment.canary).isnan().all()


@pytest.mark.parametrize("name", ["lstm", "gru", "gpt"])
def test_the_exposure_by_a_student_of_text_is_that_by_its_labels_on_every_line(name, text):
    """The exact lines of all sequences, asked for one by one."""
    experiment, data = text()
    canaries, task = data.canaries, data.task
    student = build(name, task.shape, task.classes, experiment.student, 3, tokens=True)
    found = measure.by_student(student, data, experiment.canary)
    scores = []
    everything = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    with torch.no_grad():
        rows = torch.stack([torch.cat([canaries.context, canaries.symbols[s]]) for s in everything])
        laws = student.eval()(rows[:, :-1])[:, -2:].log_softmax(2).double()
        scores = laws.gather(2, rows[:, -2:, None]).sum((1, 2))
    ranks = [(scores >= scores[10 * a + b] - 1e-6).sum() for a, b in canaries.secrets.tolist()]
    assert found.tolist() == pytest.approx([SPACE - math.log2(r) for r in ranks], abs=0.1)
    estimated = experiment.canary.model_copy(
        update={"estimator": "interpolation", "references": 20_000}
    )
    assert (measure.by_student(student, data, estimated) - found).abs().max() < 0.3
