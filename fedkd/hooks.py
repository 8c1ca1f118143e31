"""What a strategy's hooks may return, and what it may keep: the contract with a method's author.

Each function here takes what a hook has returned and gives it back in the type that the rest of
fedkd expects, or says in one line what is wrong with it. What the steps themselves may hold is in
:mod:`fedkd.fields`, :mod:`fedkd.terms` and :mod:`fedkd.steps`.
"""

from __future__ import annotations

import inspect
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fedkd.errors import FedkdError, blamed, brief
from fedkd.fields import STEPS, TERMS
from fedkd.headline import check_headline
from fedkd.privacy.average import Averaging
from fedkd.training_tables import ServerTable
from fedkd.work import Step

HOOKS: dict[str, tuple[str, ...]] = {
    "setup": (),
    "setup_server": (),
    "begin_round": ("round",),
    "select": ("round",),
    "learn": ("round", "client"),
    "averaging": ("round",),
    "fuse": ("round", "replies"),
    "receive": ("round", "client"),
    "deploy": ("round", "client"),
    "score": ("round", "client"),
    "measure": ("round", "client"),
    "fused_labels": ("client", "steps"),
    "record": ("round", "replies", "label_counts"),
    "end_round": ("round", "replies"),
    "stop": ("round",),
}
"""What each hook is given."""
KEPT = "tensors, numbers, strings, True, False, None, and lists, tuples and dictionaries of them"
"""What a strategy may keep on itself: what a checkpoint can hold."""
CHANGEABLE = (Tensor, dict, list, set, tuple, int, float, str, bool, type(None))
"""What is watched of a class."""
LARGEST_WHOLE = 2**63
"""Whole numbers of a line are less than this, as tables cannot hold larger ones."""
DEEPEST = 30
"""Lists and dictionaries that may lie in one another."""


class blaming:
    """A context in which the line of any error begins with ``where(*place)``.

    Raises
    ------
    FedkdError
        What went wrong, in one line; of an exception, with its class and its place in the author's
        file.
    """

    def __init__(self, where: Callable[..., str], *place: Any) -> None:
        self._where, self._place = where, place

    def __enter__(self) -> None:
        """Nothing is made before something goes wrong."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        where = self._where(*self._place)
        if isinstance(error, FedkdError):
            raise type(error)(f"{where}: {error}") from error
        with blamed(where):
            raise error


def check_hooks(strategy: Any) -> None:
    """Refuse hooks that cannot be called with what they are given, and what is no headline.

    Raises
    ------
    FedkdError
        One line naming the hook, its parameters and those that it gets.
    """
    check_headline(type(strategy).headline)
    if not isinstance(own := type(strategy).server_training, ServerTable):
        raise FedkdError(
            f"server_training = {brief(own)} is not allowed; allowed: a ServerTable(...)"
        )
    for name, given in HOOKS.items():
        hook = getattr(strategy, name)
        wanted = f"{name}(self{''.join(f', {each}' for each in given)})"
        if not callable(hook):
            raise FedkdError(f"{name} = {brief(hook)} is not allowed; allowed: a method {wanted}")
        try:
            signature = inspect.signature(hook)
            signature.bind(*given)
        except TypeError as error:
            raise FedkdError(
                f"{name} cannot be called with ({', '.join(given)}): {error}; it is to be {wanted}"
            ) from error
        if inspect.isgeneratorfunction(hook) or inspect.iscoroutinefunction(hook):
            raise FedkdError(
                f"{name} is a generator or coroutine; it is to return its result, not to yield it"
            )


# --- what hooks return ----------------------------------------------------------------------


def as_steps(value: Any) -> tuple[Step, ...]:
    """The steps that ``learn``, ``receive``, ``deploy``, ``score`` or ``measure`` returned."""
    kinds = ", ".join(kind.__name__ for kind in STEPS)
    if not isinstance(value, list | tuple):
        hint = ""
        if type(value) in STEPS:
            hint = f"; one step alone is [{type(value).__name__}(...)]"
        elif value is None:
            hint = "; without any it is []"
        raise FedkdError(f"returned {brief(value)}; allowed: a list of steps ({kinds}){hint}")
    for step in value:
        if type(step) not in STEPS:
            hint = ", which is a term of Fit" if type(step) in TERMS else ""
            raise FedkdError(f"returned {brief(step)} among the steps{hint}; steps are {kinds}")
    return tuple(value)


def as_selection(value: Any, clients: int) -> list[int]:
    """The clients that ``select`` returned: at least one, each once."""
    allowed = f"allowed: a list of whole numbers from 0 to {clients - 1}, each once, one at least"
    if not isinstance(value, list | tuple | range) or not len(value):
        raise FedkdError(f"returned {brief(value)}; {allowed}")
    for client in value:
        if type(client) is not int or not 0 <= client < clients:
            raise FedkdError(f"returned {brief(client)} among the clients; {allowed}")
    if len({*value}) < len(value):
        twice = next(client for client, count in Counter(value).items() if count > 1)
        raise FedkdError(f"returned client {twice} twice; {allowed}")
    return list(value)


def as_decision(value: Any) -> bool:
    """Whether ``stop`` ends the run."""
    if type(value) is not bool:
        raise FedkdError(f"returned {brief(value)}; allowed: True or False")
    return value


def as_averaging(value: Any) -> Averaging | None:
    """What ``averaging`` returned."""
    if value is not None and not isinstance(value, Averaging):
        raise FedkdError(f"returned {brief(value)}; allowed: an Averaging, or None")
    return value


def as_nothing(value: Any) -> None:
    """What ``setup``, ``setup_server``, ``fuse``, ``begin_round`` and ``end_round`` return."""
    if value is not None:
        raise FedkdError(
            f"returned {brief(value)}, which nobody reads; keep what is needed later on self"
        )


def as_labels(value: Any, shape: tuple[int, ...]) -> Tensor | None:
    """The soft labels that ``fused_labels`` returned, of ``shape``, or None."""
    if value is None:
        return None
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != shape:
        raise FedkdError(f"returned {brief(value)}; allowed: soft labels of shape {shape}, or None")
    return value


def as_line(value: Any) -> dict[str, Any]:
    """The numbers that ``record`` returned, which JSON can hold."""
    if not isinstance(value, dict):
        raise FedkdError(f"returned {brief(value)}; allowed: a dictionary of numbers by name")
    _check_json(value, "", 0)
    return value


def _check_json(value: Any, place: str, depth: int) -> None:
    where = f"{place} = " if place else ""
    if depth > DEEPEST:
        raise FedkdError(f"returned {place}, more than {DEEPEST} deep")
    if isinstance(value, dict):
        for name, item in value.items():
            if type(name) is not str:
                raise FedkdError(
                    f"returned {where}a dictionary with the key {brief(name)}; "
                    "allowed: keys that are strings"
                )
            _check_text(name, f"{where}a dictionary with the key ")
            _check_json(item, f"{place}.{name}" if place else name, depth + 1)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_json(item, f"{place}[{number}]", depth + 1)
    elif isinstance(value, str):
        _check_text(value, where)
    elif type(value) is int and abs(value) >= LARGEST_WHOLE:
        raise FedkdError(
            f"returned {where}a whole number of {value.bit_length()} bits; allowed: up to 63 bits, "
            "or a float()"
        )
    elif value is not None and not isinstance(value, bool | int | float):
        raise FedkdError(
            f"returned {where}{brief(value)}; allowed: numbers, strings, True, False, None, and "
            "lists and dictionaries of them (of a tensor, .tolist() or float())"
        )


def _check_text(text: str, where: str) -> None:
    if not text.isascii() and text.encode(errors="ignore").decode() != text:
        raise FedkdError(f"returned {where}{brief(text)}, which is no text that can be written")


# --- what a strategy keeps ------------------------------------------------------------------


class Keeping:
    """Watches what a strategy keeps on itself beside the ``fixed`` attributes of its base class."""

    def __init__(self, fixed: Collection[str]) -> None:
        self.fixed = fixed
        self._checked: dict[str, type] = {}
        self._classes: list[type] = []
        self._shared: dict[str, Any] = {}

    def begin(self, strategy: type, base: type) -> None:
        """Note what the classes of a strategy hold, up to ``base``: see :meth:`check_classes`."""
        own = strategy.__mro__[: strategy.__mro__.index(base)]
        self._classes = [kind for kind in own if kind.__module__ != base.__module__]
        self._shared = self._held()

    def check_classes(self) -> None:
        """Refuse what has changed in a class, which all its strategies share.

        Raises
        ------
        FedkdError
            One line naming the class and the attribute: no checkpoint has it.
        """
        now = self._held()
        for name in now:
            if name not in self._shared or self._shared[name] != now[name]:
                _, _, attribute = name.partition(".")
                raise FedkdError(
                    f"{name} has changed, an attribute of the class: no checkpoint has it, and the "
                    f"next run would begin with it; begin with self.{attribute} = ... in setup"
                )

    def _held(self) -> dict[str, Any]:
        return {
            f"{kind.__name__}.{name}": trace(value)
            for kind in self._classes
            for name, value in vars(kind).items()
            if isinstance(value, CHANGEABLE) and not name.startswith("__")
        }

    def check(self, attributes: Mapping[str, Any], deeply: bool = False) -> None:
        """Refuse what no checkpoint can hold.

        Parameters
        ----------
        attributes
            ``vars(strategy)``.
        deeply
            Look through everything; else through what is new, or of another type than before.

        Raises
        ------
        FedkdError
            One line naming the attribute, what it holds, and what is allowed.
        """
        for name, value in attributes.items():
            if name in self.fixed or (not deeply and self._checked.get(name) is type(value)):
                continue
            _check_kept(value, f"self.{name}", 0)
            self._checked[name] = type(value)


def trace(value: Any) -> Any:
    """What a value is now, told by identity and version of arrays: whether it was touched."""
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, dict):
        return {key: trace(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [trace(item) for item in value]
    return repr(value)


def check_state(state: Any) -> None:
    """Refuse a state that no checkpoint can hold, as a method with a ``state()`` of its own has.

    Raises
    ------
    FedkdError
        One line naming the entry, what it holds, and what is allowed.
    """
    if type(state) is not dict:
        raise FedkdError(f"returned {brief(state)}; allowed: a dictionary")
    _check_kept(state, "what it returned", 0)


def _check_kept(value: Any, place: str, depth: int) -> None:
    kind = type(value)
    if kind in (int, float, bool, str, type(None)):
        return
    if depth > DEEPEST:
        raise FedkdError(f"{place} lies more than {DEEPEST} lists or dictionaries deep")
    if kind in (torch.Tensor, torch.nn.Parameter):
        if value.requires_grad and not value.is_leaf:
            raise FedkdError(
                f"{place} holds a tensor with the graph that it was computed by; keep .detach() "
                "of it"
            )
    elif kind in (list, tuple, torch.Size):
        for number, item in enumerate(value):
            _check_kept(item, f"{place}[{number}]", depth + 1)
    elif kind in (dict, OrderedDict):
        for key, item in value.items():
            _check_kept(key, f"a key of {place}", depth + 1)
            _check_kept(item, f"{place}[{brief(key)}]", depth + 1)
    else:
        students = isinstance(value, torch.nn.Module)
        hint = "; students that the server trains go into self.server" if students else ""
        raise FedkdError(
            f"{place} holds {brief(value)}, which no checkpoint can; a strategy keeps {KEPT}{hint}"
        )
