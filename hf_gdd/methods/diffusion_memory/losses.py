"""Losses of the diffusion methods, as pure functions."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_gdd.utils.device import at_least_float32


def representativeness_loss(cosines: Tensor, held: Tensor, labels: Tensor) -> Tensor:
    """How far a class of predicted latents is from the real memory it is least like (L_real of arXiv 2311.15529).

    For each class of the batch 1 - the least cosine between any of its latents and any member of its memory; the mean
    over the batch's classes, of which those with an empty memory count 0.

    Args:
        cosines: of each latent with each place of its class's memory, [B, M].
        held: which places hold a member, [B, M].
        labels: [B].

    """
    least = cosines.masked_fill(~held, 2.0).amin(1)  # above any cosine
    return _mean_over_classes(1 - _within_classes(least, labels, torch.amin), held, labels)


def diversity_loss(cosines: Tensor, held: Tensor, labels: Tensor) -> Tensor:
    """How like a class of predicted latents is to the generated memory it is most like (L_gen of arXiv 2311.15529).

    For each class of the batch the largest cosine; the rest and the arguments are as in `representativeness_loss`.
    """
    most = cosines.masked_fill(~held, -2.0).amax(1)
    return _mean_over_classes(_within_classes(most, labels, torch.amax), held, labels)


def _within_classes(values: Tensor, labels: Tensor, reduce: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The extreme of each item's class, [B]."""
    other = 2.0 if reduce is torch.amin else -2.0
    return reduce(torch.where(labels[:, None] == labels, values, other), 1)


def _mean_over_classes(values: Tensor, held: Tensor, labels: Tensor) -> Tensor:
    """The mean over classes of a value that all items of a class share, 0 where nothing is held."""
    weights = 1 / (labels[:, None] == labels).sum(1)
    return (weights * torch.where(held.any(1), values, 0)).sum() / weights.sum()


def variance_bound(
    noise: Tensor, spread: Tensor, clean: Tensor, noisy: Tensor, steps: Tensor, alphas: Tensor
) -> Tensor:
    """What a diffusion model's learned variance is trained by: the variational bound, in bits a dimension.

    Nichol & Dhariwal, 2021 (arXiv 2102.09672), Eq. 15, with the mean held fixed and no weight, as DiT has it.

    Args:
        noise: predicted, [B, c, h, w]; no gradient passes to it.
        spread: where between the least and the largest log variance the model puts itself, -1 to 1, [B, c, h, w].
        clean: the true latents.
        noisy: the same at these steps.
        steps: int64 [B].
        alphas: cumulative products of all steps.

    """
    alphas, noise = alphas.double(), noise.detach()
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    betas = 1 - alphas / before
    least = betas * (1 - before) / (1 - alphas)
    least[0] = least[1]  # the first step's is 0, of which there is no logarithm
    a, b, log_least, log_largest = (
        x[steps].float().view(-1, 1, 1, 1) for x in (alphas, before, least.log(), betas.log())
    )
    beta = 1 - a / b

    def mean(start: Tensor) -> Tensor:
        return (b.sqrt() * beta * start + (a / b).sqrt() * (1 - b) * noisy) / (1 - a)

    predicted = mean((noisy - (1 - a).sqrt() * noise) / a.sqrt())
    share = (at_least_float32(spread) + 1) / 2
    log_variance = share * log_largest + (1 - share) * log_least
    gap = (mean(clean) - predicted).square()
    divergence = (log_variance - log_least + (log_least.exp() + gap) / log_variance.exp() - 1) / 2
    likelihood = _discretized_log_likelihood(clean, predicted, (log_variance / 2).exp())
    bound = torch.where(steps.view(-1, 1, 1, 1) == 0, -likelihood, divergence)
    return bound.mean() / math.log(2)


def _discretized_log_likelihood(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Of the bin of 1/255 to each side of x under a normal distribution; the outermost bins are endless."""
    above, below = (torch.special.ndtr((x - mean + side / 255) / deviation) for side in (1, -1))
    chance = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return chance.clamp(min=1e-12).log()
