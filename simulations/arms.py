"""The arms of ``fedkd canary``: one experiment under many releases.

An arm is the given experiment with some tables changed. The experiment's own ``[release]`` is one
arm; the others take it apart, or put something else in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd import registry
from fedkd.errors import FedkdError, nearest
from fedkd.experiment import Experiment, changed
from fedkd.run import check

PLAIN, CLEAN, OWN = "fkd", "clean", "own"
TWIN = f"{CLEAN}-"
"""Before the name of an arm: the same with nothing planted in clients."""
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
    from fedkd.distillation.objectives import made, traits

    options = registry.load("strategies", experiment.strategy.name).Options.model_fields
    if "objective" not in options:
        return False
    chosen = experiment.strategy.options.get("objective", options["objective"].default)
    return traits(made(chosen)).targets == "logits"


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
