"""Measure a data set or a generator by networks trained on it alone.

This module is longer than others because `evaluate` explains every option of an evaluation.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict

from hf_gdd.classifiers.coresets import CORESETS
from hf_gdd.classifiers.networks import NetworkSpec
from hf_gdd.classifiers.recipes import Recipe, find_recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import InputTransform, Normalize, input_transform
from hf_gdd.evaluation.evaluator import Evaluator
from hf_gdd.evaluation.image_quality import FeatureEvaluator, feature_evaluator
from hf_gdd.evaluation.protocols import (
    check_comparable,
    check_data,
    check_generator,
    choose_protocols,
    choose_sampling,
    count_per_class,
    materialize,
)
from hf_gdd.evaluation.references import evaluate_references
from hf_gdd.generators.base import Generator
from hf_gdd.generators.checks import check_image_seed, log_plain_seed
from hf_gdd.report import FIXED, Protocol, Quality, Report, Result, find_protocol


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
    image_seed: int = 0,
    sampling: Any = None,
    name: str | None = None,
    with_baselines: bool = True,
    coresets: str | Sequence[str] = (),
    quality: bool = False,
    zca: bool | None = None,
    shared_draws: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Report:
    """Train fresh networks on `train` alone, and test them on real images.

    Example:
        report = evaluate(generator, real["test"], real=real["train"], ipc=[1, 10, 50])
        print(report.markdown())

    Args:
        train: a generator, or a data set (anything `ImageTensors.from_dataset` takes).
        test: the real test set.
        real: the real training set. It gives the normalization and the baselines: random subsets of equal IPC, another
            one for each network, and the full data. Without it the report says that baselines are missing.
        ipc: images per class, one number or several. A generator without `max_ipc` needs it.
        protocol: one name or several of the table `hf_gdd.report.PROTOCOLS`. By default a set with hard labels, and one
            with soft labels where there are any; hard labels always stand beside soft ones. Protocols with fresh images
            or several sets need a generator that makes as many; they take plain draws, never distilled images.
        networks: names, or callables `(num_classes, shape) -> nn.Module`.
        n: number of networks of each architecture.
        recipe: a `Recipe` or the name of one; `paper` if None.
        seed: seed of the networks and of the random subsets: those of network i are drawn from `seed + i`.
        image_seed: seed of a generator's images; distilled ones are those of seed 0. Fresh images of network i have the
            seed `image_seed + i`.
        sampling: overrides the generator's own.
        name: name of the row; by default the generator's method, or `dataset`.
        with_baselines: False if another report, to be merged with this one, has the baselines.
        coresets: choices of real images to stand beside the random subsets, such as "herding"; see
            `hf_gdd.classifiers.CORESETS`.
        quality: also score the images themselves (see `hf_gdd.report.Quality`), with `n` networks of the first
            architecture trained on all of `real`.
        zca: whether networks see images whitened over `real`, as the teacher of soft labels may have. A generator knows
            it by itself; for a data set the default is False.
        shared_draws: let all n networks see the batches and augmentations of the first one, so that a generator makes
            them once. Networks then differ only by their first weights, and `random-real` by its subsets too: the
            deviation between networks leaves out the effect of order, augmentation and fresh images.
        device: where to train; by default the generator's device, else CUDA if there is one.
        progress: show a progress bar.

    Raises:
        ValueError: an argument would make the result wrong, or fail later.

    """
    generator, ipcs = train if isinstance(train, Generator) else None, _as_tuple(ipc)
    if generator is not None:
        device, ipcs = device or generator.device, ipcs or _as_tuple(generator.max_ipc)
    coresets = _check_coresets(coresets, real is not None and with_baselines)
    test, real = as_images(test, "test", device), None if real is None else as_images(real, "train", device)
    data = as_images(train, "train", device) if generator is None else None
    soft = data.soft_labels is not None if generator is None else generator.has_soft_labels
    protocols = choose_protocols(_as_tuple(protocol), soft)
    if generator is None:
        check_data(protocols)
        if image_seed:
            raise ValueError(f"image_seed is {image_seed}, but the images of a data set are fixed: leave it out.")
    else:
        check_generator(generator, protocols, ipcs)
        check_image_seed(generator, image_seed)
    check_comparable(test, real, data, generator)
    if data is not None:
        ipcs = (count_per_class(data, ipcs, exact=real is not None and with_baselines),)
    if quality and real is None:
        raise ValueError("The quality of images needs networks trained on real ones: pass real=.")
    for size in ipcs if real is not None and (with_baselines or quality) else ():
        real.check_ipc(size)

    if zca is None:
        zca = generator is not None and generator.zca
    transform, origin = _choose_transform(generator, data, real, zca)
    settings = (_as_tuple(networks), n, find_recipe(recipe), seed, progress, shared_draws, image_seed)
    evaluator = Evaluator(test, transform, *settings)
    scorer = feature_evaluator(evaluator, real) if quality else None
    if generator is None:
        results, scores = _evaluate_data(evaluator, scorer, data, ipcs[0], protocols, name or "dataset")
    else:
        results, scores = _evaluate_generator(evaluator, scorer, generator, ipcs, protocols, sampling, name)
    if real is not None and with_baselines:
        with_soft = any(protocol.soft for protocol in protocols)
        results += evaluate_references(evaluator, real, ipcs, generator if with_soft else None, coresets)
    return evaluator.build_report(results, _describe_source(generator, data, real), origin, scores)


def baselines(
    real: Any,
    test: Any,
    *,
    ipc: int | Sequence[int],
    networks: Sequence[NetworkSpec] = ("convnet3",),
    n: int = 5,
    recipe: Recipe | str | None = None,
    seed: int = 0,
    bank: Generator | None = None,
    coresets: str | Sequence[str] = (),
    shared_draws: bool = False,
    full_data: bool = True,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Report:
    """Evaluate the baselines of several reports at once; see `Report.merge`.

    Args:
        real: the real training set.
        test: the real test set.
        ipc: images per class of the subsets, one number or several.
        networks: names or callables, as in `evaluate`.
        n: number of networks of each architecture.
        recipe: a `Recipe` or the name of one.
        seed: seed of the subsets and networks.
        bank: a generator of any kind; evaluate the same subsets with labels by its teacher too, and the teacher itself.
        coresets: choices of real images, as in `evaluate`.
        shared_draws: let all networks of a row see the same draws, as in `evaluate`.
        full_data: False for the subsets alone.
        device: where to train.
        progress: show a progress bar.

    Raises:
        ValueError: an argument would make the result wrong, or fail later.

    """
    real, test, ipcs = as_images(real, "train", device), as_images(test, "test", device), _as_tuple(ipc)
    check_comparable(test, real)
    for size in ipcs:
        real.check_ipc(size)
    if bank is not None and not bank.has_soft_labels:
        raise ValueError("This generator has hard labels alone: leave bank out.")
    coresets = _check_coresets(coresets, True)
    transform, origin = _choose_transform(bank, None, real, bank is not None and bank.zca)
    evaluator = Evaluator(test, transform, _as_tuple(networks), n, find_recipe(recipe), seed, progress, shared_draws)
    results = evaluate_references(evaluator, real, ipcs, bank, coresets, full_data)
    return evaluator.build_report(results, _describe_source(None, None, real), origin)


def as_images(data: Any, split: str, device: str | torch.device | None = None, **kwargs: Any) -> ImageTensors:
    """Load a split of a data set with splits, or a data set without splits."""
    has_splits = isinstance(data, (str, Path, DatasetDict))
    return ImageTensors.from_dataset(data, split if has_splits else None, device=device, **kwargs)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """Return one value or several as a tuple without repetition; None as ()."""
    if value is None:
        return ()
    values = (value,) if isinstance(value, (int, float, str)) or callable(value) else tuple(value)
    return tuple(dict.fromkeys(values))


def _check_coresets(names: str | Sequence[str], beside: bool) -> tuple[str, ...]:
    """Return the rules of coresets as a tuple.

    Raises:
        ValueError: there is no such rule, or no row of real images is asked for.

    """
    names = _as_tuple(names)
    if unknown := [name for name in names if name not in CORESETS]:
        raise ValueError(f"Unknown coreset {unknown[0]!r}; choose of {', '.join(CORESETS)}.")
    if names and not beside:
        raise ValueError("Coresets are chosen of real images: pass real=, and leave with_baselines as it is.")
    return names


def _evaluate_data(
    evaluator: Evaluator,
    scorer: FeatureEvaluator | None,
    data: ImageTensors,
    ipc: int,
    protocols: Sequence[Protocol],
    name: str,
) -> tuple[list[Result], list[Quality]]:
    """Evaluate a data set under every protocol, and score its images if asked for."""
    scores = [] if scorer is None else [*scorer.score_references((ipc,)), scorer.score(data, name=name, ipc=ipc)]
    results = []
    for protocol in protocols:
        stored = data.stored_bytes if protocol.soft else data.images.nbytes
        row = {"name": name, "protocol": protocol.name, "ipc": ipc}
        results += evaluator.evaluate_set(lambda i: data, len(data), stored, **row)
    return results, scores


def _evaluate_generator(
    evaluator: Evaluator,
    scorer: FeatureEvaluator | None,
    generator: Generator,
    ipcs: Sequence[int],
    protocols: Sequence[Protocol],
    sampling: Any,
    name: str | None,
) -> tuple[list[Result], list[Quality]]:
    """Evaluate a generator under every protocol, and score its images if asked for."""
    name, results, scores = name or generator.method, [], []
    seed, fixed = evaluator.image_seed, find_protocol(FIXED)
    log_plain_seed(generator, seed, generator.choose_sampling(sampling))
    chosen = {protocol: choose_sampling(generator, protocol, sampling, seed) for protocol in protocols}
    sets = [(chosen[protocol], protocol.sets) for protocol in protocols if not protocol.fresh]
    if scorer is not None:
        sets.append((choose_sampling(generator, fixed, sampling, seed), 1))
    images = {}
    for each in dict.fromkeys(each for each, _ in sets):  # made once for all protocols with these settings
        per_class = max(ipcs) * max(count for other, count in sets if other == each)
        images[each] = materialize(generator, per_class, seed, each, evaluator.test.device)
    if scorer is not None:
        scored = sets[-1][0]
        scores += scorer.score_references(ipcs)
        scores += scorer.score_generator(generator, images[scored], ipcs, scored, name)
    for ipc, protocol in product(ipcs, protocols):
        each = chosen[protocol]
        row = {"name": name, "protocol": protocol.name, "ipc": ipc}
        results += evaluator.evaluate_generator(generator, images.get(each), each, **row)
    return results, scores


def _choose_transform(
    generator: Generator | None, data: ImageTensors | None, real: ImageTensors | None, zca: bool
) -> tuple[InputTransform, str]:
    """Return an input transform and the origin of its statistics.

    Raises:
        ValueError: images are to be whitened, but there is no real set.

    """
    if zca and real is None:
        raise ValueError("Networks are to see images whitened over the real training set: pass real=, or zca=False.")
    if real is not None:
        return input_transform(real, zca), "the real training set" + (", whitened (ZCA)" if zca else "")
    if generator is not None:
        return Normalize(generator.mean, generator.std), "the generator's record of its training set"
    return Normalize(data.mean, data.std), "the evaluated set itself"


def _describe_source(generator: Generator | None, data: ImageTensors | None, real: ImageTensors | None) -> str:
    """Name the real training set if it is known, else the evaluated data."""
    data = data if real is None else real
    if data is None:
        return f"unknown, of a {generator.method} generator ({generator.fingerprint[:12]})"
    return f"{data.source} ({data.fingerprint[:12]})"
