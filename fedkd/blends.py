"""Parameters that are in part another student's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Blend:
    """At which parameters a student learns that is built on another one, ``student``.

    With v its own parameters and w those of the other, which learns in the same step and is of the
    same architecture, blocks above ``cut`` are those of ``mine * v + theirs * w``. What comes in
    there is what the other gives at ``cut`` of this very batch, as it trains. With an empty cut all
    blocks are blended. v learns, by the gradient there times ``mine``; none goes through the other.
    Buffers are the student's own.

    ``mine = alpha`` and ``theirs = 1 - alpha`` is a mixture of two students (APFL: Deng et al.
    2020, equation 3). With both 1 above the last cut, a linear head is what is added to the other's
    logits (FedRoD: Chen & Chao 2022, section 4.2).

    With ``slope`` the fit also replies with the metric ``{key}_slope``: how the loss changes as
    ``mine`` grows and ``theirs`` shrinks by as much, a mean over the steps that the loss is of.
    """

    student: str
    mine: float = 0.5
    theirs: float = 0.5
    cut: str = ""
    slope: bool = False

    def of(self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The blended parameters, of one student each or of a stack ``(n, ...)``, by name."""
        return {
            name: blended(own, theirs[name].detach(), self.mine, self.theirs)
            for name, own in mine.items()
        }


def moved(
    blend: Mapping[str, Tensor],
    mine: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    by: Tensor,
) -> dict[str, Tensor]:
    """``blend`` with ``by`` more of ``mine`` and less of ``theirs``.

    ``by`` is a number, or of a stack ``(n,)``. No gradient goes through the two but what ``blend``
    itself has: that of ``by`` is the slope.
    """
    return {
        name: each + _beside(by, each) * (mine[name].detach() - theirs[name].detach())
        for name, each in blend.items()
    }


def each_blended(
    blends: Sequence[Blend], mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The blended parameters of a stack ``(n, ...)``, by a blend for each of its students."""
    first = blends[0]
    alike = all((each.mine, each.theirs) == (first.mine, first.theirs) for each in blends)
    if alike or not mine:
        return first.of(mine, theirs)
    some = next(iter(mine.values()))
    shares = [some.new_tensor([each.mine for each in blends])]
    shares += [some.new_tensor([each.theirs for each in blends])]
    return {
        name: _beside(shares[0], own) * own + _beside(shares[1], own) * theirs[name].detach()
        for name, own in mine.items()
    }


def _beside(numbers: Tensor, tensor: Tensor) -> Tensor:
    """Numbers ``(n,)`` as ``(n, 1, ...)``, to go with ``(n, ...)``; one number as it is."""
    return numbers.view(-1, *[1] * (tensor.dim() - 1)) if numbers.dim() else numbers


def blended(first: Tensor, second: Tensor, *shares: float) -> Tensor:
    """``shares[0] * first + shares[1] * second``, where what has no share need be no number.

    Of whole numbers, as counters are, it is ``second``.
    """
    if not (first.is_floating_point() or first.is_complex()):
        return second
    there = [(share, part) for share, part in zip(shares, (first, second), strict=True) if share]
    parts = [part if share == 1 else share * part for share, part in there]
    return sum(parts[1:], parts[0]) if parts else first.new_zeros(first.shape)
