"""Networks trained to the end on real data, once for each data set, architecture and recipe, and kept on disk."""

import hashlib
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from huggingface_hub.constants import HF_HOME
from torch import nn
from tqdm.auto import tqdm

from hf_gdd.classifiers import Learner, Recipe, epochs_of
from hf_gdd.images import ImageTensors
from hf_gdd.networks import build_network
from hf_gdd.normalising import View
from hf_gdd.rng import Random, derive
from hf_gdd.runs import load_state, save_state

logger = logging.getLogger("hf_gdd")

DEFAULT_CACHE = Path(HF_HOME) / "hf_gdd" / "teachers"
_STREAM = 0x7EAC  # keeps their draws apart from those of the runs that use them
_SAVE_EVERY = 10  # seconds of training that a stop can cost, and the epoch it stops


class Teachers:
    """Teacher i is the same network in every run on the same data; it is trained when it is first asked for.

    Args:
        network: architecture.
        data: real training images.
        view: what the networks see images through.
        recipe: of their training.
        folder: where they are kept, in a folder of their own; a part of the Hugging Face cache if None.

    """

    def __init__(
        self, network: str, data: ImageTensors, view: View, recipe: Recipe, folder: str | Path | None = None
    ) -> None:
        self.network, self.data, self.view, self.recipe = network, data, view, recipe
        self.loaded: dict[int, nn.Module] = {}
        key = [network, data.fingerprint, type(view).__name__, asdict(recipe)]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.folder = Path(folder or DEFAULT_CACHE) / f"{network}-{digest}"

    def prepare(self, numbers: Iterable[int], progress: bool = True) -> None:
        """Train those of these teachers that are not kept yet."""
        missing = [number for number in numbers if not self._path(number).exists()]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        hidden = {} if progress else {"disable": True}
        total = len(missing) * self.recipe.steps(len(self.data))
        with tqdm(total=total, desc=f"{len(missing)} teachers", unit="step", dynamic_ncols=True, **hidden) as bar:
            for number in missing:
                self._train(number, bar)
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

    def _train(self, number: int, bar: tqdm) -> None:
        """Train one, going on where a stopped run left it."""
        steps, partial = self.recipe.steps(len(self.data)), self._path(number).with_suffix(".partial")
        learner, done = Learner(self._built(number), self.view, self.recipe, steps), 0
        random = Random(derive(number, _STREAM), self.data.device)
        if partial.exists():
            state = load_state(partial, self.data.device)
            learner.load_state_dict(state["learner"])
            random.load_state_dict(state["random"])
            done = state["done"]
        bar.update(done)
        saved = time.monotonic()
        while done < steps:
            epoch = epochs_of(self.data, self.recipe, random.device)
            for images, labels in islice(epoch, min(self.recipe.batches(len(self.data)), steps - done)):
                learner.step(images, labels, random.device)
                done += 1
                bar.update()
            if time.monotonic() - saved > _SAVE_EVERY:
                state = {"learner": learner.state_dict(), "random": random.state_dict(), "done": done}
                save_state(partial, state)
                saved = time.monotonic()
        save_state(self._path(number), learner.network.state_dict())
        partial.unlink(missing_ok=True)

    def _built(self, number: int) -> nn.Module:
        seed = derive(number, _STREAM, 1)
        return build_network(self.network, self.data.num_classes, self.data.shape, seed).to(self.data.device)

    def _path(self, number: int) -> Path:
        return self.folder / f"teacher-{number:03d}.pt"
