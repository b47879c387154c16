"""What a data set or a generator is worth: networks trained on it alone, tested on real images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import DatasetDict
from torch import Tensor

from hf_gdd.classifiers.networks import NetworkSpec
from hf_gdd.classifiers.recipes import Recipe, find_recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import InputTransform, Normalize, input_transform
from hf_gdd.evaluation.evaluator import Evaluator
from hf_gdd.evaluation.image_quality import feature_evaluator
from hf_gdd.evaluation.protocols import pool_size
from hf_gdd.generators.base import Generator
from hf_gdd.generators.checks import check_ipc
from hf_gdd.report import SOFT, Report
from hf_gdd.utils.random import check_seed

if TYPE_CHECKING:  # it takes diffusers along, which takes a second
    from hf_gdd.generators.image_bank import ImageBank


def evaluate(
    train: Any,
    test: Any,
    *,
    real: Any = None,
    ipc: int | Sequence[int] | None = None,
    protocol: str | Sequence[str] | None = None,
    networks: Sequence[NetworkSpec] = ("convnet3",),
    n: int = 5,
    recipe: Recipe | str | None = None,
    seed: int = 0,
    sampling: Any = None,
    name: str | None = None,
    with_baselines: bool = True,
    quality: bool = False,
    zca: bool | None = None,
    shared_draws: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Report:
    """Train `n` fresh networks of each architecture on `train` alone, and test them on real images.

    Args:
        train: a generator, or a data set (anything `ImageTensors.from_dataset` takes).
        test: the real test set.
        real: the real training set, for the normalization and the baselines: random subsets of equal IPC, another one
            for each network, and the full data. Without it the report says that the baselines are missing.
        ipc: images per class, one or several; needed for a generator, unless it holds a limited number.
        protocol: one or several; `fixed`, and `soft` where there are soft labels, if None.
            `fixed`: one set of `ipc` images per class, tested once at the end.
            `soft`: the same set, but networks learn to predict the logits stored with it (`losses.prediction_gap`), as
            in Chen et al. (2023); `fixed` always stands beside it.
            `dynamic`: that many fresh images each epoch, which is what IPC means in the papers on generators.
            `dynamic-best5-test`: the best of five tests on the way, as the public DiM code reports it.
            `dynamic-pool-m`: m sets of `ipc` images per class by turns, where sampling is too slow for `dynamic`.
            All but the first two need a generator that makes as many images.
        networks: names, or callables `(num_classes, shape) -> nn.Module`.
        n: networks of each architecture.
        recipe: a `Recipe` or the name of one; `paper` if None.
        seed: of the images; network i, and a stream for it, are drawn from `seed + i`.
        sampling: overrides the generator's own.
        name: of the row; the generator's method, or `dataset`, if None.
        with_baselines: False if they are in another report that this one will be merged with.
        quality: also judge the images themselves (see `hf_gdd.report.Quality`), by `n` networks of the first
            architecture that are trained on all of `real`.
        zca: whether networks see images whitened over `real`, as the teacher of soft labels may have. A bank knows; of
            a data set it must be said.
        shared_draws: all n networks see the batches and augmentations of the first one, which a generator then makes
            once; they differ by their first weights alone, and `random-real` by its subsets too. The deviation between
            networks then leaves out what order and augmentation bring, and for `dynamic` which images were made.
        device: where to train; the generator's, else CUDA if there is one.
        progress: show a bar.

    Raises:
        ValueError: an argument that would make the result wrong, or fail later.

    """
    generator = train if isinstance(train, Generator) else None
    ipcs = _several(ipc if ipc is not None else getattr(generator, "max_ipc", None))
    check_seed(seed)
    if not _several(networks):
        raise ValueError("Name at least one network to train, such as networks='convnet3'.")
    device = device or getattr(generator, "device", None)
    test = as_images(test, "test", device)
    real = None if real is None else as_images(real, "train", device)
    own = as_images(train, "train", device) if generator is None else None
    soft = generator.has_soft_labels if own is None else own.soft_labels is not None
    protocols = ("fixed", SOFT)[: 1 + soft] if protocol is None else _several(protocol)
    protocols = tuple(dict.fromkeys(("fixed", *protocols))) if SOFT in protocols else protocols
    _check_request(generator, ipcs, protocols, soft)
    for other in (real, own, generator):
        if other is not None:
            _check_comparable(test, other)
    if own is not None:
        ipcs = (_ipc_of(own, ipcs, exact=real is not None and with_baselines),)
    if quality and real is None:
        raise ValueError("The quality of images is seen by networks trained on real ones: pass real=.")
    if real is not None and (with_baselines or quality):
        for size in ipcs:
            real.require_ipc(size)
    view, origin = _view(generator, own, real, _zca(generator) if zca is None else zca)
    judge = Evaluator(test, view, _several(networks), n, find_recipe(recipe), seed, progress, shared_draws)

    results, scores, made = [], [], None
    sampling = None if generator is None else sampling or generator.sampling
    if pools := [pool_size(how) for how in protocols if pool_size(how)] + [1] * quality if generator else []:
        made = judge.materialize(generator, max(ipcs) * max(pools), sampling)
    if quality:
        seen_by = feature_evaluator(judge, real)
        scores += seen_by.references(ipcs)
        if generator is None:
            scores.append(seen_by.judged(own, name=name or "dataset", ipc=ipcs[0]))
        else:
            scores += seen_by.generator(generator, made, ipcs, sampling, name or generator.method)
    for size in ipcs:
        for how in protocols:
            row = {"name": name or getattr(generator, "method", "dataset"), "protocol": how, "ipc": size}
            if generator is not None:
                results += judge.generator(generator, made, sampling, **row)
            else:
                stored = own.stored_bytes if how == SOFT else own.images.nbytes
                results += judge.fixed(lambda i: own, len(own), stored, **row)
    if real is not None and with_baselines:
        results += judge.baselines(real, ipcs, _labeler(generator, real) if SOFT in protocols else None)
    return judge.report(results, _origin(generator, own, real), origin, scores)


def baselines(
    real: Any,
    test: Any,
    *,
    ipcs: Sequence[int],
    networks: Sequence[NetworkSpec] = ("convnet3",),
    n: int = 5,
    recipe: Recipe | str | None = None,
    seed: int = 0,
    bank: "ImageBank | None" = None,
    shared_draws: bool = False,
    full_data: bool = True,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Report:
    """Random-real subsets at each IPC and the full data, once for many reports; see `evaluate` and `Report.merge`.

    Without `full_data` the subsets alone.

    With `bank`, the same subsets also under `soft`, with labels by the bank's teacher.
    """
    real, test = as_images(real, "train", device), as_images(test, "test", device)
    _check_comparable(test, real)
    for ipc in ipcs:
        real.require_ipc(ipc)
    check_seed(seed)
    if bank is not None and not bank.has_soft_labels:
        raise ValueError("This bank has hard labels alone: leave it out.")
    view, origin = _view(bank, None, real, _zca(bank))
    judge = Evaluator(test, view, _several(networks), n, find_recipe(recipe), seed, progress, shared_draws)
    rows = judge.baselines(real, ipcs, _labeler(bank, real), full_data)
    return judge.report(rows, _origin(None, None, real), origin)


def as_images(data: Any, split: str, device: str | torch.device | None = None, **kwargs: Any) -> ImageTensors:
    """Images of anything that has splits, by the split's name, or of what has none."""
    has_splits = isinstance(data, (str, Path, DatasetDict))
    return ImageTensors.from_dataset(data, split if has_splits else None, device=device, **kwargs)


def _several(value: Any) -> tuple[Any, ...]:
    """One or several values as a tuple without repetition; None as none."""
    if value is None:
        return ()
    values = (value,) if isinstance(value, (int, float, str)) or callable(value) else tuple(value)
    return tuple(dict.fromkeys(values))


def _ipc_of(data: ImageTensors, asked: tuple[int, ...], exact: bool) -> int:
    """The images per class of a data set, on average if it need not be `exact`.

    Raises:
        ValueError: it was asked for another number, or its classes differ in size and that matters.

    """
    if asked and set(data.class_counts) != set(asked):
        raise ValueError(f"ipc is {asked[0]}, but {data.source} holds another number of every class: leave ipc out.")
    if exact and len(set(data.class_counts)) > 1:
        raise ValueError(
            f"The classes of {data.source} have {min(data.class_counts)} to {max(data.class_counts)} images, so no "
            "random-real subset is its equal: balance them, or pass with_baselines=False."
        )
    return len(data) // data.num_classes


def _labeler(bank: Generator | None, real: ImageTensors) -> Callable[[Tensor], Tensor] | None:
    """What a bank's teacher, which sees images as it was trained to, says of any images; None if none came along."""
    if bank is None or not bank.has_soft_labels:
        return None
    transform = input_transform(real, bank.zca)
    return lambda images: bank.label_images(images, transform)


def _zca(generator: Generator | None) -> bool:
    return generator is not None and generator.zca


def _view(
    generator: Generator | None, own: ImageTensors | None, real: ImageTensors | None, zca: bool
) -> tuple[InputTransform, str]:
    """The real set's statistics where there is one, else those the generator carries, else the set's own.

    Raises:
        ValueError: images are to be whitened, but over nothing.

    """
    if zca and real is None:
        raise ValueError("Networks are to see images whitened over the real training set: pass real=, or zca=False.")
    if real is not None:
        return input_transform(real, zca), "the real training set" + (", whitened (ZCA)" if zca else "")
    if generator is not None:
        return Normalize(tuple(generator.mean), tuple(generator.std)), "the generator's record of its training set"
    return Normalize(own.mean, own.std), "the evaluated set itself"


def _origin(generator: Generator | None, own: ImageTensors | None, real: ImageTensors | None) -> str:
    """What stands behind the numbers: the real training set if it is known, else what was evaluated."""
    data = own if real is None else real
    if data is None:
        return f"unknown, of a {generator.method} generator ({generator.fingerprint[:12]})"
    return f"{data.source} ({data.fingerprint[:12]})"


def _check_request(generator: Generator | None, ipcs: tuple[int, ...], protocols: tuple[str, ...], soft: bool) -> None:
    for protocol in protocols:
        pool = pool_size(protocol)
        if protocol == SOFT and not soft:
            raise ValueError("There are no soft labels to be judged by: leave out protocol 'soft'.")
        if protocol not in ("fixed", SOFT) and generator is None:
            raise ValueError(f"A data set can only be judged 'fixed' or 'soft'; {protocol!r} needs a generator.")
        if pool is None and generator.max_ipc is not None:
            raise ValueError(
                f"This generator holds {generator.max_ipc} images per class, no fresh ones for {protocol!r}: judge it "
                "by 'fixed', or 'soft' if it has soft labels."
            )
    if generator is not None and not ipcs:
        raise ValueError("A generator makes any number of images: say how many per class with ipc=10, for example.")
    for ipc in ipcs if generator is not None else ():
        check_ipc(generator, ipc)
        for pool in map(pool_size, protocols):
            check_ipc(generator, ipc * (pool or 1))


def _check_comparable(test: ImageTensors, other: ImageTensors | Generator) -> None:
    test.check_same_classes(other)
    source = getattr(other, "source", "the generator")
    shape = getattr(other, "shape", None) or tuple(other.image_shape)
    if test.shape != shape:
        raise ValueError(
            f"Images of {test.source} are {test.shape}, those of {source} {shape} (channels, height, width): load the "
            "test set with ImageTensors.from_dataset(test, image_size=...)."
        )
