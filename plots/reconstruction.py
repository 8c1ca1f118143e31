"""Images of clients beside what was reconstructed from what they sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedkd.plots.style import COLUMN, styled
from fedkd.results import FedkdError, Run

ROWS = ("originals", "reconstructions")


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw originals above reconstructions, two rows for each thing that was sent.

    Raises
    ------
    FedkdError
        The run was not audited with ``--reconstruct``, or nothing could be reconstructed.
    """
    (run,) = runs
    found = (run.audit or {}).get("reconstructions", [])
    if not found:
        raise FedkdError(
            f"{run.folder} has no reconstructions: fedkd audit {run.folder} --reconstruct"
        )
    columns = max(len(one[row]) for one in found for row in ROWS)
    side = COLUMN / (columns + 1)
    figure = Figure(figsize=(COLUMN, len(found) * (2.2 * side + 0.5)), layout="constrained")
    panels = figure.subplots(2 * len(found), columns, squeeze=False)
    for number, one in enumerate(found):
        for place, name in enumerate(ROWS):
            row = panels[2 * number + place]
            for axes in row[len(one[name]) :]:
                axes.remove()
            for axes, image in zip(row, one[name]):
                _show(axes, np.array(image))
            row[0].set_ylabel(("sent", "found")[place], fontsize=6.5)
        panels[2 * number][0].set_title(
            f"{one['place']}, {one['attack']}\n"
            f"PSNR {one['psnr']:.1f} dB ({one['psnr_guess']:.1f}), "
            f"SSIM {one['ssim']:.2f} ({one['ssim_guess']:.2f})",
            fontsize=6.5,
            loc="left",
        ).set_in_layout(False)
        for axes in panels[2 * number + 1][: len(one[ROWS[1]])]:
            axes.set_xlabel(" ", fontsize=6.5)  # room for the title below
    return figure


def _show(axes: Axes, image: np.ndarray) -> None:
    """An image ``(C, H, W)`` in [0, 1], without ticks."""
    pixels = np.clip(np.moveaxis(image, 0, -1), 0, 1)
    grey = pixels.shape[-1] == 1
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
