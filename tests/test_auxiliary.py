"""Auxiliary heads: what objectives learn beside a student, and where it stays."""

import pytest
import torch
from lines import Killed, KilledAfter, measured
from torch.nn.functional import log_softmax

from fedkd import FedkdError, registry, run
from fedkd.data.language import pack
from fedkd.data.language import samples as rows_of_text
from fedkd.distillation.objectives import Objective, declare, forward_kl
from fedkd.engine.worker import Worker
from fedkd.records import AUXILIARY, OPTIMISER
from fedkd.sections import StudentTable
from fedkd.server import ServerStudents
from fedkd.students import build
from fedkd.training import Auxiliary, fit
from fedkd.training_tables import TrainingTable
from fedkd.work import (
    Assignment,
    CrossEntropy,
    Evaluate,
    Fit,
    Load,
    Predict,
    Samples,
    Share,
    Soft,
)

ONE = TrainingTable(optimiser="sgd", lr=0.5, batch_size=64, local_epochs=1)
"""One step on all rows."""
KEEP = "training.keep_optimiser=true"
HEADS = [
    'strategy.objective={name = "two_heads", beside = 0.5}',
    "strategy.name=fedntd",
    "participation=0.75",
]
NEAR = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _objective():
    @registry.register("objectives", "two_heads")
    @declare(tau_squared=False, needs=("auxiliary",))
    class TwoHeads(Objective):
        """KL of the student, and of the auxiliary head."""

        cut: str = ""
        main: float = 1.0
        beside: float = 1.0

        def __call__(self, logits, targets, temperature, *, auxiliary):
            """Both, weighed."""
            assert auxiliary.shape == logits.shape
            beside = forward_kl(auxiliary, targets, temperature)
            return self.main * forward_kl(logits, targets, temperature) + self.beside * beside

    @registry.register("objectives", "by_function")
    @declare(needs=("auxiliary",))
    def by_function(logits, targets, temperature, *, auxiliary):
        return forward_kl(auxiliary, targets, temperature)


def chosen(**options):
    return {"name": "two_heads", **options}


def soft_labels(count, classes=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, generator=draw).softmax(1)


def student(shape=(6,), name="mlp"):
    return build(name, shape, 4, StudentTable(width=0.1), 0)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def learn(model, samples, terms, training=ONE, **options):
    return fit(model, samples, terms, training, torch.Generator().manual_seed(0), **options)


def same(one, other, **tolerance):
    torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


def assigned(client, *steps, trial=(), round=1):
    return Assignment(client, round, "learn", steps, trial)


def heads(worker, client=0):
    return {n: held for n, held in worker.states[client].items() if n.startswith(AUXILIARY)}


SOFT = Soft(soft_labels(80, 10), chosen(beside=0.5))

# --- laws of a step ---------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_head_without_weight_leaves_the_student_as_without(samples, optimiser):
    training = TrainingTable(optimiser=optimiser, lr=0.05, batch_size=8, local_epochs=3)
    targets, found = soft_labels(40), []
    for objective in ("forward_kl", chosen(beside=0.0)):
        model = student()
        terms = [CrossEntropy(), Soft(targets, objective, tau_squared=False)]
        learn(model, samples, terms, training)
        found.append(state(model))
    same(*found)


def test_a_step_is_the_one_by_hand(samples):
    """Of the head ``a = V f + c``: the gradients are those of KL at a, and reach the body by V."""
    targets, auxiliary = soft_labels(40), Auxiliary(7)
    learn(student(), samples, [Soft(targets, chosen())], ONE, epochs=0, auxiliary=auxiliary)
    ((name, first),) = auxiliary.heads.items()
    model, by_hand = student(), student()
    cut = name.removeprefix("two_heads ")
    learn(model, samples, [Soft(targets, chosen(main=0.0))], auxiliary=auxiliary)
    with torch.no_grad():
        held = by_hand[:-1](samples.inputs).flatten(1)
    error = (held @ first["weight"].T + first["bias"]).softmax(1) - targets
    same(auxiliary.heads[name]["weight"], first["weight"] - 0.5 * error.T @ held / 40, **NEAR)
    same(auxiliary.heads[name]["bias"], first["bias"] - 0.5 * error.mean(0), **NEAR)
    by_hand[:-1](samples.inputs).flatten(1).backward(error @ first["weight"] / 40)
    assert cut == [name for name, _ in by_hand.named_children()][-2]
    for (part, one), other in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        other = other if other.grad is None else other - 0.5 * other.grad
        same(one.detach(), other.detach(), **NEAR)
        assert (part.startswith("head")) == (by_hand.get_parameter(part).grad is None)


@pytest.mark.parametrize("name", ["cnn2", "mlp"])
def test_it_is_the_gradient_of_the_loss_written_out(name):
    """At each block; feature maps are averaged over their places."""
    draw = torch.Generator().manual_seed(3)
    images = Samples(torch.randn(12, 1, 28, 28, generator=draw), torch.arange(12) % 4)
    targets = soft_labels(12)
    blocks = [block for block, _ in student((1, 28, 28), name).named_children()]
    for place, cut in enumerate(blocks[:-1], 1):
        model, by_hand, auxiliary = student((1, 28, 28), name), student((1, 28, 28), name), {}
        terms = [CrossEntropy(), Soft(targets, chosen(cut=cut), weight=0.3)]
        bank = Auxiliary(7, auxiliary)
        learn(model, images, terms, epochs=0, auxiliary=bank)
        first = auxiliary[f"two_heads {cut}"]
        learn(model, images, terms, auxiliary=bank)
        held = by_hand[:place](images.inputs)
        logits = by_hand[place:](held.clone())
        pooled = held.mean((2, 3)) if held.dim() == 4 else held.flatten(1)
        beside = pooled @ first["weight"].T + first["bias"]
        loss = torch.nn.functional.cross_entropy(logits, images.labels)
        for said in (logits, beside):
            loss = loss - 0.3 * (targets * (log_softmax(said, 1) - targets.log())).sum(1).mean()
        loss.backward()
        for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
            same(one.detach(), (other - 0.5 * other.grad).detach(), rtol=1e-4, atol=1e-5)


def test_reach_bounds_the_student_and_not_the_head(samples):
    model, auxiliary = student(), Auxiliary(7)
    before, terms = state(model), [Soft(soft_labels(40), chosen(), reach=("head",))]
    learn(model, samples, terms, epochs=0, auxiliary=auxiliary)
    first = dict(auxiliary.heads)
    learn(model, samples, terms, auxiliary=auxiliary)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("head")
    for name, held in auxiliary.heads.items():
        assert not torch.equal(held["weight"], first[name]["weight"])


def test_rows_without_a_target_teach_no_head(samples):
    targets, found = soft_labels(40), []
    for row in (torch.nan, 0.25):
        auxiliary, given = Auxiliary(7), targets.clone()
        given[::2] = row
        weights = None if row != row else (torch.arange(40) % 2).float()
        learn(
            student(),
            samples,
            [Soft(given, "by_function", row_weights=weights)],
            auxiliary=auxiliary,
        )
        (held,) = auxiliary.heads.values()
        found.append(held)
    same(*found, **NEAR)


def test_it_works_on_tokens():
    draw = torch.Generator().manual_seed(0)
    lines = [torch.randint(3, 20, (n,), generator=draw).tolist() for n in (3, 7, 8, 2)]
    text = rows_of_text(pack(lines, 8))
    count = int((text.inputs != 0).sum())
    model, auxiliary = build("lstm", (8,), 20, StudentTable(width=0.1), 0, tokens=True), {}
    before, terms = state(model), [Soft(soft_labels(count, 20), chosen(main=0.0))]
    learn(model, text, terms, auxiliary=Auxiliary(7, auxiliary))
    (held,) = auxiliary.values()
    assert held["weight"].shape[0] == 20
    moved = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith("head")}


# --- where it stays ---------------------------------------------------------------------------


def test_first_weights_are_by_seed_client_and_objective(small):
    first = {}
    for seed, client, cut in ((0, 0, ""), (0, 1, ""), (1, 0, ""), (0, 0, "fc1")):
        worker = Worker(small(f"seed={seed}"))
        worker.perform(
            assigned(client, Fit("transfer", (Soft(SOFT.targets, chosen(cut=cut)),), 0, 0))
        )
        ((_, first[seed, client, cut]),) = heads(worker, client).items()
    weights = [held["weight"] for held in first.values()]
    assert len({(*w.shape, float(w.sum())) for w in weights}) == 4
    again = Worker(small())
    again.perform(assigned(0, Fit("transfer", (SOFT,), 0, 0), round=2))
    same(next(iter(heads(again).values())), first[0, 0, ""])


def test_it_goes_on_from_round_to_round(small):
    whole, twice = (
        Worker(small("training.batch_size=1000", "training.optimiser=sgd")) for _ in "ab"
    )
    whole.perform(assigned(0, Fit("transfer", (SOFT,), epochs=2)))
    for round in (1, 2):
        twice.perform(assigned(0, Fit("transfer", (SOFT,), epochs=1), round=round))
    assert heads(twice)
    same(twice.states[0], whole.states[0], **NEAR)


def test_what_is_undone_leaves_it_as_it_was(small):
    worker = Worker(small(KEEP))
    step = Fit("transfer", (SOFT,))
    worker.perform(assigned(0, step))
    before = {n: {k: t.clone() for k, t in held.items()} for n, held in worker.states[0].items()}
    worker.perform(assigned(0, trial=(step,), round=2))
    same(worker.states[0], before)
    with pytest.raises(FedkdError):
        worker.perform(assigned(0, step, Load({"none": torch.zeros(1)}), round=3))
    same(worker.states[0], before)
    untouched = Worker(small())
    untouched.perform(assigned(0, Fit(), trial=(step,)))
    assert not heads(untouched)


def test_nobody_sees_it(small):
    """What a client sends, says and is tested on is the student's, whatever the head has become."""
    worker = Worker(small())
    ask = [Share(), Predict(), Evaluate("common", "common")]
    first = worker.perform(assigned(0, Fit("transfer", (SOFT,)), *ask))
    assert first.values["parameters"].keys() == worker.template("mlp").state_dict().keys()
    ((name, held),) = heads(worker).items()
    worker.states[0][name] = {part: array + 1 for part, array in held.items()}
    again = worker.perform(assigned(0, *ask, round=2))
    same(again.values, first.values)


def test_a_head_that_has_diverged_begins_afresh(small):
    worker = Worker(small(KEEP))
    broken = {name: torch.full_like(t, torch.nan) for name, t in worker.state(0)["own"].items()}
    whole = {name: t.clone() for name, t in worker.state(0)["own"].items()}
    step = Fit("transfer", (SOFT,))
    worker.perform(assigned(0, step))
    worker.perform(assigned(0, Load(broken), step, round=2))
    assert worker.states[0].keys() == {"own"}
    worker.perform(assigned(0, Load(whole), step, round=3))
    assert heads(worker)


def test_its_optimiser_is_kept_beside_that_of_the_student(small):
    worker = Worker(small(KEEP))
    worker.perform(assigned(0, Fit("transfer", (SOFT,))))
    ((name, held),) = heads(worker).items()
    kept = worker.states[0][f"{OPTIMISER}own transfer"]
    own = name.removeprefix(f"{AUXILIARY}own:")
    assert kept[f"exp_avg {own} weight"].shape == held["weight"].shape
    assert kept[f"exp_avg {own} weight"].abs().max() > 0


@pytest.mark.parametrize("more", [(), (KEEP,)], ids=["afresh", "kept"])
def test_a_run_that_goes_on_has_the_same_numbers(small, more):
    experiment = small(*HEADS, *more, "rounds=3", "checkpoint_every=1", "engine.name=inline")
    whole = run(experiment, "whole")
    with pytest.raises(Killed):
        run(experiment, "cut", observer=KilledAfter(2))
    assert measured(run(experiment, "cut", resume=True)) == measured(whole)


def test_it_changes_what_is_learned_and_no_bytes(small):
    plain = run(small("strategy.name=fedntd", "strategy.objective=forward_kl", *HEADS[2:]), "plain")
    heads = run(small(*HEADS), "heads")
    for way in ("bytes_up", "bytes_down"):
        assert [line[way] for line in heads.rounds] == [line[way] for line in plain.rounds]
    assert measured(heads) != measured(plain)


def test_a_cohort_is_a_loop(small):
    found = []
    for cohort in ("off", "on"):
        worker = Worker(small(f"engine.cohort={cohort}"))
        steps = [Fit(), Fit("transfer", (SOFT,)), Predict()]
        for round in (1, 2):
            replies = worker.perform_all(
                [assigned(n, *steps, round=round) for n in range(4)], lambda done: None
            )
            assert not any(reply.error or reply.failure for reply in replies)
        found.append(worker.states)
    for client in range(4):
        assert found[0][client].keys() == found[1][client].keys()
        for name, held in found[0][client].items():
            same(found[1][client][name], held, rtol=1e-3, atol=1e-3)


def test_a_student_of_the_server_has_its_own(small, samples):
    def server(saved=None):
        students = ServerStudents(small())
        if saved is not None:
            students.restore(saved)
        students.add("global", student)
        return students

    once, terms = server(), [Soft(soft_labels(40), chosen())]
    once.fit("global", 1, samples, terms, 1)
    again = server(once.state())
    assert again.state()["auxiliary"]["global"].keys() == once.state()["auxiliary"]["global"].keys()
    for students in (once, again):
        students.fit("global", 2, samples, terms, 1)
    same(again.state()["auxiliary"], once.state()["auxiliary"])
    same(again.parameters("global"), once.parameters("global"))
    assert again.parameters("global").keys() == student().state_dict().keys()


# --- what is refused --------------------------------------------------------------------------


def test_dp_sgd_refuses_it_in_one_line(small):
    private = small("training.dp.noise_multiplier=1.0", *HEADS)
    with pytest.raises(FedkdError, match=r"two_heads.*auxiliary head; allowed: 0") as error:
        run(private, "private")
    assert "\n" not in str(error.value)


def test_dp_sgd_of_other_steps_leaves_it_alone(small):
    worker = Worker(small("training.dp.noise_multiplier=1.0"))
    worker.perform(assigned(0, Fit(), Fit("transfer", (SOFT,))))
    assert heads(worker)


@pytest.mark.parametrize(
    ("cut", "line"),
    [("fc9", "cut 'fc9' is not a cut of this student"), ("head", "cut 'head' is not a cut")],
)
def test_a_block_that_is_not_there_is_one_line(small, cut, line):
    objective = f'strategy.objective={{name = "two_heads", cut = "{cut}"}}'
    with pytest.raises(FedkdError, match=line) as error:
        run(small("strategy.name=fedntd", objective), "wrong")
    assert "\n" not in str(error.value)


def test_candidates_are_refused(small, samples):
    """By the loop, and before it, where terms are checked."""
    among = torch.tensor([[0, 1]]).expand(40, 2)
    terms = [Soft(soft_labels(40, 3), chosen(), among=among)]
    with pytest.raises(FedkdError, match=r"two_heads.*candidates are not allowed"):
        learn(student(), samples, terms)
    server = ServerStudents(small())
    server.add("global", student)
    with pytest.raises(FedkdError, match=r"global.*two_heads.*candidates are not allowed"):
        server.fit("global", 1, samples, terms, 1)


def test_a_student_of_one_block_is_refused(samples):
    single = torch.nn.Sequential(torch.nn.Linear(6, 4))
    with pytest.raises(FedkdError, match="one block"):
        learn(single, samples, [Soft(soft_labels(40), chosen())])
