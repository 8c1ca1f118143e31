"""The device that clients' and the server's students compute on."""

from __future__ import annotations

import re

import torch

from fedkd.errors import FedkdError


def device(name: str) -> torch.device:
    """The torch device called ``name``; ``auto`` is CUDA where there is one.

    Raises
    ------
    FedkdError
        The device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    reason = "fedkd computes on CPUs and CUDA GPUs"
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        try:
            torch.empty(0, device=name)
            return torch.device(name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).split("\n")[0]
    raise FedkdError(
        f"engine.device = {name!r} is not here ({reason}); allowed: auto, cpu"
        + (", cuda, cuda:N" if torch.cuda.is_available() else "")
    )
