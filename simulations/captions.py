"""What a value of runs is called, and what a caption says of the runs that it is over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fedkd.caveats import FUSED, LOCAL, span
from fedkd.escaping import plain
from fedkd.headline import ACCURACY, HEADLINE, OTHER

if TYPE_CHECKING:
    from pandas import DataFrame

Best = Literal["max", "min"]

SMALLER = (
    *("exposure", "loss", "perplexity", "ece", "bytes", "seconds", "left_out", "rounds_to"),
    *("membership_auc", "audited_epsilon", "_std"),
)
"""Parts of the names of values of which less is better."""
RECORD = "record."
"""What the columns begin with that a strategy recorded."""

METRICS = {
    "accuracy": "test accuracy",
    "loss": "test loss",
    "ece": "expected calibration error",
    "perplexity": "perplexity",
}
OVER_CLIENTS = {
    "mean": "mean over clients",
    "std": "standard deviation over clients",
    "worst10": "mean over the worst 10 % of clients",
    "min": "of the worst client",
    "jain": "Jain's index over clients",
}
HEADLINES = {
    ACCURACY: "test accuracy, mean over clients, where each method's paper scores it",
    OTHER: "test accuracy, mean over clients, at the stage that a method's paper does not score",
}
TESTS = {"own": "clients' own test sets", "common": "the common test set"}
WORDS = {
    **{
        f"{begins}{what}_{when}": f"{what} loyalty of {whose} to their targets, {when} distillation"
        for begins, whose in (
            ("loyalty_", "clients' students"),
            ("loyalty_server_", "the server's"),
        )
        for what in ("label", "probability")
        for when in ("before", "after")
    },
    "bytes_up": "sent by all clients in the run",
    "bytes_down": "sent to all clients in the run",
    "seconds": "time of the run",
    "seconds_clients": "time of all clients' work in the run",
    "left_out": "replies of clients that were left out, in the run",
}


def shown(value: str) -> tuple[float, str, int]:
    """How a value is shown: factor, unit, digits after the point."""
    if ("accuracy" in value and "jain" not in value) or value.startswith("loyalty_"):
        return 100.0, "%", 1
    if value.startswith("bytes"):
        return 1e-6, "MB", 2
    if value.startswith("seconds"):
        return 1.0, "s", 1
    if value.startswith("exposure"):
        return 1.0, "bits", 2
    return 1.0, "", 1 if "perplexity" in value else 3


def direction(value: str) -> Best | None:
    """Whether more or less of a value is better, by its name.

    None of what a strategy recorded, and of what is guaranteed, which is a setting.
    """
    if value.startswith((RECORD, "formal_")):
        return None
    return "min" if any(part in value for part in SMALLER) else "max"


def described(value: str) -> str:
    """A value in words: what, on which test set, over whom, and at which stage of a round."""
    what = rf"({'|'.join(METRICS)})_({'|'.join(OVER_CLIENTS)})"
    if found := re.fullmatch(rf"({'|'.join(TESTS)})_(?:(\w+)_)?{what}(_local)?", value):
        tests, named, metric, over, local = found.groups()
        of = f" of {named!r}" if named else ""
        stage = LOCAL if local else FUSED
        return f"{METRICS[metric]}{of} on {TESTS[tests]}, {OVER_CLIENTS[over]}, {stage}"
    if value in HEADLINES:
        return HEADLINES[value]
    if value.startswith(RECORD):
        return f"{value.removeprefix(RECORD)}, as last recorded by the strategy"
    if value.startswith("exposure_"):
        place = value.removeprefix("exposure_")
        return f"exposure of the most repeated secrets, {place}, mean over secrets"
    return WORDS.get(value, value.replace("_", " "))


def headlines(frame: DataFrame) -> str:
    """Which column of its runs each method's paper scores, and where it was not measured."""
    methods: dict[str, list[str]] = {}
    lacking: dict[str, None] = {}
    for line in frame[["strategy.name", HEADLINE, ACCURACY]].to_dict("records"):
        column, name = line[HEADLINE], plain(line["strategy.name"])
        if line[ACCURACY] != line[ACCURACY]:  # NaN
            lacking[name] = None
        if isinstance(column, str) and name not in methods.setdefault(column, []):
            methods[column].append(name)
    said = "; ".join(f"{column} of {', '.join(names)}" for column, names in methods.items())
    missing = f" Not measured in runs of {', '.join(lacking)}." if lacking else ""
    return (
        f"Papers score {said}.{missing} The other stage of a student of another name is the "
        "clients' own students', after fusion."
    )


def subject(
    frame: DataFrame, value: str, unit: str, across: Sequence[str], seeds: Sequence[int]
) -> str:
    """``Test accuracy on clients' own test sets, …, in %, by data.alpha; digits, 10 clients, …``.

    ``seeds`` are how many an entry is over, each number once.
    """
    words = described(value)
    by = f", by {', '.join(across)}" if across else ""
    facts = [_datasets(frame)]
    for name, noun in (("data.clients", "client"), ("rounds", "round")):
        facts.append(span(frame[name].dropna(), noun) if name in frame else "")
    facts.append(span(seeds, "seed"))
    what = f"{words[:1].upper()}{words[1:]}{f', in {unit}' if unit else ''}{by}"
    return f"{what}; {', '.join(filter(None, facts))}."


def _datasets(frame: DataFrame) -> str:
    names: Sequence[Any] = (
        list(dict.fromkeys(frame["data.dataset"])) if "data.dataset" in frame else []
    )
    return "" if len(names) > 2 else " and ".join(str(name).rsplit("/", 1)[-1] for name in names)
