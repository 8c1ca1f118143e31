"""What each arm of ``fedkd canary`` leaks: the table of its runs, and what the table says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedkd.caveats import caveats, gathered, marked
from fedkd.errors import FedkdError
from fedkd.escaping import markdown as in_markdown
from fedkd.results import PLACES, Run
from fedkd.simulations.arms import CLEAN, PLAIN
from fedkd.summaries import exposures, exposures_by_secret, utility, utility_name

if TYPE_CHECKING:
    from fedkd.exposures import Estimate
    from fedkd.privacy.accounting import Formal

BY_LABELS = ("released", "fused")
"""Places where exposure is measured by labels on the transfer set."""
SCORES = ("exposure", "linear")
"""What sequences are ranked by there."""


@dataclass(frozen=True)
class Row:
    """One arm's line of the table; exposures at one level of repeats.

    ``utility`` is ``perplexity`` or ``accuracy`` (of the student, on the common test set where
    there is one); ``exposure`` is by place; ``reduction`` is the share of the plain arm's excess
    exposure of the student that is gone; ``formal`` is an epsilon or "none: why"; ``nominal`` is no
    guarantee; ``audited`` is a lower bound on a client-level epsilon, with 95 % confidence, None
    where exposure proves nothing. ``excess`` is exposure at released and fused over that of the
    same experiment with nothing planted, where that was run, by the stronger of two scores.
    """

    arm: str
    what: str
    seeds: int
    utility_name: str
    utility: Estimate
    repeats: int
    exposure: dict[str, Estimate]
    reduction: Estimate | None
    formal: str
    nominal: float | None
    audited: float | None
    excess: dict[str, Estimate] = field(default_factory=dict)


def table(groups: dict[str, list[Run]], whats: dict[str, str], repeats: int) -> list[Row]:
    """A row for every arm, from its finished runs, a run a seed; ``groups`` are runs by arm."""
    from fedkd.exposures import interval
    from fedkd.exposures import reduction as reduction_of
    from fedkd.lab import audit

    found = {
        name: {place: values for place in PLACES if (values := exposures(runs, place, repeats))[0]}
        for name, runs in groups.items()
    }
    plain = found.get(PLAIN, {}).get("student")
    controls = {_control(runs[0]): runs for runs in groups.values() if runs and _is_control(runs)}
    rows = []
    for name, runs in groups.items():
        if not runs:
            continue
        student = found[name].get("student")
        reduction = None
        if name != PLAIN and plain and student:
            reduction = reduction_of(plain[0], student[0], plain[1], student[1])
        formal, nominal = guarantee(runs)
        control = [] if _is_control(runs) else controls.get(_control(runs[0]), [])
        clean = _bits(control, repeats)
        proved = audit.proved(runs[0], _bits(runs, repeats), repeats, clean)
        rows.append(
            Row(
                arm=name,
                what=whats.get(name, ""),
                seeds=len(runs),
                utility_name=utility_name(runs[0]),
                utility=interval([_utility(run) for run in runs]),
                repeats=repeats,
                exposure={place: interval(*values) for place, values in found[name].items()},
                reduction=reduction,
                formal=formal,
                nominal=nominal,
                audited=max(proved.values(), default=None),
                excess={
                    place: over[0]
                    for place in BY_LABELS
                    if (over := _excess(runs, control, place, repeats)) is not None
                },
            )
        )
    return rows


def _is_control(runs: Sequence[Run]) -> bool:
    return runs[0].experiment.canary.control


def _control(run: Run) -> str:
    """The digest of the same experiment, of any seed, with nothing planted in clients."""
    experiment = run.experiment
    canary = experiment.canary.model_copy(update={"control": True})
    return experiment.model_copy(update={"canary": canary, "seed": 0}).digest()


def _bits(runs: Sequence[Run], repeats: int) -> dict[str, list[float]]:
    """Exposures at all places, and by the other score where there is one."""
    found = {place: exposures(runs, place, repeats)[0] for place in PLACES}
    return found | {
        f"{place}, linear": exposures(runs, place, repeats, "linear")[0] for place in BY_LABELS
    }


def _excess(
    runs: Sequence[Run], control: Sequence[Run], place: str, repeats: int
) -> tuple[Estimate, str] | None:
    from fedkd.exposures import excess_over

    planted, none = (
        {
            score: {
                secret: (bits, cluster)
                for secret, bits, cluster in exposures_by_secret(those, place, repeats, score)
            }
            for score in SCORES
        }
        for those in (runs, control)
    )
    return excess_over(planted, none)


def _utility(run: Run) -> float:
    try:
        return utility(run)
    except FedkdError:
        return math.nan


def guarantee(runs: Sequence[Run]) -> tuple[str, float | None]:
    """Formal epsilon of the worst seed in words, and its nominal one.

    That against a server that sees every answer goes without saying whom it is against.
    """
    from fedkd.privacy import guarantees
    from fedkd.privacy.accounting import SEES_ALL

    by_adversary: dict[str, list[Formal]] = {}
    for run in runs:
        for formal in guarantees.guarantees(run.releases, run.experiment):
            by_adversary.setdefault(formal.adversary, []).append(formal)
    worst = [
        max(found, key=lambda formal: math.inf if formal.epsilon is None else formal.epsilon)
        for found in by_adversary.values()
    ]
    texts = [
        f.text() + ("" if f.adversary == SEES_ALL else f" against {f.adversary}") for f in worst
    ]
    nominal = [formal.nominal for formal in worst if formal.nominal is not None]
    return " / ".join(texts), max(nominal, default=None)


# --- the table in words ---------------------------------------------------------------------------


def report(name: str, rows: dict[int, list[Row]], warnings: Sequence[str] = ()) -> str:
    """The tables of all levels of repeats, each under a heading, warnings, what the arms are."""
    parts = [f"# Canaries in {name}"]
    for level, found in rows.items():
        parts += [f"## Secrets repeated {level} time{'s' * (level > 1)}", markdown(found)]
        parts += findings(found)
    parts += [f"- {in_markdown(line)}" for line in warnings]
    what = [f"- `{row.arm}`: {row.what}" for row in next(iter(rows.values()))]
    return "\n\n".join([*parts, "## Arms", "\n".join(what)]) + "\n"


def markdown(rows: Sequence[Row]) -> str:
    """The table of one level of repeats: a line an arm."""
    from fedkd.exposures import NULL_MEAN
    from fedkd.privacy.accounting import NEIGHBOURS, SEES_ALL

    over = [place for place in BY_LABELS if any(place in row.excess for row in rows)]
    head = [
        "arm",
        rows[0].utility_name,
        *(f"exposure, {place}" for place in PLACES),
        *(f"excess, {place}" for place in over),
        "reduction",
        "formal ε",
        "nominal ε",
        "audited ε ≥",
    ]
    body = [
        [
            row.arm,
            number(row.utility, 1 if row.utility_name == "perplexity" else 3),
            *(number(row.exposure.get(place), 2) for place in PLACES),
            *(number(row.excess.get(place), 2) for place in over),
            number(row.reduction, 0, 100, " %"),
            row.formal,
            "-" if row.nominal is None else f"{row.nominal:.3g}",
            "-" if row.audited is None else f"{row.audited:.2f}",
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    said = "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in lines
    )
    level, seeds = rows[0].repeats, max(row.seeds for row in rows)
    fewer = ", ".join(f"{row.arm}: {row.seeds}" for row in rows if row.seeds < seeds)
    explained = (
        f"Secrets repeated {level} time{'s' * (level > 1)}, {seeds} seed{'s' * (seeds > 1)}"
        f"{f' ({fewer})' if fewer else ''}; mean and 95 % interval. Exposure in bits, "
        f"{NULL_MEAN:.2f} of a secret nobody has seen, in teachers and students; of released and "
        "fused labels that is not known, and excess is over the same arm with nothing planted, by "
        "the stronger of two scores. "
        f"Reduction: share of the student's excess over that, against {PLAIN}. Nominal ε is of one "
        "token or item of a client and is no guarantee. Audited ε is of one client: all copies of "
        "a secret at once; it is by what the server sees, or by the student. "
        f"Formal ε is against {SEES_ALL}, unless another adversary is named, for neighbours that "
        f"differ in one {' or one '.join(NEIGHBOURS.values())}."
    )
    return f"{said}\n\n{explained}"


def notes(groups: dict[str, list[Run]]) -> Sequence[str]:
    """What the runs of each arm warn of, a line a kind."""
    from fedkd.exposures import NULL_MEAN
    from fedkd.lab import audit

    pairs = [(arm, run) for arm, runs in groups.items() for run in runs]
    said = marked(gathered((arm, caveats(run)) for arm, run in pairs))[0]
    if all(audit.null_known(run, "student") for _, run in pairs):
        return said
    return [
        *said,
        f"Students are distilled on the secret images themselves: hold their exposure against the "
        f"control {CLEAN!r}, not against {NULL_MEAN:.2f} bits.",
    ]


def number(found: Estimate | None, digits: int, factor: float = 1.0, unit: str = "") -> str:
    """An estimate with its interval, if it has one; ``-`` for one that says nothing."""
    if found is None or not math.isfinite(found.mean) or math.isinf(found.low):
        return "-"
    mean, low, high = (f"{factor * x:.{digits}f}" for x in (found.mean, found.low, found.high))
    return f"{mean}{unit} [{low}, {high}]" if math.isfinite(found.low) else f"{mean}{unit}"


def findings(rows: Sequence[Row]) -> list[str]:
    """What the table says of itself: whether anything was memorised and leaked at all."""
    from fedkd.exposures import NULL_MEAN

    plain = next((row for row in rows if row.arm == PLAIN), None)
    if plain is None:
        return [f"No reduction: the arm {PLAIN}, which arms are compared with, was not run."]
    level = f"{plain.repeats} repeat{'s' * (plain.repeats > 1)}"
    teacher, student = plain.exposure.get("teacher"), plain.exposure.get("student")
    # A bound that is not known, NaN, is above nothing.
    if teacher is not None and not teacher.low > NULL_MEAN:
        return [
            f"Not a result: at {level} plain teachers have memorised nothing that can be told "
            f"from chance ({teacher.mean:.2f} bits, null {NULL_MEAN:.2f}); train or repeat more, "
            "or plant more secrets."
        ]
    if student is not None and not student.low > NULL_MEAN:
        return [
            f"At {level} plain distillation leaks nothing that can be told from chance "
            f"({student.mean:.2f} bits, null {NULL_MEAN:.2f}): there is nothing for a release to "
            "reduce."
        ]
    return []
