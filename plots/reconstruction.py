"""Images of clients beside what was reconstructed from what they sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fedkd.results import FedkdError, Run
from plots.style import COLUMN, styled

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
    figure = Figure(figsize=(COLUMN, len(found) * (2.2 * side + 0.35)), layout="constrained")
    for part, one in zip(figure.subfigures(len(found), 1, squeeze=False)[:, 0], found):
        part.suptitle(
            f"{one['place']}, {one['attack']}\n"
            f"PSNR {one['psnr']:.1f} dB ({one['psnr_guess']:.1f}), "
            f"SSIM {one['ssim']:.2f} ({one['ssim_guess']:.2f})",
            fontsize=6.5,
        )
        panels = part.subplots(2, columns, squeeze=False)
        for name, row in zip(ROWS, panels):
            for axes in row:
                axes.set_axis_off()
            for axes, image in zip(row, one[name]):
                pixels = np.clip(np.moveaxis(np.array(image), 0, -1), 0, 1)
                grey = pixels.shape[-1] == 1
                axes.imshow(
                    pixels[..., 0] if grey else pixels,
                    cmap="gray" if grey else None,
                    vmin=0,
                    vmax=1,
                )
    return figure
