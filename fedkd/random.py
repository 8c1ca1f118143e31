"""Every random draw comes from a generator keyed by what it is for.

No global state: the same (seed, purpose) gives the same numbers in any process, on any engine, in
any order of completion.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
