"""The reference workload on Flower's simulation runtime (Ray): ``flower.py mlp|cnn [rounds]``.

Flower's message API: a ClientApp, and a ServerApp with its FedAvg. Data are read once an actor.
Threads: one core a client, so two Ray actors of one thread each, as its simulation guide has it.
"""

import functools
import os
import sys
from pathlib import Path

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import workload
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peers.shared import Laps, accuracy, arguments, network
from torch.nn.functional import cross_entropy

client, server = ClientApp(), ServerApp()
data = functools.cache(workload.data)


@client.train()
def train(message, context):
    config = message.content["config"]
    student = network(config["model"])
    student.load_state_dict(message.content["arrays"].to_torch_state_dict())
    (inputs, labels), _ = data()
    own = context.node_config["partition-id"]
    inputs, labels = torch.from_numpy(inputs[own]), torch.from_numpy(labels[own])
    optimiser = torch.optim.SGD(student.parameters(), lr=workload.LR)
    for _ in range(config["epochs"]):
        for rows in torch.randperm(workload.SAMPLES).split(workload.BATCH):
            optimiser.zero_grad()
            cross_entropy(student(inputs[rows]), labels[rows]).backward()
            optimiser.step()
    metrics = MetricRecord({"num-examples": workload.SAMPLES})
    found = RecordDict({"arrays": ArrayRecord(student.state_dict()), "metrics": metrics})
    return Message(content=found, reply_to=message)


@server.main()
def serve(grid, context):
    model, rounds = arguments()
    torch.manual_seed(0)
    student = network(model)

    def run(epochs):
        laps = Laps()

        def evaluate(server_round, arrays):
            # Called before the first round, too.
            laps.end() if server_round else laps.begin()

        strategy = FedAvg(
            fraction_train=workload.A_ROUND / workload.CLIENTS,
            fraction_evaluate=0.0,
            min_available_nodes=workload.CLIENTS,
        )
        result = strategy.start(
            grid,
            ArrayRecord(student.state_dict()),
            num_rounds=rounds,
            train_config=ConfigRecord({"epochs": epochs, "model": model}),
            evaluate_fn=evaluate,
        )
        student.load_state_dict(result.arrays.to_torch_state_dict())
        return laps

    laps = run(workload.EPOCHS)
    empty = run(0).seconds if model == "mlp" else ()
    found = accuracy(student, workload.data()[1])
    workload.report("flower", model, laps.seconds, empty, found, laps.start)


if __name__ == "__main__":
    import ray
    from peers import flower  # so that Ray sends the app by its name, as for `flwr run`

    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    run_simulation(flower.server, flower.client, workload.CLIENTS, "ray", resources)
    ray.shutdown()
