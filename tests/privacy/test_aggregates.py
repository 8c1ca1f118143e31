"""Labels that a trusted server, or secure aggregation, adds up: what is computed and charged."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from test_ledger import played as played_script
from test_ledger import price

from fedkd import FedkdError, registry, run
from fedkd.data.federated import load
from fedkd.engine.inline import InlineGrid
from fedkd.engine.worker import Worker
from fedkd.experiment import ReleaseTable
from fedkd.privacy.accounting import SEES_ALL, SEES_FUSED, SEES_SUMS
from fedkd.privacy.costs import cost, described
from fedkd.privacy.epsilons import gaussian_epsilon
from fedkd.privacy.guarantees import guarantees
from fedkd.privacy.public import Public
from fedkd.privacy.release import aggregate, release
from fedkd.random import noise
from fedkd.strategies.base import KnowledgeStrategy
from fedkd.work import Fit, Predict, Samples

LABELLING = ["cfd", "dsfl", "fedmd", "knfu", "ktpfl", "swing", "uniform"]
CENTRAL = ("release.trust=central", "release.mechanism=gaussian", "release.scale=0.05")
MASKED = ("release.trust=secure-aggregation", *CENTRAL[1:])
VOTES = ("release.trust=central", "release.mechanism=votes", "release.scale=3")
QUICK = (
    *("training.local_epochs=0.1", "evaluate_every=100", "engine.cohort=off", "data.clients=4"),
    *("data.transfer.size=12", "data.samples_per_client=20", "engine.name=inline"),
)
DELTA = 1e-5
PUBLIC = Public(Samples(torch.zeros(0)), scores=torch.zeros(3))


def table(**keys):
    return ReleaseTable(**{"mechanism": "gaussian", "scale": 0.1, "trust": "central", **keys})


# --- what it costs --------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 2.0, 8.0])
@pytest.mark.parametrize("clients", [1, 3, 50])
def test_a_mean_of_k_costs_what_one_client_costs_at_a_kth_of_its_sensitivity(clients, clip):
    tau = np.array([1.0, 2.0, 7.0])
    central = described(table(clip=clip), tau, 10, False, clients)
    local = cost("gaussian", 0.1 * clients, 1, tau, clip, 10)
    assert central["rho"] == pytest.approx(local.rho)
    alone = described(table(clip=clip, trust="local"), tau, 10, False)
    assert central["rho"] * clients**2 == pytest.approx(alone["rho"])


def test_with_secure_aggregation_a_client_knows_its_own_share_of_the_noise():
    central = described(table(), np.ones(3), 10, False, 5)
    masked = described(table(trust="secure-aggregation"), np.ones(3), 10, False, 5)
    assert masked["rho"] == pytest.approx(central["rho"] / (1 - 1 / 5))
    one = described(table(trust="secure-aggregation"), np.ones(3), 10, False, 1)
    assert one["rho"] == described(table(), np.ones(3), 10, False, 1)["rho"]


@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_no_client_moves_the_mean_further_by_brute_force(mix):
    """Every vertex of the clipped logits of one client, the other two anywhere."""
    policy = table(clip=3.0, mix=mix)
    corners = torch.tensor(list(itertools.product([0.0, -50.0], repeat=4)))
    known = Public(Samples(torch.zeros(0)), scores=torch.zeros(len(corners)))
    draw = noise(0, "test")
    sent = release(corners, 1.5, policy, known, draw)
    others = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)).softmax(2)
    quiet = policy.model_copy(update={"mechanism": "none", "scale": 0.0})
    means = [
        aggregate(torch.cat([labels.view(1, 1, 4), others]), quiet, PUBLIC, 4, draw)
        for labels in sent
    ]
    far = max(float((a - b).norm()) for a, b in itertools.combinations(means, 2))
    charged = described(policy, np.array([1.5]), 4, False, 3)
    assert far / policy.scale == pytest.approx(math.sqrt(2 * charged["rho"]), rel=1e-5)


def test_two_neighbouring_worlds_are_as_far_apart_as_the_charge_says():
    """One client of four has other data: by the best statistic, before the projection."""
    policy, classes, items = table(scale=0.3), 3, 400
    known = Public(Samples(torch.zeros(0)), scores=torch.zeros(items))
    rest = torch.full((3, items, classes), 1 / 3)
    axis = torch.tensor([1.0, -1.0, 0.0]) / math.sqrt(2)
    found = []
    for world in (0, 1):
        own = torch.nn.functional.one_hot(torch.full((1, items), world), classes).float()
        mean = aggregate(
            torch.cat([own, rest]), policy.model_copy(update={"mechanism": "none"}), known, 3, None
        )
        drawn = noise(world, "worlds").standard_normal((items, classes), dtype=np.float32)
        found.append((mean + policy.scale * torch.from_numpy(drawn)) @ axis)
    apart = float((found[0].mean() - found[1].mean()) / policy.scale)
    one_item = described(policy, np.ones(1), classes, False, 4)
    assert apart == pytest.approx(math.sqrt(2 * one_item["rho"]), abs=3 * math.sqrt(2 / items))


# --- what is computed -----------------------------------------------------------------------


def test_the_noise_on_a_mean_is_there_once():
    rows = torch.full((7, 4000, 4), 0.25)
    mean = aggregate(rows, table(scale=0.01), PUBLIC, 4, noise(0, "test"))
    # The projection takes out the part along (1, 1, 1, 1).
    assert float((mean - 0.25).std()) == pytest.approx(0.01 * math.sqrt(3 / 4), rel=0.05)


def test_votes_go_to_the_class_that_most_want():
    votes = torch.nn.functional.one_hot(torch.tensor([[0, 2], [1, 2], [0, 1]]), 3).float()
    found = aggregate(votes, table(mechanism="votes", scale=1e-6), PUBLIC, 3, noise(0, "test"))
    assert found.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_a_column_that_is_no_class_wins_nothing():
    public = Public(Samples(torch.zeros(0)), scores=torch.zeros(50), among=torch.full((50, 2), -1))
    votes = torch.zeros(3, 50, 3)
    found = aggregate(votes, table(mechanism="votes", scale=9.0), public, 5, noise(0, "test"))
    assert found.argmax(1).tolist() == [2] * 50


def test_clients_send_no_noise_and_answer_whatever_their_student_says():
    logits = torch.tensor([[math.nan, 1.0, 0.0], [math.inf, 0.0, 0.0], [0.0, 1.0, 2.0]])
    sent = release(logits, 1.0, table(clip=5.0), PUBLIC, noise(0, "test"))
    assert torch.isfinite(sent).all()
    assert torch.allclose(sent[2], torch.tensor([0.0, 1.0, 2.0]).softmax(0))
    votes = release(logits, 1.0, table(mechanism="votes"), PUBLIC, noise(0, "test"))
    assert votes.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


# --- every method ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("keys", [CENTRAL, MASKED, VOTES], ids=["central", "masked", "votes"])
@pytest.mark.parametrize("name", LABELLING)
def test_every_method_that_shares_labels_runs_on_the_aggregate(
    name, keys, small, tmp_path, monkeypatch
):
    method = registry.load("strategies", name)
    seen = []
    fuse = method.fuse

    def watching(self, round, replies):
        key = "logits" if name == "fedmd" else "soft_labels"
        labels = replies.stack(key)
        assert all(torch.equal(labels[0], other) for other in labels)
        seen.append(len(replies))
        fuse(self, round, replies)

    monkeypatch.setattr(method, "fuse", watching)
    # Which rows have changed of a client, nobody is to see.
    whole = ["strategy.delta=false"] if name == "cfd" else []
    experiment = small(f"strategy.name={name}", *keys, *QUICK, "rounds=2", *whole)
    done = run(experiment, tmp_path / "run")
    assert seen[0] == 4
    server, *others = guarantees(done.releases, experiment)
    tau = method.read_options(experiment).model_dump().get("tau", 1.0)
    tau = 1.0 if name == "fedmd" else tau
    if keys is VOTES:
        rho = 2 * 12 / 3**2
    else:
        rho = 2 * cost("gaussian", 4 * 0.05, 1, np.full(12, tau), None, 10).rho
    if keys is MASKED:
        assert not others
        assert server.adversary == SEES_SUMS
        assert server.rho == pytest.approx(rho / (1 - 1 / 4))
        return
    (fused,) = others
    assert (server.epsilon, server.adversary) == (None, SEES_ALL)
    assert "for a server that is trusted" in server.why
    assert fused.adversary == SEES_FUSED
    assert fused.rho == pytest.approx(rho)
    assert fused.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(2 * rho), DELTA))
    assert (fused.data_dependent is not None) == (keys is VOTES)


def test_without_noise_the_mean_is_everybodys_and_guarantees_nothing(small, tmp_path):
    keys = ("strategy.name=uniform", "release.trust=central", *QUICK, "rounds=1")
    done = run(small(*keys), tmp_path / "run")
    for found in guarantees(done.releases, done.experiment):
        assert found.epsilon is None
    plain = run(small("strategy.name=uniform", *QUICK, "rounds=1"), tmp_path / "plain")
    assert done.rounds[0]["common_loss_mean"] == pytest.approx(
        plain.rounds[0]["common_loss_mean"], rel=1e-4
    )


# --- which aggregate is the same ------------------------------------------------------------


class Scripted(KnowledgeStrategy):
    sends_soft_labels = True
    script = ()

    def setup(self):
        self.seen = []

    def select(self, round):
        return list(self.script[round - 1][0])

    def learn(self, round, client):
        return self.script[round - 1][1]

    def fuse(self, round, replies):
        self.seen.append(replies.stack()[0])


def played(small, script, *keys, method=Scripted):
    experiment = small(*QUICK, *keys, f"rounds={len(script)}")
    data = load(experiment)
    worker = Worker(experiment, data)
    kind = type("Played", (method,), {"script": script})
    counts, transfer = data.label_counts(), data.transfer().inputs
    strategy = kind(experiment, data.task, counts, transfer, public=worker.public)
    lines = []
    strategy.start(InlineGrid(worker), on_round=lambda _, found: lines.extend(found["releases"]))
    return strategy.seen, [line for line in lines if line["client"] is None], experiment, lines


def test_an_aggregate_is_free_where_all_of_the_same_clients_answer_as_before(small):
    ask, train = (Predict(),), (Fit(), Predict())
    script = [((0, 1), ask), ((0, 1), ask), ((0, 2), ask), ((0, 1), train), ((0, 1), ask)]
    seen, sums, experiment, lines = played(small, script, *CENTRAL)
    assert [line["fresh"] for line in sums] == [True, False, True, True, False]
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[3], seen[4])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[3])
    _, found = guarantees(lines, experiment)
    assert found.client == 0
    assert found.rho == pytest.approx(3 * cost("gaussian", 0.1, 1, np.ones(12), None, 10).rho)


class Weighing(Scripted):
    def fuse(self, round, replies):
        self.weights = replies.samples


@pytest.mark.parametrize("keys", [CENTRAL, MASKED], ids=["central", "masked"])
def test_what_is_not_added_up_leaves_none(keys, small):
    *_, experiment, lines = played(small, [((0, 1), (Predict(),))], *keys, method=Weighing)
    found = guarantees(lines, experiment)[-1]
    assert found.epsilon is None
    assert "numbers of samples" in found.why


class Unlike(Scripted):
    def learn(self, round, client):
        return [Predict(temperature=1.0 + client)]


def test_unlike_questions_are_not_added_up(small):
    with pytest.raises(FedkdError, match=r"release\.trust = 'central' is not allowed with a meth"):
        played(small, [((0, 1), ())], *CENTRAL, method=Unlike)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            ("release.mechanism=votes", "release.scale=1"),
            r"mechanism = 'votes' is not allowed with",
        ),
        ((*VOTES[:2],), r"release\.scale = 0\.0 is not allowed with"),
        (("release.trust=central", "release.mechanism=sample"), r"'none', 'gaussian', 'votes'"),
        (("release.trust=central", "strategy.name=fedavg"), r"\[release\] is not allowed with"),
        (("release.trust=nobody",), r"release\.trust = 'nobody' is not allowed"),
    ],
)
def test_what_cannot_be_added_up_is_refused_in_one_line(keys, line, small, tmp_path):
    def begin():
        run(small("strategy.name=uniform", *QUICK, *keys), tmp_path / "run")

    with pytest.raises(FedkdError, match=line):
        begin()


# --- any script -----------------------------------------------------------------------------


def rho_by_hand(heard, experiment):
    """Of the client that is worst off, from the assignments: what was asked of whom, and when."""
    policy = experiment.release
    trained, questions = defaultdict(int), defaultdict(dict)
    for assignment, _ in heard:
        client = assignment.client
        for step in assignment.steps:
            if isinstance(step, Fit):
                trained[client] += step.epochs is None or step.epochs > 0
            elif isinstance(step, Predict):
                asked = (trained[client], step.temperature)
                questions[assignment.round, step.key][client] = asked
    sums, seen = defaultdict(float), set()
    for (_, key), answers in questions.items():
        same = (key, tuple(sorted(answers.items())))
        if same in seen:
            continue
        seen.add(same)
        clients = len(answers)
        share = 1.0
        if policy.trust == "secure-aggregation" and clients > 1:
            share = clients / (clients - 1)
        (temperature,) = {tau for _, tau in answers.values()}
        for client in answers:
            sums[client] += share * 5 * price(policy, temperature)[0] / clients**2
    return max(sums.values())


@pytest.mark.parametrize("seed", range(8))
def test_the_total_of_aggregates_is_that_of_what_was_asked(seed):
    draw = np.random.default_rng(seed)
    idle = Fit(epochs=0, key="idle_loss")
    steps = (Fit(), idle, Predict(), Predict(temperature=3.0, key="mine"))
    script = []
    for _ in range(4):
        clients = set(draw.choice(3, draw.integers(1, 4), replace=False).tolist())
        chosen = sorted(draw.choice(4, draw.integers(1, 4), replace=False))
        script.append((clients, (*(steps[n] for n in chosen), Predict(key="always")), ()))
    trust = ("central", "secure-aggregation")[seed % 2]
    keys = (f"release.trust={trust}", "release.mechanism=gaussian", "release.scale=0.5")
    heard, lines, experiment = played_script(script, *keys, "release.clip=4")
    found = guarantees(lines, experiment)[-1]
    assert found.rho == pytest.approx(rho_by_hand(heard, experiment), rel=1e-6)
