"""A slip of a method's author is one line, when it is made: method, hook, step, what is allowed."""

import math
import random
import re

import numpy as np
import pytest
import torch
from lines import SMALL, Killed, KilledAfter, measured
from torch import nn

from fedkd import Experiment, FedkdError, registry, run
from fedkd.compression import LowRank, Quantised
from fedkd.engine.inline import InlineGrid
from fedkd.engine.worker import Worker
from fedkd.mixtures import Band, Labels, Mean, Mixture, Surest
from fedkd.shapes import Sizes
from fedkd.strategies.base import Headline, KnowledgeStrategy, StrategyOptions
from fedkd.work import (
    Align,
    Blend,
    Contrast,
    CrossEntropy,
    Evaluate,
    Expose,
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
    Select,
    Share,
    Soft,
)

WIDTH = "student.width=0.1"
RELEASE = ("release.clip=10", "release.mechanism=gaussian", "release.scale=0.1")
INPUTS = torch.zeros(3, 1, 8, 8)


def small(*overrides):
    return Experiment.from_toml(SMALL, ["strategy.name=mine", WIDTH, *overrides])


@pytest.fixture(scope="module")
def workers():
    """Workers by what their experiment overrides, each made once: strategies are what is tried."""
    made = {}

    def worker(*overrides):
        if overrides not in made:
            made[overrides] = Worker(small(*overrides))
        return made[overrides]

    return worker


def strategy_of(hooks, worker):
    kind = type("Mine", (KnowledgeStrategy,), hooks)
    data = worker.data
    return kind(
        *(worker.experiment, data.task, data.label_counts(), data.transfer().inputs),
        public=worker.public,
        sizes=Sizes.of(data),
    )


@pytest.fixture
def complaint(workers):
    """A function that runs a strategy with some hooks, and gives the line that ends it."""

    def run_it(*overrides, **hooks):
        worker = workers(*overrides)
        with pytest.raises(FedkdError) as failure:
            strategy_of(hooks, worker).start(InlineGrid(worker))
        line = str(failure.value)
        assert "\n" not in line
        assert "'mine'" in line
        return line

    return run_it


def learning(*steps):
    return lambda self, round, client: list(steps)


# --- what hooks return ----------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["learn", "receive", "deploy", "measure", "score"])
@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (None, r"returned None; allowed: a list of steps \(Fit, .*without any it is \[\]"),
        (Fit(), r"returned a Fit; .*one step alone is \[Fit\(\.\.\.\)\]"),
        ([Soft(torch.ones(2, 2))], r"returned a Soft among the steps, which is a term of Fit"),
        ([Fit], r"returned the type Fit among the steps"),
        ({"fit": Fit()}, r"returned a dict of 1"),
        ("fit", r"returned 'fit'"),
        ((step for step in [Fit()]), r"returned the generator"),
        ([[Fit()]], r"returned a list of 1 among the steps"),
    ],
    ids=lambda value: value[9:30] if isinstance(value, str) else type(value).__name__,
)
def test_hooks_return_a_list_of_steps(hook, returned, line, complaint):
    found = complaint(**{hook: lambda self, round, client: returned})
    assert re.search(rf"strategy 'mine', {hook}\(round=1, client=0\): {line}", found)


def test_a_hook_is_no_generator(complaint):
    def learn(self, round, client):
        yield Fit()

    assert "learn is a generator" in complaint(learn=learn)


@pytest.mark.parametrize(
    ("hook", "function"),
    [
        ("learn", lambda self, client: []),
        ("fuse", lambda self, replies: None),
        ("record", lambda self, round, replies: {}),
        ("stop", lambda self: False),
        ("setup", lambda self, experiment: None),
    ],
)
def test_a_hook_that_cannot_be_called_is_told_its_parameters(hook, function, complaint):
    assert re.search(
        rf"{hook} cannot be called .* it is to be {hook}\(self", complaint(**{hook: function})
    )


def test_a_hook_is_a_method(complaint):
    assert "deploy = a list of 0 is not allowed" in complaint(deploy=[])


@pytest.mark.parametrize(
    "returned",
    [[], None, [0, 0], [4], [-1], [0.0], [True], ["0"], {0, 1}, torch.arange(2), [np.int64(0)], 2],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_a_selection_is_numbers_of_clients_each_once(returned, complaint):
    found = complaint(select=lambda self, round: returned)
    assert re.search(r"select\(round=1\): returned .*whole numbers from 0 to 3, each once", found)


@pytest.mark.parametrize("returned", [None, 1, "no", np.bool_(False)], ids=str)
def test_to_stop_or_not_is_true_or_false(returned, complaint):
    found = complaint(stop=lambda self, round: returned)
    assert re.search(r"stop\(round=1\): returned .*; allowed: True or False", found)


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (None, "returned None; allowed: a dictionary"),
        ([1], "returned a list of 1; allowed: a dictionary"),
        ({"loss": torch.tensor(1.0)}, r"returned loss = a torch Tensor .*float\(\)"),
        ({"loss": {"a": [1, np.float32(1)]}}, r"returned loss\.a\[1\] = a numpy float32"),
        ({"who": {1, 2}}, "returned who = a set of 2"),
        ({"of": {3: 0.5}}, "returned of = a dictionary with the key 3"),
        ({"f": len}, "returned f = the builtin_function_or_method len"),
    ],
)
def test_what_is_recorded_fits_into_json(returned, line, complaint):
    found = complaint(record=lambda self, round, replies, label_counts: returned)
    assert re.search(rf"record\(round=1\): {line}", found)


def test_what_holds_itself_is_not_recorded(complaint):
    endless = {}
    endless["again"] = endless
    assert "deep" in complaint(record=lambda self, round, replies, label_counts: endless)


@pytest.mark.parametrize("hook", ["setup", "setup_server", "fuse"])
def test_what_nobody_would_read_is_not_returned(hook, complaint):
    found = complaint(**{hook: lambda self, *given: torch.ones(2)})
    assert re.search(rf"{hook}\(.*\): returned a torch Tensor .*, which nobody reads", found)


# --- errors in hooks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hook",
    [
        *("setup", "setup_server", "select", "learn", "fuse"),
        *("receive", "deploy", "measure", "record", "stop"),
    ],
)
def test_an_exception_in_a_hook_is_a_line_with_its_place(hook, complaint):
    def fails(self, *given):
        return {}["nothing"]

    line = fails.__code__.co_firstlineno + 1
    found = complaint(**{hook: fails})
    assert re.search(
        rf"{hook}\(.*\) failed: KeyError: 'nothing' \(test_authors\.py:{line}\)$", found
    )


def test_wrong_input_that_a_hook_tells_of_keeps_its_line(complaint):
    def setup(self):
        raise FedkdError("strategy.mine = 3 is not allowed with strategy.name = 'mine'")

    assert complaint(setup=setup).startswith("strategy.mine = 3 is not allowed")


@pytest.mark.parametrize(
    ("fuse", "line"),
    [
        (lambda self, round, replies: replies.stack("label") and None, "has no 'label'; it has 's"),
        (lambda self, round, replies: replies.parameters("soft_labels") and None, "see stack"),
        (lambda self, round, replies: replies.of(9, "soft_labels") and None, "client 9 is not one"),
    ],
)
def test_a_wrong_key_of_the_replies_is_told_those_that_there_are(fuse, line, complaint):
    found = complaint(learn=learning(Fit(), Predict()), fuse=fuse)
    assert re.search(rf"fuse\(round=1\): .*{line}", found)


def test_arrays_of_unlike_shapes_are_not_stacked(complaint):
    def fuse(self, round, replies):
        replies.stack("mine")

    sizes = ("data.partition=quantity-skew", "data.samples_per_client=120")
    found = complaint(*sizes, learn=learning(Predict("private", key="mine")), fuse=fuse)
    assert "unlike shapes" in found


def test_options_are_made_from_strategy_options(complaint):
    class Options:
        beta = 1.0

    assert "Options = the type Options is not allowed" in complaint(Options=Options)


def test_what_is_no_strategy_is_a_line(tmp_path):
    registry.register("strategies", "mine")(dict)
    with pytest.raises(
        FedkdError, match=r"strategy\.name = 'mine' is of type type; it must be a subclass"
    ):
        run(small(), tmp_path / "run")


# --- steps and terms ------------------------------------------------------------------------


def soft(rows=80, classes=10, **options):
    return Soft(torch.full((rows, classes), 1 / classes), **options)


def built(at, *terms):
    """A student built on another one."""
    return [Hold("twin"), Fit(together=(Peer("twin", terms or (CrossEntropy(),), "x", at=at),))]


def on_transfer(*terms, **options):
    return [Fit("transfer", terms, **options)]


NUMPY = np.full((80, 10), 0.1, np.float32)
TARGETS = torch.full((80, 10), 0.1)
STEPS = {
    # fields
    "a term without its tuple": (
        [Fit("transfer", soft())],
        r"Fit: terms = a Soft is not allowed; allowed: a tuple of terms",
    ),
    "no terms": ([Fit(terms=())], "Fit: terms = a tuple of 0"),
    "a step among the terms": ([Fit(terms=(Predict(),))], "Fit: terms = a tuple of 1"),
    "targets of NumPy": (on_transfer(Soft(NUMPY)), "Soft: targets = a numpy ndarray of shape"),
    "targets that are no floats": (on_transfer(Soft(TARGETS.long())), "Soft: targets = a torch T"),
    "targets of bfloat16": (on_transfer(Soft(TARGETS.bfloat16())), "Soft: targets = a torch Ten"),
    "targets without memory": (on_transfer(Soft(TARGETS.to("meta"))), "Soft: targets = a torch T"),
    "sparse parameters": (
        [Load({"head.bias": torch.ones(10).to_sparse()})],
        "Load: parameters = a dict of 1",
    ),
    "a weight of NumPy": (
        on_transfer(soft(weight=np.float64(1))),
        "Soft: weight = a numpy float64",
    ),
    "a key of NumPy": ([Predict(key=np.str_("a"))], "Predict: key = a numpy str_"),
    "targets as a list": (on_transfer(Soft([[0.1] * 10])), "Soft: targets = a list of 1"),
    "targets without classes": (on_transfer(Soft(TARGETS[:, 0])), "Soft: targets = a torch T"),
    "temperature 0": (on_transfer(soft(temperature=0)), "Soft: temperature = 0 .*above 0"),
    "a temperature below 0": (
        on_transfer(soft(temperature=torch.full((80,), -1.0))),
        "Soft: temperature = a torch",
    ),
    "a weight of NaN": (on_transfer(soft(weight=float("nan"))), "Soft: weight = nan .*finite num"),
    "a weight that is a tensor": (
        [Fit(terms=(CrossEntropy(torch.tensor(1.0)),))],
        "CrossEntropy: weight = a torch Tensor",
    ),
    "an objective nobody knows": (
        on_transfer(soft(objective="forward")),
        r"objective = 'forward' is not known \(did you mean 'forward_kl'\?\)",
    ),
    "an objective that is a function": (on_transfer(soft(objective=max)), "Soft: objective = the"),
    "an objective's option nobody knows": (
        on_transfer(soft(objective={"name": "dkd", "gamma": 1})),
        "Soft: objective.gamma is not a known key; known here: alpha, beta",
    ),
    "an option out of its range": (
        on_transfer(soft(objective={"name": "dkd", "beta": -1})),
        "Soft: objective.beta = -1 is not allowed: input should be greater than or equal to 0",
    ),
    "an option that is a tensor": (
        on_transfer(soft(objective={"name": "dkd", "beta": torch.ones(1)})),
        "Soft: objective = a dict of 2 is not allowed; allowed: a name, or a dictionary",
    ),
    "an objective without a name": (
        on_transfer(soft(objective={"beta": 1.0})),
        "Soft: objective.name = None is not allowed; known: .*cross_entropy, dhkd",
    ),
    "an objective that needs labels": (
        on_transfer(soft(objective="not_true")),
        "'not_true' needs labels, and the samples of 'transfer' have none .*'argmax' takes",
    ),
    "per nothing": (on_transfer(soft(per="token")), "Soft: per = 'token' .*'sample' or 'class'"),
    "epochs below 0": ([Fit(epochs=-1)], "Fit: epochs = -1 is not allowed"),
    "endless epochs": ([Fit(epochs=float("inf"))], "Fit: epochs = inf is not allowed"),
    "epochs of NumPy": ([Fit(epochs=np.float32(1))], "Fit: epochs = a numpy float32"),
    "half a step": ([Fit(min_steps=0.5)], "Fit: min_steps = 0.5"),
    "a learning rate of 0": ([Fit(lr=0.0)], "Fit: lr = 0.0 .*above 0"),
    "a part that is one name": ([Fit(part="head")], "Fit: part = 'head' .*a tuple of names"),
    "an empty key": ([Fit(key="")], "Fit: key = '' is not allowed"),
    "a key that is a number": ([Predict(key=1)], "Predict: key = 1 is not allowed"),
    "an output nobody knows": ([Predict(output="labels")], "Predict: output = 'labels'"),
    "a source of a tensor": ([Predict(INPUTS)], "Predict: on = a torch Tensor"),
    "pool that is a number": ([Represent("fc1", pool=1)], "Represent: pool = 1 .*True or False"),
    "a width of 0": ([Select(width=0)], "Select: width = 0 is not allowed; allowed: a number abo"),
    "a share above 1": ([Select(quantile=2)], "Select: quantile = 2 .*a number from 0 to 1"),
    "parameters as a list": ([Load([torch.ones(2)])], "Load: parameters = a list of 1"),
    "no parameters": ([Load({})], "Load: parameters = a dict of 0"),
    "a tensor of labels that are floats": (
        [Fit(Samples(INPUTS, torch.zeros(3)))],
        "Samples: labels = a torch Tensor",
    ),
    # sources
    "a source nobody knows": ([Fit("transfr")], r"on = 'transfr' is not known \(did you mean 'tr"),
    "a term's source": (
        [Fit(terms=(CrossEntropy(on="privat"),))],
        r"CrossEntropy: on = 'privat' is not known \(did you mean 'private'",
    ),
    "no labels": ([Fit("transfer")], "the samples of 'transfer' have no labels"),
    "no labels of a term": ([Fit(terms=(CrossEntropy(on="transfer"),))], "have no labels"),
    "no labels per class": ([Predict(per="class")], "per class needs labels"),
    "no labels to test by": ([Evaluate("transfer", "transfer")], "have no labels"),
    "no validation samples": ([Fit("validation")], "no samples.*data.validation_fraction"),
    "samples of another shape": ([Predict(Samples(torch.zeros(3, 64)))], r"students take \(K, 1, "),
    "samples of float64": ([Predict(Samples(INPUTS.double()))], "students take .* torch.float32"),
    "samples of NaN": ([Predict(Samples(INPUTS * torch.nan))], "inputs holds values that are not"),
    "a class too many": (
        [Fit(Samples(INPUTS, torch.full((3,), 10)))],
        "Samples: labels hold what is no class",
    ),
    "a label too few": ([Fit(Samples(INPUTS, torch.zeros(2).long()))], "one for each of"),
    # blocks, cuts, students
    "a block nobody knows": ([Fit(part=("conv9",))], "'conv9' is not a block"),
    "a reach nobody knows": (on_transfer(soft(reach=("fc9",))), "'fc9' is not a block"),
    "a shared block nobody knows": ([Share(("fc9",))], "'fc9' is not a block"),
    "a cut nobody knows": ([Represent("fc9")], "cut 'fc9' is not a cut"),
    "a student nobody knows": ([Fit(student="twin")], "student 'twin' is not known.*known: own"),
    "a rank without energy": ([Share(encoding=LowRank(0.0))], "LowRank: energy = 0.0 is not allo"),
    "parameters by levels": (
        [Share(encoding=Quantised(8))],
        "Share: encoding = a Quantised is not",
    ),
    "a peer nobody knows": (
        [Fit(together=(Peer("twin", (CrossEntropy(),), "twin_loss"),))],
        "Peer: student 'twin' is not known",
    ),
    "a peer that is the student itself": (
        [Fit(together=(Peer("own", (CrossEntropy(),), "twin_loss"),))],
        "Fit: together: the students that learn are own, own; each can learn once",
    ),
    "a peer without terms": ([Fit(together=(Peer("own", (), "loss"),))], "Peer: terms = a tuple"),
    "a peer that is a fit": ([Fit(together=(Fit(),))], "together = .* a tuple of Peer"),
    "a peer under the fit's key": (
        [Hold("twin"), Fit(together=(Peer("twin", (CrossEntropy(),), "train_loss"),))],
        "two steps reply with the metric 'train_loss'",
    ),
    "a peer under a key of the simulator": (
        [Hold("twin"), Fit(together=(Peer("twin", (CrossEntropy(),), "own_loss"),))],
        "Peer: key = 'own_loss' is not allowed",
    ),
    "a peer's target too few": (
        [Hold("twin"), Fit(together=(Peer("twin", (soft(9, per="class"),), "twin_loss"),))],
        "9 targets for 10 classes",
    ),
    "adaptive weights without a peer": (
        [Hold("twin"), Fit(terms=(Soft("twin", adaptive=True),))],
        "adaptive = True is not allowed with targets = 'twin'; allowed: a student .*none here",
    ),
    "adaptive weights without labels": (
        [
            Hold("twin"),
            Fit(
                "transfer",
                terms=(Soft("twin", adaptive=True),),
                together=(Peer("twin", (Soft("own"),), "twin_loss"),),
            ),
        ],
        "Soft: the samples of 'transfer' have no labels",
    ),
    "a blend with nobody": (built(Blend("meme")), r"'twin': at: student = 'meme' .*\(own\)"),
    "a blend with itself": (built(Blend("twin")), r"at: student = 'twin' is not allowed"),
    "a blend at no cut": (built(Blend("own", cut="fc9")), "cut 'fc9' is not a cut"),
    "a blend by no number": (built(Blend("own", math.nan)), "Blend: mine = nan is not allowed"),
    "a slope that is a number": (built(Blend("own", slope=1)), "Blend: slope = 1 is not allowed"),
    "a slope under another's key": (
        [*built(Blend("own", slope=True)), Fit(key="x_slope")],
        "two steps reply with the metric 'x_slope'",
    ),
    "a blend that is a name": (built("own"), r"at = 'own' .* allowed: Blend\(\.\.\.\), or None"),
    "a blend of two architectures": (
        [Hold("twin", "cnn2"), *built(Blend("own"))],
        "at: they are of other architectures, 'cnn2' and 'mlp'",
    ),
    "a blend that looks elsewhere": (
        built(Blend("own"), CrossEntropy(on="own")),
        "at: CrossEntropy: on = 'own' is not allowed: 'own' does not learn from there",
    ),
    "a blend with a prototype": (
        built(Blend("own"), Feature(torch.zeros(10, 20), "fc1")),
        "at: Feature at a cut is not allowed for a student that is built on another",
    ),
    "a share that is none": ([Load("own", keep="half")], "Load: keep = 'half' is not allowed"),
    "a prior of no form": (
        [Fit(terms=(CrossEntropy(prior=Prior("flat")),))],
        "Prior: form = 'flat' is not allowed; allowed: 'log' or 'margin'",
    ),
    "a prior without weight": (
        [Fit(terms=(CrossEntropy(prior=Prior(weight=0)),))],
        "Prior: weight = 0 is not allowed",
    ),
    "a peer that looks elsewhere": (
        [
            Hold("twin"),
            Fit(
                terms=(CrossEntropy(), Soft("twin", on="transfer")),
                together=(Peer("twin", (CrossEntropy(),), "twin_loss"),),
            ),
        ],
        "Soft: targets = 'twin' is not allowed with on = 'transfer': this student learns in the sa",
    ),
    "a teacher nobody knows": (on_transfer(Soft("twin")), "student 'twin' is not known; known: o"),
    "a student held too late": (
        [Fit(student="twin"), Hold("twin")],
        "step 1: Fit: student 'twin' is not known",
    ),
    "a teacher per class without labels": (
        on_transfer(Soft("own", per="class")),
        "Soft: the samples of 'transfer' have no labels",
    ),
    "an architecture nobody knows": ([Hold("twin", "cnn22")], "'cnn22' is not known"),
    "a name with a colon": ([Hold("a:b")], "a name has no colon"),
    "the own student held": ([Hold("own")], "Hold: student = 'own' is not allowed"),
    # targets
    "logits as soft labels": (
        on_transfer(Soft(torch.randn(80, 10))),
        "Soft: targets are not probabilities: row 0 .*objective = 'forward_kl' takes probabilities",
    ),
    "logits per class": (
        [Fit(terms=(Soft(torch.randn(10, 10), per="class"),))],
        "Soft: targets are not probabilities",
    ),
    "logits without an end": (
        on_transfer(Soft(torch.full((80, 10), torch.inf), "mse_logits")),
        "targets holds values that are not finite",
    ),
    "too few rows": (on_transfer(soft(20)), "Soft: 20 targets for 80 rows"),
    "too few rows of a term's source": (
        [Fit(terms=(soft(20, on="transfer"),))],
        "Soft: 20 targets for 80 rows",
    ),
    "too few classes": (on_transfer(soft(classes=9)), r"shape \(80, 9\) for 10 classes"),
    "one row a class too few": ([Fit(terms=(soft(9, per="class"),))], "9 targets for 10 classes"),
    "a weight too few": (
        on_transfer(soft(row_weights=torch.ones(79))),
        r"row_weights of shape \(79,\) is not allowed; one for each of 80",
    ),
    "a candidate that is no class": (
        on_transfer(soft(classes=3, among=torch.full((80, 2), 10))),
        "among holds what is no class",
    ),
    "a candidate twice": (
        on_transfer(soft(classes=3, among=torch.ones(80, 2).long())),
        "names a class twice",
    ),
    "candidates of logits": (
        on_transfer(
            Soft(torch.zeros(80, 3), "mse_logits", among=torch.arange(2).expand(80, 2).clone())
        ),
        "'mse_logits' is not allowed with candidates",
    ),
    "prototypes of another width": (
        [Fit(terms=(Feature(torch.zeros(10, 3), "fc1"),))],
        r"Feature: targets of shape \(10, 3\) are not allowed; allowed: \(10, 20\)",
    ),
    "features for other samples": (
        on_transfer(Feature(torch.zeros(10, 20), "fc1", per="sample")),
        r"Feature: targets of shape \(10, 20\) are not allowed; allowed: \(80, 20\), one a row",
    ),
    "prototypes without labels": (
        on_transfer(Feature(torch.zeros(10, 20), "fc1")),
        "Feature: the samples of 'transfer' have no labels",
    ),
    "a measure nobody knows": (
        on_transfer(Feature(torch.zeros(80, 20), "fc1", "l3", "sample")),
        "Feature: measure = 'l3' is not allowed; allowed: 'squared' or 'cosine'",
    ),
    "norms of squares": (
        on_transfer(Feature(torch.zeros(80, 20), "fc1", per="sample", norms=torch.ones(80))),
        "Feature: norms are not allowed with measure = 'squared'; allowed: 'cosine'",
    ),
    "norms of others": (
        on_transfer(Feature(torch.zeros(80, 20), "fc1", "cosine", "sample", norms=torch.ones(10))),
        r"Feature: norms of shape \(10,\) are not allowed; one for each of 80 rows",
    ),
    "a mixture of one": (
        on_transfer(Soft(Mixture(("own",)))),
        "Mixture: parts = .* is not allowed; allowed: a tuple of two at least",
    ),
    "a mixture with labels that are not there": (
        on_transfer(Soft(Mixture(("own", Labels())))),
        "Mixture: it goes by labels, and the samples of 'transfer' have none",
    ),
    "the surest of labels that are not there": (
        on_transfer(Soft(Mixture(("own", torch.full((80, 10), 0.1)), Surest("label")))),
        "Mixture: it goes by labels",
    ),
    "a mixture of fewer samples": (
        on_transfer(Soft(Mixture(("own", torch.full((8, 10), 0.1))))),
        "Soft: 8 targets for 80 rows",
    ),
    "a mixture of logits": (
        on_transfer(Soft(Mixture(("own", torch.full((80, 10), 3.0))))),
        "Mixture: targets are not probabilities",
    ),
    "aligning by samples without labels": (
        [Align("transfer")],
        "Align: the samples of 'transfer' have no labels",
    ),
    "aligning a student nobody has": ([Align(student="twin")], "student 'twin' is not known"),
    "means a class with candidates": (
        [
            Fit(
                terms=(Soft("own", per="class", among=torch.zeros(10, 1, dtype=torch.int64)),),
            )
        ],
        "Soft: targets = 'own' per class is not allowed with candidates",
    ),
    "means a class of who learns in the same step": (
        [
            Hold("twin"),
            Fit(
                terms=(Soft("twin", per="class"),),
                together=(Peer("twin", (CrossEntropy(),), "twin_loss"),),
            ),
        ],
        "Soft: targets = 'twin' per class is not allowed: this student learns in the same step",
    ),
    "labels as logits": (
        [Fit(terms=(Soft(Mixture(("own", Labels())), "mse_logits"),))],
        "Mixture: Labels are not allowed with objective = 'mse_logits', which takes logits",
    ),
    "a mixture with nobody": (
        on_transfer(Soft(Mixture(("own", "twin")))),
        "Mixture: student 'twin' is not known; known: own",
    ),
    "a mixture with a weight too few": (
        on_transfer(Soft(Mixture(("own", "own"), Mean((1.0,))))),
        "Mean: 1 weights for 2 parts; one each",
    ),
    "weights of nothing": (
        on_transfer(Soft(Mixture(("own", "own"), Mean((0.0, 0.0))))),
        "Mean: weights = .* is not allowed; allowed: a tuple of numbers from 0, not all",
    ),
    "a band upside down": (
        on_transfer(Soft(Mixture(("own", "own"), Band(0.5, 0.2, by="confidence")))),
        "Band: low = 0.5, middle = 0.2, top = 1 of 2 parts is not allowed",
    ),
    "smoothing with candidates": (
        [
            Fit(
                terms=(
                    Soft(
                        Mixture(("own", Labels(0.1))),
                        among=torch.zeros(1, 1, dtype=torch.int64),
                    ),
                )
            )
        ],
        "Labels: smoothing = 0.1 is not allowed with candidates",
    ),
    "an encoded mixture": (
        on_transfer(Soft(Mixture(("own", "own")), encoding=Quantised(4))),
        "Soft: encoding is not allowed with a Mixture",
    ),
    # parameters
    "parameters nobody has": ([Load({"fc9.weight": torch.ones(2)})], "has no fc9.weight"),
    "parameters of another shape": (
        [Load({"head.bias": torch.ones(9)})],
        r"has no head.bias of shape \(9,\), torch.float32; it has \(10,\)",
    ),
    "a part without parameters": (
        [Load({"head.bias": torch.ones(10)}, ("fc1",))],
        r"part = \('fc1',\) has none of the parameters",
    ),
    "another head": (
        [Fit(terms=(CrossEntropy(through=Head("fc2", {"head.bias": torch.ones(10)})),))],
        "Head: its parameters are not those of the blocks above 'fc2'",
    ),
    "a head of another shape": (
        [
            Fit(
                terms=(
                    CrossEntropy(
                        through=Head(
                            "fc2",
                            {"head.bias": torch.ones(9), "head.weight": torch.ones(10, 20)},
                        )
                    ),
                )
            )
        ],
        r"Head: head.bias of shape \(9,\)",
    ),
    "an anchor that lacks something": (
        [Fit(terms=(CrossEntropy(), Proximal(1.0, {"head.bias": torch.ones(10)})))],
        "Proximal: anchor has none for fc1",
    ),
    "a contrast with too few rows": (
        [Fit("transfer", (Contrast("own", torch.ones(3, 20), "fc1"),))],
        r"Contrast: negative of shape \(3, 20\) is not allowed; allowed: \(80, 20\)",
    ),
    "a contrast with nobody": (
        [Fit(terms=(Contrast("own", "twin", "fc1"),))],
        "Contrast: student 'twin' is not known; known: own",
    ),
    "a contrast of unlike widths": (
        [Hold("twin", "cnn2"), Fit(terms=(Contrast("own", "twin", "fc1"),))],
        "Contrast: negative = 'twin' is not allowed: its representation at 'fc1' has",
    ),
    "a contrast at no cut": (
        [Fit(terms=(Contrast("own", "own", "fc9"),))],
        "cut 'fc9' is not a cut",
    ),
    "a contrast at temperature 0": (
        [Fit(terms=(Contrast("own", "own", "fc1", 0),))],
        "Contrast: temperature = 0 is not allowed; allowed: a number above 0",
    ),
    "parameters of nobody": ([Load("twin")], "Load: parameters: student 'twin' is not known"),
    "parameters of another architecture": (
        [Hold("twin", "cnn2"), Load("own", student="twin")],
        "Load: parameters = 'own' is not allowed with student = 'twin': .* 'mlp' and 'cnn2'",
    ),
    "an inner product with some parameters": (
        [Fit(terms=(CrossEntropy(), Linear({"head.bias": torch.ones(10)})))],
        "Linear: given has none for fc1",
    ),
    "an inner product with nothing": (
        [Fit(terms=(Linear(None),))],
        "Linear: given = None is not allowed; allowed: a dictionary of tensors by name",
    ),
    # keys
    "two steps with one key": (
        [Predict(), Predict(temperature=2)],
        "two steps reply with the array 'soft_labels'",
    ),
    "two fits with one key": ([Fit(), Fit(epochs=1)], "two steps reply with the metric 'train_los"),
    "a key of a measurement": ([Predict(key="measure_x")], "measure asks for, and nothing else"),
    "a key of the simulator's": ([Fit(key="seconds")], "Fit: key = 'seconds' is not allowed"),
    "a test of the simulator's": ([Evaluate()], "Evaluate: key = 'own' is not allowed"),
    "a key of messages'": ([Share(key="keys")], "Share: key = 'keys' is not allowed"),
    "an exposure": ([Expose()], "a Expose is not allowed in learn"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_that_cannot_be_done_is_a_line_before_anybody_does_it(case, complaint):
    steps, line = STEPS[case]
    found = complaint(learn=learning(*steps))
    assert re.search(rf"strategy 'mine', learn\(round=1, client=0\): .*{line}", found), found


def test_the_number_of_the_step_is_told(complaint):
    assert "step 3: Fit: epochs = -1" in complaint(
        learn=learning(Fit(), Predict(), Fit(epochs=-1, key="again"))
    )


@pytest.mark.parametrize("step", [Predict(), Share(), Represent("fc1")], ids=str)
def test_nothing_is_sent_from_what_is_undone(step, complaint):
    found = complaint(deploy=learning(step))
    assert re.search(r"is not allowed in deploy; allowed: Fit, Hold, Load, Evaluate", found)


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (Predict(), "is not allowed in score; allowed: Fit, Hold, Load, Evaluate"),
        (Evaluate(), "key = 'own' is not allowed; allowed: a name of what is tested"),
        (Evaluate(key="loss"), "key = 'loss' is not allowed"),
        (Evaluate(key="a b"), "key = 'a b' is not allowed"),
        (Evaluate("common", key="server"), "on is not for score"),
        (Evaluate(key="server", student="server"), "student 'server' is not known"),
        (Evaluate(key="near", cut="fc1"), "cut = 'fc1' has no effect without prototypes"),
        (
            Evaluate(key="near", prototypes=torch.ones(10, 3), cut="fc1"),
            r"\(10, 20\), a row a class",
        ),
        (Evaluate(key="near", prototypes=torch.ones(10, 20), cut="nowhere"), "nowhere"),
        (Evaluate(key="near", prototypes=torch.ones(2, 2) / 0, cut="fc1"), "prototypes"),
    ],
    ids=str,
)
def test_what_cannot_be_tested_is_a_line(step, line, complaint):
    found = complaint(score=learning(step))
    assert re.search(rf"strategy 'mine', score\(round=1, client=0\): .*{line}", found), found


@pytest.mark.parametrize(
    "headline", ["local", None, Headline("now"), Headline("local", evaluation="server")], ids=str
)
def test_a_headline_is_one_that_is_measured(headline, complaint):
    assert f"headline = {headline!r} is not allowed" in complaint(headline=headline)


def test_what_measure_asks_for_has_keys_of_its_own(complaint):
    assert "begins with 'measure_'" in complaint(measure=learning(Predict()))


def test_a_student_that_is_built_on_another_is_refused_under_dp_sgd(complaint):
    line = complaint("training.dp.noise_multiplier=1", learn=learning(*built(Blend("own"))))
    assert re.search(r"'twin': at: it is not allowed with training\.dp\.noise_multiplier = 1", line)


def test_a_term_that_draws_from_nothing_is_a_line(complaint):
    found = complaint("data.test.fraction=0", learn=learning(Fit(terms=(CrossEntropy(on="own"),))))
    assert "CrossEntropy: on = 'own' has no samples" in found
    assert "data.test.fraction" in found


def test_terms_on_the_server_are_looked_at_too(complaint):
    def setup_server(self):
        self.server.add("global", self.initial_student)

    def fuse(self, round, replies):
        self.server.fit("global", round, Samples(self.transfer), (self.term,), 1)

    for term, line in (
        (Soft(torch.randn(80, 10)), "targets are not probabilities"),
        (soft(20), "20 targets for 80 rows"),
        (CrossEntropy(), "have no labels"),
        (CrossEntropy(on="private"), "on = 'private' is not known; known: public"),
        (Soft("own"), "student 'own' is not known; known: none"),
        (Predict(), "terms = "),
    ):
        # A class attribute is none of what the strategy keeps.
        found = complaint(setup_server=setup_server, fuse=fuse, term=term)
        assert re.search(rf"fuse\(round=1\): .*{line}", found), found


def test_parameters_on_the_server_are_all_there_and_fit(complaint):
    def setup_server(self):
        self.server.add("global", self.initial_student)

    for parameters in ({}, {"head.bias": torch.ones(1)}):

        def fuse(self, round, replies, parameters=parameters):
            self.server.load(
                "global", self.initial_parameters() | parameters | {"x": torch.ones(1)}
            )

        found = complaint(setup_server=setup_server, fuse=fuse)
        assert re.search(r"fuse\(round=1\): server student 'global'", found), found


# --- what works -----------------------------------------------------------------------------


def works(worker, **hooks):
    lines = []
    strategy = strategy_of(hooks, worker)
    strategy.start(InlineGrid(worker), on_round=lambda line, _: lines.append(line))
    assert all(line["left_out"] == [] for line in lines)
    return lines


@pytest.mark.parametrize("on", ["transfer", "own", "common", "validation"])
def test_a_term_of_a_private_fit_may_draw_from_any_source(on, workers):
    labels = soft(on=on, objective="cross_entropy", reach=("head",))
    beside = labels if on == "transfer" else CrossEntropy(on=on)
    losses = []
    for cohort in ("on", "off"):
        worker = workers(f"engine.cohort={cohort}", "data.validation_fraction=0.2")
        both = works(worker, learn=learning(Fit(terms=(CrossEntropy(), beside))))
        alone = works(worker, learn=learning(Fit()))
        losses.append(both[0]["train_loss_mean"])
        assert losses[-1] > alone[0]["train_loss_mean"] + 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_rows_of_nan_and_lists_and_held_students_are_allowed(workers):
    holes = TARGETS.clone()
    holes[3] = torch.nan

    def learn(self, round, client):
        steps = [Hold("twin"), Load(self.initial_parameters(), student="twin")] * (round == 1)
        fit = Fit("transfer", [Soft(holes), Soft("twin")], part=["head"], key="soft_loss")
        return (*steps, fit, Fit(student="twin"), Share(("head",), student="twin"))

    works(workers(), learn=learn)


# --- [release]: nothing leaves around it ----------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        *(Predict(on) for on in ("private", "own")),
        Predict("private", per="class"),
        Represent("fc1"),
        Represent("fc1", "transfer"),
        Select(),
        Share(),
    ],
    ids=lambda step: f"{type(step).__name__} {getattr(step, 'on', '')}"[:30],
)
@pytest.mark.parametrize("hook", ["learn", "receive"])
def test_what_release_does_not_cover_does_not_leave(hook, step, complaint):
    found = complaint(*RELEASE, sends_soft_labels=True, **{hook: learning(step)})
    assert re.search(r"is not allowed with \[release\]: it would leave the client unrele", found)


@pytest.mark.parametrize(
    "step",
    [
        Predict(key="mine"),
        Predict(output="logits"),
        Predict(temperature=3.0),
        Predict(student="twin"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_whatever_predict_says_on_the_transfer_set_is_released_and_in_the_ledger(step, workers):
    worker, ledger, said = workers(*RELEASE), [], []

    def fuse(self, round, replies):
        said.append(replies.stack(step.key)[0])

    strategy = strategy_of(
        {"sends_soft_labels": True, "learn": learning(Hold("twin"), step), "fuse": fuse}, worker
    )
    strategy.start(
        InlineGrid(worker), on_round=lambda line, details: ledger.extend(details["releases"])
    )
    assert len(ledger) == 2 * 4
    assert {(e["key"], e["items"], e["mechanism"]) for e in ledger} == {(step.key, 80, "gaussian")}
    # Projected noise leaves exact zeros, or the logarithm of the least probability.
    least = said[0].min()
    assert float(least) == (0 if step.output == "probabilities" else pytest.approx(-18.42, abs=0.1))


def test_what_is_measured_does_not_reach_the_fusion(workers):
    seen = {}

    def fuse(self, round, replies):
        seen["fuse"] = {*replies.replies[0].values}

    def record(self, round, replies, label_counts):
        seen["record"] = {*replies.replies[0].values}
        return {}

    measure = learning(Predict("private", key="measure_labels"))
    works(workers(), learn=learning(Predict()), measure=measure, fuse=fuse, record=record)
    assert seen == {"fuse": {"soft_labels"}, "record": {"soft_labels", "measure_labels"}}


@pytest.mark.parametrize(
    ("on", "items"), [("private", 60), ("common", 60), (Samples(INPUTS), 3)], ids=str
)
def test_the_ledger_counts_the_rows_that_were_sent(on, items, workers):
    worker, ledger = workers(), []
    strategy = strategy_of({"learn": learning(Predict(on))}, worker)
    strategy.start(
        InlineGrid(worker), on_round=lambda line, details: ledger.extend(details["releases"])
    )
    assert {entry["items"] for entry in ledger} == {items}


# --- what a strategy keeps ------------------------------------------------------------------


@pytest.mark.parametrize("when", ["setup", "fuse"])
@pytest.mark.parametrize(
    ("value", "line"),
    [
        (nn.Linear(2, 2), r"self\.kept holds a Linear, .*students .* go into self\.server"),
        (np.ones(3), r"self\.kept holds a numpy ndarray"),
        (np.float64(1), r"self\.kept holds a numpy float64"),
        (torch.Generator(), r"self\.kept holds a Generator"),
        (lambda: 1, r"self\.kept holds the function <lambda>"),
        ((n for n in ()), r"self\.kept holds the generator"),
        ({1, 2}, r"self\.kept holds a set of 2"),
        ({"a": [nn.ReLU()]}, r"self\.kept\['a'\]\[0\] holds a ReLU"),
        ({torch.float32: 1}, r"a key of self\.kept holds a dtype"),
        (Fit(), r"self\.kept holds a Fit"),
        (StrategyOptions(), r"self\.kept holds a StrategyOptions"),
        (torch.ones(2, requires_grad=True) * 2, r"self\.kept holds a tensor with the graph"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_what_no_checkpoint_can_hold_is_refused_in_round_1(when, value, line, complaint):
    def keep(self, *given):
        self.kept = value

    found = complaint(**{when: keep})
    where = r"setup\(\)" if when == "setup" else "kept at the end of round 1"
    assert re.search(rf"strategy 'mine', {where}: {line}", found), found
    if "graph" not in line:
        assert "a strategy keeps tensors, numbers, strings" in found


def test_what_comes_later_is_refused_when_it_comes(complaint):
    def fuse(self, round, replies):
        if round == 2:
            self.late = nn.ReLU()

    assert "kept at the end of round 2: self.late holds a ReLU" in complaint(fuse=fuse)


def test_what_is_put_into_a_list_later_is_refused_by_the_checkpoint(complaint, workers):
    def setup(self):
        self.grown = []

    def fuse(self, round, replies):
        self.grown.append(nn.ReLU())

    strategy = strategy_of({"setup": setup}, workers())
    strategy.grown.append(nn.ReLU())
    with pytest.raises(FedkdError, match=r"self\.grown\[0\] holds a ReLU"):
        strategy.state()


@pytest.mark.parametrize("name", ["transfer", "server", "options", "task", "public", "experiment"])
def test_what_the_base_class_needs_is_not_replaced(name, complaint):
    def fuse(self, round, replies):
        setattr(self, name, torch.ones(2))

    found = complaint(fuse=fuse)
    assert re.search(rf"fuse\(round=1\) failed: .*self\.{name} is what the strategy was", found)


@pytest.mark.parametrize("name", ["record", "measure", "fuse", "initial_student", "state"])
def test_a_method_is_not_replaced_by_a_value(name, complaint):
    def setup(self):
        setattr(self, name, 0.5)

    assert f"self.{name} is a method of every strategy, and 0.5 cannot" in complaint(setup=setup)


def test_a_state_of_ones_own_is_looked_at_in_round_1(complaint):
    def state(self):
        return {"mine": nn.ReLU()}

    found = complaint(state=state)
    assert "state(): what it returned['mine'] holds a ReLU" in found


def test_what_may_be_kept_comes_back_from_a_checkpoint(tmp_path, workers):
    kept = {
        "a": {1: torch.ones(2), (1, "b"): [None, True, 2.5, "word", (1, 2)]},
        "b": nn.Linear(2, 2).state_dict(),
        "c": torch.nn.Parameter(torch.ones(1)),
    }
    one, other = (strategy_of({}, workers()) for _ in range(2))
    vars(one).update(kept)
    torch.save(one.state(), tmp_path / "state.pt")
    other.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    found = {name: vars(other)[name] for name in kept}
    assert str(found) == str(kept)
    assert str(other.state()) == str(one.state())


# --- what a hook does besides ---------------------------------------------------------------


def played(place, *overrides, **hooks):
    """A run of a strategy with some hooks."""
    registry.register("strategies", "mine")(type("Mine", (KnowledgeStrategy,), hooks))
    return run(small(*overrides), place)


def drawn(self, round, *_):
    return {"draws": [random.random(), float(np.random.rand()), float(torch.rand(()))]}


def test_what_hooks_draw_is_the_same_in_every_run_and_in_one_that_goes_on(tmp_path):
    def select(self, round):
        return random.sample(range(4), 2)

    hooks = {"select": select, "learn": learning(Fit(epochs=0.1)), "record": drawn}
    registry.register("strategies", "mine")(type("Mine", (KnowledgeStrategy,), hooks))
    experiment = small("rounds=4", "checkpoint_every=1")
    once, again = (measured(run(experiment, tmp_path / side)) for side in "ab")
    assert once == again
    with pytest.raises(Killed):
        run(experiment, tmp_path / "killed", observer=KilledAfter(2))
    assert measured(run(experiment, tmp_path / "killed", resume=True)) == once
    rounds = [tuple(line["participants"]) for line in once[0]]
    draws = {draw for line in once[0] for draw in line["strategy"]["draws"]}
    assert len({*rounds}) > 1
    assert len(draws) == 12


def test_drawing_in_a_hook_changes_no_other_draw(tmp_path):
    plain = measured(played(tmp_path / "plain", learn=learning(Fit())))
    other = measured(played(tmp_path / "other", learn=learning(Fit()), record=drawn))
    for line in other[0]:
        del line["strategy"]
    assert other == plain


@pytest.mark.parametrize("alike", ["tensor", "dictionary"])
def test_an_array_that_is_written_to_between_two_clients_is_refused(alike, complaint):
    weights = torch.zeros(10)
    held = {"head.bias": weights}

    def learn(self, round, client):
        if alike == "tensor":
            weights.add_(1)
            return [Load({"head.bias": weights}), Fit()]
        held["head.bias"] = torch.full((10,), float(client))
        return [Load(held), Fit()]

    line = complaint(learn=learn)
    assert re.search(r"learn\(round=1.*an array of these steps was written to after", line)


def test_what_a_class_keeps_is_refused(complaint):
    def fuse(self, round, replies):
        self.history.append(round)

    line = complaint(learn=learning(Fit(epochs=0)), fuse=fuse, history=[])
    assert "Mine.history has changed, an attribute of the class" in line
    assert "self.history = ... in setup" in line


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (10**400, r"whole number of 1329 bits; allowed: up to 63 bits"),
        ("\ud800", r"no text that can be written"),
        ({"\ud800": 1}, r"the key .* no text that can be written"),
    ],
)
def test_a_record_is_what_tables_can_hold(value, line, complaint):
    found = complaint(learn=learning(Fit(epochs=0)), record=lambda self, *_: {"mine": value})
    assert re.search(rf"record\(round=1\): returned .*{line}", found)


@pytest.mark.parametrize("wrong", [{"epochs": 1e9}, {"min_steps": 10**12}, {"epochs": -1}])
def test_a_fit_ends_in_a_lifetime(wrong, complaint):
    line = complaint(learn=learning(Fit(**wrong)))
    assert re.search(r"(epochs|min_steps) = .* is not allowed; .* from 0 to", line)


@pytest.mark.parametrize(
    "hooks",
    [
        {"learn": learning(Fit("own"))},
        {"learn": learning(Fit("private", (CrossEntropy(), CrossEntropy(on="common"))))},
        {"learn": learning(Fit(epochs=0)), "deploy": learning(Fit("own"))},
    ],
)
def test_training_on_what_students_are_tested_on_is_a_warning(hooks, tmp_path):
    done = played(tmp_path / "run", "rounds=1", **hooks)
    assert [line for line in done.warnings if "the samples that they are tested on" in line]


def test_answers_that_are_no_numbers_are_wrong_and_a_warning(tmp_path):
    """Not the first class, as argmax has it."""

    def receive(self, round, client):
        return [Load({"head.bias": torch.full((10,), float("nan"))})] if client == 1 else []

    learn = learning(Fit(epochs=0))
    done = played(tmp_path / "run", "rounds=1", learn=learn, receive=receive)
    (line,) = [a for a in done.clients if a["client"] == 1 and a["stage"] == "fused"]
    assert line["own_accuracy"] == line["common_accuracy"] == 0
    (warning,) = [text for text in done.warnings if "answer with NaN" in text]
    assert "1 of 4 clients' students, client 1's for one" in warning
