"""Students of a client that are built on one another: known answers, and what must stay put."""

import copy
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from test_together import SGD, TABLE, flat, made
from test_training import parameters
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from fedkd.blends import blended
from fedkd.engine.worker import Worker
from fedkd.random import key
from fedkd.training import Trainee, fit, fit_together
from fedkd.training_tables import TrainingTable
from fedkd.work import Assignment, Blend, CrossEntropy, Fit, Hold, Load, Share

HARD = (CrossEntropy(),)
LAST = "fc2"
ADDED = Blend("own", 1.0, 1.0, LAST)


def trained(own, peer, samples, blend, training=TABLE, terms=HARD, part=()):
    """Copies of both after a fit, the peer at a blend with the other; and the losses."""
    trainees = [
        Trainee(copy.deepcopy(peer), terms, key(7, "peer"), "peer", part=part, at=blend),
        Trainee(copy.deepcopy(own), HARD, key(7, "own"), "own"),
    ]
    losses = fit_together(trainees, samples, training, torch.Generator().manual_seed(3))
    return trainees[1].student, trainees[0].student, losses[::-1]


def batches(samples, training):
    draw = torch.Generator().manual_seed(3)
    for _ in range(int(training.local_epochs)):
        for index in torch.randperm(40, generator=draw).split(training.batch_size):
            yield samples.inputs[index], samples.labels[index]


def descend(steps, logits, labels):
    """A step of each optimiser, by the sum of the losses."""
    for step in steps:
        step.zero_grad()
    sum(F.cross_entropy(each, labels) for each in logits).backward()
    for step in steps:
        step.step()


def close(found, by_hand):
    for one, other in zip(found, by_hand, strict=False):
        assert (flat(one) - flat(other)).abs().max() < 1e-5


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_gradient_is_taken_at_the_mixture(optimiser, samples):
    """APFL, equation 4, against a loop of its own."""
    training = TrainingTable(batch_size=20, local_epochs=3, lr=0.02, optimiser=optimiser)
    own, peer = made(seed=1), made(seed=2)
    found = trained(own, peer, samples, Blend("own", 0.3, 0.7), training)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    steps = [kinds[optimiser](student.parameters(), lr=0.02) for student in (own, peer)]
    for inputs, labels in batches(samples, training):
        w = {name: value.detach() for name, value in own.named_parameters()}
        mixture = {name: 0.3 * v + 0.7 * w[name] for name, v in peer.named_parameters()}
        logits = own(inputs), functional_call(peer, mixture, (inputs,))
        descend(steps, logits, labels)
    close(found, (own, peer))


def test_a_linear_head_above_the_others_body_is_added_to_its_logits(samples):
    """FedRoD, against a loop of its own: no gradient goes into the body or the other head."""
    own, peer = made(seed=1), made(seed=2)
    found = trained(own, peer, samples, ADDED, SGD, part=("head",))
    head, body = peer.head, own[:-1]
    steps = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (own, head)]
    for inputs, labels in batches(samples, SGD):
        logits = own(inputs), own(inputs).detach() + head(body(inputs).detach())
        descend(steps, logits, labels)
    close(found, (own, peer))


def test_what_comes_in_is_what_the_other_gives_as_it_trains(samples):
    """The very mask of its dropout: at the other's parameters alone, the losses agree."""
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5))
    own = nn.Sequential(OrderedDict(body=body, head=nn.Linear(8, 4)))
    for cut, alike in (("body", True), ("", False)):
        blend = Blend("own", 0.0, 1.0, cut)
        *_, losses = trained(own, own, samples, blend, part=("head",))
        assert (losses[0] == losses[1]) == alike


@pytest.mark.parametrize("blend", [ADDED, Blend("own", 0.4, 0.6)])
def test_the_other_learns_what_it_would_alone_to_the_bit(blend, samples):
    own, peer = made(seed=1), made(seed=2)
    found, _, losses = trained(own, peer, samples, blend)
    loss = fit(own, samples, HARD, TABLE, torch.Generator().manual_seed(3), seed=key(7, "own"))
    assert torch.equal(flat(found), flat(own))
    assert losses[0] == loss


def test_at_its_own_parameters_alone_it_learns_what_it_would_alone_to_the_bit(samples):
    own, peer = made(seed=1), made(seed=2)
    _, found, losses = trained(own, peer, samples, Blend("own", 1.0, 0.0))
    loss = fit(peer, samples, HARD, TABLE, torch.Generator().manual_seed(3), seed=key(7, "peer"))
    assert torch.equal(flat(found), flat(peer))
    assert losses[1] == loss


def test_without_a_share_of_its_own_it_stays_as_it_was(samples):
    own, peer = made(seed=1), made(seed=2)
    _, found, losses = trained(own, peer, samples, Blend("own", 0.0, 1.0))
    assert torch.equal(flat(found), flat(peer))
    assert losses[0] == pytest.approx(losses[1])


def test_blocks_up_to_the_cut_do_not_learn(samples):
    own, peer = made(seed=1), made(seed=2)
    before = parameters(peer)
    _, found, _ = trained(own, peer, samples, ADDED)
    moved = {name for name, value in parameters(found).items() if not value.equal(before[name])}
    assert moved == {"head.weight", "head.bias"}


@pytest.mark.parametrize("mine", [0.0, 0.3, 1.0])
def test_the_slope_is_how_the_loss_changes_with_the_shares(mine, samples):
    """Against a difference of losses of a step on all samples; asking for it changes no bit."""
    own, peer = made(seed=1), made(seed=2)
    blend = Blend("own", mine, 1 - mine)
    trainee = Trainee(copy.deepcopy(peer), HARD, 0, "peer", at=replace(blend, slope=True))
    other = Trainee(copy.deepcopy(own), HARD, 0)
    whole = TrainingTable(optimiser="sgd", lr=0.1, batch_size=40, local_epochs=1)
    fit_together([other, trainee], samples, whole, torch.Generator())

    def loss(share):
        w = dict(own.named_parameters())
        at = {name: share * v + (1 - share) * w[name] for name, v in peer.named_parameters()}
        logits = functional_call(peer, at, (samples.inputs,)).detach()
        return float(F.cross_entropy(logits, samples.labels))

    wanted = (loss(mine + 1e-3) - loss(mine - 1e-3)) / 2e-3
    assert trainee.measured["slope"] == pytest.approx(wanted, rel=0.02, abs=1e-3)
    _, plain, _ = trained(own, peer, samples, blend)
    _, asked, _ = trained(own, peer, samples, replace(blend, slope=True))
    assert torch.equal(flat(plain), flat(asked))


def test_what_has_no_share_need_be_no_number():
    one, none = torch.ones(3), torch.full((3,), torch.nan)
    assert blended(one, none, 1.0, 0.0).equal(one)
    assert blended(none, one, 0.0, 0.5).equal(0.5 * one)
    assert blended(none, none, 0.0, 0.0).equal(0 * one)
    assert blended(torch.tensor(3), torch.tensor(5), 0.5, 0.5) == 5


def test_parameters_that_come_in_may_be_mixed_with_what_was_there(small):
    worker = Worker(small())
    steps = (
        Hold("other"),
        Fit(epochs=0.2),
        Share(key="own"),
        Share(key="other", student="other"),
        Load("other", part=("head",), keep=0.25, weight=2.0),
        Share(key="mixed"),
        Load("own", student="other", weight=0.0),
        Share(key="nothing", student="other"),
    )
    values = worker.perform(Assignment(0, 1, "learn", steps)).values
    for name, mixed in values["mixed"].items():
        own, other = values["own"][name], values["other"][name]
        wanted = 0.25 * own + 2 * other if name.startswith("head") else own
        assert torch.allclose(mixed, wanted)
        assert not values["nothing"][name].any()
