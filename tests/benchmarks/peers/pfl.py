"""The reference workload on pfl (pfl-research), one process: ``pfl.py mlp|cnn [rounds]``.

Users' data sets are built once, so that pfl keeps their batches; it does not shuffle within a user.
Threads: one, as its documentation sets none; OMP_NUM_THREADS overrides it.
"""

import os
import random
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# In place of the script's own folder, where files are named after the packages they import.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import workload
from peers.shared import Laps, accuracy, arguments, network
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy


class Student(torch.nn.Sequential):
    def loss(self, inputs, labels):
        return cross_entropy(self(inputs), labels)

    def metrics(self, inputs, labels):
        return {}


class Timed(TrainingProcessCallback):
    def __init__(self):
        self.laps = Laps()

    def on_train_begin(self, *, model):
        self.laps.begin()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.laps.end()
        return False, Metrics()


def cohorts():
    """Clients' numbers, cohort after cohort, without replacement within one."""
    while True:
        yield from random.sample(range(workload.CLIENTS), workload.A_ROUND)


def main():
    model, rounds = arguments()
    torch.manual_seed(0)
    (inputs, labels), tests = workload.data()
    users = [
        Dataset((torch.from_numpy(x), torch.from_numpy(y)), user_id=str(user))
        for user, (x, y) in enumerate(zip(inputs, labels))
    ]
    draw = cohorts()
    data = FederatedDataset(users.__getitem__, lambda: next(draw))
    backend = SimulatedBackend(training_data=data, val_data=data)
    student, sgd = Student(*network(model)), torch.optim.SGD
    trained = PyTorchModel(student, sgd, sgd(student.parameters(), lr=1.0))

    def run(epochs):
        how = NNAlgorithmParams(rounds, sys.maxsize, workload.A_ROUND, None)
        local = NNTrainHyperParams(
            local_num_epochs=epochs,
            local_learning_rate=workload.LR,
            local_batch_size=workload.BATCH,
        )
        timed, silent = Timed(), {"send_metrics_to_platform": False}
        FederatedAveraging().run(how, backend, trained, local, callbacks=[timed], **silent)
        return timed.laps

    laps = run(workload.EPOCHS)
    found = accuracy(student, tests)
    empty = run(0).seconds if model == "mlp" else ()
    workload.report("pfl", model, laps.seconds, empty, found, laps.start)


main()
