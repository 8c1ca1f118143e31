"""The reference workload: federated averaging, the same work for everyone. Needs numpy alone.

100 clients x 60 samples of 784 features, 10 classes (``0.12 proto[y] + N(0, 1)``, seed 0); 20
clients a round, without replacement; 2 local epochs, batches of 20, SGD with a learning rate of 0.1
and no momentum; float32. Two students: an MLP 784-200-200-10, and a CNN on 1x28x28: convolution of
16 channels 5x5, pool, 32 channels 5x5, pool, FC 128, FC 10. An empty round has no local steps. A
round is timed as a whole, with the choice of clients and the mean of their parameters; the first 5
do not count.
"""

import json

import numpy as np

CLIENTS, SAMPLES, FEATURES, CLASSES = 100, 60, 784, 10
A_ROUND, EPOCHS, BATCH, LR = 20, 2, 20, 0.1
ROUNDS, WARMUP = 25, 5
MODELS = ("mlp", "cnn")


def data():
    """Clients' samples ``(100, 60, 784)`` and labels ``(100, 60)``, and 2,000 each to test on."""
    draw = np.random.default_rng(0)
    proto = draw.standard_normal((CLASSES, FEATURES))

    def samples(*shape):
        labels = draw.integers(CLASSES, size=shape)
        inputs = 0.12 * proto[labels] + draw.standard_normal((*shape, FEATURES))
        return inputs.astype(np.float32), labels.astype(np.int64)

    return samples(CLIENTS, SAMPLES), samples(2000)


def report(name, model, seconds, empty=(), accuracy=None, start=None):
    """Print what was measured, a line of JSON: seconds of every round, of every empty round, the
    accuracy at the end, and seconds from the start of the process to the end of round 1."""
    found = {"name": name, "model": model, "seconds": list(seconds), "empty": list(empty)}
    print(json.dumps(found | {"accuracy": accuracy, "start": start}), flush=True)
