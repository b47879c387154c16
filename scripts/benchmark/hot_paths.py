"""The hot paths that `benchmark.py` measures.

Each is run in the library's way and in that of `plain_reference.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import plain_reference
import torch
from plain_reference import loader
from torch import nn

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

PathName = Literal["gan", "match", "diffusion", "prediction", "materialize", "stream", "evaluate"]
PATHS: tuple[PathName, ...] = get_args(PathName)
# Side and number of the images, networks, images a step, inner steps of a matching, IPC of sets, and the evaluation.
SIZES: dict[str, dict[str, Any]] = {
    "paper": {
        **{"side": 28, "rows": 60_000, "network": "convnet3", "inner": 16, "ipc": 100, "gan": {"width": 196}},
        "diffusion": {"width": 384, "depth": 12, "heads": 6, "vae_width": 32, "vae_levels": 3},
        "batch": {"gan": 128, "match": 64, "diffusion": 8, "prediction": 500, "stream": 64, "evaluate": 64},
        "evaluate": {"n": 5, "steps": 10, "test": 500},
    },
    "tiny": {
        **{"side": 8, "rows": 500, "network": "convnet2", "inner": 2, "ipc": 20, "gan": {"width": 8}},
        "diffusion": {"width": 16, "depth": 1, "heads": 2, "vae_width": 8, "vae_levels": 2},
        "batch": {"gan": 20, "match": 10, "diffusion": 10, "prediction": 50, "stream": 64, "evaluate": 20},
        "evaluate": {"n": 2, "steps": 3, "test": 100},
    },
}


@dataclass(frozen=True)
class Case:
    """One hot path, in the library's way and in the reference's.

    Attributes:
        images: images that one call works on.
        ours: takes settings of the training; returns a callable.
        reference: takes the number of loader workers; returns a callable.
        loads: True if the reference has a loader.

    """

    images: int
    ours: Callable[[dict[str, Any]], Callable[[], Any]]
    reference: Callable[[int], Callable[[], Any]]
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

    """

    def __init__(self, size: str, folder: str | Path) -> None:
        torch.manual_seed(0)
        self.size, self.folder, self.runs = SIZES[size], Path(folder), 0
        real = ImageTensors.from_dataset("digits", "train", image_size=self.size["side"])
        rows = torch.arange(self.size["rows"], device=real.labels.device) % len(real)
        self.data = replace(real, images=real.images[rows], labels=real.labels[rows])
        self.device, self.test = self.data.device, self.part(self.size["evaluate"]["test"])
        self.normalize = Normalize(self.data.mean, self.data.std)

    def part(self, count: int) -> ImageTensors:
        """Draw some of the images, for what is trained or encoded before the measurement."""
        rows = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(0))[:count]
        rows = rows.to(self.data.labels.device)
        return replace(self.data, images=self.data.images[rows], labels=self.data.labels[rows])

    def opened(self, trainer: type[Trainer], data: ImageTensors, stage: str, settings: dict[str, Any]) -> Steps:
        """Open a training at the beginning of a stage, in a folder of its own."""
        self.runs += 1
        settings = {"preset": "paper", "picture_every": 10**9, "checkpoint_every": 10**9} | settings
        return Steps(trainer(data, output_dir=self.folder / f"run{self.runs}", **settings), stage)

    def network(self, seed: int) -> nn.Module:
        """Build an untrained classifier."""
        return build_network(self.size["network"], self.data.num_classes, self.data.shape, seed).to(self.device)

    def generator(self) -> ConditionalGANGenerator:
        """Build an untrained generator."""
        shape, width = self.data.shape, self.size["gan"]["width"]
        return ConditionalGANGenerator(self.data.class_names, shape, width).to(self.device).eval()

    # The paths.

    def gan(self, stage: str = "gan") -> Case:
        """A step of generator and discriminator.

        In stage `match` it has the inner steps of the pool's network.
        """
        size = self.size["batch"][stage]
        settings = self.size["gan"] | {f"{stage}_batch_size": size, "inner_steps": self.size["inner"]}
        settings |= {"pool": (self.size["network"],), "match_epochs": 10**6, "gan_epochs": 10**6}

        def ours(changes: dict[str, Any]) -> Steps:
            return self.opened(GlobalLocalTrainer, self.data, stage, settings | changes)

        start = ours({}).trainer

        def reference(workers: int) -> plain_reference.GanStep:
            batches, lr = loader(self.data, size, workers), start.stage.lr
            if stage == "gan":
                return plain_reference.GanStep(start, batches, lr)
            own = loader(self.data, MATCHING.batch_size, workers)
            return plain_reference.MatchStep(start, batches, lr, self.network(0), own)

        return Case(size, ours, reference)

    def match(self) -> Case:
        """A step of matching."""
        return self.gan("match")

    def diffusion(self) -> Case:
        """A tuning step of a small transformer with full memories.

        Its latents are encoded beforehand.
        """
        size, data = self.size["batch"]["diffusion"], self.part(2000)
        settings = self.size["diffusion"] | {"pretrained": None, "tune_batch_size": size, "tune_epochs": 10**6}

        def ours(changes: dict[str, Any]) -> Steps:
            steps = self.opened(DiffusionMemoryTrainer, data, "tune", settings | changes)
            steps()
            fill(steps.trainer.remember, steps.trainer, size)
            return steps

        start = ours({}).trainer

        def reference(workers: int) -> plain_reference.MemoryStep:
            step = plain_reference.MemoryStep(start, loader(data, size, workers, flip=True))
            fill(step.remember, start, size)
            return step

        return Case(size, ours, reference)

    def prediction(self) -> Case:
        """A step of all images against five students.

        Teacher and students are briefly trained beforehand.
        """
        images = self.size["batch"]["prediction"]
        ipc, data = images // self.data.num_classes, self.part(max(500, 3 * images))
        settings = {"network": self.size["network"], "ipc": ipc, "zca": False, "mid_gap": 10**6, "iterations": 10**9}
        settings |= {"teachers": 1, "teacher_epochs": 1, "student_epochs": 5, "teacher_cache": str(self.folder)}

        def ours(changes: dict[str, Any]) -> Steps:
            steps = self.opened(PredictionMatchingTrainer, data, "match", settings | changes)
            steps()
            return steps

        start = ours({}).trainer
        return Case(images, ours, lambda workers: plain_reference.PredictionStep(start), loads=False)

    def materialize(self) -> Case:
        """A set from the generator to its last row on disk.

        The bare forward pass of as many images stands beside it.
        """
        ipc, generator = self.size["ipc"], self.generator()
        images, seeds, cache = ipc * generator.num_classes, iter(range(10**9)), str(self.folder / "cache")

        def ours(changes: dict[str, Any]) -> Callable[[], Any]:
            return lambda: load_distilled_dataset(generator, ipc=ipc, seed=next(seeds), cache_dir=cache)

        tile = min(generator.tile, images)
        step = plain_reference.BareForward(generator, tile, math.ceil(images / tile))
        return Case(images, ours, lambda workers: step, loads=False)

    def stream(self) -> Case:
        """Fresh images by the batch, beside the bare forward pass."""
        size, generator = self.size["batch"]["stream"], self.generator()
        batches = 512 // size

        def ours(changes: dict[str, Any]) -> Callable[[], Any]:
            ipc = max(self.size["ipc"], math.ceil(size * batches / generator.num_classes))
            stream = load_distilled_dataset(generator, ipc=ipc, streaming=True, batch_size=size)
            return lambda: list(stream.batches(batches))

        step = plain_reference.BareForward(generator, size, batches)
        return Case(size * batches, ours, lambda workers: step, loads=False)

    def evaluate(self) -> Case:
        """Networks that are trained on a small set and tested."""
        size, n, steps = self.size["batch"]["evaluate"], self.size["evaluate"]["n"], self.size["evaluate"]["steps"]
        train, recipe = self.part(5 * size), Recipe(epochs=10**6, max_steps=steps, batch_size=size)

        def ours(changes: dict[str, Any]) -> Callable[[], Any]:
            precise = replace(recipe, mixed_precision=changes.get("mixed_precision", "no"))
            settings = {"networks": self.size["network"], "n": n, "with_baselines": False, "progress": False}
            return lambda: evaluate(train, self.test, recipe=precise, **settings)

        def reference(workers: int) -> plain_reference.Evaluation:
            loaders = loader(train, size, workers), loader(self.test, 256, workers, drop_last=False)
            networks = [self.network(seed) for seed in range(n)]
            return plain_reference.Evaluation(networks, *loaders, self.normalize, recipe)

        return Case(n * steps * size, ours, reference)


def fill(remember: Callable[..., Any], trainer: DiffusionMemoryTrainer, size: int) -> None:
    """Remember random latents until both memories are full.

    They are full for most of a training.
    """
    classes, device = len(trainer.rows), trainer.device
    latents = torch.randn((size, *trainer.latents.shape), generator=torch.Generator().manual_seed(0)).to(device)
    for first in range(0, classes * trainer.config.real_memory + size, size):
        labels = torch.arange(first, first + size, device=device) % classes
        remember(latents.roll(first, 2), latents.roll(first, 3), labels)
