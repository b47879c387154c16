"""How near generated images are to real ones, and how well they cover them, in a network's feature space.

Features are [N, D], float. All of these depend on N: compare only sets of equal size, in one feature space.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBORS = 5  # as in the papers
_ROWS = 1024  # distances computed at a time: bounds the memory


def coverage_scores(real: Tensor, fake: Tensor, k: int = NEIGHBORS) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020), by k neighbors.

    Every image has a ball that reaches its k-th nearest neighbor in its own set. `precision`: share of the generated
    images in some real ball; `recall`: share of the real ones in some generated ball; `density`: in how many real balls
    a generated image lies, over k, on average; `coverage`: share of the real balls that hold a generated image.

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
    """Squared distance of two normal distributions with the sets' means and covariances (Heusel et al., 2017, Eq. 6).

    The trace of the root of the covariances' product is the nuclear norm of the product of their factors, which takes
    no root of a matrix and is exact for fewer images than features.
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
    """1 - the mean cosine of two images of one class, averaged over the classes with at least two images."""
    unit, found = F.normalize(features.float(), dim=1), []
    for label in labels.unique():
        own = unit[labels == label]
        if (n := len(own)) > 1:
            found.append(1 - (own.sum(0).square().sum() - n) / (n * (n - 1)))
    return float(torch.stack(found).mean()) if found else 0.0


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of every row to its k-th nearest other row, or to the farthest if there are fewer."""
    rank = min(k, len(x) - 1) + 1  # a row is its own nearest
    return torch.cat([torch.cdist(part, x).kthvalue(rank, dim=1).values for part in x.split(_ROWS)])
