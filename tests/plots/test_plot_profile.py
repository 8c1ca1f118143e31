"""Profiles: a panel a guarantee, a line a method."""

import pytest
from test_plot_gather import fake_run

from fedkd.errors import FedkdError
from fedkd.plots.profile import draw
from fedkd.privacy.epsilons import gaussian_epsilon
from fedkd.privacy.releases import Release


def made(folder, *lines, keys=()):
    """A finished run with these lines of the ledger."""
    run = fake_run(folder, *keys, ended=False)
    run.append_round({"round": 1}, releases=[line.to_dict() for line in lines])
    run.write_summary({"own_accuracy_mean": 0.5})
    return run


def sent(rho):
    return Release(1, 0, "Predict", "soft_labels", 5, "gaussian", scale=1.0, rho=rho)


AVERAGE = Release(1, None, "Average", "parameters", 1, "gaussian", rho=0.5, clients=(0,))


def test_a_line_is_epsilon_at_each_delta_and_the_legend_has_mu(tmp_path):
    (panel,) = draw([made(tmp_path / "a", sent(0.5))]).axes
    line, dot = panel.lines
    assert list(line.get_ydata()) == pytest.approx(
        [gaussian_epsilon(1.0, delta) for delta in line.get_xdata()]
    )
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (1e-5, gaussian_epsilon(1.0, 1e-5))
    assert line.get_label().endswith("μ = 1")
    assert panel.get_xlabel() == "δ"


def test_unlike_adversaries_have_panels_of_their_own(tmp_path):
    runs = [
        made(tmp_path / "a", sent(0.5), keys=["strategy.name=uniform"]),
        made(tmp_path / "b", AVERAGE, keys=["strategy.name=fedavg"]),
    ]
    server, others = [panel.get_title(loc="left") for panel in draw(runs).axes]
    assert server.replace("\n", " ").startswith("replace-one client, against a server")
    assert others.replace("\n", " ").startswith("zero-out client, against other clients")


def test_of_several_seeds_the_worst_is_shown(tmp_path):
    runs = [made(tmp_path / str(n), sent(0.5 * (n + 1)), keys=[f"seed={n}"]) for n in range(3)]
    (panel,) = draw(runs).axes
    assert panel.lines[0].get_ydata()[0] == pytest.approx(gaussian_epsilon(3**0.5, 1e-10))


def test_runs_that_guarantee_nothing_are_one_line(tmp_path):
    plain = Release(1, 0, "Predict", "soft_labels", 5)
    with pytest.raises(FedkdError, match=r"no run guarantees anything; .*without noise"):
        draw([made(tmp_path / "a", plain)])
