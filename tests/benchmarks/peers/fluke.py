"""The reference workload on fluke: ``fluke.py mlp|cnn [rounds]``.

Its FedAVG with data in its FastDataLoader and models in memory; evaluation off while it is timed.
Threads: one, as its documentation sets none; OMP_NUM_THREADS overrides it.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# In place of the script's own folder, where files are named after the packages they import.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import workload
from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from fluke.evaluation import ClassificationEval
from fluke.utils import FederationObserver
from peers.shared import Laps, accuracy, arguments, network


class Timed(FederationObserver):
    def __init__(self):
        self.laps = Laps()

    def start_round(self, round, global_model):
        self.laps.begin()

    def end_round(self, round):
        self.laps.end()


def main():
    model, rounds = arguments()
    (inputs, labels), tests = workload.data()
    env = FlukeENV()
    env.set_seed(0)
    env.set_evaluator(ClassificationEval(eval_every=1, n_classes=workload.CLASSES))
    env.set_eval_cfg(server=False, locals=False, pre_fit=False, post_fit=False)

    def loader(x, y, batch, shuffle):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        return FastDataLoader(x, y, num_labels=workload.CLASSES, batch_size=batch, shuffle=shuffle)

    loaders = [loader(x, y, workload.BATCH, True) for x, y in zip(inputs, labels)]
    none = [None] * workload.CLIENTS
    container = DummyDataContainer(loaders, none, loader(*tests, 200, False), workload.CLASSES)
    splitter = DataSplitter(container, distribution="iid")
    student = network(model)

    def run(epochs):
        client = DDict(
            batch_size=workload.BATCH,
            local_epochs=epochs,
            loss="CrossEntropyLoss",
            optimizer=DDict(name="SGD", lr=workload.LR),
            scheduler=DDict(name="StepLR", step_size=1, gamma=1),
        )
        given = DDict(client=client, server=DDict(weighted=True), model=student)
        federation, timed = FedAVG(workload.CLIENTS, splitter, given), Timed()
        federation.set_callbacks(timed)
        federation.run(rounds, workload.A_ROUND / workload.CLIENTS)
        return timed.laps

    laps = run(workload.EPOCHS)
    found = accuracy(student, tests)
    empty = run(0).seconds if model == "mlp" else ()
    workload.report("fluke", model, laps.seconds, empty, found, laps.start)


main()
