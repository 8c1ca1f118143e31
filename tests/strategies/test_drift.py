"""Known answers and laws of the methods against clients' drift: FedNTD, MOON, SCAFFOLD, FedDyn."""

from collections import OrderedDict

import pytest
import torch
from lines import measured
from test_personalised import Play, accuracies, distance, same
from torch import nn
from torch.nn import functional as F

from fedkd import FedkdError, check, registry, run
from fedkd.experiment import Experiment
from fedkd.privacy.guarantees import guarantee
from fedkd.training import learners, local_steps
from fedkd.work import Contrast, Fit, Linear, Proximal, Soft

SGD = ("training.optimiser=sgd", "training.lr=0.1")
ONE = (*SGD, "training.local_epochs=1", "training.batch_size=60", "engine.cohort=off")
"""One step on all private samples."""


@pytest.fixture
def play(small):
    return lambda name, *overrides: Play(small(f"strategy.name={name}", *overrides))


def clients_of(done):
    return measured(done)[1]


def gradients(game, client, parameters, loss=None):
    """Of cross-entropy on the client's private samples, at some parameters; ``loss`` adds to it."""
    samples = game.worker.samples(client, "private")
    module = game.worker.module(client, "own").train()
    module.load_state_dict(parameters)
    value = F.cross_entropy(module(samples.inputs), samples.labels)
    if loss is not None:
        value = value + loss(module, samples)
    names = [name for name, _ in module.named_parameters()]
    return dict(zip(names, torch.autograd.grad(value, list(module.parameters())), strict=True))


def close(one, other, atol=1e-6):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=atol, rtol=1e-4)


def clone(parameters):
    return {name: value.clone() for name, value in parameters.items()}


# --- what they all are at a limit ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limit"),
    [("fedntd", "strategy.beta=0"), ("moon", "strategy.mu=0"), ("feddyn", "strategy.alpha=0")],
)
def test_without_its_weight_a_method_is_fedavg_to_the_bit(name, limit, small, tmp_path):
    plain = run(small("strategy.name=fedavg"), tmp_path / "avg")
    assert clients_of(run(small(f"strategy.name={name}", limit), tmp_path / name)) == (
        clients_of(plain)
    )


@pytest.mark.parametrize("name", ["moon", "scaffold"])
def test_a_first_round_is_fedavgs_to_the_bit(name, small, tmp_path):
    """Nobody has a former student, or a control variate."""
    rounds = (*SGD, "rounds=1")
    plain = run(small("strategy.name=fedavg", *rounds), tmp_path / "avg")
    assert clients_of(run(small(f"strategy.name={name}", *rounds), tmp_path / name)) == (
        clients_of(plain)
    )


def test_scaffold_of_one_client_is_fedavg_to_the_bit(small, tmp_path):
    """Its own control variate is the mean."""
    alone = (*SGD, "rounds=3", "data.clients=1")
    plain = run(small("strategy.name=fedavg", *alone), tmp_path / "avg")
    done = run(small("strategy.name=scaffold", *alone), tmp_path / "scaffold")
    assert clients_of(done) == clients_of(plain)
    assert done.summary["bytes_down"] == plain.summary["bytes_down"]


# --- FedNTD -------------------------------------------------------------------------------------


def test_fedntd_is_taught_by_the_student_that_it_was_given(play):
    game = play("fedntd", "strategy.beta=0.5")
    load, fit, _ = game.strategy.learn(1, 0)
    assert fit.terms[1] == Soft("own", "not_true", temperature=3.0, weight=0.5)
    assert load.parameters is game.strategy.parameters


def test_fedntds_first_step_is_that_of_cross_entropy(play):
    """Where the student is its teacher, distillation has no gradient."""
    game = play("fedntd", *ONE, "strategy.beta=10")
    before = clone(game.strategy.parameters)
    game.do(0, game.strategy.learn(1, 0))
    slope = gradients(game, 0, before)
    close(game.student(0), {name: w - 0.1 * slope[name] for name, w in before.items()})


def test_fedntds_pull_holds_what_is_said_of_the_classes_not_true(play):
    def drift(*options):
        game = play("fedntd", *SGD, "training.local_epochs=20", *options)
        before = clone(game.strategy.parameters)
        game.do(0, game.strategy.learn(1, 0))
        after, samples = game.student(0), game.worker.samples(0, "private")
        others = torch.ones(len(samples.labels), 10, dtype=torch.bool)
        others.scatter_(1, samples.labels[:, None], False)
        module, said = game.worker.module(0, "own").eval(), []
        for state in (before, after):
            module.load_state_dict(state)
            with torch.no_grad():
                said.append(module(samples.inputs)[others].view(-1, 9).softmax(1))
        return float((said[0] - said[1]).abs().sum(1).mean())

    assert drift("strategy.beta=20") < 0.5 * drift("strategy.beta=0")


@pytest.mark.parametrize(
    "objective", ["strategy.objective=forward_kl", 'strategy.objective={name="dkd", beta=2.0}']
)
def test_fedntd_may_distil_in_another_way(objective, small, tmp_path):
    quick = ("rounds=1", "strategy.name=fedntd")
    other = run(small(*quick, objective), tmp_path / "other")
    assert clients_of(other) != clients_of(run(small(*quick), tmp_path / "plain"))
    assert Experiment.from_toml(other.experiment.to_toml()) == other.experiment


def test_fedntds_objective_is_checked_before_the_run(small):
    with pytest.raises(FedkdError, match=r"strategy\.objective\.gamma is not a known key"):
        check(small("strategy.name=fedntd", 'strategy.objective={name="dkd", gamma=1}'))


# --- MOON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_moons_former_student_is_what_the_client_last_trained(cohort, play):
    game = play("moon", f"engine.cohort={cohort}")
    game.round(1)
    trained = game.student(2)
    game.round(2, clients=(0, 1))
    game.round(3)
    assert same(game.student(2, "former"), trained)
    assert not same(game.student(2), trained, "head")


def test_a_moon_step_by_hand(play):
    """The student is the positive itself: a cosine of 1 whose gradient is 0."""
    game = play("moon", *ONE, "strategy.mu=3", "strategy.tau=0.2")
    game.round(1)
    former, before = game.student(1), clone(game.strategy.parameters)
    reply = game.do(1, game.strategy.learn(2, 1), 2)

    def contrast(module, samples):
        held = module[:-1](samples.inputs)
        other = game.worker.module(1, "former")
        other.load_state_dict(former)
        with torch.no_grad():
            sides = held.detach(), other[:-1](samples.inputs)
        cosines = torch.stack([F.cosine_similarity(held, side) for side in sides], 1) / 0.2
        return 3 * F.cross_entropy(cosines, torch.zeros(len(held), dtype=torch.long))

    slope = gradients(game, 1, before, contrast)
    expected = {name: w - 0.1 * slope[name] for name, w in before.items()}
    close(reply.values["parameters"], expected)


def test_moon_contrasts_at_the_cut_that_is_asked_for(play):
    game = play("moon", "strategy.cut=fc1")
    game.round(1)
    fit = next(step for step in game.strategy.learn(2, 0) if isinstance(step, Fit))
    assert fit.terms[1] == Contrast("own", "former", "fc1", 0.5, 1.0)
    with pytest.raises(FedkdError, match="cut 'conv9' is not a cut"):
        play("moon", "strategy.cut=conv9")


def test_moon_sends_what_fedavg_sends(small, tmp_path):
    plain, moon = (run(small(f"strategy.name={n}"), tmp_path / n) for n in ("fedavg", "moon"))
    for name in ("bytes_up", "bytes_down"):
        assert moon.summary[name] == plain.summary[name]
    assert accuracies(moon) != accuracies(plain)


# --- SCAFFOLD -----------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["training.optimiser=adam", "training.momentum=0.9"])
def test_scaffold_refuses_steps_that_are_no_gradients(setting, small):
    key, value = setting.split("=")
    with pytest.raises(FedkdError, match=rf"{key} = '?{value}'? is not allowed with .*scaffold"):
        check(small("strategy.name=scaffold", *SGD, setting))


def test_a_scaffold_variate_after_one_step_is_the_gradient_at_the_global_student(play):
    """Option II is then option I, whatever the variates were before; and the step is corrected."""
    game = play("scaffold", *ONE)
    for number in (1, 2, 3):
        before, mean = clone(game.strategy.parameters), dict(game.strategy.mean)
        variates = dict(game.strategy.variates)
        game.round(number, clients=(0, 1, 3) if number == 2 else range(4))
        slope = gradients(game, 1, before)
        close(game.strategy.variates[1], slope, atol=1e-5)
        zero = {name: torch.zeros_like(w) for name, w in before.items()}
        c, own = mean or zero, variates.get(1, zero)
        step = {name: w - 0.1 * (slope[name] + c[name] - own[name]) for name, w in before.items()}
        close(game.student(1), step)
        if number == 2:
            assert game.strategy.variates[2] is variates[2]


def test_scaffolds_mean_is_that_of_all_variates_and_corrections_add_up_to_nothing(play):
    game = play("scaffold", *SGD)
    game.round(1, clients=(0, 2))
    variates = game.strategy.variates
    assert sorted(variates) == [0, 2]
    close(game.strategy.mean, {n: (v + variates[2][n]) / 4 for n, v in variates[0].items()})
    game.round(2)
    sums = {name: torch.zeros_like(value) for name, value in game.strategy.mean.items()}
    for client in range(4):
        _, fit, _ = game.strategy.learn(3, client)
        (_, correction) = fit.terms
        assert isinstance(correction, Linear)
        assert correction.weight == 1
        sums = {name: sums[name] + value for name, value in correction.given.items()}
    close(sums, {name: torch.zeros_like(value) for name, value in sums.items()})


def test_scaffolds_server_goes_its_step_towards_the_plain_mean(play):
    game = play("scaffold", *SGD, "strategy.global_lr=0.5")
    before = clone(game.strategy.parameters)
    sent = [reply.values["parameters"] for reply in game.round(1)]
    for name, w in before.items():
        mean = torch.stack([one[name] for one in sent]).mean(0)
        torch.testing.assert_close(game.strategy.parameters[name], (w + mean) / 2)


def test_scaffold_counts_what_travels(small, tmp_path):
    """The variates' difference beside the parameters, from the second round on; nothing back."""
    done = run(small("strategy.name=scaffold", "rounds=2"), tmp_path / "run")
    first, second = done.rounds
    assert first["bytes_down"] == first["bytes_up"] == second["bytes_up"]
    assert second["bytes_down"] == 2 * first["bytes_down"]


STEPS = [
    (),
    ("training.local_epochs=1.5",),
    ("training.batch_size=59",),  # the last batch would be one sample
    ("training.min_steps=31",),
    ("training.batch_size=1000",),
    ("training.local_epochs=0",),
    ("data.validation_fraction=0.3",),
    ("training.dp.noise_multiplier=1.0",),
]


@pytest.mark.parametrize("overrides", STEPS)
def test_local_steps_are_those_that_the_loop_takes(overrides, small, monkeypatch):
    experiment = small("strategy.name=scaffold", "engine.cohort=off", *overrides)
    taken, descend = [], learners.descend
    counting = lambda *given, **named: (taken.append(1), descend(*given, **named))[1]  # noqa: E731
    monkeypatch.setattr(learners, "descend", counting)
    game = Play(experiment)
    reply = game.do(0, [Fit()])
    assert local_steps(reply.samples, experiment.training) == len(taken)


def test_there_are_no_local_steps_without_samples(small):
    assert local_steps(0, small("training.min_steps=5").training) == 0


def test_a_client_that_takes_no_step_keeps_its_variate(play):
    game = play("scaffold", "training.local_epochs=0")
    game.round(1)
    assert game.strategy.variates == {}
    assert game.strategy.mean == {}


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_what_is_kept_of_clients_is_of_what_learns(name, small, tmp_path, monkeypatch):
    kept = []
    method = registry.load("strategies", name)
    fuse = method.fuse
    monkeypatch.setattr(
        method, "fuse", lambda self, *given: (fuse(self, *given), kept.append(vars(self)))[0]
    )
    run(small(f"strategy.name={name}", *SGD, "training.part=['head']"), tmp_path / "run")
    each = kept[-1]["variates" if name == "scaffold" else "gradients"]
    assert sorted(each) == [0, 1, 2, 3]
    assert {*each[0]} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_statistics_of_batches_are_averaged_as_they_are(name, play):
    game = play(name, *SGD, "student.norm=batch")
    sent = [reply.values["parameters"] for number in (1, 2) for reply in game.round(number)][4:]
    for key, value in game.strategy.parameters.items():
        if "running" in key:
            mean = torch.stack([one[key] for one in sent]).mean(0)
            torch.testing.assert_close(value, mean)


# --- FedDyn -------------------------------------------------------------------------------------


def test_with_alpha_near_0_feddyns_clients_train_as_fedavgs_and_the_server_goes_twice_as_far(play):
    """And not as FedAvg does: h / alpha does not go to 0."""
    dyn, avg = play("feddyn", "strategy.alpha=1e-12", *ONE), play("fedavg", *ONE)
    before = clone(avg.strategy.parameters)
    for one, other in zip(dyn.round(1), avg.round(1), strict=True):
        close(one.values["parameters"], other.values["parameters"])
    for name, mean in avg.strategy.parameters.items():
        expected = 2 * mean - before[name]
        torch.testing.assert_close(dyn.strategy.parameters[name], expected, atol=1e-6, rtol=1e-4)


def test_a_feddyn_step_by_hand(play):
    """From the anchor, the proximal term has no gradient yet: ``w - eta (grad F_n(w) - g_n)``."""
    game = play("feddyn", *ONE, "strategy.alpha=0.5")
    game.round(1)
    before, known = clone(game.strategy.parameters), game.strategy.gradients[1]
    game.do(1, game.strategy.learn(2, 1), 2)
    slope = gradients(game, 1, before)
    expected = {name: w - 0.1 * (slope[name] - known[name]) for name, w in before.items()}
    close(game.student(1), expected)


def test_feddyn_keeps_gradients_and_steps_as_the_paper_has_them(play):
    game = play("feddyn", *SGD, "strategy.alpha=0.5")
    moves = {client: [] for client in range(4)}
    for number, clients in ((1, (0, 1, 2, 3)), (2, (0, 3)), (3, (1, 2, 3))):
        before = clone(game.strategy.parameters)
        replies = game.round(number, clients)
        sent = {reply.client: reply.values["parameters"] for reply in replies}
        for client, after in sent.items():
            moves[client].append({name: after[name] - w for name, w in before.items()})
        steps = {
            name: -sum(move[name] for each in moves.values() for move in each) / 4
            for name in before
        }
        close(game.strategy.steps, steps, atol=1e-5)
        for name in before:
            mean = torch.stack([one[name] for one in sent.values()]).mean(0)
            torch.testing.assert_close(game.strategy.parameters[name], mean - steps[name])
        for client, mine in moves.items():
            gradient = {name: -0.5 * sum(move[name] for move in mine) for name in before}
            close(game.strategy.gradients[client], gradient, atol=1e-5)
    # h = alpha s is the mean of all clients' gradients.
    each = game.strategy.gradients.values()
    mean = {name: sum(one[name] for one in each) / 4 for name in game.strategy.steps}
    close(mean, {name: 0.5 * step for name, step in game.strategy.steps.items()}, atol=1e-5)


def test_feddyn_gives_a_client_its_gradient_once_it_has_one(play):
    game = play("feddyn", "strategy.alpha=0.3")
    game.round(1, clients=(0,))
    (_, known, _), (_, new, _) = (game.strategy.learn(2, client) for client in (0, 1))
    assert new.terms[1:] == (Proximal(0.3),)
    assert known.terms[2].weight == -1
    assert known.terms[2].given is game.strategy.gradients[0]


def test_clients_of_feddyn_come_nearer_to_one_another(small):
    """What the paper promises: where all have the same student, it is near the optimum of each."""
    game = Play(small("strategy.name=feddyn", *SGD, "strategy.alpha=0.3", "data.alpha=0.3"))
    apart = []
    for number in range(1, 9):
        sent = [reply.values["parameters"] for reply in game.round(number)]
        apart.append(sum(distance(one, sent[0]) for one in sent[1:]))
    assert apart[-1] < 0.6 * apart[0]


# --- where an epsilon is claimed ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_who_needs_each_clients_parameters_has_no_noisy_average(name, small):
    with pytest.raises(FedkdError, match=r"strategy\.clipping_norm is not a known key"):
        check(small(f"strategy.name={name}", "strategy.clipping_norm=1"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedntd", "moon", "scaffold", "feddyn"])
def test_under_dp_sgd_every_step_is_charged(name, small, tmp_path):
    noisy = ("training.dp.noise_multiplier=1.0", "training.local_epochs=1", "data.clients=2")
    done = run(small(f"strategy.name={name}", *noisy), tmp_path / "run")
    plain = run(small("strategy.name=fedavg", *noisy), tmp_path / "avg")
    charged = [line["dp_training"] for line in done.releases if line["step"] == "Share"]
    assert charged == [line["dp_training"] for line in plain.releases if line["step"] == "Share"]
    formal = guarantee(done.releases, done.experiment)
    assert formal == guarantee(plain.releases, plain.experiment)
    assert 1 < formal.epsilon < 100


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_layers_that_share_a_weight_go_on_sharing_it(name, small, tmp_path, monkeypatch):
    @registry.register("students", "own")
    def tied(shape, classes, norm, width):
        first, second = nn.Linear(64, 64), nn.Linear(64, 64)
        second.weight = first.weight
        lower = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU())
        return nn.Sequential(OrderedDict(body=lower, head=nn.Linear(64, classes)))

    sent = []
    method = registry.load("strategies", name)
    fuse = method.fuse
    monkeypatch.setattr(
        method,
        "fuse",
        lambda self, *given: (fuse(self, *given), sent.append(self.parameters))[0],
    )
    options = ["strategy.global_lr=0.5"] if name == "scaffold" else []
    run(small(f"strategy.name={name}", *SGD, "student.models=['own']", *options), tmp_path / "run")
    assert torch.equal(sent[-1]["body.1.weight"], sent[-1]["body.3.weight"])
    assert not torch.equal(sent[0]["body.1.weight"], sent[1]["body.1.weight"])
