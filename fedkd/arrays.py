"""Flower arrays that are not serialised until somebody looks at their bytes."""

from __future__ import annotations

from functools import cache

import flwr.app as app
import numpy as np

_name = cache(str)
"""A dtype's name, which numpy makes up anew each time."""


class Array(app.Array):
    """Flower's, which holds a numpy array; messages that stay in a process never copy it.

    Its name is Flower's too, as that is what a serialised message says an array is. Both sides look
    at the same memory, and neither may write to it.
    """

    _ndarray: np.ndarray
    _data: bytes | None

    def __init__(self, ndarray: np.ndarray) -> None:
        # Not one by one: Flower's __setattr__ keeps a record of changes.
        vars(self).update(
            dtype=_name(ndarray.dtype),
            shape=tuple(ndarray.shape),
            stype="numpy.ndarray",
            _ndarray=ndarray,
            _data=None,
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array as Flower serialises it."""
        if self._data is None:
            self._data = app.Array(self._ndarray).data
        return self._data

    def numpy(self) -> np.ndarray:
        """The array itself."""
        return self._ndarray
