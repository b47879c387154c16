"""The judge: networks trained from scratch on what they are given, all under one set of circumstances."""

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_gdd.classifiers.ensemble import ClassifierEnsemble, can_stack, stack_groups
from hf_gdd.classifiers.learner import Learner, accuracy, iterate_epochs
from hf_gdd.classifiers.networks import NetworkSpec, build_network, network_name
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import InputTransform
from hf_gdd.distilled.stream import DistilledStream
from hf_gdd.evaluation.protocols import LOOKS, pool_size
from hf_gdd.generators.base import Generator
from hf_gdd.report import FULL_DATA, RANDOM_REAL, SOFT, Quality, Report, Result
from hf_gdd.utils.device import keep_freed_memory
from hf_gdd.utils.random import Random

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluator:
    """The circumstances under which every set of one report is judged alike.

    Attributes:
        test: the real test images.
        normalize: what every network sees images through.
        networks: architectures.
        n: networks of each.
        recipe: of their training.
        seed: network i is drawn from `seed + i`.
        progress: show a bar.
        shared_draws: all networks of a row see the batches and augmentations of the first one; see `hf_gdd.evaluate`.

    """

    test: ImageTensors
    normalize: InputTransform
    networks: tuple[NetworkSpec, ...]
    n: int
    recipe: Recipe
    seed: int
    progress: bool
    shared_draws: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}; train at least 1 network (the papers train 5).")
        if self.test.device.type == "cpu":
            keep_freed_memory()
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
        apart: bool = False,
    ) -> list[Result]:
        """Train and test n networks of each architecture on `batches(i, random)`, of `images` images an epoch.

        With `apart`, each has images of its own even where draws are shared.
        """
        recipe = self.recipe.for_ipc(ipc, self.test.num_classes)
        steps, looks, results = recipe.steps(images), LOOKS.get(protocol, 1), []
        epochs = min(pool_size(protocol) or math.inf, steps / recipe.batches(images))
        for spec in self.networks:
            started, accuracies = time.perf_counter(), [0.0] * self.n
            label = f"{name} {protocol} {f'IPC {ipc}' if ipc else ''} {network_name(spec)}"
            for i, network in self.trained(spec, recipe, batches, images, label, looks, apart):
                accuracies[i] = max(accuracies[i], accuracy(network, self.test, self.normalize))
            result = Result(
                name=name,
                protocol=protocol,
                network=network_name(spec),
                ipc=ipc,
                accuracies=tuple(accuracies),
                seeds=tuple(self.seed + i for i in range(self.n)),
                generator_seed=generator_seed,
                steps=steps,
                distinct_images=min(int(images * max(epochs, 1)), steps * recipe.batch_size),
                stored_bytes=stored_bytes,
                seconds=time.perf_counter() - started,
                sampling=sampling,
                generator=generator,
            )
            results.append(result)
        return results

    def trained(
        self,
        spec: NetworkSpec,
        recipe: Recipe,
        batches: Callable[[int, Random], Batches],
        images: int,
        label: str,
        looks: int = 1,
        apart: bool = False,
    ) -> Iterator[tuple[int, nn.Module]]:
        """Every network, by number, as it is at each of `looks` equally distant looks, the last at its end.

        One network is trained after the other, unless stacking them pays or they share one stream of batches: then all
        are looked at before any goes on.
        """
        steps, test, numbers = recipe.steps(images), self.test, range(self.n)
        stacked, one_stream = can_stack(spec, test.device), self.shared_draws and not apart
        hidden = {} if self.progress else {"disable": True}
        with tqdm(total=self.n * steps, desc=label, unit="step", dynamic_ncols=True, **hidden) as bar:
            for members in [numbers] if one_stream else stack_groups(numbers, spec, test.device):
                cohort = ClassifierEnsemble([self._learner(spec, recipe, steps, i) for i in members], stacked)
                streams = members[:1] if one_stream else members
                randoms = [Random(self.seed + (0 if self.shared_draws else i), test.device) for i in streams]
                rows = [iter(batches(i, random)) for i, random in zip(streams, randoms, strict=True)]
                rows[0] = _counted(rows[0], bar, len(members))
                for look in range(looks):
                    share = steps * (look + 1) // looks - steps * look // looks
                    cohort.fit(rows, share, [random.rng for random in randoms])
                    yield from zip(members, (learner.network for learner in cohort.learners), strict=True)

    def _learner(self, spec: NetworkSpec, recipe: Recipe, steps: int, i: int) -> Learner:
        network = build_network(spec, self.test.num_classes, self.test.shape, seed=self.seed + i)
        return Learner(network.to(self.test.device), self.normalize, recipe, steps)

    def fixed(
        self,
        data: Callable[[int], ImageTensors | Sequence[ImageTensors]],
        images: int,
        stored_bytes: int,
        **row: Any,
    ) -> list[Result]:
        """Networks that each see one set of `images` images, or several by turns, in reshuffled epochs."""
        soft = row["protocol"] == SOFT

        def batches(i: int, random: Random) -> Batches:
            return iterate_epochs(data(i), self.recipe, random.rng, soft)

        return self.train(batches, images, stored_bytes, **row)

    def materialize(self, generator: Generator, per_class: int, sampling: Any) -> Tensor:
        """The first images of every class, uint8 [K, per_class, C, H, W], to be cut into sets of any size."""
        labels = torch.arange(generator.num_classes).repeat_interleave(per_class)
        indices = torch.arange(per_class).repeat(generator.num_classes)
        made = generator.sample(labels, indices, self.seed, sampling).to(self.test.device)
        return made.view(generator.num_classes, per_class, *generator.image_shape)

    def images_of(self, made: Tensor, logits: Tensor | None = None, source: str = "materialized") -> ImageTensors:
        """Images [K, n, C, H, W] as a data set, class after class, with logits [K * n, K] if there are any."""
        place = self.test.device
        labels = torch.arange(len(made), device=place).repeat_interleave(made.shape[1])
        soft = None if logits is None else logits.to(place)
        names = self.test.class_names
        return ImageTensors(made.flatten(0, 1), labels, names, source, place, soft_labels=soft)

    def generator(
        self, generator: Generator, made: Tensor | None, sampling: Any, *, protocol: str, ipc: int, **row: Any
    ) -> list[Result]:
        """Networks that see `ipc` images of every class an epoch.

        Always the same, those of a pool by turns, or fresh ones, network i from seed + i.
        """
        row |= {"protocol": protocol, "ipc": ipc} | provenance(generator, sampling)
        images, epochs = ipc * generator.num_classes, pool_size(protocol)
        if epochs is not None:
            parts, logits = made[:, : epochs * ipc].split(ipc, dim=1), None
            if protocol == SOFT:
                labels = torch.arange(generator.num_classes).repeat_interleave(ipc)
                logits = generator.soft_labels(labels, torch.arange(ipc).repeat(generator.num_classes))
            sets = [self.images_of(part, logits) for part in parts]
            return self.fixed(lambda i: sets, images, sum(each.stored_bytes for each in sets), **row)
        size, steps = self.recipe.batch_size, self.recipe.for_ipc(ipc, generator.num_classes).steps(images)

        def batches(i: int, random: Random) -> Batches:
            for fresh in DistilledStream(generator, ipc, self.seed + i, size, sampling).batches(steps):
                yield tuple(part.to(self.test.device) for part in fresh)

        return self.train(batches, images, generator.stored_bytes, **row)

    def baselines(
        self,
        real: ImageTensors,
        ipcs: Iterable[int],
        label: Callable[[Tensor], Tensor] | None = None,
        full_data: bool = True,
    ) -> list[Result]:
        """For each IPC random real images, another subset for each network; with `full_data` the ceiling, all of them.

        Subsets stay different where draws are shared: it is their order and augmentation that networks then have alike.

        With `label`, uint8 images [N, C, H, W] to a teacher's logits, also the same subsets with its soft labels.
        """
        results, image = [], real.images[0].nbytes
        for ipc in ipcs:
            size, row = ipc * real.num_classes, {"name": RANDOM_REAL, "ipc": ipc, "apart": True}
            drawn = [real.subset(ipc, self.seed + i) for i in range(self.n)]
            results += self.fixed(drawn.__getitem__, size, size * image, protocol="fixed", **row)
            if label is not None:
                drawn = [replace(each, soft_labels=label(each.images)) for each in drawn]
                results += self.fixed(drawn.__getitem__, size, drawn[0].stored_bytes, protocol=SOFT, **row)
        if not full_data:
            return results
        row = {"name": FULL_DATA, "protocol": "fixed", "ipc": None}
        return results + self.fixed(lambda i: real, len(real), len(real) * image, **row)

    def report(self, results: list[Result], train: str, normalization: str, quality: Iterable[Quality] = ()) -> Report:
        """Results with these circumstances."""
        device = self.test.device
        cpu = f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
        return Report(
            results=tuple(results),
            quality=tuple(quality),
            train=train,
            test=f"{self.test.source} ({self.test.fingerprint[:12]})",
            recipe=json.loads(json.dumps(asdict(self.recipe))),  # as it is read back
            normalization=normalization,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
            versions={name: version(name) for name in ("hf_gdd", "torch", "datasets")},
            shared_draws=self.shared_draws,
        )


def _counted(batches: Batches, bar: tqdm, networks: int) -> Batches:
    """The same batches, each of them a step of so many networks."""
    for batch in batches:
        bar.update(networks)
        yield batch


def provenance(generator: Generator, sampling: Any) -> dict[str, Any]:
    """What a row says of the generator behind it."""
    text = ", ".join(f"{name}={value}" for name, value in sampling.identity().items())
    return {"generator_seed": generator.seed, "generator": generator.fingerprint, "sampling": text}
