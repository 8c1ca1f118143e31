"""Runs side by side, as a Markdown table: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkd.errors import FedkdError
from fedkd.results import Run, by_seed, labels

ACCURACIES = {
    "own, fused": "own_accuracy_mean",
    "own, local": "own_accuracy_mean_local",
    "own worst 10 %": "own_accuracy_worst10",
    "common, fused": "common_accuracy_mean",
    "common, local": "common_accuracy_mean_local",
}


def table(runs: Sequence[Run]) -> str:
    """A row for all runs that differ only in their seed.

    Accuracies in percent, at the end of the last round with the fused knowledge ("fused") and
    after that round's local training ("local"); ± is the standard deviation over seeds (n - 1),
    left out for one seed. MB up and down, and seconds, are means a run.

    Raises
    ------
    FedkdError
        A run has not finished.
    """
    groups = by_seed(runs)
    heads = ["run", "seeds", *ACCURACIES, "MB up", "MB down", "seconds"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for title, group in zip(labels([group[0] for group in groups]), groups, strict=True):
        found = []
        for run in group:
            if run.summary is None:
                raise FedkdError(f"{run.folder} has not finished; go on with fedkd run --resume")
            found.append(run.summary)
        row = [title, str(len({run.experiment.seed for run in group}))]
        for key in ACCURACIES.values():
            row.append(_spread([100 * one[key] for one in found if key in one]))
        for key in ("bytes_up", "bytes_down"):
            row.append(f"{np.mean([one[key] for one in found]) / 1e6:.2f}")
        rows.append([*row, f"{np.mean([one['seconds'] for one in found]):.0f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"
