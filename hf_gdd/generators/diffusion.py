"""A class-conditional diffusion transformer that a stock `DiTPipeline` loads too."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, DiTPipeline, DiTTransformer2DModel, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hf_gdd.data.imagenet import class_rows_of
from hf_gdd.data.pixels import tanh_to_uint8, to_tanh
from hf_gdd.generators.base import DEFAULT_TILE
from hf_gdd.generators.checks import check_record
from hf_gdd.generators.codes import check_chosen, check_distilled_ipc, draw_numbers
from hf_gdd.generators.denoising import build_scheduler, denoise
from hf_gdd.generators.dit_pipeline import NULL_CLASS, noise_schedule, read_pipeline, stock_record
from hf_gdd.generators.pretrained import Model, PretrainedGenerator
from hf_gdd.generators.sampling import DiffusionSampling, present_names
from hf_gdd.hub.files import CONFIG_NAME, FORMAT_VERSION, STOCK_PIPELINE, remove_local_path

logger = logging.getLogger("hf_gdd")

SMALL_TILE = 32  # on a CPU, and of images above 64 px, whose decoder would fill the memory of most GPUs
# Config fields that decide pixels beside the weights. Others may change with the version of diffusers.
TRANSFORMER_FIELDS = ("num_attention_heads", "attention_head_dim", "patch_size", "sample_size", "in_channels")
TRANSFORMER_FIELDS += ("activation_fn", "norm_eps", "upcast_attention")
VAE_FIELDS = ("norm_num_groups", "act_fn", "scaling_factor", "layers_per_block", "block_out_channels")
VAE_FIELDS += ("down_block_types", "up_block_types", "mid_block_add_attention")


class DiffusionGenerator(PretrainedGenerator, ConfigMixin):
    """A latent diffusion transformer (Peebles & Xie, 2023) with its autoencoder.

    The transformer denoises noise to a latent, given a class, and the decoder turns the latent into an image.

    The arguments that are not described here are the record of every kind, see `PretrainedGenerator`. `image_shape`
    follows from the parts.

    Args:
        transformer: predicts the noise of latents, and its variance if that was learned, from timestep and class.
        vae: decodes latents, divided by its `scaling_factor`, to images in [-1, 1].
        scheduler: gives the noise schedule; nothing else of it is used.
        class_rows: the transformer's number of each class; 0, 1, ... if None.
        known_classes: the transformer's name of each of its classes, for a stock pipeline; `class_names` if None.
        noise_labels: labels that choose the noise of each class; 0, 1, ... if None.
        distilled_ipc: number of images of every class in `codes`, which are stored in a file of their own.

    Raises:
        ValueError: the parts do not fit each other or the classes.

    Example:
        generator = AutoGenerator.from_pretrained("facebook/DiT-XL-2-256", revision="refs/pr/1", device="cuda")
        woof = generator.select(["n02086240", "n02087394"], ("Shih-Tzu", "Rhodesian ridgeback"))

    """

    config_name, other_names = CONFIG_NAME, (STOCK_PIPELINE,)
    ignore_for_config = ("transformer", "vae", "scheduler")

    @register_to_config
    def __init__(
        self,
        *,  # keywords only: diffusers would take the parts for positional config fields
        transformer: DiTTransformer2DModel,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        class_names: tuple[str, ...],
        class_rows: tuple[int, ...] | None = None,
        known_classes: dict[str, str] | None = None,
        noise_labels: tuple[int, ...] | None = None,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
        training: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        distilled_ipc: int = 0,
        teacher: dict[str, Any] | None = None,
        fingerprint: str | None = None,
        weights_dtype: str | None = None,
        image_shape: tuple[int, int, int] | None = None,
        format_version: int = FORMAT_VERSION,
    ) -> None:
        _check_parts(transformer, vae)
        self.transformer, self.vae, self.scheduler = transformer.eval(), vae.eval(), noise_schedule(scheduler.config)
        side = transformer.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
        shape = (vae.config.out_channels, side, side)
        if image_shape is not None and tuple(image_shape) != shape:
            raise ValueError(f"The parts make images {shape}, not {tuple(image_shape)}.")
        check_record(class_names, shape, mean, std, training)
        rows = range(len(class_names)) if class_rows is None else class_rows
        valid = {row for row in rows if isinstance(row, int) and 0 <= row < NULL_CLASS}
        if not len(valid) == len(rows) == len(class_names):
            raise ValueError(f"Each of the {len(class_names)} classes needs a row of its own in 0..{NULL_CLASS - 1}.")
        labels = range(len(rows)) if noise_labels is None else noise_labels
        if len(labels) != len(rows) or not all(isinstance(label, int) and 0 <= label < NULL_CLASS for label in labels):
            raise ValueError(f"noise_labels {labels} must be a label in 0..{NULL_CLASS - 1} for each of the classes.")
        check_distilled_ipc(distilled_ipc, len(class_names))
        self.rows, self.noise_labels = torch.tensor(list(rows)), torch.tensor(list(labels))
        self.sampling = DiffusionSampling(**present_names(sampling or {}))
        self.register_to_config(image_shape=shape, class_rows=tuple(rows))

    # Identity.

    @property
    def device(self) -> torch.device:
        """Device on which images are made."""
        return self.transformer.device

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers of transformer and autoencoder."""
        parts = {"transformer": self.transformer, "vae": self.vae}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}

    @property
    def kind(self) -> tuple[Any, ...]:
        """Class, shape, rows, noise schedule, and config fields that decide pixels.

        Labels of the noise are among them only if they are not the classes' own, which earlier versions knew alone.
        """
        fields = [(self.transformer.config, TRANSFORMER_FIELDS), (self.vae.config, VAE_FIELDS)]
        settings = [(name, config.get(name)) for config, names in fields for name in names]
        schedule = [round(float(x), 6) for x in self.scheduler.alphas_cumprod]
        labels = self.noise_labels.tolist()
        others = [] if labels == list(range(len(labels))) else [labels]
        return *super().kind, json.dumps([self.rows.tolist(), settings, schedule, *others])

    @property
    def tile(self) -> int:
        """Number of images made at a time, fixed for a device type."""
        return SMALL_TILE if self.device.type == "cpu" or self.image_shape[-1] > 64 else DEFAULT_TILE

    # Images.

    @property
    def code_layout(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of the code of one image, which is the number of a draw."""
        return torch.int32, ()

    def checked_codes(self, codes: Tensor) -> Tensor:
        """Return the numbers of chosen draws as they are stored, int32 [K, M].

        Raises:
            ValueError: they do not fit, or a draw is chosen twice.

        """
        check_chosen(codes, self.num_classes)
        return codes.int()

    @torch.no_grad()
    def make(self, labels: Tensor, indices: Tensor, seed: int, sampling: DiffusionSampling) -> Tensor:
        """Make images in [-1, 1], each of noise that depends on its own entry alone."""
        rows, noise_labels = (x.to(self.device)[labels] for x in (self.rows, self.noise_labels))
        if self.codes is not None and sampling.distilled and seed == 0:
            indices = draw_numbers(self.codes[labels], indices)
        return self.decode(denoise(self.transformer, self.scheduler, noise_labels, indices, rows, seed, sampling))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents to images in [-1, 1]."""
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images uint8 [B, C, H, W]: the best that any latent can give."""
        batches = images.split(self.tile)
        return torch.cat([tanh_to_uint8(self.vae(to_tanh(x).to(self.device, self.vae.dtype)).sample) for x in batches])

    # Classes.

    @property
    def names_of_rows(self) -> dict[int, str]:
        """The transformer's name of each of its classes, by row."""
        known = self.config.known_classes or dict(zip(self.config.class_rows, self.class_names, strict=True))
        return {int(row): name for row, name in known.items()}

    def select(self, classes: Sequence[str], class_names: Sequence[str] | None = None) -> "DiffusionGenerator":
        """Return the same model for some of its classes only.

        Chosen draws go with their classes, and all images of a class then stay as they are. If one of the classes has
        none, there are only plain draws, and a line says so.

        Args:
            classes: names that the model knows, or WordNet ids of ImageNet classes as in
                `hf_gdd.data.imagenet.SUBSETS`; their order becomes that of the labels.
            class_names: new names of these classes; `classes` if None.

        Raises:
            ValueError: the model does not know a class, or another number of names is given.

        """
        if class_names is not None and len(classes) != len(class_names):
            raise ValueError(f"{len(classes)} classes are chosen for the {len(class_names)} of the data set.")
        record = {name: self.config[name] for name in ("mean", "std", "training", "sampling", "format_version")}
        record["class_names"] = tuple(class_names or classes)
        record["class_rows"] = class_rows_of(classes, self.names_of_rows)
        record["known_classes"] = {str(row): name for row, name in self.names_of_rows.items()}
        parts = {name: getattr(self, name) for name in self.ignore_for_config}
        own = {row: label for label, row in enumerate(self.config.class_rows)}
        labels = [own.get(row) for row in record["class_rows"]]
        carried = self.codes is not None and None not in labels
        if carried:
            record["noise_labels"] = tuple(self.noise_labels[labels].tolist())
        elif self.codes is not None:
            logger.warning("Not all of these classes have distilled images: all images are plain draws.")
        selected = DiffusionGenerator(**parts, **record)
        selected.codes = self.codes[labels] if carried else None
        selected.origin = self.origin
        return selected

    # Storage.

    def write(self, folder: Path, max_shard_size: str) -> None:
        """Write config.json and a pipeline that `DiTPipeline.from_pretrained` loads."""
        self.save_config(folder)
        pipeline = DiTPipeline(self.transformer, self.vae, build_scheduler(self.scheduler, self.sampling.scheduler))
        # diffusers does not write the labels it was given: only registered fields are written.
        pipeline.register_to_config(id2label={str(row): name for row, name in self.names_of_rows.items()})
        pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
        for path in (folder, folder / "transformer", folder / "vae"):
            remove_local_path(path)

    @classmethod
    def read(cls: type[Model], folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Model:
        """Build the generator, of all its classes if the folder is a stock pipeline.

        See `PretrainedGenerator.read`.
        """
        index, parts = read_pipeline(folder, dtype)
        if config["_class_name"] == cls.__name__:
            fields = cls._get_init_keys(cls) - {"self", *cls.ignore_for_config}
            return cls(**parts, **{name: value for name, value in config.items() if name in fields})
        return cls(**parts, **stock_record(index, parts["vae"]))

    def to(self: Model, *args: Any, **kwargs: Any) -> Model:
        """Move to a device or dtype as `torch.nn.Module.to` does; returns self."""
        for part in (self.transformer, self.vae):
            nn.Module.to(part, *args, **kwargs)
        self.move_parts()
        return self


def _check_parts(transformer: DiTTransformer2DModel, vae: AutoencoderKL) -> None:
    channels, rows = transformer.config.in_channels, transformer.config.num_embeds_ada_norm
    if channels != vae.config.latent_channels:
        raise ValueError(
            f"The transformer denoises {channels} channels, but the latents of the autoencoder have "
            f"{vae.config.latent_channels}."
        )
    if transformer.out_channels not in (channels, 2 * channels):
        raise ValueError(f"A transformer with {transformer.out_channels} output channels predicts no noise.")
    if rows != NULL_CLASS:
        raise ValueError(
            f"The transformer has {rows} classes; a DiTPipeline takes class {NULL_CLASS} for no label, so it must have "
            f"{NULL_CLASS}, used or not."
        )
    if transformer.dtype != vae.dtype:
        raise ValueError(f"The transformer is {transformer.dtype} and the autoencoder {vae.dtype}: cast one of them.")
