"""The equations, as pure functions of tensors: no state, no device, no logging.

Shapes: B images, K classes, scores [B], logits [B, K], features [B, c, h, w]. Every function returns a scalar.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_gdd.utils.convolution import of_images_alone

ADVERSARIAL = ("wgan-gp", "minimax")


def at_least_float32(x: Tensor) -> Tensor:
    """Undo the reduced precision of a forward pass: sums and means of bfloat16 are too coarse to be losses."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def generator_adversarial(fake: Tensor, form: str) -> Tensor:
    """What the generator minimises over the scores of its images.

    `wgan-gp`: the negative critic score, as the public DiM code (Gu et al., 2023) runs it. `minimax`: log(1 - D(fake)),
    Eq. 4 of Li et al. (2024).
    """
    fake = at_least_float32(fake)
    return -fake.mean() if form == "wgan-gp" else -F.softplus(fake).mean()


def discriminator_adversarial(real: Tensor, fake: Tensor, form: str) -> Tensor:
    """What the discriminator minimises over its scores; `wgan-gp` also needs `gradient_penalty`."""
    real, fake = at_least_float32(real), at_least_float32(fake)
    if form == "wgan-gp":
        return fake.mean() - real.mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def gradient_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Mean squared distance from 1 of the critic's slope between real and fake (Gulrajani et al., 2017, Eq. 3).

    Args:
        score: images [B, C, H, W] -> scores [B]; each score may depend on its own image alone.
        real: images [B, C, H, W].
        fake: images [B, C, H, W].
        mix: the share of `real` in each point where the slope is taken, in [0, 1], [B].

    """
    mix = mix.view(-1, 1, 1, 1)
    between = (mix * real + (1 - mix) * fake).detach().requires_grad_()
    total = score(between).sum()
    with of_images_alone():
        (slope,) = torch.autograd.grad(total, between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def _logsoftmax_mean(fake: Tensor, real: Tensor) -> Tensor:
    return F.mse_loss(fake.log_softmax(1), real.log_softmax(1))


def _squares_sum(fake: Tensor, real: Tensor) -> Tensor:
    return F.mse_loss(fake, real, reduction="sum")


def _batchmean_sum(fake: Tensor, real: Tensor) -> Tensor:
    return _squares_sum(fake.mean(0), real.mean(0))


def _paired_sum_batchmean(fake: Tensor, real: Tensor) -> Tensor:
    return _squares_sum(fake, real) / len(fake)


# The published texts leave the reductions open; the first of each is what the published weights 0.01 and 0.001 fit.
GLOBAL: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logsoftmax_mean": _logsoftmax_mean,  # the public DiM code
    "logit_mean": F.mse_loss,
    "logit_sum": _squares_sum,  # Eq. 6 of Li et al. (2024), to the letter
}
LOCAL: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "batchmean_sum": _batchmean_sum,  # the feature branch of the public DiM code
    "paired_mean": F.mse_loss,
    "paired_sum": _squares_sum,  # Eq. 7 of Li et al. (2024), to the letter
    "paired_sum_batchmean": _paired_sum_batchmean,
}


def global_loss(fake_logits: Tensor, real_logits: Tensor, reduction: str = "logsoftmax_mean") -> Tensor:
    """Distance between the logits [B, K] of generated and real images of equal labels (Li et al., 2024, Eq. 6)."""
    return GLOBAL[reduction](at_least_float32(fake_logits), at_least_float32(real_logits))


def local_loss(fake_features: Tensor, real_features: Tensor, reduction: str = "batchmean_sum") -> Tensor:
    """Distance between intermediate features [B, ...] of generated and real images (Li et al., 2024, Eq. 7).

    Paired reductions compare image with image, so they also reward a generator for losing variety; `batchmean_sum`
    compares the batch means and does not.
    """
    return LOCAL[reduction](at_least_float32(fake_features), at_least_float32(real_features))


def prediction_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean absolute difference of two networks' logits [B, K] for the same images.

    It is what students are trained by in adversarial prediction matching, and what the images ascend (Chen et al.,
    2023, arXiv 2312.08912, Eqs. 4 and 6; the public code takes no logarithm of it).
    """
    return F.l1_loss(at_least_float32(student), at_least_float32(teacher))


def gradient_shares(terms: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Each term's part, in [0, 1], of the summed gradient norms at `images`: which term rules the generator.

    The graph of `terms` is kept for the backward pass to come.
    """
    norms = {
        name: torch.autograd.grad(term, images, retain_graph=True)[0].float().norm() for name, term in terms.items()
    }
    total = sum(norms.values()).clamp_min(torch.finfo(torch.float32).tiny)
    return {name: norm / total for name, norm in norms.items()}


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
    likelihood = _discretised_log_likelihood(clean, predicted, (log_variance / 2).exp())
    bound = torch.where(steps.view(-1, 1, 1, 1) == 0, -likelihood, divergence)
    return bound.mean() / math.log(2)


def _discretised_log_likelihood(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Of the bin of 1/255 to each side of x under a normal distribution; the outermost bins are endless."""
    above, below = (torch.special.ndtr((x - mean + side / 255) / deviation) for side in (1, -1))
    chance = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return chance.clamp(min=1e-12).log()
