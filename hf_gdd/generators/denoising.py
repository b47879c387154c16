"""Denoising with noise that depends on seed, label, index and step alone."""

import math
from itertools import pairwise

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel, DPMSolverMultistepScheduler, SchedulerMixin
from torch import Tensor

from hf_gdd.generators.dit_pipeline import NULL_CLASS, SCHEDULE_FIELDS
from hf_gdd.generators.noise import noise
from hf_gdd.generators.sampling import DiffusionSampling

# Of a model's own scheduler only the noise schedule is used. `ddpm` spaces its timesteps as the papers do.
_SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "ddpm": (DDPMScheduler, {"clip_sample": False, "timestep_spacing": "linspace"}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
}


def build_scheduler(schedule: SchedulerMixin, name: str) -> SchedulerMixin:
    """Return a scheduler named as in `DiffusionSampling`, with a given noise schedule."""
    scheduler_class, options = _SCHEDULERS[name]
    return scheduler_class(**{field: schedule.config[field] for field in SCHEDULE_FIELDS}, **options)


def denoise(
    transformer: DiTTransformer2DModel,
    schedule: SchedulerMixin,
    labels: Tensor,
    indices: Tensor,
    class_rows: Tensor,
    seed: int,
    sampling: DiffusionSampling,
) -> Tensor:
    """Denoise a latent for every (label, index).

    Args:
        transformer: predicts the noise.
        schedule: scheduler whose noise schedule the transformer was trained with.
        labels: int64 [B] on the transformer's device, for the noise.
        indices: int64 [B], likewise.
        class_rows: int64 [B], the transformer's own class numbers, for the condition.
        seed: image seed.
        sampling: scheduler, number of steps and guidance.

    Returns:
        float32 [B, c, h, w], scaled as the transformer sees them.

    """
    scheduler = build_scheduler(schedule, sampling.scheduler)
    scheduler.set_timesteps(sampling.num_inference_steps, device=labels.device)
    shape = (transformer.config.in_channels, *[transformer.config.sample_size] * 2)
    latents = noise(seed, labels, indices, shape) * scheduler.init_noise_sigma
    for stream, (t, prev_t) in enumerate(pairwise([*scheduler.timesteps.tolist(), -1]), start=1):
        pred_noise, model_var = predict_noise(transformer, latents, t, class_rows, sampling.guidance_scale)
        if sampling.scheduler == "ddpm":
            step_noise = noise(seed, labels, indices, shape, stream=stream)
            latents = ancestral_step(scheduler.alphas_cumprod, pred_noise, model_var, t, prev_t, latents, step_noise)
        else:
            latents = scheduler.step(pred_noise, t, latents).prev_sample
    return latents


def predict_noise(
    transformer: DiTTransformer2DModel, latents: Tensor, t: int, class_rows: Tensor, guidance_scale: float
) -> tuple[Tensor, Tensor | None]:
    """Predict noise and variance with classifier-free guidance (Ho & Salimans, 2022).

    Returns:
        The noise, [B, c, h, w], and the log variance as a position in its range, -1 to 1; None if it is not learned.

    """
    inputs = latents
    if guidance_scale > 1:
        inputs = torch.cat([latents, latents])
        class_rows = torch.cat([class_rows, torch.full_like(class_rows, NULL_CLASS)])
    timesteps = torch.full((len(inputs),), t, device=inputs.device)
    output = transformer(inputs.to(transformer.dtype), timestep=timesteps, class_labels=class_rows).sample.float()
    pred_noise, model_var = output[:, : latents.shape[1]], output[: len(latents), latents.shape[1] :]
    if guidance_scale > 1:
        conditional, unconditional = pred_noise.chunk(2)
        pred_noise = unconditional + guidance_scale * (conditional - unconditional)
    return pred_noise, model_var if model_var.shape[1] else None


def ancestral_step(
    alphas_cumprod: Tensor,
    pred_noise: Tensor,
    model_var: Tensor | None,
    t: int,
    prev_t: int,
    latents: Tensor,
    noise: Tensor,
) -> Tensor:
    """Take one DDPM step (Ho et al., 2020, Eq. 7) with given noise.

    This is `DDPMScheduler.step`, which can only draw its own noise. With `model_var` the variance is the learned
    one of Nichol & Dhariwal (2021, Eq. 15).

    Args:
        alphas_cumprod: cumulative products of the noise schedule.
        pred_noise: predicted noise, [B, c, h, w].
        model_var: log variance as a position in its range, -1 to 1; None for the lower end.
        t: timestep of `latents`.
        prev_t: timestep of the result; -1 for the last step, which adds no noise.
        latents: [B, c, h, w].
        noise: standard normal, [B, c, h, w].

    """
    alpha_t = float(alphas_cumprod[t])
    alpha_prev = float(alphas_cumprod[prev_t]) if prev_t >= 0 else 1.0
    beta = 1 - alpha_t / alpha_prev
    pred_x0 = (latents - (1 - alpha_t) ** 0.5 * pred_noise) / alpha_t**0.5
    mean = alpha_prev**0.5 * beta * pred_x0 + (alpha_t / alpha_prev) ** 0.5 * (1 - alpha_prev) * latents
    mean = mean / (1 - alpha_t)
    if prev_t < 0:
        return mean
    log_variance = torch.full_like(latents, math.log(beta * (1 - alpha_prev) / (1 - alpha_t)))
    if model_var is not None:
        log_variance = torch.lerp(log_variance, torch.full_like(latents, math.log(beta)), (model_var + 1) / 2)
    return mean + (log_variance / 2).exp() * noise
