"""A small corpus that tests of text share."""

import random

from fedkd import Experiment

WORDS = ("the", "a", "model", "learns", "from", "data", "of", "its", "own", "and", "it", "tells")


def lines(seed, count=40):
    """Lines of two to nine words, drawn with frequencies that fall."""
    draw = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(WORDS) + 1)]
    return [" ".join(draw.choices(WORDS, weights, k=draw.randint(2, 9))) for _ in range(count)]


def folder(place, clients=6, count=40):
    """``text:PATH`` of a folder with a file a client."""
    for client in range(clients):
        (place / f"client{client}.txt").write_text("\n".join(lines(client, count)))
    return f"text:{place}"


TINY = """
name = "tiny"
[data]
clients = 3
partition = "natural"
[data.text]
context = 12
[data.test]
common = 8
[data.transfer]
size = 12
[student]
models = ["lstm"]
width = 0.1
init = "public"
[training]
local_epochs = 2
batch_size = 8
[release]
tau_max = 4
mechanism = "gaussian"
scale = 0.01
[canary]
secrets = 1
repeats = [1, 4]
template = "my id is _ _"
public = "exact"
"""


def experiment(place, *overrides):
    """A tiny experiment on :func:`folder`, with canaries and noise on what is released."""
    return Experiment.from_toml(TINY, [f"data.dataset='{folder(place)}'", *overrides])


SMALL = """
name = "text"
rounds = 1
[data]
dataset = "{dataset}"
clients = 3
partition = "iid"
[data.test]
common = 20
[data.transfer]
size = 16
[data.text]
context = 12
vocabulary = 40
[student]
models = ["lstm"]
width = 0.1
[training]
local_epochs = 1
batch_size = 8
lr = 0.01
[canary]
template = "my id is _ _"
"""


def small(place, *overrides):
    """A small experiment on :func:`folder`, that neither plants secrets nor changes labels."""
    place.mkdir(exist_ok=True)
    return Experiment.from_toml(SMALL.format(dataset=folder(place)), overrides)
