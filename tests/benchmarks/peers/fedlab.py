"""The reference workload on FedLab, standalone: ``fedlab.py mlp|cnn [rounds]``.

Its FedAvg handler and serial trainer; a client's DataLoader fetches whole batches by index.
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
from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.contrib.dataset.basic_dataset import BaseDataset, FedDataset
from fedlab.core.standalone import StandalonePipeline
from peers.shared import Laps, accuracy, arguments, network
from torch.utils.data import BatchSampler, DataLoader, RandomSampler


class Clients(FedDataset):
    def __init__(self, inputs, labels):
        super().__init__()
        self.num = len(inputs)
        self.held = [
            BaseDataset(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(inputs, labels)
        ]

    def get_dataset(self, id, type="train"):
        return self.held[id]

    def get_dataloader(self, id, batch_size, type="train"):
        held = self.get_dataset(id)
        rows = BatchSampler(RandomSampler(held), batch_size, drop_last=False)
        return DataLoader(held, sampler=rows, batch_size=None)


class Timed(StandalonePipeline):
    def main(self):
        self.laps = Laps()
        self.laps.begin()
        super().main()

    def evaluate(self):
        self.laps.end()


def main():
    model, rounds = arguments()
    torch.manual_seed(0)
    (inputs, labels), tests = workload.data()
    data, student = Clients(inputs, labels), network(model)
    share = workload.A_ROUND / workload.CLIENTS

    def run(start, epochs):
        handler = FedAvgServerHandler(start, rounds, share)
        trainer = FedAvgSerialClientTrainer(start, workload.CLIENTS)
        trainer.setup_dataset(data)
        trainer.setup_optim(epochs, workload.BATCH, workload.LR)
        timed = Timed(handler, trainer)
        timed.main()
        return handler.model, timed.laps

    student, laps = run(student, workload.EPOCHS)
    empty = run(student, 0)[1].seconds if model == "mlp" else ()
    workload.report("fedlab", model, laps.seconds, empty, accuracy(student, tests), laps.start)


main()
