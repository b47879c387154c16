"""Components of a diffusion model, built from scratch or taken from a pipeline."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
from torch import Tensor

from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.generators.diffusion import DiffusionGenerator
from hf_gdd.generators.dit_pipeline import NULL_CLASS
from hf_gdd.methods.diffusion_memory.autoencoder import small_autoencoder
from hf_gdd.methods.diffusion_memory.config import DiffusionMemoryConfig
from hf_gdd.methods.diffusion_memory.dit import small_transformer
from hf_gdd.utils.random import seeded


@dataclass(frozen=True)
class Components:
    """Networks and noise schedule that a training starts from.

    Attributes:
        transformer: predicts the noise in latents.
        vae: encodes images to latents and decodes them.
        schedule: the noise schedule.
        rows: row of the transformer's label table for each class of the data set, int64 [K].
        pretrained: the generator that all of this is from; None if built from scratch.

    """

    transformer: DiTTransformer2DModel
    vae: AutoencoderKL
    schedule: DDIMScheduler
    rows: Tensor
    pretrained: DiffusionGenerator | None = None


def build_components(config: DiffusionMemoryConfig, data: ImageTensors) -> Components:
    """Build untrained networks for a data set.

    Raises:
        ValueError: there are too many classes, or sizes that do not fit the images.

    """
    _check_classes(data)
    side = data.shape[-1] // 2 ** (config.vae_levels - 1)
    with seeded(config.seed):
        vae = small_autoencoder(
            data.shape, width=config.vae_width, levels=config.vae_levels, channels=config.latent_channels
        )
        if side % config.patch_size:
            raise ValueError(f"patch_size {config.patch_size} does not divide the latent's {side} px.")
        sizes = {name: getattr(config, name) for name in ("width", "depth", "heads", "patch_size")}
        transformer = small_transformer(config.latent_channels, side, **sizes)
    schedule = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    return Components(transformer, vae, schedule, torch.arange(data.num_classes))


def load_components(config: DiffusionMemoryConfig, data: ImageTensors) -> Components:
    """Load a pretrained pipeline, for the classes of a data set.

    Raises:
        LoadError: the pipeline cannot be loaded.
        ValueError: it makes images of another shape, or its classes do not fit those of the data set.

    """
    _check_classes(data)
    revision, _ = config.base
    model = DiffusionGenerator.from_pretrained(config.pretrained, revision=revision, dtype="float32")
    if model.image_shape != data.shape:
        remedy = f"pass image_size={model.image_shape[-1]}"
        if model.image_shape[0] != data.shape[0]:
            remedy = "convert the images to its channels, or choose another model"
        raise ValueError(
            f"{config.pretrained} makes images {model.image_shape}, but those of {data.source} are {data.shape} "
            f"(channels, height, width): {remedy}."
        )
    classes = config.classes or data.class_names
    if len(classes) != data.num_classes:
        raise ValueError(f"{len(classes)} classes are named for the {data.num_classes} of {data.source}.")
    model = model.select(classes, data.class_names)
    return Components(model.transformer, model.vae, model.scheduler, model.rows, model)


class PretrainedBase:
    """Fingerprint of the base model, so that no run resumes with other base weights."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def state_dict(self) -> dict[str, str]:
        """Return the model's fingerprint."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Refuse the checkpoint of another model.

        Raises:
            ValueError: the fingerprints differ.

        """
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                "The pretrained model is no longer the one this run began with: pin it by pretrained_revision, or "
                "choose another output_dir."
            )


def _check_classes(data: ImageTensors) -> None:
    if data.num_classes > NULL_CLASS:
        raise ValueError(f"{data.source} has {data.num_classes} classes; a DiTPipeline takes {NULL_CLASS} at most.")
