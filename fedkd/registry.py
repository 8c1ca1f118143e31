"""Strategies, datasets, students and objectives, found by name.

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

from fedkd.errors import FedkdError, nearest

GROUPS = {
    "strategies": "strategy.name",
    "datasets": "data.dataset",
    "students": "student.models",
    "objectives": "objective",
}

_added: dict[tuple[str, str], Any] = {}


def register(group: str, name: str) -> Callable[[Any], Any]:
    """Decorator that adds an object to ``group`` for this process: for notebooks and tests."""

    def add(thing: Any) -> Any:
        _added[group, name] = thing
        return thing

    return add


def load(group: str, name: str) -> Any:
    """The object called ``name`` in ``group``.

    Raises
    ------
    FedkdError
        If no such name is known; the line names the nearest and all that are known.
    """
    if (group, name) in _added:
        return _added[group, name]
    points = _points(group)
    if name not in points:
        known = names(group)
        said = f"{GROUPS[group]} = {name!r} is not known{nearest(name, known)}"
        raise FedkdError(f"{said}; known: {', '.join(known)}")
    with _default_type_kept():
        return points[name].load()


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


def described(group: str) -> dict[str, str]:
    """Name and first docstring line of everything in ``group``."""
    return {name: (load(group, name).__doc__ or "").strip().split("\n")[0] for name in names(group)}


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
