"""The narrow waist: everything a strategy can ask of a client, and how it travels.

A strategy gives a client an :class:`Assignment`, a few steps to do in order, and gets a
:class:`Reply`. Strategies say nothing else and engines know nothing else: a new method composes
these steps, a new engine performs them.

On the way they are Flower records: one ``ConfigRecord`` holds every scalar under its dotted path
(``"0.terms.1.objective"``), and each array, or dictionary of named arrays, is an ``ArrayRecord``
of its own, so that one sent to many clients is encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    import torch
    from flwr.app import ArrayRecord, ConfigRecord, RecordDict

Parameters: TypeAlias = "dict[str, torch.Tensor]"
"""Named arrays: a student's parameters and buffers, or some of them."""

# --- what work is done on -------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """Samples sent along with a step.

    ``inputs`` is ``(K, ...)``: normalised images or representations; ``labels`` is ``(K,)``. Of
    text, ``inputs`` is ``(K, T)`` token ids and ``labels`` ``(K, T)`` the next ones, -1 for none.

    What steps speak of as a row a sample is, of text, a row a token: the positions of the inputs
    that are not padding, row after row.
    """

    inputs: torch.Tensor
    labels: torch.Tensor | None = None


Source = str | Samples
"""``"private"`` (own training samples), ``"transfer"``, ``"own"`` (own test split), ``"common"``
(the common test set), ``"validation"``, or samples sent along."""

SOURCES = ("private", "own", "validation", "common", "transfer")
"""The sources that have a name."""

# --- the terms of a loss --------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A frozen head that takes the place of the student's own blocks above ``cut``.

    ``parameters`` are named as those blocks' own are in the student.
    """

    cut: str
    parameters: Parameters


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with hard labels.

    ``on`` draws the term's mini-batches from another source than the step's own; ``through`` puts
    a frozen head in the place of the student's own.
    """

    weight: float = 1.0
    on: str | None = None
    through: Head | None = None


@dataclass(frozen=True)
class Soft:
    """Distillation towards soft targets.

    ``targets`` holds one row a sample of the source ``(K, C)``, or with ``per="class"`` one row a
    class ``(C, C)`` picked by the sample's label; a row that begins with NaN is no target and its
    samples are passed over. They are what the objective expects: probabilities, or logits for
    ``mse_logits``. The name of a student of the same client stands for what that student says, at
    ``temperature``, when the step begins. ``temperature``, one number or ``(K,)``, one a row of
    targets, divides the student's logits; ``tau_squared`` multiplies by its square, which keeps
    gradients of the same size (Hinton, Vinyals & Dean 2015, section 2.1). ``reach`` names the
    blocks that the term's gradient may touch; empty means all.

    ``among`` ``(K, k)`` holds candidate classes, distinct in a row, -1 for none: the targets are
    then the probabilities ``(K, k + 1)`` of these and, last, of all other classes together, and
    the student's are put together in the same way. ``row_weights`` ``(K,)`` multiply the losses at
    the rows of targets.
    """

    targets: torch.Tensor | str
    objective: str = "forward_kl"
    temperature: float | torch.Tensor = 1.0
    weight: float = 1.0
    tau_squared: bool = True
    per: Literal["sample", "class"] = "sample"
    reach: tuple[str, ...] = ()
    on: str | None = None
    through: Head | None = None
    among: torch.Tensor | None = None
    row_weights: torch.Tensor | None = None


@dataclass(frozen=True)
class Prototype:
    """Representations near per-class means (FedProto: Tan et al. 2022).

    Mean squared difference, over features and samples, between the representation at ``cut`` and
    the row of ``targets`` ``(C, d)`` that the sample's label picks; a row that begins with NaN is
    no target and its samples are passed over.
    """

    targets: torch.Tensor
    cut: str
    weight: float = 1.0
    on: str | None = None


@dataclass(frozen=True)
class Proximal:
    """``weight / 2`` times the squared distance to ``anchor`` (FedProx: Li et al. 2020).

    Without an anchor, to the parameters as they are when the step begins.
    """

    weight: float
    anchor: Parameters | None = None


Term = CrossEntropy | Soft | Prototype | Proximal

# --- the steps ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Minimise a weighted sum of terms over a source: the one training loop.

    ``epochs`` passes over the source (fractions allowed), at least ``min_steps`` steps. ``part``
    names the blocks that learn; empty means all. What is not given comes from ``[training]``.
    Replies with the metric ``key``: the mean loss over the steps of the last pass.
    """

    on: Source = "private"
    terms: tuple[Term, ...] = (CrossEntropy(),)
    epochs: float | None = None
    min_steps: int | None = None
    lr: float | None = None
    part: tuple[str, ...] = ()
    key: str = "train_loss"
    student: str = "own"


@dataclass(frozen=True)
class Predict:
    """Soft labels on a source: ``softmax(logits / temperature)``, or the logits themselves.

    Replies with the array ``key`` of shape ``(M, C)``. With ``per="class"``: with the named arrays
    ``key``, ``mean`` ``(C, C)``, the mean over the samples of each class (0 where there are none),
    and ``count`` ``(C,)``.

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
class Hold:
    """Have a student called ``student`` from here on; one that the client has stays as it is.

    ``model`` is its architecture; empty: that of the client's own. It starts from the same weights
    on every client.
    """

    student: str
    model: str = ""


@dataclass(frozen=True)
class Load:
    """Take in parameters; ``part`` names the blocks to take, empty means all that are given."""

    parameters: Parameters
    part: tuple[str, ...] = ()
    student: str = "own"


@dataclass(frozen=True)
class Share:
    """Give out parameters; ``part`` names the blocks to give, empty means all.

    Replies with the named arrays ``key``.
    """

    part: tuple[str, ...] = ()
    key: str = "parameters"
    student: str = "own"


@dataclass(frozen=True)
class Evaluate:
    """Accuracy, loss (nats) and expected calibration error on a source.

    Replies with the metrics ``{key}_accuracy``, ``{key}_loss`` and ``{key}_ece``; on text, of the
    next token, with ``{key}_perplexity`` too, the exponential of the loss.
    """

    on: Source = "own"
    key: str = "own"
    student: str = "own"


@dataclass(frozen=True)
class Expose:
    """How exposed every planted secret is by a student: a measurement, never sent by a method.

    Replies with the array ``key`` of shape ``(S,)``, in bits; see ``fedkd.lab.exposure``.
    """

    key: str = "measure_exposure"
    student: str = "own"


Step = Fit | Predict | Represent | Select | Hold | Load | Share | Evaluate | Expose

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Samples, Head, CrossEntropy, Soft, Prototype, Proximal),
        *(Fit, Predict, Represent, Select, Hold, Load, Share, Evaluate, Expose),
    )
}

SCALARS = (bool, int, float, str)

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


def nbytes(thing: Any) -> int:
    """Bytes of all arrays in a step, a sequence of steps or a reply's values, each array once.

    This is what the knowledge itself takes on the wire; Flower's framing (about 200 bytes an
    array) and the few hundred bytes that name the steps are not counted.
    """
    found: dict[int, torch.Tensor] = {}
    _gather(thing, found)
    return sum(tensor.nbytes for tensor in found.values())


def _gather(thing: Any, found: dict[int, torch.Tensor]) -> None:
    """Put every array of ``thing`` into ``found``, by identity."""
    if thing is None or isinstance(thing, SCALARS):
        return
    if hasattr(thing, "detach"):
        found[id(thing)] = thing
        return
    if is_dataclass(thing):
        thing = vars(thing)
    for item in thing.values() if isinstance(thing, dict) else thing:
        _gather(item, found)


class Codec:
    """Assignments and replies to Flower records and back.

    One codec serves the messages of one phase: an array that several of them hold is encoded once,
    and so are steps that several of them are to do.
    """

    WORK: ClassVar[str] = "work"
    """Name of the record of scalars; those of steps have a record of their own."""
    STEPS: ClassVar[str] = "steps"

    def __init__(self) -> None:
        # The object is kept beside its record: an id is only unique while its object lives.
        self._encoded: dict[int, tuple[Any, ArrayRecord]] = {}
        self._steps: dict[str, ConfigRecord] = {}

    def encode(self, thing: Assignment | Reply) -> RecordDict:
        """``thing`` as Flower records."""
        from flwr.app import ConfigRecord, RecordDict

        scalars: dict[str, Any] = {}
        arrays: dict[str, Any] = {}
        _flatten(thing, "", scalars, arrays)
        steps = {path: scalars.pop(path) for path in list(scalars) if path.startswith(PLANS)}
        records = RecordDict({self.WORK: ConfigRecord(scalars)})
        if steps:
            same = repr(steps)
            if same not in self._steps:
                self._steps[same] = ConfigRecord(steps)
            records[self.STEPS] = self._steps[same]
        for path, group in arrays.items():
            records[path] = self._arrays(group)
        return records

    def _arrays(self, group: Mapping[str, torch.Tensor]) -> ArrayRecord:
        from flwr.app import ArrayRecord

        from fedkd.arrays import Array

        held = group.get("", group)  # a single array has no name
        if id(held) not in self._encoded:
            record = ArrayRecord()  # which would copy arrays that it is made of
            for name, tensor in group.items():
                record[name] = Array(_numpy(tensor))
            self._encoded[id(held)] = (held, record)
        return self._encoded[id(held)][1]


def decode(records: RecordDict, seen: dict[Any, Any] | None = None) -> Any:
    """The assignment or reply that ``records`` hold.

    Messages that are decoded with the same ``seen``, empty at first and dropped with them, share
    the arrays and the steps that were encoded once.
    """
    from flwr.app import ArrayRecord

    arrays: dict[str, Any] = {}
    seen = {} if seen is None else seen
    for path, record in records.items():
        if isinstance(record, ArrayRecord):
            if id(record) not in seen:
                group = {name: _tensor(array) for name, array in record.items()}
                seen[id(record)] = group.get("", group)
            arrays[path] = seen[id(record)]
    scalars = records.config_records
    if (steps := scalars.get(Codec.STEPS)) is not None:
        known = id(steps), *((path, id(array)) for path, array in arrays.items())
        if known not in seen:
            told = dict(steps)
            seen[known] = {path[:-1]: _unflatten(told, arrays, path[:-1]) for path in PLANS}
        arrays |= seen[known]
    return _unflatten(dict(scalars[Codec.WORK]), arrays, "")


def _numpy(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy()


def _tensor(array: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(array.numpy())


@cache
def _parts(kind: type) -> tuple[str, ...]:
    return tuple(part.name for part in fields(kind))


ENVELOPES = {kind.__name__: kind for kind in (Assignment, Reply)}
PLANS = ("steps.", "trial.")
"""What the paths of an assignment's steps begin with."""


def _flatten(thing: Any, path: str, scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Put every scalar of ``thing`` into ``scalars`` and every array into ``arrays``, by path."""

    def inside(part: str | int) -> str:
        return f"{path}.{part}" if path else str(part)

    if thing is None:
        return
    if isinstance(thing, SCALARS):
        scalars[path] = thing
    elif is_dataclass(thing):
        scalars[inside("kind")] = type(thing).__name__
        for name, value in vars(thing).items():
            if value is not None:
                _flatten(value, inside(name), scalars, arrays)
    elif isinstance(thing, tuple | list):
        scalars[inside("length")] = len(thing)
        for index, item in enumerate(thing):
            _flatten(item, inside(index), scalars, arrays)
    elif isinstance(thing, Mapping):
        if thing and all(hasattr(value, "detach") for value in thing.values()) and path != "values":
            arrays[path] = thing
            return
        scalars[inside("keys")] = list(thing)
        if all(type(value) is float for value in thing.values()):
            scalars[inside("floats")] = list(thing.values())
            return
        for name, value in thing.items():
            _flatten(value, inside(name), scalars, arrays)
    else:
        arrays[path] = {"": thing}


def _unflatten(scalars: dict[str, Any], arrays: dict[str, Any], path: str) -> Any:
    def inside(part: str | int) -> str:
        return f"{path}.{part}" if path else str(part)

    if path in scalars:
        return scalars[path]
    if path in arrays:
        return arrays[path]
    if inside("kind") in scalars:
        name = scalars[inside("kind")]
        kind = KINDS.get(name) or ENVELOPES[name]
        return kind(**{part: _unflatten(scalars, arrays, inside(part)) for part in _parts(kind)})
    if inside("length") in scalars:
        count = scalars[inside("length")]
        if count > len(scalars) + len(arrays):
            raise ValueError(f"{path} has a length of {count}, and fewer entries")
        return tuple(_unflatten(scalars, arrays, inside(index)) for index in range(count))
    if inside("keys") in scalars:
        names = scalars[inside("keys")]
        if inside("floats") in scalars:
            return dict(zip(names, scalars[inside("floats")], strict=True))
        return {name: _unflatten(scalars, arrays, inside(name)) for name in names}
    return None
