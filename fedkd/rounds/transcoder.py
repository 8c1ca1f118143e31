"""Arrays encoded on their way out and decoded on their way in, and what deltas are to.

For each client the server keeps what it holds of it and what it knows to be held there, by name:
soft labels of the whole transfer set, NaN where there are none, and the version of them that both
sides name. Whoever missed a round, or whose reply was left out, is sent in full what has changed
since: it is told apart by its version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedkd.compression import Delta, Encoding
from fedkd.encodings import Undecodable, as_received, decoded, encoded, loaded, multiplied
from fedkd.mixtures import travelling, with_travelling
from fedkd.shapes import Shapes
from fedkd.training import item_counts, item_numbers
from fedkd.work import (
    Assignment,
    Fit,
    Parameters,
    Predict,
    Reply,
    Rows,
    Share,
    Soft,
    Source,
    Step,
    Term,
    origin,
)

PHASES = ("learn", "receive")
Held = dict[int, dict[str, tuple[int, Tensor]]]
"""By client and name: the version, and the soft labels ``(M, C)``."""


class Transcoder:
    """Encodes what is sent to clients, decodes what comes from them.

    Parameters
    ----------
    transfer
        The transfer set's inputs ``(M, ...)``.
    """

    def __init__(self, shapes: Shapes, transfer: Tensor) -> None:
        self.shapes = shapes
        self._counts = item_counts(transfer) if len(transfer) else None
        self._size = len(transfer) if self._counts is None else int(self._counts.sum())
        self._samples = len(transfer)
        self._there: Held = {}  # known to be held by clients
        self._here: Held = {}  # received from them
        self._sent: Held = {}  # on its way, and nobody knows yet whether it has arrived
        # By identity, within a phase: what many clients get is encoded once.
        self._encoded: dict[Any, tuple[Any, Parameters]] = {}
        self._merged: dict[Any, tuple[Any, Tensor]] = {}

    def begin(self) -> None:
        """Begin a phase."""
        self._sent.clear()
        self._encoded.clear()
        self._merged.clear()

    def state(self) -> dict[str, Any]:
        """What later rounds depend on."""
        return {"there": _copied(self._there), "here": _copied(self._here)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take in what :meth:`state` gave."""
        self._there, self._here = _copied(state["there"]), _copied(state["here"])

    # --- out --------------------------------------------------------------------------------

    def sent(self, client: int, round: int, phase: str, steps: Sequence[Step]) -> tuple[Step, ...]:
        """``steps`` as they travel to ``client``: targets encoded, deltas with their versions."""
        version = 1 + len(PHASES) * round + PHASES.index(phase)
        found: list[Step] = []
        for step in steps:
            if isinstance(step, Predict) and isinstance(step.encoding, Delta):
                since = self._here.get(client, {}).get(step.encoding.name, (0,))[0]
                step = replace(step, encoding=_versions(step.encoding, since, version))
            elif isinstance(step, Fit) and any(map(_encodes, step.terms)):
                terms = [self._target(client, version, step, term) for term in step.terms]
                step = replace(step, terms=tuple(terms))
            found.append(step)
        return tuple(found)

    def _target(self, client: int, version: int, step: Fit, term: Term) -> Term:
        if not isinstance(term, Soft) or term.encoding is None:
            return term
        (given,) = travelling(term.targets)
        assert isinstance(given, Tensor)
        how, on = term.encoding, step.on if term.on is None else term.on
        if not isinstance(how, Delta):
            arrays = self._once(given, how, None, on)
            return replace(term, targets=with_travelling(term.targets, arrays))
        since, held = self._there.get(client, {}).get(how.name, (0, None))
        if held is not None and held.shape[1] != given.shape[1]:
            since, held = 0, None
        targets = with_travelling(term.targets, self._once(given, how, held, on))
        merged = self._merge(held, given, how, on)
        self._sent.setdefault(client, {})[how.name] = version, merged
        return replace(term, targets=targets, encoding=_versions(how, since, version))

    def _once(self, targets: Tensor, how: Encoding, held: Tensor | None, on: Source) -> Parameters:
        index = on.index if isinstance(on, Rows) else None
        key = id(targets), id(held), id(index), how
        if key not in self._encoded:
            known = None if held is None else held[self._rows(on)]
            self._encoded[key] = (targets, held, index), encoded(targets, how, known)
        return self._encoded[key][1]

    def _merge(self, held: Tensor | None, targets: Tensor, how: Delta, on: Source) -> Tensor:
        index = on.index if isinstance(on, Rows) else None
        key = id(targets), id(held), id(index), how.rows
        if key not in self._merged:
            values = as_received(targets, how)
            self._merged[key] = (targets, held, index), self._with(held, values, on)
        return self._merged[key][1]

    def _with(self, held: Tensor | None, values: Tensor, on: Source) -> Tensor:
        """``held`` ``(M, C)`` with new values ``(R, C)`` of some rows."""
        if held is None:
            held = values.new_full((self._size, values.shape[1]), torch.nan)
        return held.index_copy(0, self._rows(on), values)

    def _rows(self, on: Source) -> Tensor:
        index = on.index if isinstance(on, Rows) else torch.arange(self._samples)
        return item_numbers(index, self._counts)

    # --- in ---------------------------------------------------------------------------------

    def received(
        self, assignment: Assignment, reply: Reply, models: Mapping[str, str]
    ) -> tuple[Reply, tuple[str, str] | None]:
        """``reply`` with its arrays decoded; or the step of one that cannot be, and why.

        ``models`` has the architectures of the client's students, by name.
        """
        values, client = dict(reply.values), assignment.client
        for step in _encoding_steps(assignment):
            assert step.encoding is not None
            rows = self.shapes.rows(step.on, client)
            assert rows is not None
            shape, known = (rows, self.shapes.released), None
            if isinstance(step.encoding, Delta) and step.encoding.since:
                version, held = self._here.get(client, {}).get(step.encoding.name, (0, None))
                if version == step.encoding.since and held is not None:
                    known = held[self._rows(step.on)]
            try:
                arrays: Any = values.get(step.key)
                values[step.key] = decoded(arrays, step.encoding, shape, known)
            except Undecodable as error:
                return reply, ("Predict", f"{step.key}: {error}")
        shares = [step for step in assignment.steps if isinstance(step, Share) and step.encoding]
        for share in shares:
            forms = self.shapes.student(models[share.student]).part(tuple(share.part))
            before = loaded(assignment.steps, share)
            try:
                values[share.key] = multiplied(values.get(share.key), forms, before)
            except Undecodable as error:
                return reply, ("Share", f"{share.key}: {error}")
        return replace(reply, values=values), None

    def confirm(self, assignment: Assignment, reply: Reply) -> None:
        """A client's reply can be used: it has what it was sent, and what it sent is here."""
        client = assignment.client
        self._there.setdefault(client, {}).update(self._sent.get(client, {}))
        for step in _encoding_steps(assignment):
            how, values = step.encoding, reply.values[step.key]
            if isinstance(how, Delta) and isinstance(values, Tensor):
                mine = self._here.setdefault(client, {})
                held = mine.get(how.name, (0, None))[1]
                mine[how.name] = how.version, self._with(held, values, step.on)

    def lose(self, client: int) -> None:
        """Nobody knows what a client holds, nor what it takes for known here."""
        self._there.pop(client, None)
        self._here.pop(client, None)


def _encodes(term: Term) -> bool:
    return getattr(term, "encoding", None) is not None


def _encoding_steps(assignment: Assignment) -> Iterator[Predict]:
    for step in assignment.steps:
        if isinstance(step, Predict) and step.encoding is not None:
            assert origin(step.on) == "transfer"
            yield step


def _versions(how: Delta, since: int, version: int) -> Delta:
    return replace(how, since=since, version=version)


def _copied(held: Mapping[int, Mapping[str, tuple[int, Tensor]]]) -> Held:
    return {client: dict(names) for client, names in held.items()}
