"""How good images are, whatever is trained on them: seen by networks that were trained on real ones."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hf_gdd.classifiers.learner import iterate_epochs
from hf_gdd.classifiers.networks import network_name, penultimate_features
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.pixels import to_unit
from hf_gdd.evaluation.evaluator import Evaluator, provenance
from hf_gdd.evaluation.metrics import class_diversity, coverage_scores, frechet_distance
from hf_gdd.generators.base import Generator
from hf_gdd.report import RANDOM_REAL, Quality

TEST_IMAGES, RECONSTRUCTION = "test images", "reconstruction"
_BATCH = 500


@lru_cache(maxsize=1)
def feature_evaluator(judge: Evaluator, real: ImageTensors) -> "FeatureEvaluator":
    """The critics of this judge, who serve for any number of generators one after the other."""
    return FeatureEvaluator(judge, real)


class FeatureEvaluator:
    """`n` networks of a judge's first architecture, trained on all real images; the test images are their reference.

    Args:
        judge: gives test images, recipe, seeds and n.
        real: the real training set.

    """

    def __init__(self, judge: Evaluator, real: ImageTensors) -> None:
        self.judge, self.real, self.spec = judge, real, judge.networks[0]
        self.networks = self._trained()
        self.reference = self._features(judge.test.images)

    def _trained(self) -> list[torch.nn.Module]:
        """As for the row of full data."""
        recipe = self.judge.recipe.for_ipc(None, self.real.num_classes)
        label = f"networks that judge images, {network_name(self.spec)}"
        trained = self.judge.trained(
            self.spec, recipe, lambda i, random: iterate_epochs(self.real, recipe, random.rng), len(self.real), label
        )
        return [network.eval() for _, network in trained]

    def _features(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each network the labels it gives to images, [N], and their features, [N, D]."""
        found = []
        with torch.no_grad():
            for network in self.networks:
                batches = (
                    self.judge.normalize(to_unit(part.to(self.judge.test.device))) for part in images.split(_BATCH)
                )
                logits, features = zip(*(penultimate_features(network, batch) for batch in batches), strict=True)
                found.append((torch.cat(logits).argmax(1), torch.cat(features).float()))
        return found

    def judged(self, data: ImageTensors, *, name: str, ipc: int | None, compare: bool = True, **row: Any) -> Quality:
        """The scores of a data set; `compare` with the test images unless it is made of them."""
        scores: dict[str, list[float]] = {}
        labels = data.labels.to(self.judge.test.device)
        for (seen, features), (_, reference) in zip(self._features(data.images), self.reference, strict=True):
            found = {"label_accuracy": float((seen == labels).float().mean())}
            if compare and len(features) > 1:
                found |= coverage_scores(reference, features) | {"frechet": frechet_distance(reference, features)}
            for score, value in (found | {"diversity": class_diversity(features, labels)}).items():
                scores.setdefault(score, []).append(value)
        return Quality(
            name=name,
            ipc=ipc,
            images=len(data),
            network=network_name(self.spec),
            seeds=tuple(self.judge.seed + i for i in range(self.judge.n)),
            scores={score: tuple(values) for score, values in scores.items()},
            **row,
        )

    def references(self, ipcs: Sequence[int]) -> list[Quality]:
        """The test images themselves, and random real images of each number."""
        test = self.judge.test
        rows = [self.judged(test, name=TEST_IMAGES, ipc=None, compare=False)]
        for ipc in ipcs:
            rows.append(self.judged(self.real.subset(ipc, self.judge.seed), name=RANDOM_REAL, ipc=ipc))
        return rows

    def generator(
        self, generator: Generator, made: Tensor, ipcs: Sequence[int], sampling: Any, name: str
    ) -> list[Quality]:
        """The first images of each class, and what an autoencoder leaves of the test images if there is one."""
        row, test = provenance(generator, sampling), self.judge.test
        found = [self.judged(self.judge.images_of(made[:, :ipc]), name=name, ipc=ipc, **row) for ipc in ipcs]
        if (restored := generator.reconstruct(test.images)) is not None:
            data = ImageTensors(restored.to(test.device), test.labels, test.class_names, RECONSTRUCTION, test.device)
            found.append(self.judged(data, name=RECONSTRUCTION, ipc=None, compare=False, **row))
        return found
