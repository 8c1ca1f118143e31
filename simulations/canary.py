"""``fedkd canary``: runs an experiment under many releases and writes what each of them leaks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from fedkd import folder as disk
from fedkd import lock, registry
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.nesting import check_inside
from fedkd.results import Run, check_not_inside_a_run, finite
from fedkd.simulations.arms import CLEAN, Arm, arms, chosen, refused, varied
from fedkd.simulations.jobs import Job, grouped, most, outcomes
from fedkd.simulations.leakage import findings, markdown, notes, report, table


def run_all(
    experiment: Experiment,
    selected: Sequence[Arm],
    seeds: Sequence[int],
    folder: Path,
    jobs: int,
    done: Callable[[str, int, float | None], None],
) -> dict[str, str]:
    """Run every arm and seed that has no finished run in ``folder`` yet, ``jobs`` at a time.

    ``done(arm, seed, seconds)`` is called after each, with 0 seconds if it was there already, and
    None if it failed, or was there and cannot be read. One that fails does not stop the others; the
    lines that say why are returned, by arm and seed.
    """
    tasks = [
        (arm.name, seed, varied(experiment, arm, seed), folder / arm.name / f"seed-{seed}")
        for arm in selected
        for seed in seeds
    ]
    for *_, place in tasks:
        check_inside(place, folder)
    taken = [Run.at(task, place) for _, _, task, place in tasks]
    waiting, failed = [], {}
    for task, there in zip(tasks, taken):
        name, seed = task[:2]
        try:
            ended = there.summary is not None
            if ended:
                there.check()
        except FedkdError as error:
            failed[f"{name}, seed {seed}"] = str(error)
            done(name, seed, None)
            continue
        if ended:
            done(name, seed, 0.0)
        else:
            waiting.append(task)
    for index, seconds, why in outcomes([Job(*task[2:]) for task in waiting], jobs):
        name, seed = waiting[index][:2]
        if why:
            failed[f"{name}, seed {seed}"] = why
        done(name, seed, None if why else seconds)
    return failed


def main(
    experiment: Experiment,
    names: Sequence[str] | None,
    seeds: Sequence[int],
    repeats: int | None,
    jobs: int | None,
    out: Path | None,
) -> None:
    """Run what is missing, print the table, and write it beside the runs.

    Raises
    ------
    FedkdError
        Wrong input; or arms that could not be run, after all others were and the table was printed.
    """
    levels = tuple(dict.fromkeys(experiment.canary.repeats))
    if not experiment.canary.secrets:
        raise FedkdError("canary.secrets = 0: fedkd canary needs an experiment with canaries")
    if experiment.canary.control:
        raise FedkdError(
            f"canary.control = true is not allowed: fedkd canary has an arm for it, {CLEAN!r}"
        )
    if repeats is not None and repeats not in levels:
        raise FedkdError(f"--repeats {repeats} is not known; known: {', '.join(map(str, levels))}")
    for seed in seeds:
        Experiment.from_dict({"seed": seed})
    if why := refused(experiment):
        raise FedkdError(why)
    method = experiment.strategy.name
    if not registry.load("strategies", method).sends_soft_labels:
        raise FedkdError(
            f"strategy.name = {method!r} is not allowed: fedkd canary compares releases of soft "
            "labels on the transfer set, and its clients send something else or nothing"
        )
    known, unfit = arms(experiment)
    selected = chosen(known, unfit, names)
    _there(experiment)
    folder = out or Path("runs") / f"canary-{experiment.name}-{experiment.digest()}"
    jobs = jobs or most([experiment])
    total, begin, finished = len(selected) * len(seeds), time.perf_counter(), 0
    for name, why in unfit.items():
        if not names:
            print(f"{name} does not fit: {why}", file=sys.stderr, flush=True)

    def done(arm: str, seed: int, seconds: float | None) -> None:
        nonlocal finished
        finished += 1
        took = "failed" if seconds is None else f"{seconds:.0f} s" if seconds else "there already"
        print(f"{finished}/{total} {arm}, seed {seed}: {took}", file=sys.stderr, flush=True)

    check_not_inside_a_run(folder)
    with lock.held(folder):
        failed = run_all(experiment, selected, seeds, folder, jobs, done)
        groups = {
            arm.name: [
                run
                for seed in seeds
                if f"{arm.name}, seed {seed}" not in failed
                and (run := Run(folder / arm.name / f"seed-{seed}")).summary is not None
            ]
            for arm in selected
        }
        whats = {arm.name: arm.what for arm in selected}
        rows = {level: table(groups, whats, level) for level in levels}
        shown = rows[repeats or max(levels)]
        if not shown:
            raise FedkdError(grouped(failed))
        disk.write(folder / "table.md", report(experiment.name, rows, notes(groups)))
        lines = [asdict(row) for level in levels for row in rows[level]]
        disk.write(folder / "table.json", json.dumps(finite(lines), indent=1))
    print(markdown(shown))
    for line in (*findings(shown), *notes(groups)):
        print(line)
    print(f"{time.perf_counter() - begin:.0f} s; all levels of repeats: {folder / 'table.md'}")
    if failed:
        raise FedkdError(grouped(failed))


def _there(experiment: Experiment) -> None:
    """Load the data: what is wrong with them, or with the canaries, is so in every arm."""
    from fedkd.data.federated import load

    load(experiment)
