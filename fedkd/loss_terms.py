"""The terms of a loss: what students learn by.

Authors of methods take these from :mod:`fedkd.work`, where all that a step is made of is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fedkd.compression import Encoding
from fedkd.mixtures import Mixture
from fedkd.priors import Prior
from fedkd.samples import Source

if TYPE_CHECKING:
    import torch

Parameters: TypeAlias = "dict[str, torch.Tensor]"
"""Named arrays: a student's parameters and buffers, or some of them."""


@dataclass(frozen=True)
class Head:
    """Frozen blocks in the place of the student's own above ``cut``, and of those up to ``below``.

    ``parameters`` are named as those blocks' own are in the student. The name of a student of the
    same client stands for that student's, as they are when the step begins. With ``below`` the
    student's own blocks are a module in another network, and the term's gradient touches them alone
    (m2mKD: Lo et al. 2024). With an empty ``cut`` no block above is replaced, with an empty
    ``below`` none below.
    """

    cut: str
    parameters: Parameters | str
    below: str = ""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with hard labels.

    ``on`` draws the term's mini-batches from another source than the step's own; ``through`` puts
    frozen blocks in the place of the student's own; ``prior`` shifts the logits. ``exit`` names a
    block whose last C numbers are logits too, of an early exit: the term is of these.
    """

    weight: float = 1.0
    on: Source | None = None
    through: Head | None = None
    prior: Prior | None = None
    exit: str = ""


@dataclass(frozen=True)
class Soft:
    """Distillation towards soft targets.

    ``targets`` holds one row a sample of the source ``(K, C)``, or with ``per="class"`` one row a
    class ``(C, C)`` picked by the sample's label; a row that begins with NaN is no target and its
    samples are passed over. ``objective`` is a name, or a name with options, as in
    ``{"name": "dkd", "beta": 4.0}``. Targets are what it expects: probabilities, or logits for
    ``mse_logits``. The name of a student of the same client stands for what that student says, at
    ``temperature``, when the step begins, per class for its mean over the samples of each class;
    that of another student that learns in the same step, for what it says of the batch at hand (see
    ``Peer``). A :class:`fedkd.mixtures.Mixture` is made of parts, of these and the labels,
    when the step begins. ``temperature``, one number or ``(K,)``, one a row of targets, divides the
    student's logits; ``tau_squared`` multiplies by its square, which keeps gradients of the same
    size (Hinton, Vinyals & Dean 2015, section 2.1). ``reach`` names the blocks that the term's
    gradient may touch; empty means all.

    ``among`` ``(K, k)`` holds candidate classes, distinct in a row, -1 for none: the targets are
    then the probabilities ``(K, k + 1)`` of these and, last, of all other classes together, and
    the student's are put together in the same way. ``row_weights`` ``(K,)`` multiply the losses at
    the rows of targets. ``encoding`` says how targets on the transfer set travel, and so what the
    client learns from. ``adaptive``, for students that learn together, divides by the sum of both
    students' cross-entropies with the labels of the batch, which has no gradient: who does not know
    teaches little (FedKD: Wu et al. 2022, equations 1 and 2).
    """

    targets: torch.Tensor | str | Parameters | Mixture
    objective: str | Mapping[str, Any] = "forward_kl"
    temperature: float | torch.Tensor = 1.0
    weight: float = 1.0
    tau_squared: bool = True
    per: Literal["sample", "class"] = "sample"
    reach: tuple[str, ...] = ()
    on: Source | None = None
    through: Head | None = None
    among: torch.Tensor | None = None
    row_weights: torch.Tensor | None = None
    encoding: Encoding | None = None
    adaptive: bool = False


@dataclass(frozen=True)
class Feature:
    """Representations near given ones.

    Of a sample with the flattened representation f ``(d,)`` at ``cut`` and the target t ``(d,)``::

        squared   mean over features of (f - t)^2   (FedProto: Tan et al. 2022)
        cosine    1 - <f, t> / (|t| max(|f|, r))    (ND: Wang et al. 2023)

    ``targets`` has one row a class ``(C, d)``, picked by the sample's label, or with
    ``per="sample"`` one row a sample of the source ``(K, d)``; a row that begins with NaN is no
    target and its samples are passed over. ``norms`` has r for each row of targets: a
    representation that is shorter is made longer, not only turned. Without, r is 0 and the measure
    is 1 less the cosine of the angle.
    """

    targets: torch.Tensor
    cut: str
    measure: Literal["squared", "cosine"] = "squared"
    per: Literal["sample", "class"] = "class"
    weight: float = 1.0
    on: Source | None = None
    norms: torch.Tensor | None = None


@dataclass(frozen=True)
class Contrast:
    """Representations like one student's and unlike another's (MOON: Li, He & Song 2021).

    With z a sample's representation at ``cut``, flattened, z+ and z- its ``positive`` and
    ``negative``, and cos the cosine of the angle between two::

        weight * mean -log( exp(cos(z, z+) / temperature)
                            / (exp(cos(z, z+) / temperature) + exp(cos(z, z-) / temperature)) )

    ``positive`` and ``negative`` are ``(K, d)``, a row a sample of the source; or the name of a
    student of the same client, for its representations at ``cut`` when the step begins.
    """

    positive: torch.Tensor | str
    negative: torch.Tensor | str
    cut: str
    temperature: float = 0.5
    weight: float = 1.0
    on: Source | None = None


@dataclass(frozen=True)
class Proximal:
    """``weight / 2`` times the squared distance to ``anchor`` (FedProx: Li et al. 2020).

    Without an anchor, to the parameters as they are when the step begins.
    """

    weight: float
    anchor: Parameters | None = None


@dataclass(frozen=True)
class Linear:
    """``weight`` times the inner product of the parameters with ``given``: ``sum <w, given>``.

    Its gradient is ``weight * given``, whatever the parameters are: a correction of each step of
    descent (SCAFFOLD: Karimireddy et al. 2020; FedDyn: Acar et al. 2021). ``given`` has an array
    for each parameter that learns.
    """

    given: Parameters
    weight: float = 1.0


Penalty = Proximal | Linear
"""Terms of the parameters alone, which see no samples."""
Term = CrossEntropy | Soft | Feature | Contrast | Proximal | Linear
