"""Networks trained to the end on real data, once for each data set, architecture and recipe, and kept on disk."""

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from torch import nn
from tqdm.auto import tqdm

from hf_gdd.classifiers.ensemble import ClassifierEnsemble, stack_groups
from hf_gdd.classifiers.learner import Learner, NonFiniteLossError, iterate_epochs
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import InputTransform
from hf_gdd.utils.io import load_state, save_state
from hf_gdd.utils.random import Random, derive

logger = logging.getLogger("hf_gdd")

DEFAULT_CACHE = Path(HF_HOME) / "hf_gdd" / "teachers"
VERSION = 1  # raise it when equal settings begin to give other teachers: old ones are then left behind
_STREAM = 0x7EAC  # keeps their draws apart from those of the runs that use them
_SAVE_EVERY = 10  # seconds of training that a stop can cost, and the epoch it stops


class Teachers:
    """Teacher i serves every run on the same data, by the same recipe; it is trained when it is first asked for.

    Args:
        network: architecture.
        data: real training images.
        view: what the networks see images through.
        recipe: of their training.
        folder: where they are kept, in a folder of their own; a part of the Hugging Face cache if None.

    """

    def __init__(
        self, network: str, data: ImageTensors, view: InputTransform, recipe: Recipe, folder: str | Path | None = None
    ) -> None:
        self.network, self.data, self.view, self.recipe = network, data, view, recipe
        self.loaded: dict[int, nn.Module] = {}
        key = [VERSION, network, data.fingerprint, type(view).__name__, asdict(recipe)]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.folder = Path(folder or DEFAULT_CACHE) / f"{network}-{digest}"

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Which of these are not kept yet."""
        return [number for number in numbers if not self._path(number).exists()]

    def prepare(self, numbers: Iterable[int], progress: bool = True) -> None:
        """Train those of these teachers that are not kept yet."""
        missing = self.missing(numbers)
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        hidden = {} if progress else {"disable": True}
        total = len(missing) * self.recipe.steps(len(self.data))
        with tqdm(total=total, desc=f"{len(missing)} teachers", unit="step", dynamic_ncols=True, **hidden) as bar:
            begun = {number: self._begun(self._partial(number)) for number in missing}
            places: dict[int, list[int]] = {}  # of their training: only those at one place go on in step
            for number, state in begun.items():
                places.setdefault(state["done"] if state else 0, []).append(number)
            for numbers in places.values():
                for several in stack_groups(numbers, self.network, self.data.device):
                    self._train({number: begun[number] for number in several}, bar)
        logger.info("Teachers are kept in %s.", self.folder)

    def __getitem__(self, number: int) -> nn.Module:
        """Teacher `number` on the data's device, in eval mode, without gradients of its weights.

        Raises:
            ValueError: its file is damaged.

        """
        if number not in self.loaded:
            self.prepare([number])
            network = self._built(number)
            try:
                network.load_state_dict(load_state(self._path(number)))
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{error} Delete {self._path(number)}, and it is trained again.") from error
            self.loaded[number] = network.eval().requires_grad_(False)
        return self.loaded[number]

    def _train(self, begun: Mapping[int, dict[str, Any] | None], bar: tqdm) -> None:
        """Train some in step, going on after the last epoch that a stopped run kept of them.

        Raises:
            NonFiniteLossError: one diverged; the others are kept.

        """
        steps, done, learners, randoms = self.recipe.steps(len(self.data)), 0, [], []
        for number, state in begun.items():
            learners.append(Learner(self._built(number), self.view, self.recipe, steps))
            randoms.append(Random(derive(number, _STREAM), self.data.device))
            if state:
                learners[-1].load_state_dict(state["learner"])
                randoms[-1].load_state_dict(state["random"])
                done = state["done"]
        cohort, generators = ClassifierEnsemble(learners, stacked=True), [random.rng for random in randoms]
        bar.update(done * len(begun))
        saved = time.monotonic()
        while done < steps:
            epochs = [iterate_epochs(self.data, self.recipe, generator) for generator in generators]
            for batches in islice(zip(*epochs, strict=True), min(self.recipe.batches(len(self.data)), steps - done)):
                cohort.step(batches, generators)
                done += 1
                bar.update(len(begun))
            if time.monotonic() - saved > _SAVE_EVERY:
                for number, learner, random in zip(begun, cohort.learners, randoms, strict=True):
                    state = {"learner": learner.state_dict(), "random": random.state_dict(), "done": done}
                    _save(self._partial(number), state)
                saved = time.monotonic()
        self._keep({number: learner.network for number, learner in zip(begun, cohort.learners, strict=True)})

    def _keep(self, trained: Mapping[int, nn.Module]) -> None:
        """Save those that are finite, and raise if one is not."""
        diverged = []
        for number, network in trained.items():
            if all(weight.isfinite().all() for weight in network.parameters()):
                _save(self._path(number), network.state_dict())
            else:
                diverged.append(number)
            self._partial(number).unlink(missing_ok=True)
        if diverged:
            raise NonFiniteLossError(
                f"The weights of teacher {diverged[0]} are not finite after its training: lower teacher_lr (now "
                f"{self.recipe.lr}). It was not kept."
            )

    def _built(self, number: int) -> nn.Module:
        seed = derive(number, _STREAM, 1)
        return build_network(self.network, self.data.num_classes, self.data.shape, seed).to(self.data.device)

    def _path(self, number: int) -> Path:
        return self.folder / f"teacher-{number:03d}.pt"

    def _partial(self, number: int) -> Path:
        """Where a teacher is kept while it is trained; draws of one kind of device cannot go on on another."""
        return self.folder / f"teacher-{number:03d}.{self.data.device.type}.partial"

    def _begun(self, partial: Path) -> dict[str, Any] | None:
        if not partial.exists():
            return None
        try:
            return load_state(partial, self.data.device)
        except ValueError as error:
            warnings.warn(f"{error} This teacher is trained from its beginning.", stacklevel=2)
            return None


def _save(path: Path, state: Mapping[str, Any]) -> None:
    """Whole or not at all, also if another run trains the same teacher."""
    own = path.with_name(f"{path.name}.{os.getpid()}")
    save_state(own, state)
    os.replace(own, path)
