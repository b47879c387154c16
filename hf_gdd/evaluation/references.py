"""Evaluate real images and a teacher, for comparison with a generator."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_gdd.classifiers.coresets import coreset_features, cut_coresets
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import input_transform
from hf_gdd.evaluation.evaluator import Evaluator
from hf_gdd.generators.base import Generator
from hf_gdd.report import FIXED, FULL_DATA, RANDOM_REAL, SOFT, TEACHER, Result


def evaluate_references(
    evaluator: Evaluator,
    real: ImageTensors,
    ipcs: Sequence[int],
    generator: Generator | None = None,
    coresets: Sequence[str] = (),
    full_data: bool = True,
) -> list[Result]:
    """Evaluate random subsets of the real set, coresets, the full data and a teacher.

    Each network has another random subset, even if draws are shared: then only order and augmentation are equal.

    Args:
        evaluator: trains and tests the networks. Coresets are chosen by features of its first architecture.
        real: the real training set.
        ipcs: images per class of the subsets.
        generator: its teacher labels the same subsets for soft rows, and is tested itself; None for neither.
        coresets: rules of `hf_gdd.classifiers.CORESETS`.
        full_data: evaluate the full data too.

    """
    label, results, image = labeler(generator, real), [], real.images[0].nbytes
    chosen = _choose(evaluator, real, ipcs, coresets)
    for ipc in ipcs:
        sets = {RANDOM_REAL: [real.subset(ipc, evaluator.seed + i) for i in range(evaluator.n)]}
        sets |= {rule: [chosen[rule, ipc]] for rule in coresets}
        for name, each in sets.items():
            size, row = ipc * real.num_classes, {"name": name, "ipc": ipc, "own_data": len(each) > 1}
            results += evaluator.evaluate_set(_in_turn(each), size, size * image, protocol=FIXED, **row)
            if label is not None:
                soft = [replace(subset, soft_labels=label(subset.images)) for subset in each]
                results += evaluator.evaluate_set(_in_turn(soft), size, soft[0].stored_bytes, protocol=SOFT, **row)
    if full_data:
        row = {"name": FULL_DATA, "protocol": FIXED, "ipc": None}
        results += evaluator.evaluate_set(lambda i: real, len(real), len(real) * image, **row)
    return results if label is None else [*results, _test_teacher(evaluator, generator, label)]


def labeler(generator: Generator | None, real: ImageTensors) -> Callable[[Tensor], Tensor] | None:
    """Return the function by which a generator's teacher labels images, if any.

    It maps uint8 images [N, C, H, W] to logits [N, K].
    """
    if generator is None or not generator.has_soft_labels:
        return None
    transform = input_transform(real, zca=True) if generator.zca else None
    return lambda images: generator.label_images(images, transform)


def _in_turn(sets: Sequence[ImageTensors]) -> Callable[[int], ImageTensors]:
    """Return the function that gives network i its own set, or the only one."""
    return lambda i: sets[i % len(sets)]


def _choose(
    evaluator: Evaluator, real: ImageTensors, ipcs: Sequence[int], rules: Sequence[str]
) -> dict[tuple[str, int], ImageTensors]:
    """Choose coresets by the features of one network, trained on all real images."""
    if not rules or not ipcs:
        return {}
    recipe = evaluator.recipe.for_ipc(None, real.num_classes)
    return cut_coresets(rules, coreset_features(evaluator.networks[0], real, recipe, evaluator.seed), real, ipcs)


def _test_teacher(evaluator: Evaluator, generator: Generator, label: Callable[[Tensor], Tensor]) -> Result:
    """Test the network whose logits are the soft labels on the real test images."""
    started, test = time.perf_counter(), evaluator.test
    correct = torch.cat([label(part).argmax(1) for part in test.images.split(1000)]) == test.labels
    return Result(
        name=TEACHER,
        protocol=FIXED,
        network=generator.teacher.config.network,
        ipc=None,
        accuracies=(int(correct.sum()) / len(test),),
        seeds=(),
        generator_seed=None,
        steps=0,
        distinct_images=0,
        stored_bytes=generator.teacher.stored_bytes,
        seconds=time.perf_counter() - started,
    )
