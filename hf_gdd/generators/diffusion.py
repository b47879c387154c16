"""A class-conditional diffusion transformer as a generator, in a repo that a stock `DiTPipeline` loads as well."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ConfigMixin,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hf_gdd.data.imagenet import class_rows_of
from hf_gdd.data.pixels import tanh_to_uint8, to_tanh
from hf_gdd.generators.base import DEFAULT_TILE
from hf_gdd.generators.checks import check_record
from hf_gdd.generators.dit_pipeline import NULL_CLASS, SCHEDULE_FIELDS, noise_schedule, read_pipeline, stock_record
from hf_gdd.generators.noise import noise
from hf_gdd.generators.pretrained import Model, PretrainedGenerator
from hf_gdd.generators.sampling import DiffusionSampling, present_names
from hf_gdd.hub.loading import CONFIG_NAME, FORMAT_VERSION, STOCK_PIPELINE, remove_local_path

# How each steps, wherever the model is from: only the noise schedule is its own. `ddpm` has the papers' spacing.
STEPPERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "ddpm": (DDPMScheduler, {"clip_sample": False, "timestep_spacing": "linspace"}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
}
SMALL_TILE = 32  # on a CPU, and of images above 64 px, whose decoder would fill the memory of most GPUs
# What decides pixels beside the weights; what else a config holds may change with the version of diffusers.
TRANSFORMER_FIELDS = ("num_attention_heads", "attention_head_dim", "patch_size", "sample_size", "in_channels")
TRANSFORMER_FIELDS += ("activation_fn", "norm_eps", "upcast_attention")
VAE_FIELDS = ("norm_num_groups", "act_fn", "scaling_factor", "layers_per_block", "block_out_channels")
VAE_FIELDS += ("down_block_types", "up_block_types", "mid_block_add_attention")


class DiffusionGenerator(PretrainedGenerator, ConfigMixin):
    """Noise and a label to a latent by denoising, and the latent to an image by a decoder.

    Args:
        transformer: predicts the noise, and maybe its variance, of latents given step and class.
        vae: decodes latents, divided by its `scaling_factor`, to images in [-1, 1].
        scheduler: whose noise schedule is taken over, and nothing else.
        class_names: in the order of the labels.
        class_rows: the number by which the transformer knows each class; 0, 1, ... if None.
        known_classes: what the transformer calls each of its classes, for a stock pipeline; `class_names` if None.
        mean: of the real training images in unit range, per channel.
        std: of the real training images in unit range, per channel.
        training: how it was trained, as primitives.
        sampling: fields of the `DiffusionSampling` used unless another is given.
        fingerprint: of the weights that were saved with this config.
        weights_dtype: of those weights.
        image_shape: (C, H, W); what the parts make, which it must equal if given.
        format_version: of the saved folder.

    Raises:
        ValueError: the parts do not fit each other or the classes.

    """

    config_name = CONFIG_NAME
    ignore_for_config = ("transformer", "vae", "scheduler")

    @register_to_config
    def __init__(
        self,
        *,  # diffusers would mistake the parts for what follows them
        transformer: DiTTransformer2DModel,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        class_names: tuple[str, ...],
        class_rows: tuple[int, ...] | None = None,
        known_classes: dict[str, str] | None = None,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
        training: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        fingerprint: str | None = None,
        weights_dtype: str | None = None,
        image_shape: tuple[int, int, int] | None = None,
        format_version: int = FORMAT_VERSION,
    ) -> None:
        _check_parts(transformer, vae)
        self.transformer, self.vae, self.scheduler = transformer.eval(), vae.eval(), noise_schedule(scheduler.config)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = transformer.config.sample_size * self.factor
        made = (vae.config.out_channels, side, side)
        if image_shape is not None and tuple(image_shape) != made:
            raise ValueError(f"The parts make images {made}, not {tuple(image_shape)}.")
        check_record(class_names, made, mean, std, training)
        rows = range(len(class_names)) if class_rows is None else class_rows
        real = {row for row in rows if isinstance(row, int) and 0 <= row < NULL_CLASS}
        if not len(real) == len(rows) == len(class_names):
            raise ValueError(f"Each of the {len(class_names)} classes needs a row of its own in 0..{NULL_CLASS - 1}.")
        self.rows = torch.tensor(list(rows))
        self.sampling = DiffusionSampling(**present_names(sampling or {}))
        self.register_to_config(image_shape=made, class_rows=tuple(rows))

    # What it is.

    @property
    def device(self) -> torch.device:
        """Where images are made."""
        return self.transformer.device

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers of transformer and autoencoder."""
        parts = {"transformer": self.transformer, "vae": self.vae}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}

    @property
    def kind(self) -> tuple[Any, ...]:
        """Class, shape, rows, what the parts' configs decide, and the noise schedule."""
        fields = [(self.transformer.config, TRANSFORMER_FIELDS), (self.vae.config, VAE_FIELDS)]
        settings = [(name, config.get(name)) for config, names in fields for name in names]
        schedule = [round(float(x), 6) for x in self.scheduler.alphas_cumprod]
        return *super().kind, json.dumps([self.rows.tolist(), settings, schedule])

    @property
    def tile(self) -> int:
        """How many images are made at a time, always as many on one device type."""
        return SMALL_TILE if self.device.type == "cpu" or self.image_shape[-1] > 64 else DEFAULT_TILE

    # What it makes.

    @torch.no_grad()
    def make(self, labels: Tensor, indices: Tensor, seed: int, sampling: DiffusionSampling) -> Tensor:
        """Images in [-1, 1]; the noise of each (label, index) and of each of its steps is counter-based."""
        scheduler = self._scheduler(sampling)
        scheduler.set_timesteps(sampling.num_inference_steps, device=self.device)
        shape = (self.transformer.config.in_channels, *[self.transformer.config.sample_size] * 2)
        rows = self.rows.to(self.device)[labels]
        latents = noise(seed, labels, indices, shape) * scheduler.init_noise_sigma
        for number, (step, before) in enumerate(pairwise([*scheduler.timesteps.tolist(), -1]), start=1):
            predicted, spread = self._predict(latents, step, rows, sampling.guidance_scale)
            if sampling.scheduler == "ddpm":
                drawn = noise(seed, labels, indices, shape, stream=number)
                latents = ancestral_step(scheduler.alphas_cumprod, predicted, spread, step, before, latents, drawn)
            else:
                latents = scheduler.step(predicted, step, latents).prev_sample
        return self.decode(latents)

    def _predict(self, latents: Tensor, step: int, rows: Tensor, guidance: float) -> tuple[Tensor, Tensor | None]:
        """The guided noise of latents at a step, and where in its range the log variance is, if that is learned."""
        asked = latents
        if guidance > 1:
            asked, rows = torch.cat([latents, latents]), torch.cat([rows, torch.full_like(rows, NULL_CLASS)])
        steps = torch.full((len(asked),), step, device=asked.device)
        output = self.transformer(asked.to(self.transformer.dtype), timestep=steps, class_labels=rows).sample.float()
        predicted, spread = output[:, : latents.shape[1]], output[: len(latents), latents.shape[1] :]
        if guidance > 1:
            given, free = predicted.chunk(2)
            predicted = free + guidance * (given - free)
        return predicted, spread if spread.shape[1] else None

    def _scheduler(self, sampling: DiffusionSampling) -> SchedulerMixin:
        kind, options = STEPPERS[sampling.scheduler]
        return kind(**{name: self.scheduler.config[name] for name in SCHEDULE_FIELDS}, **options)

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1] of scaled latents."""
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images uint8 [B, C, H, W] as the autoencoder keeps them: the best that any latent can give."""
        parts = [
            tanh_to_uint8(self.vae(to_tanh(part).to(self.device, self.vae.dtype)).sample)
            for part in images.split(self.tile)
        ]
        return torch.cat(parts)

    # How it is kept.

    def write(self, folder: Path, max_shard_size: str) -> None:
        """Write a pipeline that `DiTPipeline.from_pretrained` loads, and our config beside it."""
        self.save_config(folder)  # first, so that a kill leaves no pipeline without a record
        names = self.config.known_classes or dict(zip(self.config.class_rows, self.class_names, strict=True))
        pipeline = DiTPipeline(self.transformer, self.vae, self._scheduler(self.sampling))
        # diffusers itself forgets the labels: only what is registered is written.
        pipeline.register_to_config(id2label={str(row): name for row, name in names.items()})
        pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
        for path in (folder, folder / "transformer", folder / "vae"):
            remove_local_path(path)

    @classmethod
    def saved_as(cls) -> tuple[str, ...]:
        """Also a stock pipeline."""
        return cls.__name__, STOCK_PIPELINE

    @classmethod
    def read(cls: type[Model], folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Model:
        """See `PretrainedGenerator.read`; `config` may be that of a stock pipeline, which then keeps all its classes."""
        index, parts = read_pipeline(folder, dtype)
        if config["_class_name"] == cls.__name__:
            return cls(**parts, **{name: value for name, value in config.items() if name in cls._record()})
        return cls(**parts, **stock_record(index, parts["vae"]))

    @classmethod
    def _record(cls) -> set[str]:
        return cls._get_init_keys(cls) - {"self", *cls.ignore_for_config}

    def select(self, classes: Sequence[str], class_names: Sequence[str] | None = None) -> "DiffusionGenerator":
        """The same model for some of its classes only, in this order, which becomes that of the labels.

        Args:
            classes: as the model names them, or ImageNet classes by their WordNet ids; see `hf_gdd.data.imagenet.SUBSETS`.
            class_names: what to call them from now on; `classes` if None.

        Raises:
            ValueError: the model does not know a class, or another number of names is given.

        """
        if class_names is not None and len(classes) != len(class_names):
            raise ValueError(f"{len(classes)} classes are chosen for the {len(class_names)} of the data set.")
        known = self.config.known_classes or dict(zip(self.config.class_rows, self.class_names, strict=True))
        known = {int(row): name for row, name in known.items()}
        record = {name: self.config[name] for name in ("mean", "std", "training", "sampling")}
        record |= {"class_names": tuple(class_names or classes), "class_rows": class_rows_of(classes, known)}
        known = {str(row): name for row, name in known.items()}
        parts = {name: getattr(self, name) for name in self.ignore_for_config}
        selected = DiffusionGenerator(**parts, known_classes=known, **record)
        selected.origin = self.origin
        return selected

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "DiffusionGenerator":
        """Itself, after a move, as of any torch module."""
        return self.place(device, dtype)

    def place(self: Model, device: str | torch.device | None, dtype: torch.dtype | None) -> Model:
        """See `PretrainedGenerator.place`."""
        for part in (self.transformer, self.vae):
            nn.Module.to(part, device=device, dtype=dtype)
        return self


def ancestral_step(
    alphas: Tensor, predicted: Tensor, spread: Tensor | None, step: int, before: int, latents: Tensor, drawn: Tensor
) -> Tensor:
    """What `DDPMScheduler.step` computes, with the noise given rather than drawn, which diffusers does not allow.

    Ho et al., 2020, Eq. 7; with `spread`, the learned variance of Nichol & Dhariwal, 2021, Eq. 15.

    Args:
        alphas: cumulative products of the schedule.
        predicted: noise, [B, c, h, w].
        spread: where in its range the log variance is, -1 to 1, or None for the least.
        step: of `latents`.
        before: of what is returned; -1 for the end, which is reached without noise.
        latents: [B, c, h, w].
        drawn: normal noise, [B, c, h, w].

    """
    a, b = float(alphas[step]), float(alphas[before]) if before >= 0 else 1.0
    beta = 1 - a / b
    start = (latents - (1 - a) ** 0.5 * predicted) / a**0.5
    mean = (b**0.5 * beta * start + (a / b) ** 0.5 * (1 - b) * latents) / (1 - a)
    if before < 0:
        return mean
    log_variance = torch.full_like(latents, math.log(beta * (1 - b) / (1 - a)))
    if spread is not None:
        log_variance = torch.lerp(log_variance, torch.full_like(latents, math.log(beta)), (spread + 1) / 2)
    return mean + (log_variance / 2).exp() * drawn


def _check_parts(transformer: DiTTransformer2DModel, vae: AutoencoderKL) -> None:
    inside, outside = transformer.config, vae.config
    if inside.in_channels != outside.latent_channels:
        raise ValueError(
            f"The transformer denoises {inside.in_channels} channels, but the latents of the autoencoder have "
            f"{outside.latent_channels}."
        )
    if transformer.out_channels not in (inside.in_channels, 2 * inside.in_channels):
        raise ValueError(f"A transformer with {transformer.out_channels} output channels predicts no noise.")
    if inside.num_embeds_ada_norm != NULL_CLASS:
        raise ValueError(
            f"The transformer has {inside.num_embeds_ada_norm} classes; a DiTPipeline takes class {NULL_CLASS} for no "
            f"label, so it must have {NULL_CLASS}, used or not."
        )
    if transformer.dtype != vae.dtype:
        raise ValueError(f"The transformer is {transformer.dtype} and the autoencoder {vae.dtype}: cast one of them.")
