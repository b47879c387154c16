"""Train classifiers from scratch and measure their accuracy on real test images."""

import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from hf_gdd.evaluation.protocols import Batches, count_distinct, cut_sets, fresh_batches, stored_parts
from hf_gdd.generators.base import Generator
from hf_gdd.report import Quality, Report, Result, find_protocol
from hf_gdd.utils.device import keep_freed_memory
from hf_gdd.utils.progress import progress_bar
from hf_gdd.utils.random import Random, check_seed


@dataclass(frozen=True)
class Evaluator:
    """Train and test networks on several training sets under the same conditions.

    `hf_gdd.evaluate` uses it; use it directly for training data that is neither a set nor a generator. Rows of real
    images come from `hf_gdd.evaluation.references`.

    Attributes:
        test: the real test images.
        transform: input transform of every network.
        networks: architectures.
        n: number of networks of each architecture.
        recipe: how they are trained.
        seed: network i is drawn from `seed + i`.
        progress: show a progress bar.
        shared_draws: all networks of a row see the batches and augmentations of the first one; see `hf_gdd.evaluate`.
        image_seed: seed of a generator's images; fresh images of network i have `image_seed + i`.

    Example:
        evaluator = Evaluator(test, Normalize(real.mean, real.std), ("convnet3",), 5, Recipe(), seed=0, progress=True)
        results = evaluate_references(evaluator, real, [1, 10])
        print(evaluator.build_report(results, real.source, "the real training set"))

    """

    test: ImageTensors
    transform: InputTransform
    networks: tuple[NetworkSpec, ...]
    n: int
    recipe: Recipe
    seed: int
    progress: bool
    shared_draws: bool = False
    image_seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.networks:
            raise ValueError("Name at least one network to train, such as networks='convnet3'.")
        if self.n < 1:
            raise ValueError(f"n is {self.n}; train at least 1 network (the papers train 5).")
        keep_freed_memory(self.test.device)
        for spec in self.networks:  # an unknown name must not surface after an hour of training another
            build_network(spec, self.test.num_classes, self.test.shape, seed=0)

    def evaluate_batches(
        self,
        batches: Callable[[int, Random], Batches],
        images: int,
        stored_bytes: int,
        *,
        name: str,
        protocol: str,
        ipc: int | None,
        own_data: bool = False,
        **identity: Any,
    ) -> list[Result]:
        """Train and test n networks of each architecture.

        Args:
            batches: given the number of a network and its random numbers, its batches of images and labels.
            images: number of images in one epoch.
            stored_bytes: size of the training data, as in `Result`.
            name: name of the row.
            protocol: name of the protocol.
            ipc: images per class; None for full data.
            own_data: give each network images of its own even if draws are shared.
            identity: fields from `provenance`, if the images are a generator's.

        """
        how, recipe, results = find_protocol(protocol), self.recipe.for_ipc(ipc, self.test.num_classes), []
        steps = recipe.steps(images)
        for spec in self.networks:
            started, accuracies = time.perf_counter(), [0.0] * self.n
            label = f"{name} {protocol} {f'IPC {ipc}' if ipc else ''} {network_name(spec)}"
            for i, network in self.train_networks(spec, recipe, batches, images, label, how.looks, own_data):
                accuracies[i] = max(accuracies[i], accuracy(network, self.test, self.transform))
            row = Result(
                name=name,
                protocol=protocol,
                network=network_name(spec),
                ipc=ipc,
                accuracies=tuple(accuracies),
                seeds=tuple(self.seed + i for i in range(self.n)),
                steps=steps,
                distinct_images=count_distinct(how, images, steps, recipe),
                stored_bytes=stored_bytes,
                seconds=time.perf_counter() - started,
                **{"generator_seed": None} | identity,
            )
            results.append(row)
        return results

    def train_networks(
        self,
        spec: NetworkSpec,
        recipe: Recipe,
        batches: Callable[[int, Random], Batches],
        images: int,
        label: str,
        looks: int = 1,
        own_data: bool = False,
    ) -> Iterator[tuple[int, nn.Module]]:
        """Train n networks of one architecture.

        Networks are trained one after the other, unless they can be stacked or share one stream of batches.

        Args:
            spec: the architecture.
            recipe: how the networks are trained.
            batches: as in `evaluate_batches`, like `images` and `own_data`.
            images: number of images in one epoch.
            label: text before the progress bar.
            looks: how often each network is yielded, at equal distances, the last time at the end of its training.
            own_data: give each network images of its own even if draws are shared.

        Yields:
            The number of a network, and the network.

        """
        steps, test, numbers = recipe.steps(images), self.test, range(self.n)
        stacked, one_stream = can_stack(spec, test.device), self.shared_draws and not own_data
        with progress_bar(self.progress, total=self.n * steps, desc=label, unit="step") as bar:
            for members in [numbers] if one_stream else stack_groups(numbers, spec, test.device):
                ensemble = ClassifierEnsemble([self._learner(spec, recipe, steps, i) for i in members], stacked)
                streams = members[:1] if one_stream else members
                randoms = [Random(self.seed + (0 if self.shared_draws else i), test.device) for i in streams]
                rows = [iter(batches(i, random)) for i, random in zip(streams, randoms, strict=True)]
                rows[0] = _show_progress(rows[0], bar, len(members))
                for look in range(looks):
                    share = steps * (look + 1) // looks - steps * look // looks
                    ensemble.fit(rows, share, [random.rng for random in randoms])
                    yield from zip(members, (learner.network for learner in ensemble.learners), strict=True)

    def _learner(self, spec: NetworkSpec, recipe: Recipe, steps: int, i: int) -> Learner:
        network = build_network(spec, self.test.num_classes, self.test.shape, seed=self.seed + i)
        return Learner(network.to(self.test.device), self.transform, recipe, steps)

    def evaluate_set(
        self, data: Callable[[int], ImageTensors | Sequence[ImageTensors]], images: int, stored_bytes: int, **row: Any
    ) -> list[Result]:
        """Evaluate a set, or several that take turns, each epoch in another order.

        `data(i)` is the set or sets of network i; the other arguments are those of `evaluate_batches`.
        """
        soft = find_protocol(row["protocol"]).soft

        def batches(i: int, random: Random) -> Batches:
            return iterate_epochs(data(i), self.recipe, random.rng, soft)

        return self.evaluate_batches(batches, images, stored_bytes, **row)

    def evaluate_generator(
        self, generator: Generator, images: Tensor | None, sampling: Any, *, protocol: str, ipc: int, **row: Any
    ) -> list[Result]:
        """Evaluate a generator.

        Args:
            generator: the generator.
            images: from `materialize`, enough for the protocol's sets; None if all images are fresh.
            sampling: sampling of the images, see `hf_gdd.evaluation.protocols.choose_sampling`.
            protocol: name of the protocol.
            ipc: images per class in one epoch.
            row: other arguments of `evaluate_batches`.

        """
        how, size = find_protocol(protocol), ipc * generator.num_classes
        row |= {"protocol": protocol, "ipc": ipc} | provenance(generator, sampling, self.image_seed)
        row["stored_parts"] = stored_parts(generator, how, ipc, sampling)
        if not how.fresh:
            sets = cut_sets(how, generator, images, ipc, self.image_seed, sampling)
            return self.evaluate_set(lambda i: sets, size, sum(each.stored_bytes for each in sets), **row)

        def batches(i: int, random: Random) -> Batches:
            seed = self.image_seed + i
            return fresh_batches(generator, ipc, seed, self.recipe, sampling, self.test.device, how.soft)

        return self.evaluate_batches(batches, size, generator.stored_bytes, **row)

    def build_report(self, results: list[Result], train: str, origin: str, quality: Iterable[Quality] = ()) -> Report:
        """Build a report; `origin` is that of the statistics of `transform`."""
        device, cpu = self.test.device, f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
        return Report(
            results=tuple(results),
            quality=tuple(quality),
            train=train,
            test=f"{self.test.source} ({self.test.fingerprint[:12]})",
            recipe=json.loads(json.dumps(self.recipe.identity())),  # as it is read back
            normalization=origin,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
            versions={name: version(name) for name in ("hf_gdd", "torch", "datasets")},
            shared_draws=self.shared_draws,
        )


def _show_progress(batches: Batches, bar: tqdm, networks: int) -> Batches:
    """Yield the same batches and advance the bar by one step of every network."""
    for batch in batches:
        bar.update(networks)
        yield batch


def provenance(generator: Generator, sampling: Any, image_seed: int) -> dict[str, Any]:
    """Return the fields of a row that identify a generator and its sampling.

    The seed of the images is named with the sampling if it is not 0.
    """
    fields = generator.sampling_identity(sampling) | ({"image_seed": image_seed} if image_seed else {})
    text = ", ".join(f"{name}={value}" for name, value in fields.items())
    return {"generator_seed": generator.seed, "generator": generator.fingerprint, "sampling": text}
