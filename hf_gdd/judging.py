"""The judge: networks trained from scratch on what they are given, all under one set of circumstances."""

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_gdd.classifiers import Learner, Normaliser, Recipe, accuracy, epochs_of, fit_classifier
from hf_gdd.generators.base import Generator
from hf_gdd.images import ImageTensors
from hf_gdd.networks import NetworkSpec, build_network, network_name
from hf_gdd.report import FULL_DATA, RANDOM_REAL, Report, Result
from hf_gdd.rng import Random
from hf_gdd.stream import DistilledStream

# How often each protocol looks at the test set. The public DiM code keeps the best of five looks; we look once.
LOOKS = {"fixed": 1, "dynamic": 1, "dynamic-best5-test": 5}

Batches = Iterable[tuple[Tensor, Tensor]]


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
        sampling: str | None = None,
        generator: str | None = None,
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
                distinct_images=min(int(images * epochs), steps * self.recipe.batch_size),
                stored_bytes=stored_bytes,
                seconds=time.perf_counter() - started,
                sampling=sampling,
                generator=generator,
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

    def fixed(self, data: Callable[[int], ImageTensors], images: int, stored_bytes: int, **row: Any) -> list[Result]:
        """Networks that each see one set, `data(i)` of `images` images, in reshuffled epochs."""
        return self.train(lambda i, random: epochs_of(data(i), self.recipe, random.device), images, stored_bytes, **row)

    def generator(self, generator: Generator, sampling: Any, *, protocol: str, ipc: int, **row: Any) -> list[Result]:
        """Networks that see `ipc` images of every class: always the same, or fresh ones, network i from seed + i."""
        row |= {"protocol": protocol, "ipc": ipc, "generator_seed": generator.seed, "generator": generator.fingerprint}
        row["sampling"] = ", ".join(f"{name}={value}" for name, value in sampling.identity().items())
        images = ipc * generator.num_classes
        if protocol == "fixed":
            labels = torch.arange(generator.num_classes).repeat_interleave(ipc)
            made = generator.sample(labels, torch.arange(ipc).repeat(generator.num_classes), self.seed, sampling)
            place, names = self.test.device, tuple(generator.class_names)
            data = ImageTensors(made.to(place), labels.to(place), names, "materialised", place)
            return self.fixed(lambda i: data, images, made.nbytes, **row)
        size, steps = self.recipe.batch_size, self.recipe.steps(images)

        def batches(i: int, random: Random) -> Batches:
            for made in DistilledStream(generator, ipc, self.seed + i, size, sampling).batches(steps):
                yield tuple(part.to(self.test.device) for part in made)

        return self.train(batches, images, generator.stored_bytes, **row)

    def baselines(self, real: ImageTensors, ipcs: Iterable[int]) -> list[Result]:
        """For each IPC random real images, another subset for each network; and the ceiling, all of them."""
        results, image = [], real.images[0].nbytes
        for ipc in ipcs:
            size, row = ipc * real.num_classes, {"name": RANDOM_REAL, "protocol": "fixed", "ipc": ipc}
            results += self.fixed(lambda i, ipc=ipc: real.subset(ipc, self.seed + i), size, size * image, **row)
        row = {"name": FULL_DATA, "protocol": "fixed", "ipc": None}
        return results + self.fixed(lambda i: real, len(real), len(real) * image, **row)

    def report(self, results: list[Result], train: str, normalisation: str) -> Report:
        """Results with these circumstances."""
        device = self.test.device
        cpu = f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
        return Report(
            results=tuple(results),
            train=train,
            test=f"{self.test.source} ({self.test.fingerprint[:12]})",
            recipe=asdict(self.recipe),
            normalisation=normalisation,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
            versions={name: version(name) for name in ("hf_gdd", "torch", "datasets")},
        )
