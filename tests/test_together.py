"""Students of a client that learn together, each from what the others say of the batch at hand."""

import copy

import pytest
import torch
from nasty import NumpyNoise, PythonNoise
from test_work import same
from torch import nn
from torch.nn import functional as F

from fedkd import FedkdError, students
from fedkd.codec import Codec, decode
from fedkd.engine.worker import Worker
from fedkd.privacy.dpsgd import DPSGD
from fedkd.random import key
from fedkd.sections import StudentTable
from fedkd.training import Trainee, fit, fit_together, predict
from fedkd.training_tables import PrivateTraining, TrainingTable
from fedkd.work import (
    Assignment,
    CrossEntropy,
    Fit,
    Hold,
    Peer,
    Samples,
    Soft,
)

SGD = TrainingTable(optimiser="sgd", lr=0.1, batch_size=40, local_epochs=2)
TABLE = TrainingTable(batch_size=16, local_epochs=3, lr=0.02)
MUTUAL = (CrossEntropy(0.3), Soft("meme", temperature=2.0, weight=0.7))
BACK = (CrossEntropy(0.6), Soft("own", weight=0.4))


def made(seed=1):
    return students.build("mlp", (6,), 4, StudentTable(width=0.25), seed)


def flat(student):
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


def trained(pairs, samples, training=TABLE, seed=3, **how):
    """Copies of students, by name with their terms, after a fit together; and their losses."""
    trainees = [
        Trainee(copy.deepcopy(student), terms, key(7, name), name=name)
        for name, (student, terms) in pairs.items()
    ]
    draw = torch.Generator().manual_seed(seed)
    losses = fit_together(trainees, samples, training, draw, **how)
    return [trainee.student for trainee in trainees], losses


# --- one client -----------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_each_learns_from_what_the_other_says_of_the_same_batch(optimiser, samples):
    """Against a loop of its own: both look, then both learn, batch by batch."""
    training = TrainingTable(batch_size=16, local_epochs=3, lr=0.02, optimiser=optimiser)
    own, meme = made(seed=1), made(seed=2)
    found, losses = trained({"own": (own, MUTUAL), "meme": (meme, BACK)}, samples, training)

    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimisers = [kinds[optimiser](student.parameters(), lr=0.02) for student in (own, meme)]
    draw = torch.Generator().manual_seed(3)
    for _ in range(3):
        sums = torch.zeros(2)
        for batch in torch.randperm(40, generator=draw).split(16):
            inputs, labels = samples.inputs[batch], samples.labels[batch]
            mine, its = own(inputs), meme(inputs)
            from_meme = F.kl_div(
                (mine / 2).log_softmax(1), (its / 2).softmax(1).detach(), reduction="batchmean"
            )
            from_own = F.kl_div(its.log_softmax(1), mine.softmax(1).detach(), reduction="batchmean")
            first = 0.3 * F.cross_entropy(mine, labels) + 0.7 * 4 * from_meme
            second = 0.6 * F.cross_entropy(its, labels) + 0.4 * from_own
            sums += torch.stack([first.detach(), second.detach()])
            for each in optimisers:
                each.zero_grad()
            (first + second).backward()
            for each in optimisers:
                each.step()
    assert (flat(found[0]) - flat(own)).abs().max() < 1e-5
    assert (flat(found[1]) - flat(meme)).abs().max() < 1e-5
    assert losses == pytest.approx((sums / 3).tolist(), abs=1e-5)


def drawing(seed):
    torch.manual_seed(seed)
    noise = (nn.Dropout(0.4), PythonNoise(), NumpyNoise())
    return nn.Sequential(nn.Linear(6, 8), *noise, nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("kind", [made, drawing])
def test_students_that_do_not_listen_learn_as_each_does_alone(kind, samples):
    """To the bit, and so do those that draw by themselves, in torch, numpy and Python."""
    pair = [kind(seed=1), kind(seed=2)]
    alone = [copy.deepcopy(student) for student in pair]
    terms = (CrossEntropy(),)
    named = dict(zip(("own", "meme"), [(student, terms) for student in pair], strict=True))
    found, losses = trained(named, samples)
    for number, (student, which) in enumerate(zip(alone, named, strict=True)):
        draw = torch.Generator().manual_seed(3)
        loss = fit(student, samples, terms, TABLE, draw, seed=key(7, which))
        assert torch.equal(flat(student), flat(found[number]))
        assert loss == losses[number]


def test_who_is_named_first_does_not_matter(samples):
    own, meme = made(seed=1), made(seed=2)
    one, _ = trained({"own": (own, MUTUAL), "meme": (meme, BACK)}, samples)
    other, _ = trained({"meme": (meme, BACK), "own": (own, MUTUAL)}, samples)
    assert torch.equal(flat(one[0]), flat(other[1]))
    assert torch.equal(flat(one[1]), flat(other[0]))


def test_equal_students_that_say_the_same_have_nothing_to_learn_from_each_other(samples):
    student = made()
    found, losses = trained(
        {"own": (student, (Soft("meme"),)), "meme": (student, (Soft("own"),))}, samples, SGD
    )
    assert all((flat(each) - flat(student)).abs().max() < 1e-4 for each in found)
    assert losses == pytest.approx([0, 0], abs=1e-6)


def test_three_students_learn_from_each_other_and_draw_near(samples):
    names = ["own", "second", "third"]
    start = {name: made(seed=number) for number, name in enumerate(names)}
    terms = {name: tuple(Soft(other) for other in names if other != name) for name in names}
    found, _ = trained({name: (start[name], terms[name]) for name in names}, samples, epochs=20)

    def apart(pupils):
        labels = torch.stack([predict(pupil, samples.inputs).softmax(1) for pupil in pupils])
        return float(labels.std(0).mean())

    assert apart(found) < 0.3 * apart(start.values())


def test_targets_of_another_source_are_of_its_batches(samples):
    """They teach each other on a second source, beside the labels of the first."""
    public = Samples(samples.inputs.flip(0) + 0.1)
    own, meme = made(seed=1), made(seed=2)
    found, _ = trained(
        {
            "own": (own, (CrossEntropy(), Soft("meme", on="transfer"))),
            "meme": (meme, (Soft("own", on="transfer"),)),
        },
        samples,
        epochs=10,
        sources={"transfer": lambda: public},
    )
    labels = [predict(pupil, public.inputs).softmax(1) for pupil in (*found, own, meme)]
    assert (labels[0] - labels[1]).abs().mean() < 0.5 * (labels[2] - labels[3]).abs().mean()


def test_temperatures_candidates_and_weights_of_rows_are_those_of_the_batch(samples):
    """A term with all of them says what it says with the teacher's targets of before."""
    own, meme = made(seed=1), made(seed=2)
    draw = torch.Generator().manual_seed(5)
    rows = {
        "temperature": 0.5 + torch.rand(40, generator=draw),
        "among": torch.stack([torch.randperm(4, generator=draw)[:2] for _ in range(40)]),
        "row_weights": torch.rand(40, generator=draw),
    }
    one, *_ = trained(
        {"own": (own, (Soft("meme", **rows),)), "meme": (meme, (CrossEntropy(0.0),))}, samples
    )
    logits = predict(meme, samples.inputs) / rows["temperature"][:, None]
    among = logits.softmax(1).gather(1, rows["among"])
    targets = torch.cat([among, 1 - among.sum(1, keepdim=True)], 1)
    other, *_ = trained({"own": (own, (Soft(targets, **rows),))}, samples)
    assert (flat(one[0]) - flat(other[0])).abs().max() < 1e-4


@pytest.mark.parametrize("count", [16, 40])
def test_adaptive_weights_are_one_over_what_both_do_not_know(count, samples):
    """FedKD, equations 1 and 2: by the cross-entropies of the very batch."""
    own, meme = made(seed=1), made(seed=2)
    training = TrainingTable(optimiser="sgd", batch_size=count, local_epochs=2, lr=0.1)
    pairs = {
        "own": (own, (CrossEntropy(), Soft("meme", adaptive=True))),
        "meme": (meme, (CrossEntropy(), Soft("own", adaptive=True))),
    }
    found, _ = trained(pairs, samples, training)
    draw = torch.Generator().manual_seed(3)
    optimisers = [torch.optim.SGD(student.parameters(), lr=0.1) for student in (own, meme)]
    for _ in range(2):
        for batch in torch.randperm(40, generator=draw).split(count):
            said = [student(samples.inputs[batch]) for student in (own, meme)]
            losses = [F.cross_entropy(logits, samples.labels[batch]) for logits in said]
            both = (losses[0] + losses[1]).detach()
            for place in (0, 1):
                mine, its = said[place], said[1 - place].detach()
                kl = (its.softmax(1) * (its.log_softmax(1) - mine.log_softmax(1))).sum(1).mean()
                losses[place] = losses[place] + kl / both
            for optimiser, loss in zip(optimisers, losses, strict=True):
                optimiser.zero_grad()
                loss.backward()
            for optimiser in optimisers:
                optimiser.step()
    assert (flat(found[0]) - flat(own)).abs().max() < 1e-5
    assert (flat(found[1]) - flat(meme)).abs().max() < 1e-5


def test_adaptive_weights_are_refused_under_dp_sgd(samples):
    """One sample would decide what the others' gradients are."""
    pairs = {"own": (made(), (Soft("meme", adaptive=True),)), "meme": (made(), (CrossEntropy(),))}
    with pytest.raises(FedkdError, match="does not work with an adaptive Soft term on private"):
        private(pairs, samples, PrivateTraining(noise_multiplier=1))


def test_nobody_else_has_adaptive_weights(samples):
    with pytest.raises(FedkdError, match="adaptive is for students that learn together"):
        fit(
            made(),
            samples,
            [Soft(torch.full((40, 4), 0.25), adaptive=True)],
            SGD,
            torch.Generator(),
        )


# --- DP-SGD ---------------------------------------------------------------------------------


def private(pairs, samples, table, on="private", **how):
    trainees = [
        Trainee(copy.deepcopy(student), terms, 0, name=name, dp=DPSGD(table, on, 0, name))
        for name, (student, terms) in pairs.items()
    ]
    fit_together(trainees, samples, SGD, torch.Generator().manual_seed(3), **how)
    return trainees


def test_without_noise_and_clipping_dp_sgd_computes_the_same(samples):
    pairs = {"own": (made(seed=1), MUTUAL), "meme": (made(seed=2), BACK)}
    plain, _ = trained(pairs, samples, SGD)
    loose = private(pairs, samples, PrivateTraining(noise_multiplier=0, max_grad_norm=1e6))
    for trainee, student in zip(loose, plain, strict=True):
        assert (flat(trainee.student) - flat(student)).abs().max() < 1e-5


def test_k_students_have_noise_of_root_k_times_the_size_and_count_as_one(samples):
    """One sample moves the k clipped gradients by C each, so by root k C as a whole."""
    big = PrivateTraining(noise_multiplier=1e4, max_grad_norm=1.0)
    terms = (CrossEntropy(),)
    sizes = []
    for names in (["own"], ["own", "meme"]):
        pairs = {name: (made(), terms) for name in names}
        done = private(pairs, samples, big)
        sizes.append(float((flat(done[0].student) - flat(made())).std()))
        assert {(each.dp.sample_rate, each.dp.steps) for each in done} == {(1.0, 2)}
    assert sizes[1] / sizes[0] == pytest.approx(2**0.5, rel=1e-4)
    both = [flat(each.student) for each in done]
    assert not torch.allclose(both[0], both[1])


def test_the_ledger_is_told_of_the_steps_once(small):
    dp = ("training.dp.noise_multiplier=1", "student.models=['mlp']")
    terms = (CrossEntropy(), Soft("meme"))
    back = Peer("meme", (CrossEntropy(), Soft("own")), key="meme_loss")
    replies = []
    for together in ((), (back,)):
        worker = Worker(small(*dp))
        fit_ = Fit(terms=terms if together else terms[:1], together=together)
        replies.append(worker.perform(Assignment(0, 1, "learn", (Hold("meme"), fit_))))
    plain, pair = (reply.metrics for reply in replies)
    assert (pair["dp_sample_rate"], pair["dp_steps"]) == (
        plain["dp_sample_rate"],
        plain["dp_steps"],
    )


# --- what is said of it ---------------------------------------------------------------------

PEER = Peer("meme", BACK, key="meme_loss")


def test_a_fit_together_survives_the_way():
    together = Fit(
        terms=MUTUAL,
        together=(PEER, Peer("third", (CrossEntropy(),), "third_loss", lr=0.1, part=("head",))),
    )
    work = Assignment(0, 1, "learn", (together,))
    assert same(decode(Codec().encode(work)), work)
