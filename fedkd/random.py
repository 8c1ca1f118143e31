"""Every random draw comes from a generator keyed by what it is for.

No global state: the same (seed, purpose) gives the same numbers in any process, on any engine, in
any order of completion. What a student draws by itself, as dropout does, comes from the global
generators: :func:`global_draws` keys these for as long as the student is at work.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from numpy.typing import DTypeLike


def key(seed: int, *purpose: str | int) -> int:
    """A 63-bit number that depends on ``seed`` and on every part of ``purpose``."""
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``generator(0, "batches", client, round)``.

    Torch seeds it with the low 32 bits of the key: ample for the order of batches, not a source of
    secrets.
    """
    import torch

    return torch.Generator().manual_seed(key(seed, *purpose))


def noise(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for privacy noise, keyed by 128 bits (Philox; Salmon et al. 2011)."""
    import numpy as np

    text = repr((seed, "noise", *purpose)).encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class SystemNoise:
    """Noise from the operating system's cryptographically strong generator, never the same again.

    With the methods of ``numpy.random.Generator`` that privacy noise is drawn by. A Gaussian number
    is half the sum of four (Holohan & Braghin 2021, arXiv 2107.10138), as Opacus has it in its
    secure mode: what its low bits tell of a single draw is not enough to find it out.
    """

    def random(self, size: int | tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Uniform between 0 and 1, never either: odd multiples of 2^-53."""
        import numpy as np

        count = int(np.prod(size))
        bits = np.frombuffer(os.urandom(8 * count), np.dtype("<u8")) >> np.uint64(12)
        return ((bits.astype(np.float64) + 0.5) / 2.0**52).reshape(size)

    def standard_normal(
        self, size: int | tuple[int, ...], dtype: DTypeLike = "float64"
    ) -> npt.NDArray[Any]:
        """Gaussian with mean 0 and deviation 1."""
        from scipy.special import ndtri

        size = (size,) if isinstance(size, int) else size
        return (ndtri(self.random((4, *size))).sum(0) / 2).astype(dtype)

    def laplace(self, *, size: int | tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Laplace with scale 1."""
        import numpy as np

        uniform = self.random(size)
        return np.where(uniform < 0.5, np.log(2 * uniform), -np.log(2 * (1 - uniform)))


def privacy_noise(
    secure: bool, seed: int, *purpose: str | int
) -> np.random.Generator | SystemNoise:
    """What noise of one purpose is drawn by: the operating system, or the key of the purpose."""
    return SystemNoise() if secure else noise(seed, *purpose)


def noise_generator(seed: int, *purpose: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator for privacy noise: its streams do not meet, as those of 32 bits would.

    On a CPU all 19,937 bits of the Mersenne Twister's state (Matsumoto & Nishimura 1998) come from
    SHAKE-256 of seed and purpose; on a GPU the 63 bits of :func:`key` are Philox's own key. Who
    knows the seed knows the noise: right for a simulation, and never for a deployment.
    """
    import torch

    found = torch.Generator(device).manual_seed(key(seed, "noise", *purpose))
    if found.device.type != "cpu":
        return found
    state = found.get_state()
    # 24 bytes of seed and position, fresh after seeding; then a 64-bit word for each of 32 bits.
    words = torch.from_numpy(_words(seed, "noise", *purpose).astype("int64"))
    state[_TORCH_WORDS] = words.view(torch.uint8)
    found.set_state(state)
    return found


class global_draws:
    """Have the global generators draw by ``seed``, then be as they were: a context manager.

    Those of torch, on the CPU and on ``device``, of numpy and of Python; of torch alone, which
    takes a tenth of the time, with ``torch_only``. ``seed`` is 63 bits, as :func:`key` gives them.
    With ``again`` it may be entered more than once, and goes on where it was left.
    """

    def __init__(
        self,
        seed: int,
        device: torch.device | str = "cpu",
        torch_only: bool = False,
        again: bool = False,
    ) -> None:
        self._seed, self._device, self._again = seed, str(device), again
        self._others = None if torch_only else _PythonDraws(seed, again)
        self._left: list[torch.Tensor] = []

    def __enter__(self) -> None:
        import torch

        self._generators = [torch.default_generator]
        if self._device.startswith("cuda"):
            torch.cuda.init()
            index = torch.device(self._device).index
            index = torch.cuda.current_device() if index is None else index
            self._generators.append(torch.cuda.default_generators[index])
        self._before = [generator.get_state() for generator in self._generators]
        for place, generator in enumerate(self._generators):
            if self._left:
                generator.set_state(self._left[place])
            else:
                generator.manual_seed(self._seed)
        if self._others is not None:
            self._others.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._others is not None:
            self._others.__exit__(None, None, None)
        if self._again:
            self._left = [generator.get_state() for generator in self._generators]
        for generator, state in zip(self._generators, self._before, strict=True):
            generator.set_state(state)


class _PythonDraws:
    """The part of :class:`global_draws` that numpy and Python take."""

    def __init__(self, seed: int, again: bool) -> None:
        self._seed, self._again = seed, again
        self._ours: np.random.MT19937 | None = None

    def __enter__(self) -> None:
        import numpy as np
        from numpy.random.mtrand import get_bit_generator, set_bit_generator

        self._own, self._pythons = get_bit_generator(), random.getstate()
        if self._ours is not None:
            set_bit_generator(self._ours)
            random.setstate(self._left)
            return
        # Ten times as fast as to copy 624 words there and back, or to seed a new generator.
        self._ours = _SPARE.pop() if _SPARE else np.random.MT19937(0)
        set_bit_generator(self._ours)
        np.random.seed(self._seed & 0xFFFFFFFF)
        random.seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        from numpy.random.mtrand import set_bit_generator

        if self._again:
            self._left = random.getstate()
        set_bit_generator(self._own)
        random.setstate(self._pythons)
        if self._ours is not None and not self._again:
            _SPARE.append(self._ours)
            self._ours = None


_SPARE: list[np.random.MT19937] = []
"""Generators that nobody draws from: each is seeded before it is used."""


@contextmanager
def numpy_noise(seed: int, *purpose: str | int) -> Iterator[None]:
    """Have numpy's global generator draw the noise of one purpose, then be as it was.

    For libraries that draw from no other. Its whole state comes from SHAKE-256 of seed and purpose.
    """
    import numpy as np

    before = np.random.get_state()
    np.random.set_state(("MT19937", _words(seed, "numpy noise", *purpose), 624, 0, 0.0))
    try:
        yield
    finally:
        np.random.set_state(before)


_TORCH_WORDS = slice(24, 24 + 624 * 8)


def _words(seed: int, *purpose: str | int) -> npt.NDArray[np.uint32]:
    """624 words of 32 bits, ``(624,)`` uint32."""
    import numpy as np

    stream = hashlib.shake_256(repr((seed, *purpose)).encode()).digest(624 * 4)
    return np.frombuffer(stream, np.dtype("<u4")).astype(np.uint32)
