"""Runs as pandas data frames, for tables, notebooks and figures of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.caveats import caveats
from fedkd.errors import FedkdError
from fedkd.escaping import plain
from fedkd.headline import column_of, numbers
from fedkd.labels import flat
from fedkd.results import EXPERIMENT, PLACES, Run, readable
from fedkd.summaries import exposures, most_repeated

if TYPE_CHECKING:
    from pandas import DataFrame


def load_runs(folder: str | Path) -> DataFrame:
    """Every run at or below ``folder``: a row a run, in the order of their paths.

    Returns
    -------
    pandas.DataFrame
        ``folder`` (text) and ``finished`` (bool); every key of the experiment, dotted
        (``strategy.name``, ``data.alpha``, ``seed``; lists as ``a+b``); every entry of
        ``summary.json`` whose name is not a key's (``own_accuracy_mean`` after fusion,
        ``own_accuracy_mean_local`` after local training, ``own_NAME_accuracy_mean`` of what the
        method's ``score`` calls NAME, ``bytes_up``, ``seconds``; of runs that distil
        ``loyalty_label_before``, ``loyalty_label_after``, and the same with ``probability``).
        Accuracies and loyalties are fractions.
        ``headline`` is which of these the method's paper scores, ``headline_accuracy`` its value
        and ``other_stage_accuracy`` that of the other stage (of a named student: of the client's
        own, after fusion); of a run that has not written them, as the method says now. What the
        strategy recorded begins with ``record.`` and is its last value; matrices and lists are left
        out. ``warnings`` are the run's :func:`fedkd.caveats.caveats`, a tuple. Of runs with
        canaries also ``exposure_teacher``, ``exposure_released``, ``exposure_fused`` and
        ``exposure_student``: the mean over the most repeated secrets in the last measured round, in
        bits. Of audited runs ``membership_auc`` and ``audited_epsilon``, those of the strongest
        attack of all on what clients send, ``formal_epsilon`` against the server, and the same with
        ``_others`` on what a trusted server makes, and against those who see that. What a run does
        not have is missing: NaN or None.

    Raises
    ------
    FedkdError
        ``folder`` is not a folder, or is that of a run that cannot be read. A run below it that
        cannot be read is left out, with a warning that names it.
    """
    return frame([row(run) for run in runs_below(folder)])


def load_rounds(folder: str | Path) -> DataFrame:
    """Every round of every run at or below ``folder``: a row a run and round.

    Returns
    -------
    pandas.DataFrame
        ``folder``, every key of the experiment as in :func:`load_runs` (but ``rounds``, which is
        ``round`` here), and the numbers of the round's line. What was measured after local training
        ends in ``_local``; ``headline_accuracy`` is as in :func:`load_runs`; what the strategy
        recorded begins with ``record.``; matrices and lists are left out.

    Raises
    ------
    FedkdError
        As :func:`load_runs`.
    """
    rows = []
    for run in runs_below(folder):
        known = {"folder": str(run.folder), **_keys(run)}
        known.pop("rounds")
        headline = column_of(run)
        for line in run.rounds:
            scored = {name: value for name, value in line.items() if name not in SHAPED}
            scored |= {f"{name}_local": value for name, value in line.get("local", {}).items()}
            scored |= numbers(scored, headline) | recorded(line)
            rows.append(known | {k: v for k, v in scored.items() if not isinstance(v, list | dict)})
    return frame(rows)


def recorded(line: Mapping[str, Any]) -> dict[str, Any]:
    """What the strategy recorded in a round, as ``record.KEY``, without matrices and lists."""
    entries = flat(line.get("strategy", {}), "record.")
    return {name: value for name, value in entries.items() if not isinstance(value, list)}


SHAPED = ("local", "strategy")
"""Entries of a round's line that are tables."""


def runs_below(folder: str | Path) -> Iterator[Run]:
    """Every run at or below ``folder`` that can be read, in the order of their paths.

    Raises
    ------
    FedkdError
        As :func:`load_runs`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FedkdError(f"{folder} is not a folder of runs")
    if (folder / EXPERIMENT).is_file():
        Run(folder).check()
    yield from readable([Run(file.parent) for file in sorted(folder.rglob(EXPERIMENT))])


def row(run: Run) -> dict[str, Any]:
    """The row of :func:`load_runs` for one run."""
    summary, rounds = run.summary, run.rounds
    known = {"folder": str(run.folder), "finished": summary is not None, **_keys(run)}
    known |= {name: value for name, value in (summary or {}).items() if name not in known}
    known |= numbers(known, column_of(run))
    for line in rounds:
        known |= recorded(line)
    known["warnings"] = tuple(caveats(run, rounds))
    for place in PLACES if run.exposures else ():
        bits, _ = exposures([run], place, most_repeated(run))
        if bits:
            known[f"exposure_{place}"] = sum(bits) / len(bits)
    return known | audited(run)


def audited(run: Run) -> dict[str, float]:
    """What an audit of a run found, as :func:`load_runs` has it; empty where there was none."""
    audit = run.audit
    if audit is None:
        return {}
    from fedkd.records import AGGREGATE, MEMBERSHIP

    formals = audit.get("guarantees", [audit["formal"]])
    by_who: dict[str, list[dict[str, Any]]] = {"": [], "_others": []}
    found = {
        f"formal_epsilon{who}": formal["epsilon"]
        for who, formal in zip(by_who, formals)
        if formal["epsilon"] is not None
    }
    for one in audit.get("attacks", {}).get("findings", []):
        if one["target"] == MEMBERSHIP:
            by_who["_others" if one["place"].startswith(AGGREGATE) else ""].append(one)
    for who, findings in by_who.items():
        if findings:
            found[f"membership_auc{who}"] = max(one["auc"][0] for one in findings)
            found[f"audited_epsilon{who}"] = max(one["epsilon"] or 0.0 for one in findings)
    return found


def frame(rows: list[dict[str, Any]]) -> DataFrame:
    """Rows as a data frame; a column of numbers of which some are missing is one of floats.

    Raises
    ------
    FedkdError
        A text, as the name of a folder, is not UTF-8.
    """
    from pandas import DataFrame

    try:
        found = DataFrame(rows)
    except UnicodeEncodeError as error:
        raise FedkdError(f"{plain(error.object)!r} is not UTF-8 (a name of a folder?)") from error
    for name in found.columns:
        if found[name].dtype.kind != "O":
            continue
        values = [value for value in found[name] if value is not None]
        if values and all(type(value) in (int, float) for value in values):
            found[name] = found[name].astype(float)
    return found


def _keys(run: Run) -> dict[str, Any]:
    tables = run.experiment.model_dump(mode="json")
    return {
        key: "+".join(map(str, value)) if isinstance(value, list) else value
        for key, value in flat(tables).items()
    }
