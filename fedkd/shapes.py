"""Shapes of all that may travel in a run, as they follow from what the server knows.

Numbers of rows come from the simulator, which knows how much data each client has; the rest from
the task, the transfer set, ``[release]`` and the students' architectures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedkd import students
from fedkd.data.dataset import Task
from fedkd.errors import FedkdError, brief
from fedkd.experiment import Experiment
from fedkd.students.pair import table_of
from fedkd.training import item_counts, items, learning_names, represent
from fedkd.training.student import names_around
from fedkd.work import SOURCES, Assignment, Hold, Rows, Samples, Source, origin

if TYPE_CHECKING:
    from fedkd.data.federated import FederatedData


@dataclass(frozen=True)
class Sizes:
    """How much data each of N clients has.

    ``samples`` ``(N,)`` counts private training samples. ``rows`` has, for each named source, the
    rows that ``Predict`` gives of it on each client ``(N,)``: a sample or, of text, a token a row.
    ``tokens`` has, of text, the tokens of each of their samples ``(K,)`` on each client. What is
    not in them is not known, and not checked.
    """

    samples: Sequence[int] | None = None
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    tokens: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: FederatedData) -> Sizes:
        """The sizes of ``data``."""
        samples, clients = data.sizes().tolist(), range(data.clients)
        if not data.task.tokens:
            counted = {on: [data.count(on, n) for n in clients] for on in SOURCES[1:]}
            return cls(samples, {"private": samples, **counted})
        shared = {"common": data.common(), "transfer": data.transfer()}
        tokens = {on: [_tokens(given)] * len(clients) for on, given in shared.items()}
        for on in ("private", "own", "validation"):
            tokens[on] = [_tokens(getattr(data, on)(client)) for client in clients]
        rows = {on: [int(each.sum()) for each in counts] for on, counts in tokens.items()}
        return cls(samples, rows, tokens)


def _tokens(samples: Samples) -> Tensor:
    counts = item_counts(samples.inputs)
    return torch.ones(len(samples.inputs), dtype=torch.long) if counts is None else counts


def rows_of(samples: Samples) -> int:
    """Rows that ``Predict`` gives of ``samples``: of text, tokens."""
    inputs = samples.inputs
    return len(inputs) if inputs.is_floating_point() else len(items(inputs))


class Student:
    """Shapes of a student: ``state`` has those of its parameters and buffers, with their dtypes.

    Parameters
    ----------
    module
        A student of this architecture, never trained.
    inputs
        Some inputs ``(K, ...)`` that it takes, if the shapes of representations are asked for.
    """

    def __init__(self, module: nn.Sequential, inputs: Tensor | None = None) -> None:
        self.module, self._inputs = module, inputs
        self.state = {
            name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()
        }
        self._representations: dict[str, torch.Size] = {}
        self._parts: dict[tuple[str, ...], dict[str, tuple[torch.Size, torch.dtype]]] = {}

    def part(self, part: tuple[str, ...]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shapes and dtypes of the parameters and buffers in the blocks that ``part`` names.

        Raises
        ------
        FedkdError
            A name is not a block.
        """
        if part not in self._parts:
            names = students.part_names(self.module, part)
            self._parts[part] = {name: self.state[name] for name in names}
        return self._parts[part]

    def learning(self, part: tuple[str, ...]) -> list[str]:
        """Names of the parameters in the blocks that ``part`` names."""
        return learning_names(self.module, part)

    def around(self, below: str, cut: str) -> dict[str, torch.Size]:
        """Shapes of the parameters and buffers up to ``below`` and above ``cut``.

        Raises
        ------
        FedkdError
            There is no such cut, or no block between the two.
        """
        return {name: self.state[name][0] for name in names_around(self.module, below, cut)}

    def between(self, lower: str, upper: str = "") -> set[str]:
        """Names of the parameters and buffers above the cut ``lower``, up to the cut ``upper``.

        Raises
        ------
        FedkdError
            There is no such cut.
        """
        last = students.cut_index(self.module, upper) if upper else None
        blocks = self.module[students.cut_index(self.module, lower) : last]
        return {*blocks.state_dict()}

    def check_entry(self, samples: Samples) -> None:
        """Refuse samples that are to enter above a cut and do not fit there.

        Raises
        ------
        FedkdError
            One line: there is no such cut, or representations there are of another shape.
        """
        if not samples.cut:
            return
        shape, inputs = self.representation(samples.cut), samples.inputs
        if inputs.shape[1:] != shape or inputs.dtype != torch.float32:
            raise FedkdError(
                f"Samples: inputs = {brief(inputs)} is not allowed with cut = {samples.cut!r}; "
                f"representations there are (K, {', '.join(map(str, shape))}) of torch.float32"
            )

    def representation(self, cut: str, pool: bool = False) -> torch.Size:
        """Shape of one row's representation at ``cut``; with ``pool``, of its mean over places.

        Raises
        ------
        FedkdError
            There is no such cut.
        """
        assert self._inputs is not None
        if cut not in self._representations:
            self._representations[cut] = represent(self.module, self._inputs, cut)[0].shape[1:]
        shape = self._representations[cut]
        return torch.Size(shape[:1]) if pool and len(shape) == 3 else shape


class Shapes:
    """Shapes of what clients send and get.

    Parameters
    ----------
    experiment, task, sizes
        The run, the shape of an input and the classes, and how much data there is.
    released : int, optional
        Columns of soft labels that ``[release]`` lets out, where these are not the classes.
    secrets : int
        Number of planted secrets.
    """

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        sizes: Sizes,
        released: int | None = None,
        secrets: int = 0,
    ) -> None:
        self.experiment, self.task, self.sizes = experiment, task, sizes
        self.classes, self.secrets = task.classes, secrets
        self.released = task.classes if released is None else released
        self._students: dict[str, Student] = {}
        self._networks: dict[tuple[str, torch.Size], Student] = {}
        self._rows: dict[int, tuple[int | None, ...]] = {}

    def samples(self, client: int) -> int | None:
        """Private training samples of ``client``; None where that is not known."""
        return None if self.sizes.samples is None else int(self.sizes.samples[client])

    def rows(self, on: Source, client: int) -> int | None:
        """Rows of a source, as ``Predict`` gives them; None where that is not known."""
        if isinstance(on, Samples):
            return rows_of(on)
        if isinstance(on, Rows):
            if not self.task.tokens:
                return len(on.index)
            tokens = self.sizes.tokens.get(on.source)
            return None if tokens is None else int(tokens[client][on.index].sum())
        return int(self.sizes.rows[on][client]) if on in self.sizes.rows else None

    def held(self, on: str, client: int) -> int | None:
        """Samples of a named source; None where that is not known."""
        if self.task.tokens:
            return len(self.sizes.tokens[on][client]) if on in self.sizes.tokens else None
        return self.rows(on, client)

    def all_rows(self, client: int) -> tuple[int | None, ...]:
        """Rows of each named source."""
        if client not in self._rows:
            self._rows[client] = tuple(self.rows(on, client) for on in SOURCES)
        return self._rows[client]

    def empty(self, on: str) -> bool:
        """Whether nobody has a sample of a named source."""
        return on in self.sizes.rows and not any(self.sizes.rows[on])

    def labelled(self, on: Source) -> bool:
        """Whether the samples of a source have labels."""
        if isinstance(on, Samples):
            return on.labels is not None
        known = self.task.tokens or self.experiment.data.transfer.labels
        return origin(on) != "transfer" or known

    def student(self, architecture: str) -> Student:
        """The shapes of students of this architecture.

        Raises
        ------
        FedkdError
            There is no such architecture, or it does not fit the data.
        """
        if architecture not in self._students:
            task = self.task
            module = students.build(
                *(architecture, task.shape, task.classes, table_of(self.experiment), 0),
                tokens=task.tokens,
            )
            self._students[architecture] = Student(module, self._inputs)
        return self._students[architecture]

    def network(self, architecture: str, shape: torch.Size) -> Student:
        """The shapes of an architecture that takes representations of ``shape``.

        Raises
        ------
        FedkdError
            There is no such architecture, or it does not fit them.
        """
        if (architecture, shape) not in self._networks:
            table, classes = self.experiment.student, self.task.classes
            module = students.build(architecture, tuple(shape), classes, table, 0)
            self._networks[architecture, shape] = Student(module)
        return self._networks[architecture, shape]

    @cached_property
    def _inputs(self) -> Tensor:
        dtype = torch.long if self.task.tokens else torch.float32
        return torch.ones(1, *self.task.shape, dtype=dtype)


def architectures(
    experiment: Experiment,
    client: int,
    kept: Mapping[str, str],
    assignment: Assignment | None = None,
) -> dict[str, str]:
    """The architecture of each student of ``client``, by name, with those an assignment adds.

    ``kept`` has those that earlier assignments added. The first ``Hold`` of a name counts.
    """
    own = experiment.architecture(client)
    found = {"own": own, **kept}
    for step in assignment.steps if assignment is not None else ():
        if isinstance(step, Hold):
            found.setdefault(step.student, step.model or own)
    return found
