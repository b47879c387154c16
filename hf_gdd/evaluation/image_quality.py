"""Score images in the feature spaces of networks that were trained on real images."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hf_gdd.classifiers.learner import iterate_epochs
from hf_gdd.classifiers.networks import network_name, penultimate_features
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.pixels import to_unit
from hf_gdd.evaluation.evaluator import Evaluator, provenance
from hf_gdd.evaluation.metrics import class_diversity, coverage_scores, frechet_distance
from hf_gdd.evaluation.protocols import to_image_tensors
from hf_gdd.generators.base import Generator
from hf_gdd.report import RANDOM_REAL, Quality

TEST_IMAGES, RECONSTRUCTION = "test images", "reconstruction"
_BATCH = 500


class FeatureEvaluator:
    """Score sets of images against the test images, in feature spaces of n networks.

    The networks are trained on all real training images.

    Args:
        evaluator: gives the test images, the recipe, the seeds, n, and its first architecture.
        real: the real training set.

    Example:
        scorer = FeatureEvaluator(evaluator, real)
        row = scorer.score(distilled, name="mine", ipc=10)
        print(row.mean("coverage"))

    """

    def __init__(self, evaluator: Evaluator, real: ImageTensors) -> None:
        self.evaluator, self.real, self.spec = evaluator, real, evaluator.networks[0]
        self.networks = self._train()
        self.reference = self._features(evaluator.test.images)

    def _train(self) -> list[nn.Module]:
        """Train the networks as for the row of full data."""
        recipe = self.evaluator.recipe.for_ipc(None, self.real.num_classes)
        trained = self.evaluator.train_networks(
            self.spec,
            recipe,
            lambda i, random: iterate_epochs(self.real, recipe, random.rng),
            len(self.real),
            f"networks that score images, {network_name(self.spec)}",
        )
        return [network.eval() for _, network in trained]

    @torch.no_grad()
    def _features(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return labels [N] and features [N, D] of uint8 images by each network."""
        pairs, device = [], self.evaluator.test.device
        for network in self.networks:
            batches = (self.evaluator.transform(to_unit(part.to(device))) for part in images.split(_BATCH))
            logits, features = zip(*(penultimate_features(network, batch) for batch in batches), strict=True)
            pairs.append((torch.cat(logits).argmax(1), torch.cat(features).float()))
        return pairs

    def score(self, data: ImageTensors, *, name: str, ipc: int | None, compare: bool = True, **row: Any) -> Quality:
        """Score a data set.

        Args:
            data: the images.
            name: name of the row.
            ipc: images per class; None for the test images.
            compare: compare with the test images; False if the set is made of them.
            row: other fields of `Quality`.

        """
        scores: dict[str, list[float]] = {}
        labels = data.labels.to(self.evaluator.test.device)
        for (predicted, features), (_, reference) in zip(self._features(data.images), self.reference, strict=True):
            values = {"label_accuracy": float((predicted == labels).float().mean())}
            if compare and len(features) > 1:
                values |= coverage_scores(reference, features) | {"frechet": frechet_distance(reference, features)}
            for score, value in (values | {"diversity": class_diversity(features, labels)}).items():
                scores.setdefault(score, []).append(value)
        return Quality(
            name=name,
            ipc=ipc,
            images=len(data),
            network=network_name(self.spec),
            seeds=tuple(self.evaluator.seed + i for i in range(self.evaluator.n)),
            scores={score: tuple(values) for score, values in scores.items()},
            **row,
        )

    def score_references(self, ipcs: Sequence[int]) -> list[Quality]:
        """Score the test images themselves, and random real images at each IPC."""
        rows = [self.score(self.evaluator.test, name=TEST_IMAGES, ipc=None, compare=False)]
        for ipc in ipcs:
            rows.append(self.score(self.real.subset(ipc, self.evaluator.seed), name=RANDOM_REAL, ipc=ipc))
        return rows

    def score_generator(
        self, generator: Generator, images: Tensor, ipcs: Sequence[int], sampling: Any, name: str
    ) -> list[Quality]:
        """Score a generator at each IPC, and its autoencoder if it has one.

        The autoencoder is scored by its reconstruction of the test images.

        Args:
            generator: the generator.
            images: its images uint8 [K, n, C, H, W], with n the largest IPC at least.
            ipcs: images per class.
            sampling: sampling of the images.
            name: name of the rows.

        """
        row, test = provenance(generator, sampling, self.evaluator.image_seed), self.evaluator.test
        rows = [
            self.score(to_image_tensors(images[:, :ipc], test.class_names), name=name, ipc=ipc, **row) for ipc in ipcs
        ]
        if (restored := generator.reconstruct(test.images)) is not None:
            data = ImageTensors(restored.to(test.device), test.labels, test.class_names, RECONSTRUCTION, test.device)
            rows.append(self.score(data, name=RECONSTRUCTION, ipc=None, compare=False, **row))
        return rows


feature_evaluator = lru_cache(maxsize=1)(FeatureEvaluator)
"""Return a feature evaluator; equal arguments share one, trained once."""
