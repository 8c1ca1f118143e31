"""Known answers and laws of the methods with personal students, and of FedDF and KT-pFL."""

import copy
import re

import pytest
import torch
from lines import Killed, KilledAfter, measured
from torch.nn import functional as F

from fedkd import FedkdError, check, run, students
from fedkd.data.federated import load
from fedkd.distillation.targets import mix
from fedkd.engine.worker import Worker
from fedkd.random import generator
from fedkd.registry import load as find
from fedkd.strategies.base import Replies
from fedkd.strategies.fedavg import average
from fedkd.strategies.ktpfl import descend, objective, official, onto_simplex
from fedkd.work import Assignment, Fit, Load, Predict, Reply, Samples, Share, Soft

ALL = ["fedavg-ft", "fedper", "fedrep", "ditto", "fml", "fedkd-svd", "feddf", "ktpfl"]


class Play:
    """A strategy and its clients, moved by hand."""

    def __init__(self, experiment):
        self.data = load(experiment)
        self.worker = Worker(experiment, self.data)
        self.strategy = find("strategies", experiment.strategy.name)(
            experiment, self.data.task, self.data.label_counts(), self.data.transfer().inputs
        )

    def do(self, client, steps, round=1):
        return self.worker.perform(Assignment(client, round, "learn", tuple(steps)))

    def round(self, round=1, clients=range(4)):
        replies = [self.do(n, self.strategy.learn(round, n), round) for n in clients]
        self.strategy.fuse(round, Replies(replies))
        return replies

    def student(self, client, name="own"):
        """A copy of what the client keeps."""
        kept = self.worker.state(client)[self.worker.key(client, name)]
        return {name: value.clone() for name, value in kept.items()}


@pytest.fixture
def play(small):
    return lambda name, *overrides: Play(small(f"strategy.name={name}", *overrides))


def accuracies(done):
    """A run's client lines, without what only one method has."""
    own = re.compile("round|client|stage|(own|common)_(accuracy|loss|ece)")
    return [{k: v for k, v in line.items() if own.fullmatch(k)} for line in measured(done)[1]]


def fused(done):
    """The last accuracies of each client: methods without deploy steps are tested once a round."""
    last = {}
    for line in accuracies(done):
        stage = line.pop("stage")
        if stage == "fused" or (line["round"], line["client"]) not in last:
            last[line["round"], line["client"]] = line
    return last


def same(a, b, block=""):
    names = [name for name in a if name.startswith(block)]
    assert names
    return all(torch.equal(a[name], b[name]) for name in names)


def distance(a, b):
    return float(sum((a[name] - b[name]).square().sum() for name in a) ** 0.5)


# --- FedAvg with fine-tuning ----------------------------------------------------------------


def test_fedavg_ft_without_epochs_is_fedavg_to_the_bit(small, tmp_path):
    tuned = run(small("strategy.name=fedavg-ft", "strategy.finetune_epochs=0"), tmp_path / "ft")
    plain = run(small("strategy.name=fedavg"), tmp_path / "avg")
    assert accuracies(tuned) == accuracies(plain)


def test_fine_tuning_is_for_the_test_alone(small, tmp_path):
    """The rounds go on as FedAvg's do, whatever was tested."""
    tuned = run(small("strategy.name=fedavg-ft"), tmp_path / "ft")
    plain = run(small("strategy.name=fedavg"), tmp_path / "avg")
    for a, b in zip(tuned.rounds, plain.rounds, strict=True):
        assert a["local"] == b["local"]
        assert a["own_loss_mean"] < b["own_loss_mean"]
        assert (a["bytes_up"], a["bytes_down"]) == (b["bytes_up"], b["bytes_down"])


# --- FedPer and FedRep ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_the_personal_head_never_leaves_the_client(name, play):
    game = play(name)
    for reply in game.round():
        assert {part.split(".")[0] for part in reply.values["parameters"]} == {"fc1", "fc2"}
    for client in range(4):
        game.do(client, game.strategy.deploy(1, client))
    first, second = game.student(0), game.student(1)
    assert same(first, second, "fc")
    assert not same(first, second, "head")


def test_fedper_shares_all_but_the_last_blocks(play):
    (reply, *_) = play("fedper", "strategy.personal_blocks=2").round()
    assert list(reply.values["parameters"]) == ["fc1.1.weight", "fc1.1.bias"]


def test_fedper_shares_one_block_at_least(play):
    with pytest.raises(FedkdError, match=r"strategy\.personal_blocks = 3 is not allowed.*fc1, fc2"):
        play("fedper", "strategy.personal_blocks=3")


@pytest.mark.parametrize("name", ["fedper", "ditto", "fml"])
def test_one_client_alone_trains_locally(name, small, tmp_path):
    """There is nobody to learn from: FedPer, Ditto without pull, FML with hard labels alone."""
    options = {"fedper": [], "ditto": ["strategy.lam=0"], "fml": ["strategy.alpha=1"]}[name]
    alone = ["data.clients=1", "student.init=same"]
    done = run(small(f"strategy.name={name}", *alone, *options), tmp_path / name)
    local = run(small("strategy.name=local", *alone), tmp_path / "local")
    assert fused(done) == fused(local)


def test_fedrep_trains_the_head_on_a_fixed_body_and_then_the_body_below_it(play):
    game = play("fedrep")
    take, head, body, _ = game.strategy.learn(1, 0)
    assert (head.epochs, body.epochs) == (10, 1)
    game.do(0, [take])
    before = game.student(0)
    game.do(0, [head])
    between = game.student(0)
    assert same(before, between, "fc")
    assert not same(before, between, "head")
    game.do(0, [body])
    after = game.student(0)
    assert same(between, after, "head")
    assert not same(between, after, "fc")


def test_fedrep_without_body_epochs_keeps_the_first_body(play):
    game = play("fedrep", "strategy.body_epochs=0")
    before = dict(game.strategy.parameters)
    game.round()
    assert distance(before, game.strategy.parameters) < 1e-5


# --- Ditto ----------------------------------------------------------------------------------


def test_ditto_without_pull_is_local_training_to_the_bit(small, tmp_path):
    ditto = ["strategy.name=ditto", "strategy.lam=0", "student.init=same"]
    local = run(small("strategy.name=local", "student.init=same"), tmp_path / "local")
    assert fused(run(small(*ditto), tmp_path / "ditto")) == fused(local)


def test_ditto_with_a_strong_pull_stays_with_the_global_student(play):
    apart = []
    for lam in (0, 1, 10):
        sgd = ["training.optimiser=sgd", "training.lr=0.1", "training.local_epochs=10"]
        game = play("ditto", f"strategy.lam={lam}", *sgd)
        received = game.strategy.parameters
        game.round()
        apart.append(distance(game.student(0), received))
    # At lam * lr = 1 every step sets out from the global student again.
    assert apart[0] > 1.5 * apart[1] > 4 * apart[2]


def test_ditto_sends_the_global_student_and_keeps_the_personal_one(play):
    game = play("ditto")
    replies = game.round()
    for client, reply in enumerate(replies):
        assert same(reply.values["parameters"], game.student(client, "global"))
        assert not same(reply.values["parameters"], game.student(client))


def test_ditto_starts_a_personal_student_once_and_tests_newcomers_with_the_global_one(play):
    game = play("ditto")
    assert isinstance(game.strategy.learn(1, 0)[0], Load)
    game.round(clients=[0, 1])
    assert game.strategy.deploy(1, 0) == []
    (step,) = game.strategy.deploy(1, 2)
    assert same(step.parameters, game.strategy.parameters)
    assert isinstance(game.strategy.learn(2, 0)[0], Fit)
    assert isinstance(game.strategy.learn(2, 2)[0], Load)


# --- FML ------------------------------------------------------------------------------------


def test_fml_with_hard_labels_alone_is_local_training_to_the_bit(small, tmp_path):
    done = run(small("strategy.name=fml", "strategy.alpha=1", "strategy.beta=1"), tmp_path / "fml")
    assert fused(done) == fused(run(small("strategy.name=local"), tmp_path / "local"))


def test_fml_averages_the_memes_and_keeps_private_students(play):
    game = play("fml", "strategy.shared_model=cnn2", "student.models=['mlp', 'cnn3']")
    (first, *_) = game.round()
    assert set(first.values["parameters"]) == set(game.strategy.average)
    assert {name.split(".")[0] for name in game.strategy.average} == {
        "conv1",
        "conv2",
        "fc1",
        "head",
    }
    assert not same(game.student(0), game.student(2))


def test_fml_clients_begin_with_the_meme_that_the_server_has(play):
    game = play("fml", "strategy.shared_model=cnn2")
    game.do(0, game.strategy.learn(1, 0)[:1])
    assert same(game.student(0, "meme"), game.strategy.average)


def test_fml_students_without_labels_draw_near_each_other(play):
    soft = ("strategy.alpha=0", "strategy.beta=0", "training.local_epochs=10")
    game = play("fml", *soft, "student.init=own")
    steps = game.strategy.learn(1, 0)

    def disagreement(*steps):
        said = [Predict("private", key=name, student=name) for name in ("own", "meme")]
        own, meme = game.do(0, [*steps, *said]).values.values()
        return (own - meme).abs().mean()

    assert disagreement(*steps[:2]) > 3 * disagreement(steps[2])


@pytest.mark.parametrize("shared", ["", "cnn2"])
def test_fml_is_what_a_loop_of_ones_own_does(shared, play):
    """Both look at a batch, then both learn from it: equations 4 and 5 of the paper."""
    game = play("fml", "strategy.alpha=0.3", "strategy.beta=0.6", f"strategy.shared_model={shared}")
    training, data = game.worker.experiment.training, game.worker.samples(0, "private")
    game.do(0, game.strategy.learn(1, 0)[:2])
    pair = [copy.deepcopy(game.worker.module(0, name)) for name in ("own", "meme")]
    game.do(0, game.strategy.learn(1, 0))
    optimisers = [torch.optim.Adam(student.parameters(), lr=training.lr) for student in pair]
    draw = generator(0, "fit", 0, 1, "learn private 0")
    for _ in range(int(training.local_epochs)):
        for batch in torch.randperm(len(data.labels), generator=draw).split(training.batch_size):
            own, meme = (student.train()(data.inputs[batch]) for student in pair)
            losses = [
                weight * F.cross_entropy(mine, data.labels[batch])
                + (1 - weight)
                * F.kl_div(mine.log_softmax(1), its.detach().softmax(1), reduction="batchmean")
                for weight, mine, its in ((0.3, own, meme), (0.6, meme, own))
            ]
            for optimiser, loss in zip(optimisers, losses, strict=True):
                optimiser.zero_grad()
                loss.backward()
            for optimiser in optimisers:
                optimiser.step()
    for student, name in zip(pair, ("own", "meme"), strict=True):
        assert distance(student.state_dict(), game.student(0, name)) < 1e-4


def test_fml_with_hard_labels_alone_is_fedavg_of_memes_to_the_bit(play):
    hard = ("strategy.alpha=1", "strategy.beta=1")
    memes, plain = play("fml", *hard), play("fedavg")
    for round in (1, 2):
        memes.round(round)
        plain.round(round)
    assert same(memes.strategy.average, plain.strategy.parameters)


def test_fml_needs_one_architecture_for_memes(small):
    mixed = ["strategy.name=fml", "student.models=['cnn2', 'mlp']"]
    with pytest.raises(FedkdError, match=r"strategy\.shared_model = '' is not allowed"):
        check(small(*mixed))
    with pytest.raises(FedkdError, match=r"strategy\.shared_model = 'mlpp' is not known"):
        check(small(*mixed, "strategy.shared_model=mlpp"))
    check(small(*mixed, "strategy.shared_model=mlp"))


def test_fedkd_refuses_dp_sgd_before_a_run_begins(small):
    with pytest.raises(FedkdError, match=r"training\.dp\.noise_multiplier = 1 is not allowed with"):
        check(small("strategy.name=fedkd-svd", "training.dp.noise_multiplier=1"))


# --- FedKD ----------------------------------------------------------------------------------


def test_fedkd_mentors_and_mentee_teach_each_other_and_mentees_alone_are_averaged(play):
    whole = ("strategy.energy_start=1", "strategy.energy_end=1", "strategy.shared_model=mlp")
    game = play("fedkd-svd", *whole, "student.models=['cnn2', 'mlp']")
    before = dict(game.strategy.average)
    replies = game.round()
    assert {"train_loss", "mentee_loss"} < replies[0].metrics.keys()
    mean = sum(reply.samples * reply.values["parameters"]["head.bias"] for reply in replies)
    assert torch.allclose(game.strategy.average["head.bias"], mean / 240, atol=1e-6)
    assert not same(before, game.strategy.average)
    assert not same(game.student(1), game.student(3))


def test_fedkd_sends_the_energy_of_its_first_round_and_of_its_last(play):
    game = play("fedkd-svd", "strategy.energy_start=0.5", "strategy.energy_end=0.9", "rounds=5")
    shares = [game.strategy.learn(round, 0)[-1] for round in range(1, 6)]
    assert [share.encoding.energy for share in shares] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert all(share.student == "mentee" for share in shares)


# --- FedDF ----------------------------------------------------------------------------------


def test_feddf_without_server_epochs_is_fedavg_to_the_bit(small, tmp_path):
    feddf = run(small("strategy.name=feddf", "strategy.server_epochs=0"), tmp_path / "df")
    fedavg = run(small("strategy.name=fedavg"), tmp_path / "avg")
    assert measured(feddf) == measured(fedavg)


def test_the_ensemble_is_the_mean_of_the_logits(play):
    game = play("feddf")
    replies = [game.do(n, game.strategy.learn(1, n)) for n in range(3)]
    logits = []
    for reply in replies:
        task = game.data.task
        student = students.build("mlp", task.shape, task.classes, game.worker.experiment.student, 0)
        student.load_state_dict(reply.values["parameters"])
        logits.append(student.eval()(game.strategy.transfer).detach())
    ensemble = game.strategy.ensemble(Replies(replies))
    assert torch.allclose(ensemble, torch.stack(logits).mean(0), atol=1e-6)


def test_feddf_brings_the_average_near_the_ensemble(play):
    apart = []
    for epochs in (0, 20):
        game = play("feddf", f"strategy.server_epochs={epochs}")
        replies = Replies(game.do(n, game.strategy.learn(1, n)) for n in range(4))
        ensemble = game.strategy.ensemble(replies).softmax(1)
        game.strategy.fuse(1, replies)
        given = game.strategy.server.predict("global", game.strategy.transfer).softmax(1)
        apart.append(float((ensemble * (ensemble / given).log()).sum(1).mean()))
    assert apart[1] < apart[0] / 2


def test_feddf_distils_with_adam_also_where_clients_use_sgd(play):
    """With SGD at a rate that suits Adam, the server would hardly move, and FedDF be FedAvg."""
    sgd = ["training.optimiser=sgd", "training.lr=0.05", "training.momentum=0.5"]
    game = play("feddf", *sgd, "strategy.server_epochs=20")
    strategy = game.strategy
    replies = Replies(game.do(n, strategy.learn(1, n)) for n in range(4))
    ensemble = strategy.ensemble(replies).softmax(1)
    averaged = average(replies.parameters(), replies.samples)
    strategy.fuse(1, replies)

    def apart(parameters):
        strategy.server.load("global", parameters)
        given = strategy.server.predict("global", strategy.transfer).softmax(1)
        return float((ensemble * (ensemble / given).log()).sum(1).mean())

    assert apart(strategy.parameters["mlp"]) < apart(averaged) / 2


def test_with_one_architecture_and_options_off_feddf_is_algorithm_1_to_the_bit(play):
    one, other = play("feddf"), play("feddf")
    for round in (1, 2):
        sent = Replies(one.do(n, one.strategy.learn(round, n)) for n in range(4))
        one.strategy.fuse(round, sent)
        server, inputs = other.strategy.server, other.strategy.transfer
        total = torch.zeros(1, 10)
        for parameters in sent.parameters():
            server.load("global", parameters)
            total = total + server.predict("global", inputs)
        server.load("global", average(sent.parameters(), sent.samples))
        terms = [Soft((total / 4).softmax(1))]
        server.fit("global", round, Samples(inputs), terms, 5.0)
        assert same(one.strategy.parameters["mlp"], server.parameters("global"))


STOPPING = ("strategy.early_stopping=true", "data.server_validation=40")


def test_with_early_stopping_a_distillation_that_harms_is_fedavg_to_the_bit(small, tmp_path):
    ruin = ("server.lr=1000", "strategy.check_every=1", "measure.loyalty=0")
    feddf = run(small("strategy.name=feddf", *STOPPING, *ruin), tmp_path / "df")
    fedavg = run(small("strategy.name=fedavg", STOPPING[1]), tmp_path / "avg")
    assert measured(feddf) == measured(fedavg)


def test_early_stopping_keeps_what_validates_best(small, tmp_path):
    long = ("strategy.server_epochs=30", "strategy.check_every=1")
    stopped = run(small("strategy.name=feddf", *STOPPING, *long), tmp_path / "stopped")
    keys = ("strategy.name=feddf", STOPPING[1], long[0])
    to_the_end = run(small(*keys), tmp_path / "whole")
    assert measured(stopped) != measured(to_the_end)


def test_early_stopping_without_validation_samples_is_refused(small):
    line = "early_stopping = true is not allowed with data.server_validation = 0: the server has no"
    with pytest.raises(FedkdError, match=line):
        check(small("strategy.name=feddf", "strategy.early_stopping=true"))


def of_two_architectures(play, *overrides):
    """A game of cnn2 for clients 0 and 2 and mlp for 1 and 3, and the replies of some of them."""
    models = ("student.models=['cnn2', 'mlp']", "student.width=0.1")
    game = play("feddf", *models, *overrides)

    def replies(*clients):
        return Replies(game.do(n, game.strategy.learn(1, n)) for n in clients)

    return game, replies


def test_each_architecture_has_an_average_of_its_own_clients(play):
    game, replies = of_two_architectures(play, "strategy.server_epochs=0")
    sent = replies(0, 1, 2, 3)
    game.strategy.fuse(1, sent)
    for model, clients in {"cnn2": (0, 2), "mlp": (1, 3)}.items():
        own = Replies(reply for reply in sent.replies if reply.client in clients)
        mean = average(own.parameters(), own.samples)
        assert same(game.strategy.parameters[model], mean)
        for client in clients:
            for step in (game.strategy.learn(2, client)[0], *game.strategy.deploy(2, client)):
                assert isinstance(step, Load)
                assert same(step.parameters, mean)


def test_each_architecture_learns_from_the_ensemble_of_all_clients(play):
    apart = []
    for epochs in (0, 30):
        game, replies = of_two_architectures(play, f"strategy.server_epochs={epochs}")
        sent = replies(0, 1, 2, 3)
        logits = []
        for reply in sent.replies:
            model = game.worker.experiment.architecture(reply.client)
            student = game.strategy.initial_student(model)
            student.load_state_dict(reply.values["parameters"])
            logits.append(student.eval()(game.strategy.transfer).detach())
        ensemble = game.strategy.ensemble(sent).softmax(1)
        assert torch.allclose(ensemble, torch.stack(logits).mean(0).softmax(1), atol=1e-6)
        game.strategy.fuse(1, sent)
        given = [game.strategy.server.predict(p, game.strategy.transfer) for p in PLACES]
        apart.append([kl(ensemble, each.softmax(1)) for each in given])
    assert apart[1][0] < apart[0][0] / 2
    assert apart[1][1] < apart[0][1] / 2


PLACES = ("global", "global mlp")


def kl(targets, given):
    return float((targets * (targets / given).log()).sum(1).mean())


def test_an_architecture_that_nobody_trained_goes_on_from_where_it_was(play):
    game, replies = of_two_architectures(play, "strategy.server_epochs=0")
    before = game.strategy.parameters["mlp"]
    game.strategy.fuse(1, replies(0, 2))
    assert same(game.strategy.parameters["mlp"], before)
    game, replies = of_two_architectures(play)
    game.strategy.fuse(1, replies(0, 2))
    assert not same(game.strategy.parameters["mlp"], before)


def test_two_architectures_run_and_are_scored_by_their_own(small, tmp_path):
    models = ("student.models=['cnn2', 'mlp']", "student.width=0.1")
    done = run(small("strategy.name=feddf", *models), tmp_path / "run")
    assert all(line["left_out"] == [] for line in done.rounds)
    found = {line["own_accuracy"] for line in done.clients if line["stage"] == "fused"}
    common = [
        line["common_loss"]
        for line in done.clients
        if line["round"] == 2 and line["stage"] == "fused"
    ]
    assert len(found) > 1
    assert common[0] == common[2] != common[1] == common[3]


# --- KT-pFL ---------------------------------------------------------------------------------


@pytest.fixture
def labels():
    """Soft labels (5, 40, 6) of clients with beliefs of their own; 0 and 1 are much alike."""
    draw = torch.Generator().manual_seed(0)
    beliefs = 2 * torch.randn(5, 1, 6, generator=draw)
    beliefs[1] = beliefs[0] + 0.1
    return (torch.randn(5, 40, 6, generator=draw) + beliefs).softmax(-1)


UNIFORM = torch.full((5, 5), 1 / 5, dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.1, 0.2, 0.2, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("option", ["strategy.coefficient_steps=0", "strategy.rho=1e12"])
def test_ktpfl_held_at_uniform_coefficients_is_uniform_fusion_to_the_bit(option, small, tmp_path):
    ktpfl = run(small("strategy.name=ktpfl", option), tmp_path / "ktpfl")
    uniform = run(small("strategy.name=uniform"), tmp_path / "uniform")
    assert measured(ktpfl)[1] == measured(uniform)[1]
    weights = torch.tensor(ktpfl.rounds[-1]["strategy"]["weights"])
    assert torch.allclose(weights, torch.full((4, 4), 0.25))


@pytest.mark.parametrize("rho", [0.0, 0.7, 100.0])
def test_the_coefficients_descend_and_stay_on_the_simplex(rho, labels):
    values, now = [objective(UNIFORM, labels, SHARES, rho)], UNIFORM
    for _ in range(5):
        now = descend(now, labels, SHARES, rho, 0.05, 2)
        values.append(objective(now, labels, SHARES, rho))
        assert torch.allclose(now.sum(1), torch.ones(5, dtype=torch.float64))
        assert (now >= 0).all()
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_the_slope_of_the_coefficients_is_that_of_the_objective(labels):
    """One small step goes where finite differences point, less what leaves the simplex."""
    lr, rho = 1e-6, 0.7
    start = torch.rand(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = start / start.sum(1, keepdim=True)
    slope = torch.zeros_like(start)
    for index in range(25):
        nudge = torch.zeros(25, dtype=torch.float64)
        nudge[index] = 1e-6
        up, down = (objective(start + s * nudge.view(5, 5), labels, SHARES, rho) for s in (1, -1))
        slope.view(-1)[index] = (up - down) / 2e-6
    step = (start - descend(start, labels, SHARES, rho, lr, 1)) / lr
    assert torch.allclose(step, slope - slope.mean(1, keepdim=True), atol=1e-3)


def test_permuting_clients_permutes_the_coefficients(labels):
    order = torch.tensor([3, 0, 4, 1, 2])
    plain = descend(UNIFORM, labels, SHARES, 0.7, 0.05, 10)
    permuted = descend(UNIFORM, labels[order], SHARES[order], 0.7, 0.05, 10)
    assert torch.allclose(permuted, plain[order][:, order])
    plain, permuted = official(UNIFORM, labels, 0.7), official(UNIFORM, labels[order], 0.7)
    assert torch.allclose(permuted, plain[order][:, order])


def test_clients_that_are_alike_weigh_more_with_each_other(labels):
    found = descend(UNIFORM, labels, SHARES, 0.7, 0.05, 50)
    assert (found[0, 1] > found[0, 2:]).all()
    assert (found[1, 0] > found[1, 2:]).all()


def test_without_penalty_a_client_ends_with_itself(labels):
    assert (descend(UNIFORM, labels, SHARES, 0.0, 0.05, 3000).diagonal() > 0.99).all()


def test_equal_clients_keep_uniform_coefficients(labels):
    same = labels[:1].expand(5, -1, -1)
    assert torch.allclose(descend(UNIFORM, same, SHARES, 0.0, 0.05, 20), UNIFORM, atol=1e-12)
    assert torch.allclose(official(UNIFORM, same, 0.7), UNIFORM, atol=1e-12)


def test_the_official_rule_is_that_of_the_authors_code(labels):
    """Row by row and by automatic differentiation, as that code goes about it."""
    rho, start = 0.7, torch.rand(5, 5, generator=torch.Generator().manual_seed(1)).double()
    start = start / start.sum(1, keepdim=True)
    expected = []
    for row, own in zip(start, labels.double(), strict=True):
        moving = row.clone().requires_grad_()
        mixed = torch.einsum("m,mxc->xc", moving, labels.double())
        (F.mse_loss(own, mixed) + rho * (moving - 0.2).square().mean()).backward()
        mean, rate = float(moving.grad.abs().mean()), 1.0
        for _ in range(5):
            if mean > 0.01:
                mean, rate = mean / 5, rate / 5
            if mean < 0.01:
                mean, rate = mean * 5, rate * 5
        expected.append((5 * (row - rate * moving.grad)).softmax(0))
    assert torch.allclose(official(start, labels, rho), torch.stack(expected))


def test_ktpfl_mixes_before_it_learns_coefficients_and_the_authors_code_after(play, labels):
    for rule, mixed_by in [("paper", UNIFORM), ("official", official(UNIFORM, labels, 0.7))]:
        strategy = play("ktpfl", "data.clients=5", f"strategy.coefficients={rule}").strategy
        strategy.fuse(1, Replies(Reply(n, 10, {"soft_labels": labels[n]}) for n in range(5)))
        assert torch.equal(strategy.fused[2], mix(mixed_by, labels)[2])
        assert not torch.equal(strategy.coefficients, UNIFORM)


def test_the_simplex_projection_has_known_answers():
    rows = torch.tensor([[0.2, 0.8], [2.0, 0.0], [0.5, -0.1], [1.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.8, 0.2], [0.5, 0.5]], dtype=torch.float64)
    assert torch.allclose(onto_simplex(rows), expected)


def test_only_the_coefficients_of_those_present_move(play, labels):
    game = play("ktpfl", "data.clients=5")
    strategy = game.strategy
    present = [0, 2, 3]
    strategy.fuse(1, Replies(Reply(n, 10, {"soft_labels": labels[n]}) for n in present))
    moved = strategy.coefficients != UNIFORM
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[torch.tensor(present)[:, None], torch.tensor(present)] = True
    assert torch.equal(moved, expected)
    assert torch.allclose(strategy.coefficients.sum(1), torch.ones(5, dtype=torch.float64))
    assert torch.equal(strategy.fused[2], mix(strategy.weights, labels[present])[1])


# --- all of them ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("fedavg-ft", "strategy.finetune_epochs=2"),
        ("fedper", "strategy.personal_blocks=2"),
        ("fedrep", "strategy.personal_blocks=2"),
        ("fedrep", "strategy.head_epochs=2"),
        ("fedrep", "strategy.body_epochs=2"),
        ("ditto", "strategy.lam=0.1"),
        ("ditto", "strategy.personal_epochs=2"),
        ("fml", "strategy.alpha=0.2"),
        ("fml", "strategy.beta=0.2"),
        ("fml", "strategy.shared_model=cnn2"),
        ("fedkd-svd", "strategy.shared_model=cnn2"),
        ("fedkd-svd", "strategy.energy_start=0.5"),
        ("feddf", "strategy.server_epochs=1"),
        ("feddf", "server.lr=0.01"),
        ("feddf", "server.batch_size=16"),
        ("feddf", "strategy.annealing=true"),
        ("ktpfl", "strategy.rho=5"),
        ("ktpfl", "strategy.coefficient_lr=0.5"),
        ("ktpfl", "strategy.coefficient_steps=30"),
        ("ktpfl", "strategy.coefficients=official"),
        ("ktpfl", "strategy.tau=3"),
        ("ktpfl", "strategy.distill_epochs=2"),
    ],
)
def test_every_option_changes_the_numbers(name, option, small, tmp_path):
    few = [f"strategy.name={name}", "data.clients=2", "training.local_epochs=1"]
    plain, chosen = (
        run(small(*few, *more), tmp_path / str(len(more))).rounds[-1] for more in ([], [option])
    )
    assert plain["own_loss_mean"] != chosen["own_loss_mean"]


@pytest.mark.parametrize("cohort", ["on", "off"])
@pytest.mark.parametrize(
    ("name", "option", "stays"),
    [
        ("fedrep", "strategy.body_epochs=0", "fc"),
        ("fedrep", "strategy.head_epochs=0", "head"),
        ("ditto", "strategy.personal_epochs=0", ""),
    ],
)
def test_no_epochs_are_none_also_where_min_steps_asks_for_some(play, name, option, stays, cohort):
    game = play(name, option, "training.min_steps=7", f"engine.cohort={cohort}")
    steps = game.strategy.learn(1, 0)
    given = [step for step in steps if isinstance(step, Load) and step.student == "own"]
    before = game.do(0, [*given, Share(key="all")]).values["all"]
    game.do(0, steps)
    after = game.do(0, [Share(key="all")]).values["all"]
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert same == {key for key in before if key.startswith(stays)}


@pytest.mark.parametrize("name", ALL)
def test_a_client_that_is_left_out_harms_nobody(name, small, tmp_path, monkeypatch):
    perform = Worker.perform

    def diverge(self, assignment):
        reply = perform(self, assignment)
        if (assignment.client, assignment.phase) == (2, "learn"):
            for value in reply.values.values():
                for array in value.values() if isinstance(value, dict) else [value]:
                    array.fill_(torch.nan)
        return reply

    monkeypatch.setattr(Worker, "perform", diverge)
    done = run(small(f"strategy.name={name}", "engine.cohort=off"), tmp_path / "run")
    for line in done.rounds:
        assert [entry["client"] for entry in line["left_out"]] == [2]
        assert line["participants"] == [0, 1, 3]
    assert done.rounds[-1]["own_loss_mean"] < 10


@pytest.mark.parametrize("name", ["fml", "fedkd-svd", "ktpfl"])
def test_students_may_differ_where_parameters_of_the_own_are_not_averaged(name, small, tmp_path):
    meme = ["strategy.shared_model=mlp"] if name in ("fml", "fedkd-svd") else []
    mixed = ["student.models=['cnn2', 'mlp']", "rounds=1", "data.clients=2"]
    done = run(small(f"strategy.name={name}", *mixed, *meme), tmp_path / "run")
    assert done.rounds[-1]["left_out"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ditto", "fml", "feddf", "ktpfl"])
def test_a_resumed_run_ends_with_the_numbers_it_would_have_had(name, small, tmp_path):
    model = ["strategy.shared_model=cnn2"] if name == "fml" else []
    some = ["rounds=3", "checkpoint_every=1", "participation=0.5", *model]
    experiment = small(f"strategy.name={name}", *some)
    whole = measured(run(experiment, tmp_path / "whole"))
    with pytest.raises(Killed):
        run(experiment, tmp_path / "killed", observer=KilledAfter(2))
    assert measured(run(experiment, tmp_path / "killed", resume=True)) == whole
