"""What a data set or a generator is worth: networks trained on it alone, tested on real images."""

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import Tensor
from tqdm.auto import tqdm

from hf_gdd.builder import DistilledStream, check_ipc
from hf_gdd.classifiers import Learner, Normaliser, Recipe, accuracy, epochs_of, find_recipe, fit_classifier
from hf_gdd.generators.base import Generator
from hf_gdd.images import ImageTensors
from hf_gdd.networks import NetworkSpec, build_network, network_name
from hf_gdd.report import FULL_DATA, RANDOM_REAL, Report, Result
from hf_gdd.rng import Random

# How often each protocol looks at the test set. The public DiM code keeps the best of five looks; we look once.
LOOKS = {"fixed": 1, "dynamic": 1, "dynamic-best5-test": 5}

Batches = Iterable[tuple[Tensor, Tensor]]


def evaluate(
    train: Any,
    test: Any,
    *,
    real: Any = None,
    ipc: int | None = None,
    protocol: str = "fixed",
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
        ipc: images per class; needed for a generator.
        protocol: `fixed`: one set of `ipc` images per class, tested once at the end. `dynamic`: that many fresh images
            each epoch, which is what IPC means in the papers on generators. `dynamic-best5-test`: the best of five
            tests on the way, as the public DiM code reports it. The last two need a generator without limit.
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
    _check_protocol(generator, protocol, ipc)
    device = device or getattr(generator, "device", None)
    test = as_images(test, "test", device)
    real = None if real is None else as_images(real, "train", device)
    data = as_images(train, "train", device) if generator is None else _sample_set(generator, ipc, seed, test.device)
    for other in (data, real):
        if other is not None:
            _check_comparable(test, other)

    if generator is None and ipc is not None and set(data.class_counts) != {ipc}:
        raise ValueError(
            f"ipc is {ipc}, but {data.source} does not hold that many images of every class: leave ipc out."
        )
    ipc = ipc or len(data) // data.num_classes
    if real is not None and with_baselines:
        real.require_ipc(ipc)
    normalise, origin = _normaliser(generator, data, real)
    judge = Judge(test, normalise, tuple(networks), n, find_recipe(recipe), seed, progress)
    row = {"name": name or getattr(generator, "method", "dataset"), "protocol": protocol, "ipc": ipc}
    row["generator_seed"] = getattr(generator, "seed", None)
    if protocol == "fixed":
        results = judge.train(lambda i, random: judge.epochs(data, random), len(data), data.images.nbytes, **row)
    else:
        size = judge.recipe.batch_size
        results = judge.train(
            lambda i, random: DistilledStream(generator, ipc, seed + i, size).batches(judge.recipe.steps(len(data))),
            len(data),
            generator.stored_bytes,
            **row,
        )
    if real is not None and with_baselines:
        results += judge.random_real(real, ipc) + judge.full_data(real)
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
    results = [result for ipc in ipcs for result in judge.random_real(real, ipc)]
    return judge.report(results + judge.full_data(real), real, origin)


@dataclass(frozen=True)
class Judge:
    """The circumstances under which every set of one report is judged alike.

    Attributes:
        test: the real test images.
        normalise: what every network sees images through.
        networks: architectures.
        n: networks of each.
        recipe: of their training.
        seed: network i is drawn from `seed + i`.
        progress: show a bar.

    """

    test: ImageTensors
    normalise: Normaliser
    networks: tuple[NetworkSpec, ...]
    n: int
    recipe: Recipe
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}; train at least 1 network (the papers train 5).")
        for spec in self.networks:  # an unknown name must not surface after an hour of training another
            build_network(spec, self.test.num_classes, self.test.shape, seed=0)

    def train(
        self,
        batches: Callable[[int, Random], Batches],
        images: int,
        stored_bytes: int,
        *,
        name: str,
        protocol: str,
        ipc: int | None,
        generator_seed: int | None = None,
    ) -> list[Result]:
        """Train and test n networks of each architecture on `batches(i, random)`, of `images` images an epoch."""
        steps, looks, results = self.recipe.steps(images), LOOKS[protocol], []
        epochs = 1 if protocol == "fixed" else steps / self.recipe.batches(images)
        hidden = {} if self.progress else {"disable": True}
        for spec in self.networks:
            started = time.perf_counter()
            label = f"{name} {protocol} {f'IPC {ipc}' if ipc else ''} {network_name(spec)}"
            accuracies = [
                self._accuracy(spec, i, batches, steps, looks)
                for i in tqdm(range(self.n), desc=label, unit="net", dynamic_ncols=True, **hidden)
            ]
            result = Result(
                name=name,
                protocol=protocol,
                network=network_name(spec),
                ipc=ipc,
                accuracies=tuple(accuracies),
                seeds=tuple(self.seed + i for i in range(self.n)),
                generator_seed=generator_seed,
                steps=steps,
                distinct_images=int(images * epochs),
                stored_bytes=stored_bytes,
                seconds=time.perf_counter() - started,
            )
            results.append(result)
        return results

    def _accuracy(
        self, spec: NetworkSpec, i: int, batches: Callable[[int, Random], Batches], steps: int, looks: int
    ) -> float:
        random = Random(self.seed + i, self.test.device)
        network = build_network(spec, self.test.num_classes, self.test.shape, seed=self.seed + i)
        learner = Learner(network.to(self.test.device), self.normalise, self.recipe, steps)
        rows, best = iter(batches(i, random)), 0.0
        for look in range(looks):
            part = steps * (look + 1) // looks - steps * look // looks
            fit_classifier(learner, rows, part, random.device)
            best = max(best, accuracy(network, self.test, self.normalise))
        return best

    def epochs(self, data: ImageTensors, random: Random) -> Batches:
        """Reshuffled epochs over a fixed set."""
        return epochs_of(data, self.recipe, random.device)

    def random_real(self, real: ImageTensors, ipc: int) -> list[Result]:
        """The baseline: `ipc` real images of every class, another subset for each network."""
        size = ipc * real.num_classes
        stored = size * real.images[0].nbytes
        row = {"name": RANDOM_REAL, "protocol": "fixed", "ipc": ipc}
        return self.train(lambda i, random: self.epochs(real.subset(ipc, self.seed + i), random), size, stored, **row)

    def full_data(self, real: ImageTensors) -> list[Result]:
        """The ceiling: all real images, by the same recipe."""
        row = {"name": FULL_DATA, "protocol": "fixed", "ipc": None}
        return self.train(lambda i, random: self.epochs(real, random), len(real), real.images.nbytes, **row)

    def report(self, results: list[Result], train: ImageTensors, origin: str) -> Report:
        """Results with these circumstances."""
        device = self.test.device
        cpu = f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
        return Report(
            results=tuple(results),
            train=f"{train.source} ({train.fingerprint[:12]})",
            test=f"{self.test.source} ({self.test.fingerprint[:12]})",
            recipe=asdict(self.recipe),
            normalisation=origin,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
            versions={name: version(name) for name in ("hf_gdd", "torch", "datasets")},
        )


def as_images(data: Any, split: str, device: str | torch.device | None = None, **kwargs: Any) -> ImageTensors:
    """Images of anything that has splits, by the split's name, or of what has none."""
    has_splits = isinstance(data, (str, Path, DatasetDict))
    return ImageTensors.from_dataset(data, split if has_splits else None, device=device, **kwargs)


def _sample_set(generator: Generator, ipc: int, seed: int, device: torch.device) -> ImageTensors:
    """The materialised set, without the detour through files."""
    labels = torch.arange(generator.num_classes).repeat_interleave(ipc)
    images = generator.sample(labels, torch.arange(ipc).repeat(generator.num_classes), seed)
    source = f"{generator.method} generator {generator.fingerprint[:12]}, IPC {ipc}, seed {seed}"
    return ImageTensors(images.to(device), labels.to(device), generator.class_names, source, device)


def _normaliser(generator: Generator | None, data: ImageTensors, real: ImageTensors | None) -> tuple[Normaliser, str]:
    """The real set's statistics where there is one, else those the generator carries, else the set's own."""
    if real is not None:
        return Normaliser(real.mean, real.std), "the real training set"
    if generator is not None:
        return Normaliser(generator.mean, generator.std), "the generator's record of its training set"
    return Normaliser(data.mean, data.std), "the evaluated set itself"


def _check_protocol(generator: Generator | None, protocol: str, ipc: int | None) -> None:
    if protocol not in LOOKS:
        raise ValueError(f"Unknown protocol {protocol!r}; choose one of {', '.join(LOOKS)}.")
    if generator is None:
        if protocol != "fixed":
            raise ValueError(f"A data set can only be judged 'fixed'; protocol {protocol!r} needs a generator.")
        return
    if ipc is None:
        raise ValueError("A generator makes any number of images: say how many per class with ipc=10, for example.")
    check_ipc(generator, ipc)
    if protocol != "fixed" and generator.max_ipc is not None:
        raise ValueError(f"This generator holds {generator.max_ipc} images per class: judge it with protocol='fixed'.")


def _check_comparable(test: ImageTensors, other: ImageTensors) -> None:
    test.check_same_classes(other)
    if test.shape != other.shape:
        raise ValueError(
            f"Images of {test.source} are {test.shape}, those of {other.source} {other.shape} (channels, height, "
            "width): load the test set with ImageTensors.from_dataset(test, image_size=...)."
        )
