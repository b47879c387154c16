"""What people would rather look at than read: grids of images and curves of losses."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

CELL_PX = 56


def image_grid(images: Tensor, columns: int, row_names: Sequence[str] = ()) -> "Image":
    """Lay out uint8 images [N, C, H, W] in rows of `columns`, small ones enlarged without smoothing.

    With `row_names`, each row begins with its name.
    """
    from PIL import Image, ImageDraw

    images, row_names = images.cpu(), [name.replace("\n", " ") for name in row_names]
    zoom = max(1, CELL_PX // images.shape[-1])
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    images = F.pad(images, (1, 1, 1, 1), value=128).expand(-1, 3, -1, -1)
    missing = -len(images) % columns
    images = torch.cat([images, images.new_full((missing, *images.shape[1:]), 255)])
    rows = images.unflatten(0, (-1, columns))  # [rows, columns, 3, h, w]
    picture = Image.fromarray(rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).contiguous().numpy())
    if not row_names:
        return picture
    margin = 10 + max(int(ImageDraw.Draw(picture).textlength(name)) for name in row_names)
    framed = Image.new("RGB", (picture.width + margin, picture.height), "white")
    framed.paste(picture, (margin, 0))
    draw, height = ImageDraw.Draw(framed), images.shape[-2]
    for row, name in enumerate(row_names):
        draw.text((margin - 5, height * row + height // 2), name, fill="black", anchor="rm")
    return framed


def plot_losses(records: Sequence[Mapping[str, float | str]], path: str | Path, title: str = "") -> None:
    """Draw every number in `records` against its `step`: one panel for the loss terms, one for their shares.

    Args:
        records: as in `metrics.jsonl`, each with a `step`; names such as `share/global` go to the lower panel.
        path: the PNG to write.
        title: printed above.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    skip = {"step", "stage", "images_per_second", "seconds"}
    names = list(dict.fromkeys(name for record in records for name in record if name not in skip))
    panels = {
        "loss": [n for n in names if "/" not in n],
        "share of the generator's gradient": [n for n in names if "/" in n],
    }
    panels = {label: members for label, members in panels.items() if members}
    figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (label, members) in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True
    ):
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
