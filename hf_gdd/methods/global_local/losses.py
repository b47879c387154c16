"""Losses of global-local matching and its GAN, as pure functions of tensors.

Shapes: B images, K classes, scores [B], logits [B, K], features [B, c, h, w]. Every function returns a scalar.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_gdd.utils.device import at_least_float32


def generator_adversarial(fake: Tensor, form: str) -> Tensor:
    """Return the loss that the generator minimizes over the scores [B] of its images.

    `wgan-gp`: the negative critic score, as the public DiM code (Gu et al., 2023) runs it. `minimax`: log(1 - D(fake)),
    Eq. 4 of Li et al. (2024).
    """
    fake = at_least_float32(fake)
    return -fake.mean() if form == "wgan-gp" else -F.softplus(fake).mean()


def discriminator_adversarial(real: Tensor, fake: Tensor, form: str) -> Tensor:
    """Return the loss that the discriminator minimizes over its scores [B].

    `wgan-gp` also needs `gradient_penalty`.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    if form == "wgan-gp":
        return fake.mean() - real.mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def gradient_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Return the gradient penalty of WGAN-GP (Gulrajani et al., 2017, Eq. 3).

    This is the mean squared distance from 1 of the critic's slope between real and generated images.

    Args:
        score: images [B, C, H, W] -> scores [B]; each score may depend on its own image alone.
        real: images [B, C, H, W].
        fake: images [B, C, H, W].
        mix: the share of `real` in each point where the slope is taken, in [0, 1], [B].

    """
    mix = mix.view(-1, 1, 1, 1)
    between = (mix * real + (1 - mix) * fake).detach().requires_grad_()
    total = score(between).sum()
    (slope,) = torch.autograd.grad(total, between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


_squares_sum = partial(F.mse_loss, reduction="sum")

# The published texts leave the reductions open; the first of each is what the published weights 0.01 and 0.001 fit.
GLOBAL_REDUCTIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logsoftmax_mean": lambda fake, real: F.mse_loss(fake.log_softmax(1), real.log_softmax(1)),  # the public DiM code
    "logit_mean": F.mse_loss,
    "logit_sum": _squares_sum,  # Eq. 6 of Li et al. (2024), to the letter
}
LOCAL_REDUCTIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    # The feature branch of the public DiM code.
    "batchmean_sum": lambda fake, real: _squares_sum(fake.mean(0), real.mean(0)),
    "paired_mean": F.mse_loss,
    "paired_sum": _squares_sum,  # Eq. 7 of Li et al. (2024), to the letter
    "paired_sum_batchmean": lambda fake, real: _squares_sum(fake, real) / len(fake),
}


def global_loss(fake_logits: Tensor, real_logits: Tensor, reduction: str = "logsoftmax_mean") -> Tensor:
    """Return the distance between logits [B, K] (Li et al., 2024, Eq. 6).

    They are those of generated and real images of equal labels.
    """
    return GLOBAL_REDUCTIONS[reduction](at_least_float32(fake_logits), at_least_float32(real_logits))


def local_loss(fake_features: Tensor, real_features: Tensor, reduction: str = "batchmean_sum") -> Tensor:
    """Return the distance between features [B, ...] (Li et al., 2024, Eq. 7).

    They are intermediate features of generated and real images of equal labels. Paired reductions compare image with
    image, so they also reward a generator for losing variety; `batchmean_sum` compares the batch means and does not.
    """
    return LOCAL_REDUCTIONS[reduction](at_least_float32(fake_features), at_least_float32(real_features))


def _mean_distances(fake: Tensor, real: Tensor) -> Tensor:
    """Return the squared distance of every prefix's mean from the real mean, [C, M]."""
    lengths = torch.arange(1, fake.shape[1] + 1, device=fake.device)
    prefix_means = fake.cumsum(1) / lengths[:, None]
    return (prefix_means - real.mean(1, keepdim=True)).square().sum(2)


def _energy_distances(fake: Tensor, real: Tensor) -> Tensor:
    """Return the energy distance of every prefix from the real images, [C, M].

    Its constant part, the distances among real images, is left out. The rest is twice the mean distance between an
    image of the prefix and a real one, minus the mean distance within the prefix (Szekely & Rizzo, 2013). Unlike the
    distance of means it falls only if images also differ among themselves as real ones do.
    """
    lengths = torch.arange(1, fake.shape[1] + 1, device=fake.device)
    distances = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")  # whose gradient is 0 at distance 0
    between = distances(fake, real).mean(2).cumsum(1) / lengths
    within = distances(fake, fake).tril(-1).sum(2).cumsum(1) / lengths**2
    scale = real.flatten(0, 1).std() * real.shape[2] ** 0.5  # so that logits and features count alike
    return (2 * between - 2 * within) / scale


PREFIX_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "energy": _energy_distances,
    "mean": _mean_distances,
}


def prefix_loss(fake: Tensor, real: Tensor, distance: str = "energy", power: float = 0.0) -> Tensor:
    """Return the distance of every prefix of a set from real images.

    It is ours, after the batchwise distances of Li et al. (2024, Eqs. 6 and 7). For every m, the first
    m images of a class shall look to the network as its real images do. So each prefix of a set is matched as a set of
    its own, and one list serves every size.

    Args:
        fake: logits or features of the M images of C classes, in order, [C, M, ...].
        real: logits or features of real images of the same classes, [C, R, ...].
        distance: a name in `PREFIX_DISTANCES`.
        power: prefix m weighs m ** power, so 0 treats all alike, and less favors the small ones.

    Returns:
        The weighted mean over prefixes of the distance, averaged over classes.

    """
    fake, real = at_least_float32(fake).flatten(2), at_least_float32(real).flatten(2)
    lengths = torch.arange(1, fake.shape[1] + 1, device=fake.device, dtype=fake.dtype)
    weights = (lengths / len(lengths)) ** power  # divided, so that no power overflows
    return (PREFIX_DISTANCES[distance](fake, real) @ (weights / weights.sum())).mean()
