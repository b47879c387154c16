"""What a data set or a generator is worth: networks trained on it alone, tested on real images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict

from hf_gdd.builder import check_ipc
from hf_gdd.classifiers import Normaliser, Recipe, find_recipe
from hf_gdd.generators.base import Generator
from hf_gdd.images import ImageTensors
from hf_gdd.judging import LOOKS, Judge
from hf_gdd.networks import NetworkSpec
from hf_gdd.report import Report


def evaluate(
    train: Any,
    test: Any,
    *,
    real: Any = None,
    ipc: int | Sequence[int] | None = None,
    protocol: str | Sequence[str] = "fixed",
    networks: Sequence[NetworkSpec] = ("convnet3",),
    n: int = 5,
    recipe: Recipe | str | None = None,
    seed: int = 0,
    name: str | None = None,
    with_baselines: bool = True,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Report:
    """Train `n` fresh networks of each architecture on `train` alone, and test them on real images.

    Args:
        train: a generator, or a data set (anything `ImageTensors.from_dataset` takes).
        test: the real test set.
        real: the real training set, for the normalisation and the baselines: random subsets of equal IPC, another one
            for each network, and the full data. Without it the report says that the baselines are missing.
        ipc: images per class, one or several; needed for a generator.
        protocol: one or several. `fixed`: one set of `ipc` images per class, tested once at the end. `dynamic`: that
            many fresh images each epoch, which is what IPC means in the papers on generators. `dynamic-best5-test`:
            the best of five tests on the way, as the public DiM code reports it. The last two need a generator
            without limit.
        networks: names, or callables `(num_classes, shape) -> nn.Module`.
        n: networks of each architecture.
        recipe: a `Recipe` or the name of one; `paper` if None.
        seed: of the images; network i, and a stream for it, are drawn from `seed + i`.
        name: of the row; the generator's method, or `dataset`, if None.
        with_baselines: False if they are in another report that this one will be merged with.
        device: where to train; the generator's, else CUDA if there is one.
        progress: show a bar.

    Raises:
        ValueError: an argument that would make the result wrong, or fail later.

    """
    generator = train if hasattr(train, "sample") else None
    ipcs, protocols = _several(ipc), _several(protocol)
    _check_request(generator, ipcs, protocols)
    device = device or getattr(generator, "device", None)
    test = as_images(test, "test", device)
    real = None if real is None else as_images(real, "train", device)
    own = as_images(train, "train", device) if generator is None else None
    ipcs = ipcs if own is None else (_ipc_of(own, ipcs),)
    if real is not None:
        _check_comparable(test, real)
        for size in ipcs if with_baselines else ():
            real.require_ipc(size)
    sets = {size: own or _sample_set(generator, size, seed, test.device) for size in ipcs}
    for data in sets.values():
        _check_comparable(test, data)

    normalise, origin = _normaliser(generator, data, real)
    judge = Judge(test, normalise, tuple(networks), n, find_recipe(recipe), seed, progress)
    row = {"name": name or getattr(generator, "method", "dataset"), "generator_seed": getattr(generator, "seed", None)}
    results = []
    for size, data in sets.items():
        for how in protocols:
            cell = row | {"protocol": how, "ipc": size}
            if how == "fixed":
                results += judge.fixed(lambda i, data=data: data, len(data), data.images.nbytes, **cell)
            else:
                results += judge.stream(generator, **cell)
    if real is not None and with_baselines:
        results += judge.baselines(real, sets)
    return judge.report(results, real or data, origin)


def baselines(
    real: Any,
    test: Any,
    *,
    ipcs: Sequence[int],
    networks: Sequence[NetworkSpec] = ("convnet3",),
    n: int = 5,
    recipe: Recipe | str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Report:
    """Random-real subsets at each IPC and the full data, once for many reports; see `evaluate` and `Report.merge`."""
    real, test = as_images(real, "train", device), as_images(test, "test", device)
    _check_comparable(test, real)
    for ipc in ipcs:
        real.require_ipc(ipc)
    normalise, origin = _normaliser(None, real, real)
    judge = Judge(test, normalise, tuple(networks), n, find_recipe(recipe), seed, progress)
    return judge.report(judge.baselines(real, ipcs), real, origin)


def as_images(data: Any, split: str, device: str | torch.device | None = None, **kwargs: Any) -> ImageTensors:
    """Images of anything that has splits, by the split's name, or of what has none."""
    has_splits = isinstance(data, (str, Path, DatasetDict))
    return ImageTensors.from_dataset(data, split if has_splits else None, device=device, **kwargs)


def _several(value: Any) -> tuple[Any, ...]:
    """One or several values as a tuple without repetition; None as none."""
    values = (value,) if isinstance(value, (int, str)) else () if value is None else tuple(value)
    return tuple(dict.fromkeys(values))


def _sample_set(generator: Generator, ipc: int, seed: int, device: torch.device) -> ImageTensors:
    """The materialised set, without the detour through files."""
    labels = torch.arange(generator.num_classes).repeat_interleave(ipc)
    images = generator.sample(labels, torch.arange(ipc).repeat(generator.num_classes), seed)
    source = f"{generator.method} generator {generator.fingerprint[:12]}, IPC {ipc}, seed {seed}"
    return ImageTensors(images.to(device), labels.to(device), generator.class_names, source, device)


def _ipc_of(data: ImageTensors, asked: tuple[int, ...]) -> int:
    """The images per class of a data set, on average if its classes differ; ValueError if it was asked for others."""
    if asked and set(data.class_counts) != set(asked):
        raise ValueError(
            f"ipc is {asked[0]}, but {data.source} does not hold that many images of every class: leave ipc out."
        )
    return len(data) // data.num_classes


def _normaliser(generator: Generator | None, data: ImageTensors, real: ImageTensors | None) -> tuple[Normaliser, str]:
    """The real set's statistics where there is one, else those the generator carries, else the set's own."""
    if real is not None:
        return Normaliser(real.mean, real.std), "the real training set"
    if generator is not None:
        return Normaliser(generator.mean, generator.std), "the generator's record of its training set"
    return Normaliser(data.mean, data.std), "the evaluated set itself"


def _check_request(generator: Generator | None, ipcs: tuple[int, ...], protocols: tuple[str, ...]) -> None:
    for protocol in protocols:
        if protocol not in LOOKS:
            raise ValueError(f"Unknown protocol {protocol!r}; choose one of {', '.join(LOOKS)}.")
        if protocol != "fixed" and generator is None:
            raise ValueError(f"A data set can only be judged 'fixed'; protocol {protocol!r} needs a generator.")
        if protocol != "fixed" and generator.max_ipc is not None:
            raise ValueError(
                f"This generator holds {generator.max_ipc} images per class: judge it with protocol='fixed'."
            )
    if generator is not None and not ipcs:
        raise ValueError("A generator makes any number of images: say how many per class with ipc=10, for example.")
    for ipc in ipcs if generator is not None else ():
        check_ipc(generator, ipc)


def _check_comparable(test: ImageTensors, other: ImageTensors) -> None:
    test.check_same_classes(other)
    if test.shape != other.shape:
        raise ValueError(
            f"Images of {test.source} are {test.shape}, those of {other.source} {other.shape} (channels, height, "
            "width): load the test set with ImageTensors.from_dataset(test, image_size=...)."
        )
