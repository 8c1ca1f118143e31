"""What everybody knows: a model of the public corpus, candidates, and settings that need them."""

import math

import pytest
import texts
import torch

from fedkd import FedkdError, run
from fedkd.data.federated import load
from fedkd.engine.worker import Worker
from fedkd.privacy import public as module
from fedkd.privacy.candidates import candidates, over_candidates
from fedkd.privacy.public import Public, check
from fedkd.registry import load as find
from fedkd.training import item_labels, predict
from fedkd.work import CrossEntropy

PLANTED = ("canary.secrets=2", "canary.repeats=[4]", "canary.public=exact")
BEGIN = "student.init=public"
SENDERS = ["dsfl", "fedmd", "knfu", "ktpfl", "swing", "uniform"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A function that makes a small experiment on text."""
    place = tmp_path_factory.mktemp("texts")
    return lambda *overrides: texts.small(place, *overrides)


def known(experiment):
    return Public.of(experiment, load(experiment))


def tensors(model):
    return model.state_dict()


def same(one, other):
    one, other = tensors(one), tensors(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the model of the public corpus ---------------------------------------------------------


def test_canary_lines_in_the_transfer_set_do_not_reach_the_public_model(text):
    planted, control = known(text(BEGIN, *PLANTED)), known(text(BEGIN, *PLANTED[:2]))
    assert same(planted.model, control.model)
    assert len(planted.scores) > len(control.scores)
    data = load(text(BEGIN, *PLANTED))
    digits = torch.tensor([word.isdigit() for word in data.task.class_names])
    assert digits[data.transfer().inputs].any()
    assert not digits[planted.samples.inputs].any()
    assert torch.equal(planted.samples.inputs, control.samples.inputs)


def test_the_public_model_has_learned_from_the_corpus(text):
    experiment = text(BEGIN, "public.epochs=20")
    data = load(experiment)
    trained, fresh = known(experiment), known(text(BEGIN, "public.epochs=0"))

    def loss(model):
        logits, labels = predict(model, data.public().inputs), item_labels(data.public())
        return float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1))

    assert loss(fresh.model) == pytest.approx(math.log(data.task.classes), abs=0.2)
    assert loss(trained.model) < loss(fresh.model) - 0.5


def test_it_is_the_same_in_every_process(text, monkeypatch):
    experiment = text(BEGIN)
    once = known(experiment).model
    monkeypatch.setenv("FEDKD_CACHE", "")  # nothing is remembered
    torch.manual_seed(7)
    torch.rand(3)
    assert same(known(experiment).model, once)
    assert not same(known(text(BEGIN, "seed=1")).model, once)


def test_what_is_remembered_is_what_was_trained(text, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    once = known(text(BEGIN)).model

    def never(*given, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "fit", never)
    assert same(known(text(BEGIN)).model, once)
    for other in ("public.epochs=6", "public.lr=0.02", "seed=1", "training.batch_size=4"):
        with pytest.raises(AssertionError, match="trained again"):
            known(text(BEGIN, other))


def test_dp_and_least_steps_are_for_private_samples_alone(text):
    once = known(text(BEGIN)).model
    assert same(known(text(BEGIN, "training.min_steps=50")).model, once)
    assert same(known(text(BEGIN, "training.dp.noise_multiplier=2")).model, once)


def test_there_is_no_model_where_nothing_asks_for_one(text):
    for overrides in ([], ["release.tau_max=9", "release.scores=constant"], ["release.clip=3"]):
        assert known(text(*overrides)).model is None
    assert known(text("release.candidates=3")).model is not None


def test_it_may_have_another_architecture_than_students(text):
    model = known(text("release.candidates=3", "public.model=gru")).model
    assert any("gru" in name for name in tensors(model))


# --- where students begin -------------------------------------------------------------------


def test_every_client_begins_as_the_public_model(text):
    worker = Worker(text(BEGIN))
    for client in range(3):
        assert same(worker.module(client, "own"), worker.public.model)
    # What a client learns is its own.
    with torch.no_grad():
        worker.state(0)["own"]["head.bias"].zero_()
    assert same(worker.module(1, "own"), worker.public.model)
    assert not same(worker.module(0, "own"), worker.public.model)


def test_a_global_student_begins_as_the_public_model(text):
    experiment = text(BEGIN, "strategy.name=fedavg")
    data = load(experiment)
    public = Public.of(experiment, data)
    strategy = find("strategies", "fedavg")(
        experiment, data.task, data.label_counts(), data.transfer().inputs, public=public
    )
    assert same(strategy.initial_student(), public.model)
    assert strategy.initial_student() is not public.model
    assert torch.equal(strategy.parameters["head.bias"], tensors(public.model)["head.bias"])
    # It is no beginning for another architecture.
    assert any("gru" in name for name in tensors(strategy.initial_student("gru")))


def test_a_good_beginning_is_felt_before_any_training(text, tmp_path):
    quiet = ("strategy.name=local", "training.local_epochs=0", "public.epochs=20")
    ends = [
        run(text(*quiet, f"student.init={init}"), tmp_path / init).summary["own_perplexity_mean"]
        for init in ("own", "public")
    ]
    assert ends[1] < 0.7 * ends[0]


# --- candidates and laws --------------------------------------------------------------------


def test_candidates_are_the_likeliest_and_the_true_one():
    law = torch.tensor([[0.1, 0.6, 0.3, 0.0], [0.4, 0.3, 0.2, 0.1], [0.25, 0.2, 0.15, 0.4]])
    assert candidates(law, 2).tolist() == [[1, 2], [0, 1], [3, 0]]
    gold = torch.tensor([0, 1, -1])
    assert candidates(law, 2, gold).tolist() == [[1, 2, 0], [0, 1, -1], [3, 0, -1]]
    assert candidates(law, 9, gold).tolist() == [
        [1, 2, 0, 3, -1],
        [0, 1, 2, 3, -1],
        [3, 0, 1, 2, -1],
    ]


def test_candidates_come_from_public_things_alone(text):
    experiment = text("release.candidates=3", *PLANTED)
    data = load(experiment)
    public = Public.of(experiment, data)
    law = predict(public.model, data.transfer().inputs)
    gold = item_labels(data.transfer())
    assert torch.equal(public.among[:, :3], law.topk(3, 1).indices)
    assert (public.among == gold[:, None]).any(1)[gold >= 0].all()
    assert public.law is None


def test_the_public_law_is_over_what_labels_are_over(text):
    mixed = ("release.mix=0.1", "release.mix_with=public")
    full, given = known(text(*mixed)), known(text(*mixed, "release.candidates=3"))
    assert torch.allclose(full.law.sum(1), torch.ones(len(full.law)), atol=1e-5)
    assert torch.allclose(given.law, over_candidates(full.law, given.among))


@pytest.mark.parametrize("name", SENDERS)
@pytest.mark.parametrize("noise", [[], ["release.mechanism=gaussian", "release.scale=0.05"]])
def test_methods_learn_over_candidates(name, noise, text, tmp_path):
    options = ["strategy.objective=forward_kl"] if name == "fedmd" else []
    table = ["release.candidates=4", "release.mix=0.05", f"strategy.name={name}"]
    done = run(text(*table, *options, *noise, *PLANTED), tmp_path / "run")
    (line,) = done.rounds
    assert line["left_out"] == []
    losses = [c["distill_loss"] for c in done.clients if "distill_loss" in c]
    losses += [line["strategy"]["student_loss"]] if name == "swing" else []
    # Nats over six things: what is no class would cost ten thousand.
    assert losses
    assert all(0 <= loss < 3 for loss in losses)
    public = known(text(*table, *PLANTED))
    # Clients, items, four candidates and the true one and the others, bytes of a float32.
    assert line["bytes_up"] == 3 * len(public.scores) * 6 * 4
    assert (public.among < 0).any()
    places = {e["place"] for e in done.exposures}
    assert places == {"teacher", "released", "fused", "student"}


def test_fedmd_says_that_logits_have_no_rest(text, tmp_path):
    with pytest.raises(FedkdError, match="objective = 'mse_logits' is not allowed with candidates"):
        run(text("strategy.name=fedmd", "release.candidates=4"), tmp_path / "run")


def test_the_public_model_learns_by_cross_entropy_on_its_samples_alone(text, monkeypatch):
    seen = []
    fit = module.fit

    def watching(model, samples, terms, *given, **options):
        seen.append((samples, terms))
        return fit(model, samples, terms, *given, **options)

    monkeypatch.setenv("FEDKD_CACHE", "")
    monkeypatch.setattr(module, "fit", watching)
    experiment = text(BEGIN, *PLANTED)
    public = known(experiment)
    ((samples, terms),) = seen
    assert terms == [CrossEntropy()]
    assert torch.equal(samples.inputs, public.samples.inputs)
    assert torch.equal(samples.labels, public.samples.labels)


# --- refused --------------------------------------------------------------------------------

GAUSSIAN = "release.mechanism=gaussian"
TEXT_ONLY = "is not allowed with data.dataset = 'digits': it needs a model of the public corpus"
REFUSED_ON_IMAGES = {
    "release.candidates=5": rf"release\.candidates {TEXT_ONLY}",
    "release.mix=0.5 release.mix_with=public": rf"release\.mix_with = 'public' {TEXT_ONLY}",
    "release.tau_max=9 release.scores=rules": rf"release\.scores = 'rules' {TEXT_ONLY}",
    "student.init=public": rf"student\.init = 'public' {TEXT_ONLY}",
}
REFUSED = {
    GAUSSIAN: r"release\.scale = 0\.0 is not allowed with release\.mechanism = 'gaussian'",
    "release.mechanism=laplace": r"release\.scale = 0\.0 is not allowed",
    "release.scale=0.1": r"release\.scale = 0\.1 has no effect with release\.mechanism = 'none'",
    "release.scale=0.1 release.mechanism=sample": r"release\.scale = 0\.1 has no effect with",
    "release.temperature=5 release.tau_max=2": r"tau_max = 2\.0 is below release\.temperature = 5",
    "release.mix=0.5 release.mix_with=entropy release.tau_max=9": r"release\.mix = 0\.5 has no eff",
    "release.mix_with=entropy": r"mix_with = 'entropy' needs release\.tau_max",
    "release.tau_max=9 release.scores=oracle": r"'oracle' needs canaries: set canary\.secrets",
}
REFUSED_ON_TEXT = {
    "student.init=public student.models=['lstm','gru']": (
        r"student\.models = \['lstm', 'gru'\] is not allowed with student\.init = 'public'.*'lstm'"
    ),
    "student.init=public public.model=gru": r"student\.models = \['lstm'\] is not allowed.*'gru'",
    "student.init=public data.transfer.size=0 strategy.name=local": (
        r"student\.init = 'public' is not allowed with data\.transfer\.size = 0"
    ),
}


def refused(experiment, line, folder):
    with pytest.raises(FedkdError, match=line) as error:
        run(experiment, folder)
    assert "\n" not in str(error.value)
    assert not (folder / "rounds.jsonl").exists()


@pytest.mark.parametrize(("overrides", "line"), (REFUSED_ON_IMAGES | REFUSED).items())
def test_what_images_cannot_have_is_one_line(overrides, line, small, tmp_path):
    refused(small(*overrides.split(), "strategy.name=uniform"), line, tmp_path / "run")


@pytest.mark.parametrize(("overrides", "line"), (REFUSED | REFUSED_ON_TEXT).items())
def test_what_text_cannot_have_is_one_line(overrides, line, text, tmp_path):
    refused(text("strategy.name=uniform", *overrides.split()), line, tmp_path / "run")


@pytest.mark.parametrize("overrides", [*REFUSED_ON_IMAGES, "release.tau_max=9"])
def test_text_can_have_what_images_cannot(overrides, text):
    check(text(*overrides.split()), True)


def test_settings_of_no_effect_ask_for_nothing(small):
    """Scores by rules without a largest temperature, as in a list of arms."""
    check(small("release.scores=rules", "release.clip=3"), False)
