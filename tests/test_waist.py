"""Laws of the steps and terms, as a client performs them, and of what goes round them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_work import same
from torch import nn

from fedkd import FedkdError, run
from fedkd.codec import Codec, decode, nbytes
from fedkd.data.dataset import Task
from fedkd.engine.worker import Worker
from fedkd.experiment import StudentTable, TrainingTable
from fedkd.mixtures import Band, Labels, Mean, Mixture, Surest
from fedkd.server import ServerStudents, blocks_above, small_head
from fedkd.students import build
from fedkd.summaries import reached, spread
from fedkd.training import fit, predict, represent
from fedkd.work import (
    Align,
    Assignment,
    Contrast,
    CrossEntropy,
    Feature,
    Fit,
    Head,
    Hold,
    Load,
    Predict,
    Reply,
    Represent,
    Samples,
    Select,
    Share,
    Soft,
)

CUT = "fc1"
ABOVE = ("fc2", "head")
STEP = TrainingTable(optimiser="sgd", lr=0.1, batch_size=40, local_epochs=1)
"""One step on all samples."""


@pytest.fixture
def worker(small):
    """A worker of the small experiment, with narrow students."""
    return lambda *overrides: Worker(small("student.width=0.1", *overrides))


def do(worker, *steps, client=0, trial=()):
    return worker.perform(Assignment(client, 1, "learn", steps, trial))


def student(seed=0, norm="none"):
    return build("mlp", (6,), 4, StudentTable(width=0.1, norm=norm), seed)


def parameters(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def above(model):
    return {n: value for n, value in parameters(model).items() if n.startswith(ABOVE)}


def trained(samples, *terms, training=STEP, norm="none", **options):
    model = student(norm=norm)
    loss = fit(model, samples, terms, training, torch.Generator().manual_seed(0), **options)
    return parameters(model), loss


def moved(after, before):
    """Names of the blocks that are not bit for bit what they were."""
    return {name.split(".")[0] for name in before if not torch.equal(after[name], before[name])}


def soft_targets(rows=40, classes=4):
    draw = torch.randn(rows, classes, generator=torch.Generator().manual_seed(1))
    return (2 * draw).softmax(1)


# --- Represent and Predict ------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "blocks"), [("conv1", 1), ("conv2", 2), ("fc1", 3)])
def test_a_representation_is_what_the_blocks_up_to_the_cut_give(cut, blocks, worker):
    host = worker("student.models=['cnn2']")
    sent = do(host, Represent(cut)).values["representation"]
    private = host.samples(0, "private")
    with torch.no_grad():
        base = host.module(0, "own").eval()[:blocks]
        assert torch.allclose(sent["inputs"], base(private.inputs), atol=1e-6)
    assert torch.equal(sent["labels"], private.labels)


def test_a_representation_comes_with_the_soft_labels_of_predict(worker):
    host = worker()
    steps = (Represent(CUT, temperature=3.0), Predict("private", temperature=3.0))
    values = do(host, *steps).values
    assert torch.allclose(values["representation"]["soft_labels"], values["soft_labels"], atol=1e-6)


def test_the_rest_of_the_student_makes_its_logits_of_a_representation(worker):
    host = worker("student.models=['cnn2']")
    values = do(host, Represent("conv2"), Predict("private", output="logits", key="logits")).values
    with torch.no_grad():
        rest = host.module(0, "own").eval()[2:]
        assert torch.allclose(rest(values["representation"]["inputs"]), values["logits"], atol=1e-5)


def test_a_transfer_set_has_representations_without_labels(worker):
    sent = do(worker(), Represent(CUT, on="transfer")).values["representation"]
    assert list(sent) == ["inputs", "soft_labels"]
    assert len(sent["inputs"]) == 80


def test_pooling_averages_a_feature_map_over_its_places(worker):
    host = worker("student.models=['cnn2']")
    values = do(host, Represent("conv1"), Represent("conv1", pool=True, key="pooled")).values
    maps, pooled = values["representation"]["inputs"], values["pooled"]["inputs"]
    assert maps.dim() == 4
    assert torch.allclose(pooled, maps.mean((2, 3)))


def test_pooling_leaves_features_as_they_are(worker):
    values = do(worker(), Represent(CUT), Represent(CUT, pool=True, key="pooled")).values
    assert torch.equal(values["pooled"]["inputs"], values["representation"]["inputs"])


def test_means_per_class_are_those_of_the_rows(worker):
    host = worker("student.models=['cnn2']")
    values = do(
        host,
        Represent("conv1"),
        Represent("conv1", per="class", key="means"),
        Predict("private", output="logits", key="logits"),
        Predict("private", output="logits", per="class", key="mean_logits"),
    ).values
    rows, labels = values["representation"]["inputs"].flatten(1), values["representation"]["labels"]
    for found, each in ((values["means"], rows), (values["mean_logits"], values["logits"])):
        assert found["count"].tolist() == labels.bincount(minlength=10).tolist()
        for label in range(10):
            held = each[labels == label]
            mean = held.mean(0) if len(held) else torch.zeros(each.shape[1])
            assert torch.allclose(found["mean"][label], mean, atol=1e-5)


@pytest.mark.parametrize("step", [Represent(CUT, "transfer", per="class"), Predict(per="class")])
def test_means_per_class_need_labels(step, worker):
    with pytest.raises(FedkdError, match="per class: the samples have no labels"):
        do(worker(), step)


@pytest.mark.parametrize("cut", ["conv9", "head", "fc"])
def test_an_unknown_cut_is_one_line_that_names_the_cuts(cut, worker, samples):
    line = rf"cut '{cut}' is not a cut of this student.*its cuts, .*: fc1, fc2$"
    targets = torch.zeros(10, 20)
    for step in (
        Represent(cut),
        Fit(terms=(Feature(targets, cut),)),
        Fit(terms=(CrossEntropy(through=Head(cut, {})),)),
    ):
        with pytest.raises(FedkdError, match=line):
            do(worker(), step)


# --- Feature --------------------------------------------------------------------------------


def test_prototypes_move_nothing_above_the_cut(samples):
    assert moved(trained(samples, Feature(torch.randn(4, 20), CUT))[0], parameters(student())) == {
        CUT
    }


def test_a_representation_at_its_prototype_stays(samples):
    one_a_class = samples.inputs[:4][samples.labels]
    at = represent(student(), one_a_class[:4], CUT)[0].clone()
    after, loss = trained(Samples(one_a_class, samples.labels), Feature(at, CUT))
    assert loss == pytest.approx(0, abs=1e-12)
    for name, before in parameters(student()).items():
        assert torch.allclose(after[name], before, atol=1e-6)


def test_the_distance_is_the_mean_square_over_features_and_samples(samples):
    targets = torch.randn(4, 20)
    _, loss = trained(samples, Feature(targets, CUT, weight=0.5))
    held, _ = represent(student(), samples.inputs, CUT)
    expected = 0.5 * (held - targets[samples.labels]).square().mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_a_target_a_sample_is_the_target_of_its_class_where_it_is_that(samples):
    targets = torch.randn(4, 20)
    targets[1] = torch.nan
    for measure in ("squared", "cosine"):
        by_class = trained(samples, Feature(targets, CUT, measure))
        rows = targets[samples.labels]
        a_sample = trained(Samples(samples.inputs), Feature(rows, CUT, measure, per="sample"))
        assert a_sample[1] == by_class[1] > 0
        assert moved(*(after for after, _ in (a_sample, by_class))) == set()


def test_the_cosine_is_of_the_angle_whatever_the_targets_length(samples):
    targets = torch.randn(4, 20)
    held, _ = represent(student(), samples.inputs, CUT)
    expected = 1 - torch.nn.functional.cosine_similarity(held, targets[samples.labels])
    after, loss = trained(samples, Feature(targets, CUT, "cosine", weight=2.0))
    assert loss == pytest.approx(2 * float(expected.mean()), rel=1e-5)
    longer, _ = trained(samples, Feature(16 * targets, CUT, "cosine", weight=2.0))
    assert moved(after, longer) == set()
    _, none = trained(samples, Feature(held, CUT, "cosine", per="sample"))
    assert none == pytest.approx(0, abs=1e-6)


def test_norms_are_what_short_representations_are_measured_against(samples):
    """ND: beyond its norm a representation is turned alone, below it also made longer."""
    targets, (held, _) = torch.randn(40, 20), represent(student(), samples.inputs, CUT)
    lengths = held.norm(dim=1)
    cosine = Feature(targets, CUT, "cosine", "sample")
    short = trained(samples, replace(cosine, norms=0.9 * lengths))
    assert moved(short[0], trained(samples, cosine)[0]) == set()
    long = trained(samples, replace(cosine, norms=2 * lengths))[1]
    assert 1 - long == pytest.approx((1 - short[1]) / 2, rel=1e-4)


@pytest.mark.parametrize("norms", [None, torch.ones(4)])
def test_a_representation_of_zeros_has_a_gradient(norms, samples):
    zeros = Samples(torch.zeros(40, 6), samples.labels)
    after, loss = trained(zeros, Feature(torch.randn(4, 20), CUT, "cosine", norms=norms))
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert math.isfinite(loss)


# --- Contrast -------------------------------------------------------------------------------


def sides(samples):
    """Representations at the cut of two other students, ``(40, d)`` each."""
    return [represent(student(seed), samples.inputs, CUT)[0].clone() for seed in (3, 4)]


def test_contrast_is_the_cross_entropy_of_two_cosines(samples):
    positive, negative = sides(samples)
    _, loss = trained(samples, Contrast(positive, negative, CUT, 0.2, weight=0.7))
    held, _ = represent(student(), samples.inputs, CUT)
    cosines = [torch.cosine_similarity(held, side) for side in (positive, negative)]
    logits = torch.stack(cosines, 1) / 0.2
    expected = nn.functional.cross_entropy(logits, torch.zeros(40, dtype=torch.long))
    assert loss == pytest.approx(0.7 * float(expected), rel=1e-5)


def test_contrast_moves_nothing_above_the_cut(samples):
    after, _ = trained(samples, Contrast(*sides(samples), CUT))
    assert moved(after, parameters(student())) == {CUT}


def test_contrast_of_one_with_itself_teaches_nothing(samples):
    positive, _ = sides(samples)
    after, loss = trained(samples, Contrast(positive, positive, CUT))
    assert loss == pytest.approx(math.log(2), rel=1e-6)
    assert moved(after, parameters(student())) == set()


def test_contrast_with_the_sides_swapped_goes_the_other_way(samples):
    """The loss of a sample is softplus of a difference, and that of the other is of minus it."""
    positive, negative = sides(samples)
    (_, one), (_, other) = (
        trained(samples, Contrast(*pair, CUT, 10.0))
        for pair in ((positive, negative), (negative, positive))
    )
    held, _ = represent(student(), samples.inputs, CUT)
    gap = torch.cosine_similarity(held, positive) - torch.cosine_similarity(held, negative)
    assert other - one == pytest.approx(float(gap.mean()) / 10, rel=1e-3, abs=1e-6)


def test_contrast_brings_representations_to_the_positive(samples):
    positive, negative = sides(samples)
    training = TrainingTable(optimiser="adam", lr=0.01, batch_size=8, local_epochs=20)
    model = student()
    term = Contrast(positive, negative, CUT)
    fit(model, samples, [term], training, torch.Generator().manual_seed(0))

    def gap(model):
        held, _ = represent(model, samples.inputs, CUT)
        ours = [torch.cosine_similarity(held, side).mean() for side in (positive, negative)]
        return float(ours[0] - ours[1])

    assert gap(model) > gap(student()) + 0.1


@pytest.mark.parametrize("on", ["private", "transfer"])
def test_students_names_stand_for_their_representations_when_the_step_begins(on, worker):
    def learned(sides_of):
        host = worker()
        do(host, Hold("peer"), Fit(student="peer", epochs=1))
        said = [
            do(host, Represent(CUT, on, student=name)).values["representation"]["inputs"]
            for name in ("own", "peer")
        ]
        do(host, Fit(on, (Contrast(*sides_of(said), CUT),)))
        return host.state(0)["own"]

    assert moved(learned(lambda _: ("own", "peer")), learned(lambda said: said)) == set()


# --- Load of another student of the client --------------------------------------------------


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_a_student_takes_in_what_another_is_by_then(cohort, worker):
    host = worker(f"engine.cohort={cohort}")
    given = {name: value.clone() for name, value in host.state(1)["own"].items()}
    steps = (Fit(), Hold("before"), Load("own", student="before"), Load(given), Share(key="now"))
    replies = host.perform_all([Assignment(n, 1, "learn", steps) for n in range(2)], lambda _: None)
    fresh = worker(f"engine.cohort={cohort}")
    fresh.perform_all([Assignment(n, 1, "learn", (Fit(),)) for n in range(2)], lambda _: None)
    for client, reply in enumerate(replies):
        assert not moved(reply.values["now"], given)
        kept = host.state(client)
        assert not moved(kept[host.key(client, "before")], fresh.state(client)["own"])
        assert moved(kept[host.key(client, "before")], kept["own"]) == {"fc1", "fc2", "head"}


def test_it_takes_in_some_blocks_where_some_are_named(worker):
    host = worker()
    do(host, Hold("peer"), Fit(), Load("own", part=("head",), student="peer"))
    own, peer = host.state(0)["own"], host.state(0)[host.key(0, "peer")]
    assert moved(peer, own) == {"fc1", "fc2"}


# --- rows without a target ------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["forward_kl", "mse_logits"])
@pytest.mark.parametrize("per", ["sample", "class"])
def test_rows_of_nan_contribute_nothing_and_count_as_samples(objective, per, samples):
    """As if the samples were not there, and the mean still over all of them."""
    targets = soft_targets() if per == "sample" else soft_targets(4)
    without = samples.labels == 2
    holes = targets.clone()
    holes[without if per == "sample" else 2] = torch.nan
    after, loss = trained(samples, Soft(holes, objective, per=per))
    there = Samples(samples.inputs[~without], samples.labels[~without])
    rows = targets[~without] if per == "sample" else targets
    share = float((~without).float().mean())
    expected, part = trained(there, Soft(rows, objective, weight=share, per=per))
    assert loss == pytest.approx(part, rel=1e-5)
    assert moved(after, parameters(student())) == {"fc1", "fc2", "head"}
    for name, value in expected.items():
        assert torch.allclose(after[name], value, atol=1e-6)


def test_a_class_without_a_prototype_is_passed_over(samples):
    targets = torch.randn(4, 20)
    targets[1] = torch.nan
    _, loss = trained(samples, Feature(targets, CUT))
    held, _ = represent(student(), samples.inputs, CUT)
    there = samples.labels != 1
    pieces = (held - targets[samples.labels])[there].square().mean(1)
    assert loss == pytest.approx(float(pieces.sum() / 40), rel=1e-5)


@pytest.mark.parametrize(
    "term",
    [
        Soft(torch.full((40, 4), torch.nan)),
        Soft(torch.full((4, 4), torch.nan), "mse_logits", per="class"),
        Feature(torch.full((4, 20), torch.nan), CUT),
    ],
)
def test_no_target_at_all_changes_nothing(term, samples):
    training = TrainingTable(optimiser="adam", lr=0.1, batch_size=16)
    after, loss = trained(samples, term, training=training)
    assert loss == 0
    assert moved(after, parameters(student())) == set()
    both, _ = trained(samples, CrossEntropy(), term, training=training)
    assert moved(both, trained(samples, CrossEntropy(), training=training)[0]) == set()


# --- through a frozen head, and reach -------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_frozen_head_teaches_the_base_alone_and_stays_as_it_is(optimiser, samples):
    head = Head(CUT, above(student(seed=5)))
    before = {name: value.clone() for name, value in head.parameters.items()}
    training = TrainingTable(optimiser=optimiser, lr=0.05, batch_size=8, local_epochs=3)
    terms = (Soft(soft_targets(), through=head), CrossEntropy(through=head))
    after, _ = trained(samples, *terms, training=training)
    assert moved(after, parameters(student())) == {CUT}
    assert moved(head.parameters, before) == set()


def test_a_frozen_head_with_batch_statistics_stays_as_it_is(samples):
    head = Head(CUT, above(student(seed=5, norm="batch")))
    before = {name: value.clone() for name, value in head.parameters.items()}
    trained(samples, Soft(soft_targets(), through=head), norm="batch")
    assert moved(head.parameters, before) == set()


@pytest.mark.parametrize("plain", [Soft(soft_targets(), temperature=2.0), CrossEntropy()])
def test_through_its_own_blocks_a_term_is_what_it_was(plain, samples):
    """In value, and in what one step makes of the base."""
    kind = type(plain)
    values = {**vars(plain), "through": Head(CUT, above(student()))}
    through, loss = trained(samples, kind(**values))
    expected, value = trained(samples, plain)
    assert loss == pytest.approx(value, rel=1e-6)
    for name in expected:
        if name.startswith(CUT):
            assert torch.allclose(through[name], expected[name], atol=1e-7)
    assert moved(through, parameters(student())) == {CUT}


def test_a_reach_up_to_the_cut_has_no_gradient_above_it(samples):
    """One step: the blocks above are where cross-entropy alone takes them, to the bit."""
    soft = Soft(soft_targets(), weight=3.0, reach=(CUT,))
    both, _ = trained(samples, CrossEntropy(), soft)
    alone, _ = trained(samples, CrossEntropy())
    assert moved(both, alone) == {CUT}


def test_within_its_reach_a_term_has_its_whole_gradient(samples):
    bounded, _ = trained(samples, CrossEntropy(), Soft(soft_targets(), reach=(CUT,)))
    free, _ = trained(samples, CrossEntropy(), Soft(soft_targets()))
    for name in free:
        if name.startswith(CUT):
            assert torch.allclose(bounded[name], free[name], atol=1e-7)


# --- students that teach each other ---------------------------------------------------------


@pytest.mark.parametrize("objective", ["forward_kl", "mse_logits"])
@pytest.mark.parametrize("on", ["private", "transfer"])
def test_a_students_name_stands_for_what_it_says(objective, on, worker):
    ask = Predict(
        on,
        2.0,
        output="logits" if objective == "mse_logits" else "probabilities",
        student="peer",
    )

    def learned(targets_of):
        host = worker()
        hold = Hold("peer", "cnn2")
        said = do(host, hold, ask).values["soft_labels"]
        soft = Soft(targets_of(said), objective, temperature=2.0)
        do(host, Fit(on, (soft,)))
        return host.state(0)["own"]

    assert moved(learned(lambda _: "peer"), learned(lambda said: said)) == set()


def test_a_student_that_teaches_itself_learns_nothing(worker):
    host = worker("training.optimiser=sgd", "training.lr=0.5")
    before = {name: value.clone() for name, value in host.state(0)["own"].items()}
    reply = do(host, Fit(terms=(Soft("own", temperature=2.0),), epochs=1))
    assert reply.metrics["train_loss"] == pytest.approx(0, abs=1e-6)
    for name, value in host.state(0)["own"].items():
        assert torch.allclose(value, before[name], atol=1e-5)


def test_a_teacher_nobody_has_is_one_line(worker):
    with pytest.raises(FedkdError, match=r"student 'peer' is not known; known: own"):
        do(worker(), Fit(terms=(Soft("peer"),)))


# --- Hold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["", "cnn2"])
def test_a_held_student_starts_equal_on_all_clients(model, worker):
    host = worker()
    shared = [
        do(host, Hold("peer", model), Share(student="peer"), client=client).values["parameters"]
        for client in range(4)
    ]
    assert all(moved(one, shared[0]) == set() for one in shared)
    assert ("conv1.0.weight" in shared[0]) == (model == "cnn2")
    assert moved(host.state(0)["own"], host.state(1)["own"])


@pytest.mark.parametrize("model", ["", "cnn2"])
def test_a_held_student_is_kept_and_a_second_hold_changes_nothing(model, worker):
    host = worker()
    do(host, Hold("peer", model), Fit(student="peer"))
    (name,) = host.state(0).keys() - {"own"}
    assert name.partition(":")[0] == "peer"
    learned = {key: value.clone() for key, value in host.state(0)[name].items()}
    fresh = do(host, Hold("peer", model), Share(student="peer"), client=1).values["parameters"]
    assert moved(learned, fresh)
    again = do(host, Hold("peer", model), Share(student="peer"))
    assert moved(again.values["parameters"], learned) == set()
    other = do(host, Hold("peer", "cnn3"), Share(student="peer"))
    assert moved(other.values["parameters"], learned) == set()
    assert list(host.state(0)) == ["own", name]


def test_a_held_student_leaves_the_own_one_alone(worker):
    host = worker()
    before = {key: value.clone() for key, value in host.state(0)["own"].items()}
    do(host, Hold("peer"), Fit(student="peer"))
    assert moved(host.state(0)["own"], before) == set()


def test_a_student_held_in_a_trial_is_gone_afterwards(worker):
    host = worker()
    do(host, trial=(Hold("guest"), Fit(student="guest")))
    assert list(host.state(0)) == ["own"]


def test_holding_an_unknown_architecture_is_one_line(worker):
    with pytest.raises(FedkdError, match="'cnn22' is not known"):
        do(worker(), Hold("peer", "cnn22"))


# --- on the way -----------------------------------------------------------------------------

NORMS = torch.tensor([1.0, 0.0, 2.0])
HEAD = Head("conv1", {"head.weight": torch.randn(3, 4), "head.count": torch.tensor(2)})


@pytest.mark.parametrize(
    "step",
    [
        Represent("conv1", "transfer", 3.0, pool=True, per="class", key="h", student="peer"),
        Hold("peer", "cnn2"),
        Select("common", 0.2, 0.5, key="mine"),
        Predict("private", output="logits", per="class", key="means"),
        Fit(terms=(Feature(torch.randn(3, 5), "conv1", weight=0.5, on="private"),)),
        Fit("transfer", (Feature(torch.randn(3, 5), "conv1", "cosine", "sample", norms=NORMS),)),
        Fit(terms=(Soft(Mixture((torch.rand(3, 4), "peer", Labels(0.1)), Mean((1.0, 0.5, 0.0)))),)),
        Fit(terms=(Soft(Mixture(("own", torch.rand(3, 4)), Surest("entropy"))),)),
        Fit(terms=(Soft(Mixture(("own", Labels()), Band(0.1, 0.4))),)),
        Fit(terms=(Soft(Mixture(("own", torch.rand(3, 3)), Surest(every=True)), per="class"),)),
        Align("private", ("head",), "peer"),
        Fit(terms=(Soft("peer"), Soft("own", through=HEAD, reach=("conv1",)))),
        Fit(terms=(CrossEntropy(0.5, through=HEAD), CrossEntropy())),
        Fit(on=Samples(torch.randn(2, 3)), student="peer"),
        Load({}, student="peer"),
    ],
)
def test_every_step_survives_the_way_bit_for_bit(step):
    assignment = Assignment(1, 2, "learn", (step,), (step,))
    assert same(decode(Codec().encode(assignment)), assignment)


def test_rows_of_nan_survive_the_way():
    targets = torch.tensor([[0.25, 0.75], [torch.nan, torch.nan]])
    steps = (Fit(terms=(Soft(targets, per="class"),)),)
    got = decode(Codec().encode(Assignment(0, 1, "learn", steps))).steps[0].terms[0].targets
    assert torch.equal(got.nan_to_num(-1), targets.nan_to_num(-1))


def test_a_reply_with_representations_survives_and_counts_its_arrays():
    sent = {"inputs": torch.randn(5, 2, 3, 3), "soft_labels": torch.rand(5, 3)}
    sent["labels"] = torch.arange(5)
    reply = decode(Codec().encode(Reply(0, 5, {"representation": sent})))
    assert same(reply.values["representation"], sent)
    assert nbytes(reply.values) == 4 * (5 * 18 + 15) + 8 * 5


# --- students on the server -----------------------------------------------------------------


def head_for(experiment):
    return lambda: small_head(experiment, Task((6,), 4, tuple("abcd")), (6,), 8, "h")


def served(experiment, samples, *rounds):
    server = ServerStudents(experiment)
    server.add("h", head_for(experiment))
    for number in rounds:
        server.fit("h", number, samples, (CrossEntropy(),), 2)
    return server


def test_training_on_the_server_is_deterministic(small, samples):
    experiment = small()
    torch.manual_seed(1)
    once = served(experiment, samples, 1, 2).parameters("h")
    torch.manual_seed(2)
    assert moved(served(experiment, samples, 1, 2).parameters("h"), once) == set()
    assert moved(served(small("seed=1"), samples, 1, 2).parameters("h"), once)


def test_a_restored_server_goes_on_as_it_would_have(small, samples):
    experiment = small()
    state = served(experiment, samples, 1).state()
    resumed = ServerStudents(experiment)
    resumed.restore(state)
    resumed.add("h", head_for(experiment))
    resumed.fit("h", 2, samples, (CrossEntropy(),), 2)
    whole = served(experiment, samples, 1, 2)
    assert moved(resumed.parameters("h"), whole.parameters("h")) == set()


def test_restoring_takes_the_place_of_students_that_are_there(small, samples):
    """A strategy has made its students by the time that it is restored."""
    experiment = small()
    state = served(experiment, samples, 1).state()
    resumed = served(experiment, samples)
    resumed.restore(state)
    resumed.add("h", head_for(experiment))
    assert moved(resumed.parameters("h"), state["students"]["h"]) == set()


def test_the_server_learns(small, samples):
    experiment = small("training.lr=0.02", "training.batch_size=8")
    server = served(experiment, samples, *range(1, 11))
    assert (server.predict("h", samples.inputs).argmax(1) == samples.labels).float().mean() > 0.8


def test_blocks_above_fit_on_the_base_by_name_and_shape(small):
    task = Task((1, 8, 8), 4, tuple("abcd"))
    head = blocks_above(small(), task, "cnn2", "conv2")
    whole = build("cnn2", (1, 8, 8), 4, StudentTable(), 0)
    assert {n: v.shape for n, v in head.state_dict().items()} == {
        n: v.shape for n, v in whole.state_dict().items() if n.startswith(("fc1", "head"))
    }
    base = whole[:2]
    logits = predict(nn.Sequential(base, head), torch.randn(3, 1, 8, 8))
    assert logits.shape == (3, 4)


# --- drop-outs ------------------------------------------------------------------------------

MANY = ("strategy.name=local", "data.clients=20", "data.samples_per_client=10")


def test_about_the_stated_share_drops_out(small, tmp_path):
    none = ("training.local_epochs=0", "rounds=25", "evaluate_every=25", "dropout=0.4")
    lines = run(small(*MANY, *none), tmp_path / "run").rounds
    shares = [len(line["dropped_out"]) / 20 for line in lines]
    assert 0.3 < sum(shares) / 25 < 0.5  # the standard deviation is 0.022
    assert len(set(shares)) > 3
    for line in lines:
        assert sorted(line["participants"] + line["dropped_out"]) == list(range(20))


def test_one_at_least_stays(small, tmp_path):
    lines = run(small("strategy.name=fedavg", "dropout=0.99", "rounds=5"), tmp_path / "run").rounds
    assert all(line["participants"] for line in lines)
    assert sum(len(line["participants"]) for line in lines) < 8


def test_no_dropout_is_no_entry(small, tmp_path):
    line = run(small("strategy.name=local", "rounds=1"), tmp_path / "run").rounds[0]
    assert "dropped_out" not in line


def test_who_drops_out_is_unchanged_bit_for_bit(small, tmp_path, monkeypatch):
    workers = []
    init = Worker.__init__
    monkeypatch.setattr(
        Worker, "__init__", lambda self, *a, **k: (init(self, *a, **k), workers.append(self))[0]
    )
    experiment = small(*MANY, "rounds=1", "dropout=0.5")
    gone = run(experiment, tmp_path / "run").rounds[0]["dropped_out"]
    assert 0 < len(gone) < 20
    fresh = Worker(experiment)
    for client in range(20):
        changed = moved(workers[0].state(client)["own"], fresh.state(client)["own"])
        assert bool(changed) == (client not in gone)


# --- fairness and convergence ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "index"),
    [([0.7, 0.7, 0.7], 1.0), ([1, 0, 0, 0], 0.25), ([1, 1, 0, 0], 0.5), ([1, 2, 3], 36 / 42)],
)
def test_jains_index_knows_the_answers(values, index):
    assert spread(values, "x")["x_jain"] == pytest.approx(index)
    assert spread([10 * value for value in values], "x")["x_jain"] == pytest.approx(index)


def test_jains_index_of_zeros_is_one():
    assert spread([0.0, 0.0], "x")["x_jain"] == 1.0


def test_rounds_and_bytes_to_a_target():
    lines = [
        {"round": 1, "bytes_up": 10, "bytes_down": 1, "own_accuracy_mean": 0.4},
        {"round": 2, "bytes_up": 10, "bytes_down": 2},
        {"round": 3, "bytes_up": 10, "bytes_down": 3, "own_accuracy_mean": 0.6},
        {"round": 4, "bytes_up": 10, "bytes_down": 4, "own_accuracy_mean": 0.5},
    ]

    def found(target):
        return tuple(reached(SimpleNamespace(rounds=lines), target).values())

    assert found(0.3) == (1, 11)
    assert found(0.5) == (3, 36)
    assert found(0.6) == (3, 36)
    assert found(0.61) == (None, None)


@pytest.mark.parametrize(("target", "rounds"), [(0.01, 1), (1.0, None)])
def test_the_summary_counts_rounds_to_the_target(target, rounds, small, tmp_path):
    summary = run(
        small("strategy.name=fedavg", f"target_accuracy={target}", "training.local_epochs=1"),
        tmp_path / "run",
    ).summary
    assert summary["target_accuracy"] == target
    assert summary["rounds_to_target"] == rounds
    assert (summary["bytes_to_target"] is None) == (rounds is None)


def test_without_a_target_the_summary_says_nothing_of_it(small, tmp_path):
    summary = run(small("strategy.name=local", "rounds=1"), tmp_path / "run").summary
    assert "rounds_to_target" not in summary


# --- found while building -------------------------------------------------------------------


def test_a_head_that_lacks_parameters_is_one_line(samples):
    parameters = above(student(seed=5))
    parameters.pop(next(iter(parameters)))
    with pytest.raises(FedkdError, match="Head: its parameters are not those of the blocks above"):
        trained(samples, Soft(soft_targets(), through=Head(CUT, parameters)))


def test_targets_of_a_source_of_its_own_are_counted_too(samples):
    model = student()
    with pytest.raises(FedkdError, match="3 targets for"):
        fit(
            model,
            samples,
            [Soft(torch.full((3, 4), 0.25), on="private")],
            STEP,
            torch.Generator(),
            sources={"private": lambda: samples},
        )


def test_statistics_of_blocks_that_do_not_learn_stay_as_they_are():
    model = build("cnn2", (1, 8, 8), 4, StudentTable(norm="batch", width=0.25), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = Samples(torch.randn(32, 1, 8, 8), torch.arange(32) % 4)
    fit(model, images, [CrossEntropy()], STEP, torch.Generator(), part=("head",))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("head")), name


def test_a_name_with_a_colon_is_refused(worker):
    with pytest.raises(FedkdError, match="a name has no colon"):
        do(worker(), Hold("a:b"))
