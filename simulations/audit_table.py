"""The table of ``fedkd audit``: the strongest attack on each thing that was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedkd.simulations.layout import ruled

if TYPE_CHECKING:
    from fedkd.lab.attack import Attacked
    from fedkd.lab.findings import Finding
    from fedkd.lab.gradients import GradientAudit

HEAD = ("place", "attack", "AUC", "TPR at FPR", "audited ε ≥", "formal ε")


def attack_table(
    found: Mapping[str, Any], attacks: Attacked | None, gradients: GradientAudit | None = None
) -> str:
    """All that was attacked, the strongest attack of each place; empty if there is nothing.

    Parameters
    ----------
    found : mapping
        What an audit has found by the ledger and by exposure: ``formal``, ``guarantees``,
        and ``audited`` and ``level`` where secrets were planted.
    attacks : Attacked, optional
        What attacks on what was sent found.
    gradients : GradientAudit, optional
        What gradient canaries found.
    """
    from fedkd.lab.findings import strongest
    from fedkd.records import AGGREGATE

    shown = _stated(found["formal"], "server")
    rows: list[tuple[str, ...]] = [
        (
            f"{place}, {found['level']} repeats",
            "secrets: exposure",
            "-",
            "-",
            f"{bits:.2f} (client)",
            shown,
        )
        for place, bits in found.get("audited", {}).items()
    ]
    if gradients is not None:
        bound = gradients.bounds[0]
        formal_of_steps = f"{bound.formal:.3g} (delta {bound.delta:g}, record; all noisy steps)"
        proved = f"{bound.epsilon:.2f} (record, zero-out)"
        rows.append((gradients.place, "gradient canaries", "-", "-", proved, formal_of_steps))
    findings = [] if attacks is None else attacks.findings
    # The first is against the server, another one against who sees what it makes.
    others = [_stated(formal, "others") for formal in found["guarantees"][1:]] or [shown]

    def held(place: str) -> str:
        return others[0] if place.startswith(AGGREGATE) else shown

    rows += [_row(finding, held(finding.place)) for finding in strongest(findings)]
    there = {finding.place for finding in findings}
    rows += [
        (place, "none that fits", "-", "-", "-", held(place))
        for place in (attacks.places if attacks else ())
        if place not in there
    ]
    if not rows:
        return "" if attacks is None else "no client sends anything: nothing to attack"
    text = ruled([HEAD, *rows])
    if not findings:
        return text
    assert attacks is not None
    adversary = "a server that sees everything that is sent"
    if any(place.startswith(AGGREGATE) for place in attacks.places):
        adversary += f"; of {AGGREGATE}: others, who see what the server makes of it"
    return (
        f"{text}\n{attacks.shadows} shadows, {attacks.records} records; each row is the "
        f"strongest of its attacks, and all intervals and bounds hold together for {len(findings)} "
        f"attacks with 95 %; adversary: {adversary}"
    )


def _stated(formal: Mapping[str, Any], who: str) -> str:
    """A guarantee as it stands in the table."""
    if formal["epsilon"] is None:
        return "none"
    return f"{formal['epsilon']:.3g} (delta {formal['delta']:g}, {formal['unit']}; {who})"


def _row(finding: Finding, formal: str) -> tuple[str, ...]:
    auc, low, high = finding.auc
    rates = "-"
    if finding.tpr:
        fpr, (rate, least, most) = next(iter(finding.tpr.items()))
        rates = (
            f"{100 * rate:.1f} % [{100 * least:.1f}, {100 * most:.1f}] at {100 * float(fpr):g} %"
        )
    unit = "record" if finding.group == 1 else f"up to {finding.group} copies of a record"
    return (
        f"{finding.place}, {finding.window}",
        f"{finding.target}: {finding.attack}",
        f"{auc:.3f} [{low:.3f}, {high:.3f}]",
        rates,
        "-" if finding.epsilon is None else f"{finding.epsilon:.2f} ({unit})",
        formal,
    )
