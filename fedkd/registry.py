"""Strategies, datasets, partitions, students and objectives, found by name.

They are Python entry points, so a user's own package adds one without touching fedkd::

    [project.entry-points."fedkd.strategies"]
    mine = "my_package.mine:Mine"

Where fedkd runs from its source folder without being installed (Flower unpacks an app's folder and
puts it on the path), fedkd's own entry points are read from the ``pyproject.toml`` beside it.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError, blamed, nearest

GROUPS = {
    "strategies": "strategy.name",
    "datasets": "data.dataset",
    "students": "student.models",
    "partitions": "data.partition",
    "objectives": "objective",
}

KINDS = {
    "strategies": "a subclass of fedkd.strategies.base.KnowledgeStrategy",
    "datasets": "a function (folder, download) that returns a Dataset or a Corpus",
    "students": "a function (shape, classes, norm, width) that returns a torch.nn.Sequential",
    "partitions": "a function (labels, writers, table, seed) that returns each client's rows",
    "objectives": "a function (logits, targets, temperature) that returns the losses, or a "
    "subclass of fedkd.distillation.objectives.Objective",
}
"""What a name of each group stands for."""

_added: dict[tuple[str, str], Any] = {}


def register(group: str, name: str) -> Callable[[Any], Any]:
    """Decorator that adds an object to ``group`` for this process: for notebooks and tests."""

    def add(thing: Any) -> Any:
        _added[group, name] = thing
        return thing

    return add


def load(group: str, name: str, key: str = "") -> Any:
    """The object called ``name`` in ``group``; ``key`` is where it was chosen, if not as usual.

    Raises
    ------
    FedkdError
        No such name is known (the line names the nearest and all that are known); its module cannot
        be imported (the line says why, and where); or it is not what the group holds.
    """
    setting = f"{key or GROUPS[group]} = {name!r}"
    if (group, name) in _added:
        thing = _added[group, name]
    else:
        points = _points(group)
        if name not in points:
            known = names(group)
            raise FedkdError(
                f"{setting} is not known{nearest(name, known)}; known: {', '.join(known)}"
            )
        with blamed(f"{setting}: the import of {points[name].value}"), _default_type_kept():
            thing = points[name].load()
    right = callable(thing)
    if group == "strategies":
        right = isinstance(thing, type) and hasattr(thing, "read_options")
    elif group == "objectives" and isinstance(thing, type):
        right = hasattr(thing, "model_fields") and hasattr(thing, "__call__")  # noqa: B004
    if not right:
        raise FedkdError(f"{setting} is of type {type(thing).__name__}; it must be {KINDS[group]}")
    return thing


@contextmanager
def _default_type_kept() -> Iterator[None]:
    """Have torch's default type be after a user's module was imported what it was before."""
    torch = sys.modules.get("torch")
    before = torch.get_default_dtype() if torch else None
    yield
    if torch := sys.modules.get("torch"):
        torch.set_default_dtype(before or torch.float32)


def names(group: str) -> list[str]:
    """All known names in ``group``, sorted."""
    return sorted({*_points(group), *(name for kind, name in _added if kind == group)})


def registered(group: str) -> list[str]:
    """Names in ``group`` that only this process knows, sorted."""
    return sorted(name for kind, name in _added if kind == group)


def shipped(group: str) -> list[str]:
    """Names in ``group`` of what comes with fedkd, sorted; nothing is imported for it."""
    return sorted(
        name for name, point in _points(group).items() if point.module.startswith("fedkd.")
    )


def ships(thing: Any) -> bool:
    """Whether a class or function is fedkd's own, and nobody else's."""
    return str(thing.__module__).partition(".")[0] == "fedkd"


def described(group: str) -> dict[str, str]:
    """Name and first docstring line of everything in ``group``, or why it cannot be loaded."""
    found = {}
    for name in names(group):
        try:
            found[name] = (load(group, name).__doc__ or "").strip().split("\n")[0]
        except FedkdError as error:
            found[name] = f"cannot be loaded: {error}"
    return found


@cache
def _points(group: str) -> dict[str, EntryPoint]:
    key = f"fedkd.{group}"
    points = {point.name: point for point in _own_points(key)}
    points.update({point.name: point for point in entry_points(group=key)})
    return points


def _own_points(key: str) -> list[EntryPoint]:
    project = Path(__file__).parent.parent / "pyproject.toml"
    if not project.is_file():
        return []
    declared = tomllib.loads(project.read_text()).get("project", {}).get("entry-points", {})
    return [EntryPoint(name, value, key) for name, value in declared.get(key, {}).items()]
