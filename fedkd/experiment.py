"""The experiment: the whole description of a run, typed and validated, from and to TOML."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedkd.errors import FedkdError, nearest, shown
from fedkd.toml import check_values, dotted, parse, settings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

UNQUOTED = re.compile(r"\s*([+-]?[0-9][0-9._eE+-]*|true|false)\s*", re.IGNORECASE)
"""A text that was meant to be a number, true or false."""

Model = TypeVar("Model", bound=BaseModel)

# What is beyond these is a slip of the pen: it is refused before it takes memory or threads.
MOST = 1_000_000
MOST_EPOCHS = 100_000
MOST_TOKENS = 65_536
MOST_TIMES_WIDER = 100
MOST_UNITS = 65_536
MOST_DRAWS = 1_000
MOST_SECRETS = 1_000
MOST_SYMBOLS = 100
MOST_PROCESSES = 512
MOST_SECONDS = 10_000_000

Epochs = Annotated[float, Field(ge=0, le=MOST_EPOCHS)]
"""Passes over samples; fractions allowed."""


class OnlyWith:
    """Mark of an option that has an effect only while another one has one of some values.

    A run says so where it was set and has none::

        top_k: Annotated[int, OnlyWith("neighbours", "top_k")] = Field(3, ge=1)
    """

    def __init__(self, option: str, *values: Any) -> None:
        self.option, self.values = option, values


class Table(BaseModel):
    """One table of an experiment file: unknown keys are refused, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class TestSets(Table):
    """``[data.test]``: what clients are measured on."""

    own: Literal["split", "matched"] = "split"
    """``split``: held out of the client's own samples; ``matched``: drawn from the data set's
    test part with the label distribution of the client's training samples."""
    fraction: float = Field(0.25, ge=0, lt=1)
    """Own test samples as a share of the client's training and own test samples together."""
    common: int = Field(1000, ge=0)
    """Size of the common class-balanced test set, at most; 0 for none."""


class TransferSet(Table):
    """``[data.transfer]``: the unlabelled samples known to everybody."""

    size: int = Field(400, ge=0)
    """Number of samples M; 0 for none."""
    source: str = "train"
    """``train``: taken out of the training part before it is partitioned; or another data set."""


class TextTable(Table):
    """``[data.text]``: how text becomes tokens, for data sets of text."""

    tokens: Literal["word", "char"] = "word"
    """Words (and single digits and punctuation marks), or characters."""
    vocabulary: int = Field(2000, ge=32, le=MOST)
    """Most tokens V; rarer ones become ``<unk>``."""
    context: int = Field(32, ge=4, le=MOST_TOKENS)
    """Tokens T of a row; lines are packed into rows and never split where they fit."""


class DataTable(Table):
    """``[data]``: the data set and how it is spread over clients."""

    dataset: str = "digits"
    """A name of ``fedkd list datasets``, or ``npz:FILE``, or ``folder:FOLDER`` for own data."""
    data_dir: str | None = None
    """Where data sets lie; the environment variable FEDKD_DATA when not given."""
    download: bool = False
    """Whether torchvision may download a data set that is not there."""
    clients: int = Field(10, ge=1, le=MOST)
    """Number of clients N."""
    partition: str = "dirichlet"
    """A name of ``fedkd list partitions``."""
    alpha: float = Field(0.5, gt=0, le=MOST)
    """Dirichlet concentration (labels, or sizes with ``quantity-skew``): the smaller, the more
    unlike the clients."""
    sizes: Literal["equal", "natural"] = "equal"
    """Client sizes under ``dirichlet``: all the same, or as the draw has them."""
    classes_per_client: int = Field(2, ge=1)
    """Classes a client holds under ``pathological``."""
    shards_per_client: int = Field(2, ge=1)
    """Shards of the samples, sorted by label, that a client holds under ``shards``."""
    samples_per_client: int | None = Field(None, ge=1)
    """Training samples a client has (where sizes come from the data: at most); all there are when
    not given. Own test samples come on top, validation samples are taken out."""
    min_samples: int = Field(2, ge=1)
    """Fewest training samples a client may be left with."""
    validation_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of a client's training samples held out for validation: measured as ``validation_*``
    beside ``own_*``, to choose by; a method may draw from them as ``"validation"``."""
    statistics: Literal["auto", "constants", "public", "private"] = "auto"
    """Mean and standard deviation that samples are normalised by: those that the data set
    publishes (of pictures that publish none: 0.5 and 0.5); those of the transfer set; those of
    clients' own samples, a release that no epsilon covers; ``auto``: published ones where there
    are any, else the transfer set's."""
    augment: bool = False
    """Random crops, and horizontal flips of colour images, on training batches."""
    test: TestSets = TestSets()
    transfer: TransferSet = TransferSet()
    text: TextTable = TextTable()


class StudentTable(Table):
    """``[student]``: the clients' models."""

    models: tuple[str, ...] = Field(("cnn2",), min_length=1)
    """Names of ``fedkd list students``; client n gets ``models[n mod len(models)]``."""
    norm: Literal["none", "group", "batch"] = "none"
    """Normalisation layers; ``group`` has no statistics that could mix between clients."""
    width: float = Field(1.0, gt=0, le=MOST_TIMES_WIDER)
    """Factor on every hidden width."""
    init: Literal["own", "same", "public"] = "own"
    """Whether clients start from weights of their own; or, one architecture one set, the same; or
    from the model of the public corpus (``[public]``; text)."""


class PrivateTraining(Table):
    """``[training.dp]``: DP-SGD (Abadi et al. 2016) on private samples, by Opacus."""

    noise_multiplier: float = Field(0.0, ge=0)
    """Standard deviation of the noise in units of the clipping norm; 0 for ordinary training."""
    max_grad_norm: float = Field(1.0, gt=0)
    """L2 norm that each sample's gradient is clipped to."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Delta that epsilon is stated at."""


class TrainingTable(Table):
    """``[training]``: local training on private data."""

    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    """Starts afresh in every piece of training, as simulated clients keep no optimiser state."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of ``sgd``."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty (``adamw``: decoupled)."""
    batch_size: int = Field(64, ge=1, le=MOST)
    """Samples a step."""
    local_epochs: Epochs = 5.0
    """Passes over the private training samples a round; fractions allowed."""
    min_steps: int = Field(0, ge=0, le=MOST)
    """Fewest local steps a round, for clients with few samples."""
    part: tuple[str, ...] = ()
    """Blocks that learn on clients where the method does not name others, e.g. ``["head"]`` above a
    pretrained body; also ``"body"``. Empty: all. What a student's factory froze never learns."""
    dp: PrivateTraining = PrivateTraining()


class StrategyTable(Table):
    """``[strategy]``: the method, and options of its own."""

    model_config = ConfigDict(extra="allow")

    name: str = "knfu"
    """A name of ``fedkd list strategies``; its other keys are checked by the strategy itself."""

    @property
    def options(self) -> dict[str, Any]:
        """The strategy's own keys."""
        return self.model_extra or {}


class ReleaseTable(Table):
    """``[release]``: what happens to soft labels on the transfer set as they leave a client."""

    temperature: float | None = Field(None, gt=0)
    """Temperature of an item with privacy score 0, in place of the method's own."""
    tau_max: float | None = Field(None, gt=0)
    """Temperature of an item with privacy score 1: swing-style release; none: one temperature."""
    curve: Literal["linear", "geometric"] = "linear"
    """How the temperature goes from the one to the other with the score."""
    scores: Literal["rarity", "rules", "max", "oracle", "shuffled", "constant"] = "max"
    """Privacy score of an item: how unlikely a public model finds it; a rule (digits and
    identifier-like tokens, and where the public model expects them); the larger of both; the true
    canaries, which nobody would know; the larger of both, shuffled over items; 1 everywhere."""
    clip: float | None = Field(None, gt=0)
    """Range c that logits are clipped to, ``max(z - max z, -c)``, before the temperature."""
    candidates: int = Field(0, ge=0)
    """Release over the public model's k likeliest classes, the true next token where it is public,
    and one bucket for all others; 0 for all classes."""
    mix: float = Field(0.0, ge=0, le=1)
    """Share of ``mix_with`` in what is released."""
    mix_with: Literal["uniform", "public", "entropy"] = "uniform"
    """The uniform law, the public model's, or the uniform law in the share (in place of ``mix``)
    that gives each item the entropy it would have at its swing temperature."""
    mechanism: Literal["none", "gaussian", "laplace", "sample", "argmax", "votes"] = "none"
    """Noise on the probabilities, projected to the simplex; labels drawn from them; the likeliest
    class; the class that has the most noisy votes of all clients (not with ``trust = "local"``)."""
    scale: float = Field(0.0, ge=0)
    """Standard deviation of ``gaussian`` noise (on the clients' mean unless ``trust`` is
    ``local``), scale b of ``laplace`` noise, standard deviation of the noise on each count of
    ``votes``."""
    trust: Literal["local", "central", "secure-aggregation"] = "local"
    """Who sees a client's labels without noise. ``local``: nobody, each client adds noise to its
    own; ``central``: the server, which adds noise once, to the mean of the clients' labels or to
    the counts of their votes; ``secure-aggregation``: nobody, clients' masked labels add up to the
    noisy sum and to nothing else. Unless ``local``, every method is shown the noisy aggregate in
    the place of each client's labels. ``none``, ``gaussian`` and ``votes`` alone."""
    draws: int = Field(1, ge=1, le=MOST_DRAWS)
    """Labels drawn for each item (``sample``)."""
    cache: bool = True
    """Whether noise is drawn once for an answer that everybody knows to be the same (no step has
    trained, loaded or begun the student since); else at every release."""
    secure: bool = False
    """Whether all privacy noise (of releases, drawn labels, averages, and DP-SGD with its batches)
    comes from the operating system's cryptographically strong generator, and not from the seed. The
    run cannot be repeated, ``--resume`` draws other noise, and every answer is a new one."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Delta that epsilon is stated at."""

    @property
    def active(self) -> bool:
        """Whether soft labels leave otherwise than as they are."""
        plain = ReleaseTable(delta=self.delta, cache=self.cache, secure=self.secure)
        return self != plain


class PublicTable(Table):
    """``[public]``: the model of the public corpus, trained on the transfer set of a text."""

    model: str = ""
    """Its architecture; empty: the first of ``student.models``."""
    epochs: Epochs = 5.0
    """Passes over the transfer set."""
    lr: float | None = Field(None, gt=0)
    """Learning rate; that of ``[training]`` when not given."""


class CanaryTable(Table):
    """``[canary]``: secrets planted in clients' training samples, to measure what leaks."""

    secrets: int = Field(0, ge=0, le=MOST_SECRETS)
    """Secrets of each holder at each level of repeats; 0 for no canaries."""
    repeats: tuple[Annotated[int, Field(ge=1, le=MOST_SECRETS)], ...] = (1, 4, 16, 64)
    """Levels of repeats: how often a secret stands in the training samples."""
    kind: Literal["labels", "pixels"] = "labels"
    """Images: whether a secret is the labels of a few that everybody knows, or the pixels of one
    whose label everybody knows. Of text it is a line."""
    template: str = "my id is _ _ _ _ _ _"
    """Text: a line that ends in slots ``_``, one token each, filled with the secret's symbols."""
    symbols: tuple[str, ...] = tuple("0123456789")
    """Text: what a slot is filled with; a secret is drawn uniformly."""
    length: int = Field(6, ge=1, le=MOST_SYMBOLS)
    """Images: how many a secret is the labels of, unlike any other; of ``pixels``, how many blocks
    of the image are secret, each black or white."""
    clients: tuple[int, ...] = ()
    """Clients that hold secrets of their own; empty: all of them."""
    spread: int = Field(1, ge=1)
    """Clients that the repeats of each secret are dealt out to: the holder and those after it."""
    public: Literal["none", "prefix", "exact"] = "none"
    """What of canaries the transfer set has: nothing; lines with their prefix and other secrets
    (of ``pixels``, images with their template and other blocks; of ``labels``, not allowed); every
    canary once."""
    public_share: float = Field(0.01, gt=0, lt=1)
    """Share of the lines, or images, of the transfer set that ``prefix`` makes up."""
    control: bool = False
    """Plant nothing in training samples: what exposure comes from the transfer set alone?"""
    estimator: Literal["exact", "interpolation", "extrapolation"] = "exact"
    """Exposure by the secret's rank in its whole space; among ``references``; or in a skew-normal
    law fitted to these (Carlini et al. 2019)."""
    references: int = Field(10_000, ge=100, le=MOST)
    """Sequences drawn to compare a secret with, unless ``exact``."""
    every: int = Field(0, ge=0)
    """Measure exposure every so many rounds; 0: in the last round."""


class EngineTable(Table):
    """``[engine]``: where clients' work runs.

    Numbers depend on :data:`NUMERICAL` alone; where there are cohorts, their last digits also on
    who is grouped, and so on ``name`` and ``workers``.
    """

    name: Literal["auto", "inline", "procs", "ray", "flower"] = "auto"
    """``inline``: in this process; ``procs``: worker processes on this machine; ``ray``: Ray
    actors; ``flower``: Flower's own simulation runtime; ``auto``: inline or procs, by a rule of
    cores, work and rounds."""
    workers: int | None = Field(None, ge=1, le=MOST_PROCESSES)
    """Clients at work at the same time, each in a process of its own; as many as there are cores
    for, by affinity and quota, when not given."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1`` … or ``auto``: CUDA where there is one."""
    gpus_per_worker: float = Field(0.0, ge=0, le=MOST_PROCESSES)
    """Share of a GPU that each worker takes (``ray``, ``flower``)."""
    cpus_per_worker: float = Field(1.0, ge=0, le=MOST_PROCESSES)
    """Cores that Ray sets aside for each worker (``ray``)."""
    failures: Literal["leave-out", "stop"] = "leave-out"
    """What becomes of a round in which a client's work fails (its student raises, its process is
    lost again and again, it does not answer in time): it goes on without the client, which the
    record names with the reason; or the run ends with that line."""
    timeout: float | None = Field(None, gt=0, le=MOST_SECONDS)
    """Seconds that a client's work of one phase may take (``procs``, ``ray``); no limit if none."""
    address: str = "local"
    """``local``: a Ray of the run's own; ``auto`` or HOST:PORT: a cluster (``ray``)."""
    remember: bool = False
    """Keep the outcome of plain training on private samples, and exposures, on disk: another run
    with the same start, data and settings takes it from there. Timings then mean little. Such
    training is never a cohort's."""
    threads: int = Field(1, ge=1, le=MOST_PROCESSES)
    """Torch threads a worker. Another number sums in another order: last digits may differ."""
    cohort: Literal["auto", "on", "off"] = "auto"
    """Whether clients that do the same steps with the same student are one batched computation:
    wherever that is possible; never; or (``auto``) where it is faster, by a rule of student, step,
    batch and device. It sums in another order: last digits may differ."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: torch's automatic mixed precision in clients' work; for GPUs."""


NUMERICAL = ("device", "threads", "cohort", "precision")
"""Keys of ``[engine]`` that change digits."""


class Experiment(Table):
    """The whole description of a run."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run; its folder starts with it."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Key of every random draw."""
    rounds: int = Field(10, ge=1, le=MOST)
    """Number of rounds R."""
    participation: float = Field(1.0, gt=0, le=1)
    """Share of clients that take part in a round; at least one."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Chance that a client that was selected drops out of the round before it has done anything;
    one at least stays."""
    on_empty_round: Literal["stop", "skip"] = "stop"
    """What becomes of a round in which no client's reply can be used: the run ends with a line; or
    it goes on, and the round has changed nothing but what clients learned by themselves."""
    target_accuracy: float | None = Field(None, gt=0, le=1)
    """Own accuracy, mean over clients, that the summary counts rounds and bytes up to."""
    evaluate_every: int = Field(1, ge=1)
    """Measure every so many rounds; the last round always is."""
    checkpoint_every: int = Field(5, ge=0)
    """Write a checkpoint every so many rounds (not ``flower``); 0 for never."""
    data: DataTable = DataTable()
    student: StudentTable = StudentTable()
    training: TrainingTable = TrainingTable()
    strategy: StrategyTable = StrategyTable()
    release: ReleaseTable = ReleaseTable()
    public: PublicTable = PublicTable()
    canary: CanaryTable = CanaryTable()
    engine: EngineTable = EngineTable()

    @classmethod
    def from_dict(cls, tables: dict[str, Any]) -> Experiment:
        """Validate ``tables``.

        Raises
        ------
        FedkdError
            One line naming the first key that is wrong, its value and what is allowed.
        """
        return validated(cls, tables)

    @classmethod
    def from_toml(
        cls, text: str, overrides: Sequence[str] = (), name: str = "the experiment"
    ) -> Experiment:
        """Read an experiment from TOML text, then apply ``key=value`` overrides.

        ``name`` is what the text is called in an error, e.g. ``"experiment 'mine.toml'"``.

        Raises
        ------
        FedkdError
            As :meth:`from_dict`; or the text is not TOML, or an override is not ``key=value``.
        """
        return cls.from_dict(changed(parse(text, name), settings(overrides)))

    def to_toml(self) -> str:
        """The experiment as TOML, every key written out; ``from_toml`` gives it back."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def digest(self) -> str:
        """Eight hex digits that depend on everything that can change a number.

        Not on the name, the engine or where the data lies: the same experiment run elsewhere is
        the same experiment. What of the engine is :data:`NUMERICAL` counts. Keys that have their
        defaults do not: a key that a later version adds makes no other experiment.
        """
        tables = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        engine = tables.pop("engine", {})
        tables["engine"] = {key: engine[key] for key in NUMERICAL if key in engine}
        for key in ("name", "checkpoint_every"):
            tables.pop(key, None)
        for key in ("data_dir", "download"):
            tables.get("data", {}).pop(key, None)
        tables = {name: value for name, value in tables.items() if value != {}}
        return hashlib.blake2b(repr(_sorted(tables)).encode(), digest_size=4).hexdigest()

    def data_dir(self) -> Path | None:
        """The folder of data sets: ``data.data_dir``, else FEDKD_DATA, else None."""
        folder = self.data.data_dir or os.environ.get("FEDKD_DATA")
        try:
            return Path(folder).expanduser() if folder else None
        except RuntimeError:
            raise FedkdError(
                f"data.data_dir (or FEDKD_DATA) = {folder!r} is not allowed: there is no such home "
                "folder"
            ) from None

    def located(self) -> Experiment:
        """The same with every path absolute, for processes that run in folders of their own."""
        folder = self.data_dir()
        data: dict[str, Any] = {"data_dir": str(folder.resolve())} if folder else {}
        transfer = self.data.transfer
        kind, colon, path = transfer.source.partition(":")
        if colon and Path(path).exists():
            source = f"{kind}:{Path(path).resolve()}"
            data["transfer"] = transfer.model_copy(update={"source": source})
        kind, colon, path = self.data.dataset.partition(":")
        if colon and Path(path).exists():
            data["dataset"] = f"{kind}:{Path(path).resolve()}"
        return self.model_copy(update={"data": self.data.model_copy(update=data)})

    def architecture(self, client: int) -> str:
        """Name of the student that ``client`` trains."""
        return self.student.models[client % len(self.student.models)]


def validated(model: type[Model], values: dict[str, Any], prefix: str = "") -> Model:
    """``model(**values)``, with what is wrong told in one line a person can act on.

    Types are taken as they stand, but that a whole number may stand for a fraction, and a single
    text or number for a list of one. ``prefix`` is put before every key, e.g. ``"strategy."``.

    Raises
    ------
    FedkdError
        One line naming the first key that is wrong, its value and what is allowed.
    """
    check_values(values, prefix)
    # As JSON, since strict types of Python's own would not take a list for a tuple.
    text = json.dumps(_with_lists(model, values), default=lambda number: number.item())
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as failure:
        first, *others = failure.errors()
    path = _written(model, first["loc"])
    key = prefix + dotted(path)
    if first["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        here = ", ".join(known) or "none"
        raise FedkdError(f"{key} is not a known key{nearest(path[-1], known)}; known here: {here}")
    if first["type"] == "missing":
        raise FedkdError(f"{key} is missing")
    if first["type"] == "value_error":
        raise FedkdError(str(first["ctx"]["error"]))
    # Further complaints about the same value are those of a type's alternatives.
    alternatives = [
        _allowed(error)
        for error in others
        if _written(model, error["loc"]) == path and error["input"] == first["input"]
    ]
    allowed = ", or ".join(dict.fromkeys([_allowed(first), *alternatives]))
    raise FedkdError(f"{key} = {shown(first['input'])} is not allowed: {allowed}")


def _allowed(error: ErrorDetails) -> str:
    """What pydantic says is allowed, in the words of TOML."""
    message, kind, value = error["msg"], error["type"], error["input"]
    message = message[0].lower() + message[1:]
    if kind == "model_type":
        return "input should be a table"
    if kind in ("tuple_type", "list_type"):
        return "input should be a list"
    if kind == "bool_type":
        message += ": true or false"
    if kind in ("bool_type", "int_type", "float_type") and isinstance(value, str):
        return message + (", without quotes" if UNQUOTED.fullmatch(value) else "")
    if kind == "int_type" and isinstance(value, float):
        message += ", without a decimal point"
    if kind == "string_type":
        message += ", in quotes"
    return message


def _with_lists(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with a list of one for each single text or number where a list is meant."""
    listed = dict(values)
    for name, field in model.model_fields.items():
        key, value = field.alias or name, values.get(field.alias or name)
        table = _table(field.annotation)
        if table and isinstance(value, dict):
            listed[key] = _with_lists(table, value)
        elif table and isinstance(value, list):
            listed[key] = [_with_lists(table, v) if isinstance(v, dict) else v for v in value]
        elif isinstance(value, str | int | float) and get_origin(field.annotation) is tuple:
            listed[key] = [value]
    return listed


def _written(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """``location`` as a dotted key: without what pydantic adds for the alternatives of a type."""
    parts = []
    for part in location:
        if isinstance(part, int):  # of a list of tables
            continue
        parts.append(part)
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        inner = _table(fields[part].annotation) if part in fields else None
        if inner is None:
            break
        model = inner
    return parts


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Keys of the table at ``path`` inside ``model``."""
    for part in path:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        inner = _table(fields[part].annotation) if part in fields else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _table(kind: Any) -> type[BaseModel] | None:
    """The model of a table, or of a list of tables; None for any other type."""
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def changed(tables: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted keys in ``tables``, in place, and return them.

    Another ``strategy.name`` takes the options of the method before away.

    Raises
    ------
    FedkdError
        A key goes through what is not a table.
    """
    name, strategy = changes.get("strategy.name"), tables.get("strategy")
    if name and isinstance(strategy, dict) and strategy.get("name", StrategyTable().name) != name:
        tables["strategy"] = {}
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = tables
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise FedkdError(
                    f"{dotted(key.split('.'))} = {shown(value)} is not allowed: {parent} is not a "
                    "table"
                )
        inner[last] = value
    return tables


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    return value
