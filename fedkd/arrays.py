"""Flower arrays that are not serialised until somebody looks at their bytes."""

from __future__ import annotations

import flwr.app as app
import numpy as np


class Array(app.Array):
    """Flower's, which holds a numpy array; messages that stay in a process never copy it.

    Its name is Flower's too, as that is what a serialised message says an array is. Both sides look
    at the same memory, and neither may write to it.
    """

    def __init__(self, ndarray: np.ndarray) -> None:
        self.dtype, self.shape = str(ndarray.dtype), tuple(ndarray.shape)
        self.stype = "numpy.ndarray"
        self._ndarray = ndarray
        self._data: bytes | None = None

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array as Flower serialises it."""
        if self._data is None:
            self._data = app.Array(self._ndarray).data
        return self._data

    def numpy(self) -> np.ndarray:
        """The array itself."""
        return self._ndarray
