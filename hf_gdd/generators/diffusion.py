"""A class-conditional diffusion transformer as a generator, in a repo that a stock `DiTPipeline` loads as well."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
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
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor, nn

from hf_gdd.generators.base import DiffusionSampling, check_record
from hf_gdd.generators.dit import NULL_CLASS
from hf_gdd.generators.saved import DEFAULT_TILE, Model, SavedGenerator
from hf_gdd.hub import (
    CONFIG_NAME,
    FORMAT_VERSION,
    PIPELINE_NAME,
    STOCK_PIPELINE,
    LoadError,
    check_files,
    check_loaded,
    forget_place,
)
from hf_gdd.imagenet import rows_of
from hf_gdd.pixels import tanh_to_uint8, to_tanh
from hf_gdd.rng import noise

SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpm++": DPMSolverMultistepScheduler}
LARGE_TILE = 32  # of images above 64 px, whose decoder fills the memory of most GPUs otherwise
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MAX_LATENT, MAX_WIDTH, MAX_DEPTH = 256, 8192, 128


class DiffusionGenerator(SavedGenerator, ConfigMixin):
    """Noise and a label to a latent by denoising, and the latent to an image by a decoder.

    Args:
        transformer: predicts the noise, and maybe its variance, of latents given step and class.
        vae: decodes latents, divided by its `scaling_factor`, to images in [-1, 1].
        scheduler: whose config holds the noise schedule.
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
        self.transformer, self.vae, self.scheduler = transformer.eval(), vae.eval(), scheduler
        _check_parts(transformer, vae, scheduler)
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
        self.sampling = DiffusionSampling(**sampling or {})
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
        """Class, shape, rows, the scale of latents and the noise schedule."""
        schedule = tuple(round(float(x), 6) for x in self.scheduler.alphas_cumprod)
        return *super().kind, tuple(self.rows.tolist()), self.vae.config.scaling_factor, schedule

    @property
    def tile(self) -> int:
        """How many images are made at a time, always as many on one device type."""
        return LARGE_TILE if self.device.type == "cpu" or self.image_shape[-1] > 64 else DEFAULT_TILE

    # What it makes.

    @torch.no_grad()
    def make(self, labels: Tensor, indices: Tensor, seed: int, sampling: DiffusionSampling) -> Tensor:
        """Images in [-1, 1]; the noise of each (label, index) and of each of its steps is counter-based."""
        scheduler = self._scheduler(sampling)
        scheduler.set_timesteps(sampling.steps, device=self.device)
        shape = (self.transformer.config.in_channels, *[self.transformer.config.sample_size] * 2)
        rows = self.rows.to(self.device)[labels]
        latents = noise(seed, labels, indices, shape) * scheduler.init_noise_sigma
        for number, (step, before) in enumerate(pairwise([*scheduler.timesteps.tolist(), -1]), start=1):
            predicted, spread = self._predict(latents, step, rows, sampling.guidance)
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
        options = {"clip_sample": False}
        if sampling.scheduler == "ddpm":  # the respacing of the papers' code
            options |= {"timestep_spacing": "linspace", "variance_type": "fixed_small"}
        return SCHEDULERS[sampling.scheduler].from_config(self.scheduler.config, **options)

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
        names = self.config.known_classes or dict(zip(self.config.class_rows, self.class_names, strict=True))
        pipeline = DiTPipeline(self.transformer, self.vae, self._scheduler(self.sampling))
        # diffusers itself forgets the labels: only what is registered is written.
        pipeline.register_to_config(id2label={str(row): name for row, name in names.items()})
        pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
        self.save_config(folder)
        for path in (folder, folder / "transformer", folder / "vae"):
            forget_place(path)

    @classmethod
    def saved_as(cls) -> tuple[str, ...]:
        """Also a stock pipeline."""
        return cls.__name__, STOCK_PIPELINE

    @classmethod
    def read(cls: type[Model], folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Model:
        """See `SavedGenerator.read`; `config` may be that of a stock pipeline, which then keeps all its classes."""
        index = _read_index(folder)
        parts = {
            "transformer": _read_part(DiTTransformer2DModel, folder / "transformer", dtype),
            "vae": _read_part(AutoencoderKL, folder / "vae", dtype),
            "scheduler": _read_scheduler(folder, index),
        }
        if config["_class_name"] == cls.__name__:
            return cls(**parts, **{name: value for name, value in config.items() if name in cls._record()})
        return cls(**parts, **_stock_record(index, parts["vae"], parts["scheduler"]))

    @classmethod
    def _record(cls) -> set[str]:
        return cls._get_init_keys(cls) - {"self", *cls.ignore_for_config}

    def select(self, classes: Sequence[str], class_names: Sequence[str] | None = None) -> "DiffusionGenerator":
        """The same model for some of its classes only, in this order, which becomes that of the labels.

        Args:
            classes: as the model names them, or ImageNet classes by their WordNet ids; see `hf_gdd.imagenet.SUBSETS`.
            class_names: what to call them from now on; `classes` if None.

        Raises:
            ValueError: the model does not know a class.

        """
        known = self.config.known_classes or dict(zip(self.config.class_rows, self.class_names, strict=True))
        known = {int(row): name for row, name in known.items()}
        record = {name: self.config[name] for name in ("mean", "std", "training", "sampling")}
        record |= {"class_names": tuple(class_names or classes), "class_rows": rows_of(classes, known)}
        known = {str(row): name for row, name in known.items()}
        parts = {name: getattr(self, name) for name in self.ignore_for_config}
        return DiffusionGenerator(**parts, known_classes=known, **record)

    def place(self: Model, device: str | torch.device | None, dtype: torch.dtype | None) -> Model:
        """See `SavedGenerator.place`."""
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


def _check_parts(transformer: DiTTransformer2DModel, vae: AutoencoderKL, scheduler: SchedulerMixin) -> None:
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
    if scheduler.config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"The model predicts {scheduler.config.prediction_type!r}, not the noise ('epsilon').")


def _read_index(folder: Path) -> dict[str, Any]:
    """The parts of a pipeline, each of a class that may be loaded.

    Raises:
        LoadError: another pipeline than a DiTPipeline, or a part of another class.

    """
    path = folder / PIPELINE_NAME
    allowed = {"transformer": {"DiTTransformer2DModel"}, "vae": {"AutoencoderKL"}}
    allowed["scheduler"] = {member.name for member in KarrasDiffusionSchedulers}
    try:
        index = json.loads(path.read_text())
        names = {part: tuple(index[part]) for part in allowed}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{path} is not the index of a DiTPipeline ({error!r}). Fetch or save it again.") from error
    for part, (library, name) in names.items():
        if library != "diffusers" or name not in allowed[part]:
            raise LoadError(
                f"{path} asks for {library}.{name} as {part}; a diffusion generator has one of "
                f"{', '.join(sorted(allowed[part]))}, of diffusers. Is it another kind of pipeline?"
            )
    return index


def _read_part(part_class: type, folder: Path, dtype: torch.dtype | None) -> Any:
    check_files(folder)
    _check_sizes(folder / CONFIG_NAME, part_class.__name__)
    part, info = part_class.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, output_loading_info=True, local_files_only=True
    )
    check_loaded(part, info, folder)
    return part


def _check_sizes(path: Path, name: str) -> None:
    """Refuse a config that names another class, or asks for sizes that no image model has, before anything is built."""
    try:
        config = json.loads(path.read_text())
        found = config.get("_class_name")
        sizes = {
            MAX_LATENT: [config.get("sample_size", 32), config.get("patch_size", 2), config.get("latent_channels", 4)],
            MAX_DEPTH: [config.get("num_layers", 1), config.get("layers_per_block", 1), config.get("in_channels", 1)],
            MAX_WIDTH: [
                config.get("num_attention_heads", 1) * config.get("attention_head_dim", 1),
                *config.get("block_out_channels", []),
                config.get("num_embeds_ada_norm", 1),
            ],
        }
        if name == "AutoencoderKL":
            sizes[MAX_LATENT] = sizes[MAX_LATENT][2:]
            sizes[MAX_DEPTH].append(len(config["block_out_channels"]) * 8)
        absurd = [size for limit, found_sizes in sizes.items() for size in found_sizes if not 1 <= size <= limit]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{path} is not the config of a {name} ({error!r}). Fetch or save it again.") from error
    if found != name:
        raise LoadError(f"{path} describes a {found!r}, not a {name}. Fetch or save it again.")
    if "quantization_config" in config:
        raise LoadError(f"{path} asks for a quantiser, which no generator of this library has. Is it another's?")
    if absurd:
        raise LoadError(f"{path} asks for a size of {absurd[0]:,}, which no {name} for images has.")


def _read_scheduler(folder: Path, index: Mapping[str, Any]) -> SchedulerMixin:
    return getattr(diffusers, index["scheduler"][1]).from_pretrained(folder / "scheduler", local_files_only=True)


def _stock_record(index: Mapping[str, Any], vae: AutoencoderKL, scheduler: SchedulerMixin) -> dict[str, Any]:
    """What a stock pipeline says of its classes; the statistics are those of ImageNet, on which DiTs are trained."""
    known = {str(row): name for row, name in (index.get("id2label") or {}).items()}
    known = known or {str(row): f"class {row}" for row in range(NULL_CLASS)}
    rows = sorted(map(int, known))
    names = {kind: name for name, kind in SCHEDULERS.items()}
    statistics = IMAGENET if vae.config.out_channels == 3 else {}
    return {
        "class_names": _unique([known[str(row)] for row in rows], rows),
        "class_rows": tuple(rows),
        "known_classes": known,
        "sampling": {"scheduler": names.get(type(scheduler), "ddim")},
        **statistics,
    }


def _unique(names: list[str], rows: list[int]) -> tuple[str, ...]:
    """Names in order; two classes of one name, of which ImageNet has some, get their numbers."""
    return tuple(name if names.count(name) == 1 else f"{name} ({row})" for name, row in zip(names, rows, strict=True))
