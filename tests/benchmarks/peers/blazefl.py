"""The reference workload on BlazeFL: ``blazefl.py mlp|cnn [rounds]``.

Its FedAvg on a pool of threads, as it recommends; a client's DataLoader fetches whole batches.
Threads: two clients at a time, one a core, of one thread each. With a Python that has a global lock
(no free threading) they take turns outside of PyTorch's kernels.
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
from blazefl.contrib.fedavg import FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer
from peers.shared import Laps, accuracy, arguments, network
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset


class Students:
    def select_model(self, model_name):
        return network(model_name)


class Clients:
    def __init__(self, inputs, labels):
        self.held = [
            TensorDataset(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(inputs, labels)
        ]

    def get_dataset(self, type_, cid):
        return self.held[cid]

    def get_dataloader(self, type_, cid, batch_size, generator):
        held = self.get_dataset(type_, cid)
        rows = RandomSampler(held, generator=generator)
        return DataLoader(held, sampler=BatchSampler(rows, batch_size, False), batch_size=None)


class Trainer(FedAvgThreadPoolClientTrainer):
    def progress_fn(self, it):
        return it


class Server(FedAvgBaseServerHandler):
    def load(self, payload):
        # Clients' own weight, as it counts batches seen: none in an empty round.
        payload.data_size = workload.SAMPLES
        return super().load(payload)


def main():
    model, rounds = arguments()
    torch.manual_seed(0)
    (inputs, labels), tests = workload.data()
    data, students = Clients(inputs, labels), Students()
    share, many = workload.A_ROUND / workload.CLIENTS, workload.CLIENTS

    def run(epochs):
        server = Server(students, model, data, rounds, many, share, "cpu", workload.BATCH, 0)
        trainer = Trainer(
            students, model, data, "cpu", many, epochs, workload.BATCH, workload.LR, 0, 2
        )
        laps = Laps()
        laps.begin()
        while not server.if_stop():
            trainer.local_process(server.downlink_package(), server.sample_clients())
            for package in trainer.uplink_package():
                server.load(package)
            laps.end()
        return server.model, laps

    student, laps = run(workload.EPOCHS)
    empty = run(0)[1].seconds if model == "mlp" else ()
    workload.report("blazefl", model, laps.seconds, empty, accuracy(student, tests), laps.start)


main()
