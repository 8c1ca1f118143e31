"""What the logits of a cross-entropy are shifted by, for how often a client has seen each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prior:
    """A shift of logits by the label counts n ``(C,)`` of the samples that a term draws from.

    With ``form="log"`` it is ``weight * log n``: balanced softmax (Ren et al. 2020), or logit
    adjustment (Menon et al. 2021). With ``"margin"`` it is ``-weight * n^(-1/4)`` (FedLC: Zhang et
    al. 2022, after the margins of Cao et al. 2019). Of a class without samples it is minus
    infinity: no gradient is its. Counts are taken where the samples are, and never travel.
    """

    form: Literal["log", "margin"] = "log"
    weight: float = 1.0

    def shift(self, counts: Tensor) -> Tensor:
        """What is added to logits, of counts ``(..., C)`` of floats."""
        if self.form == "log":
            return self.weight * counts.log()
        return -self.weight * counts**-0.25
