"""Targets that a client makes out of parts when a step begins, as terms say it.

How they are made is in :mod:`fedkd.training.made_targets`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Labels:
    """The samples' own labels as rows of targets: ``(1 - smoothing) 1_y + smoothing / C``.

    A sample without a label, as the last token of a text, has no target.
    """

    smoothing: float = 0.0


@dataclass(frozen=True)
class Mean:
    """The mean of the parts that a row has, by ``weights``, one a part; all the same without.

    Of a teacher and the labels it is ground-truth weighting (Borup & Andersen 2021).
    """

    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Surest:
    """Of each row the part that is surest of it; of equal ones, the first.

    Sure is what has the least ``entropy``, the highest probability of any class (``confidence``),
    or the highest one of the true class (``label``); a row without a label goes to the first. With
    the learning student's own name as the first part, it keeps its own word where it is the surer
    one (Roth, Thede et al. 2024). With ``every``, a row that a part lacks is no target: where
    nobody teaches, nothing is held on to.
    """

    by: Literal["entropy", "confidence", "label"] = "confidence"
    every: bool = False


@dataclass(frozen=True)
class Band:
    """The second of two parts where the first is little sure, the first where it is surer.

    With m the highest probability of the first part, or that of the true class (``label``): no
    target where m is below ``low`` or above ``top``, the second part below ``middle``, else the
    first (FerKD: Shen 2023; its second part is ``Labels(smoothing)``).
    """

    low: float
    middle: float
    top: float = 1.0
    by: Literal["confidence", "label"] = "label"


Rule: TypeAlias = Mean | Surest | Band


@dataclass(frozen=True)
class Mixture:
    """Targets ``(K, C)`` made of ``parts`` by ``rule``, row by row, when the step begins.

    A part is a tensor of probabilities ``(K, C)``; the name of a student of the client, for what
    that says at the term's temperature when the step begins, though it may learn in the step; or
    ``Labels(...)``. A row of a part that begins with NaN is none, and a row that all parts lack is
    no target. With ``per="class"`` all are ``(C, C)``: what a student says is then its mean over
    the samples of each class, and the label of a row is its class. Of an objective that takes
    logits, parts are logits, without labels, and sure is what is by their softmax. A tensor among
    the parts, if it is the only one, may travel encoded.
    """

    parts: tuple[torch.Tensor | str | Labels | dict[str, torch.Tensor], ...]
    rule: Rule = Mean()


def travelling(targets: Any) -> list[Any]:
    """What of ``targets`` travels: they themselves, or the arrays among a mixture's parts."""
    parts = targets.parts if isinstance(targets, Mixture) else (targets,)
    return [part for part in parts if not isinstance(part, str | Labels)]


def with_travelling(targets: Any, arrays: Any) -> Any:
    """``targets`` with ``arrays`` in the place of what travels of them."""
    if not isinstance(targets, Mixture):
        return arrays
    parts = [part if isinstance(part, str | Labels) else arrays for part in targets.parts]
    return replace(targets, parts=tuple(parts))
