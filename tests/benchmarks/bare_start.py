"""The quick start's first round as a bare script: torch and numpy, nothing of fedkd.

Ten clients of scikit-learn's digits, a small CNN each; local training, soft labels on a transfer
set, KnFu's fusion, fine-tuning, two evaluations. ``engines.py start`` times it as a process.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
rng = np.random.default_rng(0)

package = Path(importlib.util.find_spec("sklearn").origin).parent
text = gzip.decompress((package / "datasets" / "data" / "digits.csv.gz").read_bytes()).decode()
table = np.loadtxt(text.splitlines(), delimiter=",")[rng.permutation(1797)]
images = torch.from_numpy(table[:, :64]).float().view(-1, 1, 8, 8) / 16
labels = torch.from_numpy(table[:, 64]).long()

transfer, common = images[:300], (images[300:500], labels[300:500])
left = np.arange(500, 1797)
shares = rng.dirichlet([0.5] * 10, size=10)
clients = []
for share in shares:
    chance = share[labels[left].numpy()]
    rows = torch.from_numpy(rng.choice(left, 107, replace=False, p=chance / chance.sum()))
    clients.append((images[rows[:80]], labels[rows[:80]], images[rows[80:]], labels[rows[80:]]))


def student():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def fit(model, inputs, targets, epochs):
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs):
        for index in torch.randperm(len(inputs)).split(32):
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[index]), targets[index]).backward()
            optimiser.step()


@torch.inference_mode()
def soft_labels(model, inputs):
    return model(inputs).softmax(1)


def accuracy(model, inputs, labels):
    return float((soft_labels(model, inputs).argmax(1) == labels).double().mean())


models = [student() for _ in clients]
sent = []
for model, (x, y, own_x, own_y) in zip(models, clients):
    fit(model, x, y, 10)
    accuracy(model, own_x, own_y), accuracy(model, *common)
    sent.append(soft_labels(model, transfer))
stacked = torch.stack(sent)
beliefs = stacked.double().mean(1).clamp_min(1e-8)
apart = (beliefs[:, None] * (beliefs[:, None] / beliefs[None]).log()).sum(2)
targets = torch.einsum("nm,mxc->nxc", (-apart).softmax(1).float(), stacked)
own = []
for model, (_, _, own_x, own_y), target in zip(models, clients, targets):
    fit(model, transfer, target, 1)
    own.append(accuracy(model, own_x, own_y))
    accuracy(model, *common)
print(f"own accuracy {100 * np.mean(own):.1f} %")
