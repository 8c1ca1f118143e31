"""Digests of tensors, students and sources, by which what was computed is known again."""

from __future__ import annotations

import hashlib
import inspect
import marshal
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import Tensor, nn


def digest(student: nn.Module) -> int:
    """48 bits that depend on every parameter and buffer: a float64 holds them exactly."""
    found = hashlib.blake2b(digest_size=6)
    for name, tensor in student.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return int.from_bytes(found.digest(), "little")


def fingerprint(values: Tensor | None) -> str:
    """A digest of a tensor's values."""
    held = b"" if values is None else values.cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(held, digest_size=16).hexdigest()


def source(module: ModuleType) -> str:
    """A digest of a module's source: what was computed by another one is not remembered.

    That of a package is of all modules in it.
    """
    file = Path(str(module.__file__))
    files = sorted(file.parent.rglob("*.py")) if hasattr(module, "__path__") else [file]
    found = hashlib.blake2b(digest_size=16)
    for each in files:
        found.update(each.read_bytes())
    return found.hexdigest()


def described(student: nn.Module) -> str:
    """A digest of what a student is besides its ``state_dict``: layers, settings, own source."""
    found = hashlib.blake2b(repr(student).encode(), digest_size=16)
    for name, module in student.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | tuple) and key != "training"
        }
        found.update(repr((name, type(module).__qualname__, settings)).encode())
        if not type(module).__module__.startswith("torch."):
            found.update(_source_of(type(module)))
    frozen = [name for name, p in student.named_parameters() if not p.requires_grad]
    found.update(repr(frozen).encode())
    return found.hexdigest()


def _source_of(kind: type) -> bytes:
    """The source of a class and what stands in its file, or its bytecode where there is no file."""
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        codes = [value.__code__ for value in vars(kind).values() if hasattr(value, "__code__")]
        return b"".join(map(marshal.dumps, codes))


def checksum(values: Tensor) -> str:
    """Shape, type and CRC-32 of a tensor's values: what is no attack changes it."""
    content = values.cpu().contiguous().numpy().reshape(-1).view(np.uint8)
    return f"{tuple(values.shape)} {values.dtype} {zlib.crc32(content.data):08x}"
