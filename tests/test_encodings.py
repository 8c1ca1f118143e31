"""Encodings: what an array is after it has travelled, and what it takes on the way."""

import itertools
import math

import pytest
import torch
from lines import Killed, KilledAfter, measured

from fedkd import FedkdError, registry, run
from fedkd.codec import Codec, decode, nbytes
from fedkd.compression import Delta, Quantised
from fedkd.encodings import (
    Undecodable,
    as_received,
    decoded,
    encoded,
    on_simplex,
    packed,
    unpacked,
)
from fedkd.engine.worker import Worker
from fedkd.lab.worlds import WatchedWorker
from fedkd.strategies.base import DistillOptions, KnowledgeStrategy
from fedkd.work import (
    Assignment,
    Fit,
    Hold,
    Peer,
    Predict,
    Rows,
    Samples,
    Soft,
)

NAME = "strategy.name=encoded"
BITS = range(1, 9)
GRIDS = ("simplex", "range")


def rows(count=7, columns=10, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(count, columns, generator=draw)).softmax(1)


# --- levels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_packed_numbers_come_out_as_they_went_in(bits):
    codes = torch.randint(2**bits, (37,), generator=torch.Generator().manual_seed(0))
    there = packed(codes.to(torch.uint8), bits)
    assert (there.dtype, len(there)) == (torch.uint8, math.ceil(37 * bits / 8))
    assert torch.equal(unpacked(there, bits, 37).long(), codes)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", BITS)
def test_quantising_again_changes_nothing(bits, grid):
    values = rows() if grid == "simplex" else 40 * torch.randn(7, 10)
    once = as_received(values, Quantised(bits, grid))
    assert torch.equal(as_received(once, Quantised(bits, grid)), once)


@pytest.mark.parametrize("grid", GRIDS)
def test_eight_bits_are_within_a_255th(grid):
    values = rows(500)
    apart = (as_received(values, Quantised(8, grid)) - values).abs()
    assert float(apart.max()) <= 1 / 255 + 1e-7


def test_a_level_of_the_simplex_is_the_nearest_that_there_is():
    """By brute force, in L1; and no farther than C / (2 L)."""
    top, columns = 3, 4
    levels = torch.tensor(
        [row for row in itertools.product(range(top + 1), repeat=columns) if sum(row) == top]
    ).double()
    for row in rows(60, columns, seed=1).double():
        best = float((levels / top - row).abs().sum(1).min())
        found = on_simplex(row[None], top)
        assert found.sum() == top
        assert float((found / top - row).abs().sum()) == pytest.approx(best)
        assert best <= columns / (2 * top)


@pytest.mark.parametrize("bits", BITS)
def test_quantising_moves_no_label_by_more_than_half_a_level_a_class(bits):
    """In L1, C / (2 L) at most, of L = 2^b - 1 levels (Sattler et al. 2021)."""
    for columns in (2, 3, 10):
        values = rows(200, columns, seed=bits).double()
        there = decoded_of(values, bits)
        assert torch.allclose(there.sum(1), torch.ones(200).to(there))
        most = (there - values).abs().sum(1).max()
        assert most <= columns / (2 * (2**bits - 1)) + 1e-6


def decoded_of(values, bits):
    """Soft labels as they are when they have travelled by so many bits."""
    return as_received(values.float(), Quantised(bits)).double()


def test_one_bit_is_the_likeliest_class():
    values = rows(50)
    one_hot = torch.nn.functional.one_hot(values.argmax(1), 10).float()
    assert torch.equal(as_received(values, Quantised(1)), one_hot)


def test_a_range_keeps_its_ends_and_a_row_of_one_value():
    values = torch.tensor([[-3.0, 0.5, 9.0], [2.5, 2.5, 2.5]])
    received = as_received(values, Quantised(1, "range"))
    assert received.tolist() == [[-3.0, -3.0, 9.0], [2.5, 2.5, 2.5]]


@pytest.mark.parametrize("how", [Quantised(2), Quantised(5, "range"), Delta(Quantised(2)), Delta()])
def test_a_row_that_is_no_target_stays_none(how):
    values = rows()
    values[3] = math.nan
    received = decoded(encoded(values, how), how, (7, 10))
    assert received.isnan().any(1).tolist() == [row == 3 for row in range(7)]


@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_those_of_the_packed_bits(bits):
    values = rows(13)
    codes = math.ceil(13 * 10 * bits / 8)
    assert nbytes(encoded(values, Quantised(bits))) == codes
    assert nbytes(encoded(values, Quantised(bits, "range"))) == codes + 13 * 2 * 4
    assert nbytes(encoded(values, Delta(Quantised(bits)))) == codes + 2  # 13 rows, a bit each


# --- deltas ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [Delta(), Delta(Quantised(3)), Delta(Quantised(8, "range"))])
def test_only_rows_that_have_changed_travel_and_all_are_there(how):
    before = as_received(rows(), how)
    after = rows()
    after[[1, 4]] = rows(seed=5)[[1, 4]]
    arrays = encoded(after, how, before)
    assert nbytes(arrays) == 1 + nbytes(encoded(after[:2], how)) - 1
    assert torch.equal(decoded(arrays, how, (7, 10), before), as_received(after, how))
    nothing = encoded(rows(), how, before)
    assert nbytes(nothing) == 1
    assert torch.equal(decoded(nothing, how, (7, 10), before), before)


def test_what_is_not_what_was_encoded_is_not_decoded():
    how = Delta(Quantised(4))
    arrays = encoded(rows(), how, as_received(rows(seed=1), how))
    for wrong, reason in [
        ({}, "nothing came"),
        ({**arrays, "x": torch.ones(1)}, "changed, codes are to come"),
        ({**arrays, "codes": arrays["codes"][:-1]}, "codes is"),
        ({**arrays, "codes": arrays["codes"].int()}, "torch.int32"),
        ({**arrays, "changed": arrays["changed"][:0]}, "changed is"),
        (rows(), "one array came"),
    ]:
        with pytest.raises(Undecodable, match=reason):
            decoded(wrong, how, (7, 10))
    with pytest.raises(Undecodable, match="nothing is held"):
        decoded(encoded(rows(), how, as_received(rows(), how)), how, (7, 10))


def test_encodings_and_what_is_encoded_survive_the_way():
    how = Delta(Quantised(3, "range"), "labels", 2, 5)
    arrays = encoded(rows(), how)
    steps = (Predict(encoding=Quantised(2)), Fit("transfer", (Soft(arrays, encoding=how),)))
    told = decode(Codec().encode(Assignment(0, 1, "learn", steps))).steps
    assert told[0].encoding == Quantised(2)
    assert told[1].terms[0].encoding == how
    assert torch.equal(told[1].terms[0].targets["codes"], arrays["codes"])
    assert nbytes(steps) == nbytes(arrays)


# --- in a run -------------------------------------------------------------------------------


def method(up=None, down=None, index=None, output="probabilities"):
    """Uniform fusion, registered as ``encoded``, with encodings up and down; its instances."""
    made = []

    @registry.register("strategies", "encoded")
    class Encoded(KnowledgeStrategy):
        Options = DistillOptions
        needs_transfer_set = sends_soft_labels = True

        def setup(self):
            made.append(self)
            self.seen = []

        def learn(self, round, client):
            on = "transfer" if index is None else Rows("transfer", index[round - 1])
            return [Fit(epochs=1), Predict(on, output=output, encoding=up)]

        def fuse(self, round, replies):
            self.seen.append(replies.stack())
            self.fused = replies.stack().mean(0)

        def receive(self, round, client):
            on = "transfer" if index is None else Rows("transfer", index[round - 1])
            objective = "mse_logits" if output == "logits" else "forward_kl"
            return [self.distil(Soft(self.fused, objective, encoding=down), on=on)]

    return made


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_the_server_sees_what_it_would_have_made_of_the_labels_itself(cohort, small, tmp_path):
    seen = []
    for name, how in (("plain", None), ("coded", Quantised(2))):
        made = method(how)
        how = (NAME, "rounds=1", "student.width=0.2", f"engine.cohort={cohort}")
        run(small(*how), tmp_path / name)
        seen.append(made[-1].seen[0])
    plain, coded = seen
    for one, other in zip(plain, coded, strict=True):
        assert torch.equal(as_received(one, Quantised(2)), other)


@pytest.mark.parametrize(
    "index", [None, [torch.arange(50), torch.arange(30, 80), torch.arange(40)]]
)
def test_a_delta_changes_nothing_but_bytes(index, small, tmp_path):
    """Of what is sent both ways, with clients that miss rounds and one whose reply is left out."""
    how = (NAME, "rounds=3", "participation=0.75", "student.width=0.2", "engine.cohort=off")

    def lines(name, up, down):
        method(up, down, index)
        done = run(small(*how), tmp_path / name)
        rounds, clients = measured(done)
        return [{k: v for k, v in r.items() if "bytes" not in k} for r in rounds], clients, done

    for quantised in (None, Quantised(3)):
        *plain, whole = lines(f"plain {quantised}", quantised, quantised)
        *delta, part = lines(f"delta {quantised}", Delta(quantised), Delta(quantised))
        assert delta == plain
        if quantised is None:  # the labels all change: a bit a row more
            labels = len(index[0]) if index else 80
            assert part.rounds[0]["bytes_up"] - whole.rounds[0]["bytes_up"] == 3 * -(-labels // 8)


def test_bytes_of_a_round_are_those_of_what_travels(small, tmp_path):
    method(Quantised(2), Delta(Quantised(1)))
    done = run(small(NAME, "rounds=1"), tmp_path / "run")
    assert done.rounds[0]["bytes_up"] == 4 * 80 * 10 * 2 / 8
    assert done.rounds[0]["bytes_down"] == 4 * (80 * 10 * 1 / 8 + 80 / 8)


def test_a_run_that_goes_on_has_the_numbers_and_bytes_that_it_would_have_had(small, tmp_path):
    method(Delta(Quantised(2)), Delta(Quantised(2)))
    how = (NAME, "rounds=3", "participation=0.75", "student.width=0.1", "checkpoint_every=1")
    whole = run(small(*how), tmp_path / "whole")
    with pytest.raises(Killed):
        run(small(*how), tmp_path / "killed", observer=KilledAfter(2))
    again = run(small(*how), tmp_path / "killed", resume=True)
    assert measured(again) == measured(whole)


def test_after_a_reply_is_left_out_all_is_sent_again_and_the_numbers_are_right(
    small, tmp_path, monkeypatch
):
    perform = Worker.perform
    experiment = small(NAME, "rounds=3", "student.width=0.1", "engine.cohort=off")

    def spoiling(self, assignment):
        reply = perform(self, assignment)
        if (assignment.client, assignment.round, assignment.phase) == (2, 2, "learn"):
            reply.values["soft_labels"] = torch.zeros(3)
        return reply

    monkeypatch.setattr(Worker, "perform", spoiling)
    found = []
    for how in (Quantised(2), Delta(Quantised(2))):
        method(how, how)
        done = run(experiment, tmp_path / type(how).__name__)
        (entry,) = done.rounds[1]["left_out"]
        assert (entry["client"], entry["step"]) == (2, "Predict")
        found.append([line["own_loss_mean"] for line in done.rounds])
    assert found[0] == found[1]


def test_an_attack_is_shown_what_the_server_sees(small):
    for how in (Quantised(2), Delta(Quantised(2))):
        seen = {}
        worker = WatchedWorker(small(), lambda _, sent, seen=seen: seen.update(it=sent.value))
        worker.perform_all([Assignment(0, 1, "learn", (Predict(encoding=how),))], lambda done: None)
        plain = Worker(small()).perform(Assignment(0, 1, "learn", (Predict(),)))
        assert torch.equal(seen["it"], as_received(plain.values["soft_labels"], Quantised(2)))


# --- checks ---------------------------------------------------------------------------------

LABELS = torch.full((80, 10), 0.1)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (
            Predict(encoding=Quantised(9)),
            r"bits = 9 is not allowed; allowed: a whole number from 1",
        ),
        (Predict(encoding=Quantised(4, "even")), "grid = 'even' is not allowed"),
        (Predict(encoding=4), r"allowed: Quantised\(...\), Delta"),
        (Predict("private", encoding=Quantised(4)), "encoding is not allowed on 'private'"),
        (
            Predict("private", per="class", encoding=Quantised(4)),
            "encoding is not allowed per class 'private'",
        ),
        (Predict(output="logits", encoding=Quantised(4)), "'simplex' is not allowed with logits"),
        (Predict(output="logits", encoding=Delta(Quantised(4))), "not allowed with logits"),
        (
            Fit(Samples(torch.zeros(80, 1, 8, 8)), (Soft(LABELS, encoding=Quantised(4)),)),
            "encoding is not allowed on samples sent along",
        ),
        (
            Fit("transfer", (Soft("own", encoding=Quantised(4)),)),
            "with the name of a student",
        ),
        (
            Fit("transfer", (Soft(LABELS, encoding=Delta()), Soft(LABELS, encoding=Delta()))),
            "two deltas of one name, 'soft_labels'",
        ),
        (
            Fit(
                "transfer",
                (Soft(LABELS),),
                together=(Peer("meme", (Soft(LABELS, encoding=Quantised(1)),), key="meme_loss"),),
            ),
            "encoding is not allowed for a student of together",
        ),
    ],
)
def test_an_encoding_that_is_not_for_it_is_one_line(step, reason, small, tmp_path):
    @registry.register("strategies", "encoded")
    class Wrong(KnowledgeStrategy):
        def learn(self, round, client):
            return [Hold("meme"), step]

    with pytest.raises(FedkdError, match=reason):
        run(small(NAME), tmp_path / "run")


def test_what_is_measured_does_not_travel_and_has_no_encoding(small, tmp_path):
    @registry.register("strategies", "encoded")
    class Wrong(KnowledgeStrategy):
        def measure(self, round, client):
            return [Predict(key="measure_labels", encoding=Quantised(4))]

    with pytest.raises(FedkdError, match=r"measure.*encoding is not allowed here"):
        run(small(NAME), tmp_path / "run")
