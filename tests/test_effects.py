"""Keys without effect are said, once, and only where they have none."""

import pytest
import torch
from lines import measured
from texts import experiment as text_experiment
from torch import nn

from fedkd import Observer, registry, run
from fedkd.data.dataset import Task
from fedkd.data.federated import load
from fedkd.effects import ALWAYS, EFFECTS, MACHINERY, machinery_without_effect, without_effect
from fedkd.experiment import Experiment
from fedkd.labels import flat
from fedkd.simulations.arms import arms, varied
from fedkd.simulations.shipped import read_experiment, shipped
from fedkd.simulations.suite import read, suites

IMAGES = Task((1, 8, 8), 10, tuple("0123456789"))
FEATURES = Task((6,), 4, tuple("abcd"))
TEXT = Task((32,), 40, tuple(map(str, range(40))), tokens=True)

IDLE = {
    "training.momentum=0.9": "training.momentum = 0.9 has no effect: training.optimiser = 'adam'",
    "training.schedule=step training.schedule_rounds=4 rounds=4": (
        "training.schedule_rounds = 4 has no effect: rounds = 4, and no step comes"
    ),
    "distill.lr=0.1 data.transfer.size=0 strategy.name=fedavg": (
        "distill.lr = 0.1 has no effect: data.transfer.size = 0"
    ),
    "distill.share=0.1": "distill.share = 0.1 has no effect: distill.rows = 'all'",
    "distill.rows=random distill.share=1.0": (
        "distill.rows = 'random' has no effect: distill.share = 1.0"
    ),
    "distill.rows=random distill.mistakes=0.2": "distill.mistakes = 0.2 has no effect",
    "distill.rows=robust distill.smoothing=0.2": "distill.smoothing = 0.2 has no effect",
    "distill.rows=random distill.pick=teacher_entropy": "distill.pick = 'teacher_entropy' has no",
    "distill.augmentation=mixup data.transfer.size=0 strategy.name=fedavg": (
        "distill.augmentation = 'mixup' has no effect: data.transfer.size = 0"
    ),
    "distill.mixed=0.5": "distill.mixed = 0.5 has no effect: distill.augmentation = 'none'",
    "distill.beta=0.5": "distill.beta = 0.5 has no effect: distill.augmentation = 'none'",
    "distill.copies=2": "distill.copies = 2 has no effect: distill.augmentation = 'none'",
    "data.alpha=0.1 data.partition=iid": ("data.alpha = 0.1 has no effect: data.partition = 'iid'"),
    "data.sizes=natural data.partition=quantity-skew": (
        "data.sizes = 'natural' has no effect: data.partition = 'quantity-skew'"
    ),
    "data.classes_per_client=3": (
        "data.classes_per_client = 3 has no effect: data.partition = 'dirichlet'"
    ),
    "data.shards_per_client=3": (
        "data.shards_per_client = 3 has no effect: data.partition = 'dirichlet'"
    ),
    "data.text.tokens=char": "data.text.tokens = 'char' has no effect: data.dataset = 'digits' is",
    "data.text.vocabulary=99": "data.text.vocabulary = 99 has no effect",
    "data.text.context=9": "data.text.context = 9 has no effect",
    "data.test.own=matched data.test.fraction=0": (
        "data.test.own = 'matched' has no effect: data.test.fraction = 0.0"
    ),
    "target_accuracy=0.9 data.test.fraction=0": (
        "target_accuracy = 0.9 has no effect: data.test.fraction = 0.0"
    ),
    "strategy.name=local data.transfer.source=mnist data.transfer.size=0": (
        "data.transfer.source = 'mnist' has no effect: data.transfer.size = 0"
    ),
    "student.models=['mlp','cnn2','cnn3'] data.clients=2": (
        "student.models = ['mlp', 'cnn2', 'cnn3'] has no effect: data.clients = 2, and no client "
        "is left for cnn3"
    ),
    "dropout=0.5 participation=0.05": (
        "dropout = 0.5 has no effect: one client takes part in a round, and one at least stays"
    ),
    "training.dp.max_grad_norm=9": (
        "training.dp.max_grad_norm = 9.0 has no effect: training.dp.noise_multiplier = 0.0"
    ),
    "training.dp.delta=1e-3": "training.dp.delta = 0.001 has no effect",
    "release.curve=geometric": "release.curve = 'geometric' has no effect: release.tau_max = None",
    "release.scores=constant": "release.scores = 'constant' has no effect",
    "release.mix_with=public": "release.mix_with = 'public' has no effect: release.mix = 0.0",
    "release.draws=3": "release.draws = 3 has no effect: release.mechanism = 'none'",
    "release.cache=false release.mechanism=argmax": (
        "release.cache = false has no effect: release.mechanism = 'argmax'"
    ),
    "release.delta=1e-3": "release.delta = 0.001 has no effect: release.mechanism = 'none'",
    "public.epochs=9": (
        "public.epochs = 9.0 has no effect: nothing in this experiment needs a model of the public"
    ),
    "public.model=mlp": "public.model = 'mlp' has no effect",
    "public.lr=0.1": "public.lr = 0.1 has no effect",
    "canary.repeats=16": "canary.repeats = [16] has no effect: canary.secrets = 0",
    "canary.template='_ _'": "canary.template = '_ _' has no effect: canary.secrets = 0",
    "canary.template='_ _' canary.secrets=1": "has no effect: data.dataset = 'digits' is images",
    "canary.kind=pixels": "canary.kind = 'pixels' has no effect: canary.secrets = 0",
    "canary.symbols=['0']": "canary.symbols = ['0'] has no effect",
    "canary.length=3": "canary.length = 3 has no effect",
    "canary.clients=1": "canary.clients = [1] has no effect",
    "canary.spread=2": "canary.spread = 2 has no effect",
    "canary.public=exact": "canary.public = 'exact' has no effect",
    "canary.public_share=0.5 canary.secrets=1": (
        "canary.public_share = 0.5 has no effect: canary.public = 'none'"
    ),
    "canary.control=true": "canary.control = true has no effect",
    "canary.estimator=extrapolation": "canary.estimator = 'extrapolation' has no effect",
    "canary.references=1000 canary.secrets=1": (
        "canary.references = 1000 has no effect: canary.estimator = 'exact'"
    ),
    "canary.every=99 canary.secrets=1": (
        "canary.every = 99 has no effect: rounds = 10, and the last is measured in any case"
    ),
    "strategy.top_k=2": "strategy.top_k = 2 has no effect: strategy.neighbours = 'soft'",
    "strategy.name=fedmd strategy.tau=2": (
        "strategy.tau = 2.0 has no effect: strategy.objective = 'mse_logits'"
    ),
    "strategy.name=fedntd strategy.objective=mse_logits strategy.tau=2": (
        "strategy.tau = 2.0 has no effect: strategy.objective = 'mse_logits'"
    ),
    "strategy.name=fedd2s strategy.hidden=9": (
        "strategy.hidden = 9 has no effect: strategy.head = 'same'"
    ),
}
MACHINES = {
    "evaluate_every=99": "evaluate_every = 99 has no effect: rounds = 10, and the last is measured",
    "checkpoint_every=99": "checkpoint_every = 99 has no effect: rounds = 10, and a run that has",
    "checkpoint_every=2 engine.name=flower": (
        "checkpoint_every = 2 has no effect: engine.name = 'flower'"
    ),
    "engine.workers=3 engine.name=inline": (
        "engine.workers = 3 has no effect: engine.name = 'inline'"
    ),
    "engine.gpus_per_worker=0.5": (
        "engine.gpus_per_worker = 0.5 has no effect: engine.name = 'auto'"
    ),
    "engine.cpus_per_worker=2 engine.name=procs": (
        "engine.cpus_per_worker = 2.0 has no effect: engine.name = 'procs'"
    ),
    "engine.address=auto": "engine.address = 'auto' has no effect: engine.name = 'auto'",
    "engine.timeout=9 engine.name=flower": (
        "engine.timeout = 9.0 has no effect: engine.name = 'flower'"
    ),
}


def read_toml(words):
    return Experiment.from_toml("", words.split() if "'_ _'" not in words else split(words))


def split(words):
    """Words with a template among them, which has spaces."""
    first, *rest = words.split("'_ _' ")
    return [first.strip() if first.endswith("'") else f"{first}'_ _'", *rest]


@pytest.mark.parametrize("words", IDLE)
def test_a_key_without_effect_is_one_line_with_the_reason(words):
    (line,) = without_effect(read_toml(words), IMAGES)
    assert IDLE[words] in line
    assert machinery_without_effect(read_toml(words)) == []


@pytest.mark.parametrize("words", MACHINES)
def test_a_key_of_the_machinery_without_effect_is_told_apart(words):
    (line,) = machinery_without_effect(read_toml(words))
    assert MACHINES[words] in line
    assert without_effect(read_toml(words), IMAGES) == []


@pytest.mark.parametrize(
    ("words", "task"),
    [
        ("training.momentum=0.9 training.optimiser=sgd", IMAGES),
        ("training.momentum=0.9 distill.optimiser=sgd", IMAGES),
        ("training.schedule=step training.schedule_rounds=2 rounds=3", IMAGES),
        ("training.momentum=0.0", IMAGES),
        ("distill.rows=robust distill.share=0.2 distill.mistakes=0.3", IMAGES),
        ("distill.rows=domains distill.smoothing=0.3", IMAGES),
        ("distill.augmentation=mixup distill.mixed=0.2 distill.beta=2 distill.copies=2", IMAGES),
        ("data.alpha=0.1", IMAGES),
        ("data.alpha=0.1 data.partition=quantity-skew", IMAGES),
        ("data.alpha=0.5 data.partition=iid", IMAGES),  # the default was not set
        ("data.augment=true", IMAGES),
        ("data.text.context=9 data.text.vocabulary=99", TEXT),
        ("canary.secrets=1 canary.length=3 canary.repeats=16 canary.spread=2", IMAGES),
        ("release.tau_max=9 release.curve=geometric release.scores=constant", IMAGES),
        ("release.mix=0.1 release.mix_with=uniform", IMAGES),
        ("release.mix_with=entropy release.tau_max=9", IMAGES),
        ("release.mechanism=sample release.draws=3 release.cache=false release.delta=1e-3", IMAGES),
        ("training.dp.noise_multiplier=1 training.dp.max_grad_norm=9", IMAGES),
        ("student.norm=group student.width=0.5", IMAGES),
        ("student.models=['mlp','cnn2'] data.clients=2", IMAGES),
        ("student.models=lstm student.init=public public.epochs=9", TEXT),
        ("student.models=lstm release.candidates=3 public.lr=0.1", TEXT),
        ("strategy.neighbours=top_k strategy.top_k=2", IMAGES),
        ("strategy.name=fedmd strategy.objective=forward_kl strategy.tau=2", IMAGES),
        ("strategy.name=fedntd strategy.tau=2", IMAGES),
        ("strategy.name=fedntd strategy.objective={name='dkd',beta=2.0} strategy.tau=2", IMAGES),
        ("evaluate_every=10 engine.timeout=9 engine.workers=3", IMAGES),
    ],
)
def test_keys_that_have_an_effect_are_silent(words, task):
    experiment = Experiment.from_toml("", words.split())
    assert without_effect(experiment, task) == []
    assert machinery_without_effect(experiment) == []


def test_augmentation_of_features_and_keys_of_images_for_text_have_none():
    (line,) = without_effect(read_toml("data.augment=true"), FEATURES)
    assert line.endswith("data.dataset = 'digits' is feature vectors")
    words = "student.models=lstm canary.secrets=1 canary.length=3"
    (line,) = without_effect(read_toml(words), TEXT)
    assert line.startswith("canary.length = 3 has no effect: data.dataset = 'digits' is text")


def test_a_width_that_a_student_does_not_heed_is_said(monkeypatch):
    def fixed(shape, classes, norm, width):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    def unfit(shape, classes, norm, width):
        raise ValueError("not on this device")

    registry.register("students", "fixed")(fixed)
    registry.register("students", "unfit")(unfit)
    lines = without_effect(read_toml("student.models=fixed student.width=2"), IMAGES)
    assert lines == [
        "student.width = 2.0 has no effect: student.models = ['fixed'] are the same without it"
    ]
    (line,) = without_effect(read_toml("student.models=fixed student.norm=group"), IMAGES)
    assert line.startswith("student.norm = 'group' has no effect")
    for mixed in ("['fixed','mlp']", "['unfit']", "['fixed','unfit']"):
        assert without_effect(read_toml(f"student.models={mixed} student.width=2"), IMAGES) == []


def test_judging_draws_nothing():
    before = torch.random.get_rng_state()
    without_effect(read_toml("student.norm=group student.width=0.5"), IMAGES)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_key_is_judged_or_always_has_an_effect():
    tables = Experiment().model_dump()
    known = {key for key in flat(tables) if not key.startswith("strategy.")} | {"strategy.name"}
    assert {*EFFECTS, *MACHINERY, *ALWAYS} == known
    assert len(EFFECTS) + len(MACHINERY) + len(ALWAYS) == len(known)


# --- runs ---------------------------------------------------------------------------------------


class Listening(Observer):
    def __init__(self):
        self.messages = []

    def warned(self, message):
        self.messages.append(message)


def test_what_is_said_to_have_no_effect_changes_no_number(small, tmp_path):
    idle = [
        *("training.momentum=0.9", "data.alpha=0.1", "data.sizes=natural"),
        *("data.classes_per_client=3", "data.shards_per_client=3", "data.text.context=9"),
        *("training.dp.max_grad_norm=9", "release.curve=geometric", "release.draws=3"),
        *("release.cache=false", "release.delta=1e-3", "release.scores=constant"),
        *("public.epochs=9", "public.model=lstm", "canary.repeats=2", "canary.length=3"),
        *("canary.public=exact", "strategy.top_k=2", "strategy.threshold=0.5"),
    ]
    machinery = ["evaluate_every=1", "engine.workers=3", "engine.address=auto"]
    always = ["data.partition=iid", "engine.name=inline", "engine.cohort=off"]
    plain = run(small(*always), tmp_path / "plain")
    listening = Listening()
    experiment = small(*always, *idle, *machinery)
    idly = run(experiment, tmp_path / "idle", observer=listening)
    assert measured(idly) == measured(plain)
    said = without_effect(experiment, load(experiment).task)
    assert len(said) == len(idle)
    assert idly.warnings == said
    assert listening.messages == [*machinery_without_effect(experiment), *said]
    assert len(listening.messages) == len(said) + 2
    assert plain.warnings == []


def test_of_text_the_keys_of_its_tables_have_an_effect(tmp_path):
    experiment = text_experiment(tmp_path, "release.cache=false", "release.delta=1e-3")
    assert without_effect(experiment, load(experiment).task) == []


@pytest.mark.parametrize("name", shipped())
def test_experiments_that_come_with_fedkd_set_nothing_in_vain(name):
    experiment = read_experiment(name)
    assert in_vain(experiment) == []
    if experiment.canary.secrets:
        known, _ = arms(experiment)
        for arm in known.values():
            assert in_vain(varied(experiment, arm, 0)) == [], arm.name


@pytest.mark.parametrize("scale", ["quick", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", suites())
def test_suites_that_come_with_fedkd_set_nothing_in_vain(name, scale):
    cells = {
        cell.experiment.model_copy(update={"seed": 0}): cell for cell in read(name, scale).cells
    }
    for experiment, cell in cells.items():
        assert in_vain(experiment) == [], cell.title


def in_vain(experiment):
    task = TEXT if experiment.data.dataset in ("pydoc", "shakespeare") else IMAGES
    return [*without_effect(experiment, task), *machinery_without_effect(experiment)]
