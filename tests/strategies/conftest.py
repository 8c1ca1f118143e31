"""What tests of strategies share."""

import pytest

from fedkd import run
from fedkd.data.federated import load
from fedkd.registry import load as find


@pytest.fixture
def made(small):
    """A function that makes a strategy for the small experiment."""

    def make(name, *overrides):
        experiment = small(f"strategy.name={name}", *overrides)
        data = load(experiment)
        return find("strategies", name)(experiment, data.task, data.label_counts())

    return make


@pytest.fixture
def each_changes_the_numbers(small, tmp_path):
    """A function that holds: a small experiment with any of the choices ends with another loss."""

    def check(base, choices):
        def loss(number, *overrides):
            done = run(small(*base, *overrides), tmp_path / str(number))
            return done.rounds[-1]["own_loss_mean"]

        plain = loss("plain")
        for number, choice in enumerate(choices):
            assert loss(number, *choice.split()) != plain, choice

    return check
