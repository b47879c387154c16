"""Read the image, label and soft-label columns of a data set into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from hf_gdd.utils.progress import progress_bar

if TYPE_CHECKING:  # datasets takes over half a second to import, so each function that needs it does so
    from datasets import Dataset, Features, List

_CHUNK = 1024  # rows decoded at a time; bounds the extra memory


def dataset_features(class_names: Sequence[str], soft: bool = False) -> Features:
    """Return the columns of our data sets: image, label and, if `soft`, soft_label."""
    from datasets import ClassLabel, Features, Image

    columns = Features({"image": Image(), "label": ClassLabel(names=list(class_names))})
    if soft:
        columns["soft_label"] = _soft_label_feature(len(class_names))
    return columns


def _soft_label_feature(num_classes: int) -> List:
    from datasets import List, Value

    return List(Value("float16"), length=num_classes)


def find_columns(dataset: Dataset, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    """Return the names of the image column and the label column.

    Args:
        dataset: one split.
        image_column: the Image column; None if there is only one.
        label_column: the ClassLabel column; None if there is only one.

    Raises:
        ValueError: a column is missing, of another type or ambiguous.

    """
    from datasets import ClassLabel, Image

    remedy = "make one with ds.cast_column(name, Image()), or pass image_column='...' if there is one"
    image = _find_column(dataset, Image, "image_column", image_column, remedy)
    remedy = "make one with ds.cast_column('label', ClassLabel(names=[...])) or ds.class_encode_column('label')"
    label = _find_column(dataset, ClassLabel, "label_column", label_column, remedy)
    return image, label


def _find_column(dataset: Dataset, kind: type, option: str, name: str | None, remedy: str) -> str:
    columns = list(dataset.features)
    candidates = [column for column in columns if isinstance(dataset.features[column], kind)]
    if name is not None:
        if name not in columns:
            raise ValueError(f"There is no column {name!r}: pass {option}=... with one of {columns}.")
        if name not in candidates:
            raise ValueError(f"Column {name!r} is {dataset.features[name]}, not {kind.__name__}: {remedy}.")
        return name
    if not candidates:
        raise ValueError(f"None of the columns {columns} is {kind.__name__}: {remedy}.")
    if len(candidates) > 1:
        raise ValueError(
            f"Several columns are {kind.__name__}, {candidates}: pass {option}={candidates[0]!r} or another."
        )
    return candidates[0]


def read_labels(dataset: Dataset, column: str) -> Tensor:
    """Read labels int64 [N].

    Raises:
        ValueError: a row has no label, or one outside the classes.

    """
    labels, names = dataset[column][:], dataset.features[column].names
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < len(names):
            raise ValueError(
                f"Row {row} has label {label}, outside 0..{len(names) - 1}: drop such rows with ds.filter(...), or "
                "take another split."
            )
    return torch.tensor(labels)


def read_soft_labels(dataset: Dataset, num_classes: int) -> Tensor | None:
    """Read logits float16 [N, K] from the column `soft_label`, or return None.

    Only the column type of our own data sets is read.

    Raises:
        ValueError: a value is not finite.

    """
    if dataset.features.get("soft_label") != _soft_label_feature(num_classes):
        return None
    logits = torch.from_numpy(np.asarray(dataset.with_format("numpy")["soft_label"][:], np.float16))
    if not logits.isfinite().all():
        raise ValueError("Column 'soft_label' holds values that are not finite: drop the column, or repair it.")
    return logits


def read_images(dataset: Dataset, column: str, image_size: int | None, progress: bool) -> Tensor:
    """Decode all images to uint8 [N, C, H, W]; C is 3 if any is in color, else 1.

    Args:
        dataset: one split.
        column: the Image column.
        image_size: side in pixels to resize and crop to; None leaves sizes as they are.
        progress: show a bar if decoding takes more than two seconds.

    Raises:
        ValueError: an image cannot be read, has more than 8 bits a channel, or another size than the first.

    """
    import datasets

    decode_example = replace(dataset.features[column], decode=True).decode_example
    encoded = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False))

    def decode(row: int, value: dict | None) -> np.ndarray:
        try:
            image = decode_example(value or {"bytes": None, "path": None})  # it returns None for None
        except Exception as error:  # Pillow and its plugins raise many types
            raise ValueError(
                f"The image of row {row} cannot be read ({error}): repair the file, or drop the row with "
                "ds.select(...)."
            ) from error
        return _to_array(row, image, image_size)

    pixels = None
    bar = progress_bar(progress, total=len(dataset), desc="decoding", unit="image", delay=2)
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(dataset), _CHUNK):
            values = encoded[start : start + _CHUNK][column]
            for row, array in enumerate(pool.map(decode, range(start, len(dataset)), values), start):
                if pixels is None:
                    pixels = np.empty((len(dataset), *array.shape), np.uint8)
                if (size := array.shape[1:]) != (first := pixels.shape[2:]):
                    raise ValueError(
                        f"Row 0 is {first[1]}x{first[0]} pixels but row {row} is {size[1]}x{size[0]}: pass for "
                        f"example image_size={min(first)} to resize and crop all to one square."
                    )
                if len(array) > pixels.shape[1]:
                    pixels = pixels.repeat(3, axis=1)
                pixels[row] = array
            bar.update(len(values))
    return torch.from_numpy(pixels)


def _to_array(row: int, image: Image.Image, image_size: int | None) -> np.ndarray:
    """Return uint8 pixels: [1, H, W] of a gray image, [3, H, W] of a color image."""
    if image.mode[0] in "IF":  # I, I;16, F and similar
        raise ValueError(
            f"The image of row {row} has 16-bit, 32-bit or float pixels (mode {image.mode!r}), which would be "
            "clipped silently: scale the pixels to 0..255 and save them as 8 bits first."
        )
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
