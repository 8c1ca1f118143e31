"""Membership of clients' training records, from all that they sent.

The adversary is the server. It sees what each client sends in every round, knows the transfer set,
the students and every setting, and is shown how the same clients answer when other halves of their
data are taken away: the experiment is run again and again, each time with a random half of every
client's training samples, so that each run is a shadow of all others (Carlini et al. 2022).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedkd.data.federated import FederatedData, load
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.lab.findings import Evidence, over_rounds
from fedkd.lab.likelihood_ratios import lira, lira_offline
from fedkd.lab.scores import Reference, scores
from fedkd.lab.worlds import Listener, Sent, WatchedWorker, play, quiet
from fedkd.random import generator
from fedkd.records import MEMBERSHIP

FEWEST, USUAL = 4, 16
"""Shadows that a likelihood ratio needs, and how many there are where time allows."""
SECONDS = 210.0
"""In which shadows are to be done where their number is not given."""
RATIOS = {"online": lira, "offline": lira_offline}


@dataclass(frozen=True)
class Membership:
    """Likelihood ratios that tell members from records that were left out, by place and attack.

    ``shadows`` is the number of runs that were compared, ``records`` that of the records of all
    clients that were attacked, copies of a record being one.
    """

    shadows: int
    records: int
    evidence: list[Evidence]


def infer_members(
    experiment: Experiment,
    shadows: int | None = None,
    done: Callable[[int, int], None] = lambda shadow, of: None,
    *,
    listener: Listener = lambda worker, sent: None,
    others: bool = False,
) -> Membership:
    """Attack membership of training records with likelihood ratios over ``shadows`` runs.

    Copies of a record are in or out together, and count as one. Clients that send nothing are left
    out.

    Parameters
    ----------
    experiment : Experiment
        What is attacked.
    shadows : int, optional
        How many runs are compared. If not given, :data:`USUAL`, or as many as can be done in
        :data:`SECONDS` by the time that the last one took.
    done : callable
        Called with the number of runs that are done, and of all that will be, after each.
    listener : callable
        Shown what clients send in the server's own run, which has all records.
    others : bool
        Guess at the membership in halves that nobody was trained on: a null, for tests.

    Raises
    ------
    FedkdError
        There are too few shadows for a likelihood ratio.
    """
    if shadows is not None and shadows < FEWEST:
        raise FedkdError(
            f"--shadows {shadows} is too few: a likelihood ratio needs at least {FEWEST}"
        )
    begin = time.perf_counter()
    experiment = quiet(experiment)
    # No other run has these halves.
    engine = experiment.engine.model_copy(update={"remember": False})
    experiment = experiment.model_copy(update={"engine": engine})
    whole = load(experiment)
    reference = Reference()

    def learnt(worker: Worker, sent: Sent) -> None:
        reference.learn(worker, sent)
        listener(worker, sent)

    play(WatchedWorker(experiment, learnt, whole))
    game = _Game(experiment, whole, reference)
    count, shadow = shadows or USUAL, 0
    while shadow < count:
        start = time.perf_counter()
        game.play(shadow, others)
        shadow += 1
        if shadows is None:
            # Told anew after each, as other work on the machine may begin meanwhile.
            now = time.perf_counter()
            more = int((SECONDS - (now - begin)) / max(now - start, 1e-9))
            count = min(max(shadow + max(more, 0), FEWEST), USUAL)
        done(shadow, count)
        if not game.scores:
            break
    attacked = {client for client, _, _ in game.scores}
    records = sum(len(game.firsts[client]) for client in attacked)
    return Membership(shadow, records, game.evidence())


class _Game:
    """Shadows and their scores.

    ``scores`` are by client, place and attack: for each round the scores ``(records,)`` of each
    shadow.
    """

    def __init__(self, experiment: Experiment, whole: FederatedData, reference: Reference) -> None:
        self.experiment, self.whole, self.reference = experiment, whole, reference
        clients = range(whole.clients)
        self.copies = [_copies(whole.private(client).inputs) for client in clients]
        self.firsts = [np.unique(number, return_index=True)[1] for number in self.copies]
        self.members: list[list[np.ndarray]] = [[] for _ in clients]
        self.scores: dict[tuple[int, str, str], dict[int, list[np.ndarray]]] = {}

    def play(self, shadow: int, others: bool) -> None:
        """Run the experiment with halves of all clients' records, and score all records."""
        halves = self._halves("shadow", shadow)
        for client, coins in enumerate(halves):
            self.members[client].append(coins)
        if others:
            halves = self._halves("null", shadow)
        kept = [np.flatnonzero(coins[copies]) for coins, copies in zip(halves, self.copies)]
        data = self.whole.with_part([torch.from_numpy(rows) for rows in kept])
        # Noise that two runs share is not there when they are compared.
        play(WatchedWorker(self.experiment, self._score, data, world=shadow + 1))

    def _halves(self, purpose: str, shadow: int) -> list[np.ndarray]:
        halves = []
        for client, first in enumerate(self.firsts):
            draw = generator(self.experiment.seed, purpose, shadow, client)
            halves.append((torch.rand(len(first), generator=draw) < 0.5).numpy())
        return halves

    def _score(self, worker: Worker, sent: Sent) -> None:
        records = self.whole.private(sent.client)
        for attack, found in scores(worker, sent, records, self.reference).items():
            by_round = self.scores.setdefault((sent.client, sent.place, attack), {})
            by_round.setdefault(sent.round, []).append(found[self.firsts[sent.client]])

    def evidence(self) -> list[Evidence]:
        """Likelihood ratios of every attack at every place, in the last round and in all."""
        found: dict[tuple[str, str, str, str], dict[int, np.ndarray]] = {}
        runs = len(self.members[0])
        for (client, place, attack), by_round in self.scores.items():
            complete = {
                number: np.stack(each) for number, each in by_round.items() if len(each) == runs
            }
            members = np.stack(self.members[client])
            for kind, ratio in RATIOS.items():
                ratios = {number: ratio(each, members) for number, each in complete.items()}
                for window, total in (over_rounds(ratios) if ratios else {}).items():
                    named = (place, window, MEMBERSHIP, f"{attack}, LiRA {kind}")
                    found.setdefault(named, {})[client] = total
        groups = [int(np.bincount(number).max()) for number in self.copies]
        return [
            Evidence(
                *named,
                scores=list(by_client.values()),
                members=[np.stack(self.members[client]) for client in by_client],
                group=max(groups[client] for client in by_client),
            )
            for named, by_client in found.items()
        ]


def _copies(inputs: Tensor) -> np.ndarray:
    """``(K,)``: a number for each record, from 0, the same for those whose inputs are the same."""
    return inputs.flatten(1).unique(dim=0, return_inverse=True)[1].numpy()
