"""Image data sets as tensors: the one door through which real and synthetic images enter.

Images rest as uint8 [N,C,H,W] in [0,255]; `hf_gdd.data.pixels` has the only conversions to floats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_gdd.data.loading import find_columns, open_split, read_images, read_labels, read_soft_labels
from hf_gdd.data.pixels import encode_png

if TYPE_CHECKING:  # datasets takes over half a second to import, so each function that needs it does so
    from datasets import Dataset, Features

    from hf_gdd.data.loading import Source

MIN_SIZE, MAX_SIZE = 8, 64
_CHUNK = 1024  # images summed or hashed at a time: bounds the extra memory


@dataclass(frozen=True, eq=False)
class ImageTensors:
    """A labeled image data set held in memory; make one with `from_dataset`.

    Attributes:
        images: uint8 [N,C,H,W], C 1 or 3; on `device`, or in (pinned) host memory if too big for it.
        labels: int64 [N] in [0, num_classes), stored beside the images.
        class_names: the name of every label, in order.
        source: where the rows come from, such as "digits:train" or "uoft-cs/cifar10@<sha>:train".
        device: where `gather` puts its batches.
        license: as the data set's card names it, such as "mit", or several; None if it does not.
        soft_labels: float16 [N, K], logits stored with a distilled set; None for hard labels only.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    source: str
    device: torch.device
    license: str | list[str] | None = None
    soft_labels: Tensor | None = None

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
            image_size: resize the shorter side to this many pixels (Lanczos) and center-crop to a square.
            device: where batches are wanted; CUDA if there is one, else the CPU, by default.
            progress: show a bar if decoding takes more than two seconds.

        One color image makes all images RGB; alpha is dropped. A column `soft_label` as our own sets have it (a list
        of K float16) is read as well.

        Raises:
            TypeError: `data` is of another type.
            ValueError: a split, column, label or image is missing, ambiguous or unusable; the message says
                which, and what to do.
        """
        device = _resolve(device)
        if isinstance(data, ImageTensors):
            of_that_size = data.shape[1:] == (image_size, image_size)
            if (split, image_column, label_column, None if of_that_size else image_size) != (None,) * 4:
                raise ValueError(
                    "An ImageTensors is already decoded: pass the data set it came from to choose a split, a "
                    "column or image_size."
                )
            if data.device == device:
                return data
            return data._placed(device)
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size={image_size} is not a size in pixels: pass image_size=32, say.")

        dataset, source, license = open_split(data, split)
        if len(dataset) == 0:
            raise ValueError(f"The data set {source} is empty: pass one with rows, or another split.")
        image_column, label_column = find_columns(dataset, image_column, label_column)
        labels = read_labels(dataset, label_column)
        images = read_images(dataset, image_column, image_size, progress)
        names = tuple(dataset.features[label_column].names)
        soft = read_soft_labels(dataset, len(names))
        return cls(images, labels, names, source, torch.device("cpu"), license, soft)._placed(device)

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

    @property
    def stored_bytes(self) -> int:
        """What raw pixels and soft labels take."""
        return self.images.nbytes + (0 if self.soft_labels is None else self.soft_labels.nbytes)

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
        soft = () if self.soft_labels is None else (self.soft_labels,)
        for chunk in (*self.images.split(_CHUNK), self.labels, *soft):
            digest.update(chunk.cpu().numpy().tobytes())
        return digest.hexdigest()

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images uint8 [B,C,H,W] and labels int64 [B] of the rows int64 [B], on `device`.

        Draw the indices on `images.device`: moving them from a GPU to host memory waits for the GPU.
        """
        indices = indices.to(self.images.device)
        images, labels = _take(self.images, indices), _take(self.labels, indices)
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def gather_soft(self, indices: Tensor) -> Tensor:
        """Return the stored logits of the rows int64 [B], float32 [B, K], on `device`."""
        rows = _take(self.soft_labels, indices.to(self.soft_labels.device))
        return rows.to(self.device, non_blocking=True).float()

    def to_dataset(self) -> Dataset:
        """Return a `Dataset` of PNG images and labels, in order; `from_dataset` gives equal tensors back."""
        from datasets import Dataset

        images = [{"bytes": encode_png(image), "path": None} for image in self.images.cpu()]
        rows = {"image": images, "label": self.labels.tolist()}
        if self.soft_labels is not None:
            rows["soft_label"] = list(self.soft_labels.cpu().numpy())
        return Dataset.from_dict(rows, features=features(self.class_names, soft=self.soft_labels is not None))

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageTensors, ImageTensors]:
        """Return (rest, held_out), disjoint and each in row order, the same on every device.

        Of a class with n images, round(fraction * n) are held out, but at least 1 and at most n - 1.

        Raises:
            ValueError: `fraction` is not between 0 and 1, or a class has fewer than two images.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction={fraction} holds out nothing or everything: pass one between 0 and 1.")
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
        self.require_ipc(ipc)
        return self._rows(self._draw([ipc] * self.num_classes, seed), f"[random {ipc} per class, seed {seed}]")

    def check_same_classes(self, other: Any) -> None:
        """Raise ValueError unless `other`, images or a generator, has the same class names in the same order."""
        source = getattr(other, "source", "the generator")
        for label, (mine, theirs) in enumerate(zip_longest(self.class_names, other.class_names)):
            if mine != theirs:
                raise ValueError(
                    f"Label {label} is {mine!r} in {self.source} but {theirs!r} in {source}: give "
                    "both the same classes in the same order, with ds.align_labels_with_mapping(...), say."
                )

    def require_trainable(self, largest: int = MAX_SIZE) -> None:
        """Raise ValueError unless a trainer can learn from this: 2 classes, none empty, 8 to `largest` px square."""
        if self.num_classes < 2:
            raise ValueError(f"{self.source} has {self.num_classes} class; training needs 2: add another class.")
        self._require_per_class(1, "to train on; drop the class from the ClassLabel or add images")
        _, height, width = self.shape
        if height != width or not MIN_SIZE <= height <= largest:
            raise ValueError(
                f"Images of {self.source} are {width}x{height} pixels, but training needs squares of "
                f"{MIN_SIZE} to {largest}: load them with image_size=32, say."
            )

    def require_ipc(self, ipc: int) -> None:
        """Raise ValueError unless `subset(ipc, ...)` can be drawn."""
        if ipc < 1:
            raise ValueError(f"ipc={ipc} images of each class make no data set: pass ipc=1 or more.")
        self._require_per_class(ipc, f"for ipc={ipc}; pass a smaller ipc")

    def _require_per_class(self, needed: int, purpose: str) -> None:
        for name, count in zip(self.class_names, self.class_counts, strict=True):
            if count < needed:
                raise ValueError(f"Class {name!r} of {self.source} has {count} images and needs {needed} {purpose}.")

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
        soft = None if self.soft_labels is None else self.soft_labels[rows]
        chosen = replace(self, images=self.images[rows], labels=self.labels[rows], soft_labels=soft)
        return replace(chosen._placed(self.device), source=self.source + part)

    def _placed(self, device: torch.device) -> ImageTensors:
        images, labels, soft = _place((self.images, self.labels, self.soft_labels), device)
        return replace(self, images=images, labels=labels, soft_labels=soft, device=device)


def features(class_names: Sequence[str], soft: bool = False) -> Features:
    """Return the columns of every data set we write: image, label with these class names, and soft labels if any."""
    from datasets import ClassLabel, Features, Image, List, Value

    columns = Features({"image": Image(), "label": ClassLabel(names=list(class_names))})
    if soft:
        columns["soft_label"] = List(Value("float16"), length=len(class_names))
    return columns


def fits_on_device(num_bytes: int, free_bytes: int) -> bool:
    """Tell whether images may rest on a device: half of its free memory is kept for the training."""
    return num_bytes <= free_bytes // 2


def _resolve(device: str | torch.device | None) -> torch.device:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:  # tensors say cuda:0, which is not equal to cuda
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _place(tensors: tuple[Tensor | None, ...], device: torch.device) -> tuple[Tensor | None, ...]:
    """Put all on the device, or in pinned host memory where a GPU has too little left for the first."""
    images = tensors[0]
    if device.type == "cuda" and images.device != device:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if not fits_on_device(images.nbytes, free_bytes):
            return tuple(tensor if tensor is None else tensor.cpu().pin_memory() for tensor in tensors)
    return tuple(tensor if tensor is None else tensor.to(device) for tensor in tensors)


def _take(source: Tensor, indices: Tensor) -> Tensor:
    # Indexing pinned memory gives pageable memory, from which a copy to the GPU is not asynchronous.
    shape = (len(indices), *source.shape[1:])
    rows = torch.empty(shape, dtype=source.dtype, device=source.device, pin_memory=source.is_pinned())
    return torch.index_select(source, 0, indices, out=rows)
