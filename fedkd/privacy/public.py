"""What everybody knows in a run, and what is made of it alone.

The model of the public corpus, privacy scores of the items of the transfer set, candidate classes
for each of them. Server and clients have the same, since all of it comes from the experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fedkd import students
from fedkd import training as loop
from fedkd.data import cache
from fedkd.data.canaries.places import spans
from fedkd.data.federated import FederatedData
from fedkd.digests import described, digest, fingerprint, source
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment, ReleaseTable
from fedkd.privacy import scores
from fedkd.privacy.candidates import candidates, over_candidates
from fedkd.random import generator, key, noise
from fedkd.training import fit, item_counts, item_labels, item_numbers, items, predict
from fedkd.work import CrossEntropy, Samples


@dataclass(frozen=True)
class Public:
    """Public things of a run, with M items in the transfer set.

    ``samples`` is the transfer set as it was before canaries came into it; ``model`` is trained on
    it, where the experiment needs one; ``scores`` ``(M,)`` are privacy scores; ``among`` ``(M, k)``
    are candidate classes, -1 for none; ``law`` ``(M, C)`` (or ``(M, k+1)`` over candidates) is the
    public model's, where releases are mixed with it. ``counts`` has, of text, the items of each
    sample of the transfer set; None where a sample is one item. ``validation`` has the labelled
    samples of ``data.server_validation``, None where there are none.
    """

    samples: Samples
    model: nn.Sequential | None = None
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    among: Tensor | None = None
    law: Tensor | None = None
    counts: Tensor | None = None
    validation: Samples | None = None

    def at(self, index: Tensor) -> Public:
        """The same of some samples of the transfer set alone: ``index`` ``(K,)`` has their numbers.

        What has a row an item then has one for each item of these samples, in their order.
        """
        items = item_numbers(index, self.counts)
        among, law = (None if each is None else each[items] for each in (self.among, self.law))
        return replace(self, scores=self.scores[items], among=among, law=law)

    @classmethod
    def of(cls, experiment: Experiment, data: FederatedData) -> Public:
        """The public things of ``experiment``, the same in every process.

        Raises
        ------
        FedkdError
            A setting asks for a public model where there is none.
        """
        check(experiment, data.task.tokens)
        table, samples = experiment.release, data.public()
        transfer = data.transfer()
        model, law = None, None
        if needs_model(experiment, data.task.tokens):
            model = public_model(experiment, data)
        if model is not None and _needs_law(table):
            law = predict(model, transfer.inputs).clone().softmax(1)
        scored = torch.zeros(
            len(items(transfer.inputs)) if data.task.tokens else len(transfer.inputs)
        )
        if table.tau_max is not None:
            scored = _scores(experiment, data, len(scored), model, law)
        among = None
        if table.candidates and law is not None:
            among = candidates(law, table.candidates, item_labels(transfer))
        if table.mix_with == "public" and law is not None:
            law = law if among is None else over_candidates(law, among)
        else:
            law = None
        counts, validation = item_counts(transfer.inputs), data.server_validation()
        return cls(samples, model, scored, among, law, counts, validation)


def needs_model(experiment: Experiment, tokens: bool) -> bool:
    """Whether a model of the public corpus is trained."""
    return tokens and (_needs_law(experiment.release) or experiment.student.init == "public")


def _needs_law(table: ReleaseTable) -> bool:
    """Whether releases go by what the model of the public corpus says."""
    by_scores = table.tau_max is not None and table.scores not in ("oracle", "constant")
    return by_scores or table.candidates > 0 or table.mix_with == "public"


def check(experiment: Experiment, tokens: bool) -> None:
    """Refuse settings of ``[release]`` and ``[student]`` that need what the data cannot give."""
    table = experiment.release
    dataset = experiment.data.dataset
    wants = {
        "release.candidates": table.candidates > 0,
        "release.mix_with = 'public'": table.mix_with == "public",
        "release.scores = 'rules'": table.tau_max is not None and table.scores == "rules",
        "student.init = 'public'": experiment.student.init == "public",
    }
    for setting, wanted in wants.items():
        if wanted and not tokens:
            raise FedkdError(
                f"{setting} is not allowed with data.dataset = {dataset!r}: it needs a model of "
                "the public corpus, which only a text's transfer set can train"
            )
    model = experiment.public.model or experiment.student.models[0]
    if experiment.student.init == "public" and {*experiment.student.models} != {model}:
        raise FedkdError(
            f"student.models = {list(experiment.student.models)} is not allowed with student.init "
            f"= 'public': everybody begins as the model of the public corpus, which is {model!r}"
        )
    if experiment.student.init == "public" and not experiment.data.transfer.size:
        raise FedkdError(
            "student.init = 'public' is not allowed with data.transfer.size = 0: the transfer set "
            "is the public corpus"
        )
    if table.trust == "local" and table.mechanism == "votes":
        raise FedkdError(
            "release.mechanism = 'votes' is not allowed with release.trust = 'local': somebody "
            "counts the clients' votes; allowed: release.trust = 'central' or 'secure-aggregation'"
        )
    if table.trust != "local" and table.mechanism not in ("none", "gaussian", "votes"):
        raise FedkdError(
            f"release.mechanism = {table.mechanism!r} is not allowed with release.trust = "
            f"{table.trust!r}, where noise is added to all clients' labels together; allowed: "
            "'none', 'gaussian', 'votes'"
        )
    if table.mechanism in ("gaussian", "laplace", "votes") and not table.scale:
        raise FedkdError(
            f"release.scale = {table.scale} is not allowed with release.mechanism = "
            f"{table.mechanism!r}: the noise needs a scale above 0"
        )
    if table.scale and table.mechanism not in ("gaussian", "laplace", "votes"):
        raise FedkdError(
            f"release.scale = {table.scale} has no effect with release.mechanism = "
            f"{table.mechanism!r}; it is the scale of 'gaussian', 'laplace' or 'votes'"
        )
    low = table.temperature
    if low is not None and table.tau_max is not None and table.tau_max < low:
        raise FedkdError(
            f"release.tau_max = {table.tau_max} is below release.temperature = {low}; private "
            "items need the higher temperature"
        )
    if table.mix and table.mix_with == "entropy":
        raise FedkdError(
            f"release.mix = {table.mix} has no effect with release.mix_with = 'entropy': the "
            "share follows from the entropy"
        )
    if table.mix_with == "entropy" and table.tau_max is None:
        raise FedkdError(
            "release.mix_with = 'entropy' needs release.tau_max: it matches the entropy that an "
            "item would have at its swing temperature"
        )
    if table.scores == "oracle" and table.tau_max is not None and not experiment.canary.secrets:
        raise FedkdError("release.scores = 'oracle' needs canaries: set canary.secrets")


def public_model(experiment: Experiment, data: FederatedData) -> nn.Sequential:
    """The model of the public corpus, trained on the transfer set as it is without canaries."""
    table, task, samples = experiment.public, data.task, data.public()
    name = table.model or experiment.student.models[0]
    seed = key(experiment.seed, "public", name)
    model = students.build(
        name, task.shape, task.classes, experiment.student, seed, tokens=task.tokens
    )
    training = experiment.training.model_copy(
        update={"dp": type(experiment.training.dp)(), "min_steps": 0}
    )

    def make() -> cache.Arrays:
        draw = generator(experiment.seed, "fit", "public")
        fit(model, samples, [CrossEntropy()], training, draw, epochs=table.epochs, lr=table.lr)
        return {key: value.numpy() for key, value in model.state_dict().items()}

    rows = fingerprint(samples.inputs), fingerprint(samples.labels)
    depends_on = (
        *(name, seed, rows, task.classes, repr(experiment.student), repr(training)),
        *(repr(table), experiment.engine.threads, torch.__version__, source(loop)),
        *(digest(model), described(model)),
    )
    kept = cache.remembered("models", depends_on, make)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(kept[name]))
    return model


def _scores(
    experiment: Experiment,
    data: FederatedData,
    count: int,
    model: nn.Sequential | None,
    law: Tensor | None,
) -> Tensor:
    """The privacy score of each of the ``count`` items of the transfer set, ``(M,)``."""
    how, transfer, public = experiment.release.scores, data.transfer(), data.public()
    if how == "constant":
        return torch.ones(count)
    if how == "oracle":
        assert data.canaries is not None
        return spans(data.canaries, transfer.inputs, count)
    if model is None or law is None:
        rare = scores.rarity(
            scores.outlierness(transfer.inputs, public.inputs),
            scores.outlierness(public.inputs, public.inputs),
        )
        found = rare
    else:
        gold, known = item_labels(transfer), item_labels(public)
        assert gold is not None
        assert known is not None
        reference = scores.surprise(known, predict(model, public.inputs).softmax(1))
        rare = scores.rarity(scores.surprise(gold, law), reference)
        private = scores.identifier_like(data.task.class_names)
        ruled = scores.rules(gold, law, private)
        found = {"rarity": rare, "rules": ruled}.get(how, torch.maximum(rare, ruled))
    if how == "shuffled":
        order = noise(experiment.seed, "shuffled scores").permutation(len(found))
        found = found[torch.from_numpy(order)]
    return found
