"""Sources that steps and terms name, checked against what the client has."""

from __future__ import annotations

import torch

from fedkd.errors import FedkdError, brief, nearest
from fedkd.fields import check_fields
from fedkd.forms import bounded
from fedkd.learner import Seen
from fedkd.shapes import Shapes
from fedkd.work import SOURCES, Rows, Samples, Source

KEY_OF = {
    "transfer": "data.transfer.size",
    "common": "data.test.common",
    "own": "data.test.fraction",
    "validation": "data.validation_fraction",
}
"""The key of an experiment that says how large a source is."""


class SourceChecker:
    """Checks sources; arrays that were ``seen`` in a phase are not looked through again."""

    def __init__(self, shapes: Shapes, seen: Seen) -> None:
        self._shapes, self._seen = shapes, seen

    def check(self, name: str, on: Source, client: int, of_term: bool = False) -> None:
        """Refuse what ``name``, a step or a term, cannot be on.

        Raises
        ------
        FedkdError
            One line: the source is not known, or has nothing in it, or its samples are none.
        """
        if isinstance(on, Samples):
            self._samples(name, on)
            if of_term and not len(on.inputs):
                raise FedkdError(f"{name}: on = {on!r} is not allowed; one sample at least")
            return
        if isinstance(on, Rows):
            check_fields(on)
            self.check(name, on.source, client, of_term)
            self._numbers(name, on, client)
            return
        if on not in SOURCES:
            raise FedkdError(
                f"{name}: on = {on!r} is not known{nearest(on, [*SOURCES])}; "
                f"known: {', '.join(SOURCES)}"
            )
        if self._shapes.empty(on):
            key = KEY_OF.get(on, "data.samples_per_client")
            raise FedkdError(f"{name}: on = {on!r} has no samples in this experiment; see {key}")
        if of_term and self._shapes.rows(on, client) == 0:
            raise FedkdError(f"{name}: on = {on!r} has no samples on client {client}")

    def _numbers(self, name: str, rows: Rows, client: int) -> None:
        """Refuse numbers of samples that are none, or that stand twice."""
        index, held = rows.index, self._shapes.held(rows.source, client)
        if held is not None and not 0 <= int(index.min()) <= int(index.max()) < held:
            raise FedkdError(
                f"{name}: Rows: index holds {int(index.min())} to {int(index.max())}; "
                f"{rows.source!r} has samples 0 to {held - 1} on client {client}"
            )
        if self._seen.add(index, "numbers") and len(index.unique()) < len(index):
            raise FedkdError(f"{name}: Rows: index names a sample twice; each once is needed")

    def _samples(self, name: str, samples: Samples) -> None:
        if not self._seen.add(samples, "samples"):
            return
        check_fields(samples)
        inputs, labels, task = samples.inputs, samples.labels, self._shapes.task
        if task.tokens and samples.cut:
            raise FedkdError(
                f"{name}: Samples: cut = {samples.cut!r} is not allowed with data.dataset = "
                f"{self._shapes.experiment.data.dataset!r}: blocks above a cut take the "
                "representations of a whole text, and these are of one token each"
            )
        dtype = torch.int64 if task.tokens else torch.float32
        # What enters above a cut depends on the student: fedkd.shapes.Student.check_entry.
        if not samples.cut and (inputs.dtype != dtype or inputs.shape[1:] != task.shape):
            raise FedkdError(
                f"{name}: Samples: inputs = {brief(inputs)} is not allowed; students take "
                f"(K, {', '.join(map(str, task.shape))}) of {dtype}"
            )
        if (
            task.tokens
            and len(inputs)
            and not 0 <= int(inputs.min()) <= int(inputs.max()) < (task.classes)
        ):
            raise FedkdError(f"{name}: Samples: inputs hold what is no token (0 to {task.classes})")
        if not task.tokens and (reason := bounded(inputs, "inputs")):
            raise FedkdError(f"{name}: Samples: {reason}")
        if labels is None:
            return
        wanted, least = (inputs.shape, -1) if task.tokens else (inputs.shape[:1], 0)
        if labels.shape != wanted:
            raise FedkdError(
                f"{name}: Samples: labels = {brief(labels)} is not allowed; one for each of "
                f"{tuple(wanted)} is needed"
            )
        if len(labels) and not least <= int(labels.min()) <= int(labels.max()) < task.classes:
            raise FedkdError(
                f"{name}: Samples: labels hold what is no class ({least} to {task.classes - 1})"
            )
