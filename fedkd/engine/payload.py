"""Work on its way to another process: arrays behind one another in one buffer, each once.

A thing (assignments, replies, states) becomes a *frame*, some bytes that say how it is put
together, and its tensors stay outside, in a buffer that both sides can see. A tensor that several
things hold is in the buffer once, and nobody copies it out.
"""

from __future__ import annotations

import io
import pickle
import warnings
from typing import Any

import torch
from torch import Tensor

ALIGNED = 64
"""Bytes that every tensor's place is a multiple of."""

Place = tuple[int, str, tuple[int, ...]]
"""Offset in the buffer, dtype, shape."""


class Payload:
    """What is about to travel: frames first, then one :meth:`write` of all their tensors."""

    def __init__(self) -> None:
        self.size = 0
        self._placed: dict[int, tuple[Place, Tensor]] = {}

    def frame(self, thing: Any) -> bytes:
        """``thing`` without its tensors; for :func:`unpack`, with the buffer."""
        stream = io.BytesIO()
        _Pickler(stream, self).dump(thing)
        return stream.getvalue()

    def write(self, buffer: Any) -> None:
        """Put all tensors into ``buffer``, writable and of at least ``size`` bytes."""
        if not self.size:
            return
        whole = torch.frombuffer(buffer, dtype=torch.uint8)
        for (offset, *_), tensor in self._placed.values():
            held = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            whole[offset : offset + held.numel()] = held

    def place(self, tensor: Tensor) -> Place:
        """Where ``tensor`` goes."""
        known = self._placed.get(id(tensor))
        if known is not None:
            return known[0]
        place = (self.size, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        # The tensor is kept: an id is only unique while its object lives.
        self._placed[id(tensor)] = (place, tensor)
        self.size += -(-tensor.nbytes // ALIGNED) * ALIGNED
        return place


def unpack(frame: bytes, buffer: Any) -> Any:
    """What a frame and its buffer hold; tensors lie in the buffer and must not be written to.

    Frames are pickles: they must come from a process that this one started.
    """
    return _Unpickler(io.BytesIO(frame), buffer).load()


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, payload: Payload) -> None:
        super().__init__(stream, protocol=5)
        self._payload = payload

    def persistent_id(self, thing: Any) -> Place | None:
        return self._payload.place(thing) if isinstance(thing, Tensor) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, buffer: Any) -> None:
        super().__init__(stream)
        self._buffer, self._found = buffer, dict[Place, Tensor]()

    def persistent_load(self, place: Place) -> Tensor:
        if place not in self._found:
            self._found[place] = self._tensor(*place)
        return self._found[place]

    def _tensor(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Tensor:
        kind, count = getattr(torch, dtype), torch.Size(shape).numel()
        if not count:
            return torch.empty(shape, dtype=kind)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(self._buffer, dtype=kind, count=count, offset=offset)
        return flat.view(shape)
