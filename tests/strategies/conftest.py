"""What tests of strategies share."""

import pytest

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
