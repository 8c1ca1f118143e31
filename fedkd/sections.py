"""The tables of an experiment file: every key, its default, its bounds and what it means.

Those of training are in :mod:`fedkd.training_tables`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from fedkd.options import (
    MOST,
    MOST_DRAWS,
    MOST_PROCESSES,
    MOST_SECONDS,
    MOST_SECRETS,
    MOST_SYMBOLS,
    MOST_TIMES_WIDER,
    MOST_TOKENS,
    MOST_UNITS,
    Epochs,
    Table,
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
    """``[data.transfer]``: the samples known to everybody."""

    size: int = Field(400, ge=0)
    """Number of samples M; 0 for none."""
    source: str = "train"
    """``train``: taken out of the training part before it is partitioned; or another data set."""
    labels: bool = False
    """Whether its labels are known to everybody too, for methods that learn from them, as ``fedmd``
    with ``pretrain_epochs``. Otherwise they are dropped. Next tokens of text are known in any case.
    Not with canaries, whose labels are attacked through it."""


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
    server_validation: int = Field(0, ge=0, le=MOST)
    """Samples with labels that the server holds, for methods that validate there; they are taken
    out before clients get theirs, and are neither trained on nor tests."""
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
    """Names of ``fedkd list students``; client n gets ``models[n mod len(models)]``, unless
    ``choose``."""
    choose: Literal["cycle", "similarity"] = "cycle"
    """Which of ``models`` a client gets: each in turn; or, of images and features, the one whose
    untrained student is most like the untrained ``teacher`` (DisWOT); ``partition.json`` says who
    got which."""
    teacher: str = ""
    """Architecture that ``similarity`` compares with; empty: that of ``models`` with the most
    parameters. No client gets it unless it is the only one."""
    norm: Literal["none", "group", "batch"] = "none"
    """Normalisation layers; ``group`` has no statistics that could mix between clients."""
    width: float = Field(1.0, gt=0, le=MOST_TIMES_WIDER)
    """Factor on every hidden width."""
    representation: int | None = Field(None, ge=1, le=MOST_UNITS)
    """Numbers of a sample's representation below the head, the same for all architectures: a linear
    layer more, the block ``representation``. None when not given: as the architecture has it."""
    init: Literal["own", "same", "public"] = "own"
    """Whether clients start from weights of their own; or, one architecture one set, the same; or
    from the model of the public corpus (``[public]``; text)."""


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


class MeasureTable(Table):
    """``[measure]``: what is measured beside accuracy; no number of a method depends on it."""

    loyalty: int = Field(100, ge=0, le=MOST)
    """Rows of targets, at most, that a student is compared with before and after it distils from
    them (``loyalty_label_before`` and so on; Xu et al. 2021), in rounds that are measured; 0 for
    none. They are evenly spaced; of text, whole samples."""


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
