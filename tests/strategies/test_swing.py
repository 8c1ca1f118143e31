"""Known answers of swing-style distillation: what the student inherits, and what it undoes."""

import math

import pytest
import texts
import torch
from lines import measured

from fedkd import Experiment, FedkdError, check, run
from fedkd.data.dataset import Task
from fedkd.distillation.targets import entropy
from fedkd.engine.inline import InlineGrid
from fedkd.engine.worker import Worker
from fedkd.privacy.public import Public
from fedkd.privacy.release import temperatures
from fedkd.registry import load as find
from fedkd.registry import register
from fedkd.strategies.base import Replies
from fedkd.training import fit, predict
from fedkd.work import Reply, Samples

SWING = "strategy.name=swing"
ITEMS, CLASSES = 6, 4
SCORES = torch.linspace(0, 1, ITEMS)
BASE, TAU_MAX = 2.0, 10.0
HEATED = [f"release.tau_max={TAU_MAX}", "release.scores=constant"]


# --- a student that can say anything of every item ------------------------------------------


@pytest.fixture
def table():
    """A student with a row of logits of its own for each item, all 0 at first."""

    @register("students", "table")
    def make(shape, classes, norm, width):
        """A row of logits for each input."""
        head = torch.nn.Linear(shape[0], classes, bias=False)
        torch.nn.init.zeros_(head.weight)
        return torch.nn.Sequential(torch.nn.Flatten(), head)


@pytest.fixture
def learnt(table):
    """What the student says of every item after it has learned from released teachers."""

    def learn(teachers, *overrides, epochs=400, lr=0.1, optimiser="adam"):
        experiment = Experiment.from_toml(
            "",
            [
                *(SWING, "student.models=['table']", "training.batch_size=64", *HEATED),
                *(f"strategy.server_epochs={epochs}", f"training.optimiser={optimiser}"),
                *(f"server.lr={lr}", f"strategy.tau={BASE}", *overrides),
            ],
        )
        inputs = torch.eye(ITEMS)
        public = Public(Samples(inputs), scores=SCORES)
        strategy = find("strategies", "swing")(
            experiment,
            Task((ITEMS,), CLASSES, tuple("abcd")),
            torch.zeros(len(teachers), CLASSES),
            inputs,
            public=public,
        )
        labels = [(z / items_tau()[:, None]).softmax(1) for z in teachers]
        strategy.fuse(1, Replies([Reply(n, 1, {"soft_labels": p}) for n, p in enumerate(labels)]))
        return centred(strategy.server.predict("student", inputs))

    return learn


def items_tau():
    return BASE + (TAU_MAX - BASE) * SCORES


def centred(logits):
    return logits - logits.mean(1, keepdim=True)


@pytest.fixture
def teacher():
    return centred(torch.randn(ITEMS, CLASSES, generator=torch.Generator().manual_seed(0)))


def test_a_student_at_the_same_temperatures_ends_at_the_teachers_logits(teacher, learnt):
    found = learnt([teacher], "strategy.student_temperature=same")
    assert (found - teacher).abs().max() < 0.02


def test_a_student_at_the_base_temperature_inherits_the_flattened_law(teacher, learnt):
    found = learnt([teacher])
    # softmax(z_S / tau) = softmax(z_T / tau_t): damped by tau / tau_t.
    assert (found - teacher * (BASE / items_tau())[:, None]).abs().max() < 0.02
    assert (found - teacher)[0].abs().max() < 0.02
    assert found[-1].norm() < 0.25 * teacher[-1].norm()
    # The order of classes is kept: heat alone hides no likeliest class.
    assert torch.equal(found.argsort(1), teacher.argsort(1))


@pytest.mark.parametrize("weighed", ["base", "token"])
@pytest.mark.parametrize("at", ["base", "same"])
def test_weights_do_not_move_where_a_student_ends_that_can_say_anything(
    weighed, at, teacher, learnt
):
    how = f"strategy.student_temperature={at}"
    plain = learnt([teacher], how)
    found = learnt([teacher], how, f"strategy.tau_squared={weighed}")
    assert (found - plain).abs().max() < 0.02


def test_the_student_learns_from_the_mean_of_teachers(teacher, learnt):
    other = centred(teacher.flip(1) * 2)
    found = (learnt([teacher, other]) / BASE).softmax(1)
    tau = items_tau()[:, None]
    mean = ((teacher / tau).softmax(1) + (other / tau).softmax(1)) / 2
    assert (found - mean).abs().max() < 0.005


ONE_STEP = {"epochs": 1, "optimiser": "sgd", "lr": 1.0}


@pytest.mark.parametrize(
    ("at", "weighed", "power"),
    [
        ("same", "none", -2),
        ("same", "token", 0),
        ("base", "none", -1),
        ("base", "token", 1),
    ],
)
def test_how_far_a_step_goes_with_the_temperature_of_an_item(at, weighed, power, teacher, learnt):
    """Small logits, so that a softmax is linear: a step is ``z / (C tau tau_S) * weight``."""
    found = learnt(
        [teacher / 100],
        f"strategy.student_temperature={at}",
        f"strategy.tau_squared={weighed}",
        **ONE_STEP,
    )
    steps = (found * teacher).sum(1) / teacher.square().sum(1)
    heat = (items_tau() / BASE) ** power
    assert (steps / steps[0]).tolist() == pytest.approx(heat.tolist(), rel=0.01)


def test_the_squared_base_temperature_is_one_factor_for_all(teacher, learnt):
    plain = learnt([teacher], **ONE_STEP)
    assert torch.allclose(
        learnt([teacher], "strategy.tau_squared=base", **ONE_STEP), BASE**2 * plain, atol=1e-6
    )
    lower = learnt([teacher], "release.temperature=1", "strategy.tau_squared=base", **ONE_STEP)
    at_one = learnt([teacher], "release.temperature=1", **ONE_STEP)
    assert torch.allclose(lower, at_one, atol=1e-6)  # the squared temperature of the release


def test_a_temperature_of_the_policy_is_the_students_too(teacher, learnt):
    """softmax(z_S / 1) = softmax(z_T / tau_t)."""
    found = learnt([teacher], "release.temperature=1")
    assert (found - teacher / items_tau()[:, None]).abs().max() < 0.02


def test_without_a_policy_it_is_distillation_at_one_temperature(small, tmp_path):
    """What is released and what the student divides by is tau, for every item."""
    experiment = small(SWING, "engine.cohort=off", "strategy.tau=3")
    worker = Worker(experiment)
    items = temperatures(experiment.release, worker.public.scores, 3.0)
    assert items.eq(3).all()
    plain = measured(run(experiment, tmp_path / "plain"))
    said = run(
        small(SWING, "engine.cohort=off", "strategy.tau=3", "release.temperature=3"),
        tmp_path / "said",
    )
    assert measured(said) == plain
    same = run(
        small(SWING, "engine.cohort=off", "strategy.tau=3", "strategy.student_temperature=same"),
        tmp_path / "s",
    )
    # A temperature an item sums in another order, if at all.
    assert same.rounds[-1]["own_loss_mean"] == pytest.approx(plain[0][-1]["own_loss_mean"], 1e-4)


# --- a run ----------------------------------------------------------------------------------


@pytest.fixture
def done(small):
    """A function that runs an experiment and gives its strategy and worker."""

    def make(experiment):
        worker = Worker(experiment)
        data = worker.data
        strategy = find("strategies", "swing")(
            experiment, data.task, data.label_counts(), data.transfer().inputs, public=worker.public
        )
        strategy.start(InlineGrid(worker))
        return strategy, worker

    return make


@pytest.mark.slow
def test_one_teacher_is_approached_by_a_student_that_learns_long(small, done):
    overrides = ["data.clients=1", "strategy.tau=1", "rounds=1", "training.local_epochs=20"]
    apart = []
    for epochs in (0, 5, 200):
        strategy, worker = done(small(SWING, *overrides, f"strategy.server_epochs={epochs}"))
        inputs = worker.data.transfer().inputs
        taught = predict(worker.module(0, "own"), inputs).softmax(1)
        learnt = strategy.server.predict("student", inputs).softmax(1)
        apart.append(float((taught - learnt).abs().sum(1).mean() / 2))
    assert apart[0] > 0.5
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 0.02


def test_everybody_is_tested_with_the_student_and_keeps_its_teacher(small, done):
    strategy, worker = done(small(SWING))
    student = strategy.server.parameters("student")
    for client in range(4):
        own = worker.state(client)["own"]
        assert not torch.equal(own["head.weight"], student["head.weight"])
    losses = {client: found["common_loss"] for client, found in strategy._latest.items()}
    assert len(losses) == 4
    assert len({*losses.values()}) == 1


def test_labels_go_up_and_nothing_comes_down(small, tmp_path):
    line = run(small(SWING), tmp_path / "run").rounds[0]
    assert line["bytes_up"] == 4 * 80 * 10 * 4  # clients, samples, classes, bytes of a float32
    assert line["bytes_down"] == 0


def test_the_student_goes_on_from_round_to_round(small, tmp_path):
    done = run(small(SWING, "rounds=4", "training.local_epochs=0"), tmp_path / "run")
    losses = [line["strategy"]["student_loss"] for line in done.rounds]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "choices"),
    [
        (
            [*HEATED, "release.temperature=3"],
            [
                "strategy.student_temperature=same",
                "strategy.tau_squared=base",
                "strategy.tau_squared=token",
                "strategy.server_epochs=2",
                "server.lr=0.01",
                "release.tau_max=30",
                "release.scores=rarity",
            ],
        ),
        ([], ["strategy.tau=5", "release.mix=0.1", "release.clip=1", "release.mechanism=argmax"]),
    ],
)
def test_every_option_changes_the_numbers(base, choices, each_changes_the_numbers):
    each_changes_the_numbers([SWING, *base], choices)


@pytest.mark.slow
def test_heat_makes_labels_flat_and_the_base_student_with_them(small, done):
    flat = []
    for overrides in ([], HEATED, [*HEATED, "strategy.student_temperature=same"]):
        strategy, worker = done(
            small(
                *(SWING, "data.clients=1", "strategy.tau=1", "strategy.server_epochs=100"),
                *("rounds=1", "training.local_epochs=20", *overrides),
            )
        )
        said = strategy.server.predict("student", worker.data.transfer().inputs).softmax(1)
        flat.append((entropy(strategy.fused).mean(), entropy(said).mean()))
    (cold_labels, cold), (hot_labels, base), (same_labels, same) = flat
    assert hot_labels == same_labels > cold_labels + 0.5
    assert base == pytest.approx(float(hot_labels), abs=0.1)
    assert same < base - 0.5
    assert same == pytest.approx(float(cold), abs=0.3)


# --- text -----------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    return lambda *overrides: texts.small(tmp_path / "texts", SWING, *overrides)


@pytest.mark.parametrize(
    "table",
    [
        [],
        ["release.tau_max=20", "strategy.student_temperature=same", "strategy.tau_squared=token"],
        ["release.tau_max=20", "release.curve=geometric", "release.candidates=4"],
        ["release.mechanism=argmax"],
    ],
    ids=str,
)
def test_it_works_on_text(table, text, tmp_path):
    done = run(text(*table, "rounds=2"), tmp_path / "run")
    for line in done.rounds:
        assert line["left_out"] == []
        assert 1 < line["own_perplexity_mean"] < 60
        assert math.isfinite(line["strategy"]["student_loss"])


def test_a_student_of_clean_text_alone_learns_nothing_of_teachers(text, tmp_path):
    noise = ["release.mechanism=gaussian", "release.scale=0.3"]
    one, other, both = (
        run(text(f"strategy.clean_weight={weight}", *table), tmp_path / f"{weight}{len(table)}")
        for weight, table in ((1, []), (1, noise), (0.5, noise))
    )
    assert other.rounds[0]["own_loss_mean"] == one.rounds[0]["own_loss_mean"]
    assert both.rounds[0]["own_loss_mean"] != one.rounds[0]["own_loss_mean"]


def test_the_students_own_text_holds_no_canary(text, done, monkeypatch):
    """Lines in the transfer set that hold canaries teach by soft labels alone."""
    drawn = []

    def watching(student, samples, terms, *given, sources, **how):
        drawn.append((samples, sources["public"]()))
        return fit(student, samples, terms, *given, sources=sources, **how)

    monkeypatch.setattr("fedkd.server.fit", watching)
    planted = ["canary.secrets=2", "canary.repeats=[4]", "canary.public=exact"]
    _, worker = done(text(*planted, "strategy.clean_weight=0.5"))
    ((transfer, clean),) = drawn
    digits = torch.tensor([word.isdigit() for word in worker.data.task.class_names])
    assert int(digits[transfer.inputs].sum()) == 2 * worker.data.canaries.count
    assert transfer.labels is None
    assert not digits[clean.inputs].any()
    assert torch.equal(clean.labels, worker.data.public().labels)


def test_a_student_may_begin_as_the_public_model(text, done):
    quiet = ["student.init=public", "strategy.server_epochs=0"]
    strategy, worker = done(text(*quiet, "strategy.student_init=public"))
    public = worker.public.model.state_dict()
    student = strategy.server.parameters("student")
    assert all(torch.equal(student[name], public[name]) for name in public)
    strategy, _ = done(text(*quiet))
    fresh = strategy.server.parameters("student")
    assert not torch.equal(fresh["head.bias"], public["head.bias"])


# --- refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("strategy.beta=1", r"strategy\.beta is not a known key"),
        ("strategy.tau=0", r"strategy\.tau = 0 is not allowed"),
        ("strategy.student_temperature=own", r"student_temperature = 'own' is not allowed"),
        ("strategy.tau_squared=item", r"strategy\.tau_squared = 'item' is not allowed"),
        ("strategy.clean_weight=1.5", r"strategy\.clean_weight = 1\.5 is not allowed"),
        ("strategy.server_epochs=-1", r"strategy\.server_epochs = -1 is not allowed"),
        ("server.lr=0", r"server\.lr = 0 is not allowed"),
        ("strategy.student_init=same", r"strategy\.student_init = 'same' is not allowed"),
        ("strategy.student_init=public", r"'public' needs student\.init = 'public'"),
        ("student.models=['cnn2','mlp']", r"student\.models = \['cnn2', 'mlp'\] is not allowed"),
        ("data.transfer.size=0", r"data\.transfer\.size = 0 is not allowed"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(overrides, line, small):
    with pytest.raises(FedkdError, match=line) as error:
        check(small(SWING, overrides))
    assert "\n" not in str(error.value)


def test_images_have_no_text_of_their_own(small, tmp_path):
    with pytest.raises(FedkdError, match="the transfer set never has") as error:
        run(small(SWING, "strategy.clean_weight=0.5"), tmp_path / "run")
    assert "\n" not in str(error.value)
