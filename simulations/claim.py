"""Claims of the methods' papers, each a file of ``simulations/claims``.

A claim is a statement and its source, the suite that tests it, what is compared, and one or more
tests, each with a rule and a margin; ``fedkd.simulations.rules`` says what the rules mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fedkd.errors import FedkdError, nearest
from fedkd.experiment import Table, validated
from fedkd.simulations.cells import Label
from fedkd.toml import parse, read_text

FOLDER = Path(__file__).parent / "claims"
Rule = Literal["better", "not worse", "level", "trend", "interior", "reduction"]
MEASURES = {
    "headline_accuracy": "accuracy where the method's paper scores it",
    "other_stage_accuracy": "accuracy at the other stage",
    "own_accuracy_mean": "own accuracy, fused",
    "own_accuracy_mean_local": "own accuracy, local",
    "own_accuracy_worst10": "own accuracy, worst 10 %",
    "own_accuracy_std": "own accuracy, std over clients",
    "common_accuracy_mean": "common accuracy, fused",
    "common_accuracy_mean_local": "common accuracy, local",
    "own_accuracy_worst10_local": "own accuracy, worst 10 %, local",
    "own_accuracy_std_local": "own accuracy, std over clients, local",
    "rounds_to_target": "rounds to target",
    "rounds_to_target_local": "rounds to target, local",
    "membership_auc": "AUC of membership inference by a server that sees all that is sent",
    "membership_auc_others": "AUC of membership inference by others, from what a server makes",
    "audited_epsilon": "audited \N{GREEK SMALL LETTER EPSILON} of a record, of the server",
    "formal_epsilon": "formal \N{GREEK SMALL LETTER EPSILON} against the server",
    "formal_epsilon_others": "formal \N{GREEK SMALL LETTER EPSILON} against others",
}
"""What a test measures, in words, where its column's name is not plain."""


class Compare(Table):
    """``[compare]``: which labels of an axis are held against which."""

    axis: str
    """The axis that they are labels of."""
    of: Label | None = None
    """What the claim speaks of; not for ``trend`` and ``interior``, which are about the axis."""
    with_: tuple[Label, ...] = Field((), alias="with")
    """What it is compared with: each of these."""


class Criterion(Table):
    """``[[tests]]``: one thing that must be so."""

    value: str
    """A column of the suite's frame; or ``utility`` (accuracy, or minus perplexity),
    ``rounds_to_target``, ``record.NAME`` (the mean over rounds of a number that the strategy
    records). Of an accuracy it names the stage that the verdict is about; the other stage is judged
    beside it. ``rounds_to_target_local`` counts by accuracies after local training."""
    rule: Rule
    margin: float = Field(0.0, ge=0)
    """In the value's own unit: accuracies are fractions."""
    lower: bool = False
    """Whether less is better."""
    relative: bool = False
    """Whether differences count as a share of what is compared with."""
    target: Label | None = None
    """Of ``rounds_to_target``: whose final own accuracy is to be reached, with the same seed. A run
    that never does counts as one round more than it has."""


class Vacuous(Table):
    """``[vacuous]``: where the claim says nothing."""

    value: str
    """As in a test."""
    of: Label
    """Of which label of the compared axis."""
    at_most: float
    """Vacuous where the mean over seeds is no more than this."""
    because: str
    """What it means."""


class Claim(Table):
    """A claim, its source, and what is to be seen for it and against it."""

    name: str
    statement: str
    source: str
    """Paper, and where it says so: its abstract, or a review of it."""
    about: str = ""
    """What a verdict does not speak of, said with it."""
    suite: str
    """Which suite's runs judge it."""
    compare: Compare
    tests: tuple[Criterion, ...] = Field(min_length=1)
    within: tuple[str, ...] = ()
    """A verdict for each combination of these axes' labels."""
    only: dict[str, Label | tuple[Label, ...]] = Field(default_factory=dict)
    """Labels of axes that it is about; ``first`` or ``last`` of those there are in a cell."""
    vacuous: Vacuous | None = None
    seeds: int = Field(5, ge=2)
    """Fewer decide nothing."""
    figure: str = ""
    """The command for its figure; ``{folder}`` is the suite's."""

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        for test in self.tests:
            where = f"claim {self.name}: tests.rule = {test.rule!r}"
            if test.rule in ("trend", "interior"):
                if self.compare.of is not None or self.compare.with_:
                    raise ValueError(f"{where} is about a whole axis: leave of and with out")
            elif self.compare.of is None or not self.compare.with_:
                raise ValueError(f"{where} needs compare.of and compare.with")
            told = len(self.compare.with_), test.value
            if test.rule == "reduction" and told != (1, "exposure_student"):
                raise ValueError(
                    f"{where} needs one label in compare.with, and value = 'exposure_student'"
                )
            to_target = test.value in ("rounds_to_target", "rounds_to_target_local")
            if to_target != (test.target is not None):
                raise ValueError(f"claim {self.name}: tests.target goes with rounds_to_target")
        return self


def claims() -> dict[str, Claim]:
    """The claims that come with fedkd, by name."""
    return {file.stem: read(file) for file in sorted(FOLDER.glob("*.toml"))}


def read(file: Path) -> Claim:
    """The claim in a file; its name is the file's.

    Raises
    ------
    FedkdError
        The file is not a claim; the line says what is wrong.
    """
    tables = parse(read_text(file, f"claim {file}"), f"claim {file}")
    return validated(Claim, {"name": file.stem, **tables}, f"claim {file.stem}: ")


def chosen(names: Sequence[str]) -> dict[str, Claim]:
    """The claims called ``names``: of one, of a method (``knfu``), or in a file; all without any.

    Raises
    ------
    FedkdError
        A name is not known.
    """
    known = claims()
    if not names:
        return known
    found: dict[str, Claim] = {}
    for name in names:
        if name.endswith(".toml"):
            one = read(Path(name))
            found[one.name] = one
            continue
        fit = [other for other in known if other == name or other.startswith(f"{name}-")]
        if not fit:
            raise FedkdError(
                f"claim {name!r} is not known{nearest(name, list(known))}; known: "
                f"{', '.join(known)}"
            )
        found |= {other: known[other] for other in fit}
    return found
