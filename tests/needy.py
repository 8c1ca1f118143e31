"""Objectives that need what an objective may be given, and note what they were given."""

from contextlib import contextmanager

import pytest

from fedkd import registry
from fedkd.distillation.objectives import Objective, declare, forward_kl

seen: list[dict] = []
"""What they were given in this process, call by call; tests empty it."""


def mean_of_groups(values, groups, count):
    """The mean of values ``(B,)`` in each of ``count`` groups, 0 of one without a row."""
    rows = groups.bincount(minlength=count).clamp_min(1)
    return values.new_zeros(count).index_add(0, groups, values) / rows


@declare(needs=("progress",))
def paced(logits, targets, temperature, *, progress):
    """KL that grows with the progress of the run."""
    seen.append({"progress": progress, "rows": len(logits)})
    return (progress * forward_kl(logits, targets, temperature)[:, None])[:, 0]


@declare(needs=("groups",), among=False)
def coupled(logits, targets, temperature, *, groups):
    """The square of a batch's mean KL, on each of its rows."""
    seen.append({"groups": groups.tolist()})
    mean = mean_of_groups(forward_kl(logits, targets, temperature), groups, int(groups.max()) + 1)
    return mean[groups].square()


@declare(needs=("labels", "progress", "groups", "memory"))
class Everything(Objective):
    """KL, the more of it the larger it was before, and cross-entropy with labels."""

    rate: float = 0.5
    """How fast what was before is forgotten."""

    def __call__(self, logits, targets, temperature, *, labels, progress, groups, memory):
        losses = forward_kl(logits, targets, temperature)
        hard = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
        mean = mean_of_groups(losses.detach(), groups, memory.students)
        before = memory.get("mean", mean)
        memory["mean"] = self.rate * before + (1 - self.rate) * mean
        hard = (progress * hard[:, None])[:, 0]
        return (1 + memory["mean"][groups]) * losses + 0.1 * hard


NAMES = {"paced": paced, "coupled": coupled, "everything": Everything}


def register():
    """Have them for this process."""
    for name, objective in NAMES.items():
        registry.register("objectives", name)(objective)


@contextmanager
def installed(folder, points):
    """Objectives by their entry points ``name = "module:thing"``, for processes that begin too."""
    info = folder / "needy-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: needy\nVersion: 1\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[fedkd.objectives]", *lines]))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        registry._points.cache_clear()
        yield
    registry._points.cache_clear()
