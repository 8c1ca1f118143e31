"""All keys of an experiment, from the code: ``python -m fedkd.simulations.reference``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fedkd import registry
from fedkd.experiment import Experiment

HEAD = """# Keys of an experiment

Made by `python -m fedkd.simulations.reference > docs/experiment.md`; a test holds it to the code.

Values are taken as they stand: `"10"`, `10.0` and `true` are no whole numbers, `"false"` is not
`false`. A whole number may stand for a fraction, and a single value for a list of one:
`student.models = "cnn3"`. `--set KEY=VALUE` takes TOML, or else a plain string; the last `--set` of
a key counts, and a table, `--set 'data={alpha=1}'`, sets its own keys and leaves the others.

A key that was set and has no effect is a warning that stays with the run's numbers, as
`training.momentum = 0.9 has no effect: training.optimiser = 'adam'`.
"""


def reference() -> str:
    """Every key, its default and what it means, as Markdown."""
    parts = [HEAD, *_tables("the top of the file", Experiment, "")]
    parts.append("\n## Options of the strategies\n\nKeys of `[strategy]` besides `name`.\n")
    for name in registry.names("strategies"):
        options = registry.load("strategies", name).Options
        if options.model_fields:
            parts += _tables(f"`strategy.name = {name!r}`", options, "strategy.", "###")
    return "\n".join(parts) + "\n"


def options_table(options: type[BaseModel]) -> str:
    """A method's own keys of ``[strategy]``; nothing where it has none."""
    if not options.model_fields:
        return ""
    _, *rows = _tables("", options, "strategy.")
    return "\n".join(rows).strip()


def _tables(title: str, model: type[BaseModel], prefix: str, level: str = "##") -> list[str]:
    rows, inner = [], []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            inner += _tables(f"`[{prefix}{name}]`", kind, f"{prefix}{name}.", level)
        else:
            meaning = " ".join((field.description or "").split()).replace("``", "`")
            rows.append(f"| `{prefix}{name}` | {_written(field.default)} | {meaning} |")
    head = [
        f"{level} {title[:1].upper()}{title[1:]}\n",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    return [*head, *rows, "", *inner]


def _written(value: Any) -> str:
    if value is None:
        return "none"
    text = str(list(value)) if isinstance(value, tuple) else repr(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


if __name__ == "__main__":
    print(reference(), end="")
