"""Keys that a person has set and that change nothing, each with the reason in one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from fedkd import registry
from fedkd.errors import shown
from fedkd.experiment import Experiment
from fedkd.options import OnlyWith, Table
from fedkd.sections import StudentTable

if TYPE_CHECKING:
    from fedkd.data.dataset import Task


@dataclass(frozen=True)
class Setting:
    """An experiment, and what its data set is; ``task`` is None where that is not known yet."""

    experiment: Experiment
    task: Task | None = None

    def value(self, key: str) -> Any:
        """The value of a dotted key."""
        found: Any = self.experiment
        for part in key.split("."):
            found = getattr(found, part)
        return found


Reason = Callable[[Setting], str]
"""Why a key has no effect under a setting; empty where it has one."""


def only_with(key: str, *values: Any) -> Reason:
    """A key has an effect only while another one has one of these values."""

    def reason(setting: Setting) -> str:
        value = setting.value(key)
        return "" if value in values else f"{key} = {shown(value)}"

    return reason


def only_by(*partitions: str) -> Reason:
    """A key has an effect only under some of fedkd's own partitions; others may read any key."""

    def reason(setting: Setting) -> str:
        name = setting.experiment.data.partition
        others = name in partitions or not registry.ships(registry.load("partitions", name))
        return "" if others else f"data.partition = {shown(name)}"

    return reason


def not_with(key: str, *values: Any) -> Reason:
    """A key has no effect while another one has one of these values."""

    def reason(setting: Setting) -> str:
        value = setting.value(key)
        return f"{key} = {shown(value)}" if value in values else ""

    return reason


def only_of(kind: str) -> Reason:
    """A key is for a data set of one kind: ``text``, or ``images``."""

    def reason(setting: Setting) -> str:
        task, dataset = setting.task, setting.experiment.data.dataset
        if task is None or _kind(task) == kind:
            return ""
        return f"data.dataset = {dataset!r} is {_kind(task)}"

    return reason


def any_of(*reasons: Reason) -> Reason:
    """The first reason that applies."""
    return lambda setting: next(filter(None, (reason(setting) for reason in reasons)), "")


def _kind(task: Task) -> str:
    if task.tokens:
        return "text"
    return "images" if len(task.shape) == 3 else "feature vectors"


def _beyond_rounds(key: str, instead: str) -> Reason:
    def reason(setting: Setting) -> str:
        every, rounds = setting.value(key), setting.experiment.rounds
        return f"rounds = {rounds}, {instead}" if every > rounds else ""

    return reason


def _no_step(setting: Setting) -> str:
    every, rounds = setting.value("training.schedule_rounds"), setting.experiment.rounds
    return f"rounds = {rounds}, and no step comes" if every >= rounds else ""


def _no_sgd(setting: Setting) -> str:
    """Of momentum: clients that distil with SGD have it, too."""
    own = only_with("training.optimiser", "sgd")(setting)
    return "" if setting.value("distill.optimiser") == "sgd" else own


def _nothing_kept(setting: Setting) -> str:
    """Of an optimiser's state: plain gradient descent has none."""
    named = ("training.optimiser", "distill.optimiser")
    adam = {setting.value(key) for key in named} - {"sgd", None}
    kept = adam or setting.value("training.momentum")
    return "" if kept else "training.optimiser = 'sgd', and without momentum it keeps nothing"


def _nothing_distilled(setting: Setting) -> str:
    """Why no client learns from fused labels on the transfer set."""
    name = setting.experiment.strategy.name
    options = registry.load("strategies", name).read_options(setting.experiment)
    epochs = getattr(options, "distill_epochs", None)
    if epochs is None:
        return f"strategy.name = {shown(name)} does not distil on the transfer set on clients"
    return "" if epochs else f"strategy.distill_epochs = {shown(epochs)}"


def _nothing_on_server(setting: Setting) -> str:
    name = setting.experiment.strategy.name
    there = registry.load("strategies", name).trains_on_server()
    return "" if there else f"strategy.name = {shown(name)} trains nothing on the server"


def _of_server(name: str, *values: str) -> Reason:
    """A key of ``[server]`` has an effect only while another has one of these values there."""

    def reason(setting: Setting) -> str:
        experiment = setting.experiment
        method = registry.load("strategies", experiment.strategy.name)
        value = getattr(experiment.server.over(method.server_training), name)
        if value is None and name == "optimiser":
            value = experiment.training.optimiser
        return "" if value in values else f"server.{name} = {shown(value or 'constant')}"

    return any_of(_nothing_on_server, reason)


def _one_participant(setting: Setting) -> str:
    experiment = setting.experiment
    clients, share = experiment.data.clients, experiment.participation
    if math.ceil(share * clients - 1e-9) > 1:
        return ""
    return "one client takes part in a round, and one at least stays"


def _more_models_than_clients(setting: Setting) -> str:
    models, clients = setting.experiment.student.models, setting.experiment.data.clients
    if len(models) <= clients or setting.experiment.student.choose != "cycle":
        return ""
    return f"data.clients = {clients}, and no client is left for {', '.join(models[clients:])}"


def _nothing_to_choose(setting: Setting) -> str:
    models = list(dict.fromkeys(setting.experiment.student.models))
    return f"student.models = {shown(models)}" if len(models) == 1 else ""


def _no_public_model(setting: Setting) -> str:
    from fedkd.privacy.public import needs_model

    if setting.task is None or needs_model(setting.experiment, setting.task.tokens):
        return ""
    return "nothing in this experiment needs a model of the public corpus"


def _unmixed(setting: Setting) -> str:
    release = setting.experiment.release
    return "" if release.mix_with == "entropy" or release.mix else "release.mix = 0.0"


def _noiseless(setting: Setting) -> str:
    """Why nothing is drawn as soft labels leave."""
    return only_with("release.mechanism", "gaussian", "laplace", "sample", "votes")(setting)


def _no_epsilon(setting: Setting) -> str:
    """Why no epsilon is stated at ``release.delta``: no noise on labels or averages."""
    options = registry.load("strategies", setting.experiment.strategy.name).read_options(
        setting.experiment
    )
    return "" if getattr(options, "noise_multiplier", 0) else _noiseless(setting)


def _nothing_drawn(setting: Setting) -> str:
    """Why there is no privacy noise at all."""
    return "" if setting.experiment.training.dp.noise_multiplier else _no_epsilon(setting)


def _students_alike(key: str) -> Reason:
    """Every student is the same whatever ``student.norm`` or ``student.width`` is."""

    def reason(setting: Setting) -> str:
        from fedkd.students.outline import outline

        table, task = setting.experiment.student, setting.task
        default = StudentTable.model_fields[key].default
        if task is None:
            return ""
        for name in sorted({*table.models}):
            plain = table.model_copy(update={key: default})
            made = outline(name, table, task)
            if not made or made != outline(name, plain, task):
                return ""
        return f"student.models = {shown(list(table.models))} are the same without it"

    return reason


PLANTED = not_with("canary.secrets", 0)
PRIVATE = not_with("training.dp.noise_multiplier", 0.0)

EFFECTS: dict[str, Reason] = {
    "dropout": _one_participant,
    "target_accuracy": not_with("data.test.fraction", 0.0),
    "data.alpha": only_by("dirichlet", "dirichlet-by-class", "quantity-skew"),
    "data.sizes": only_by("dirichlet"),
    "data.classes_per_client": only_by("pathological"),
    "data.shards_per_client": only_by("shards"),
    "data.augment": only_of("images"),
    "data.test.own": not_with("data.test.fraction", 0.0),
    "data.transfer.source": not_with("data.transfer.size", 0),
    "data.transfer.labels": not_with("data.transfer.size", 0),
    "data.text.tokens": only_of("text"),
    "data.text.vocabulary": only_of("text"),
    "data.text.context": only_of("text"),
    "student.models": _more_models_than_clients,
    "student.choose": _nothing_to_choose,
    "student.teacher": any_of(only_with("student.choose", "similarity"), _nothing_to_choose),
    "student.norm": _students_alike("norm"),
    "student.width": _students_alike("width"),
    "training.schedule_rounds": any_of(only_with("training.schedule", "step"), _no_step),
    "training.schedule_factor": only_with("training.schedule", "step"),
    "training.momentum": _no_sgd,
    "training.keep_optimiser": _nothing_kept,
    "training.class_variety_epochs": not_with("training.class_variety", 0.0),
    "distill.optimiser": not_with("data.transfer.size", 0),
    "distill.lr": not_with("data.transfer.size", 0),
    "distill.batch_size": not_with("data.transfer.size", 0),
    "distill.rows": any_of(not_with("data.transfer.size", 0), not_with("distill.share", 1.0)),
    "distill.share": not_with("distill.rows", "all"),
    "distill.mistakes": only_with("distill.rows", "robust"),
    "distill.smoothing": only_with("distill.rows", "domains"),
    "distill.augmentation": not_with("data.transfer.size", 0),
    "distill.mixed": not_with("distill.augmentation", "none"),
    "distill.beta": not_with("distill.augmentation", "none"),
    "distill.copies": not_with("distill.augmentation", "none"),
    "distill.pick": only_with("distill.rows", "pick"),
    "distill.targets": _nothing_distilled,
    "distill.least_confidence": _nothing_distilled,
    "distill.most_confidence": _nothing_distilled,
    "server.optimiser": _nothing_on_server,
    "server.lr": _nothing_on_server,
    "server.momentum": _of_server("optimiser", "sgd"),
    "server.weight_decay": _nothing_on_server,
    "server.batch_size": _nothing_on_server,
    "server.keep_optimiser": _nothing_on_server,
    "server.schedule": _nothing_on_server,
    "server.schedule_rounds": _of_server("schedule", "step", "plateau"),
    "server.schedule_factor": _of_server("schedule", "step", "plateau"),
    "training.dp.max_grad_norm": PRIVATE,
    "training.dp.delta": PRIVATE,
    "release.curve": not_with("release.tau_max", None),
    "release.scores": not_with("release.tau_max", None),
    "release.mix_with": _unmixed,
    "release.draws": only_with("release.mechanism", "sample"),
    "release.cache": any_of(_noiseless, not_with("release.secure", True)),
    "release.secure": _nothing_drawn,
    "release.delta": _no_epsilon,
    "public.model": _no_public_model,
    "public.epochs": _no_public_model,
    "public.lr": _no_public_model,
    "canary.repeats": PLANTED,
    "canary.kind": PLANTED,
    "canary.template": any_of(PLANTED, only_of("text")),
    "canary.symbols": any_of(PLANTED, only_of("text")),
    "canary.length": any_of(PLANTED, only_of("images")),
    "canary.clients": PLANTED,
    "canary.spread": PLANTED,
    "canary.public": PLANTED,
    "canary.public_share": any_of(PLANTED, only_with("canary.public", "prefix")),
    "canary.control": PLANTED,
    "canary.estimator": PLANTED,
    "canary.references": any_of(PLANTED, not_with("canary.estimator", "exact")),
    "canary.every": any_of(
        PLANTED, _beyond_rounds("canary.every", "and the last is measured in any case")
    ),
}
"""Keys that can be without effect, and when; on numbers or on what is written of them."""

MACHINERY: dict[str, Reason] = {
    "evaluate_every": _beyond_rounds("evaluate_every", "and the last is measured in any case"),
    "checkpoint_every": any_of(
        not_with("engine.name", "flower"),
        _beyond_rounds("checkpoint_every", "and a run that has ended keeps no checkpoint"),
    ),
    "engine.workers": not_with("engine.name", "inline"),
    "engine.gpus_per_worker": only_with("engine.name", "ray", "flower"),
    "engine.cpus_per_worker": only_with("engine.name", "ray"),
    "engine.address": only_with("engine.name", "ray"),
    "engine.timeout": not_with("engine.name", "inline", "flower"),
}
"""The same of keys that no number depends on."""

ALWAYS = {
    *("name", "seed", "rounds", "participation", "on_empty_round"),
    *("data.statistics", "training.part"),
    *("data.dataset", "data.data_dir", "data.download", "data.clients", "data.partition"),
    *("data.samples_per_client", "data.min_samples", "data.validation_fraction"),
    "student.representation",
    "data.server_validation",
    *("data.test.fraction", "data.test.common", "data.transfer.size", "student.init"),
    *("training.optimiser", "training.lr", "training.weight_decay", "training.batch_size"),
    *("training.local_epochs", "training.min_steps", "training.dp.noise_multiplier"),
    *("training.schedule", "training.warmup_rounds"),
    *("training.class_variety", "training.align_weights", "measure.loyalty"),
    *("strategy.name", "release.temperature", "release.tau_max", "release.clip"),
    *("release.candidates", "release.mix", "release.mechanism", "release.scale", "canary.secrets"),
    "release.trust",
    *("engine.name", "engine.device", "engine.failures", "engine.remember", "engine.threads"),
    *("engine.cohort", "engine.precision"),
}
"""Keys that have an effect wherever they are allowed, or whose effect only a run can tell."""


def without_effect(experiment: Experiment, task: Task | None = None) -> list[str]:
    """What was set in ``experiment`` and changes no number, a line each.

    A key that has its default was not set. Of the options of a strategy those are judged that have
    the mark :class:`OnlyWith`.

    Parameters
    ----------
    task
        What the data set is; without it, keys for text or images alone are not judged.
    """
    return [*_lines(Setting(experiment, task), EFFECTS), *_options(experiment)]


def machinery_without_effect(experiment: Experiment) -> list[str]:
    """The same of keys that say where and how often things are done; no number depends on them."""
    return list(_lines(Setting(experiment), MACHINERY))


def _lines(setting: Setting, effects: dict[str, Reason]) -> Iterator[str]:
    for key, value in keys(setting.experiment):
        if key in effects and (reason := effects[key](setting)):
            yield f"{key} = {_toml(value)} has no effect: {reason}"


def keys(table: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all that differs from its default."""
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if isinstance(value, BaseModel):
            yield from keys(value, f"{prefix}{name}.")
        elif value != field.default:
            yield f"{prefix}{name}", value


def _options(experiment: Experiment) -> Iterator[str]:
    method = registry.load("strategies", experiment.strategy.name)
    options: Table = method.read_options(experiment)
    for name, value in keys(options):
        for mark in type(options).model_fields[name].metadata:
            if isinstance(mark, OnlyWith):
                other = getattr(options, mark.option)
                if not mark.acts(other):
                    reason = f"strategy.{mark.option} = {shown(other)}"
                    yield f"strategy.{name} = {_toml(value)} has no effect: {reason}"


def _toml(value: Any) -> str:
    return shown(list(value) if isinstance(value, tuple) else value)
