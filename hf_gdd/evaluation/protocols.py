"""Run the protocols of `hf_gdd.report.PROTOCOLS`: check requests, provide images.

A protocol differs from others only by the fields of its record, so a new one is a line in that table and, if it needs
a new field, the code here that reads the field.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.distilled.stream import DistilledStream
from hf_gdd.generators.base import Generator, class_grid
from hf_gdd.generators.checks import check_ipc
from hf_gdd.report import FIXED, SOFT, Protocol, find_protocol

Batches = Iterable[tuple[Tensor, Tensor]]


def choose_protocols(names: Sequence[str], soft: bool) -> tuple[Protocol, ...]:
    """Look up protocols; hard labels come first wherever soft ones are asked for.

    Args:
        names: names of protocols; empty for `fixed`, and `soft` where there are soft labels.
        soft: whether there are soft labels.

    Raises:
        ValueError: there is no such protocol, or there are no soft labels for one.

    """
    protocols = [find_protocol(name) for name in names or (FIXED, SOFT)[: 1 + soft]]
    if any(protocol.soft for protocol in protocols):
        if not soft:
            raise ValueError(f"There are no soft labels to learn: leave out protocol {SOFT!r}.")
        protocols.insert(0, find_protocol(FIXED))
    return tuple(dict.fromkeys(protocols))


def check_data(protocols: Iterable[Protocol]) -> None:
    """Raise ValueError unless a data set is enough for these protocols."""
    for protocol in protocols:
        if protocol.name not in (FIXED, SOFT):
            raise ValueError(
                f"A data set can only be evaluated under {FIXED!r} or {SOFT!r}; {protocol.name!r} needs a generator."
            )


def check_generator(generator: Generator, protocols: Iterable[Protocol], ipcs: Sequence[int]) -> None:
    """Raise ValueError unless a generator makes the images these protocols need."""
    if not ipcs:
        raise ValueError("A generator makes any number of images: say how many per class with ipc=10, for example.")
    for protocol in protocols:
        if protocol.fresh and generator.max_ipc is not None:
            raise ValueError(
                f"This generator holds {generator.max_ipc} images per class, no fresh ones for {protocol.name!r}: "
                f"evaluate it under {FIXED!r}, or {SOFT!r} if it has soft labels."
            )
        for ipc in ipcs:
            check_ipc(generator, ipc)
            check_ipc(generator, ipc * protocol.sets)


def check_comparable(test: ImageTensors, *others: ImageTensors | Generator | None) -> None:
    """Raise ValueError unless all have the test set's classes and image shape."""
    for other in others:
        if other is None:
            continue
        test.check_same_classes(other)
        is_generator = isinstance(other, Generator)
        source, shape = ("the generator", other.image_shape) if is_generator else (other.source, other.shape)
        if test.shape != tuple(shape):
            raise ValueError(
                f"Images of {test.source} are {test.shape}, those of {source} {tuple(shape)} (channels, height, "
                "width): load the test set with ImageTensors.from_dataset(test, image_size=...)."
            )


def count_per_class(data: ImageTensors, asked: tuple[int, ...], exact: bool) -> int:
    """Return the images per class of a data set; their mean if it need not be `exact`.

    Raises:
        ValueError: another number was asked for, or classes differ in size and that matters.

    """
    if asked and set(data.class_counts) != set(asked):
        raise ValueError(f"ipc is {asked[0]}, but {data.source} holds another number of every class: leave ipc out.")
    if exact and len(set(data.class_counts)) > 1:
        raise ValueError(
            f"The classes of {data.source} have {min(data.class_counts)} to {max(data.class_counts)} images, so no "
            "random-real subset is its equal: balance them, or pass with_baselines=False."
        )
    return len(data) // data.num_classes


def count_distinct(protocol: Protocol, images: int, steps: int, recipe: Recipe) -> int:
    """Count the different images that one network sees.

    Args:
        protocol: the protocol.
        images: number of images in one epoch.
        steps: SGD steps of the training.
        recipe: recipe of the training.

    """
    epochs = steps / recipe.batches(images)
    if not protocol.fresh:
        epochs = min(protocol.sets, epochs)
    return min(int(images * max(epochs, 1)), steps * recipe.batch_size)


def choose_sampling(generator: Generator, protocol: Protocol, sampling: Any, seed: int) -> Any:
    """Return the sampling settings by which a protocol makes images of a seed.

    They say that nothing is distilled where that is so: with fresh images, and with a seed other than 0.
    """
    sampling = generator.choose_sampling(sampling)
    plain = (seed or not protocol.distilled) and generator.sampling_identity(sampling).get("distilled")
    return replace(sampling, distilled=False) if plain else sampling


def materialize(generator: Generator, per_class: int, seed: int, sampling: Any, device: torch.device) -> Tensor:
    """Make the first images of every class, uint8 [K, per_class, C, H, W]."""
    images = generator.sample(*class_grid(generator.num_classes, per_class), seed, sampling).to(device)
    return images.view(generator.num_classes, per_class, *generator.image_shape)


def stored_parts(generator: Generator, protocol: Protocol, ipc: int, sampling: Any) -> dict[str, int]:
    """Return the bytes of each part of a generator that a protocol needs."""
    uses = {"codes": generator.sampling_identity(sampling).get("distilled"), "teacher": protocol.soft}
    return {name: count for name, count in generator.stored_parts(ipc).items() if uses.get(name, True)}


def to_image_tensors(images: Tensor, class_names: Sequence[str], logits: Tensor | None = None) -> ImageTensors:
    """Turn images uint8 [K, n, C, H, W] and any logits [K * n, K] into a data set."""
    labels = torch.arange(len(images), device=images.device).repeat_interleave(images.shape[1])
    soft = None if logits is None else logits.to(images.device)
    return ImageTensors(
        images.flatten(0, 1), labels, tuple(class_names), "materialized", images.device, soft_labels=soft
    )


def cut_sets(
    protocol: Protocol, generator: Generator, images: Tensor, ipc: int, seed: int, sampling: Any
) -> list[ImageTensors]:
    """Cut images from `materialize` into the sets that take turns in a protocol."""
    parts, logits = images[:, : protocol.sets * ipc].split(ipc, dim=1), None
    if protocol.soft:  # one set: no protocol has both
        rows = class_grid(generator.num_classes, ipc)
        logits = generator.soft_labels(*rows, seed, sampling, images=parts[0].flatten(0, 1))
    return [to_image_tensors(part, generator.class_names, logits) for part in parts]


def fresh_batches(
    generator: Generator, ipc: int, seed: int, recipe: Recipe, sampling: Any, device: torch.device, soft: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches that are new in each epoch, as many as the recipe takes steps.

    Labels are the teacher's logits if `soft`.
    """
    steps = recipe.for_ipc(ipc, generator.num_classes).steps(ipc * generator.num_classes)
    for images, *labels in DistilledStream(generator, ipc, seed, recipe.batch_size, sampling).batches(steps, soft):
        yield images.to(device), labels[-1].to(device)
