"""Attack an experiment: what the knowledge that its clients send tells about their data.

The adversary is the server. It sees what each client sends in the last round, knows the transfer
set, the students and every setting, and is shown how the same clients answer when other halves of
their data are taken away: the experiment is run again and again, each time with a random half of
every client's training samples, so that each run is a shadow of all others (Carlini et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor, nn

from fedkd import registry
from fedkd.data.federated import load
from fedkd.engine.inline import InlineGrid
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy import attacks
from fedkd.privacy.guarantees import guarantee as guarantee
from fedkd.privacy.guarantees import guarantees as guarantees
from fedkd.privacy.guarantees import profiles as profiles
from fedkd.privacy.release import over_classes
from fedkd.random import generator, key
from fedkd.results import Run
from fedkd.students import build
from fedkd.training import fit, item_labels, predict
from fedkd.work import Assignment, Parameters, Reply, Samples, Soft, decode

PROXY_EPOCHS = 20.0
"""Passes over the transfer set in which the server distils a client's soft labels."""
FPRS = (0.001, 0.01, 0.1)
FEWEST = 4
"""Shadows that a likelihood ratio needs."""
CONFIDENCE = 0.95

Values: TypeAlias = "dict[str, Tensor | Parameters]"


@dataclass(frozen=True)
class LabelInference:
    """How well a client's label distribution is told from what it sent, a mean over clients.

    ``l1`` is the L1 distance to the truth, ``l1_others`` that of the mean of the other clients'
    truth, the guess without anything sent; ``top`` the share of clients whose commonest class is
    told. ``how`` says what was read.
    """

    how: str
    l1: float
    l1_others: float
    top: float


@dataclass(frozen=True)
class Membership:
    """How well members are told from records that were left out, over all clients and shadows.

    ``auc`` and, by false positive rate, ``tpr`` have 95 % intervals, over clients and their records
    (:func:`fedkd.privacy.attacks.detection`); ``refused`` are false positive rates at which too few
    false positives are expected, and how many. ``epsilon`` is a lower bound on an epsilon at
    ``delta``, from the first shadow alone (Steinke et al. 2023), its records scored by how much
    surer that shadow is of them than the others are on the mean. Copies of a record are in or out
    together: it is about ``group`` records of a client at once, the most copies that there are.
    ``how`` says what was attacked.
    """

    how: str
    shadows: int
    records: int
    auc: float
    auc_low: float
    auc_high: float
    tpr: dict[str, tuple[float, float, float]]
    refused: dict[str, float]
    epsilon: float
    delta: float
    group: int = 1


def secret_in_records(run: Run, repeats: int) -> tuple[int, bool]:
    """How many records of its holder a secret is, and whether it moves none but these.

    Of images each label of each copy is a record; of text a copy is a line, and lines that come
    before or after it may move to other rows.
    """
    canaries = run.canaries or {}
    if canaries.get("kind") == "labels":
        return repeats * int(canaries["length"]), True
    return repeats, False


def delta_of(experiment: Experiment) -> float:
    """Delta that epsilon is stated at: that of private training where there is any."""
    dp = experiment.training.dp
    return dp.delta if dp.noise_multiplier else experiment.release.delta


def proved(
    run: Run,
    bits: Mapping[str, Sequence[float]],
    repeats: int,
    clean: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, float]:
    """Lower bounds on a client-level epsilon from exposures of planted secrets, by place.

    A secret and all its copies are data of one client, whatever the repeats: the unit is that
    client's data, not a record (see :func:`secret_in_records`). A bound is about what leaves the
    clients: labels (or parameters, which are the teachers themselves) and the student made of them.
    All bounds hold together with 95 % confidence, secrets taken as independent of one another.

    Where the transfer set holds the secrets themselves, what is released depends on them even if no
    client has seen them: the exposures are then compared with ``clean`` ones, and only those of a
    client's own release, as in the clean runs all clients have other data at once.

    Parameters
    ----------
    run : Run
        One of those that ``bits`` are from, for what it plants and sends.
    bits : mapping from place to sequence of float
        Exposures of secrets with ``repeats`` copies; places are those of ``fedkd.results.PLACES``,
        and ``"released, linear"`` for those by the other score.
    repeats : int
        Copies of a secret.
    clean : mapping, optional
        The same of runs that differ in nothing but that no client has any secret.

    Returns
    -------
    dict
        Empty where exposures prove nothing: nothing planted, exposures extrapolated by a fitted
        law, a secret that several clients have, or no ``clean`` exposures where they are needed.
    """
    experiment, canaries = run.experiment, run.canaries
    table, delta = experiment.canary, delta_of(experiment)
    together = min(table.spread, repeats) > 1
    if canaries is None or table.control or together or table.estimator == "extrapolation":
        return {}
    own = "teacher" if any(line["step"] == "Share" for line in run.releases) else "released"
    shown = canaries["public"] == "exact"
    wanted = [own, f"{own}, linear", *(() if shown else ("student",))]
    told = [place for place in wanted if bits.get(place)]
    share = 1 - (1 - CONFIDENCE) / max(len(told), 1)
    found: dict[str, float] = {}
    for place in told:
        if not shown:
            space = canaries["log2_space"]
            epsilon = attacks.audited_epsilon_from_exposure(bits[place], space, delta, share)
        elif base := (clean or {}).get(place):
            epsilon = attacks.audited_epsilon(bits[place], base, delta, share)
        else:
            continue
        place = place.removesuffix(", linear")
        found[place] = max(epsilon, found.get(place, 0.0))
    return found


class _Heard(Exception):
    """The last round's knowledge has been sent."""


class _Untested(Worker):
    """Measures nothing, as an attack looks at what is sent alone."""

    def perform_all(
        self, assignments: Sequence[Assignment], *progress: Any, **care: Any
    ) -> list[Reply]:
        untested = [replace(assignment, trial=()) for assignment in assignments]
        return super().perform_all(untested, *progress, **care)


class _Listening(InlineGrid):
    """Keeps what clients sent last, and ends the run when they have sent it for the last time."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self.heard: dict[int, Values] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        asked = list(messages)
        answers = list(super().send_and_receive(asked, timeout=timeout))
        learnt = [message for message in answers if message.metadata.message_type == "train"]
        for message in learnt:
            reply: Reply = decode(message.content)
            if reply.error:
                raise FedkdError(reply.error)
            if reply.failure:
                continue
            sent = {line["key"] for line in reply.releases}
            self.heard[reply.client] = {k: v for k, v in reply.values.items() if k in sent}
        last = str(self.worker.experiment.rounds)
        if any(message.metadata.group_id == last for message in learnt):
            raise _Heard
        return answers


def knowledge(worker: Worker) -> dict[int, Values]:
    """What each client sends last in the worker's experiment, which is run from the start.

    What the server makes of it in the last round is left out.
    """
    experiment, data = worker.experiment, worker.data
    method = registry.load("strategies", experiment.strategy.name)
    strategy = method(
        experiment, data.task, data.label_counts(), data.transfer().inputs, public=worker.public
    )
    grid = _Listening(worker)
    with suppress(_Heard):
        strategy.start(grid)
    return grid.heard


def quiet(experiment: Experiment) -> Experiment:
    """``experiment`` in this process, measuring nothing before its last round."""
    engine = experiment.engine.model_copy(update={"name": "inline"})
    return experiment.model_copy(update={"engine": engine, "evaluate_every": experiment.rounds})


def infer_labels(experiment: Experiment) -> LabelInference | None:
    """Attack clients' label distributions; None where what they send says nothing of them."""
    worker = _Untested(quiet(experiment))
    sent = knowledge(worker)
    counts = worker.data.label_counts().double()
    truth = (counts / counts.sum(1, keepdim=True)).numpy()
    others = attacks.baseline_distributions(truth)["others"]
    found, how = [], ""
    for client, values in sorted(sent.items()):
        read = attacks.infer_label_distribution(
            _plain(values, worker), partial(_laws, worker, client), worker.data.task.classes
        )
        if read is None:
            return None
        guess, how = read
        mine = attacks.distribution_errors(guess, truth[client])
        theirs = attacks.distribution_errors(others[client], truth[client])
        found.append((mine.l1, theirs.l1, float(mine.top_hit)))
    if not found:
        return None
    l1, baseline, top = np.mean(found, axis=0).tolist()
    return LabelInference(how, l1, baseline, top)


def infer_members(
    experiment: Experiment, shadows: int, done: Callable[[int], None] = lambda _: None
) -> Membership | None:
    """Attack membership of training records with likelihood ratios over ``shadows`` runs.

    Copies of a record are in or out together, and count as one. Clients that never take part are
    left out. ``done`` is called with the number of runs after each. None where clients send nothing
    that a model can be made of: class means, or representations, which are the records themselves.

    Raises
    ------
    FedkdError
        There are too few shadows for a likelihood ratio.
    """
    if shadows < FEWEST:
        raise FedkdError(
            f"--shadows {shadows} is too few: a likelihood ratio needs at least {FEWEST}"
        )
    experiment = quiet(experiment)
    # No other run has these halves.
    engine = experiment.engine.model_copy(update={"remember": False})
    experiment = experiment.model_copy(update={"engine": engine})
    whole = load(experiment)
    clients = range(whole.clients)
    copies = [_copies(whole.private(client).inputs) for client in clients]
    firsts = [np.unique(number, return_index=True)[1] for number in copies]
    most = [int(np.bincount(number).max()) for number in copies]
    scores = [np.zeros((shadows, len(first))) for first in firsts]
    members = [np.zeros((shadows, len(first)), dtype=bool) for first in firsts]
    how = ""
    for shadow in range(shadows):
        for client in clients:
            draw = generator(experiment.seed, "shadow", shadow, client)
            coins = torch.rand(len(firsts[client]), generator=draw) < 0.5
            members[client][shadow] = coins.numpy()
        kept = [np.flatnonzero(members[client][shadow][copies[client]]) for client in clients]
        halves = whole.with_part([torch.from_numpy(rows) for rows in kept])
        # Noise that two runs share is not there when they are compared.
        worker = _Untested(experiment, halves, world=shadow + 1)
        sent = knowledge(worker)
        for client, values in sent.items():
            read = _model(worker, client, values)
            if read is None:
                return None
            model, how = read
            sure = _confidence(model, whole.private(client))
            scores[client][shadow] = sure[firsts[client]]
        done(shadow + 1)
    # Who takes part is drawn from the seed, and so the same in every run.
    scores = [scores[client] for client in sorted(sent)]
    members = [members[client] for client in sorted(sent)]
    ratios = [attacks.lira(s, m) for s, m in zip(scores, members)]
    found = attacks.detection(ratios, members, FPRS, CONFIDENCE)
    surer = np.concatenate([score[0] - score[1:].mean(0) for score in scores])
    first = np.concatenate([m[0] for m in members])
    delta = delta_of(experiment)
    return Membership(
        how=how,
        shadows=shadows,
        records=len(first),
        auc=found.auc.value,
        auc_low=found.auc.low,
        auc_high=found.auc.high,
        tpr={f"{fpr:g}": (rate.value, rate.low, rate.high) for fpr, rate in found.tpr.items()},
        refused={f"{fpr:g}": count for fpr, count in found.refused.items()},
        epsilon=attacks.audited_epsilon_in_one_run(surer, first, delta, CONFIDENCE),
        delta=delta,
        group=max(most[client] for client in sent),
    )


def _copies(inputs: Tensor) -> np.ndarray:
    """``(K,)``: a number for each record, from 0, the same for those whose inputs are the same."""
    return inputs.flatten(1).unique(dim=0, return_inverse=True)[1].numpy()


def _confidence(model: nn.Sequential, samples: Samples) -> np.ndarray:
    """``(K,)``: log odds of each record's label; of text, the mean log-likelihood of its tokens."""
    logits = predict(model, samples.inputs)
    labels = item_labels(samples)
    assert labels is not None
    if samples.labels is not None and samples.labels.dim() == 1:
        return attacks.logit_confidence(logits.softmax(1), labels).numpy()
    there = labels >= 0
    likelihood = logits.log_softmax(1).gather(1, labels.clamp_min(0)[:, None])[:, 0] * there
    rows = (samples.inputs != 0).sum(1)
    owner = torch.arange(len(rows)).repeat_interleave(rows)
    total = torch.zeros(len(rows)).index_add_(0, owner, likelihood)
    return (total / torch.zeros(len(rows)).index_add_(0, owner, there.float()).clamp_min(1)).numpy()


def _plain(values: Values, worker: Worker) -> Values:
    """``values`` with soft labels over candidates brought back to all classes."""
    among = worker.public.among
    if among is None:
        return values
    classes = worker.data.task.classes
    return {
        name: over_classes(value, among, classes)
        if isinstance(value, Tensor) and value.dim() == 2 and len(value) == len(among)
        else value
        for name, value in values.items()
    }


def _model(worker: Worker, client: int, values: Values) -> tuple[nn.Sequential, str] | None:
    """A model of what a client sent, and what it was."""
    for name, value in _plain(values, worker).items():
        if isinstance(value, dict):
            model = _loaded(worker, client, value)
            if model is not None:
                return model, f"the {name} it sent"
        elif value.dim() == 2 and value.shape[1] == worker.data.task.classes:
            labels = value.softmax(1) if name == "logits" else value
            words = name.replace("_", " ")
            return _proxy(worker, client, labels), f"a student distilled from the {words} it sent"
    return None


def _fresh(worker: Worker, client: int) -> nn.Sequential:
    experiment, task = worker.experiment, worker.data.task
    name = experiment.architecture(client)
    seed = key(experiment.seed, "proxy", name)
    table = experiment.student
    return build(name, task.shape, task.classes, table, seed, tokens=task.tokens)


def _loaded(worker: Worker, client: int, given: Parameters) -> nn.Sequential | None:
    """The client's student with the parameters it sent; None unless they are all of them."""
    model = _fresh(worker, client)
    state = model.state_dict()
    if {name: value.shape for name, value in state.items()} != {
        name: value.shape for name, value in given.items()
    }:
        return None
    model.load_state_dict(given)
    return model


def _proxy(worker: Worker, client: int, labels: Tensor) -> nn.Sequential:
    """A student that the server distils from one client's soft labels ``(M, C)``."""
    experiment, model = worker.experiment, _fresh(worker, client)
    if worker.public.model is not None and experiment.student.init == "public":
        model.load_state_dict(worker.public.model.state_dict())
    draw = generator(experiment.seed, "proxy", client)
    samples = Samples(worker.data.transfer().inputs)
    training = experiment.training.model_copy(update={"min_steps": 0})
    fit(model, samples, [Soft(labels)], training, draw, epochs=PROXY_EPOCHS)
    return model


def _laws(worker: Worker, client: int, given: Any) -> Tensor | None:
    """Soft labels ``(M, C)`` on the transfer set of parameters that a client sent."""
    model = _loaded(worker, client, given)
    if model is None:
        return None
    return predict(model, worker.data.transfer().inputs).softmax(1)
