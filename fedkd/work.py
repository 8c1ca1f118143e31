"""The narrow waist: everything a strategy can ask of a client.

A strategy gives a client an :class:`Assignment`, a few steps to do in order, and gets a
:class:`Reply`. Strategies say nothing else and engines know nothing else: a new method composes
these steps, a new engine performs them. How they travel is in :mod:`fedkd.codec`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fedkd.blends import Blend as Blend
from fedkd.compression import Encoding, LowRank
from fedkd.loss_terms import Contrast as Contrast
from fedkd.loss_terms import CrossEntropy as CrossEntropy
from fedkd.loss_terms import Feature as Feature
from fedkd.loss_terms import Head as Head
from fedkd.loss_terms import Linear as Linear
from fedkd.loss_terms import Parameters as Parameters
from fedkd.loss_terms import Penalty as Penalty
from fedkd.loss_terms import Proximal as Proximal
from fedkd.loss_terms import Soft as Soft
from fedkd.loss_terms import Term as Term
from fedkd.mixtures import Mixture as Mixture
from fedkd.priors import Prior as Prior
from fedkd.samples import SOURCES as SOURCES
from fedkd.samples import Rows as Rows
from fedkd.samples import Samples as Samples
from fedkd.samples import Source as Source
from fedkd.samples import origin as origin

if TYPE_CHECKING:
    import torch

# --- the steps ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """Another network in the place of a student's blocks above ``cut``.

    ``model`` is its architecture, made for the representation there as for an input; it has all of
    its ``parameters`` and buffers.
    """

    cut: str
    model: str
    parameters: Parameters


@dataclass(frozen=True)
class Peer:
    """One more student of the client, which learns together with a :class:`Fit`'s own.

    It learns from the same batches, by terms of its own. Where a term of one student has the name
    of another one as its targets, these are what the other says of the batch at hand, as it trains,
    before either has learned from it (deep mutual learning: Zhang et al. 2018, arXiv 1706.00384).
    No gradient goes through them. Replies with the metric ``key``, as the fit does. ``at`` has it
    learn at parameters that are in part another one's.
    """

    student: str
    terms: tuple[Term, ...]
    key: str
    lr: float | None = None
    part: tuple[str, ...] = ()
    at: Blend | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The metrics that it replies with: its mean loss, and the slope of its blend if asked."""
        slope = self.at is not None and self.at.slope
        return (self.key, f"{self.key}_slope") if slope else (self.key,)


@dataclass(frozen=True)
class Fit:
    """Minimise a weighted sum of terms over a source: the one training loop.

    ``epochs`` passes over the source (fractions allowed), at least ``min_steps`` steps. ``part``
    names the blocks that learn; empty means all. What is not given comes from ``[training]``.
    Replies with the metric ``key``: the mean loss over the steps of the last pass. ``together`` has
    further students learn from the same batches, each by its own optimiser.
    """

    on: Source = "private"
    terms: tuple[Term, ...] = (CrossEntropy(),)
    epochs: float | None = None
    min_steps: int | None = None
    lr: float | None = None
    part: tuple[str, ...] = ()
    key: str = "train_loss"
    student: str = "own"
    together: tuple[Peer, ...] = ()

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All students that learn: the fit's own first."""
        return (Peer(self.student, self.terms, self.key, self.lr, self.part), *self.together)


@dataclass(frozen=True)
class Predict:
    """Soft labels on a source: ``softmax(logits / temperature)``, or the logits themselves.

    Replies with the array ``key`` of shape ``(M, C)``. With ``per="class"``: with the named arrays
    ``key``, ``mean`` ``(C, C)``, the mean over the samples of each class (0 where there are none),
    and ``count`` ``(C,)``.

    ``encoding`` says how soft labels on the transfer set travel, and so what the server sees.
    ``answer`` is set by :mod:`fedkd.privacy.ledger` where ``[release]`` is active, not by methods:
    two steps of a client with the same name in it get the same answer, noise and all.
    """

    on: Source = "transfer"
    temperature: float = 1.0
    output: Literal["probabilities", "logits"] = "probabilities"
    per: Literal["sample", "class"] = "sample"
    key: str = "soft_labels"
    student: str = "own"
    answer: str = ""
    encoding: Encoding | None = None


@dataclass(frozen=True)
class Represent:
    """The representation that block ``cut`` gives of a source.

    Replies with the named arrays ``key``: ``inputs`` ``(K, ...)``, with them ``soft_labels``
    ``(K, C)`` of the whole student at ``temperature`` and ``labels`` ``(K,)``. ``pool`` averages a
    feature map over its places first. With ``per="class"``: ``mean`` ``(C, d)``, the mean flattened
    representation of each class (0 where there are no samples), and ``count`` ``(C,)``.
    """

    cut: str
    on: Source = "private"
    temperature: float = 1.0
    pool: bool = False
    per: Literal["sample", "class"] = "sample"
    key: str = "representation"
    student: str = "own"


@dataclass(frozen=True)
class Select:
    """Which samples of a source are like the client's own private ones: see :mod:`fedkd.density`.

    Replies with the array ``key`` of shape ``(M,)``, bool. It speaks of private samples, and no
    noise is on it. ``width`` is that of the kernel, as a share of the median distance between two
    private samples; ``quantile`` the share of private samples that are not counted as like them.
    """

    on: Source = "transfer"
    width: float = 0.15
    quantile: float = 0.25
    key: str = "selected"


@dataclass(frozen=True)
class Count:
    """How many samples of each class a source has; of text, tokens that are to be said.

    Replies with the array ``key`` of shape ``(C,)``, int64. It speaks of private samples, and no
    noise is on it.
    """

    on: Source = "private"
    key: str = "label_counts"


@dataclass(frozen=True)
class Align:
    """Make the last layer's weights of classes with many samples as long as those of the others.

    Favoured are classes of which the source has more samples than of the median class: their rows
    are multiplied by the mean norm of the others' over that of their own (Zhao et al. 2020). Where
    ``part``, as of a :class:`Fit`, leaves the last layer as it is, or all classes have as many,
    nothing is done. It goes by private labels, and no noise is on what it does.
    """

    on: Source = "private"
    part: tuple[str, ...] = ()
    student: str = "own"


@dataclass(frozen=True)
class Hold:
    """Have a student called ``student`` from here on; one that the client has stays as it is.

    ``model`` is its architecture; empty: that of the client's own. It starts from the same weights
    on every client.
    """

    student: str
    model: str = ""


@dataclass(frozen=True)
class Load:
    """Take in parameters; ``part`` names the blocks to take, empty means all that are given.

    The name of a student of the same client stands for that student's, as they are by then. What
    the student then has is ``keep`` times what it had and ``weight`` times what is given, but for
    whole numbers, which are those given.
    """

    parameters: Parameters | str
    part: tuple[str, ...] = ()
    student: str = "own"
    keep: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class Share:
    """Give out parameters; ``part`` names the blocks to give, empty means all.

    Replies with the named arrays ``key``. ``encoding`` says how they travel, and so what the server
    sees.
    """

    part: tuple[str, ...] = ()
    key: str = "parameters"
    student: str = "own"
    encoding: LowRank | None = None


@dataclass(frozen=True)
class Evaluate:
    """Accuracy, loss (nats) and expected calibration error on a source.

    Replies with the metrics ``{key}_accuracy``, ``{key}_loss`` and ``{key}_ece``; on text, of the
    next token, with ``{key}_perplexity`` too, the exponential of the loss.

    With ``prototypes`` ``(C, d)`` a sample is of the class whose row is nearest to its flattened
    representation at ``cut``, by squared distance; a row that begins with NaN is no class's. There
    are no probabilities then, and the reply has ``{key}_accuracy`` alone.

    With ``above`` another network takes the place of the student's upper blocks. Not of text.
    ``bins`` is the simulator's own: the reply then has the array ``measure_{key}_bins`` too, as of
    :func:`fedkd.distillation.calibration.reliability_bins`.
    """

    on: Source = "own"
    key: str = "own"
    student: str = "own"
    prototypes: torch.Tensor | None = None
    cut: str = ""
    above: Network | None = None
    bins: bool = False

    @property
    def bins_key(self) -> str:
        """The array that it replies with where ``bins`` is set."""
        return f"measure_{self.key}_bins"


@dataclass(frozen=True)
class Expose:
    """How exposed every planted secret is by a student: a measurement, never sent by a method.

    Replies with the array ``key`` of shape ``(S,)``, in bits; see ``fedkd.lab.exposure``.
    """

    key: str = "measure_exposure"
    student: str = "own"


Sending = Predict | Represent | Select | Count | Share
"""Steps that send arrays."""
Step = Fit | Align | Sending | Hold | Load | Evaluate | Expose

# --- what travels ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Assignment:
    """What one client does in one phase of a round.

    ``trial`` is done after ``steps`` and then undone: a model is tried out on the client, and the
    client is left as it was.
    """

    client: int
    round: int
    phase: str
    steps: tuple[Step, ...] = ()
    trial: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What a client sends back.

    ``samples`` is the number of its private training samples; ``values`` holds the arrays its
    steps gave, by key; ``metrics`` the numbers; ``error`` a line on what a person did wrong, which
    ends the run; ``failure`` a line on why this client's work could not be done; ``warnings`` lines
    on the student that a person should act on.

    ``releases`` are lines of the ledger, one for each of ``values`` that a step of the assignment
    (and not of its trial) gave: the fields of :class:`fedkd.privacy.releases.Release` that are
    not as they are by default. They are made where the values are, of what was done to them.
    """

    client: int
    samples: int = 0
    values: dict[str, torch.Tensor | Parameters] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    failure: str = ""
    warnings: tuple[str, ...] = ()
    releases: tuple[dict[str, Any], ...] = ()
