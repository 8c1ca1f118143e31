"""Experiments, suites, claims and ``--set``, mutated and made up."""

import re
from functools import cache
from pathlib import Path

import pytest
import tomli_w
from fuzz.law import ends_well, examples, fuzz, holds
from fuzz.mutations import VALUES, mutated
from hypothesis import strategies as st
from lines import SMALL, SUITE
from pydantic import BaseModel

from fedkd import registry
from fedkd.checks import check
from fedkd.experiment import Experiment
from fedkd.simulations import claim, shipped

TEXTS = [SMALL, *(file.read_text() for file in shipped.shipped().values())]
CLAIMS = [file.read_text() for file in sorted(claim.FOLDER.glob("*.toml"))]


def keys(model=Experiment, prefix=""):
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield f"{prefix}{name}"
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


KEYS = [*keys(), "strategy.beta", "strategy.tau", "strategy.nothing", "nothing", ""]
NAMES = [
    *(*registry.names("strategies"), *registry.names("students"), *registry.names("datasets")),
    *(
        *registry.names("partitions"),
        "sgd",
        "exact",
        "matched",
        "natural",
        "gaussian",
        "public",
        "train",
        "npz:x",
    ),
]
SETTINGS = st.one_of(VALUES.filter(lambda value: value is not None), st.sampled_from(NAMES))


def accepted(text, overrides=()):
    """Read an experiment and check it; one that is accepted reads back as it was written."""
    experiment = Experiment.from_toml(text, overrides)
    check(experiment)
    assert Experiment.from_toml(experiment.to_toml()) == experiment
    assert re.fullmatch("[0-9a-f]{8}", experiment.digest())
    return experiment


@examples(60, 20_000)
def test_bytes_of_an_experiment(count, tmp_path):
    file = tmp_path / "mine.toml"

    def law(content):
        file.write_bytes(content)
        holds(lambda: accepted(shipped.experiment_text(str(file))), tmp_path)

    valid = st.sampled_from([text.encode() for text in TEXTS])
    known = [b"x = " + b"[" * 50_000, b"a." * 50_000 + b"a=1", b"rounds = " + b"1" * 5000, b"\xff"]
    fuzz(law, st.one_of(mutated(valid), st.binary(max_size=60)), count, known)


@examples(60, 20_000)
def test_tables_made_up(count, tmp_path):
    def law(changes):
        tables = {}
        for key, value in changes:
            *parents, last = key.split(".")
            inner = tables
            for parent in parents:
                inner = inner.setdefault(parent, {}) if isinstance(inner, dict) else {}
            if isinstance(inner, dict):
                inner[last] = value
        holds(lambda: accepted(written(tables)), tmp_path)
        holds(lambda: Experiment.from_dict(tables), tmp_path)

    fuzz(law, st.lists(st.tuples(st.sampled_from(KEYS), SETTINGS), max_size=4), count)


def written(tables):
    try:
        return tomli_w.dumps(tables)
    except (TypeError, ValueError, UnicodeError):  # TOML has no such thing
        return ""


@examples(100, 20_000)
def test_overrides(count, tmp_path):
    def law(overrides):
        holds(lambda: accepted(SMALL, overrides), tmp_path)

    one = st.builds(
        lambda *parts: "".join(parts), st.sampled_from(KEYS), st.just("="), odd_values()
    )
    known = [["rounds=3\nseed=5"], ["[data]\nalpha=1"], ["data={}"], ["="], ["a" * 5000 + "=1"]]
    fuzz(law, st.lists(st.one_of(one, st.text(max_size=30)), max_size=3), count, known)


def odd_values():
    return st.one_of(
        st.text(max_size=12),
        st.sampled_from(NAMES),
        st.sampled_from(
            ["{}", "[]", "[[", "{a=1}", "[1, 'a']", "'''a", "0x" + "f" * 5000, "1" * 5000]
        ),
        st.integers().map(str),
        st.floats().map(str),
    )


@examples(15, 600)
def test_suites(count, tmp_path):
    (tmp_path / "quickstart.toml").write_text(SMALL)
    file = tmp_path / "grid.toml"

    def law(content):
        file.write_bytes(content)
        ends_well(tmp_path, "suite", file, "--dry-run", "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    known = ["axes = 3", f'experiment = "x"\n[axes]\n{AXES}', "[axes]\nseed = [nan, nan]"]
    fuzz(law, mutated(SUITE.encode()), count, [text.encode() for text in known])


AXES = "\n".join(f"a{axis} = {list(range(100))}" for axis in range(10))


@examples(15, 600)
def test_claims(count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text(SUITE)
    file = Path("mine.toml")

    def law(content):
        file.write_bytes(re.sub(rb'suite = "[^"]*"', b'suite = "grid.toml"', content))
        ends_well(tmp_path, "claims", file, "--no-run", "--format", "markdown")

    fuzz(law, mutated(st.sampled_from([text.encode() for text in CLAIMS])), count)


@cache
def numbers():
    """Keys of numbers, but those that say how long a run takes or where it runs."""
    slow = ("rounds", "epochs", "clients", "width", "steps", "engine", "references", "secrets")
    return [
        key
        for key, value in flat(Experiment().model_dump())
        if (value is None or isinstance(value, int | float)) and not any(s in key for s in slow)
    ]


def flat(tables, prefix=""):
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


EDGES = st.sampled_from(
    ["0", "1", "2", "-1", "1e-300", "1e-45", "1e-9", "0.5", "0.999999999", "1e9", "1e300", "true"]
)


@pytest.mark.parametrize("strategy", ["knfu", "fedavg", "swing"])
@examples(2, 40)
def test_runs_with_numbers_at_the_edge(count, strategy, tmp_path):
    def law(changes):
        words = [f"--set={key}={value}" for key, value in changes]
        file = tmp_path / "small.toml"
        file.write_text(SMALL)
        where = [f"--out={tmp_path / 'run'}", f"--set=strategy.name={strategy}", "--set=rounds=1"]
        quick = ["--set=training.local_epochs=1", "--set=engine.name=inline", "--quiet"]
        ends_well(tmp_path, "run", file, *words, *where, *quick)
        for path in sorted((tmp_path / "run").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    changes = st.lists(st.tuples(st.sampled_from(numbers()), EDGES), min_size=1, max_size=3)
    fuzz(law, changes, count)
