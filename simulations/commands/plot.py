"""``fedkd plot``: a figure from runs; a command a figure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedkd.simulations.commands.options import examples, path_of

plot = typer.Typer(
    help="Draw a figure from runs, as PNG and PDF. RUN is the folder of a run, finished or going "
    "on, or one that holds finished runs, as that of a suite.",
    epilog=examples("fedkd plot curves runs/*", "fedkd plot partition runs/quickstart-0a1b2c3d"),
)


class Metric(StrEnum):
    """Which test accuracy a figure shows."""

    own_accuracy = "own_accuracy"
    common_accuracy = "common_accuracy"
    headline_accuracy = "headline_accuracy"


class Stage(StrEnum):
    """When in the last round accuracy is measured."""

    fused = "fused"
    local = "local"


Runs = Annotated[list[Path], typer.Argument(parser=path_of, metavar="RUN...", show_default=False)]
OneRun = Annotated[Path, typer.Argument(parser=path_of, metavar="RUN", show_default=False)]
Stem = Annotated[
    Path | None,
    typer.Option(
        parser=path_of,
        metavar="FILE",
        help="Where to write, without a suffix; RUN/plots/ when not given.",
    ),
]
MetricOption = Annotated[Metric, typer.Option(help="Which test accuracy.")]
StageOption = Annotated[Stage, typer.Option(help="After fusion or after local training.")]


def _draw(name: str, folders: Sequence[Path], out: Path | None, *options: Any) -> None:
    """Draw figure ``name`` of all runs in ``folders``, beside the first when ``out`` is None."""
    from importlib import import_module

    from fedkd.plots.gather import find
    from fedkd.plots.style import save

    figure = import_module(f"fedkd.plots.{name}").draw(find(folders), *options)
    for file in save(figure, out or folders[0] / "plots" / name):
        print(file)


@plot.command(
    epilog=examples(
        "fedkd plot curves runs/*",
        "fedkd plot curves runs/knfu-* runs/fedmd-* --out figures/curves --metric common_accuracy",
    )
)
def curves(runs: Runs, out: Stem = None, metric: MetricOption = Metric.own_accuracy) -> None:
    """Accuracy against rounds: a line per method, the mean over its seeds.

    One method alone is shown after local training and after fusion.
    """
    _draw("curves", runs, out, metric.value)


@plot.command(
    epilog=examples(
        "fedkd plot alpha runs/*", "fedkd plot alpha runs/* --metric common_accuracy --stage local"
    )
)
def alpha(
    runs: Runs,
    out: Stem = None,
    metric: MetricOption = Metric.own_accuracy,
    stage: StageOption = Stage.fused,
) -> None:
    """Accuracy at the end against data.alpha: a line per method, intervals over its seeds."""
    _draw("alpha", runs, out, metric.value, stage.value)


@plot.command(epilog=examples("fedkd plot size runs/*", "fedkd plot size runs/* --stage local"))
def size(
    runs: Runs,
    out: Stem = None,
    metric: MetricOption = Metric.own_accuracy,
    stage: StageOption = Stage.fused,
) -> None:
    """Accuracy at the end against data.samples_per_client, a panel an alpha.

    Rings mark where the line of local training crosses that of another method.
    """
    _draw("size", runs, out, metric.value, stage.value)


@plot.command(
    epilog=examples(
        "fedkd plot against strategy.beta runs/knfu-*",
        "fedkd plot against participation runs/* --metric common_accuracy",
    )
)
def against(
    key: Annotated[str, typer.Argument(show_default=False)],
    runs: Runs,
    out: Stem = None,
    metric: MetricOption = Metric.own_accuracy,
    stage: StageOption = Stage.fused,
) -> None:
    """Accuracy at the end against any KEY of the experiment that is a number."""
    _draw("against", runs, out, key, metric.value, stage.value)


@plot.command(epilog=examples("fedkd plot budget runs/privacy-utility-quick/digits-*"))
def budget(runs: Runs, out: Stem = None) -> None:
    """What a privacy budget buys: utility and membership inference against the formal epsilon.

    Runs that differ in noise alone are one line; the second panel is of runs that were audited.
    """
    _draw("budget", runs, out)


@plot.command(epilog=examples("fedkd plot weights runs/knfu-*"))
def weights(runs: Runs, out: Stem = None) -> None:
    """Whom clients listen to: weight matrices of some rounds, effective contributors over rounds.

    For runs of strategies that fuse for each client, as knfu; others are left out.
    """
    _draw("weights", runs, out)


@plot.command(
    epilog=examples("fedkd plot pareto runs/*", "fedkd plot pareto runs/* --metric common_accuracy")
)
def pareto(
    runs: Runs,
    out: Stem = None,
    metric: MetricOption = Metric.own_accuracy,
    stage: StageOption = Stage.fused,
) -> None:
    """Accuracy at the end against bytes sent: a point per method, and the Pareto front."""
    _draw("pareto", runs, out, metric.value, stage.value)


@plot.command(
    epilog=examples(
        "fedkd plot objectives runs/objectives-quick",
        "fedkd plot objectives runs/objectives-quick/knfu-* --reference reverse_kl",
    )
)
def objectives(
    runs: Runs,
    out: Stem = None,
    reference: Annotated[
        str, typer.Option(help="The objective that others are held against.")
    ] = "forward_kl",
    metric: MetricOption = Metric.headline_accuracy,
) -> None:
    """What each objective adds to accuracy against another one: a panel a method, the best on top.

    Differences are paired over seeds; the intervals of a panel hold for all of it at once.
    """
    _draw("objectives", runs, out, reference, metric.value)


@plot.command(epilog=examples("fedkd plot calibration runs/*"))
def calibration(runs: Runs, out: Stem = None) -> None:
    """Calibration error against accuracy, before and after fusion: two points per method."""
    _draw("calibration", runs, out)


@plot.command(
    epilog=examples(
        "fedkd plot loyalty runs/*",
        "fedkd plot loyalty runs/knfu-* runs/fedmd-* --out figures/loyalty",
    )
)
def loyalty(runs: Runs, out: Stem = None) -> None:
    """How alike students and their targets answer, before and after they distil, against rounds.

    For runs of methods whose clients distil; a pair of lines per method, bands over its seeds.
    """
    _draw("loyalty", runs, out)


@plot.command(
    epilog=examples(
        "fedkd plot reliability runs/*",
        "fedkd plot reliability runs/fedmd-* runs/local-* --out figures/reliability",
    )
)
def reliability(runs: Runs, out: Stem = None) -> None:
    """Accuracy against confidence at the end of runs, before and after fusion: a panel per method.

    Grey bars say how many predictions are that sure. Clients and seeds are taken together.
    """
    _draw("reliability", runs, out)


@plot.command(epilog=examples("fedkd plot partition runs/quickstart-0a1b2c3d"))
def partition(run: OneRun, out: Stem = None) -> None:
    """Who holds what: training samples per client and class of the run in folder RUN."""
    _draw("partition", [run], out)


@plot.command(
    epilog=examples(
        "fedkd plot fairness runs/*",
        "fedkd plot fairness runs/fedd2s-* runs/fedavg-* --out figures/fairness",
    )
)
def fairness(runs: Runs, out: Stem = None) -> None:
    """Every client's own accuracy at the end: a column per method, with the clients of all seeds.

    One method in several settings takes a column for each.
    """
    _draw("fairness", runs, out)


@plot.command(epilog=examples("fedkd plot cuts runs/fedd2s-0a1b2c3d"))
def cuts(run: OneRun, out: Stem = None) -> None:
    """Accuracies and bytes against rounds, and where the cut moves, of the run in folder RUN."""
    _draw("cuts", [run], out)


@plot.command(
    epilog=examples(
        "fedkd plot exposure runs/canary-*",
        "fedkd plot exposure runs/canary-*/fkd runs/canary-*/swing --out figures/exposure",
    )
)
def exposure(runs: Runs, out: Stem = None) -> None:
    """Exposure of planted secrets against their repeats: a panel an arm, a line a place.

    For finished runs with canaries; those that differ only in their seed are one.
    """
    _draw("exposure", runs, out)


@plot.command(
    epilog=examples(
        "fedkd plot tradeoff runs/canary-*",
        "fedkd plot tradeoff runs/canary-* --place released --repeats 16",
    )
)
def tradeoff(
    runs: Runs,
    out: Stem = None,
    place: Annotated[
        str, typer.Option(help="Where exposure is measured: teacher, released, fused, student.")
    ] = "student",
    repeats: Annotated[
        int | None, typer.Option(help="Level of repeats; the highest there is when not given.")
    ] = None,
) -> None:
    """Perplexity or accuracy against excess exposure of planted secrets: a point an arm.

    For finished runs with canaries; those that differ only in their seed are one.
    """
    _draw("tradeoff", runs, out, place, repeats)


@plot.command(
    epilog=examples(
        "fedkd plot profile runs/canary-*", "fedkd plot profile runs/fedavg-* runs/uniform-*"
    )
)
def profile(runs: Runs, out: Stem = None) -> None:
    """Formal ε against δ: a panel per unit and adversary, a line per method or setting.

    For runs whose ledger guarantees anything; of several seeds the worst is shown.
    """
    _draw("profile", runs, out)


@plot.command(epilog=examples("fedkd plot auditing runs/sigma-*"))
def auditing(runs: Runs, out: Stem = None) -> None:
    """Audited and formal ε of DP-SGD against its noise: a pair of lines per method or setting.

    For runs that were audited with --gradient-canaries.
    """
    _draw("auditing", runs, out)


@plot.command(epilog=examples("fedkd plot reconstruction runs/fedgkt-0a1b2c3d"))
def reconstruction(run: OneRun, out: Stem = None) -> None:
    """Images of clients beside what an audit with --reconstruct made of what was sent."""
    _draw("reconstruction", [run], out)
