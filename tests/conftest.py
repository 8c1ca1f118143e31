"""Small experiments that take a second."""

import signal

import pytest
import torch
from lines import SMALL, settled

from fedkd import registry
from fedkd.experiment import Experiment
from fedkd.work import Samples


@pytest.fixture
def small():
    """A function that makes a small experiment on digits with ``key=value`` overrides."""
    return lambda *overrides: Experiment.from_toml(SMALL, settled(overrides))


@pytest.fixture
def samples():
    """Forty labelled feature vectors of four classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    inputs = torch.randn(40, 6, generator=generator) + 2 * torch.eye(6)[labels]
    return Samples(inputs, labels)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """As a worker has; tests themselves run in several processes."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _signals():
    """As in a terminal: in the background of a shell Ctrl-C is ignored, with nohup SIGHUP is.

    Processes that tests start inherit it.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """What is remembered between runs is remembered for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Default run folders land in the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_added", dict(registry._added))


@pytest.fixture
def fedkd(capsys):
    """Run a command line in this process: exit code, stdout, stderr."""
    from fedkd.simulations import cli

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call
