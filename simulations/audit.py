"""``fedkd audit``: what a run's releases guarantee, and what attacks on them find."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedkd import lock
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.results import PLACES, Run, exposures

SEES = {
    "teacher": "a server that sees the parameters",
    "released": "a server that sees the labels",
    "student": "whoever has the student",
}
"""Who looks at each place that proves an epsilon."""


def main(run: Run, shadows: int, data_dir: Path | None) -> None:
    """Print what was found about ``run``, a line each, and write it into its folder.

    Raises
    ------
    FedkdError
        The run has not ended; its data are not there; or there are too few shadows.
    """
    if run.summary is None:
        raise FedkdError(f"{run.folder} has not ended: an audit needs a finished run")
    from fedkd.privacy.lab.membership import FEWEST

    if 0 < shadows < FEWEST:
        raise FedkdError(
            f"--shadows {shadows} is too few: a likelihood ratio needs at least {FEWEST}; 0 is for "
            "no attack"
        )
    experiment = run.experiment
    if data_dir is not None:
        table = experiment.data.model_copy(update={"data_dir": str(data_dir)})
        experiment = experiment.model_copy(update={"data": table})
    with lock.held(run.folder):
        found = _guaranteed(run) | _exposed(run)
        if shadows:
            found |= _attacked(experiment, shadows)
        run.write_audit(found)
    print(run.folder)


def _guaranteed(run: Run) -> dict[str, Any]:
    from fedkd.privacy import audit

    releases = run.releases
    formal = audit.guarantee(releases, run.experiment)
    fresh = sum(line["fresh"] for line in releases)
    print(f"ledger: {len(releases)} releases, {fresh} of them new answers")
    print(f"formal ε: {formal.text()}; adversary: {formal.adversary}")
    if formal.epsilon is not None:
        print(f"neighbours: {formal.neighbours}")
    seen = "(client; adversary: a server that sees that answer alone)"
    shown = "-" if formal.nominal is None else f"{formal.nominal:.3g} {seen}"
    print(f"nominal ε of one token or item, not a guarantee: {shown}")
    return {"formal": asdict(formal)}


def _exposed(run: Run) -> dict[str, Any]:
    """Exposure by place and level of repeats, and what that of the highest level proves."""
    from fedkd.privacy import audit
    from fedkd.privacy.exposure import NULL_MEAN, interval

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
        said = ", ".join(f"{one.mean:.2f} at {level}" for level, one in estimates.items())
        # Of labels on a public corpus it is that of a run in which nobody has secrets.
        null = f"null {NULL_MEAN:.2f}" if place in ("teacher", "student") else "null not known"
        print(f"exposure in bits by repeats, {null}, {place}: {said}")
    proved = audit.proved(run, bits, levels[-1])
    size, alone = audit.secret_in_records(run, levels[-1])
    unit = f"client: a secret is {size} of its records{'' if alone else ', and may move others'}"
    for place, epsilon in proved.items():
        print(
            f"audited ε ≥ {epsilon:.2f} by exposure, {place}, {levels[-1]} repeats ({unit}); "
            f"adversary: {SEES[place]}"
        )
    return {"exposure": found, "audited": proved}


def _attacked(experiment: Experiment, shadows: int) -> dict[str, Any]:
    from fedkd.privacy.lab.labels import infer_labels
    from fedkd.privacy.lab.membership import infer_members

    labels = infer_labels(experiment)
    if labels is None:
        print("label distributions: nothing that is sent tells of them")
    else:
        print(
            f"label distributions from {labels.how}: L1 error {labels.l1:.3f} (guessing the "
            f"others' mean: {labels.l1_others:.3f}), commonest class right for "
            f"{100 * labels.top:.0f} % of clients"
        )
    found: dict[str, Any] = {"label_inference": labels and asdict(labels)}

    def done(shadow: int) -> None:
        print(f"shadow {shadow}/{shadows}", file=sys.stderr, flush=True)

    members = infer_members(experiment, shadows, done)
    found["membership"] = members and asdict(members)
    if members is None:
        print("membership: no model can be made of what is sent; it was not attacked")
        return found
    rates = "".join(
        f", TPR at {100 * float(fpr):g} % FPR {100 * rate:.2f} % "
        f"[{100 * low:.2f}, {100 * high:.2f}]"
        for fpr, (rate, low, high) in members.tpr.items()
    )
    for fpr, count in members.refused.items():
        rates += (
            f", TPR at {100 * float(fpr):g} % FPR not said ({count:.1f} false positives expected)"
        )
    unit = "record" if members.group == 1 else f"record and its copies, up to {members.group}"
    print(
        f"membership from {members.how}, {members.shadows} shadows: AUC {members.auc:.3f} "
        f"[{members.auc_low:.3f}, {members.auc_high:.3f}]{rates}; audited ε ≥ "
        f"{members.epsilon:.2f} ({unit}); adversary: a server that sees what is sent last"
    )
    return found
