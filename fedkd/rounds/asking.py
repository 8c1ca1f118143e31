"""Which samples of the transfer set clients are asked for in a round, and learn from.

``distill.rows`` says by which rule, of :mod:`fedkd.distillation.selection`. Rules go by what the
server knows of the samples: what it last gave out of each, and what clients last said, on the mean.
Until it knows something of all of them, those that it knows nothing of come first, in random order.
What clients said is what the server was shown, so that rows chosen by it are post-processing of
what was released.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd.data.language import PAD
from fedkd.distillation import selection
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy.candidates import over_classes
from fedkd.privacy.public import Public
from fedkd.random import generator
from fedkd.rounds.replies import Replies
from fedkd.training import item_counts, item_numbers, predict
from fedkd.work import Predict, Rows, Step, origin

OF_TEXT = ("all", "random", "difference")
"""Rules that text has: its samples have a label each token, and are of no one class."""
PIECE = 64
"""Rows of text that the reference is asked for at a time."""
PURPOSE = "rows of the transfer set"


class Asking:
    """Chooses the rows of each round by ``[distill]``, from what has been said of them so far.

    Parameters
    ----------
    transfer
        The transfer set's inputs ``(M, ...)``.
    tokens, classes
        Whether it is text, and the number of classes.
    reference
        Makes the small model that the fused labels of a text are compared with.
    """

    def __init__(
        self,
        experiment: Experiment,
        transfer: Tensor,
        public: Public,
        tokens: bool,
        classes: int,
        reference: Callable[[], Any],
    ) -> None:
        self._table, self._seed = experiment.distill, experiment.seed
        self._transfer, self._public, self._tokens = transfer, public, tokens
        self._classes, self._reference = classes, reference
        self._check(experiment)
        count = len(transfer)
        self._index = torch.arange(count)
        self._known = torch.zeros(count, dtype=torch.bool)
        width = 0 if tokens or not self.watches else classes
        self._given = torch.zeros(count if width else 0, width)
        self._said = torch.zeros(count if width else 0, width)
        self._scores = torch.zeros(count if tokens and self.watches else 0, dtype=torch.float64)
        self._domains = torch.zeros(0, dtype=torch.float64)
        self._losses: Tensor | None = None  # of the reference, (M,)
        self._sums = torch.zeros(0)
        self._added = 0
        self.on: str | Rows = "transfer"

    @property
    def watches(self) -> bool:
        """Whether the rule goes by what was said of the samples."""
        return self._table.rows not in ("all", "random") and self._table.share < 1

    @property
    def index(self) -> Tensor:
        """Numbers ``(K,)`` of the round's samples, ascending."""
        return self._index

    def begin(self, round: int) -> None:
        """Choose the rows of ``round``."""
        count = len(self._transfer)
        if self._table.rows == "all" or self._table.share == 1 or not count:
            return
        draw = generator(self._seed, PURPOSE, round)
        wanted = selection.size_of(count, self._table.share)
        if self._table.rows == "random":
            index = selection.random_subset(count, self._table.share, draw)
        elif not self._known.all():
            index = selection.weighted_subset(1.0 * ~self._known, wanted, draw)
        else:
            index = self._chosen(wanted, draw)
        self._index = index
        everything = len(index) == count
        self.on = "transfer" if everything else Rows("transfer", index)
        self._sums, self._added = torch.zeros(0), 0

    def heard(self, steps: Sequence[Step], replies: Replies) -> None:
        """Note the mean ``(K, C)`` of what clients said of the round's rows, as the server saw it.

        ``steps`` are those of one of them.
        """
        if not self.watches or self._tokens:
            return
        for step in steps:
            if isinstance(step, Predict) and step.on == self.on and origin(step.on) == "transfer":
                said = replies.stack(step.key).float().mean(0)
                said = said.softmax(1) if step.output == "logits" else said
                self._said = self._said.index_copy(0, self._index, said)
                return

    def taught(self, labels: Tensor | None) -> None:
        """Note soft labels ``(M, C)`` that one client learns from; those of all count the same."""
        if not self.watches or labels is None:
            return
        rows = item_numbers(self._index, item_counts(self._transfer))
        labels = labels[rows].float()
        if self._tokens:
            labels = self._losses_of(labels, self._index)[:, None].float()
        self._sums = self._sums + labels if self._added else labels
        self._added += 1

    def end(self) -> None:
        """Take what was taught in the round into what is known."""
        if not self._added:
            return
        mean = self._sums / self._added
        if self._tokens:
            reference = self._reference_losses()[self._index]
            scores = selection.difference_scores(reference, mean[:, 0].double())
            self._scores = self._scores.index_copy(0, self._index, scores)
        else:
            self._given = self._given.index_copy(0, self._index, mean)
        self._known = self._known.index_fill(0, self._index, True)
        self._sums, self._added = torch.zeros(0), 0

    def state(self) -> dict[str, Any]:
        """What later rounds depend on."""
        kept = ("_known", "_given", "_said", "_scores", "_domains")
        return {name: getattr(self, name) for name in kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Take in what :meth:`state` gave."""
        vars(self).update(state)

    # --- inside -----------------------------------------------------------------------------

    def _check(self, experiment: Experiment) -> None:
        """Refuse rules that the data set has nothing for."""
        rule, dataset = self._table.rows, experiment.data.dataset
        if self._tokens and rule not in OF_TEXT:
            raise FedkdError(
                f"distill.rows = {rule!r} is not allowed with data.dataset = {dataset!r}, which is "
                f"text, where a sample has many soft labels; allowed: {', '.join(OF_TEXT)}"
            )
        if not self._tokens and rule == "difference":
            raise FedkdError(
                f"distill.rows = 'difference' is not allowed with data.dataset = {dataset!r}: it "
                "compares losses of a public text, and the transfer set has no labels"
            )

    def _chosen(self, wanted: int, draw: torch.Generator) -> Tensor:
        """The round's rows by the rule, ascending."""
        rule, given, said = self._table.rows, self._given, self._said
        if rule == "confident":
            return selection.confident_rows(given, said, self._table.share)
        if rule == "k_centre":
            return selection.k_centre(given, wanted).sort().values
        if rule == "pick":
            return selection.pick(selection.pick_scores(given, said, self._table.pick), wanted)
        if rule == "difference":
            return selection.difference_sample(self._scores, self._table.share)
        if rule == "robust":
            gains = 1 - selection.margins(said)
            wrong = self._table.mistakes * len(gains)
            shares = selection.robust_query(gains, torch.zeros_like(gains), wrong)
            # Rows beyond those that it asks for fill up what the share leaves.
            return selection.weighted_subset(shares, wanted, draw)
        return self._of_domains(wanted, draw)

    def _of_domains(self, wanted: int, draw: torch.Generator) -> Tensor:
        """Rows by the weights of their predicted classes, which move with how far students lag."""
        owners = self._given.argmax(1)
        apart = selection.pick_scores(self._given.double(), self._said.double())
        sizes = owners.bincount(minlength=self._classes)
        sums = torch.zeros(self._classes, dtype=torch.float64).index_add(0, owners, apart)
        ratios = (sums / sizes.clamp_min(1)).exp()  # of perplexities, over the fused labels
        before = self._domains if len(self._domains) else torch.ones_like(ratios)
        # In its first round all of the weight is in the exponentials.
        alpha = self._table.smoothing if len(self._domains) else 1.0
        self._domains = selection.domain_weights(before, ratios, alpha)
        weights = self._domains / sizes.clamp_min(1)
        return selection.weighted_subset(weights[owners], wanted, draw)

    def _losses_of(self, labels: Tensor, index: Tensor) -> Tensor:
        """Mean loss in nats of the samples ``index``: ``(K,)``, by soft labels of their tokens."""
        items = item_numbers(index, item_counts(self._transfer))
        among = None if self._public.among is None else self._public.among[items]
        if among is not None:
            labels = over_classes(labels, among, self._classes)
        return token_losses(labels, self._transfer[index])

    def _reference_losses(self) -> Tensor:
        """Mean loss in nats of every sample by the reference, ``(M,)``."""
        if self._losses is None:
            model = self._reference()
            self._losses = torch.cat(
                [
                    token_losses(predict(model, rows).softmax(1), rows)
                    for rows in self._transfer.split(PIECE)
                ]
            )
        return self._losses


def token_losses(labels: Tensor, inputs: Tensor) -> Tensor:
    """Mean loss ``(K,)`` in nats of the tokens of texts ``(K, T)`` that follow another one.

    ``labels`` ``(R, V)`` are soft labels of the next token, a row for each that is not padding. The
    last token of a text is followed by none; a text of one token has no loss, and counts as 0.
    """
    counts = item_counts(inputs)
    assert counts is not None
    owners = torch.arange(len(inputs)).repeat_interleave(counts)
    tokens = inputs[inputs != PAD]
    within = torch.ones(len(tokens), dtype=torch.bool)
    within[counts.cumsum(0)[counts > 0] - 1] = False
    here = within.nonzero()[:, 0]
    chances = labels[here, tokens[here + 1]].double().clamp_min(selection.SMALLEST)
    sums = torch.zeros(len(inputs), dtype=torch.float64).index_add(0, owners[here], -chances.log())
    return sums / (counts - 1).clamp_min(1)


def check(experiment: Experiment, asks_rows: bool) -> None:
    """Refuse a choice of rows with a method that asks for all, or has a rule of its own.

    Raises
    ------
    FedkdError
        One line naming the key, its value and what is allowed.
    """
    rule = experiment.distill.rows
    if rule != "all" and not asks_rows:
        raise FedkdError(
            f"distill.rows = {rule!r} is not allowed with strategy.name = "
            f"{experiment.strategy.name!r}: it asks clients for no soft labels on the transfer "
            "set, or goes by its rows itself; allowed: 'all'"
        )
