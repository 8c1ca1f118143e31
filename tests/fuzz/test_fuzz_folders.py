"""A finished run's folder, and one to go on from, with a file mutated, gone, or of another kind."""

import json
import shutil

import pytest
from fuzz.law import ends_well, examples, fuzz, holds
from fuzz.mutations import lines_mutated, mutated, remade, written
from hypothesis import strategies as st
from lines import Killed, KilledAfter
from texts import experiment

from fedkd import load_rounds, load_runs, run
from fedkd.results import EXPERIMENT

READERS = [
    ("compare", "mine"),
    ("compare", "mine", "good", "--target", "50"),
    ("table", "."),
    ("table", ".", "--rows", "strategy.name", "--format", "latex"),
    ("plot", "curves", "mine"),
    ("plot", "partition", "mine"),
    ("plot", "exposure", "mine"),
    ("audit", "mine", "--shadows", "0"),
    (load_runs,),
    (load_rounds,),
]
RESUME = ("run", f"mine/{EXPERIMENT}", "--out", "mine", "--resume", "--quiet")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run with canaries and noise, and the same killed after the first round."""
    place = tmp_path_factory.mktemp("runs")
    (place / "texts").mkdir()
    small = experiment(
        place / "texts",
        *("rounds=2", "checkpoint_every=1", "engine.name=inline", "training.local_epochs=0.5"),
        "public.epochs=0.5",
    )
    run(small, place / "finished")
    with pytest.raises(Killed):
        run(small, place / "killed", observer=KilledAfter(1))
    return place


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@st.composite
def spoilt(draw, folder):
    """A file of ``folder`` and what takes its place: bytes, nothing (None), or a folder ([])."""
    name = draw(st.sampled_from(files(folder)))
    content = (folder / name).read_bytes()
    ways = [mutated(content), st.sampled_from([b"", b"{}", b"[]", b"null", None, []])]
    if name.endswith(".jsonl"):
        ways += [lines_mutated(content)] * 3
    if name.endswith(".json"):
        ways += [remade(json.loads(content)).map(written)] * 3
    return name, draw(st.one_of(ways))


def spoil(folder, name, content):
    file = folder / name
    file.unlink()
    if isinstance(content, list):
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)


@examples(25, 200)
def test_what_reads_folders(count, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fedkd.plots.style.save", lambda figure, stem: []
    )  # drawing it takes seconds

    def law(drawn):
        (name, content), words = drawn
        for place in ("mine", "good"):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(runs / "finished", place)
        spoil(tmp_path / "mine", name, content)
        if callable(words[0]):
            holds(lambda: words[0](tmp_path), tmp_path)
        else:
            ends_well(tmp_path, *words)

    drawn = st.tuples(spoilt(runs / "finished"), st.sampled_from(READERS))
    fuzz(law, drawn, count, known(READERS))


def known(readers):
    """Each file of lines emptied, and each of JSON without its keys, for all who read them."""
    return [
        ((name, content), words)
        for words in readers[::3]
        for name, content in (("rounds.jsonl", b""), ("summary.json", b"{}"))
    ]


@examples(6, 100)
def test_going_on_from_a_checkpoint(count, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def law(spoilt_file):
        shutil.rmtree("mine", ignore_errors=True)
        shutil.copytree(runs / "killed", "mine")
        spoil(tmp_path / "mine", *spoilt_file)
        ends_well(tmp_path, *RESUME)

    fuzz(law, spoilt(runs / "killed"), count)
