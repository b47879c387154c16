"""Losses of the diffusion methods: pure functions of tensors that return scalars."""

import math

import torch
from torch import Tensor

from hf_gdd.utils.device import at_least_float32


def representativeness_loss(cosines: Tensor, is_member: Tensor, labels: Tensor) -> Tensor:
    """Pull each class toward the real member it is least similar to.

    This is L_real of Minimax (Gu et al., 2024, arXiv 2311.15529). For each class of the batch: 1 minus the smallest
    cosine between any of its latents and any member of its memory, averaged over the batch's classes; a class with an
    empty memory counts 0.

    Args:
        cosines: cosines of each latent with each slot of its class's memory, [B, M].
        is_member: true where a slot has a member, [B, M].
        labels: int64 [B].

    """
    return _mean_over_classes(1 + _largest_in_class(-cosines, is_member, labels), is_member, labels)


def diversity_loss(cosines: Tensor, is_member: Tensor, labels: Tensor) -> Tensor:
    """Push each class away from the generated member it is most similar to.

    This is L_gen of Minimax (Gu et al., 2024, arXiv 2311.15529): for each class of the batch the largest cosine.
    Averages and arguments are those of `representativeness_loss`.
    """
    return _mean_over_classes(_largest_in_class(cosines, is_member, labels), is_member, labels)


def _largest_in_class(values: Tensor, is_member: Tensor, labels: Tensor) -> Tensor:
    """Return the largest member value of each item's class over all its items, [B]."""
    largest = values.masked_fill(~is_member, -2.0).amax(1)  # below any cosine
    return torch.where(labels[:, None] == labels, largest, -2.0).amax(1)


def _mean_over_classes(values: Tensor, is_member: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over classes of a value that all items of a class share.

    It is 0 for classes without members.
    """
    weights = 1 / (labels[:, None] == labels).sum(1)
    return (weights * torch.where(is_member.any(1), values, 0)).sum() / weights.sum()


def variance_bound(
    pred_noise: Tensor, model_var: Tensor, clean: Tensor, noisy: Tensor, timesteps: Tensor, alphas: Tensor
) -> Tensor:
    """Return the variational bound for a learned variance, in bits per dimension.

    Nichol & Dhariwal, 2021 (arXiv 2102.09672), Eq. 15, with the mean held fixed and no weight, as in DiT.

    Args:
        pred_noise: predicted noise, [B, c, h, w]; no gradient passes to it.
        model_var: position of the log variance between its bounds, -1 to 1, [B, c, h, w].
        clean: clean latents, [B, c, h, w].
        noisy: latents at these timesteps, [B, c, h, w].
        timesteps: int64 [B].
        alphas: cumulative products of the noise schedule, [T].

    """
    alphas, pred_noise = alphas.double(), pred_noise.detach()
    alphas_prev = torch.cat([alphas.new_ones(1), alphas[:-1]])
    betas = 1 - alphas / alphas_prev
    lower = betas * (1 - alphas_prev) / (1 - alphas)
    lower[0] = lower[1]  # the first step's is 0, which has no logarithm
    alpha, alpha_prev, log_lower, log_upper = (
        x[timesteps].float().view(-1, 1, 1, 1) for x in (alphas, alphas_prev, lower.log(), betas.log())
    )
    beta = 1 - alpha / alpha_prev

    def posterior_mean(x0: Tensor) -> Tensor:
        return (alpha_prev.sqrt() * beta * x0 + (alpha / alpha_prev).sqrt() * (1 - alpha_prev) * noisy) / (1 - alpha)

    pred_mean = posterior_mean((noisy - (1 - alpha).sqrt() * pred_noise) / alpha.sqrt())
    share = (at_least_float32(model_var) + 1) / 2
    log_variance = share * log_upper + (1 - share) * log_lower
    gap = (posterior_mean(clean) - pred_mean).square()
    divergence = (log_variance - log_lower + (log_lower.exp() + gap) / log_variance.exp() - 1) / 2
    likelihood = _discretized_log_likelihood(clean, pred_mean, (log_variance / 2).exp())
    bound = torch.where(timesteps.view(-1, 1, 1, 1) == 0, -likelihood, divergence)
    return bound.mean() / math.log(2)


def _discretized_log_likelihood(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the log probability of a bin of 1/255 to each side of x.

    The outermost bins are infinite.
    """
    above, below = (torch.special.ndtr((x - mean + side / 255) / deviation) for side in (1, -1))
    chance = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return chance.clamp(min=1e-12).log()
