"""The settings of diffusion with self-adaptive memory and its baselines, and the presets that hold them."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from hf_gdd.generators.base import DiffusionSampling
from hf_gdd.training.config import TrainingConfig, require_positive

# Revision and licence; the main branches of these hold pickles only.
PUBLISHED = {"facebook/DiT-XL-2-256": ("refs/pr/1", "cc-by-nc-4.0")}


@dataclass(frozen=True)
class DiffusionMemoryConfig(TrainingConfig):
    """Settings of the three stages; the defaults of the last are those of the methods' public code.

    Attributes:
        preset: label of the preset that the settings were taken from: `paper` tunes a pretrained DiT-XL/2 and is for a
            GPU, `lite` trains small networks from scratch for 32 px and more, `tiny` for digits.
        method: `self-adaptive` evicts the most redundant member of a memory, `minimax` the oldest; `dit` has no memory:
            the control of equal length that any gain must be measured against.
        pretrained: folder or repo id of a `DiTPipeline` to tune; None to train networks from scratch.
        pretrained_revision: branch, tag or commit of that repo; for a model of `PUBLISHED` the one known to be safe.
        pretrained_license: of that model, handed down beside the data set's; for a model of `PUBLISHED` its own.
        classes: which of the pretrained model's classes the data set's are, in order, by name or WordNet id; by the
            data set's own class names if empty.
        tuning: what the last stage trains: biases, label table and factors (`difffit`), or everything (`full`).
        vae_width: channels of the first level of an autoencoder from scratch; each further level has twice as many.
        vae_levels: of the autoencoder; each after the first halves the sides of the latent.
        latent_channels: of the autoencoder.
        kl_weight: of the divergence of its latents from the normal distribution.
        vae_epochs: length of stage `vae`.
        vae_batch_size: of stage `vae`.
        vae_lr: Adam's rate in stage `vae`.
        width: of a transformer from scratch.
        depth: its blocks.
        heads: of its attention.
        patch_size: side of its patches of the latent.
        dit_epochs: length of stage `dit`.
        dit_batch_size: of stage `dit`.
        dit_lr: AdamW's rate in stage `dit`.
        tune_epochs: length of stage `tune`, the one with memories.
        tune_batch_size: of stage `tune`.
        tune_lr: AdamW's rate in stage `tune`.
        flip: whether mirrored images are trained on as well.
        label_dropout: share of the samples whose label is hidden, for guidance.
        ema_decay: of the averaged transformer that is saved.
        real_weight: of the distance to the real memory.
        gen_weight: of the likeness to the generated memory.
        real_memory: real latents that are remembered of each class.
        gen_memory: predicted latents that are remembered of each class.
        memory_update: `step`, as the public code evicts, or `epoch`, as the paper has it: what an epoch brings is
            collected, and counts from the next on.
        guidance: of the generator's own sampling, see `DiffusionSampling`.
        sampling_steps: likewise.
        scheduler: likewise.
        start_from: folder of a finished run whose first stages replace this one's.

    """

    preset: Literal["paper", "lite", "tiny"] = "paper"
    method: Literal["self-adaptive", "minimax", "dit"] = "self-adaptive"
    pretrained: str | None = "facebook/DiT-XL-2-256"
    pretrained_revision: str | None = None
    pretrained_license: str | None = None
    classes: tuple[str, ...] = ()
    tuning: Literal["difffit", "full"] = "difffit"
    vae_width: int = 32
    vae_levels: int = 3
    latent_channels: int = 4
    kl_weight: float = 1e-4
    vae_epochs: int = 20
    vae_batch_size: int = 64
    vae_lr: float = 1e-3
    width: int = 192
    depth: int = 6
    heads: int = 4
    patch_size: int = 1
    dit_epochs: int = 40
    dit_batch_size: int = 64
    dit_lr: float = 5e-4
    tune_epochs: int = 8
    tune_batch_size: int = 8
    tune_lr: float = 1e-3
    flip: bool = True
    label_dropout: float = 0.1
    ema_decay: float = 0.9999
    real_weight: float = 0.002
    gen_weight: float = 0.008
    real_memory: int = 64
    gen_memory: int = 64
    memory_update: Literal["step", "epoch"] = "step"
    guidance: float = 4.0
    sampling_steps: int = 50
    scheduler: Literal["ddim", "ddpm", "dpm++"] = "ddpm"
    start_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in ("vae", "dit", "tune"):
            for name in ("epochs", "batch_size", "lr"):
                require_positive(self, f"{stage}_{name}")
        for name in ("vae_width", "vae_levels", "latent_channels", "width", "depth", "heads", "patch_size"):
            require_positive(self, name)
        for name in ("real_memory", "gen_memory"):
            require_positive(self, name)
        for name in ("real_weight", "gen_weight", "kl_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative; 0 switches a term off.")
        for name in ("label_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1).")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width is {self.width}; it must be a multiple of 4 and of heads, {self.heads}.")
        if self.pretrained and self.start_from:
            raise ValueError("Pass pretrained or start_from, not both: each says where the first stages come from.")
        if self.classes and not self.pretrained:
            raise ValueError("classes are those of a pretrained model: leave them out when training from scratch.")
        self.sampling  # noqa: B018, which refuses what cannot be sampled

    @property
    def sampling(self) -> DiffusionSampling:
        """How the trained generator samples unless told otherwise."""
        return DiffusionSampling(self.guidance, self.sampling_steps, self.scheduler)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the memory terms that the method uses."""
        used = self.method != "dit"
        return {"real": self.real_weight * used, "generated": self.gen_weight * used}

    @property
    def base(self) -> tuple[str | None, str | None]:
        """Revision and licence of the pretrained model, as far as known."""
        revision, licence = PUBLISHED.get(self.pretrained, (None, None))
        return self.pretrained_revision or revision, self.pretrained_license or licence

    @property
    def evict(self) -> str:
        """The rule of the memories."""
        return "oldest" if self.method == "minimax" else "redundant"

    def identity(self) -> dict[str, Any]:
        """What is computed, as primitives; without the sizes of networks that are not built."""
        unused = ("vae_", "dit_", "width", "depth", "heads", "patch_size", "latent_channels", "kl_weight")
        settings = super().identity()
        if self.pretrained:
            settings = {name: value for name, value in settings.items() if not name.startswith(unused)}
        return settings


# In `tiny` both memories weigh ten times what was published, where they have but a tenth of the gradient. There is no
# guidance, which costs coverage of held-out images.
PRESETS = {
    "paper": DiffusionMemoryConfig(),
    "lite": DiffusionMemoryConfig(
        preset="lite",
        pretrained=None,
        image_size=32,
        vae_width=16,
        vae_epochs=4,
        width=128,
        depth=4,
        dit_epochs=16,
        dit_lr=2e-3,
        tune_epochs=2,
        tune_batch_size=64,
        ema_decay=0.995,
        guidance=2.0,
        sampling_steps=20,
        scheduler="dpm++",
    ),
    "tiny": DiffusionMemoryConfig(
        preset="tiny",
        pretrained=None,
        vae_width=16,
        vae_levels=2,
        width=64,
        depth=4,
        dit_epochs=100,
        dit_lr=2e-3,
        tune_epochs=15,
        tune_batch_size=64,
        flip=False,
        ema_decay=0.99,
        real_weight=0.02,
        gen_weight=0.08,
        guidance=1.0,
        sampling_steps=20,
        scheduler="dpm++",
        checkpoint_every=250,
    ),
}
