"""What lines and files of a run hold: required keys, and the types of those that are read.

Other keys are left as they are: a method records numbers of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

Count = Annotated[int, Field(ge=0)]
Round = Annotated[int, Field(ge=1)]
Number = float | None
"""A measurement; None is one that is not finite."""
STRICT = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


@with_config(STRICT)
class LeftOut(TypedDict):
    """A client whose reply was left out of a round."""

    client: Annotated[int, Field(strict=True, ge=-1)]
    """-1 of a reply that is of nobody."""
    step: str
    reason: str


@with_config(STRICT)
class RoundLine(TypedDict):
    """A line of ``rounds.jsonl``."""

    round: Round
    bytes_up: NotRequired[Count]
    bytes_down: NotRequired[Count]
    participants: NotRequired[list[Count]]
    left_out: NotRequired[list[LeftOut]]
    local: NotRequired[dict[str, Number]]
    strategy: NotRequired[dict[str, Any]]
    warnings: NotRequired[list[str]]


@with_config(STRICT)
class ClientLine(TypedDict):
    """A line of ``clients.jsonl``."""

    round: Round
    client: Count
    stage: Literal["local", "fused"]


@with_config(STRICT)
class ReleaseLine(TypedDict):
    """A line of ``releases.jsonl``."""

    round: Round
    client: Count | None
    step: str
    key: str
    items: Count
    mechanism: NotRequired[str]
    scale: NotRequired[float]
    draws: NotRequired[Count]
    temperature_min: NotRequired[Number]
    temperature_max: NotRequired[Number]
    clip: NotRequired[Number]
    candidates: NotRequired[Count | None]
    mix: NotRequired[float]
    scores: NotRequired[str]
    scores_private: NotRequired[bool]
    fresh: NotRequired[bool]
    redrawn: NotRequired[bool]
    rho: NotRequired[Number]
    epsilon: NotRequired[Number]
    nominal: NotRequired[Number]
    on: NotRequired[str]
    clients: NotRequired[list[Count]]
    trust: NotRequired[str]
    rdp: NotRequired[list[float]]
    dp_training: NotRequired[list[list[float]]]


@with_config(STRICT)
class ExposureLine(TypedDict):
    """A line of ``exposures.jsonl``."""

    round: Round
    place: Literal["teacher", "released", "fused", "student"]
    observer: NotRequired[Count | None]
    secret: Count
    repeats: Count
    holders: Annotated[list[Count], Field(min_length=1)]
    exposure: Number


@with_config(STRICT)
class WarningLine(TypedDict):
    """A line of ``warnings.jsonl``."""

    round: Count
    message: str


@with_config(STRICT)
class Written(TypedDict):
    """How much a run has written to a file, and a digest of it."""

    lines: Count
    digest: str


@with_config(STRICT)
class Summary(TypedDict):
    """``summary.json``; ``files``, which earlier versions lack, is what the run has written."""

    strategy: NotRequired[str]
    seed: NotRequired[Count]
    rounds: NotRequired[Round]
    bytes_up: NotRequired[Count]
    bytes_down: NotRequired[Count]
    left_out: NotRequired[Count]
    headline: NotRequired[str]
    files: NotRequired[dict[str, Written]]


@with_config(STRICT)
class Holder(TypedDict):
    """A client in ``partition.json``."""

    client: Count
    student: str
    train: Count
    own_test: Count
    labels: list[Count]


@with_config(STRICT)
class Partition(TypedDict):
    """``partition.json``."""

    classes: list[str]
    clients: list[Holder]


@with_config(STRICT)
class Environment(TypedDict):
    """``environment.json``."""

    packages: dict[str, str | None]
    git: NotRequired[dict[str, Any] | None]
    sources: NotRequired[dict[str, str | None]]
    data_fingerprint: NotRequired[str]


@with_config(STRICT)
class Canaries(TypedDict):
    """``canaries.json``."""

    log2_space: float
    public: NotRequired[str]
    kind: NotRequired[Literal["text", "labels", "pixels"]]
    length: NotRequired[int]


@with_config(STRICT)
class InBins(TypedDict):
    """Of the predictions in each bin of confidence, of equal width: see ``reliability.json``."""

    count: Annotated[list[Count], Field(min_length=1)]
    confidence: list[Number]
    accuracy: list[Number]


@with_config(STRICT)
class Stages(TypedDict):
    """Bins by the stage of the last measured round."""

    local: NotRequired[InBins]
    fused: NotRequired[InBins]


@with_config(STRICT)
class Reliability(TypedDict):
    """``reliability.json``: bins by the set of tests."""

    own: NotRequired[Stages]
    common: NotRequired[Stages]


Image = list[list[list[float]]]
"""``(C, H, W)``."""


@with_config(STRICT)
class Reconstruction(TypedDict):
    """What was reconstructed at one place."""

    place: str
    attack: str
    psnr: float
    psnr_guess: float
    ssim: float
    ssim_guess: float
    originals: Annotated[list[Image], Field(min_length=1)]
    reconstructions: list[Image]


@with_config(STRICT)
class Guarantee(TypedDict):
    """What one adversary cannot tell, in ``audit.json``."""

    epsilon: float | None


@with_config(STRICT)
class Found(TypedDict):
    """What one attack found, in ``audit.json``."""

    place: str
    target: str
    auc: Annotated[list[float], Field(min_length=3, max_length=3)]
    epsilon: float | None


@with_config(STRICT)
class Attacks(TypedDict):
    """What attacks found, in ``audit.json``."""

    findings: list[Found]


@with_config(STRICT)
class GradientBound(TypedDict):
    """What gradient canaries prove at one delta."""

    delta: float
    epsilon: float
    formal: float


@with_config(STRICT)
class GradientCanaries(TypedDict):
    """What gradient canaries prove about a client's DP-SGD."""

    place: str
    client: Count
    noise_multiplier: Annotated[float, Field(gt=0)]
    rate: float
    steps: Count
    canaries: Count
    bounds: Annotated[list[GradientBound], Field(min_length=1)]
    noise_at_most: Number
    epsilon_as_sampled_gaussian: Number


@with_config(STRICT)
class Audit(TypedDict):
    """``audit.json``."""

    formal: Guarantee
    guarantees: NotRequired[list[Guarantee]]
    attacks: NotRequired[Attacks]
    gradient_canaries: NotRequired[GradientCanaries]
    reconstructions: NotRequired[list[Reconstruction]]
