"""Steps travel: what a strategy says is what a client hears."""

import dataclasses

import pytest
import torch

from fedkd.codec import Codec, decode, nbytes
from fedkd.work import (
    Assignment,
    Blend,
    Contrast,
    CrossEntropy,
    Evaluate,
    Fit,
    Linear,
    Load,
    Peer,
    Predict,
    Prior,
    Proximal,
    Reply,
    Samples,
    Share,
    Soft,
)


def same(a, b):
    """Equality that looks into tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in names)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


PARAMETERS = {"conv1.weight": torch.randn(2, 1, 3, 3), "conv1.count": torch.tensor(3)}
ASSIGNMENT = Assignment(
    client=3,
    round=2,
    phase="learn",
    steps=(
        Load(PARAMETERS, part=("conv1",)),
        Load("meme", keep=0.25, weight=0.75),
        Fit(together=(Peer("meme", (CrossEntropy(),), "meme_loss", at=Blend("own", 1.0, 0.5)),)),
        Fit(
            on=Samples(torch.randn(4, 2), torch.arange(4)),
            terms=(
                CrossEntropy(0.5, on="private", prior=Prior("margin", 2.0)),
                Soft(torch.rand(4, 3), "reverse_kl", temperature=2.0, reach=("conv1", "head")),
                Soft(
                    torch.rand(4, 3),
                    temperature=torch.tensor([1.0, 2.0, 4.0, 8.0]),
                    among=torch.tensor([[0, 1], [2, -1], [1, 2], [5, 0]]),
                    row_weights=torch.rand(4),
                ),
                Soft("own", {"name": "dkd", "alpha": 1, "beta": 0.5}),
                Soft("own", {"name": "dkd", "beta": 2.0}),
                Contrast(torch.rand(4, 6), "own", "conv1"),
                Proximal(0.1, PARAMETERS),
                Proximal(0.1),
                Linear(PARAMETERS, -0.5),
            ),
            epochs=0.5,
            lr=1e-3,
        ),
        Load("own", student="before"),
        Predict(output="logits", key="logits"),
        Share(("head",)),
    ),
    trial=(Evaluate("common", "common"),),
)


def test_an_assignment_survives_the_way_bit_for_bit():
    assert same(decode(Codec().encode(ASSIGNMENT)), ASSIGNMENT)


@pytest.mark.parametrize("part", ["body", "head"])
def test_a_single_step_survives(part):
    assignment = Assignment(0, 1, "learn", (Share((part,)),))
    assert same(decode(Codec().encode(assignment)), assignment)


def test_a_reply_survives_with_nan_metrics_and_named_arrays():
    values = {"soft_labels": torch.rand(5, 3), "parameters": PARAMETERS}
    reply = decode(Codec().encode(Reply(1, 60, values, {"loss": 0.25, "bad": float("nan")})))
    assert same(reply.values, values)
    assert reply.metrics["loss"] == 0.25
    assert reply.metrics["bad"] != reply.metrics["bad"]
    assert (reply.client, reply.samples) == (1, 60)


def test_a_single_named_array_is_not_taken_for_an_array():
    reply = decode(Codec().encode(Reply(1, values={"parameters": {"array": torch.ones(2)}})))
    assert list(reply.values["parameters"]) == ["array"]


def test_an_empty_reply_survives():
    assert same(decode(Codec().encode(Reply(1))), Reply(1))


def test_channels_last_arrays_keep_their_values():
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    reply = decode(Codec().encode(Reply(0, values={"parameters": {"w": weight}})))
    assert torch.equal(reply.values["parameters"]["w"], weight)


def test_an_array_sent_to_many_is_encoded_once():
    codec, targets = Codec(), torch.rand(100, 10)
    records = [
        codec.encode(Assignment(n, 1, "receive", (Fit("transfer", (Soft(targets),)),)))
        for n in range(3)
    ]
    assert len({id(record["steps.0.terms.0.targets"]) for record in records}) == 1


def test_an_array_sent_to_many_is_decoded_once():
    codec, common, seen = Codec(), {"w": torch.rand(4, 2)}, {}
    sent = [codec.encode(Assignment(n, 1, "learn", (Load(common),))) for n in range(2)]
    one, other = (decode(records, seen).steps[0].parameters["w"] for records in sent)
    assert one is other


def test_steps_that_many_do_are_sent_once_and_no_others_are_taken_for_them():
    codec, common, seen = Codec(), {"w": torch.rand(4, 2)}, {}
    asked = [
        Assignment(n, 1, "learn", (Load(parameters), Fit(lr=lr), Share()), trial)
        for n, (parameters, lr, trial) in enumerate(
            [
                (common, 0.1, ()),
                (common, 0.1, ()),
                (common, 1.0, ()),
                ({"w": torch.rand(4, 2)}, 0.1, ()),
                (common, 0.1, (Evaluate(),)),
            ]
        )
    ]
    sent = [codec.encode(assignment) for assignment in asked]
    told = [decode(records, seen) for records in sent]
    assert all(map(same, told, asked))
    assert told[0].steps is told[1].steps
    assert len({id(one.steps) for one in told}) == 4
    # Where they came without one another, as in another process, they are the same still.
    assert all(same(decode(records), one) for records, one in zip(sent, asked, strict=True))


def test_bytes_are_those_of_the_arrays():
    soft = 4 * 12 + (4 * 12 + 4 * 4 + 8 * 8 + 4 * 4)
    contrast = 4 * 24
    arrays = (4 * 18 + 8) + (4 * 8 + 8 * 4) + soft + contrast  # the parameters stand there twice
    assert nbytes(ASSIGNMENT.steps) == arrays
    assert nbytes(Reply(0, values={"soft_labels": torch.rand(7, 10)}).values) == 280


def test_an_array_that_stands_twice_travels_once():
    twice = (Load(PARAMETERS), Load(PARAMETERS, student="global"), Proximal(1.0, PARAMETERS))
    assert nbytes(twice) == nbytes(PARAMETERS)


def test_flower_adds_little_to_the_bytes():
    targets = torch.rand(1000, 10)
    assignment = Assignment(0, 1, "receive", (Fit("transfer", (Soft(targets),)),))
    wire = sum(record.count_bytes() for record in Codec().encode(assignment).values())
    assert 0 <= wire - nbytes(assignment.steps) < 1024
