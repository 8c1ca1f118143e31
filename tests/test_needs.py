"""What objectives are given besides: labels, progress, groups and memory."""

import needy
import pytest
import texts
import torch
from lines import measured

from fedkd import FedkdError, registry, run
from fedkd.codec import Codec, decode
from fedkd.distillation.objectives import Memory, declare, forward_kl, made
from fedkd.engine.worker import Worker
from fedkd.privacy.dpsgd import DPSGD
from fedkd.sections import StudentTable
from fedkd.server import ServerStudents
from fedkd.students import build
from fedkd.training import fit
from fedkd.training_tables import PrivateTraining, TrainingTable
from fedkd.work import Assignment, Fit, Samples, Soft

SGD = TrainingTable(optimiser="sgd", lr=0.1, batch_size=8, local_epochs=1)
ARGMAX = {"name": "not_true", "labels": "argmax"}


@pytest.fixture(autouse=True)
def _needy():
    needy.register()
    needy.seen.clear()


def student():
    return build("mlp", (6,), 4, StudentTable(width=0.1), 0)


def soft(objective, rows=40, **options):
    draw = torch.Generator().manual_seed(3)
    return Soft(torch.randn(rows, 4, generator=draw).softmax(1), objective, **options)


def trained(samples, *terms, **options):
    """The student's parameters after a fit."""
    model = student()
    fit(model, samples, terms, SGD, torch.Generator().manual_seed(0), **options)
    return torch.cat([value.flatten() for value in model.state_dict().values()])


# --- progress -----------------------------------------------------------------------------------


def test_progress_goes_evenly_from_the_beginning_of_a_fit_to_before_its_end(samples):
    trained(samples, soft("paced"))
    assert [each["progress"] for each in needy.seen] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    needy.seen.clear()
    trained(samples, soft("paced"), span=(0.5, 0.75))
    assert [each["progress"] for each in needy.seen] == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7])


@pytest.mark.parametrize("cohort", ["on", "off"])
@pytest.mark.parametrize("place", ["steps", "trial"])
def test_progress_is_of_the_run_also_in_what_is_undone(small, place, cohort):
    host = Worker(small("rounds=4", f"engine.cohort={cohort}", "training.batch_size=20"))
    work = (Fit("transfer", (Soft(torch.full((80, 10), 0.1), "paced"),), epochs=1),)
    for round in (1, 3):
        needy.seen.clear()
        assignment = Assignment(0, round, "learn", **{place: work})
        (reply,) = host.perform_all([assignment], lambda done: None)
        assert not reply.error
        found = [float(torch.as_tensor(each["progress"]).flatten()[0]) for each in needy.seen]
        expected = [(round - 1 + done) / 4 for done in (0, 0.25, 0.5, 0.75)]
        assert found == pytest.approx(expected)


def test_progress_is_of_the_run_on_the_server_too(small):
    experiment = small("rounds=4", "training.batch_size=20")
    server = ServerStudents(experiment)
    server.add("student", lambda: build("mlp", (1, 8, 8), 10, experiment.student, 0))
    given = Samples(torch.zeros(40, 1, 8, 8))
    server.fit("student", 2, given, [Soft(torch.full((40, 10), 0.1), "paced")], 1)
    assert [each["progress"] for each in needy.seen] == pytest.approx([0.25, 0.375])


# --- groups and memory ---------------------------------------------------------------------------


def test_the_rows_of_one_student_are_one_group_without_those_that_have_no_target(samples):
    term = soft("coupled")
    term.targets[::2] = torch.nan
    trained(samples, term)
    assert all(set(each["groups"]) == {0} for each in needy.seen)
    assert sum(len(each["groups"]) for each in needy.seen) == 20


@pytest.mark.parametrize("name", needy.NAMES)
def test_without_any_target_nothing_is_learned_and_no_objective_is_asked(name, samples):
    term = soft(name)
    term.targets[:] = torch.nan
    assert torch.equal(trained(samples, term), trained(samples, term, epochs=0))
    assert not needy.seen


def test_memory_is_kept_through_a_fit_and_empty_when_the_next_one_begins(samples):
    held = []

    @registry.register("objectives", "counting")
    @declare(needs=("memory",))
    def counting(logits, targets, temperature, *, memory):
        held.append((memory.students, float(memory.get("steps", torch.zeros(1)))))
        memory["steps"] = memory.get("steps", torch.zeros(1)) + 1
        return forward_kl(logits, targets, temperature)

    for _ in range(2):
        trained(samples, soft("counting"))
    assert held == [(1, float(step)) for step in range(5)] * 2


def test_memory_has_no_graph(samples):
    @registry.register("objectives", "greedy")
    @declare(needs=("memory",))
    def greedy(logits, targets, temperature, *, memory):
        assert not any(tensor.requires_grad for tensor in memory.values())
        losses = forward_kl(logits, targets, temperature)
        memory["sum"] = memory.get("sum", 0.0) + losses.sum()[None]
        return losses

    trained(samples, soft("greedy"))


def test_memory_goes_on_with_those_who_stay():
    memory = Memory(5)
    memory |= {"all": torch.arange(5.0), "first": torch.arange(3.0)}
    memory.settle("mine")
    memory.keep(torch.tensor([0, 2, 4]))
    assert memory.students == 3
    assert memory["all"].tolist() == [0, 2, 4]
    assert memory["first"].tolist() == [0, 2]  # the last has no entry yet


def test_memory_of_another_shape_is_one_line(samples):
    @registry.register("objectives", "wide")
    @declare(needs=("memory",))
    def wide(logits, targets, temperature, *, memory):
        memory["all"] = logits
        return forward_kl(logits, targets, temperature)

    with pytest.raises(FedkdError, match=r"'wide': memory\['all'\] is \(8, 4\); .* \(1,\), an ent"):
        trained(samples, soft("wide"))


# --- labels of the teacher ------------------------------------------------------------------------


def test_the_teachers_labels_are_its_likeliest_classes(samples):
    term = soft(ARGMAX)
    theirs = Samples(samples.inputs, term.targets.argmax(1))
    assert torch.equal(trained(Samples(samples.inputs), term), trained(theirs, soft("not_true")))
    assert not torch.equal(trained(samples, term), trained(samples, soft("not_true")))
    own = soft({"name": "not_true", "labels": "own"})
    assert torch.equal(trained(samples, own), trained(samples, soft("not_true")))


def test_they_go_with_options_and_with_rows_without_a_target(samples):
    term = soft({"name": "dkd", "beta": 2.0, "labels": "argmax"}, per="class", rows=4)
    term.targets[1] = torch.nan
    assert trained(samples, term).isfinite().all()
    assert made(term.objective).beta == 2


def test_over_candidates_they_are_the_likeliest_column(samples):
    term = soft(ARGMAX, among=torch.arange(3).expand(40, 3).contiguous())
    theirs = Samples(samples.inputs, term.targets.argmax(1))  # whose last column is class 3
    found = trained(Samples(samples.inputs), term)
    torch.testing.assert_close(found, trained(theirs, soft("not_true")))


def test_text_needs_no_labels_for_them(tmp_path):
    host = Worker(texts.experiment(tmp_path))
    rows, classes = len(host.label_rows("transfer")), host.data.task.classes
    targets = torch.randn(rows, classes, generator=torch.Generator()).softmax(1)
    before = {name: value.clone() for name, value in host.state(0)["own"].items()}
    reply = host.perform(Assignment(0, 1, "receive", (Fit("transfer", (Soft(targets, ARGMAX),)),)))
    assert not reply.error
    assert any(not torch.equal(before[name], value) for name, value in host.state(0)["own"].items())


def test_a_student_on_the_server_learns_by_them(small):
    experiment = small()
    server = ServerStudents(experiment)
    server.add("student", lambda: build("mlp", (1, 8, 8), 10, experiment.student, 0))
    given, targets = Samples(torch.rand(40, 1, 8, 8)), torch.rand(40, 10).softmax(1)
    assert server.fit("student", 1, given, [Soft(targets, ARGMAX)], 1) > 0
    with pytest.raises(
        FedkdError, match=r"'not_true' needs labels.* labels = 'argmax' takes the t"
    ):
        server.fit("student", 1, given, [Soft(targets, "not_true")], 1)


def test_the_choice_travels():
    asked = Assignment(0, 1, "receive", (Fit("transfer", (soft(ARGMAX),)),))
    assert decode(Codec().encode(asked)).steps[0].terms[0].objective == ARGMAX


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ({"name": "dkd", "labels": "teacher"}, "labels = 'teacher' is not allowed; allowed: 'own'"),
        ({"name": "forward_kl", "labels": "argmax"}, "no effect: 'forward_kl' needs no labels"),
    ],
)
def test_a_choice_that_is_none_is_one_line(chosen, line):
    with pytest.raises(FedkdError, match=line):
        made(chosen)


def test_a_method_distils_by_them_on_its_transfer_set(small, tmp_path):
    few = ["strategy.name=knfu", "rounds=1"]
    table = [*few, "strategy.objective.name=not_true", "strategy.objective.labels=argmax"]
    done = run(small(*table), tmp_path / "argmax")
    assert measured(done) != measured(run(small(*few), tmp_path / "kl"))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coupled", "everything"])
def test_dp_sgd_does_not_go_with_what_couples_private_rows(name, small, tmp_path):
    private = ["training.dp.noise_multiplier=1", "rounds=1", "strategy.name=fedntd"]
    line = rf"'{name}' is not allowed on private samples with training\.dp\.noise_multiplier = 1: "
    with pytest.raises(FedkdError, match=f"{line}.*groups.*allowed: .* or on = 'transfer'"):
        run(small(*private, f"strategy.objective={name}"), tmp_path / "run")


def test_dp_sgd_does_not_go_with_it_in_the_loop_either(samples):
    dp = DPSGD(PrivateTraining(noise_multiplier=1.0), "private", 0)
    with pytest.raises(FedkdError, match="= 1 does not work with objective = 'coupled' on private"):
        trained(samples, soft("coupled"), dp=dp)
    assert trained(samples, soft("paced"), dp=dp).isfinite().all()


def test_dp_sgd_goes_with_it_on_the_transfer_set(small, tmp_path):
    noisy = ["training.dp.noise_multiplier=1", "rounds=1", "strategy.name=knfu"]
    run(small(*noisy, "strategy.objective=coupled"), tmp_path / "run")
    assert needy.seen


def test_what_is_of_all_classes_alone_does_not_go_with_candidates(samples):
    among = torch.arange(3).expand(40, 3).contiguous()
    with pytest.raises(FedkdError, match="'coupled' is not allowed with candidates"):
        trained(samples, soft("coupled", among=among))


def test_the_list_tells_it(fedkd):
    lines = dict(line.split(None, 1) for line in fedkd("list", "objectives")[1].splitlines())
    assert lines["coupled"].endswith("(needs groups; no candidates)")
    assert lines["everything"].endswith("(needs labels, progress, groups, memory; rate = 0.5)")
    assert lines["mse_logits"].endswith("(takes logits; no candidates)")
