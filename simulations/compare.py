"""Runs side by side, as a Markdown table: mean and standard deviation over seeds, and notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedkd.caveats import caveats, gathered, marked, span
from fedkd.errors import FedkdError
from fedkd.escaping import markdown
from fedkd.headline import ACCURACY, HEADLINE, column_of, numbers
from fedkd.labels import by_seed, labels
from fedkd.results import Run
from fedkd.simulations.layout import ruled
from fedkd.simulations.table_formats import notes_markdown
from fedkd.simulations.tables import mean_and_spread
from fedkd.summaries import reached

ACCURACIES = {
    "as in the paper": ACCURACY,
    "own, fused": "own_accuracy_mean",
    "own, local": "own_accuracy_mean_local",
    "own worst 10 %": "own_accuracy_worst10",
    "own std": "own_accuracy_std",
    "common, fused": "common_accuracy_mean",
    "common, local": "common_accuracy_mean_local",
}
PERPLEXITIES = {
    "own perplexity": "own_perplexity_mean",
    "common perplexity": "common_perplexity_mean",
}
JAIN = "own_accuracy_jain"


def table(runs: Sequence[Run], target: float | None = None) -> str:
    """A row for all runs that differ only in their seed.

    Accuracies in percent: "as in the paper" is that of the stage and student that the method's
    paper scores, which the caption names where it is not "own, fused"; the others at the end of the
    last round with the fused knowledge ("fused") and after that round's local training ("local");
    "own std" is the standard deviation of own accuracy over clients, "own Jain" its Jain's index
    where any run has it, perplexities where any run is of text; ± is the standard deviation over
    seeds (n - 1), left out for one seed. MB up and down, and seconds, are means a run. With
    ``target``, a mean own accuracy in percent: rounds, and MB both ways, until it was first
    reached, means over the runs that did, with how many where others did not. What runs warn of
    stands under the table, with a mark at each row it concerns.

    Raises
    ------
    FedkdError
        A run has not finished; or two are the same experiment with the same seed.
    """
    groups = by_seed(runs)
    summaries = [[_summary(run) for run in group] for group in groups]
    titles = labels([group[0] for group in groups])
    warnings = [[caveats(run) for run in group] for group in groups]
    notes, marks = marked(
        gathered((title, one) for title, some in zip(titles, warnings) for one in some)
    )
    jain = any(JAIN in one for found in summaries for one in found)
    text = {
        name: key
        for name, key in PERPLEXITIES.items()
        if any(key in one for f in summaries for one in f)
    }
    sizes = ["MB up", "MB down", "seconds"]
    heads = ["run", "seeds", *ACCURACIES, *["own Jain"] * jain, *text, *sizes]
    if target is not None:
        heads += [f"{what} to {target:g} %" for what in ("rounds", "MB")]
    rows = [heads]
    for title, group, found in zip(titles, groups, summaries, strict=True):
        mark = marks.get(title, "")
        row = [f"{markdown(title)}{f' {mark}' * bool(mark)}", str(len(group))]
        for key in ACCURACIES.values():
            row.append(mean_and_spread([100 * one[key] for one in found if key in one]))
        if jain:
            row.append(mean_and_spread([one[JAIN] for one in found if JAIN in one], digits=3))
        for key in text.values():
            row.append(mean_and_spread([one[key] for one in found if key in one]))
        for key in ("bytes_up", "bytes_down"):
            row.append(f"{np.mean([one[key] for one in found]) / 1e6:.2f}")
        row.append(f"{np.mean([one['seconds'] for one in found]):.0f}")
        rows.append([*row, *(_to_target(group, target) if target is not None else [])])
    experiments = [run.experiment for group in groups for run in group]
    caption = (
        f"Accuracies are means over clients in %, ± standard deviation over seeds; "
        f"{span((one.data.clients for one in experiments), 'client')}, "
        f"{span((one.rounds for one in experiments), 'round')}. fused: after the last measured "
        "round's fusion; local: after its local training; own: clients' own test sets; common: the "
        "common test set; as in the paper: of the student, and at the stage, that the method's "
        f"paper scores{_headlines(groups, summaries)}."
    )
    return "\n\n".join([ruled(rows), caption, *notes_markdown(notes)])


def _summary(run: Run) -> dict[str, Any]:
    if run.summary is None:
        raise FedkdError(f"{run.folder} has not finished; go on with fedkd run --resume")
    return run.summary | numbers(run.summary, column_of(run))


def _headlines(groups: Sequence[Sequence[Run]], summaries: Sequence[Sequence[Any]]) -> str:
    """Which column it is, by method, where it is not the first of the others."""
    names = {
        group[0].experiment.strategy.name: found[0].get(HEADLINE)
        for group, found in zip(groups, summaries, strict=True)
    }
    others = [
        f"{column or 'not known'} of {name}"
        for name, column in names.items()
        if column != ACCURACIES["own, fused"]
    ]
    return f" ({', '.join(others)})" if others else ""


def _to_target(group: Sequence[Run], target: float) -> list[str]:
    """Mean rounds and MB until ``target`` percent, over the runs that reached it."""
    took = [reached(run, target / 100) for run in group]
    cells = []
    for key, unit, digits in (("rounds_to_target", 1.0, 1), ("bytes_to_target", 1e6, 2)):
        values = [value / unit for one in took if (value := one[key]) is not None]
        few = f" ({len(values)} of {len(group)})" if len(values) < len(group) else ""
        # A whole number of rounds is written as one.
        digits = 0 if unit == 1 and sum(values) % max(len(values), 1) == 0 else digits
        cells.append(f"{np.mean(values):.{digits}f}{few}" if values else "-")
    return cells
