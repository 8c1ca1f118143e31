"""The one training loop on tokens: padding teaches nothing, a token is what an image is."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedkd.data.language import PAD, pack, samples
from fedkd.distillation.labelled import not_true
from fedkd.distillation.targets import among_logs
from fedkd.errors import FedkdError
from fedkd.sections import StudentTable
from fedkd.students import build
from fedkd.training import class_means, evaluate, fit, item_labels, items, predict, represent, said
from fedkd.training_tables import TrainingTable
from fedkd.work import Contrast, CrossEntropy, Feature, Proximal, Samples, Soft

VOCABULARY, CONTEXT = 20, 8
ONE = TrainingTable(optimiser="sgd", lr=0.5, batch_size=64, local_epochs=1)
"""One step on all rows."""
SGD = TrainingTable(optimiser="sgd", lr=0.5, batch_size=4, local_epochs=1)


def student(seed=0, name="lstm"):
    return build(name, (CONTEXT,), VOCABULARY, StudentTable(width=0.1), seed, tokens=True)


@pytest.fixture
def text():
    """Rows of lines of one to seven tokens: some are full, others end in padding."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 8, (30,), generator=draw).tolist()
    lines = [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in lengths]
    found = samples(pack(lines, CONTEXT))
    assert (found.inputs == PAD).any()
    return found


def parameters(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def trained(text, *terms, training=ONE, seed=0, name="lstm", **options):
    model = student(name=name)
    loss = fit(model, text, terms, training, torch.Generator().manual_seed(seed), **options)
    return parameters(model), loss


def alike(a, b, atol=1e-6):
    return all(torch.allclose(a[name], b[name], atol=atol) for name in a)


def soft_targets(text, classes=VOCABULARY, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(len(items(text.inputs)), classes, generator=draw)).softmax(1)


def candidates(text, count, seed=2):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(len(items(text.inputs)), VOCABULARY, generator=draw).topk(count, 1).indices


# --- the loop -------------------------------------------------------------------------------


def test_it_is_the_textbook_loop(text):
    mine, _ = trained(text, CrossEntropy(), training=SGD)
    model = student()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    order = torch.randperm(len(text.inputs), generator=torch.Generator().manual_seed(0))
    batches = [b for b in order.split(4) if len(b) > 1]
    for index in batches:
        optimiser.zero_grad()
        logits = model(text.inputs[index]).transpose(1, 2)
        F.cross_entropy(logits, text.labels[index], ignore_index=-1).backward()
        optimiser.step()
    assert alike(mine, parameters(model))


@pytest.mark.parametrize("name", ["lstm", "gru", "gpt"])
def test_every_text_student_learns(name, text):
    training = TrainingTable(lr=0.02, batch_size=4, local_epochs=8)
    model = student(name=name)
    before = evaluate(model, text)["perplexity"]
    fit(model, text, [CrossEntropy()], training, torch.Generator().manual_seed(0))
    assert evaluate(model, text)["perplexity"] < before / 2


@pytest.mark.parametrize("term", [CrossEntropy(), "soft"])
def test_padding_has_no_gradient(term, text):
    """What stands behind the last line of a row changes nothing, even as embeddings go."""
    term = Soft(soft_targets(text)) if term == "soft" else term
    after, _ = trained(text, term)
    before = parameters(student())
    assert torch.equal(after["embed.weight"][PAD], before["embed.weight"][PAD])
    longer = [
        F.pad(part, (0, 5), value=pad) for part, pad in ((text.inputs, PAD), (text.labels, -1))
    ]
    assert alike(trained(Samples(*longer), term)[0], after)


def test_the_loss_is_the_mean_over_tokens_that_have_a_next_one(text):
    still = TrainingTable(optimiser="sgd", lr=1e-12, batch_size=64, local_epochs=1)
    _, loss = trained(text, CrossEntropy(), training=still)
    assert loss == pytest.approx(evaluate(student(), text)["loss"], rel=1e-5)


def test_text_without_labels_cannot_learn_from_them(text):
    with pytest.raises(FedkdError, match="no labels"):
        trained(Samples(text.inputs), CrossEntropy())


# --- prediction and evaluation --------------------------------------------------------------


def test_logits_are_a_row_for_each_token_row_after_row(text):
    model = student()
    found = predict(model, text.inputs)
    assert found.shape == ((text.inputs != PAD).sum(), VOCABULARY)
    with torch.no_grad():
        assert torch.allclose(found, model(text.inputs)[text.inputs != PAD], atol=1e-6)


def test_prediction_does_not_depend_on_how_it_is_cut_into_pieces(text, monkeypatch):
    whole, found = predict(student(), text.inputs), evaluate(student(), text)
    monkeypatch.setattr("fedkd.training.inference.EVALUATION_TOKENS", 3 * CONTEXT)
    assert torch.allclose(predict(student(), text.inputs), whole, atol=1e-6)
    pieces = evaluate(student(), text)
    assert all(pieces[key] == pytest.approx(value, rel=1e-5) for key, value in found.items())


def test_no_text_has_no_logits_and_no_measures():
    empty = samples(pack([], CONTEXT))
    assert len(predict(student(), empty.inputs)) == 0
    assert evaluate(student(), empty) == {}
    assert fit(student(), empty, [CrossEntropy()], SGD, torch.Generator()) == 0


class Fixed(nn.Module):
    """Logits that do not depend on the text but for its last token."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, tokens):
        return self.table[tokens]


def test_the_perplexity_of_a_uniform_law_is_the_vocabulary(text):
    found = evaluate(nn.Sequential(Fixed(torch.zeros(VOCABULARY, VOCABULARY))), text)
    assert found["perplexity"] == pytest.approx(VOCABULARY)
    assert found["loss"] == pytest.approx(math.log(VOCABULARY))


def test_who_knows_the_next_token_has_perplexity_one(text):
    rows = pack([[3, 4, 5], [3, 4, 5]], CONTEXT)
    table = 50 * torch.eye(VOCABULARY)[torch.tensor([0, 3, 2, 4, 5, 1, *range(6, VOCABULARY)])]
    found = evaluate(nn.Sequential(Fixed(table)), samples(rows))
    assert found == pytest.approx({"accuracy": 1, "loss": 0, "ece": 0, "perplexity": 1}, abs=1e-6)


def test_evaluation_knows_the_answers(text):
    table = torch.randn(VOCABULARY, VOCABULARY)
    found = evaluate(nn.Sequential(Fixed(table)), text)
    asked = text.labels >= 0
    logits, labels = table[text.inputs][asked].double(), text.labels[asked]
    loss = float(F.cross_entropy(logits, labels))
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


def test_an_infinite_perplexity_is_no_error(text):
    found = evaluate(nn.Sequential(Fixed(2000 * torch.eye(VOCABULARY)[[*range(1, 20), 0]])), text)
    assert found["perplexity"] == math.inf
    assert math.isfinite(found["loss"])


def test_representations_are_rows_of_tokens_too(text):
    held, logits = represent(student(), text.inputs, "lstm1")
    assert len(held) == len(logits) == len(items(text.inputs))
    assert torch.allclose(student()[2:](held.clone()), logits, atol=1e-5)


def test_means_by_class_are_those_of_the_tokens_with_that_next_token(text):
    logits, labels = predict(student(), text.inputs), item_labels(text)
    found = class_means(logits, labels, VOCABULARY)
    assert (labels < 0).any()
    assert found["count"].sum() == (text.labels >= 0).sum()
    for token in (1, 5):
        assert torch.allclose(found["mean"][token], logits[labels == token].mean(0), atol=1e-5)


# --- soft targets ---------------------------------------------------------------------------


def test_one_target_a_token_is_needed(text):
    count = len(items(text.inputs))
    with pytest.raises(FedkdError, match=rf"Soft: {len(text.inputs)} targets for {count} tokens"):
        trained(text, Soft(torch.full((len(text.inputs), VOCABULARY), 1 / VOCABULARY)))


@pytest.mark.parametrize("per", ["token", "row"])
def test_one_hot_targets_are_the_next_tokens(per, text):
    """Where every token of the inputs has a next one; in batches as well as at once."""
    lines = [[3, 4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15, 16], [3] * 7, [4] * 7, [5] * 7]
    full = samples(pack(lines, CONTEXT))
    training = ONE if per == "row" else SGD
    one_hot = F.one_hot(item_labels(full), VOCABULARY).float()
    soft, _ = trained(full, Soft(one_hot), training=training)
    hard, _ = trained(full, CrossEntropy(), training=training)
    assert alike(soft, hard)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jensen_shannon", "mse_logits"])
@pytest.mark.parametrize("training", [ONE, SGD])
def test_a_students_own_soft_labels_teach_it_nothing(objective, training, text):
    """Whatever the order of rows: each token finds its own target."""
    own = predict(student(), text.inputs).clone()
    targets = own if objective == "mse_logits" else own.softmax(1)
    after, loss = trained(text, Soft(targets, objective), training=training)
    assert loss == pytest.approx(0, abs=1e-6)
    assert alike(after, parameters(student()), atol=1e-5)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_its_own_soft_labels_over_candidates_teach_it_nothing(objective, tau, text):
    among = candidates(text, 5)
    among[::3, 2:] = -1
    own = (predict(student(), text.inputs) / tau).softmax(1).clone()
    given = own.gather(1, among.clamp_min(0)) * (among >= 0)
    targets = torch.cat([given, 1 - given.sum(1, keepdim=True)], 1)
    soft = Soft(targets, objective, temperature=tau, among=among)
    after, loss = trained(text, soft, training=SGD)
    assert loss == pytest.approx(0, abs=1e-5)
    assert alike(after, parameters(student()), atol=1e-4)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_among_all_classes_but_one_is_the_whole_law(objective, text):
    targets = soft_targets(text)
    among = candidates(text, VOCABULARY - 1)
    rest = 1 - targets.gather(1, among).sum(1, keepdim=True)
    whole = Soft(targets, objective, temperature=2.0)
    part = Soft(torch.cat([targets.gather(1, among), rest], 1), objective, 2.0, among=among)
    expected, loss = trained(text, whole)
    after, found = trained(text, part)
    assert found == pytest.approx(loss, rel=1e-4)
    assert alike(after, expected, atol=1e-5)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_among_all_classes_nothing_is_left_and_nothing_breaks(objective, text):
    among, targets = candidates(text, VOCABULARY), soft_targets(text)
    given = torch.cat([targets.gather(1, among), torch.zeros(len(among), 1)], 1)
    expected, loss = trained(text, Soft(targets, objective))
    after, found = trained(text, Soft(given, objective, among=among))
    assert found == pytest.approx(loss, rel=1e-4)
    assert alike(after, expected, atol=1e-5)


def test_an_objective_that_needs_labels_passes_over_tokens_that_have_none(text):
    """What their targets are does not matter, and they count as tokens."""
    labels = item_labels(text)
    there = labels >= 0
    assert not there.all()
    targets = soft_targets(text)
    other = torch.where(there[:, None], targets, targets.flip(1))
    expected, loss = trained(text, Soft(targets, "not_true", temperature=3.0))
    after, found = trained(text, Soft(other, "not_true", temperature=3.0))
    assert alike(after, expected, atol=0)
    assert found == loss
    logits = predict(student(), text.inputs).clone()[there]
    pieces = not_true(logits, targets[there], 3.0, labels=labels[there])
    assert loss == pytest.approx(float(pieces.sum()) / len(labels), rel=1e-4)


@pytest.mark.parametrize("objective", ["not_true", {"name": "dkd", "beta": 2.0}])
def test_among_all_classes_but_one_labels_pick_what_they_pick_among_all(objective, text):
    """The class that is no candidate is the last column, all others together."""
    targets, among = soft_targets(text), candidates(text, VOCABULARY - 1)
    rest = 1 - targets.gather(1, among).sum(1, keepdim=True)
    given = torch.cat([targets.gather(1, among), rest], 1)
    labels = item_labels(text)
    assert not (among == labels[:, None]).any(1)[labels >= 0].all()
    expected, loss = trained(text, Soft(targets, objective, 2.0))
    after, found = trained(text, Soft(given, objective, 2.0, among=among))
    assert found == pytest.approx(loss, rel=1e-4)
    assert alike(after, expected, atol=1e-5)


def test_a_contrast_is_of_tokens(text):
    """Whatever the order of rows: each token finds its own sides, and padding has none."""
    positive, negative = (represent(student(n), text.inputs, "lstm1")[0].clone() for n in (3, 4))
    _, loss = trained(text, Contrast(positive, negative, "lstm1", 0.2))
    held, _ = represent(student(), text.inputs, "lstm1")
    cosines = torch.stack([torch.cosine_similarity(held, s) for s in (positive, negative)], 1)
    expected = F.cross_entropy(cosines / 0.2, torch.zeros(len(held), dtype=torch.long))
    assert loss == pytest.approx(float(expected), rel=1e-4)
    training = SGD.model_copy(update={"lr": 1e-9})
    _, batched = trained(text, Contrast(positive, negative, "lstm1", 0.2), training=training)
    assert batched == pytest.approx(loss, rel=0.05)


def test_candidates_that_are_none_change_nothing(text):
    among = candidates(text, 4)
    targets = soft_targets(text, 5)
    holes = torch.cat([among, torch.full((len(among), 2), -1)], 1)
    padded = torch.cat([targets[:, :4], torch.zeros(len(among), 2), targets[:, 4:]], 1)
    expected, loss = trained(text, Soft(targets, among=among))
    after, found = trained(text, Soft(padded, among=holes))
    assert found == pytest.approx(loss, rel=1e-5)
    assert alike(after, expected)


def test_candidates_and_all_others_together_are_probabilities():
    logs = torch.randn(6, 9, dtype=torch.float64).log_softmax(1)
    among = torch.stack([torch.randperm(9)[:4] for _ in range(6)])
    among[2, 1:] = -1
    found = among_logs(logs, among).exp()
    assert torch.allclose(found.sum(1), torch.ones(6, dtype=torch.float64))
    assert (found[2, 1:4] == 0).all()
    assert found[0, 2] == pytest.approx(float(logs[0, among[0, 2]].exp()))


@pytest.mark.parametrize(
    "objective", ["forward_kl", "reverse_kl", "jensen_shannon", "cross_entropy", "mse_logits"]
)
@pytest.mark.parametrize("squared", [True, False])
def test_one_temperature_everywhere_is_that_temperature(objective, squared, text):
    targets = soft_targets(text)
    tau = torch.full((len(targets),), 2.5)
    number = Soft(targets, objective, temperature=2.5, tau_squared=squared)
    each = Soft(targets, objective, temperature=tau, tau_squared=squared)
    expected, loss = trained(text, number)
    after, found = trained(text, each)
    assert found == pytest.approx(loss, rel=1e-5)
    assert alike(after, expected)


def test_a_temperature_divides_the_logits_of_its_own_row_and_weighs_it(text):
    targets = soft_targets(text)
    tau = 1 + torch.rand(len(targets), generator=torch.Generator().manual_seed(3))
    logits = predict(student(), text.inputs)
    each = F.kl_div((logits / tau[:, None]).log_softmax(1), targets, reduction="none").sum(1)
    still = TrainingTable(optimiser="sgd", lr=1e-12, batch_size=64)
    for squared, expected in ((False, each.mean()), (True, (tau**2 * each).mean())):
        soft = Soft(targets, temperature=tau, tau_squared=squared)
        _, loss = trained(text, soft, training=still, epochs=1)
        assert loss == pytest.approx(float(expected), rel=1e-5)


def test_temperatures_and_candidates_keep_to_their_rows_in_batches(text):
    """Targets at each token's own temperature: no order of rows brings a gradient."""
    among = candidates(text, 5)
    tau = 1 + 4 * torch.rand(len(among))
    logits = predict(student(), text.inputs).clone()
    soft = Soft("own", temperature=tau, among=among)
    soft = Soft(said(soft, logits), temperature=tau, among=among)
    after, loss = trained(text, soft, training=SGD)
    assert loss == pytest.approx(0, abs=1e-5)
    assert alike(after, parameters(student()), atol=1e-4)


def test_row_weights_multiply_the_losses_of_their_rows(text):
    targets = soft_targets(text)
    weights = torch.zeros(len(targets))
    weights[::2] = 2.0
    halved = targets.clone()
    halved[1::2] = torch.nan
    expected, loss = trained(text, Soft(halved, weight=2.0))
    after, found = trained(text, Soft(targets, row_weights=weights))
    assert found == pytest.approx(loss, rel=1e-5)
    assert alike(after, expected)


def test_tokens_without_a_target_are_passed_over(text):
    targets = soft_targets(text)
    targets[::2] = torch.nan
    after, loss = trained(text, Soft(targets))
    logits = predict(student(), text.inputs)[1::2]
    each = F.kl_div(logits.log_softmax(1), targets[1::2], reduction="none").sum()
    assert loss == pytest.approx(float(each) / len(targets), rel=1e-5)
    assert not alike(after, parameters(student()))
    nothing, loss = trained(text, Soft(torch.full_like(targets, torch.nan)))
    assert loss == 0
    assert alike(nothing, parameters(student()))


def test_targets_by_class_are_picked_by_the_next_token(text):
    table = (2 * torch.randn(VOCABULARY, VOCABULARY)).softmax(1)
    labels = item_labels(text)
    targets = table[labels.clamp_min(0)]
    targets[labels < 0] = torch.nan
    expected, loss = trained(text, Soft(targets))
    after, found = trained(text, Soft(table, per="class"))
    assert found == pytest.approx(loss, rel=1e-5)
    assert alike(after, expected)


def test_prototypes_are_of_the_next_token(text):
    held, labels = represent(student(), text.inputs, "embed")[0], item_labels(text)
    targets = torch.randn(VOCABULARY, held.shape[1])
    after, loss = trained(text, Feature(targets, "embed"))
    there = labels >= 0
    expected = (held[there] - targets[labels[there]]).square().mean(1).sum() / len(labels)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    before = parameters(student())
    assert {n for n in after if not torch.equal(after[n], before[n])} == {"embed.weight"}


def test_features_may_be_given_token_by_token(text):
    labels = item_labels(text)
    table = torch.randn(VOCABULARY, represent(student(), text.inputs, "embed")[0].shape[1])
    rows = table[labels.clamp_min(0)].masked_fill(labels[:, None] < 0, torch.nan)
    expected, loss = trained(text, Feature(table, "embed", "cosine"))
    after, found = trained(text, Feature(rows, "embed", "cosine", "sample"))
    assert found == pytest.approx(loss, rel=1e-5)
    assert alike(after, expected)


def test_a_term_may_draw_tokens_from_a_source_of_its_own(text):
    other = samples(pack([[3, 4], [5, 6, 7]], CONTEXT))
    targets = predict(student(), other.inputs).softmax(1).clone()
    soft = Soft(targets, on="transfer")
    after, _ = trained(text, CrossEntropy(), soft, sources={"transfer": lambda: other})
    assert alike(after, trained(text, CrossEntropy())[0], atol=1e-5)


def test_a_reach_and_an_anchor_work_as_for_images(text):
    after, _ = trained(text, Soft(soft_targets(text), reach=("head",)), Proximal(0.1))
    before = parameters(student())
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"head"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"temperature": torch.ones(3)}, r"temperatures of shape \(3,\) for"),
        ({"row_weights": torch.ones(3)}, r"row_weights of shape \(3,\) for"),
        ({"among": torch.zeros(3, 4, dtype=torch.long)}, r"candidates of shape \(3, 4\)"),
        ({"among": "twice"}, "names a class twice"),
        (
            {"among": "fit", "objective": "mse_logits"},
            "'mse_logits' is not allowed with candidates",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_line(change, line, text):
    fitting = candidates(text, VOCABULARY - 1)
    if change.get("among") == "twice":
        change["among"] = fitting.clone()
        change["among"][4, 0] = change["among"][4, 1]
    elif change.get("among") == "fit":
        change["among"] = fitting
    with pytest.raises(FedkdError, match=line) as error:
        trained(text, Soft(soft_targets(text), **change))
    assert "\n" not in str(error.value)
