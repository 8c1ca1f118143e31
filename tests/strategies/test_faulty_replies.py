"""A reply that is not what was asked is left out, whatever the method: every method, every fault.

    python tests/strategies/test_faulty_replies.py [METHOD ...]

prints a table of method and fault: how many faulty replies were left out, accepted, ended the run
in a line, or in a traceback.
"""

import math
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from lines import sampled, settled

from fedkd import Experiment, FedkdError, Run, registry, run
from fedkd.codec import Codec, decode
from fedkd.engine.host import HostGrid
from fedkd.engine.inline import InlineGrid
from fedkd.engine.worker import Worker
from fedkd.shapes import Sizes

ALL = registry.names("strategies")
FEW = ("fedavg", "fedgkt", "knfu", "local")
SILENT = ("local", "selfdistill")  # they send losses alone
TINY = """
name = "tiny"
evaluate_every = 2
[data]
clients = 3
samples_per_client = 24
alpha = 5
[data.test]
common = 20
[data.transfer]
size = 25
[student]
models = ["mlp"]
width = 0.1
[training]
local_epochs = 1
batch_size = 12
"""
CULPRIT = 1
EVERY = "evaluate_every=1"


def tiny(name, *overrides):
    # Prototypes of one architecture, whatever the method.
    return Experiment.from_toml(TINY, settled([f"strategy.name={name}", *overrides]))


# --- faults ---------------------------------------------------------------------------------
# Of an array: the faulty one, or None where the fault is none, as -1 among parameters.


def positive(array):
    """Whether an array holds probabilities, counts or classes, and so nothing below 0."""
    return not array.is_floating_point() or bool((array >= 0).all() and array.dim() == 2)


def at_one_place(value):
    def put(array, name):
        if not array.is_floating_point():
            return None
        array = array.clone()
        array.view(-1)[array.numel() // 2] = value
        return array

    return put


def below_zero(array, name):
    if (
        array.dtype == torch.bool
        or not positive(array)
        or name in ("inputs", "mean")
        or "." in name
        or name == "logits"
    ):
        return None
    array = array.clone()
    array.view(-1)[0] = -1
    return array


def transposed(array, name):
    if array.dim() < 2 or array.shape[0] == array.shape[1]:
        return None  # of a square array nobody can tell
    return array.transpose(0, 1).contiguous()


def one_column_more(array, name):
    return torch.cat([array, array[..., :1]], -1) if array.dim() > 1 else None


ARRAY = {
    "a row fewer": lambda array, name: array[:-1],
    "a row more": lambda array, name: torch.cat([array, array[:1]]),
    "a column more": one_column_more,
    "a column fewer": lambda array, name: array[..., :-1] if array.dim() > 1 else None,
    "transposed": transposed,
    "flat": lambda array, name: array.flatten() if array.dim() > 1 else None,
    "one dimension more": lambda array, name: array[None],
    "NaN": at_one_place(math.nan),
    "inf": at_one_place(math.inf),
    "-inf": at_one_place(-math.inf),
    "-1": below_zero,
    "1e30": at_one_place(1e30),
    "float64": lambda array, name: array.double(),
    "float16": lambda array, name: array.half(),
    "int32": lambda array, name: array.int(),
    "complex": lambda array, name: array.to(torch.complex64),
    "bool": lambda array, name: array.bool(),
    "a scalar": lambda array, name: array.flatten()[0].clone(),
    "empty": lambda array, name: array[:0],
    "a class too high": lambda array, name: array + 10 if name == "labels" else None,
    "a count too many": lambda array, name: array + 1 if name == "count" else None,
    "rows that sum to 2": lambda array, name: 2 * array if name.startswith("soft") else None,
}


def on_array(fault, which):
    """The fault at array number ``which`` of a reply."""

    def spoil(reply):
        places = [
            (key, name)
            for key, value in reply.values.items()
            for name in (value if isinstance(value, dict) else [None])
        ]
        if not places:
            return None
        key, name = places[which % len(places)]
        value = reply.values[key]
        array = fault(value if name is None else value[name], name or key)
        if array is None:
            return None
        changed = array if name is None else {**value, name: array}
        return [replace(reply, values={**reply.values, key: changed})]

    return spoil


def each_row_fewer(reply):
    if not any("inputs" in value for value in reply.values.values() if isinstance(value, dict)):
        return None
    cut = {k: {n: a[:-1] for n, a in value.items()} for k, value in reply.values.items()}
    return [replace(reply, values=cut)]


def on_values(change, kind=object):
    def spoil(reply):
        if not reply.values:
            return None
        key, value = next(iter(reply.values.items()))
        return (
            [replace(reply, values=change(reply.values, key, value))]
            if (isinstance(value, kind))
            else None
        )

    return spoil


def without(values, key, value):
    return {name: other for name, other in values.items() if name != key}


VALUES = {
    "a key missing": on_values(without),
    "no values": lambda reply: [replace(reply, values={})] if reply.values else None,
    "a key more": lambda reply: [replace(reply, values={**reply.values, "x": torch.ones(2)})],
    "a key named otherwise": on_values(
        lambda all_, key, value: {**without(all_, key, 0), "x": value}
    ),
    "a number": on_values(lambda all_, key, value: {**all_, key: 0.5}),
    "a word": on_values(lambda all_, key, value: {**all_, key: "soft"}),
    "nothing": on_values(lambda all_, key, value: {**all_, key: None}),
    "named arrays for one": on_values(
        lambda all_, key, value: {**all_, key: {"a": value}}, torch.Tensor
    ),
    "one array for named ones": on_values(
        lambda all_, key, value: {**all_, key: next(iter(value.values()))}, dict
    ),
    "a name missing": on_values(
        lambda all_, key, value: {**all_, key: dict([*value.items()][1:])}, dict
    ),
    "a name more": on_values(
        lambda all_, key, value: {**all_, key: value | {"x": torch.ones(2)}}, dict
    ),
    "each array a row fewer": each_row_fewer,
}


def on_metric(suffix, value):
    def spoil(reply):
        names = [name for name in reply.metrics if name.endswith(suffix)]
        if not names:
            return None
        return [replace(reply, metrics={**reply.metrics, names[0]: value})]

    return spoil


METRICS = {
    "a loss of NaN": on_metric("train_loss", math.nan),
    "a loss of inf": on_metric("train_loss", math.inf),
    "a loss of -1": on_metric("own_loss", -1.0),
    "a loss of 1e30": on_metric("_loss", 1e30),
    "a test's loss of NaN": on_metric("own_loss", math.nan),
    "accuracy 5": on_metric("accuracy", 5.0),
    "accuracy -0.1": on_metric("accuracy", -0.1),
    "accuracy NaN": on_metric("accuracy", math.nan),
    "ece 2": on_metric("ece", 2.0),
    "ece NaN": on_metric("ece", math.nan),
    "seconds -1": on_metric("seconds", -1.0),
    "seconds NaN": on_metric("seconds", math.nan),
    "a metric that is a word": on_metric("loss", "low"),
    "a metric that is a whole number": on_metric("loss", 1),
    "a metric that is True": on_metric("loss", True),
    "no metrics": lambda reply: [replace(reply, metrics={})],
    "a metric more": lambda reply: [replace(reply, metrics={**reply.metrics, "x": 0.5})],
    "a cohort of its own": lambda reply: [
        replace(reply, metrics={**reply.metrics, "cohort Dance private": 1.0})
    ],
    "a cohort of NaN": lambda reply: [
        replace(reply, metrics={**reply.metrics, "cohort Fit private": math.nan})
    ],
}


def as_(**changes):
    return lambda reply: [replace(reply, **changes)]


ENVELOPE = {
    "samples 0": as_(samples=0),
    "samples -50": as_(samples=-50),
    "samples 1e15": as_(samples=10**15),
    "samples 24.0": as_(samples=24.0),
    "samples missing": as_(samples=None),
    "the id of another": as_(client=0),
    "an id of nobody": as_(client=99),
    "a negative id": as_(client=-1),
    "an id that is a word": as_(client="one"),
    "no id": as_(client=None),
    "values that are none": as_(values=None),
    "metrics that are a number": as_(metrics=0.5),
    "an error that is a number": as_(error=1.0),
    "twice": lambda reply: [reply, reply],
    "no reply": lambda reply: [],
    "no records": lambda reply: [RecordDict()],
    "another record": lambda reply: [RecordDict({"x": ConfigRecord({"a": 1})})],
    "an unknown kind": lambda reply: [RecordDict({"work": ConfigRecord({"kind": "Dance"})})],
    "no kind": lambda reply: [RecordDict({"work": ConfigRecord({"client": 1})})],
    "another kind": lambda reply: [
        RecordDict({"work": ConfigRecord({"kind": "Assignment", "client": 1})})
    ],
    "an endless list": lambda reply: [
        RecordDict({"work": ConfigRecord({"kind": "Reply", "client": 1, "values.length": 10**12})})
    ],
    "an error message": lambda reply: [Error(code=0, reason="the node is gone")],
}


def faults():
    """All faults by name; those of an array go round the arrays of a reply."""
    found = {name: on_array(fault, n // 2) for n, (name, fault) in enumerate(ARRAY.items())}
    return found | VALUES | METRICS | ENVELOPE


# --- a grid that spoils replies -------------------------------------------------------------


class Spoiler:
    """Spoils replies of some clients: ``at`` is ``{(round, phase): {client: fault}}``.

    ``spoiled`` has the places where a fault could be made.
    """

    def __init__(self, at):
        self.at, self.spoiled = at, []

    @contextmanager
    def __call__(self):
        send = HostGrid.send_and_receive

        def spoil(grid, messages, *, timeout=None):
            asked = list(messages)
            replies = list(send(grid, asked, timeout=timeout))
            return [new for pair in zip(asked, replies, strict=True) for new in self.spoil(*pair)]

        with patch.object(HostGrid, "send_and_receive", spoil):
            yield self

    def spoil(self, asked, reply):
        meta = asked.metadata
        where = int(meta.group_id), meta.message_type
        fault = self.at.get(where, {}).get(meta.dst_node_id)
        made = fault(decode(reply.content)) if fault is not None else None
        if made is None:
            return [reply]
        self.spoiled.append((*where, meta.dst_node_id))
        return [_message(asked, one) for one in made]


def _message(asked, thing):
    if isinstance(thing, Error):
        return Message(thing, reply_to=asked)
    content = thing if isinstance(thing, RecordDict) else Codec().encode(thing)
    return Message(content, reply_to=asked)


def spoiled_run(experiment, folder, at):
    """The run, and where its replies were spoiled."""
    with Spoiler(at)() as spoiler:
        return run(experiment, folder), spoiler.spoiled


class Replay(InlineGrid):
    """A grid whose clients work in the first two rounds and the last, and else reply as before.

    The first round alone would not do: some methods ask for something once.
    """

    def __init__(self, worker, last):
        super().__init__(worker)
        self.last, self.replies = last, {}

    def send_and_receive(self, messages, *, timeout=None):
        asked = list(messages)
        places = [(one.metadata.message_type, one.metadata.dst_node_id) for one in asked]
        rounds = {int(one.metadata.group_id) for one in asked}
        if rounds <= {0, 1, 2, self.last} or not {*places} <= self.replies.keys():
            given = list(super().send_and_receive(asked, timeout=timeout))
            self.replies |= dict(zip(places, given, strict=True))
            return given
        return [
            Message(self.replies[place].content, reply_to=one)
            for place, one in zip(places, asked, strict=True)
        ]


def replayed(experiment, at):
    """Lines of the rounds, and of clients, of a run without a folder, and where it was spoiled."""
    worker, lines, clients = Worker(experiment), [], []
    data, spoiler = worker.data, Spoiler(at)

    class Spoiling(Replay):
        def send_and_receive(self, messages, *, timeout=None):
            asked = list(messages)
            replies = super().send_and_receive(asked, timeout=timeout)
            return [n for pair in zip(asked, replies, strict=True) for n in spoiler.spoil(*pair)]

    def note(line, details):
        lines.append(line)
        clients.extend(details["clients"])

    strategy = registry.load("strategies", experiment.strategy.name)(
        *(experiment, data.task, data.label_counts(), data.transfer().inputs),
        public=worker.public,
        sizes=Sizes.of(data),
    )
    strategy.start(Spoiling(worker, experiment.rounds), on_round=note)
    return lines, clients, spoiler.spoiled


def gone(reply):
    return []


UNTRAINED = "strategy.server_epochs=0"
# So that something is sent in each round.
SENDING = {"dense": ("strategy.every_round=true",)}
# Each round must ask for the same, as replies are repeated; a selection is asked for once.
QUICK = {
    "cfd": (UNTRAINED, "strategy.delta=false"),
    "fedd2s": (UNTRAINED, "strategy.rounds_per_drop=never"),
    "dense": (UNTRAINED, *SENDING["dense"]),
    "feddf": (UNTRAINED,),
    "fedgh": (UNTRAINED,),
    "fedgkt": (UNTRAINED,),
    "fedtgp": (UNTRAINED,),
    "scarlet": ("strategy.duration=0", "strategy.share=1"),
    "selectivefd": ("strategy.client_selector=none",),
    "swing": (UNTRAINED,),
}


# --- every method, every fault --------------------------------------------------------------


@pytest.mark.parametrize("name", sampled(ALL, *FEW))
def test_every_faulty_reply_is_left_out_and_the_round_goes_on(name):
    """A fault a round, of one client."""
    made = list(faults().items())
    rounds = dict(enumerate(made, 2))
    at = {(round, "train"): {CULPRIT: spoil} for round, (_, spoil) in rounds.items()}
    last = len(made) + 2
    experiment = tiny(name, f"rounds={last}", f"evaluate_every={last}", *QUICK.get(name, ()))
    lines, _, spoiled = replayed(experiment, at)
    assert len(spoiled) > (20 if name in SILENT else 40)
    where = {round for round, *_ in spoiled}
    for line in lines:
        entries = [entry for entry in line["left_out"] if entry["client"] == CULPRIT]
        fault = rounds.get(line["round"])
        assert bool(entries) == (line["round"] in where), (fault, entries)
        assert line["participants"] == ([0, 2] if entries else [0, 1, 2]), fault
        for entry in entries:
            assert entry["step"], fault
            assert entry["reason"], fault
            assert "\n" not in entry["reason"], fault
        assert {entry["client"] for entry in line["left_out"]} <= {CULPRIT}
    assert math.isfinite(lines[-1]["own_loss_mean"])


@pytest.mark.parametrize("name", sampled(ALL, *FEW))
def test_the_others_numbers_are_as_if_a_faulty_client_had_not_replied(name, tmp_path):
    experiment = tiny(name, "rounds=2", *SENDING.get(name, ()))
    fault = METRICS["a loss of NaN"] if name in SILENT else on_array(ARRAY["1e30"], 0)
    fault = on_array(ARRAY["int32"], 0) if name == "cfd" else fault  # its arrays are bytes
    lines = []
    for side, spoil in (("faulty", fault), ("silent", gone)):
        at = {(1, "train"): {CULPRIT: spoil}, (2, "train"): {CULPRIT: spoil}}
        done, spoiled = spoiled_run(experiment, tmp_path / side, at)
        assert len(spoiled) == 2
        lines.append((_plain(done.rounds), _plain(done.clients)))
    assert lines[0] == lines[1]


def _plain(lines):
    """Lines without what tells how a client was left out: reasons, and bytes that it sent."""
    out = ("left_out", "bytes_up", "seconds", "seconds_clients")
    return [{key: value for key, value in line.items() if key not in out} for line in lines]


@pytest.mark.parametrize("name", sampled(ALL, *FEW))
def test_any_subset_may_be_left_out_in_any_round(name, tmp_path):
    """Nobody can be used, then all, then one alone, then nobody again, then another alone."""
    one, another = dict.fromkeys((0, 2), gone), dict.fromkeys((1, 2), gone)
    nobody = dict.fromkeys((0, 1, 2), gone)
    at = {(1, "train"): nobody, (3, "train"): one, (4, "train"): nobody, (5, "train"): another}
    experiment = tiny(name, "rounds=5", "on_empty_round=skip", EVERY)
    done, _ = spoiled_run(experiment, tmp_path / "run", at)
    assert [line["participants"] for line in done.rounds] == [[], [0, 1, 2], [1], [], [0]]
    assert [line.get("skipped", False) for line in done.rounds] == [True, False, False, True, False]
    assert [math.isfinite(line["own_loss_mean"]) for line in done.rounds] == [True] * 5
    assert any("round 1" in warning for warning in done.warnings)


# --- the second phase -----------------------------------------------------------------------


def test_a_faulty_reply_of_the_second_phase_is_left_out_of_the_averages():
    made = list((METRICS | ENVELOPE).items())
    at = {(n, "evaluate"): {CULPRIT: spoil} for n, (_, spoil) in enumerate(made, 2)}
    lines, clients, spoiled = replayed(tiny("fedavg", f"rounds={len(made) + 2}", EVERY), at)
    where = {round for round, *_ in spoiled}
    assert len(where) > 30
    for line in lines:
        hit = line["round"] in where
        assert [entry["client"] for entry in line["left_out"]] == [CULPRIT] * hit
        fused = [c for c in clients if (c["round"], c["stage"]) == (line["round"], "fused")]
        assert [entry["client"] for entry in fused] == ([0, 2] if hit else [0, 1, 2])
        mean = sum(entry["own_accuracy"] for entry in fused) / len(fused)
        assert line["own_accuracy_mean"] == pytest.approx(mean)
        assert line["participants"] == [0, 1, 2]


def test_a_student_that_diverged_is_measured_all_the_same(tmp_path):
    """It has an accuracy, and neither a loss nor a calibration error."""

    def diverged(reply):
        lost = {"own_loss": math.nan, "own_ece": math.nan}
        return [replace(reply, metrics={**reply.metrics, **lost})]

    at = {(1, "evaluate"): {CULPRIT: diverged}}
    done, spoiled = spoiled_run(tiny("fedavg", "rounds=1"), tmp_path / "run", at)
    assert spoiled
    assert done.rounds[0]["left_out"] == []
    assert math.isfinite(done.rounds[0]["own_loss_mean"])


# --- who is not asked, and a round without replies ------------------------------------------


def test_who_was_not_asked_is_left_out(tmp_path):
    send = HostGrid.send_and_receive

    def and_others(grid, messages, *, timeout=None):
        asked = list(messages)
        replies = list(send(grid, asked, timeout=timeout))
        if asked[0].metadata.message_type != "train":
            return replies
        there = {message.metadata.dst_node_id for message in asked}
        others = [n for n in (*range(3), 99) if n not in there]
        for node in others:
            unasked = grid.create_message(asked[0].content, "train", node, "1")
            replies.append(Message(replies[0].content, reply_to=unasked))
        return replies

    with patch.object(HostGrid, "send_and_receive", and_others):
        done = run(tiny("fedavg", "rounds=1", "participation=0.3"), tmp_path / "run")
    (line,) = done.rounds
    assert len(line["participants"]) == 1
    assert {entry["client"] for entry in line["left_out"]} == {
        *({-1, 0, 1, 2} - {*line["participants"]})
    }


def test_a_round_without_one_usable_reply_ends_the_run_in_a_line(tmp_path):
    at = {(2, "train"): dict.fromkeys((0, 1, 2), as_(samples=-50))}
    with pytest.raises(FedkdError, match=r"round 2: every client's reply was left out.*-50"):
        spoiled_run(tiny("knfu", "rounds=3", EVERY), tmp_path / "run", at)
    left = Run.open(tmp_path / "run")
    assert [line["round"] for line in left.rounds] == [1]
    assert left.summary is None


@pytest.mark.parametrize("fault", ["an error message", "no reply"])
def test_work_that_failed_ends_the_run_where_failures_stop_it(fault, tmp_path):
    at = {(1, "train"): {CULPRIT: ENVELOPE[fault]}}
    with pytest.raises(FedkdError, match=r"^client 1: no (readable )?reply"):
        spoiled_run(tiny("fedavg", "engine.failures=stop"), tmp_path / "run", at)


def test_an_empty_round_that_is_skipped_leaves_the_servers_knowledge_as_it_was(tmp_path):
    at = {(2, "train"): dict.fromkeys((0, 1, 2), gone)}
    experiment = tiny("fedavg", "rounds=2", "on_empty_round=skip", EVERY)
    done, _ = spoiled_run(experiment, tmp_path / "run", at)
    first, second = (
        {key: value for key, value in line.items() if key.startswith(("own_", "common_"))}
        for line in done.rounds
    )
    assert first == second


def test_what_a_client_sent_is_in_the_ledger_though_it_was_left_out(tmp_path):
    release = ["release.clip=10", "release.mechanism=gaussian", "release.scale=0.1"]
    for number, fault in enumerate((VALUES["no values"], METRICS["no metrics"], as_(client=0))):
        at = {(2, "train"): {CULPRIT: fault}}
        done, _ = spoiled_run(tiny("uniform", "rounds=2", *release), tmp_path / str(number), at)
        entries = [e for e in done.releases if e["round"] == 2 and e["step"] != "Failure"]
        assert [e["client"] for e in entries] == [0, 1, 2]
        assert [e["items"] for e in entries] == [25] * 3
        assert entries[CULPRIT]["fresh"]


def test_private_training_is_charged_though_its_account_is_missing(tmp_path):
    experiment = tiny("uniform", "rounds=1", "training.dp.noise_multiplier=1")
    at = {(1, "train"): {CULPRIT: METRICS["no metrics"]}}
    done, spoiled = spoiled_run(experiment, tmp_path / "run", at)
    assert spoiled
    trained = [entry["dp_training"] for entry in done.releases if entry["step"] != "Failure"]
    assert trained == [trained[0]] * 3


# --- the table ------------------------------------------------------------------------------


def outcome(name, fault, spoil, folder):
    """What became of a run of two rounds whose first has one faulty reply."""
    at = {(1, "train"): {CULPRIT: spoil}}
    experiment = tiny(name, "rounds=2", EVERY)
    with Spoiler(at)() as spoiler:
        try:
            done = run(experiment, folder)
        except FedkdError:
            return "ended"
        except Exception:
            return "traceback"
    if not spoiler.spoiled:
        return None
    out = [entry["client"] for entry in done.rounds[0]["left_out"]]
    return "left out" if out == [CULPRIT] else "accepted"


def main(*methods):
    print("| method | faults | left out | accepted | ended | traceback |\n|---|" + "---:|" * 5)
    totals = Counter()
    for name in methods or ALL:
        counts = Counter()
        for fault, spoil in faults().items():
            with tempfile.TemporaryDirectory() as folder:
                found = outcome(name, fault, spoil, Path(folder) / "run")
            if found:
                counts[found] += 1
            if found not in (None, "left out"):
                print(f"{name}: {fault}: {found}", file=sys.stderr)
        totals += counts
        print(_row(name, counts), flush=True)
    print(_row("all", totals))


def _row(name, counts):
    kinds = ("left out", "accepted", "ended", "traceback")
    cells = [str(sum(counts.values())), *(str(counts[kind]) for kind in kinds)]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main(*sys.argv[1:])
