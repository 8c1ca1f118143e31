"""``fedkd canary``: one experiment under many releases, and what each of them leaks.

An arm is the given experiment with some tables changed. The experiment's own ``[release]`` is one
arm; the others take it apart, or put something else in its place.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd import folder as disk
from fedkd import lock, registry
from fedkd.caveats import caveats, gathered, marked
from fedkd.checks import check
from fedkd.errors import FedkdError, nearest
from fedkd.escaping import markdown as in_markdown
from fedkd.experiment import Experiment, changed
from fedkd.results import (
    PLACES,
    Run,
    check_inside,
    check_not_inside_a_run,
    exposures,
    exposures_by_secret,
    finite,
    utility,
    utility_name,
)
from simulations.jobs import Job, grouped, most, outcomes

if TYPE_CHECKING:
    from fedkd.privacy.accounting import Formal
    from fedkd.privacy.exposure import Estimate

PLAIN, CLEAN, OWN = "fkd", "clean", "own"
TWIN = f"{CLEAN}-"
"""Before the name of an arm: the same with nothing planted in clients."""
BY_LABELS = ("released", "fused")
"""Places where exposure is measured by labels on the transfer set."""
SCORES = ("exposure", "linear")
"""What sequences are ranked by there."""
TEMPERATURES = (1.0, 2.0, 4.0, 10.0, 20.0)
FEDAVG_ROUNDS = 5
TAU_MAX, SCALE, CLIP, CANDIDATES, NOISE_MULTIPLIER = 20.0, 0.05, 10.0, 20, 1.0
"""What arms take where the experiment's own ``[release]`` does not say."""
SHARED = ("temperature", "clip", "candidates", "delta")
"""Keys of ``[release]`` that all arms with a temperature or noise have from the experiment."""


@dataclass(frozen=True)
class Arm:
    """One variant of the experiment: ``what`` in a line, and the tables or keys it changes."""

    name: str
    what: str
    changes: dict[str, Any]


def arms(experiment: Experiment) -> tuple[dict[str, Arm], dict[str, str]]:
    """The arms of ``experiment`` by name, in the order of the table, and why others do not fit.

    The experiment's own ``[release]`` is ``swing-noise`` where it is a temperature by score and
    noise; where it is none of the other arms, it is one more, ``own``.
    """
    found, unfit = {}, {}
    for arm in _every(experiment):
        if why := refused(varied(experiment, arm, experiment.seed)):
            unfit[arm.name] = why
        else:
            found[arm.name] = arm
    ways = {varied(experiment, arm, experiment.seed).digest() for arm in found.values()}
    if experiment.digest() not in ways:
        found[OWN] = Arm(OWN, "the experiment's own [release]", {})
    return found, unfit


def refused(experiment: Experiment) -> str:
    """Why an experiment cannot be run, as far as that is known without its data; else nothing."""
    from fedkd.privacy import public

    try:
        check(experiment)
        public.check(experiment, _of_text(experiment))
    except FedkdError as error:
        return str(error)
    return ""


def _of_text(experiment: Experiment) -> bool:
    return getattr(registry.load("students", experiment.student.models[0]), "tokens", False)


def _every(experiment: Experiment) -> Iterator[Arm]:
    """All arms, whether or not the experiment can be run so."""
    release = experiment.release
    given = release.model_dump(exclude_defaults=True)
    shared = {key: given[key] for key in SHARED if key in given}
    plain = {"delta": release.delta}
    swing = shared | {key: given[key] for key in ("curve", "scores") if key in given}
    swing |= {"tau_max": release.tau_max or TAU_MAX}
    noisy = {"mechanism": release.mechanism, "scale": release.scale}
    if release.mechanism not in ("gaussian", "laplace"):
        noisy = {"mechanism": "gaussian", "scale": SCALE}
    options = registry.load("strategies", experiment.strategy.name).Options.model_fields

    yield _fedavg(experiment, plain)
    control = {"release": plain, "canary.control": True}
    yield Arm(CLEAN, "nothing planted in clients, plain labels", control)
    yield Arm(PLAIN, "plain soft labels", {"release": plain})
    own = experiment.strategy.options.get("tau", options["tau"].default if "tau" in options else 0)
    for tau in TEMPERATURES:
        if "tau" in options and tau != own and not _sends_logits(experiment):
            changes = {"release": plain, "strategy.tau": tau}
            yield Arm(f"{PLAIN}-{tau:g}", f"plain soft labels at tau = {tau:g}", changes)
    yield Arm("swing", "swing temperature, no noise", {"release": swing})
    yield Arm("noise", "noise, one temperature", {"release": shared | noisy})
    yield Arm("swing-noise", "swing temperature and noise", {"release": swing | noisy})
    for scores, what in (
        ("shuffled", "as swing, scores shuffled over items"),
        ("oracle", "as swing, the true canaries' places known"),
        ("constant", "as swing, every item at tau_max"),
    ):
        yield Arm(scores, what, {"release": swing | {"scores": scores}})
    mixed = {"release": swing | {"mix_with": "entropy"}}
    yield Arm("mixing", "mixed with uniform to swing's entropy", mixed)
    if "student_temperature" in options:
        changes = {"release": swing, "strategy.student_temperature": "same"}
        yield Arm("same", "as swing, the student at each item's temperature", changes)
        changes = changes | {"strategy.tau_squared": "token"}
        yield Arm("same-squared", "as same, each item weighed by tau squared", changes)
    yield Arm("argmax", "the likeliest class alone", {"release": plain | {"mechanism": "argmax"}})
    clip, draws = release.clip or CLIP, release.draws
    sample = swing | {"mechanism": "sample", "clip": clip, "draws": draws}
    many = "one label" if draws == 1 else f"{draws} labels"
    yield Arm("sample", f"{many} drawn at swing temperature, logits clipped", {"release": sample})
    if _of_text(experiment):
        count = release.candidates or CANDIDATES
        few = {"release": plain | {"candidates": count}}
        yield Arm("top-k", f"{count} public candidates", few)
    multiplier: float = experiment.training.dp.noise_multiplier or NOISE_MULTIPLIER
    private = {"release": plain, "training.dp.noise_multiplier": multiplier}
    yield Arm("dp-sgd", f"teachers by DP-SGD, noise {multiplier:g}", private)


def _sends_logits(experiment: Experiment) -> bool:
    """Whether the method distils logits, at no temperature."""
    from fedkd.distillation.objectives import traits

    options = registry.load("strategies", experiment.strategy.name).Options.model_fields
    if "objective" not in options:
        return False
    name = experiment.strategy.options.get("objective", options["objective"].default)
    return traits(registry.load("objectives", name)).targets == "logits"


def _fedavg(experiment: Experiment, plain: dict[str, Any]) -> Arm:
    """Parameters averaged; training of one round is spread over several, as averaging needs."""
    changes: dict[str, Any] = {"release": plain, "strategy": {"name": "fedavg"}}
    what, epochs = "parameters averaged", experiment.training.local_epochs
    if experiment.rounds == 1:
        changes |= {"rounds": FEDAVG_ROUNDS, "training.local_epochs": epochs / FEDAVG_ROUNDS}
        what += f", in {FEDAVG_ROUNDS} rounds of {epochs / FEDAVG_ROUNDS:g} epochs"
    return Arm("fedavg", what, changes)


def varied(experiment: Experiment, arm: Arm, seed: int) -> Experiment:
    """``experiment`` as ``arm`` has it, under its name."""
    tables = changed(experiment.model_dump(mode="json", exclude_none=True), arm.changes)
    # Arms share their teachers.
    tables["engine"]["remember"] = True
    return Experiment.from_dict(tables | {"name": arm.name, "seed": seed})


def chosen(known: dict[str, Arm], unfit: dict[str, str], names: Sequence[str] | None) -> list[Arm]:
    """The arms called ``names``, all of them if there are none, in their order.

    ``clean-NAME`` is the arm NAME with nothing planted in clients: what its released labels are
    compared with.

    Raises
    ------
    FedkdError
        A name is not known, or the arm does not fit the experiment.
    """
    known = dict(known)
    for name in names or ():
        base = name.removeprefix(TWIN)
        if name not in known and name.startswith(TWIN) and base in known and base != CLEAN:
            arm = known[base]
            changes = arm.changes | {"canary.control": True}
            known[name] = Arm(name, f"{base} with nothing planted in clients", changes)
        if name in unfit:
            raise FedkdError(f"--arms {name!r} does not fit: {unfit[name]}")
        if name not in known:
            raise FedkdError(
                f"--arms {name!r} is not known{nearest(name, list(known))}; known: "
                f"{', '.join(known)}"
            )
    return [arm for name, arm in known.items() if not names or name in names]


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
    from fedkd.privacy import audit, exposure

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
            reduction = exposure.reduction(plain[0], student[0], plain[1], student[1])
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
                utility=exposure.interval([_utility(run) for run in runs]),
                repeats=repeats,
                exposure={
                    place: exposure.interval(*values) for place, values in found[name].items()
                },
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
    from fedkd.privacy.exposure import excess_over

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
    from fedkd.privacy import audit
    from fedkd.privacy.accounting import SEES_ALL

    by_adversary: dict[str, list[Formal]] = {}
    for run in runs:
        for formal in audit.guarantees(run.releases, run.experiment):
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


# --- the command ----------------------------------------------------------------------------


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
    from fedkd.privacy.accounting import NEIGHBOURS, SEES_ALL
    from fedkd.privacy.exposure import NULL_MEAN

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
    notes = (
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
    return f"{said}\n\n{notes}"


def notes(groups: dict[str, list[Run]]) -> Sequence[str]:
    """What the runs of each arm warn of, a line a kind."""
    from fedkd.privacy import audit
    from fedkd.privacy.exposure import NULL_MEAN

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
    from fedkd.privacy.exposure import NULL_MEAN

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
