"""Parameters at low rank: what has changed, as products of thin matrices."""

import pytest
import torch
from lines import measured

from fedkd import run
from fedkd.codec import nbytes
from fedkd.compression import LowRank
from fedkd.encodings import Undecodable, factorised, loaded, multiplied
from fedkd.engine.worker import Worker
from fedkd.lab.worlds import WatchedWorker
from fedkd.work import (
    Assignment,
    Fit,
    Hold,
    Load,
    Share,
)

KD = ("strategy.name=fedkd-svd", "data.clients=2", "training.local_epochs=1")


def orthogonal(size, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0]


def with_singular_values(*sizes, rows=30, columns=20):
    return (orthogonal(rows, 0)[:, : len(sizes)] * torch.tensor(sizes)) @ orthogonal(columns, 1)[
        : len(sizes)
    ]


def forms(parameters):
    return {name: (value.shape, value.dtype) for name, value in parameters.items()}


@pytest.mark.parametrize(
    ("energy", "wanted"), [(0.01, 1), (0.62, 1), (0.63, 2), (0.97, 2), (0.98, 3)]
)
def test_the_rank_is_the_least_that_holds_the_energy(energy, wanted):
    """Squares of 8, 6 and 1.5: shares of 0.626, 0.352 and 0.022 of their sum."""
    arrays = factorised({"w": with_singular_values(8.0, 6.0, 1.5).float()}, LowRank(energy), {})
    assert arrays["w.left"].shape == (30, wanted)
    assert arrays["w.right"].shape == (wanted, 20)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.98])
def test_what_is_lost_is_no_more_than_the_energy_that_is_not_sent(energy):
    draw = torch.Generator().manual_seed(0)
    known = {"w": torch.randn(40, 60, generator=draw)}
    change = torch.randn(40, 5, generator=draw) @ torch.randn(5, 60, generator=draw)
    value = {"w": known["w"] + change + 0.1 * torch.randn(40, 60, generator=draw)}
    arrays = factorised(value, LowRank(energy), known)
    received = multiplied(arrays, forms(value), known)
    lost = (received["w"] - value["w"]).square().sum()
    assert lost <= (1 - energy + 1e-5) * (value["w"] - known["w"]).square().sum()
    assert nbytes(arrays) == 4 * 100 * arrays["w.left"].shape[1] < nbytes(value)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_what_travels_is_the_singular_value_decomposition_cut_off(shape):
    value = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    arrays = factorised({"w": value}, LowRank(0.4), {})
    rank = arrays["w.left"].shape[1]
    left, sizes, right = torch.linalg.svd(value.double(), full_matrices=False)
    nearest = (left[:, :rank] * sizes[:rank]) @ right[:rank]
    received = multiplied(arrays, forms({"w": value}), {})["w"]
    torch.testing.assert_close(received, nearest.float(), atol=1e-5, rtol=0)
    shares = sizes.square().cumsum(0) / sizes.square().sum()
    assert shares[rank - 2] < 0.4 <= shares[rank - 1]


def test_at_full_energy_nothing_is_factorised():
    value = {"w": with_singular_values(8.0, 1.0).float()}
    assert factorised(value, LowRank(1.0), {})["w"] is value["w"]


def test_convolutions_are_matrices_of_their_outputs():
    draw = torch.Generator().manual_seed(0)
    flat = torch.randn(16, 1, generator=draw) @ torch.randn(1, 72, generator=draw)
    value = {"w": flat.view(16, 8, 3, 3)}
    arrays = factorised(value, LowRank(0.99), {})
    assert {name: tuple(array.shape) for name, array in arrays.items()} == {
        "w.left": (16, 1),
        "w.right": (1, 72),
    }
    torch.testing.assert_close(multiplied(arrays, forms(value), {})["w"], value["w"])


def test_what_would_not_get_smaller_or_is_no_matrix_travels_as_it_is():
    value = {
        "full": torch.eye(6),
        "bias": torch.randn(5),
        "count": torch.tensor([[3, 4], [5, 6]]),
        "broken": torch.full((30, 30), torch.nan),
    }
    arrays = factorised(value, LowRank(0.99), {})
    assert arrays.keys() == value.keys()
    assert all(arrays[name] is value[name] for name in value)
    assert multiplied(arrays, forms(value), {}).keys() == value.keys()


def test_what_has_not_changed_is_received_to_the_bit():
    value = {"w": torch.randn(30, 20, generator=torch.Generator().manual_seed(0))}
    received = multiplied(factorised(value, LowRank(0.9), value), forms(value), value)
    assert torch.equal(received["w"], value["w"])


def test_what_is_not_what_was_factorised_is_not_multiplied():
    value = {"w": with_singular_values(8.0, 1.0).float(), "b": torch.zeros(3)}
    arrays = factorised(value, LowRank(0.9), {})
    left = arrays["w.left"]
    for wrong in (
        None,
        left,
        {},
        {name: array for name, array in arrays.items() if name != "w.right"},
        arrays | {"more": left},
        arrays | {"w.left": left[:, :0]},
        arrays | {"w.left": left[:-1]},
        arrays | {"w.left": left.double()},
        arrays | {"w.left": left[0]},
    ):
        with pytest.raises(Undecodable):
            multiplied(wrong, forms(value), {})


def test_what_was_loaded_is_all_of_this_student_before_it_is_shared():
    mine, later, its = ({"w": torch.full((2, 2), float(number))} for number in range(3))
    share = Share(student="mentee", encoding=LowRank(0.9))
    loads = [
        Load(mine, student="mentee"),
        Load({"w": torch.ones(2, 2)}, part=("w",), student="mentee"),
        Load(its),
    ]
    steps = (*loads, share, Load(later, student="mentee"))
    assert loaded(steps, share)["w"] is mine["w"]


# --- on their way ---------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", ["off", "on"])
def test_an_attack_is_shown_what_the_server_sees(cohort, small):
    heard = []
    experiment = small(*KD, f"engine.cohort={cohort}")
    worker = WatchedWorker(experiment, lambda _, sent: heard.append(sent))
    own = {name: value.clone() for name, value in worker.state(0)["own"].items()}
    steps = (Hold("mentee"), Load(own, student="mentee"), Fit(student="mentee"))
    share = Share(student="mentee", encoding=LowRank(0.8))
    work = [Assignment(client, 1, "learn", (*steps, share)) for client in range(2)]
    replies = worker.perform_all(work, lambda _: None)
    for sent, reply in zip(heard, replies, strict=True):
        mine = worker.state(reply.client)["mentee"]
        wanted = multiplied(reply.values["parameters"], forms(mine), own)
        assert all(torch.equal(sent.value[name], wanted[name]) for name in mine)
        change = mine["fc1.1.weight"] - own["fc1.1.weight"]
        lost = (sent.value["fc1.1.weight"] - mine["fc1.1.weight"]).square().sum()
        assert 0 < lost <= 0.2 * change.square().sum()


def test_with_all_energy_fedkd_has_the_numbers_of_whole_mentees(small, tmp_path, monkeypatch):
    full = ("strategy.energy_start=1", "strategy.energy_end=1")
    one = run(small(*KD, *full), tmp_path / "one")
    monkeypatch.setattr("fedkd.strategies.fedkd_svd.LowRank", lambda energy: None)
    other = run(small(*KD, *full), tmp_path / "other")
    assert measured(one) == measured(other)


def test_a_student_loaded_by_name_is_not_what_the_server_knows():
    share = Share(encoding=LowRank(0.9))
    assert loaded((Hold("mentee"), Load("mentee"), share), share) == {}


def test_less_energy_is_fewer_bytes_and_other_numbers(small, tmp_path):
    done = [
        run(small(*KD, f"strategy.energy_start={low}", "strategy.energy_end=1"), tmp_path / name)
        for name, low in (("low", 0.2), ("high", 0.9), ("all", 1))
    ]
    first = [each.rounds[0]["bytes_up"] for each in done]
    assert first == sorted(first)
    assert first[0] < 0.7 * first[2]
    assert len({each.rounds[-1]["own_loss_mean"] for each in done}) == 3


def test_a_reply_that_cannot_be_multiplied_is_left_out(small, tmp_path, monkeypatch):
    perform = Worker.perform

    def broken(self, assignment):
        reply = perform(self, assignment)
        if (assignment.client, assignment.phase) == (1, "learn"):
            reply.values["parameters"].pop("fc1.1.weight.right")
        return reply

    monkeypatch.setattr(Worker, "perform", broken)
    done = run(small(*KD, "engine.cohort=off"), tmp_path / "run")
    (out,) = done.rounds[0]["left_out"]
    assert (out["client"], out["step"]) == (1, "Share")
    assert "fc1.1.weight" in out["reason"]
