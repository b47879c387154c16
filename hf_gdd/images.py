"""Image data sets as tensors: the one door through which real and synthetic images enter.

Images rest as uint8 [N,C,H,W] in [0,255]; the range helpers at the end are the only conversions to floats.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

if TYPE_CHECKING:  # datasets takes over half a second to import, so each function that needs it does so
    from datasets import Dataset, DatasetDict, Features

    Source = Dataset | DatasetDict | str | Path

DIGITS = Path(__file__).parent / "data" / "digits"
MIN_SIZE, MAX_SIZE = 8, 64
_CHUNK = 1024  # rows decoded, summed or hashed at a time: bounds the extra memory


@dataclass(frozen=True, eq=False)
class ImageTensors:
    """A labelled image data set held in memory; make one with `from_dataset`.

    Attributes:
        images: uint8 [N,C,H,W], C 1 or 3; on `device`, or in (pinned) host memory if too big for it.
        labels: int64 [N] in [0, num_classes), stored beside the images.
        class_names: the name of every label, in order.
        source: where the rows come from, such as "digits:train" or "uoft-cs/cifar10@<sha>:train".
        device: where `gather` puts its batches.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    source: str
    device: torch.device

    @classmethod
    def from_dataset(
        cls,
        data: Source | ImageTensors,
        split: str | None = None,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        image_size: int | None = None,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> ImageTensors:
        """Decode one split of a data set.

        Args:
            data: a `Dataset`, a `DatasetDict`, "digits" (bundled), a folder that `load_dataset` can read, a
                Hub id, or an `ImageTensors`, which is only moved to `device`.
            split: which split of a `DatasetDict`, folder or Hub data set; "train" by default.
            image_column: the Image column; needed where there are several.
            label_column: the ClassLabel column; needed where there are several.
            image_size: resize the shorter side to this many pixels (Lanczos) and centre-crop to a square.
            device: where batches are wanted; CUDA if there is one, else the CPU, by default.
            progress: show a bar if decoding takes more than two seconds.

        One colour image makes all images RGB; alpha is dropped.

        Raises:
            TypeError: `data` is of another type.
            ValueError: a split, column, label or image is missing, ambiguous or unusable; the message says
                which, and what to do.
        """
        device = _resolve(device)
        if isinstance(data, ImageTensors):
            if (split, image_column, label_column, image_size) != (None,) * 4:
                raise ValueError(
                    "An ImageTensors is already decoded: pass the data set it came from to choose a split, a "
                    "column or image_size."
                )
            images, labels = _place(data.images, data.labels, device)
            return replace(data, images=images, labels=labels, device=device)
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size={image_size} is not a size in pixels: pass image_size=32, say.")

        dataset, source = _open(data, split)
        if len(dataset) == 0:
            raise ValueError(f"The data set {source} is empty: pass one with rows, or another split.")
        image_column, label_column = _find_columns(dataset, image_column, label_column)
        labels = _read_labels(dataset, label_column)
        images = _read_images(dataset, image_column, image_size, progress)
        names = tuple(dataset.features[label_column].names)
        return cls(*_place(images, labels, device), names, source, device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """The number of class names, K."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image, (C, H, W)."""
        return tuple(self.images.shape[1:])

    @cached_property
    def class_counts(self) -> tuple[int, ...]:
        """How many images each of the K classes has."""
        return tuple(torch.bincount(self.labels, minlength=self.num_classes).tolist())

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of every channel, in [0,1]."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """The population standard deviation of every channel, for pixels in [0,1]; at least 1e-6."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        # Sums of bytes are exact in integers, so every device gives the same statistics to the last bit.
        total, squares = torch.zeros(2, self.shape[0], dtype=torch.int64, device=self.images.device)
        for chunk in self.images.split(_CHUNK):
            total += chunk.sum(dim=(0, 2, 3))
            squares += chunk.int().square().sum(dim=(0, 2, 3))
        n = self.images.numel() // self.shape[0]
        sums = list(zip(total.tolist(), squares.tolist(), strict=True))
        mean = tuple(s / n / 255 for s, _ in sums)
        std = tuple(max((n * q - s * s) ** 0.5 / n / 255, 1e-6) for s, q in sums)
        return mean, std

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the shape, pixels, labels and class names; the same on every device."""
        digest = hashlib.sha256(json.dumps([self.images.shape, self.class_names]).encode())
        for chunk in (*self.images.split(_CHUNK), self.labels):
            digest.update(chunk.cpu().numpy().tobytes())
        return digest.hexdigest()

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images uint8 [B,C,H,W] and labels int64 [B] of the rows int64 [B], on `device`.

        Draw the indices on `images.device`: moving them from a GPU to host memory waits for the GPU.
        """
        indices = indices.to(self.images.device)
        images, labels = _take(self.images, indices), _take(self.labels, indices)
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def to_dataset(self) -> Dataset:
        """Return a `Dataset` of PNG images and labels, in order; `from_dataset` gives equal tensors back."""
        from datasets import Dataset

        images = [{"bytes": encode_png(image), "path": None} for image in self.images.cpu()]
        rows = {"image": images, "label": self.labels.tolist()}
        return Dataset.from_dict(rows, features=features(self.class_names))

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageTensors, ImageTensors]:
        """Return (rest, held_out), disjoint and each in row order, the same on every device.

        Of a class with n images, round(fraction * n) are held out, but at least 1 and at most n - 1.

        Raises:
            ValueError: `fraction` is not between 0 and 1, or a class has fewer than two images.
        """
        if not 0 < fraction < 1:
            raise ValueError(
                f"fraction={fraction} holds out nothing or everything: pass one between 0 and 1."
            )
        self._require_per_class(2, "to split it; drop the class or add images")
        counts = [min(max(round(fraction * n), 1), n - 1) for n in self.class_counts]
        held_out = self._draw(counts, seed)
        rest = torch.ones(len(self), dtype=torch.bool).index_fill(0, held_out, False).nonzero().flatten()
        part = f"held-out {fraction:g}, seed {seed}]"
        return self._rows(rest, f"[without {part}"), self._rows(held_out, f"[{part}")

    def subset(self, ipc: int, seed: int) -> ImageTensors:
        """Return exactly `ipc` random images of every class, in row order, the same on every device.

        With one seed, a smaller subset is part of a larger one.

        Raises:
            ValueError: `ipc` is under 1, or a class has fewer images.
        """
        if ipc < 1:
            raise ValueError(f"ipc={ipc} images of each class make no data set: pass ipc=1 or more.")
        self._require_per_class(ipc, f"for ipc={ipc}; pass a smaller ipc")
        return self._rows(
            self._draw([ipc] * self.num_classes, seed), f"[random {ipc} per class, seed {seed}]"
        )

    def check_same_classes(self, other: ImageTensors) -> None:
        """Raise ValueError unless `other` has the same class names in the same order."""
        for label, (mine, theirs) in enumerate(zip_longest(self.class_names, other.class_names)):
            if mine != theirs:
                raise ValueError(
                    f"Label {label} is {mine!r} in {self.source} but {theirs!r} in {other.source}: give "
                    "both the same classes in the same order, with ds.align_labels_with_mapping(...), say."
                )

    def require_trainable(self) -> None:
        """Raise ValueError unless a trainer can learn from this: 2 classes, none empty, 8 to 64 px square."""
        if self.num_classes < 2:
            raise ValueError(
                f"{self.source} has {self.num_classes} class; training needs 2: add another class."
            )
        self._require_per_class(1, "to train on; drop the class from the ClassLabel or add images")
        _, height, width = self.shape
        if height != width or not MIN_SIZE <= height <= MAX_SIZE:
            raise ValueError(
                f"Images of {self.source} are {width}x{height} pixels, but training needs squares of "
                f"{MIN_SIZE} to {MAX_SIZE}: load them with image_size=32, say."
            )

    def _require_per_class(self, needed: int, purpose: str) -> None:
        for name, count in zip(self.class_names, self.class_counts, strict=True):
            if count < needed:
                raise ValueError(
                    f"Class {name!r} of {self.source} has {count} images and needs {needed} {purpose}."
                )

    def _draw(self, counts: Sequence[int], seed: int) -> Tensor:
        """Return the sorted row indices of counts[k] random images of every class k."""
        generator = torch.Generator().manual_seed(seed)
        labels, drawn = self.labels.cpu(), []
        for label, count in enumerate(counts):
            rows = (labels == label).nonzero().flatten()
            drawn.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
        return torch.cat(drawn).sort().values

    def _rows(self, rows: Tensor, part: str) -> ImageTensors:
        rows = rows.to(self.images.device)
        images, labels = _place(self.images[rows], self.labels[rows], self.device)
        return replace(self, images=images, labels=labels, source=self.source + part)


def features(class_names: Sequence[str]) -> Features:
    """Return the columns of every data set we write: image, and label with these class names."""
    from datasets import ClassLabel, Features, Image

    return Features({"image": Image(), "label": ClassLabel(names=list(class_names))})


def encode_png(image: Tensor | np.ndarray) -> bytes:
    """Return the PNG file of one uint8 image [C,H,W] in host memory; ValueError unless C is 1 or 3."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"A PNG is made of uint8 [1 or 3,H,W], not {pixels.dtype} {list(pixels.shape)}.")
    pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 [0,255] to float32 [0,1]."""
    return images.float() / 255


def to_tanh(images: Tensor) -> Tensor:
    """Map uint8 [0,255] to float32 [-1,1], the range inside generators."""
    return images.float() / 127.5 - 1


def tanh_to_uint8(images: Tensor) -> Tensor:
    """Map floats [-1,1] to the nearest uint8 [0,255], clamping the rest; undoes `to_tanh` exactly."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def fits_on_device(num_bytes: int, free_bytes: int) -> bool:
    """Tell whether images may rest on a device: half of its free memory is kept for the training."""
    return num_bytes <= free_bytes // 2


def _resolve(device: str | torch.device | None) -> torch.device:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:  # tensors say cuda:0, which is not equal to cuda
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _place(images: Tensor, labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Put both on the device, or in pinned host memory where a GPU has too little left."""
    if device.type != "cuda" or images.device == device:
        return images.to(device), labels.to(device)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if fits_on_device(images.nbytes, free_bytes):
        return images.to(device), labels.to(device)
    return images.cpu().pin_memory(), labels.cpu().pin_memory()


def _take(source: Tensor, indices: Tensor) -> Tensor:
    # Indexing pinned memory gives pageable memory, from which a copy to the GPU is not asynchronous.
    shape = (len(indices), *source.shape[1:])
    rows = torch.empty(shape, dtype=source.dtype, device=source.device, pin_memory=source.is_pinned())
    return torch.index_select(source, 0, indices, out=rows)


def _open(data: Source, split: str | None) -> tuple[Dataset, str]:
    """Return one split, and where it comes from."""
    from datasets import Dataset, DatasetDict, load_dataset

    name = None
    if data == "digits":
        name, data = "digits", _bundled_digits()
    elif isinstance(data, (str, Path)):
        folder = Path(data).expanduser()
        name = folder.resolve().name if folder.is_dir() else str(data)
        data = load_dataset(str(folder))
    if isinstance(data, DatasetDict):
        wanted = split or "train"
        if wanted not in data:
            raise ValueError(f"There is no split {wanted!r}: pass split=... with one of {list(data)}.")
        data, split = data[wanted], None
    if not isinstance(data, Dataset):
        raise TypeError(
            f"data is a {type(data).__name__}: pass a datasets.Dataset or DatasetDict (not a streaming one), "
            "a folder, a Hub id or 'digits'."
        )
    if split not in (None, str(data.split)):
        raise ValueError(
            f"This Dataset is already one split ({data.split}), which has no part {split!r}: leave split "
            "out, or pass the DatasetDict."
        )
    # The commit is only to be found in the addresses of the files that load_dataset fetched.
    pinned = re.search(r"hf://datasets/([^@\s]+@\w+)/", " ".join(data.info.download_checksums or ()))
    name = pinned[1] if pinned else name or data.info.dataset_name or "unnamed"
    return data.with_format(None), f"{name}:{data.split}" if data.split else name


def _bundled_digits() -> DatasetDict:
    # Read directly: load_dataset would copy the files to a cache, which may not be writable.
    import pyarrow.parquet as pq
    from datasets import Dataset, DatasetDict, NamedSplit

    parts = {name: pq.read_table(DIGITS / f"{name}.parquet") for name in ("train", "test")}
    return DatasetDict({name: Dataset(table, split=NamedSplit(name)) for name, table in parts.items()})


def _find_columns(dataset: Dataset, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    from datasets import ClassLabel, Image

    remedy = "make one with ds.cast_column(name, Image()), or pass image_column='...' if there is one"
    image = _find_column(dataset, Image, "image_column", image_column, remedy)
    remedy = (
        "make one with ds.cast_column('label', ClassLabel(names=[...])) or ds.class_encode_column('label')"
    )
    label = _find_column(dataset, ClassLabel, "label_column", label_column, remedy)
    return image, label


def _find_column(dataset: Dataset, kind: type, option: str, named: str | None, remedy: str) -> str:
    columns = list(dataset.features)
    found = [name for name in columns if isinstance(dataset.features[name], kind)]
    if named is not None:
        if named not in columns:
            raise ValueError(f"There is no column {named!r}: pass {option}=... with one of {columns}.")
        if named not in found:
            raise ValueError(f"Column {named!r} is {dataset.features[named]}, not {kind.__name__}: {remedy}.")
        return named
    if not found:
        raise ValueError(f"None of the columns {columns} is {kind.__name__}: {remedy}.")
    if len(found) > 1:
        raise ValueError(
            f"Several columns are {kind.__name__}, {found}: pass {option}={found[0]!r} or another."
        )
    return found[0]


def _read_labels(dataset: Dataset, column: str) -> Tensor:
    labels, names = dataset[column][:], dataset.features[column].names
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < len(names):
            raise ValueError(
                f"Row {row} has label {label}, outside 0..{len(names) - 1}: it is unlabelled or wrong; drop "
                "such rows with ds.filter(...), or take another split."
            )
    return torch.tensor(labels)


def _read_images(dataset: Dataset, column: str, image_size: int | None, progress: bool) -> Tensor:
    """Decode all rows to uint8 [N,C,H,W], C 3 if any of them is colour."""
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
    bar = tqdm(total=len(dataset), desc="decoding", unit="image", delay=2, disable=not progress)
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(dataset), _CHUNK):
            values = encoded[start : start + _CHUNK][column]
            for row, array in enumerate(pool.map(decode, range(start, len(dataset)), values), start):
                if pixels is None:
                    pixels = np.empty((len(dataset), *array.shape), np.uint8)
                _check_same_size(row, array, pixels)
                if len(array) > pixels.shape[1]:
                    pixels = pixels.repeat(3, axis=1)
                pixels[row] = array
            bar.update(len(values))
    return torch.from_numpy(pixels)


def _check_same_size(row: int, array: np.ndarray, pixels: np.ndarray) -> None:
    (height, width), (first_height, first_width) = array.shape[1:], pixels.shape[2:]
    if (height, width) != (first_height, first_width):
        raise ValueError(
            f"Row 0 is {first_width}x{first_height} pixels but row {row} is {width}x{height}: pass "
            f"image_size={min(first_width, first_height)}, say, to resize and crop all to one square."
        )


def _to_array(row: int, image: Image.Image, image_size: int | None) -> np.ndarray:
    """Return uint8 [1,H,W] for black-and-white and grey, [3,H,W] for every kind of colour."""
    if image.mode[0] in "IF":  # I, I;16, F and kin
        raise ValueError(
            f"The image of row {row} has 16-bit, 32-bit or float pixels (mode {image.mode!r}), which would "
            "be clipped silently: scale the pixels to 0..255 and save as 8 bits first."
        )
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
