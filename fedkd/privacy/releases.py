"""Lines of the ledger: what left a client or the server, and the rules that a line breaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fedkd.errors import FedkdError


@dataclass(frozen=True)
class Release:
    """A line of the ledger: what left a client in one step, or the server in one round.

    ``client`` is None where the server releases something: what it has made of what ``clients``
    sent under ``key``. ``step`` is then ``Average``, of parameters, with ``clip`` their clipping
    norm and ``rho`` for zero-out neighbours, or ``Aggregate``, of labels. Of a client it is
    ``Predict``, ``Represent``, ``Select``, ``Count`` or ``Share``; where an epsilon is claimed also
    ``Samples``, ``Metrics``, ``Record`` or ``Failure``, what the server learnt or acted on beside
    what was sent (see :meth:`fedkd.privacy.ledger.Ledger.used`), or ``Resumed``, what a run that
    was interrupted released and no line tells of. ``items`` is the number of released rows.
    ``mechanism``, ``scale``, ``draws`` and ``clip`` are those of ``[release]``; ``candidates`` is
    how many public classes, at most, stand for themselves (None: all of them), ``mix`` the share of
    a law that no private data decides. ``scores`` names the privacy scores that temperatures
    followed, ``scores_private`` says whether private data are in them. ``fresh``: not an answer
    that was given before; ``redrawn``: its noise is drawn anew whenever it is given again. ``rho``
    and ``epsilon`` are zCDP and pure DP of the whole line, None where there is no bound;
    ``nominal`` is the epsilon of one item or draw, which guarantees nothing. ``on`` says whose
    samples the answers are about (``samples``: sent along by the server); empty: as its step has it
    by default. ``answer`` is what ``fresh`` goes by; empty: always a new one. ``trust`` says who
    adds the noise, if it is not each client; ``rdp`` is what votes cost that are as they are, by
    order (:data:`fedkd.privacy.votes.ORDERS`), and is private.
    """

    round: int
    client: int | None
    step: str
    key: str
    items: int
    mechanism: str = "none"
    scale: float = 0.0
    draws: int = 1
    temperature_min: float | None = None
    temperature_max: float | None = None
    clip: float | None = None
    candidates: int | None = None
    mix: float = 0.0
    scores: str = ""
    scores_private: bool = False
    fresh: bool = True
    redrawn: bool = False
    rho: float | None = None
    epsilon: float | None = None
    nominal: float | None = None
    on: str = ""
    answer: str = ""
    clients: tuple[int, ...] = ()
    trust: str = ""
    rdp: tuple[float, ...] = ()

    def to_dict(self, brief: bool = False) -> dict[str, Any]:
        """The line as JSON takes it; ``brief``: without what is as it is by default."""
        line = dict(vars(self))
        for name in ("clients", "rdp"):
            if values := line.pop(name):
                line[name] = list(values)
        if brief:
            defaults = {field.name: field.default for field in fields(self)}
            line = {name: value for name, value in line.items() if value != defaults[name]}
        return line

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Release:
        """The line back; keys that are not of the ledger are passed over.

        Raises
        ------
        FedkdError
            If a key that every line has is missing.
        """
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in line.items() if key in known}
        lists = {name: tuple(values.get(name, ())) for name in ("clients", "rdp")}
        try:
            return cls(**values | lists)
        except TypeError as error:
            raise FedkdError(f"{dict(line)!r} is not a line of releases: {error}") from error


SENT = ("Predict", "Represent", "Select", "Count", "Share")
WHAT = {
    "Predict": "labels",
    "Aggregate": "labels",
    "Represent": "representations",
    "Select": "choices by private samples",
    "Count": "label counts",
    "Share": "parameters",
    "Samples": "numbers of samples",
    "Metrics": "losses or accuracies",
}
"""What a step releases; the last two are numbers that the server acts on beside what is sent."""


def seen(line: Release) -> str:
    """What a line says that private data decide and no noise is on, whatever the unit."""
    if line.step == "Failure":
        return (
            f"none: in round {line.round} client {line.client} failed ({line.key}), which its data "
            "may decide"
        )
    if line.step == "Resumed":
        return (
            "none: the run was resumed with other noise (release.secure), and what the round that "
            "was interrupted released is not in the ledger"
        )
    if line.step == "Record":
        return "none: what the method does depends on measurements of private data"
    return ""


def broken(line: Release) -> str:
    """The rule that a line breaks without private training, or nothing."""
    if why := seen(line):
        return why
    what = WHAT[line.step]
    if line.trust == "central" and line.client is not None:
        return f"none: {what} leave the client without noise, for a server that is trusted"
    noisy = line.mechanism in ("gaussian", "laplace", "votes")
    if line.mechanism == "none" or (noisy and not line.scale):
        leave = "are released" if line.step in ("Predict", "Aggregate") else "leave the client"
        return f"none: {what} {leave} without noise"
    if line.mechanism == "argmax":
        return "none: the likeliest class is released without noise"
    if line.scores_private:
        return "none: scores come from private data"
    if line.redrawn:
        return "none: noise is redrawn for the same answer"
    if line.rho is None:
        return "none: labels are drawn from logits that are not clipped"
    return ""


ABOUT = {"Represent": "private"}
"""What a step is about by default, where that is private."""
