"""The reference workload on FedJAX: ``fedjax.py mlp|cnn [rounds]``.

Its own federated averaging on the jit backend, the default; students in Haiku, as in its models.
Threads: XLA's own pool, one a core; FedJAX's documentation sets none.
"""

import sys
from pathlib import Path

# In place of the script's own folder, where files are named after the packages they import.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

import fedjax
import haiku as hk
import jax
import workload
from fedjax.algorithms import fed_avg
from peers.shared import Laps, arguments


def forward(model):
    init = hk.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")  # as in PyTorch

    def mlp(batch):
        return hk.nets.MLP((200, 200, 10), w_init=init)(batch["x"])

    def cnn(batch):
        x = batch["x"].reshape(-1, 28, 28, 1)
        for channels in (16, 32):
            x = hk.Conv2D(channels, 5, padding="SAME", w_init=init)(x)
            x = jax.nn.relu(hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"))
        return hk.nets.MLP((128, 10), w_init=init)(hk.Flatten()(x))

    return hk.transform({"mlp": mlp, "cnn": cnn}[model])


def main():
    name, rounds = arguments()
    (inputs, labels), tests = workload.data()
    data = fedjax.InMemoryFederatedData(
        {f"{client:03}": {"x": x, "y": y} for client, (x, y) in enumerate(zip(inputs, labels))}
    )
    model = fedjax.create_model_from_haiku(
        forward(name),
        {"x": inputs[0, :1], "y": labels[0, :1]},
        lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits),
        {"accuracy": fedjax.metrics.Accuracy()},
    )
    sampler = fedjax.client_samplers.UniformGetClientSampler(data, workload.A_ROUND, seed=0)

    def run(params, epochs):
        algorithm = fed_avg.federated_averaging(
            fedjax.model_grad(model),
            fedjax.optimizers.sgd(workload.LR),
            fedjax.optimizers.sgd(1.0),
            fedjax.ShuffleRepeatBatchHParams(workload.BATCH, num_epochs=epochs),
        )
        state, laps = algorithm.init(params), Laps()
        laps.begin()
        for _ in range(rounds):
            state, _ = algorithm.apply(state, sampler.sample())
            jax.block_until_ready(state.params)
            laps.end()
        return state.params, laps

    params, laps = run(model.init(jax.random.PRNGKey(0)), workload.EPOCHS)
    examples = fedjax.ClientDataset({"x": tests[0], "y": tests[1]}).padded_batch(batch_size=200)
    accuracy = float(fedjax.evaluate_model(model, params, examples)["accuracy"])
    empty = run(params, 0)[1].seconds if name == "mlp" else ()
    workload.report("fedjax", name, laps.seconds, empty, accuracy, laps.start)


main()
