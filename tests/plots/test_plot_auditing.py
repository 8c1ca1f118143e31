"""Audited and formal epsilon of DP-SGD against its noise."""

import numpy as np
import pytest
from test_plot_gather import fake_run

from fedkd.errors import FedkdError
from fedkd.plots.auditing import AUDITED, FORMAL, IF_GAUSSIAN, draw


def gradient_audit(folder, noise, epsilon=None, seed=0):
    """A finished run with this noise multiplier that was audited by gradient canaries."""
    run = fake_run(folder, f"training.dp.noise_multiplier={noise}", f"seed={seed}")
    bound = {"delta": 1e-5, "formal": 8 / noise}
    bound |= {"epsilon": 2 / noise if epsilon is None else epsilon}
    found = {"place": "each noisy step (white box)", "client": 0, "noise_multiplier": noise}
    found |= {"rate": 0.5, "steps": 4, "canaries": 512, "bounds": [bound]}
    found |= {"noise_at_most": 2 * noise, "epsilon_as_sampled_gaussian": 4 / noise}
    run.write_audit({"formal": {"epsilon": None}, "gradient_canaries": found})
    return run


def curves(*runs):
    """What is drawn of a method, by kind of epsilon."""
    (axes,) = draw(runs).axes
    return {
        name: (list(line.get_xdata()), list(line.get_ydata()))
        for name, line in zip((FORMAL, IF_GAUSSIAN, AUDITED), axes.lines, strict=True)
    }


def test_a_line_is_epsilon_at_each_noise_multiplier(tmp_path):
    found = curves(*(gradient_audit(tmp_path / f"{noise}", noise) for noise in (4.0, 1.0)))
    wanted = {FORMAL: ([1, 4], [8, 2]), IF_GAUSSIAN: ([1, 4], [4, 1]), AUDITED: ([1, 4], [2, 0.5])}
    assert found == wanted


def test_of_several_seeds_it_is_their_mean(tmp_path):
    runs = [gradient_audit(tmp_path / f"{n}", 1.0, epsilon=float(n), seed=n) for n in (1, 2)]
    assert curves(*runs)[AUDITED] == ([1], [1.5])


def test_where_nothing_is_proved_there_is_no_point(tmp_path):
    _, (shown,) = curves(gradient_audit(tmp_path / "a", 1.0, epsilon=0.0))[AUDITED]
    assert np.isnan(shown)


def test_a_run_that_was_not_audited_so_is_one_line(tmp_path):
    run = fake_run(tmp_path / "a", "training.dp.noise_multiplier=1")
    with pytest.raises(FedkdError, match="was not audited by gradient canaries: fedkd audit"):
        draw([gradient_audit(tmp_path / "b", 1.0), run])
