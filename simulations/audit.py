"""``fedkd audit``: what a run's releases guarantee, and what attacks on them find."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd import lock
from fedkd.caveats import caveats
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.results import PLACES, Run
from fedkd.simulations.audit_table import attack_table
from fedkd.summaries import exposures

if TYPE_CHECKING:
    from fedkd.lab.attack import Attacked
    from fedkd.lab.gradients import GradientAudit

SEES = {
    "teacher": "a server that sees the parameters",
    "released": "a server that sees the labels",
    "student": "whoever has the student",
}
"""Who looks at each place that proves an epsilon."""

Say = Callable[[str], None]


def main(
    run: Run,
    shadows: int | None,
    data_dir: Path | None,
    reconstruct: bool = False,
    gradient_canaries: bool = False,
) -> None:
    """Print what was found about ``run``, and write it into its folder.

    ``shadows`` is None for as many as usual, or as time allows. With ``reconstruct`` images are
    reconstructed too, and a figure of them is written into the folder; with ``gradient_canaries``
    DP-SGD is attacked at each of its noisy steps.

    Raises
    ------
    FedkdError
        As :func:`audited`.
    """

    def counted(shadow: int, of: int) -> None:
        print(f"shadow {shadow}/{of}", file=sys.stderr, flush=True)

    wanted = {"reconstruct": reconstruct, "gradient_canaries": gradient_canaries}
    found = audited(run, shadows, data_dir, **wanted, say=print, done=counted)
    for caveat in caveats(run):
        print(f"of the run: {caveat}")
    if found.get("reconstructions"):
        from fedkd.plots.reconstruction import draw
        from fedkd.plots.style import save

        for file in save(draw([run]), run.folder / "plots" / "reconstruction"):
            print(file)
    print(run.folder)


def audited(
    run: Run,
    shadows: int | None,
    data_dir: Path | None = None,
    reconstruct: bool = False,
    gradient_canaries: bool = False,
    say: Say = lambda line: None,
    done: Callable[[int, int], None] = lambda shadow, of: None,
) -> dict[str, Any]:
    """What was found about ``run``, which is written into its folder too.

    ``say`` is given each line of it, ``done`` how many shadows there are yet, and of how many.

    Raises
    ------
    FedkdError
        The run has not ended; its data are not there; there are too few shadows; or there is no
        DP-SGD to attack.
    """
    if run.summary is None:
        raise FedkdError(f"{run.folder} has not ended: an audit needs a finished run")
    check_shadows(shadows, "--shadows")
    experiment = run.experiment
    if gradient_canaries:
        from fedkd.lab.gradients import check_private

        check_private(run)
    if data_dir is not None:
        table = experiment.data.model_copy(update={"data_dir": str(data_dir)})
        experiment = experiment.model_copy(update={"data": table})
    with lock.held(run.folder):
        found = _guaranteed(run, say) | _exposed(run, say)
        gradients = _gradients(run, say) if gradient_canaries else None
        attacks = None if shadows == 0 else _attacked(experiment, shadows, say, done)
        if text := attack_table(found, attacks, gradients):
            say(text)
        found |= {} if attacks is None else {"attacks": asdict(attacks)}
        found |= {} if gradients is None else {"gradient_canaries": asdict(gradients)}
        found |= _reconstructed(experiment, say) if reconstruct else {}
        run.write_audit(found)
    return found


def attacked(run: Run) -> bool:
    """Whether an audit of a run attacked what its clients sent."""
    return "attacks" in (run.audit or {})


def check_shadows(shadows: int | None, key: str) -> None:
    """Refuse a number of shadows that no likelihood ratio can be made of.

    Raises
    ------
    FedkdError
        One line naming ``key``.
    """
    if not shadows:
        return
    from fedkd.lab.membership import FEWEST

    if shadows < FEWEST:
        raise FedkdError(
            f"{key} {shadows} is too few: a likelihood ratio needs at least {FEWEST}; 0 is for "
            "no attack"
        )


def _guaranteed(run: Run, say: Say) -> dict[str, Any]:
    from fedkd.privacy import guarantees

    releases = run.releases
    found = guarantees.guarantees(releases, run.experiment)
    fresh = sum(line["fresh"] for line in releases)
    say(f"ledger: {len(releases)} releases, {fresh} of them new answers")
    profiles = {p.formal.adversary: p for p in guarantees.profiles(releases, run.experiment)}
    for formal in found:
        say(f"formal ε: {formal.text()}; adversary: {formal.adversary}")
        if formal.epsilon is None:
            continue
        say(f"neighbours: {formal.neighbours}")
        say(f"profile: {profiles[formal.adversary].text()}")
        if formal.sampled is not None:
            say(
                f"that is without amplification, as everybody knows who takes part; ε would be "
                f"{formal.sampled:.3g} if participants were secret and drawn by Poisson sampling "
                f"at rate {formal.rate:.3g}, which they are not here"
            )
        if formal.data_dependent is not None:
            say(
                f"by these very votes ε would be {formal.data_dependent:.3g} (data-dependent), a "
                "number that is itself private: not to be published without smooth sensitivity"
            )
    against_server, nominal = found[0], [f for f in found if f.nominal is not None]
    who = "a server that sees that answer" if nominal[:1] == found[:1] else "who sees that item"
    shown = f"{nominal[0].nominal:.3g} (client; adversary: {who} alone)" if nominal else "-"
    say(f"nominal ε of one token or item, not a guarantee: {shown}")
    return {
        "formal": asdict(against_server),
        "guarantees": [asdict(formal) for formal in found],
        "profiles": [asdict(profile) for profile in profiles.values()],
    }


def _exposed(run: Run, say: Say) -> dict[str, Any]:
    """Exposure by place and level of repeats, and what that of the highest level proves."""
    from fedkd.exposures import NULL_MEAN, interval
    from fedkd.lab import audit

    if run.canaries is None:
        return {}
    levels = sorted({*run.experiment.canary.repeats})
    found: dict[str, dict[str, Any]] = {}
    bits = {}
    for place in PLACES:
        by_level = {level: exposures([run], place, level) for level in levels}
        by_level = {level: values for level, values in by_level.items() if values[0]}
        if not by_level:
            continue
        bits[place] = by_level.get(levels[-1], ([], []))[0]
        bits[f"{place}, linear"] = exposures([run], place, levels[-1], "linear")[0]
        estimates = {level: interval(*values) for level, values in by_level.items()}
        found[place] = {str(level): asdict(one) for level, one in estimates.items()}
        told = ", ".join(f"{one.mean:.2f} at {level}" for level, one in estimates.items())
        # Where it is not known it is that of a run in which nobody has secrets.
        null = f"null {NULL_MEAN:.2f}" if audit.null_known(run, place) else "null not known"
        say(f"exposure in bits by repeats, {null}, {place}: {told}")
    proved = audit.proved(run, bits, levels[-1])
    size, alone = audit.secret_in_records(run, levels[-1])
    if proved:
        say(
            f"audited by exposure is a client: a secret is {size} of its records"
            f"{'' if alone else ', and may move others'}; adversary: "
            f"{'; '.join(f'{place}: {SEES[place]}' for place in proved)}"
        )
    secrets = _by_secret(run)
    return {"exposure": found, "audited": proved, "level": levels[-1], "secrets": secrets}


def _by_secret(run: Run) -> list[dict[str, Any]]:
    """Exposure and rank of each secret in the last round that was measured, the highest first.

    The rank is among all secrets that there could be, 1 the likeliest.
    """
    assert run.canaries is not None
    last = max((line["round"] for line in run.exposures), default=0)
    lines = [
        line
        for line in run.exposures
        if line["round"] == last and line["exposure"] is not None
        if math.isfinite(line["exposure"])
    ]
    space = run.canaries["log2_space"]
    keys = ("place", "observer", "secret", "repeats", "holders", "exposure")
    ranked = [
        {key: line[key] for key in keys} | {"rank": round(2 ** (space - line["exposure"]), 1)}
        for line in lines
    ]
    return sorted(ranked, key=lambda line: (PLACES.index(line["place"]), -line["exposure"]))


def _attacked(
    experiment: Experiment, shadows: int | None, say: Say, done: Callable[[int, int], None]
) -> Attacked:
    from fedkd.lab.attack import attack

    found = attack(experiment, shadows, done)
    for place in found.places:
        guesses = [guess for guess in found.labels if guess.place == place]
        if guesses:
            best = min(guesses, key=lambda guess: guess.l1)
            say(
                f"label distributions from {best.how} ({place}, {best.window}): L1 error "
                f"{best.l1:.3f} (guessing the others' mean: {best.l1_others:.3f}), commonest class "
                f"right for {100 * best.top:.0f} % of clients"
            )
    return found


def _gradients(run: Run, say: Say) -> GradientAudit:
    """Attack DP-SGD at each of its steps, and say so loudly where it leaks more than it may."""
    from fedkd.lab.gradients import audit_gradients

    found = audit_gradients(run)
    stated = found.bounds[0]
    say(
        f"gradient canaries: client {found.client}, {found.steps} noisy steps at sampling rate "
        f"{found.rate:.3g}; {found.canaries} canaries, {found.inside} of them in, in {found.fits} "
        f"fits; audited ε ≥ {stated.epsilon:.2f} of at most {found.largest:.2f} that so many can "
        f"show, formal ε {stated.formal:.3g} (delta {stated.delta:g}, zero-out record); best "
        f"attack: {found.attack}"
    )
    if found.noise_at_most is not None:
        say(
            f"if all but the size of Gaussian noise is as in the ledger: noise multiplier ≤ "
            f"{found.noise_at_most:.3g} and ε ≥ {found.epsilon_as_sampled_gaussian:.3g}; "
            f"training.dp.noise_multiplier = {found.noise_multiplier:g}"
        )
    if found.refuted:
        above = ", ".join(
            f"ε ≥ {bound.epsilon:.3g} at delta {bound.delta:g} (formal {bound.formal:.3g})"
            for bound in found.refuted
        )
        say(
            f"WARNING: more is proved than the formal ε allows: {above}. Noise, clipping or "
            "sampling of DP-SGD is not what the ledger says, but for a chance of 5 %"
        )
    return found


def _reconstructed(experiment: Experiment, say: Say) -> dict[str, Any]:
    from fedkd.lab.reconstruction import reconstruct

    found = reconstruct(experiment)
    if not found:
        say("reconstruction: nothing that is sent is attacked")
    for one in found:
        say(
            f"reconstruction from {one.place}, {one.attack}, {one.count} images: PSNR "
            f"{one.psnr:.1f} dB (guessing the public mean: {one.psnr_guess:.1f}), SSIM "
            f"{one.ssim:.2f} ({one.ssim_guess:.2f}), nearest to their own original "
            f"{100 * one.matched:.0f} %"
        )
    return {"reconstructions": [asdict(one) for one in found]}
