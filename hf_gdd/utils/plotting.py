"""Image grids and loss curves."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

CELL_PX = 56  # smaller images are enlarged to about this size
_NOT_PLOTTED = {"step", "stage", "images_per_second", "seconds"}


def image_grid(images: Tensor, columns: int, row_names: Sequence[str] = ()) -> "Image":
    """Arrange images in a grid, filled row by row.

    Small images are enlarged by whole factors, without smoothing.

    Args:
        images: uint8 [N, C, H, W], C 1 or 3.
        columns: images in a row.
        row_names: printed to the left of the rows.

    Returns:
        An RGB image.

    """
    from PIL import Image, ImageDraw

    images, row_names = images.cpu(), [name.replace("\n", " ") for name in row_names]
    zoom = max(1, CELL_PX // images.shape[-1])
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    images = F.pad(images, (1, 1, 1, 1), value=128).expand(-1, 3, -1, -1)
    missing = -len(images) % columns
    images = torch.cat([images, images.new_full((missing, *images.shape[1:]), 255)])
    rows = images.unflatten(0, (-1, columns))  # [rows, columns, 3, h, w]
    grid = Image.fromarray(rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).contiguous().numpy())
    if not row_names:
        return grid
    margin = 10 + max(int(ImageDraw.Draw(grid).textlength(name)) for name in row_names)
    labeled = Image.new("RGB", (grid.width + margin, grid.height), "white")
    labeled.paste(grid, (margin, 0))
    canvas, height = ImageDraw.Draw(labeled), images.shape[-2]
    for row, name in enumerate(row_names):
        canvas.text((margin - 5, height * row + height // 2), name, fill="black", anchor="rm")
    return labeled


def plot_losses(records: Sequence[Mapping[str, float | str]], path: str | Path, title: str = "") -> None:
    """Plot every logged number against the step and save the figure as PNG.

    Dotted lines mark where a new stage of the training begins.

    Args:
        records: rows of `metrics.jsonl`, each with a `step`. Names with a slash, such as `share/global`, go to a second
            panel.
        path: file to write.
        title: title of the figure.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for record in records for name in record if name not in _NOT_PLOTTED))
    panels = {
        "loss": [n for n in names if "/" not in n],
        "share of the generator's gradient": [n for n in names if "/" in n],
    }
    panels = {label: members for label, members in panels.items() if members}
    figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (label, members) in zip(axes, panels.items(), strict=True):
        for name in members:
            points = [(record["step"], record[name]) for record in records if name in record]
            axis.plot(*zip(*points, strict=True), label=name.split("/")[-1], linewidth=1)
        for before, after in pairwise(records):
            if before.get("stage") != after.get("stage"):
                axis.axvline(before["step"], color="gray", linestyle=":", linewidth=1)
        axis.set_ylabel(label)
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_xlabel("generator step")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=110)
