"""Clients in a cohort compute what each computes alone."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from lines import measured

from fedkd import Experiment, run
from fedkd.engine import rule
from fedkd.engine.worker import Worker
from fedkd.mixtures import Labels, Mean, Mixture, Surest
from fedkd.work import (
    Assignment,
    Blend,
    Contrast,
    CrossEntropy,
    Evaluate,
    Feature,
    Fit,
    Head,
    Hold,
    Linear,
    Load,
    Peer,
    Predict,
    Prior,
    Proximal,
    Represent,
    Samples,
    Share,
    Soft,
)

CLIENTS = 4
TOLERANCE = 1e-3
"""Of parameters, probabilities and losses after some tens of steps in float32."""

UNEVEN = """
rounds = 2
[data]
clients = 4
partition = "dirichlet"
alpha = 2.0
sizes = "natural"
[data.test]
common = 60
[data.transfer]
size = 50
[student]
models = ["mlp"]
width = 0.25
[training]
local_epochs = 1.5
batch_size = 64
"""
STUDENTS = [
    ("mlp", "none"),
    ("mlp", "group"),
    ("cnn2", "none"),
    ("cnn2", "group"),
    ("cnn3", "none"),
    ("resnet8", "group"),
]
OPTIMISERS = {
    "sgd": "training.optimiser='sgd'",
    "adam": "training.optimiser='adam'",
    "adamw": "training.optimiser='adamw'",
}


def experiment(*overrides):
    return Experiment.from_toml(UNEVEN, overrides)


def worker(cohort, *overrides):
    return Worker(experiment(*overrides, f"engine.cohort={cohort}"))


def performed(cohort, steps_of, *overrides, trial=()):
    """Replies and what clients keep; ``steps_of(worker, client)`` gives a client's steps."""
    host, told = worker(cohort, *overrides), []
    work = [
        Assignment(client, 1, "learn", tuple(steps_of(host, client)), trial)
        for client in range(CLIENTS)
    ]
    replies = host.perform_all(work, told.append)
    assert told[-1] == CLIENTS
    assert not any(reply.error for reply in replies), replies
    return replies, {client: dict(host.state(client)) for client in range(CLIENTS)}


def close(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    else:
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def agree(steps_of, *overrides, trial=(), together=True):
    """What cohorts give is what loops give; the cohorts were there, and something was learnt."""
    alone, before = performed("off", steps_of, *overrides, trial=trial)
    joint, after = performed("on", steps_of, *overrides, trial=trial)
    marks = [name for name in joint[0].metrics if name.startswith("cohort ")]
    assert bool(marks) == together
    assert not any(name.startswith("cohort ") for name in alone[0].metrics)
    for one, other in zip(alone, joint):
        assert one.client == other.client
        close(one.values, other.values)
        for name, value in one.metrics.items():
            if name != "seconds":
                assert other.metrics[name] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)
    close(before, after)
    return joint, after


def targets(host, client, count, classes=10):
    draw = torch.Generator().manual_seed(client)
    return torch.randn(count, classes, generator=draw).softmax(1)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("model", "norm"), STUDENTS)
def test_every_student_learns_and_answers_as_alone(model, norm, optimiser):
    steps = [Fit(), Predict(), Evaluate("own", "own"), Evaluate("common", "common")]
    changes = [f"student.models=['{model}']", f"student.norm={norm}", OPTIMISERS[optimiser]]
    _, states = agree(lambda *_: steps, *changes)
    fresh = worker("off", *changes)
    assert any(
        bool((states[0]["own"][name] != fresh.state(0)["own"][name]).any())
        for name in states[0]["own"]
    )


@pytest.mark.parametrize("settings", [["training.momentum=0.9"], ["training.weight_decay=0.01"]])
def test_momentum_and_decay_go_with_those_that_still_learn(settings):
    agree(lambda *_: [Fit(epochs=3)], "training.optimiser='sgd'", *settings)


def per_sample(host, client):
    return targets(host, client, 50)


TERMS = {
    "soft labels of one's own": lambda h, c: Fit("transfer", (Soft(per_sample(h, c)),)),
    "temperature, towards logits": lambda h, c: Fit(
        "transfer", (Soft(per_sample(h, c).log(), "mse_logits", weight=0.3),)
    ),
    "a temperature a row, weights a row": lambda h, c: Fit(
        "transfer",
        (
            Soft(
                per_sample(h, c),
                temperature=torch.linspace(1, 4, 50) + c,
                row_weights=torch.linspace(0, 1, 50),
            ),
        ),
    ),
    "some without a target": lambda h, c: Fit(
        "transfer",
        (Soft(torch.where(torch.arange(50)[:, None] % 3 == 0, torch.nan, per_sample(h, c))),),
    ),
    "candidates": lambda h, c: Fit(
        "transfer",
        (
            Soft(
                targets(h, c, 50, 4),
                among=torch.stack([torch.randperm(10)[:3] for _ in range(50)]),
            ),
        ),
    ),
    "private samples with targets": lambda h, c: Fit(
        "private",
        (CrossEntropy(0.5), Soft(targets(h, c, h.rows(c, "private")), temperature=3.0)),
    ),
    "a target a class": lambda h, c: Fit(
        "private", (CrossEntropy(), Soft(targets(h, c, 10), per="class"))
    ),
    "an objective that needs labels": lambda h, c: Fit(
        "private",
        (
            CrossEntropy(),
            Soft(
                torch.where(
                    torch.arange(h.rows(c, "private"))[:, None] % 5 == 0,
                    torch.nan,
                    targets(h, c, h.rows(c, "private")),
                ),
                "not_true",
                temperature=3.0,
            ),
        ),
    ),
    "an objective with options": lambda h, c: Fit(
        "private", (Soft(targets(h, c, 10), {"name": "dkd", "beta": 2.0}, 2.0, per="class"),)
    ),
    "a class without one": lambda h, c: Fit(
        "private",
        (
            CrossEntropy(),
            Soft(
                torch.where(torch.arange(10)[:, None] == c, torch.nan, targets(h, c, 10)),
                per="class",
            ),
        ),
    ),
    "a mixture of all there is": lambda h, c: Fit(
        "private",
        (
            CrossEntropy(),
            Soft(
                Mixture(
                    (targets(h, c, h.rows(c, "private")), "own", Labels(0.1)),
                    Mean((1.0, 2.0, 0.5)),
                ),
                temperature=2.0,
            ),
            Soft(Mixture(("own", per_sample(h, c)), Surest()), on="transfer"),
        ),
    ),
    "means a class, its own and others'": lambda h, c: Fit(
        "private",
        (
            CrossEntropy(),
            Soft("own", "capped_reverse_kl", weight=-0.25, per="class"),
            Soft(Mixture(("own", targets(h, c, 10)), Surest("label", every=True)), per="class"),
        ),
    ),
    "prototypes": lambda h, c: Fit(
        "private", (CrossEntropy(), Feature(targets(h, c, 10, 50), "fc2", weight=0.7))
    ),
    "directions a class": lambda h, c: Fit(
        "private",
        (
            CrossEntropy(),
            Feature(targets(h, c, 10, 50), "fc2", "cosine", norms=torch.arange(10.0) + c),
        ),
    ),
    "features a sample": lambda h, c: Fit(
        "private",
        (
            CrossEntropy(),
            Feature(
                targets(h, c, h.rows(c, "private"), 50),
                "fc2",
                "cosine",
                "sample",
                norms=targets(h, c, h.rows(c, "private"), 2)[:, 0],
            ),
            Feature(targets(h, c, h.rows(c, "transfer"), 50), "fc2", per="sample", on="transfer"),
        ),
    ),
    "unlike another student": lambda h, c: Fit(
        "private",
        (CrossEntropy(), Contrast("own", targets(h, c, h.rows(c, "private"), 50), "fc2", 0.5, 3.0)),
    ),
    "a prior of each client's own": lambda h, c: Fit(
        "private", (CrossEntropy(prior=Prior()), CrossEntropy(0.3, prior=Prior("margin", 2.0)))
    ),
    "near where it began": lambda h, c: Fit("private", (CrossEntropy(), Proximal(0.5))),
    "near an anchor": lambda h, c: Fit(
        "private",
        (
            CrossEntropy(),
            Proximal(0.5, {k: t + 0.1 * c for k, t in h.state(c)["own"].items()}),
        ),
    ),
    "an inner product": lambda h, c: Fit(
        "private",
        (CrossEntropy(), Linear({k: 0.1 * (c + 1) * t for k, t in h.state(c)["own"].items()}, 0.3)),
    ),
    "reach": lambda h, c: Fit(
        "transfer", (Soft(per_sample(h, c), reach=("fc1",)), Soft(per_sample(h, c), weight=0.2))
    ),
    "a part": lambda h, c: Fit("private", part=("head",)),
    "a term with a source of its own": lambda h, c: Fit(
        "transfer", (Soft(per_sample(h, c)), CrossEntropy(0.5, on="private"))
    ),
    "through a head of one's own": lambda h, c: Fit(
        "private",
        (
            CrossEntropy(
                through=Head(
                    "fc2",
                    {
                        "head.weight": torch.full((10, 50), 0.01 * c),
                        "head.bias": torch.linspace(0, c, 10),
                    },
                )
            ),
        ),
    ),
    "samples sent along": lambda h, c: Fit(
        Samples(torch.randn(20 + 9 * c, 1, 8, 8, generator=torch.Generator().manual_seed(c))),
        (Soft(targets(h, c, 20 + 9 * c)),),
    ),
}


@pytest.mark.parametrize("what", TERMS)
def test_every_term_is_as_alone(what):
    def steps(host, client):
        torch.manual_seed(client)
        return [TERMS[what](host, client)]

    agree(steps)


def in_double(thing):
    """All arrays of floats in a term, in double precision."""
    if isinstance(thing, torch.Tensor):
        return thing.double() if thing.is_floating_point() else thing
    if isinstance(thing, dict):
        return {name: in_double(item) for name, item in thing.items()}
    if isinstance(thing, tuple):
        return tuple(map(in_double, thing))
    if is_dataclass(thing):
        given = {part.name: in_double(getattr(thing, part.name)) for part in fields(thing)}
        return replace(thing, **given)
    return thing


IN_DOUBLE = [
    "reach",
    "prototypes",
    "near an anchor",
    "unlike another student",
    "an inner product",
    "through a head of one's own",
]


@pytest.mark.parametrize("what", IN_DOUBLE)
def test_what_a_method_computed_in_double_precision_is_learnt_from_all_the_same(what):
    def steps(host, client):
        torch.manual_seed(client)
        return [in_double(TERMS[what](host, client))]

    agree(steps)


def test_clients_have_different_numbers_of_samples_and_steps():
    """What the tests above lean on."""
    host = worker("on")
    steps = {-(-3 * host.rows(client, "private") // 128) for client in range(CLIENTS)}
    assert len(steps) > 1
    assert any(host.rows(client, "private") % 64 for client in range(CLIENTS))


def test_a_client_without_steps_stays_as_it_was():
    agree(lambda *_: [Fit(epochs=0), Predict()])


@pytest.mark.parametrize("proximal", [False, True])
def test_a_client_without_samples_leaves_the_others_as_they_would_be(proximal):
    def steps(host, client):
        count = 0 if client == 1 else 20
        draw = torch.Generator().manual_seed(client)
        mine = Samples(torch.randn(count, 1, 8, 8, generator=draw))
        near = (Proximal(0.5),) if proximal else ()
        return [Fit(mine, (Soft(targets(host, client, count)), *near))]

    agree(steps)


def test_students_of_ones_own_teach_one_another():
    steps = [
        Hold("peer"),
        Fit(student="peer"),
        Fit("transfer", (Soft("peer", temperature=2.0),)),
        Predict(student="peer", key="peer"),
    ]
    _, states = agree(lambda *_: steps)
    assert set(states[0]) == {"own", "peer"}


@pytest.mark.parametrize(
    ("models", "optimiser"), [(("mlp", "mlp"), "sgd"), (("mlp", "cnn2"), "adam")]
)
def test_students_that_learn_together_do_so_in_a_cohort(models, optimiser):
    """Of unequal numbers of batches, and on a second source."""
    own, peer = models

    def steps(host, client):
        draw = torch.Generator().manual_seed(client)
        weights = torch.rand(host.rows(client, "private"), generator=draw)
        terms = (CrossEntropy(0.5), Soft("peer", temperature=2.0, weight=0.5))
        back = (
            Soft("own", row_weights=weights),
            Soft(per_sample(host, client), on="transfer"),
            Soft("own", adaptive=True),
            Proximal(0.1),
        )
        together = (Peer("peer", back, "peer_loss", lr=0.01),)
        return [
            Hold("peer", peer),
            Fit(terms=terms, together=together),
            Fit(student="peer", key="x"),
        ]

    agree(steps, f"student.models=['{own}']", OPTIMISERS[optimiser])


@pytest.mark.parametrize(
    ("model", "optimiser", "blend", "part"),
    [
        ("mlp", "sgd", Blend("own", 0.3, 0.7), ()),
        ("mlp", "adam", Blend("own", 1.0, 1.0, "fc2"), ("head",)),
        ("mlp", "adam", Blend("own", 0.5, 0.5, slope=True), ()),
        ("cnn2", "sgd", Blend("own", 1.0, 1.0, "fc1"), ("head",)),
    ],
)
def test_students_that_are_built_on_one_another_are_as_alone(model, optimiser, blend, part):
    terms = (CrossEntropy(), Soft("own", weight=0.3), Proximal(0.1))
    steps = [
        Hold("peer"),
        Fit(student="peer", key="x", epochs=0.3),
        Fit(together=(Peer("peer", terms, "peer_loss", lr=0.02, part=part, at=blend),)),
        Predict(),
        Load("peer", part=part, keep=0.5, weight=0.5),
        Predict(key="blended"),
    ]
    agree(lambda *_: steps, f"student.models=['{model}']", OPTIMISERS[optimiser])


def test_each_may_have_shares_of_its_own():
    def steps(host, client):
        share = client / (CLIENTS - 1)
        at = Blend("own", share, 1 - share, slope=True)
        return [
            Hold("peer"),
            Fit(student="peer", key="x", epochs=0.3),
            Fit(together=(Peer("peer", (CrossEntropy(),), "peer_loss", at=at),)),
            Load("peer", keep=1 - share, weight=share),
        ]

    replies, _ = agree(steps)
    assert len({reply.metrics["peer_loss_slope"] for reply in replies}) == CLIENTS


@pytest.mark.parametrize("cut", ["conv1", "fc1"])
@pytest.mark.parametrize("per", ["sample", "class"])
def test_representations_are_as_alone(cut, per):
    steps = [Represent(cut, per=per), Predict("private", per="class", key="means")]
    agree(lambda *_: steps, "student.models=['cnn2']")


def test_parameters_come_in_and_go_out():
    def steps(host, client):
        return [Load(host.common_parameters), Fit(), Share(), Share(("head",), key="head")]

    def both(host, client):
        if not hasattr(host, "common_parameters"):
            state = host.state(0)["own"]
            host.common_parameters = {name: tensor.clone() for name, tensor in state.items()}
        return steps(host, client)

    joint, _ = agree(both)
    assert joint[0].values["head"].keys() == {"head.weight", "head.bias"}


def test_what_was_given_out_stays_as_it_was_when_the_student_goes_on():
    steps = [Share(key="before"), Fit(), Share(key="after")]
    joint, _ = agree(lambda *_: steps)
    before, after = (joint[0].values[key]["head.weight"] for key in ("before", "after"))
    assert bool((before != after).any())


def test_a_trial_is_undone_in_a_cohort():
    replies, states = agree(
        lambda *_: [Predict()], trial=(Fit(), Evaluate("own", "own"), Share(key="measure"))
    )
    fresh = worker("off")
    for client in range(CLIENTS):
        for name, tensor in fresh.state(client)["own"].items():
            assert bool((states[client]["own"][name] == tensor).all())
    shared = replies[0].values["measure"]["head.weight"]
    assert bool((shared != states[0]["own"]["head.weight"]).any())


def test_augmented_images_are_the_same_ones():
    changes = ["data.augment=true", "student.models=['cnn2']"]
    agree(lambda *_: [Fit(), Evaluate("own", "own")], *changes)


def test_who_stays_alone_does_so():
    """Batch statistics, DP-SGD and release policies are one client's."""
    fit = lambda *_: [Fit()]  # noqa: E731
    agree(fit, "student.norm=batch", together=False)
    agree(fit, "training.dp.noise_multiplier=1.0", together=False)
    release = ["release.mechanism=gaussian", "release.scale=0.1"]
    agree(lambda *_: [Predict()], *release, together=False)
    replies, _ = agree(lambda *_: [Predict(), Evaluate("own", "own")], "student.norm=batch")
    assert "cohort Predict transfer" in replies[0].metrics


def test_a_mistake_is_told_for_every_client_and_changes_nobody():
    host = worker("on")
    wrong = [Assignment(c, 1, "learn", (Fit(), Fit("transfer"))) for c in range(CLIENTS)]
    replies = host.perform_all(wrong, lambda done: None)
    assert all("the samples have no labels" in reply.error for reply in replies)
    fresh = worker("off")
    for name, tensor in fresh.state(2)["own"].items():
        assert bool((host.state(2)["own"][name] == tensor).all())


def test_one_clients_mistake_is_its_own():
    host = worker("on")
    counts = [50, 50, 49, 50]
    work = [
        Assignment(c, 1, "learn", (Fit("transfer", (Soft(targets(host, c, count)),)),))
        for c, count in enumerate(counts)
    ]
    replies = host.perform_all(work, lambda done: None)
    assert [bool(reply.error) for reply in replies] == [False, False, True, False]
    assert "49 targets for 50 samples" in replies[2].error


# --- who is with whom ---------------------------------------------------------------------------


def grouped(host, work):
    return [[assignment.client for assignment in group] for group in rule.groups(host, work)]


def test_those_are_a_cohort_that_do_the_same_with_the_same_student():
    host = worker("on", "student.models=['mlp', 'cnn2']")
    same = [Assignment(c, 1, "learn", (Fit(), Predict())) for c in range(CLIENTS)]
    assert grouped(host, same) == [[0, 2], [1, 3]]
    other = [*same[:3], Assignment(3, 1, "learn", (Fit(epochs=3), Predict()))]
    assert grouped(host, other) == [[0, 2], [1], [3]]


def test_nobody_is_with_others_when_cohorts_are_off():
    work = [Assignment(c, 1, "learn", (Fit(),)) for c in range(CLIENTS)]
    assert grouped(worker("off"), work) == [[0], [1], [2], [3]]


def test_the_rule_depends_on_student_step_and_batch_and_on_nothing_else(monkeypatch):
    dense = rule.LIMITS["cpu"]["dense"]
    host = worker("auto", f"training.batch_size={dense['fit']}")
    (private, public) = (
        Assignment(0, 1, "learn", (Fit(epochs=9),)),
        Assignment(0, 1, "learn", (Predict("transfer"),)),
    )
    assert rule.decisions(host, private) == (True,)
    assert rule.decisions(host, public) == (dense["forward"] >= 50,)
    convolutions = worker("auto", "student.models=['cnn2']")
    assert rule.decisions(convolutions, private) == (False,)
    monkeypatch.setitem(host.limits["cpu"]["dense"], "fit", 3)
    assert rule.decisions(host, private) == (False,)


def test_memory_bounds_a_cohort(monkeypatch):
    host = worker("on")
    work = [Assignment(c, 1, "learn", (Fit(),)) for c in range(CLIENTS)]
    size = sum(tensor.nbytes for tensor in host.template("mlp").state_dict().values())
    monkeypatch.setitem(rule.MEMORY, "cpu", 2 * rule.COPIES * size)
    assert grouped(host, work) == [[0, 1], [2, 3]]


def test_how_clients_are_put_together_changes_no_more_than_last_digits(monkeypatch):
    whole, _ = performed("on", lambda *_: [Fit(epochs=2), Predict()])
    monkeypatch.setattr(rule, "MOST", 3)
    parts, _ = performed("on", lambda *_: [Fit(epochs=2), Predict()])
    for one, other in zip(whole, parts):
        close(one.values, other.values)


# --- whole runs ---------------------------------------------------------------------------------

METHODS = ["knfu", "fedavg", "fedd2s", "fml", "fedproto", "ditto", "feddyn", "moon"]
METHODS += ["apfl", "fedgen", "fedhkd", "fedmrl", "fedrod"]


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run_agrees_in_its_metrics(method, tmp_path):
    changes = [f"strategy.name={method}", "data.samples_per_client=60", "data.sizes=equal"]
    off = run(experiment(*changes, "engine.cohort=off"), tmp_path / "off")
    on = run(experiment(*changes, "engine.cohort=on"), tmp_path / "on")
    assert not any("cohort" in line for line in off.rounds)
    assert on.rounds[0]["cohort"]["Fit private"] in (CLIENTS, 2 * CLIENTS)
    for one, other in zip(off.rounds, on.rounds, strict=True):
        for name in ("own_accuracy_mean", "common_accuracy_mean"):
            # One sample of 15 a client that falls on the other side is 1.7 points.
            assert other[name] == pytest.approx(one[name], abs=0.02)
        assert other["own_loss_mean"] == pytest.approx(one["own_loss_mean"], rel=0.01)
        assert other["train_loss_mean"] == pytest.approx(one["train_loss_mean"], rel=0.01)
        assert other["bytes_up"] == one["bytes_up"]


def test_a_run_with_cohorts_is_the_same_twice(tmp_path):
    one, two = (run(experiment("engine.cohort=on"), tmp_path / name) for name in ("one", "two"))
    assert measured(one) == measured(two)


def test_parameters_that_come_in_stay_as_they_were_even_for_one_client_alone():
    host = worker("on")
    given = {name: tensor.clone() for name, tensor in host.state(1)["own"].items()}
    before = {name: tensor.clone() for name, tensor in given.items()}
    host.perform(Assignment(0, 1, "learn", (Load(given), Fit(), Share())))
    assert all(bool((given[name] == before[name]).all()) for name in given)
    assert any(bool((host.state(0)["own"][name] != before[name]).any()) for name in before)


@pytest.mark.parametrize("model", ["mlp", "cnn2"])
def test_mixed_precision_is_near_and_gives_float32(model):
    changes = [f"student.models=['{model}']", "engine.precision=bfloat16"]
    steps = [Fit(), Predict(), Share(), Evaluate("own", "own")]
    full, _ = performed("off", lambda *_: steps, changes[0])
    for cohort in ("off", "on"):
        half, _ = performed(cohort, lambda *_: steps, *changes)
        for one, other in zip(full, half):
            labels = other.values["soft_labels"]
            assert labels.dtype == torch.float32
            assert 0 < float((one.values["soft_labels"] - labels).abs().max()) < 0.1
            assert all(t.dtype == torch.float32 for t in other.values["parameters"].values())


def test_a_device_has_its_own_copy_of_the_data_as_it_was_decoded():
    data = worker("off").data
    there = data.on(torch.device("meta"))
    stores = {id(rows.store) for rows in there._private}
    assert len(stores) == 1
    assert there._private[0].store.images.device.type == "meta"
    assert there._private[0].store.images.dtype == data._private[0].store.images.dtype
    assert there.private(0).inputs.shape == data.private(0).inputs.shape
    assert data.private(0).inputs.device.type == "cpu"
