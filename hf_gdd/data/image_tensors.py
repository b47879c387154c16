"""Image data sets in memory: real and distilled images enter the library this way.

Images are stored as uint8 [N, C, H, W] in [0, 255]; only `hf_gdd.data.pixels` converts them to floats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_gdd.data.decoding import dataset_features, find_columns, read_images, read_labels, read_soft_labels
from hf_gdd.data.loading import open_split
from hf_gdd.data.pixels import encode_png
from hf_gdd.data.placement import place, resolve_device, take_rows
from hf_gdd.data.statistics import channel_statistics, sha256_of
from hf_gdd.utils.random import draw_rows

if TYPE_CHECKING:  # datasets takes over half a second to import, so each function that needs it does so
    from datasets import Dataset

    from hf_gdd.data.loading import Source

MIN_SIZE, MAX_SIZE = 8, 64


@dataclass(frozen=True, eq=False)
class ImageTensors:
    """Labeled image data set in memory; create one with `from_dataset`.

    Example:
        train = ImageTensors.from_dataset("digits", "train")
        rest, validation = train.split(0.1, seed=0)
        images, labels = rest.gather(torch.arange(8))  # uint8 [8, 1, 8, 8], int64 [8]

    Attributes:
        images: uint8 [N, C, H, W], C 1 or 3; on `device`, or in pinned host memory if too large for it.
        labels: int64 [N] in [0, num_classes), in the same place as the images.
        class_names: name of every label, in order.
        source: origin of the rows, such as "digits:train" or "uoft-cs/cifar10@<sha>:train".
        device: device of the batches that `gather` returns.
        license: license or licenses that the data set's card names, such as "mit"; None if it names none.
        soft_labels: logits float16 [N, K] stored with a distilled set; None if there are hard labels only.
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

        If one image is in color, all become RGB; alpha is dropped. The column `soft_label` of our own data sets (a list
        of K float16) is read as well.

        Args:
            data: a `Dataset`, a `DatasetDict`, "digits" (bundled), a folder that `load_dataset` can read, a Hub id, or
                an `ImageTensors`, which is only moved to `device`.
            split: split of a `DatasetDict`, folder or Hub data set; "train" by default.
            image_column: the Image column; needed if there are several.
            label_column: the ClassLabel column; needed if there are several.
            image_size: resize the shorter side to this many pixels (Lanczos) and center-crop to a square.
            device: device of the batches; by default CUDA if available, else the CPU.
            progress: show a bar if decoding takes more than two seconds.

        Raises:
            TypeError: `data` is of another type.
            ValueError: a split, column, label or image is missing, ambiguous or unusable.
        """
        device = resolve_device(device)
        if isinstance(data, ImageTensors):
            has_that_size = data.shape[1:] == (image_size, image_size)
            if (split, image_column, label_column, None if has_that_size else image_size) != (None,) * 4:
                raise ValueError(
                    "An ImageTensors is already decoded: pass the data set it came from to choose a split, a "
                    "column or image_size."
                )
            return data if data.device == device else data._moved_to(device)
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size={image_size} is not a size in pixels: pass for example image_size=32.")

        dataset, source, license = open_split(data, split)
        if len(dataset) == 0:
            raise ValueError(f"The data set {source} is empty: pass one with rows, or another split.")
        image_column, label_column = find_columns(dataset, image_column, label_column)
        labels = read_labels(dataset, label_column)
        images = read_images(dataset, image_column, image_size, progress)
        names = tuple(dataset.features[label_column].names)
        soft = read_soft_labels(dataset, len(names))
        return cls(images, labels, names, source, torch.device("cpu"), license, soft)._moved_to(device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        return tuple(self.images.shape[1:])

    @property
    def stored_bytes(self) -> int:
        """Size of the raw pixels and soft labels in bytes."""
        return self.images.nbytes + (0 if self.soft_labels is None else self.soft_labels.nbytes)

    @cached_property
    def class_counts(self) -> tuple[int, ...]:
        """Number of images in each of the K classes."""
        return tuple(torch.bincount(self.labels, minlength=self.num_classes).tolist())

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, for pixels in [0, 1]."""
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Population standard deviation of each channel in [0, 1]; at least 1e-6."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return channel_statistics(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, pixels, labels and class names, equal on all devices."""
        tensors = (self.images, self.labels, self.soft_labels)
        return sha256_of([self.images.shape, self.class_names], *(x for x in tensors if x is not None))

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images uint8 [B, C, H, W] and labels int64 [B] of some rows.

        Args:
            indices: row numbers int64 [B]; best drawn on `images.device`, for a copy to host memory waits for the GPU.
        """
        indices = indices.to(self.images.device)
        images, labels = take_rows(self.images, indices), take_rows(self.labels, indices)
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def gather_soft(self, indices: Tensor) -> Tensor:
        """Return the stored logits float32 [B, K] of the rows int64 [B], on `device`."""
        rows = take_rows(self.soft_labels, indices.to(self.soft_labels.device))
        return rows.to(self.device, non_blocking=True).float()

    def to_dataset(self) -> Dataset:
        """Return a `Dataset` of PNG images and labels, the inverse of `from_dataset`."""
        from datasets import Dataset

        images = [{"bytes": encode_png(image), "path": None} for image in self.images.cpu()]
        rows = {"image": images, "label": self.labels.tolist()}
        if self.soft_labels is not None:
            rows["soft_label"] = list(self.soft_labels.cpu().numpy())
        return Dataset.from_dict(rows, features=dataset_features(self.class_names, soft=self.soft_labels is not None))

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageTensors, ImageTensors]:
        """Split every class at random into a rest and a held-out part.

        Both parts are in row order, and the same on every device.

        Args:
            fraction: share of each class to hold out, in (0, 1). It is rounded to at least one image, and leaves at
                least one.
            seed: seed of the draw.

        Raises:
            ValueError: `fraction` is not between 0 and 1, or a class has fewer than two images.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction={fraction} holds out nothing or everything: pass one between 0 and 1.")
        self._check_per_class(2, "to split it; drop the class or add images")
        counts = [min(max(round(fraction * n), 1), n - 1) for n in self.class_counts]
        held_out = draw_rows(self.labels, counts, seed)
        rest = torch.ones(len(self), dtype=torch.bool).index_fill(0, held_out, False).nonzero().flatten()
        part = f"held-out {fraction:g}, seed {seed}]"
        return self._select(rest, f"[without {part}"), self._select(held_out, f"[{part}")

    def subset(self, ipc: int, seed: int) -> ImageTensors:
        """Return `ipc` random images of every class, in row order.

        The rows are the same on every device. For one seed, a smaller subset is part of every larger one.

        Raises:
            ValueError: `ipc` is below 1, or a class has fewer images.
        """
        self.check_ipc(ipc)
        rows = draw_rows(self.labels, [ipc] * self.num_classes, seed)
        return self._select(rows, f"[random {ipc} per class, seed {seed}]")

    def check_same_classes(self, other: Any) -> None:
        """Raise ValueError unless a data set or generator has the same classes, in order."""
        source = getattr(other, "source", "the generator")
        for label, (mine, theirs) in enumerate(zip_longest(self.class_names, other.class_names)):
            if mine != theirs:
                raise ValueError(
                    f"Label {label} is {mine!r} in {self.source} but {theirs!r} in {source}: give both the same "
                    "classes in the same order, for example with ds.align_labels_with_mapping(...)."
                )

    def check_trainable(self, largest: int = MAX_SIZE) -> None:
        """Raise ValueError unless a trainer can learn from these images.

        There must be at least two classes, none of them empty, and square images of 8 to `largest` pixels.
        """
        if self.num_classes < 2:
            raise ValueError(f"{self.source} has {self.num_classes} class; training needs 2: add another class.")
        self._check_per_class(1, "to train on; drop the class from the ClassLabel or add images")
        _, height, width = self.shape
        if height != width or not MIN_SIZE <= height <= largest:
            raise ValueError(
                f"Images of {self.source} are {width}x{height} pixels, but training needs squares of {MIN_SIZE} to "
                f"{largest}: load them for example with image_size=32."
            )

    def check_ipc(self, ipc: int) -> None:
        """Raise ValueError unless `subset(ipc, ...)` can be drawn."""
        if ipc < 1:
            raise ValueError(f"ipc={ipc} images per class are no data set: pass ipc=1 or more.")
        self._check_per_class(ipc, f"for ipc={ipc}; pass a smaller ipc")

    def _check_per_class(self, needed: int, purpose: str) -> None:
        for name, count in zip(self.class_names, self.class_counts, strict=True):
            if count < needed:
                raise ValueError(f"Class {name!r} of {self.source} has {count} images and needs {needed} {purpose}.")

    def _select(self, rows: Tensor, part: str) -> ImageTensors:
        """Return some rows as a data set whose source names the part."""
        rows = rows.to(self.images.device)
        soft = None if self.soft_labels is None else self.soft_labels[rows]
        selected = replace(self, images=self.images[rows], labels=self.labels[rows], soft_labels=soft)
        return replace(selected._moved_to(self.device), source=self.source + part)

    def _moved_to(self, device: torch.device) -> ImageTensors:
        images, labels, soft = place((self.images, self.labels, self.soft_labels), device)
        return replace(self, images=images, labels=labels, soft_labels=soft, device=device)
