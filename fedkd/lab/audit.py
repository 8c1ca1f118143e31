"""What a run guarantees, from its ledger, and what its planted secrets prove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedkd.experiment import Experiment
from fedkd.lab.bounds import audited_epsilon, audited_epsilon_from_exposure
from fedkd.results import Run

CONFIDENCE = 0.95
OF_IMAGES = ("labels", "pixels")
"""Kinds of canaries that are images."""


def secret_in_records(run: Run, repeats: int) -> tuple[int, bool]:
    """How many records of its holder a secret is, and whether it moves none but these.

    Of images a copy is a record for each label that is secret, or one record if the image is; of
    text a copy is a line, and lines that come before or after it may move to other rows.
    """
    canaries = run.canaries or {}
    kind = canaries.get("kind")
    return repeats * (int(canaries["length"]) if kind == "labels" else 1), kind in OF_IMAGES


def null_known(run: Run, place: str) -> bool:
    """Whether the mean exposure at ``place`` of secrets that nobody has is that of a random rank.

    Not of labels on a public corpus; nor of a student that is distilled on the secrets themselves,
    where they are images that the transfer set has.
    """
    canaries = run.canaries or {}
    distilled_on = canaries.get("kind") == "pixels" and canaries.get("public") == "exact"
    return place == "teacher" or (place == "student" and not distilled_on)


def delta_of(experiment: Experiment) -> float:
    """Delta that epsilon is stated at: that of private training where there is any."""
    dp = experiment.training.dp
    return dp.delta if dp.noise_multiplier else experiment.release.delta


def proved(
    run: Run,
    bits: Mapping[str, Sequence[float]],
    repeats: int,
    clean: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, float]:
    """Lower bounds on a client-level epsilon from exposures of planted secrets, by place.

    A secret and all its copies are data of one client, whatever the repeats: the unit is that
    client's data, not a record (see :func:`secret_in_records`). A bound is about what leaves the
    clients: labels (or parameters, which are the teachers themselves) and the student made of them.
    All bounds hold together with 95 % confidence, secrets taken as independent of one another.

    Where the transfer set holds the secrets themselves, what is released depends on them even if no
    client has seen them: the exposures are then compared with ``clean`` ones, and only those of a
    client's own release, as in the clean runs all clients have other data at once.

    Parameters
    ----------
    run : Run
        One of those that ``bits`` are from, for what it plants and sends.
    bits : mapping from place to sequence of float
        Exposures of secrets with ``repeats`` copies; places are those of ``fedkd.results.PLACES``,
        and ``"released, linear"`` for those by the other score.
    repeats : int
        Copies of a secret.
    clean : mapping, optional
        The same of runs that differ in nothing but that no client has any secret.

    Returns
    -------
    dict
        Empty where exposures prove nothing: nothing planted, exposures extrapolated by a fitted
        law, a secret that several clients have, or no ``clean`` exposures where they are needed.
    """
    experiment, canaries = run.experiment, run.canaries
    table, delta = experiment.canary, delta_of(experiment)
    together = min(table.spread, repeats) > 1
    if canaries is None or table.control or together or table.estimator == "extrapolation":
        return {}
    own = "teacher" if any(line["step"] == "Share" for line in run.releases) else "released"
    shown = canaries["public"] == "exact"
    wanted = [own, f"{own}, linear", *(() if shown else ("student",))]
    told = [place for place in wanted if bits.get(place)]
    share = 1 - (1 - CONFIDENCE) / max(len(told), 1)
    found: dict[str, float] = {}
    for place in told:
        if not shown:
            space = canaries["log2_space"]
            epsilon = audited_epsilon_from_exposure(bits[place], space, delta, share)
        elif base := (clean or {}).get(place):
            epsilon = audited_epsilon(bits[place], base, delta, share)
        else:
            continue
        place = place.removesuffix(", linear")
        found[place] = max(epsilon, found.get(place, 0.0))
    return found
