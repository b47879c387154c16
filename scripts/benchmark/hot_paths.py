"""The hot paths that `benchmark.py` measures, each in the library's way and in that of `plain_reference.py`.

This module is longer than others so that every path, its reference and its predicted cost stand together.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plain_reference
import torch
from plain_reference import loader
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hf_gdd import (
    DiffusionMemoryTrainer,
    GlobalLocalTrainer,
    ImageTensors,
    PredictionMatchingTrainer,
    Recipe,
    Trainer,
    evaluate,
    load_distilled_dataset,
)
from hf_gdd.classifiers.networks import build_network
from hf_gdd.data.normalization import Normalize
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.methods.global_local.model_pool import MATCHING

PATHS = ("gan", "match", "diffusion", "prediction", "materialize", "stream", "evaluate")
# Side and number of the images, networks, images a step, inner steps of a matching, IPC of sets, and the evaluation.
SIZES: dict[str, dict[str, Any]] = {
    "paper": {
        **{"side": 28, "rows": 60_000, "network": "convnet3", "inner": 16, "ipc": 100, "gan": {"width": 196}},
        "diffusion": {"width": 384, "depth": 12, "heads": 6, "vae_width": 32, "vae_levels": 3},
        "batch": {"gan": 128, "match": 64, "diffusion": 8, "prediction": 500, "stream": 64, "evaluate": 64},
        "evaluate": {"n": 5, "steps": 10, "test": 500},
    },
    "lite": {
        **{"side": 28, "rows": 10_000, "network": "convnet3", "inner": 4, "ipc": 100, "gan": {"width": 64}},
        "diffusion": {"width": 128, "depth": 4, "heads": 4, "vae_width": 16, "vae_levels": 3},
        "batch": {"gan": 64, "match": 64, "diffusion": 64, "prediction": 100, "stream": 64, "evaluate": 64},
        "evaluate": {"n": 3, "steps": 10, "test": 500},
    },
    "tiny": {
        **{"side": 8, "rows": 500, "network": "convnet2", "inner": 2, "ipc": 20, "gan": {"width": 8}},
        "diffusion": {"width": 16, "depth": 1, "heads": 2, "vae_width": 8, "vae_levels": 2},
        "batch": {"gan": 20, "match": 10, "diffusion": 10, "prediction": 50, "stream": 64, "evaluate": 20},
        "evaluate": {"n": 2, "steps": 3, "test": 100},
    },
}
FACTORS = {"rows": 1, "classes": 1, "width": 1, "batch": 1, "ipc": 1, "n": 1}


class FlopCounter(TorchDispatchMode):
    """Count FLOPs by torch's formulas; torch's own `FlopCounterMode` fails at a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(call: Callable[..., Any], *args: Any) -> int:
    """Return the FLOPs of one call; attention counts as the matrix products it consists of."""
    with FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        call(*args)
    return counter.flops


@dataclass
class Case:
    """One hot path, in the library's way and in the reference's.

    Attributes:
        images: images that one call works on.
        ours: takes settings and a precision; returns a callable.
        reference: takes the number of loader workers; returns a callable.
        predicted: FLOPs of one call of the reference, by the textbook.
        rest: bytes of ours that stay in memory between calls and grow with the data or the networks.
        loads: True if the reference has a loader.

    """

    images: int
    ours: Callable[[dict[str, Any], str], Callable[[], Any]]
    reference: Callable[[int], Callable[[], Any]]
    predicted: float
    rest: int = 0
    loads: bool = True


class Steps:
    """The steps that `fit` takes in one stage, with what it logs, one step a call."""

    def __init__(self, trainer: Trainer, stage: str) -> None:
        trainer.open()
        trainer.state.stage = [each.name for each in trainer.stages].index(stage)
        if trainer.state.stage:
            trainer.begin(trainer.stage)
        self.trainer = trainer

    @property
    def cycle(self) -> int:
        """Steps until everything that is not part of every step has happened once."""
        return getattr(self.trainer.config, "penalty_every", 1)

    def __call__(self) -> None:
        """Take one step."""
        self.trainer.advance()


class HotPaths:
    """Images, networks and a folder for runs, with a method for each path.

    The images are the bundled digits, enlarged and repeated: the cost of a step depends on their shape alone.

    Args:
        size: name in `SIZES`.
        folder: folder of the runs.
        factors: how many times larger each name in `FACTORS` is.

    """

    def __init__(self, size: str, folder: str | Path, **factors: int) -> None:
        torch.manual_seed(0)
        self.size, self.factors, self.folder, self.runs = SIZES[size], FACTORS | factors, Path(folder), 0
        real = ImageTensors.from_dataset("digits", "train", image_size=self.size["side"])
        self.data = self.repeat(real, self.size["rows"] * self.factors["rows"])
        self.device, self.test = self.data.device, self.part(self.size["evaluate"]["test"])
        self.normalize = Normalize(self.data.mean, self.data.std)
        self.code = torch.zeros(1, self.data.num_classes + 90, device=self.device)
        self.image = torch.zeros(1, *self.data.shape, device=self.device)

    def repeat(self, real: ImageTensors, count: int) -> ImageTensors:
        """Repeat images up to this number; each class is divided if there are to be more classes."""
        rows, classes = torch.arange(count, device=real.labels.device), self.factors["classes"]
        images, labels = (x[rows % len(real)] for x in (real.images, real.labels))
        names = tuple(f"{name}, {part}" for part in range(classes) for name in real.class_names)
        return replace(real, images=images, labels=labels + real.num_classes * (rows % classes), class_names=names)

    def part(self, count: int) -> ImageTensors:
        """Draw some of the images, for what is trained or encoded before the measurement."""
        rows = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(0))[:count]
        rows = rows.to(self.data.labels.device)
        return replace(self.data, images=self.data.images[rows], labels=self.data.labels[rows])

    def batch(self, path: str) -> int:
        """Return the images of one step."""
        return self.size["batch"][path] * self.factors["batch"]

    def width(self, path: str) -> dict[str, int]:
        """Return the sizes of the networks."""
        return self.size[path] | {"width": self.size[path]["width"] * self.factors["width"]}

    def opened(self, trainer: type[Trainer], data: ImageTensors, stage: str, **settings: Any) -> Steps:
        """Open a training at the beginning of a stage, in a folder of its own."""
        self.runs += 1
        settings = {"preset": "paper", "picture_every": 10**9, "checkpoint_every": 10**9} | settings
        return Steps(trainer(data, output_dir=self.folder / f"run{self.runs}", **settings), stage)

    def forward(self, network: nn.Module, *inputs: Any) -> int:
        """Return the FLOPs of one image's forward pass."""
        network = deepcopy(network).eval()
        with torch.no_grad():
            return count_flops(network, *inputs)

    def network(self, seed: int) -> nn.Module:
        """Build an untrained classifier."""
        return build_network(self.size["network"], self.data.num_classes, self.data.shape, seed).to(self.device)

    def generator(self) -> ConditionalGANGenerator:
        """Build an untrained generator."""
        shape, width = self.data.shape, self.width("gan")["width"]
        return ConditionalGANGenerator(self.data.class_names, shape, width).to(self.device).eval()

    # The paths.

    def gan(self, stage: str = "gan") -> Case:
        """A step of generator and discriminator; in stage `match` with the inner steps of the pool's network."""
        size, inner = self.batch(stage), self.size["inner"]
        settings = self.width("gan") | {f"{stage}_batch_size": size, "inner_steps": inner}
        settings |= {"pool": (self.size["network"],), "match_epochs": 10**6, "gan_epochs": 10**6}

        def ours(changes: dict[str, Any], precision: str) -> Steps:
            options = settings | {"mixed_precision": precision} | changes
            return self.opened(GlobalLocalTrainer, self.data, stage, **options)

        start = ours({}, "no").trainer

        def reference(workers: int) -> plain_reference.GanStep:
            batches, lr = loader(self.data, size, workers), start.stage.lr
            if stage == "gan":
                return plain_reference.GanStep(start, batches, lr)
            own = loader(self.data, MATCHING.batch_size, workers)
            return plain_reference.MatchStep(start, batches, lr, self.network(0), own)

        generator, discriminator = start.generator, start.discriminator
        predicted = size * (4 * self.forward(generator, self.code) + 15 * self.forward(discriminator, self.image))
        if stage == "match":
            seen = 6 * size + 3 * inner * MATCHING.batch_size
            predicted += seen * self.forward(self.network(0), self.image)
        rest = self.data.stored_bytes + 4 * (weights_of(generator) + weights_of(discriminator))  # Adam has two moments
        return Case(size, ours, reference, predicted, rest)

    def match(self) -> Case:
        """A step of matching."""
        return self.gan("match")

    def diffusion(self) -> Case:
        """A tuning step of a small transformer with full memories; its latents are encoded beforehand."""
        size, data = self.batch("diffusion"), self.part(min(2000, self.size["rows"]) * self.factors["rows"])
        settings = self.width("diffusion") | {"pretrained": None, "tune_batch_size": size, "tune_epochs": 10**6}

        def ours(changes: dict[str, Any], precision: str) -> Steps:
            options = settings | {"mixed_precision": precision} | changes
            steps = self.opened(DiffusionMemoryTrainer, data, "tune", **options)
            steps()
            fill(steps.trainer.remember, steps.trainer, size)
            return steps

        start = ours({}, "no").trainer
        capacities = start.config.real_memory, start.config.gen_memory

        def reference(workers: int) -> plain_reference.MemoryStep:
            step = plain_reference.MemoryStep(start, loader(data, size, workers, flip=True))

            def remember(pred_x0: torch.Tensor, clean: torch.Tensor, labels: torch.Tensor) -> None:
                step.remember(step.real, capacities[0], clean, labels)
                step.remember(step.generated, capacities[1], pred_x0, labels)

            fill(remember, start, size)
            return step

        latent = torch.zeros(1, *start.latents.shape, device=self.device)
        one = torch.zeros(1, dtype=torch.int64, device=self.device)
        each = 2 * self.forward(start.transformer, latent, one, one) + self.forward(start.vae.encoder, self.image)
        # Both memories compare once with all members, and again all members with each other to evict one.
        held = capacities[0] + 1
        each += 2 * 2 * latent.numel() * (held + held**2)
        memories = sum(x.nbytes for name in ("real", "generated") for x in start.parts[name].state_dict().values())
        rest = data.stored_bytes + start.latents.mean.nbytes * 2 + memories + weights_of(start.transformer)
        return Case(size, ours, reference, size * each, rest)

    def prediction(self) -> Case:
        """A step of all images against five students; teacher and students are briefly trained beforehand."""
        ipc = max(5, self.batch("prediction") // self.data.num_classes) * self.factors["ipc"]
        settings = {"network": self.size["network"], "ipc": ipc, "zca": False, "mid_gap": 10**6, "iterations": 10**9}
        settings |= {"teachers": 1, "teacher_epochs": 1, "student_epochs": 5, "teacher_cache": str(self.folder)}
        data = self.part(max(500, 3 * ipc * self.data.num_classes))

        def ours(changes: dict[str, Any], precision: str) -> Steps:
            options = settings | {"mixed_precision": precision} | changes
            steps = self.opened(PredictionMatchingTrainer, data, "match", **options)
            steps()
            return steps

        start = ours({}, "no").trainer
        images, each = ipc * self.data.num_classes, self.forward(start.teachers[0], self.image)
        rest = data.stored_bytes + 2 * start.groups.own[0].images.nbytes  # images and their momentum
        predicted = 33 * images * each
        return Case(images, ours, lambda workers: plain_reference.PredictionStep(start), predicted, rest, loads=False)

    def materialize(self) -> Case:
        """A set from the generator to its last row on disk, beside the bare forward pass of as many images."""
        ipc, generator = self.size["ipc"] * self.factors["ipc"], self.generator()
        images, seeds = ipc * generator.num_classes, iter(range(10**9))

        def ours(changes: dict[str, Any], precision: str) -> Callable[[], Any]:
            cache = str(self.folder / "cache")
            return lambda: load_distilled_dataset(generator, ipc=ipc, seed=next(seeds), cache_dir=cache)

        tile = min(generator.tile, images)
        step = plain_reference.BareForward(generator, tile, math.ceil(images / tile))
        predicted = step.batch_size * step.batches * self.forward(generator, self.code)
        return Case(images, ours, lambda workers: step, predicted, weights_of(generator), loads=False)

    def stream(self) -> Case:
        """Fresh images by the batch, beside the bare forward pass."""
        size, generator = self.batch("stream"), self.generator()
        batches = 512 // size or 1

        def ours(changes: dict[str, Any], precision: str) -> Callable[[], Any]:
            ipc = max(self.size["ipc"], math.ceil(size * batches / generator.num_classes)) * self.factors["ipc"]
            stream = load_distilled_dataset(generator, ipc=ipc, streaming=True, batch_size=size)
            return lambda: list(stream.batches(batches))

        step = plain_reference.BareForward(generator, size, batches)
        predicted = size * batches * self.forward(generator, self.code)
        return Case(size * batches, ours, lambda workers: step, predicted, weights_of(generator), loads=False)

    def evaluate(self) -> Case:
        """Networks that are trained on a small set and tested."""
        size, sizes = self.batch("evaluate"), self.size["evaluate"]
        n, steps = sizes["n"] * self.factors["n"], sizes["steps"] * self.factors["ipc"]  # epochs are what is fixed
        train = self.part(5 * size * self.factors["ipc"])
        recipe = Recipe(epochs=10**6, max_steps=steps, batch_size=size)

        def ours(changes: dict[str, Any], precision: str) -> Callable[[], Any]:
            settings = {"networks": self.size["network"], "n": n, "with_baselines": False, "progress": False}
            settings["recipe"] = replace(recipe, mixed_precision=precision, **changes)
            return lambda: evaluate(train, self.test, **settings)

        def reference(workers: int) -> plain_reference.Evaluation:
            loaders = loader(train, size, workers), loader(self.test, 256, workers, drop_last=False)
            networks = [self.network(seed) for seed in range(n)]
            return plain_reference.Evaluation(networks, *loaders, self.normalize, recipe)

        predicted = n * (3 * steps * size + len(self.test)) * self.forward(self.network(0), self.image)
        return Case(n * steps * size, ours, reference, predicted, train.stored_bytes + self.test.stored_bytes)


def weights_of(network: nn.Module) -> int:
    """Return the bytes of a network's parameters."""
    return sum(parameter.nbytes for parameter in network.parameters())


def fill(remember: Callable[..., Any], trainer: DiffusionMemoryTrainer, size: int) -> None:
    """Remember random latents until both memories are full, as they are for most of a training."""
    classes, device = len(trainer.rows), trainer.device
    latents = torch.randn((size, *trainer.latents.shape), generator=torch.Generator().manual_seed(0)).to(device)
    for first in range(0, classes * trainer.config.real_memory + size, size):
        labels = torch.arange(first, first + size, device=device) % classes
        remember(latents.roll(first, 2), latents.roll(first, 3), labels)
