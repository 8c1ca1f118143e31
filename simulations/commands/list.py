"""``fedkd list``: what can be named in an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd import registry
from fedkd.errors import FedkdError, nearest, shown
from fedkd.simulations.commands.options import examples
from fedkd.simulations.shipped import shipped

KINDS = (
    *("strategies", "datasets", "students", "partitions", "objectives", "experiments"),
    *("suites", "claims"),
)


EXAMPLES = examples("fedkd list strategies", "fedkd list experiments")


def list_(
    kind: Annotated[str, typer.Argument(show_default=False)],
) -> None:
    """List what can be named in an experiment, a line each.

    KIND is one of: strategies, datasets, students, partitions, objectives, experiments, suites,
    claims.
    """
    if kind not in KINDS:
        raise FedkdError(
            f"list {kind!r} is not known{nearest(kind, list(KINDS))}; known: {', '.join(KINDS)}"
        )
    described = _described(kind)
    width = max(map(len, described), default=0)
    for name, text in described.items():
        print(f"{name:{width}}  {text}".rstrip())


def _described(kind: str) -> dict[str, str]:
    """Name and one line of everything of a kind."""
    if kind == "experiments":
        return {name: _first_comment(file) for name, file in shipped().items()}
    if kind == "suites":
        from fedkd.simulations.suite import suites

        return {name: _first_comment(file) for name, file in suites().items()}
    if kind == "claims":
        from fedkd.simulations.claim import claims as known

        return {name: claim.statement for name, claim in known().items()}
    described = registry.described(kind)
    if kind == "objectives":
        return {name: f"{text} {_expected(name)}".rstrip() for name, text in described.items()}
    return described


def _expected(name: str) -> str:
    """What an objective is given besides, where it is not allowed, and its options' defaults."""
    from fedkd.distillation.objectives import Objective, traits

    try:
        found = registry.load("objectives", name)
    except FedkdError:  # its line says so
        return ""
    expects = traits(found)
    told = [f"needs {', '.join(expects.needs)}"] if expects.needs else []
    told += ["takes logits"] if expects.targets == "logits" else []
    told += ["no candidates"] if expects.targets == "logits" or not expects.among else []
    if isinstance(found, type) and issubclass(found, Objective):
        told += [
            f"{option} = {'required' if field.is_required() else shown(field.default)}"
            for option, field in found.model_fields.items()
        ]
    return f"({'; '.join(told)})" if told else ""


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
