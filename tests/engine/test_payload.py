"""Work on its way to another process."""

import pytest
import torch

from fedkd.engine.blocks import Block, Window
from fedkd.engine.payload import ALIGNED, Payload, unpack
from fedkd.work import Assignment, Fit, Load, Predict, Samples, Soft


def travelled(*things):
    payload = Payload()
    frames = [payload.frame(thing) for thing in things]
    buffer = bytearray(payload.size)
    payload.write(buffer)
    return [unpack(frame, buffer) for frame in frames], payload.size


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).view(2, 3),
        torch.randn(3, 4).to(torch.bfloat16),
        torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 6).T,
        torch.tensor([True, False]),
        torch.tensor(2.5, dtype=torch.float64),
        torch.empty(0, 7),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_a_tensor_arrives_as_it_was(tensor):
    ([found], _) = travelled({"x": tensor})
    assert found["x"].dtype == tensor.dtype
    assert torch.equal(found["x"], tensor)


def test_an_assignment_arrives_whole():
    soft = Soft(torch.rand(5, 3), temperature=torch.rand(5), reach=("head",))
    on = Samples(torch.rand(5, 2), torch.arange(5))
    sent = Assignment(3, 2, "learn", (Fit(on, (soft,), epochs=0.5), Predict()), (Load({}),))
    ([found], _) = travelled(sent)
    fit = found.steps[0]
    assert torch.equal(fit.terms[0].targets, soft.targets)
    assert torch.equal(fit.on.labels, on.labels)
    assert (found.client, found.round, found.phase) == (3, 2, "learn")
    assert found.steps[1:] == sent.steps[1:]
    assert found.trial == sent.trial


def test_what_many_clients_get_travels_once():
    common = torch.rand(1000)
    work = [Assignment(n, 1, "learn", (Load({"w": common}),)) for n in range(20)]
    found, size = travelled(work[:10], work[10:])
    assert size <= common.nbytes + ALIGNED
    assert all(torch.equal(a.steps[0].parameters["w"], common) for part in found for a in part)


def test_a_block_is_seen_through_a_window_as_it_grows(tmp_path):
    block, window = Block(str(tmp_path)), Window()
    assert window.at(block.name) is None
    for size in (10, 5, 100_000):
        block.room(size)[:5] = b"fedkd"
        assert window.at(block.name)[:5] == b"fedkd"
    block.close()
    assert window.at(("", 0)) is None
    assert list(tmp_path.iterdir()) == []
