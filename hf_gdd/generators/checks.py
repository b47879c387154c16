"""Checks of requests to a generator and of its record."""

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hf_gdd.utils.random import check_seed

if TYPE_CHECKING:
    from hf_gdd.generators.base import Generator

logger = logging.getLogger("hf_gdd")

MAX_IMAGES = 100_000_000


def check_image_seed(generator: "Generator", seed: int) -> None:
    """Refuse a seed other than 0 for stored images, which it would not change.

    Raises:
        ValueError: the seed is not 0 and images are stored, or it lies outside [0, 2**63).

    """
    check_seed(seed)
    if seed and generator.max_ipc is not None:
        raise ValueError(f"seed is {seed}, but the images of this generator are stored: no seed changes them.")


def log_plain_seed(generator: "Generator", seed: int, sampling: Any) -> None:
    """Log a line if a seed gives plain draws where seed 0 gives distilled images.

    Args:
        generator: makes the images.
        seed: seed of the images.
        sampling: from `generator.choose_sampling`.

    """
    if seed and generator.codes is not None and sampling.distilled:
        logger.warning("Seed %d draws plain images: the distilled ones are those of seed 0.", seed)


def check_request(generator: "Generator", labels: Tensor, indices: Tensor) -> None:
    """Refuse labels and indices that the generator has no image for.

    Raises:
        ValueError: a label or an index is out of range, or their shapes differ.

    """
    if labels.ndim != 1 or labels.shape != indices.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and indices {tuple(indices.shape)} must be 1-D, of one length.")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < generator.num_classes):
        raise ValueError(f"labels must lie in 0..{generator.num_classes - 1}, one for each of the classes.")
    if len(indices) and int(indices.min()) < 0:
        raise ValueError("indices must not be negative: they number the images of a class from 0.")
    if generator.max_ipc is not None and len(indices) and int(indices.max()) >= generator.max_ipc:
        raise ValueError(f"This generator holds {generator.max_ipc} images per class; ask for at most that many.")


def check_ipc(generator: "Generator", ipc: int) -> None:
    """Refuse a number of images per class that the generator cannot make.

    Raises:
        ValueError: it is not a whole number from 1, more than the generator holds, or gives over MAX_IMAGES in all.

    """
    if not isinstance(ipc, int) or isinstance(ipc, bool) or ipc < 1:
        raise ValueError(f"ipc is {ipc!r}; ask for a whole number of images per class, at least 1.")
    if ipc * generator.num_classes > MAX_IMAGES:
        raise ValueError(f"ipc {ipc:,} makes more than {MAX_IMAGES:,} images: ask for fewer, or use a stream.")
    if generator.max_ipc is not None and ipc > generator.max_ipc:
        raise ValueError(f"ipc is {ipc}, but this generator holds {generator.max_ipc} images per class: ask for fewer.")


def check_record(
    class_names: tuple[str, ...], image_shape: tuple[int, int, int], mean: Any, std: Any, training: Any
) -> None:
    """Refuse an invalid record.

    Raises:
        ValueError: class names that are not different single lines, statistics that do not fit the channels, or a
            training record that is no mapping.

    """
    channels = image_shape[0]
    if channels not in (1, 3):
        raise ValueError(f"Images have 1 or 3 channels, not {channels}.")
    if not 2 <= len(class_names) <= 10_000:
        raise ValueError(f"A generator has 2 to 10,000 classes, not {len(class_names)}.")
    lines = [name for name in class_names if isinstance(name, str) and name.isprintable()]
    if isinstance(class_names, str) or len(set(lines)) < len(class_names):
        raise ValueError(f"Class names must be different strings of one line: {class_names[:5]}.")
    if len(mean) not in (1, channels) or len(std) != len(mean) or not all(map(math.isfinite, (*mean, *std))):
        raise ValueError(f"mean {mean} and std {std} must each have one finite value per channel.")
    if min(std) <= 0:
        raise ValueError(f"std {std} must be above 0.")
    if not isinstance(training or {}, Mapping):
        raise ValueError(f"training must be a mapping of settings, not {training!r}.")
