"""What a run ran on, as far as it can explain a difference in numbers or time."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedkd import registry
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment

PACKAGES = ("fedkd", "torch", "torchvision", "flwr", "flwr-datasets", "ray", "numpy")
NUMERICAL = ("fedkd", "torch", "numpy")
"""Packages of which another version may give other numbers."""


def environment(experiment: Experiment) -> dict[str, Any]:
    """What ``experiment`` runs on here."""
    from fedkd.engine import rule

    return {
        "cohorts": rule.limits() if experiment.engine.cohort == "auto" else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "device": experiment.engine.device,
        "threads": experiment.engine.threads,
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
        "sources": sources(experiment),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def sources(experiment: Experiment) -> dict[str, str | None]:
    """A digest of the file that the method, and each student, is defined in.

    None where there is no file, as in a notebook's cell.
    """
    named = [("strategies", experiment.strategy.name)]
    named += [("students", name) for name in dict.fromkeys(experiment.student.models)]
    return {name: _source(group, name) for group, name in named}


def other_sources(before: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """The method and students whose source is not the one in ``before``, or cannot be compared."""
    if "sources" not in before:
        return []
    now = sources(experiment)
    known = before["sources"]
    return [name for name, digest in now.items() if digest is None or known.get(name) != digest]


def other_versions(before: Mapping[str, Any]) -> list[str]:
    """The packages that numbers depend on whose version is not the one in ``before``, in words."""
    packages = before.get("packages", {})
    others = [
        f"{name} {now or 'source'} (it was {packages[name] or 'source'})"
        for name in NUMERICAL
        if name in packages and packages[name] != (now := _version(name))
    ]
    commit, now = ((table or {}).get("commit") for table in (before.get("git"), _git()))
    if commit and now and commit != now:
        others.append(f"commit {now[:8]} (it was {commit[:8]})")
    return others


def _source(group: str, name: str) -> str | None:
    try:
        thing = registry.load(group, name)
        file = inspect.getsourcefile(inspect.unwrap(thing))
        return hashlib.blake2b(Path(file or "").read_bytes(), digest_size=16).hexdigest()
    except (FedkdError, TypeError, OSError):
        return None


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
        return next(
            line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line
        )
    except (OSError, StopIteration):
        return platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the source tree fedkd runs from, and whether it was changed since."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout.
        if not git("ls-files", str(Path(__file__).name)):
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
