"""Formulas that compare sets of images in a network's feature space.

Features are floats [N, D]. All scores depend on N: compare only sets of equal size, in one feature space.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBORS = 5  # as in the papers
_ROWS = 1024  # rows of distances computed at a time; bounds the memory


def coverage_scores(real: Tensor, fake: Tensor, k: int = NEIGHBORS) -> dict[str, float]:
    """Compute precision, recall, density and coverage from k nearest neighbors.

    The ball of an image reaches to its k-th nearest neighbor in its own set. The scores are:

    - precision: share of the generated images that lie in a real ball (Kynkäänniemi et al., 2019);
    - recall: share of the real images that lie in a generated ball (same paper);
    - density: mean number of real balls around a generated image, divided by k (Naeem et al., 2020);
    - coverage: share of the real balls that contain a generated image (same paper).

    Args:
        real: features of the real images [N, D].
        fake: features of the generated images [M, D].
        k: number of neighbors.

    Returns:
        The four scores by name. All lie in [0, 1], but density may be larger.

    Raises:
        ValueError: a set has fewer than two images.

    """
    if min(len(real), len(fake)) < 2:
        raise ValueError("A single image has no neighbors: pass at least two real and two generated ones.")
    in_real_ball, in_fake_ball, balls = [], [], torch.zeros(len(real), device=real.device)
    real_radius, fake_radius = _radii(real, k), _radii(fake, k)
    hits = torch.zeros((), device=real.device)
    for part in fake.split(_ROWS):
        inside = torch.cdist(part, real) <= real_radius
        in_real_ball.append(inside.any(1))
        balls += inside.sum(0)
        hits += inside.sum()
    for part in real.split(_ROWS):
        in_fake_ball.append((torch.cdist(part, fake) <= fake_radius).any(1))
    return {
        "precision": float(torch.cat(in_real_ball).float().mean()),
        "recall": float(torch.cat(in_fake_ball).float().mean()),
        "density": float(hits / (k * len(fake))),
        "coverage": float((balls > 0).float().mean()),
    }


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Compute the squared Fréchet distance of two sets (Heusel et al., 2017, Eq. 6).

    The trace of the square root of the product of the covariances is computed as the nuclear norm of the product of
    their factors. This needs no matrix root, and is exact for fewer images than features too.

    Args:
        real: features of the real images [N, D].
        fake: features of the generated images [M, D].

    """
    means = [x.double().mean(0) for x in (real, fake)]
    factors = [
        torch.linalg.qr((x.double() - mean) / (len(x) - 1) ** 0.5, mode="r").R
        for x, mean in zip((real, fake), means, strict=True)
    ]
    spread = sum(factor.square().sum() for factor in factors)
    shared = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return float((means[0] - means[1]).square().sum() + spread - 2 * shared)


def class_diversity(features: Tensor, labels: Tensor) -> float:
    """Compute 1 minus the mean cosine of two images of one class, averaged by class.

    Args:
        features: features of the images [N, D].
        labels: their labels [N]. Classes with a single image are left out.

    """
    unit, scores = F.normalize(features.float(), dim=1), []
    for label in labels.unique():
        own = unit[labels == label]
        if (n := len(own)) > 1:
            scores.append(1 - (own.sum(0).square().sum() - n) / (n * (n - 1)))
    return float(torch.stack(scores).mean()) if scores else 0.0


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the distance of every row to its k-th nearest other row, or the last."""
    rank = min(k, len(x) - 1) + 1  # a row is its own nearest
    return torch.cat([torch.cdist(part, x).kthvalue(rank, dim=1).values for part in x.split(_ROWS)])
