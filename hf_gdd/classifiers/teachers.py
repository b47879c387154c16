"""Teacher networks trained on real data and cached on disk."""

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
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
from hf_gdd.data.normalization import InputTransform, Normalize, ZCAWhitening
from hf_gdd.utils.io import load_state, save_state
from hf_gdd.utils.progress import progress_bar
from hf_gdd.utils.random import Random, derive_seed

logger = logging.getLogger("hf_gdd")

DEFAULT_CACHE = Path(HF_HOME) / "hf_gdd" / "teachers"
VERSION = 1  # increase it when equal settings begin to give other teachers; old ones are then ignored
# Names of the input transforms in cache keys. They are those of the first version, whose teachers are still in use.
_TRANSFORM_KEYS = {Normalize: "Normaliser", ZCAWhitening: "Whitener"}
_STREAM = 0x7EAC  # separates the random draws of teachers from those of the runs that use them
_SAVE_EVERY = 10  # seconds of training between saves, which happen at the end of an epoch


class Teachers:
    """Teachers of one architecture, trained on first use and shared by all runs.

    Teacher i depends only on i, the architecture, the data, the input transform and the recipe.

    Example:
        train = ImageTensors.from_dataset("digits").subset(10, seed=0)
        teachers = Teachers("convnet1", train, Normalize(train.mean, train.std), Recipe(epochs=1), cache_folder)
        logits, feature = teachers[0](teachers.transform(to_unit(train.images)))

    Args:
        network: architecture.
        data: real training images.
        transform: input transform of the networks.
        recipe: recipe of their training.
        folder: the teachers are saved in a subfolder of it; None for a part of the Hugging Face cache.

    """

    def __init__(
        self,
        network: str,
        data: ImageTensors,
        transform: InputTransform,
        recipe: Recipe,
        folder: str | Path | None = None,
    ) -> None:
        self.network, self.data, self.transform, self.recipe = network, data, transform, recipe
        self.loaded: dict[int, nn.Module] = {}
        fields = replace(recipe, soft_loss="l1").identity()  # teachers learn hard labels, whatever their students do
        key = [VERSION, network, data.fingerprint, _TRANSFORM_KEYS[type(transform)], fields]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.folder = Path(folder or DEFAULT_CACHE) / f"{network}-{digest}"

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Return those numbers whose teachers are not saved yet."""
        return [number for number in numbers if not self._path(number).exists()]

    def prepare(self, numbers: Iterable[int], progress: bool = True) -> None:
        """Train and save those of the numbered teachers that are missing.

        Raises:
            NonFiniteLossError: a training diverged; the other teachers are saved.

        """
        missing = self.missing(numbers)
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        total = len(missing) * self.recipe.steps(len(self.data))
        with progress_bar(progress, total=total, desc=f"{len(missing)} teachers", unit="step") as bar:
            states = {number: self._load_partial(number) for number in missing}
            by_step: dict[int, list[int]] = {}  # only teachers at the same step can be trained together
            for number, state in states.items():
                by_step.setdefault(state["done"] if state else 0, []).append(number)
            for numbers in by_step.values():
                for group in stack_groups(numbers, self.network, self.data.device):
                    self._train({number: states[number] for number in group}, bar)
        logger.info("Teachers are saved in %s.", self.folder)

    def __getitem__(self, number: int) -> nn.Module:
        """Return a teacher on the data's device, in eval mode and without gradients.

        Raises:
            ValueError: its file is damaged.

        """
        if number not in self.loaded:
            self.prepare([number])
            network = self._build(number)
            try:
                network.load_state_dict(load_state(self._path(number)))
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{error} Delete {self._path(number)}, and it is trained again.") from error
            self.loaded[number] = network.eval().requires_grad_(False)
        return self.loaded[number]

    def _train(self, states: Mapping[int, dict[str, Any] | None], bar: tqdm) -> None:
        """Train teachers together; `states` are those of an interrupted run, or None."""
        steps, done, learners, randoms = self.recipe.steps(len(self.data)), 0, [], []
        for number, state in states.items():
            learners.append(Learner(self._build(number), self.transform, self.recipe, steps))
            randoms.append(Random(derive_seed(number, _STREAM), self.data.device))
            if state:
                learners[-1].load_state_dict(state["learner"])
                randoms[-1].load_state_dict(state["random"])
                done = state["done"]
        ensemble, rngs = ClassifierEnsemble(learners, stacked=True), [random.rng for random in randoms]
        bar.update(done * len(states))
        last_save = time.monotonic()
        while done < steps:
            epochs = [iterate_epochs(self.data, self.recipe, rng) for rng in rngs]
            for batches in islice(zip(*epochs, strict=True), min(self.recipe.batches(len(self.data)), steps - done)):
                ensemble.step(batches, rngs)
                done += 1
                bar.update(len(states))
            if time.monotonic() - last_save > _SAVE_EVERY:
                for number, learner, random in zip(states, ensemble.learners, randoms, strict=True):
                    state = {"learner": learner.state_dict(), "random": random.state_dict(), "done": done}
                    save_state(self._partial(number), state)
                last_save = time.monotonic()
        self._save({number: learner.network for number, learner in zip(states, ensemble.learners, strict=True)})

    def _save(self, networks: Mapping[int, nn.Module]) -> None:
        """Save finite networks, and raise NonFiniteLossError if there are others."""
        diverged = []
        for number, network in networks.items():
            if all(weight.isfinite().all() for weight in network.parameters()):
                save_state(self._path(number), network.state_dict())
            else:
                diverged.append(number)
            self._partial(number).unlink(missing_ok=True)
        if diverged:
            raise NonFiniteLossError(
                f"The weights of teacher {diverged[0]} are not finite after its training: lower teacher_lr (now "
                f"{self.recipe.lr}). It was not saved."
            )

    def _build(self, number: int) -> nn.Module:
        seed = derive_seed(number, _STREAM, 1)
        return build_network(self.network, self.data.num_classes, self.data.shape, seed).to(self.data.device)

    def _path(self, number: int) -> Path:
        return self.folder / f"teacher-{number:03d}.pt"

    def _partial(self, number: int) -> Path:
        """Return the path of an unfinished teacher.

        It names the kind of device, because random states cannot move to another.
        """
        return self.folder / f"teacher-{number:03d}.{self.data.device.type}.partial"

    def _load_partial(self, number: int) -> dict[str, Any] | None:
        path = self._partial(number)
        if not path.exists():
            return None
        try:
            return load_state(path, self.data.device)
        except ValueError as error:
            warnings.warn(f"{error} The training of this teacher begins anew.", stacklevel=2)
            return None
