"""What ``fuse``, ``record`` and ``end_round`` are shown of a round: replies fit to be used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch

from fedkd.errors import FedkdError
from fedkd.work import Parameters, Reply


class Replies:
    """The replies of a round that are fit to be fused, in client order."""

    def __init__(self, replies: Iterable[Reply]) -> None:
        self.replies = sorted(replies, key=lambda reply: reply.client)

    @property
    def clients(self) -> list[int]:
        """Who replied, ascending."""
        return [reply.client for reply in self.replies]

    @property
    def samples(self) -> torch.Tensor:
        """Private training samples of each, ``(N,)`` float64."""
        return torch.tensor([reply.samples for reply in self.replies], dtype=torch.float64)

    def stack(self, key: str = "soft_labels") -> torch.Tensor:
        """The array ``key`` of all clients: ``(N, ...)``, e.g. soft labels ``(N, M, C)``.

        Raises
        ------
        FedkdError
            A reply has no such array, or one of another shape than the first's.
        """
        found = [self._value(reply, key) for reply in self.replies]
        arrays = [array for array in found if isinstance(array, torch.Tensor)]
        if len(arrays) < len(found):
            raise FedkdError(f"stack({key!r}): these are named arrays; see parameters({key!r})")
        shapes = {tuple(array.shape) for array in arrays}
        if len(shapes) > 1:
            raise FedkdError(
                f"stack({key!r}): the arrays have unlike shapes: {', '.join(map(str, shapes))}"
            )
        return torch.stack(arrays)

    def of(self, client: int, key: str) -> Parameters:
        """The named arrays ``key`` of one client; empty if it sent none.

        Raises
        ------
        FedkdError
            The client did not reply.
        """
        for reply in self.replies:
            if reply.client == client:
                return cast(Parameters, reply.values.get(key, {}))
        raise FedkdError(f"of({client}, {key!r}): client {client} is not one of {self.clients}")

    def parameters(self, key: str = "parameters") -> list[Parameters]:
        """The named arrays ``key`` of each client.

        Raises
        ------
        FedkdError
            A reply has no such arrays.
        """
        groups = [self._value(reply, key) for reply in self.replies]
        if not all(isinstance(group, dict) for group in groups):
            raise FedkdError(f"parameters({key!r}): this is one array; see stack({key!r})")
        return cast(list[Parameters], groups)

    def metric(self, key: str) -> torch.Tensor:
        """A number that a step replies with beside what it sends, as ``train_loss``: ``(N,)``.

        In float64. It is private; where an epsilon is claimed, whoever looks has none.

        Raises
        ------
        FedkdError
            A reply has no such metric.
        """
        for reply in self.replies:
            if key not in (held := reply.metrics):
                there = ", ".join(map(repr, held)) or "nothing"
                raise FedkdError(
                    f"the reply of client {reply.client} has no metric {key!r}; it has {there}"
                )
        return torch.tensor([reply.metrics[key] for reply in self.replies], dtype=torch.float64)

    @staticmethod
    def _value(reply: Reply, key: str) -> torch.Tensor | Parameters:
        if key not in reply.values:
            there = ", ".join(map(repr, reply.values)) or "nothing"
            raise FedkdError(f"the reply of client {reply.client} has no {key!r}; it has {there}")
        return reply.values[key]

    def __len__(self) -> int:
        return len(self.replies)
