"""Arrays that hooks have given to steps, watched until these are sent."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from torch import Tensor

from fedkd.errors import FedkdError


class Given:
    """Arrays as they were when a hook returned them: a step holds them until it is sent."""

    def __init__(self) -> None:
        self._arrays: dict[int, tuple[Tensor, int]] = {}
        self._groups: dict[int, tuple[dict[str, Tensor], list[int]]] = {}

    def add(self, thing: Any) -> None:
        """Note the arrays of a step, and refuse one that has been written to since it was noted."""
        if isinstance(thing, Tensor):
            _, version = self._arrays.setdefault(id(thing), (thing, _version(thing)))
            if version != _version(thing):
                raise _overwritten()
        elif isinstance(thing, dict):
            _, now = self._groups.setdefault(id(thing), (thing, [*map(id, thing.values())]))
            if now != [*map(id, thing.values())]:
                raise _overwritten()
            for item in thing.values():
                self.add(item)
        elif is_dataclass(thing):
            for item in vars(thing).values():
                self.add(item)
        elif isinstance(thing, list | tuple):
            for item in thing:
                self.add(item)

    def check(self) -> None:
        """Refuse what has been written to since it was noted."""
        if any(version != _version(array) for array, version in self._arrays.values()) or any(
            now != [*map(id, group.values())] for group, now in self._groups.values()
        ):
            raise _overwritten()

    def clear(self) -> None:
        """Forget everything."""
        self._arrays.clear()
        self._groups.clear()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _overwritten() -> FedkdError:
    return FedkdError(
        "an array of these steps was written to after it had been given to another client or step, "
        "which would get the new values too; give each an array of its own (.clone())"
    )
