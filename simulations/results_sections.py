"""What ``docs/results.md`` shows of each suite that comes with fedkd: tables and figures."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedkd.simulations.accuracy_table import EVERY
from fedkd.simulations.cells import ARM, SEED, Label

OWN = ("own_accuracy_mean", "own_accuracy_mean_local")
ACCURACIES = (*OWN, "common_accuracy_mean")
COST = ("bytes_up",)
FAIRNESS = ("own_accuracy_std", "own_accuracy_worst10")
UTILITY = ("common_accuracy_mean", "common_perplexity_mean")
LEAKAGE = (
    *("formal_epsilon", "formal_epsilon_others", "membership_auc", "membership_auc_others"),
    *("audited_epsilon", "exposure_teacher", "exposure_student"),
)

RANKED = "ranked"


@dataclass(frozen=True)
class Picture:
    """A figure: a module of ``plots`` and what it is told.

    One ``each`` for the labels of these axes, of the runs that have the labels in ``only``. A
    ``stem`` tells two figures of one module apart.
    """

    name: str
    settings: dict[str, str] = field(default_factory=dict)
    each: tuple[str, ...] = ()
    only: dict[str, Label] = field(default_factory=dict)
    stem: str = ""


@dataclass(frozen=True)
class Section:
    """What the page shows of a suite: tables of ``values``, and figures.

    Without ``columns`` a table is of one value, or, of ``accuracies``, of all of these side by
    side; ``ranked`` is what rows differ by from the row ``reference`` where papers score accuracy,
    the best first. Where rows are ways of release, also a table of what each leaks.
    """

    rows: str
    columns: str
    values: tuple[str, ...]
    pictures: tuple[Picture, ...]
    reference: str = ""


SECTIONS = {
    "field": Section(
        "method",
        "",
        (EVERY, *COST),
        (Picture("pareto", {"metric": "headline_accuracy"}, each=("data",)),),
    ),
    "objectives": Section(
        "objective",
        "setting",
        (RANKED, "headline_accuracy", "own_ece_mean"),
        (Picture("objectives", each=("data",)),),
        reference="forward_kl",
    ),
    "policies": Section("policy", "data.alpha", ACCURACIES, ()),
    "swing-objectives": Section("objective", "data", (*UTILITY, "exposure_student"), ()),
    "knfu-heterogeneity": Section(
        "method",
        "data.alpha",
        ACCURACIES,
        (
            Picture("alpha"),
            Picture("alpha", {"metric": "common_accuracy"}, stem="alpha-common"),
            Picture("weights", each=("data",), only={"method": "knfu", "data.alpha": 1}),
        ),
    ),
    "knfu-beta": Section("beta", "data.alpha", ACCURACIES, ()),
    "knfu-size": Section(
        "method",
        "data.samples_per_client",
        ACCURACIES,
        (Picture("size"), Picture("size", {"stage": "local"}, stem="size-local")),
    ),
    "fedd2s-baselines": Section(
        "method",
        "split",
        (*OWN, *FAIRNESS, *COST),
        (
            Picture("curves", each=("data", "split")),
            Picture("fairness", each=("data", "split")),
            Picture("pareto", each=("data", "split")),
        ),
    ),
    "fedd2s-dropping": Section(
        "dropping",
        "data.alpha",
        (*OWN, *COST),
        (
            Picture(
                "cuts", each=("data", "data.alpha"), only={"dropping": "every 5 rounds", SEED: 0}
            ),
        ),
    ),
    "fedd2s-participation": Section(
        "method", "participation", OWN, (Picture("against", {"key": "participation"}),)
    ),
    "privacy-utility": Section(
        ARM, "epsilon", (*UTILITY, *LEAKAGE), (Picture("budget", each=("data",)),)
    ),
    "swing-arms": Section(ARM, "data", (), (Picture("tradeoff", each=("data",)),)),
    "privacy-budget": Section(
        ARM, "release.scale", (), (Picture("tradeoff", each=("data", "release.scale")),)
    ),
}
"""What to show of a suite; of any other, its verdicts alone."""
