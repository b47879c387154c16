"""Settings and presets of the diffusion methods."""

from dataclasses import dataclass
from typing import Any, Literal

from hf_gdd.classifiers.networks import NETWORK_NAMES
from hf_gdd.generators.sampling import DiffusionSampling
from hf_gdd.methods.registry import register_method
from hf_gdd.training.config import LabelingConfig, require_not_negative, require_positive, require_share

TRAINER = "hf_gdd.methods.diffusion_memory.trainer:DiffusionMemoryTrainer"
# Revision and license; the main branches of these hold pickles only.
PUBLISHED = {"facebook/DiT-XL-2-256": ("refs/pr/1", "cc-by-nc-4.0")}


@register_method("dit", trainer=TRAINER, paper="2212.09748", summary="Tune a diffusion transformer alone: the control.")
@register_method(
    "minimax",
    trainer=TRAINER,
    paper="2311.15529",
    summary="Tune a diffusion transformer against memories that evict their oldest member (Minimax).",
)
@register_method(
    "self-adaptive",
    trainer=TRAINER,
    paper="2505.19469",
    summary="Tune a diffusion transformer against memories that evict their most redundant member.",
)
@dataclass(frozen=True)
class DiffusionMemoryConfig(LabelingConfig):
    """Settings of the stages `vae`, `dit` and `tune`.

    The defaults of the last are those of the public code (arXiv 2505.19469).

    Example:
        config = DiffusionMemoryTrainer.configure("tiny", method="minimax")
        trainer = DiffusionMemoryTrainer("digits", config=config, output_dir="runs/minimax")

    """

    preset: Literal["paper", "lite", "tiny"] = "paper"
    """`paper` tunes a pretrained DiT-XL/2 on a GPU, `lite` trains from scratch at 32 px and more, `tiny` on digits"""
    method: Literal["self-adaptive", "minimax", "dit"] = "self-adaptive"
    """memories evict the most redundant member (`self-adaptive`) or the oldest (`minimax`); `dit` has none"""
    pretrained: str | None = "facebook/DiT-XL-2-256"
    """folder or repo id of a `DiTPipeline` to tune; None to train networks from scratch"""
    pretrained_revision: str | None = None
    """branch, tag or commit of that repo; for the default model the one with safetensors"""
    pretrained_license: str | None = None
    """license of that model, listed beside the data set's; known for the default model"""
    classes: tuple[str, ...] = ()
    """classes of the pretrained model, by name or WordNet id, in the data set's order; by its class names if empty"""
    tuning: Literal["difffit", "full"] = "difffit"
    """what stage `tune` trains: biases, label table and factors (`difffit`), or everything (`full`)"""
    vae_width: int = 32
    """channels of the first level of an autoencoder from scratch; each further level has twice as many"""
    vae_levels: int = 3
    """levels of the autoencoder; each after the first halves the sides of the latent"""
    latent_channels: int = 4
    """channels of the latent"""
    kl_weight: float = 1e-4
    """weight of the latents' divergence from the normal distribution"""
    vae_epochs: int = 20
    """epochs of stage `vae`"""
    vae_batch_size: int = 64
    """images a step in stage `vae`"""
    vae_lr: float = 1e-3
    """Adam's learning rate in stage `vae`"""
    width: int = 192
    """channels of a transformer from scratch"""
    depth: int = 6
    """blocks of a transformer from scratch"""
    heads: int = 4
    """attention heads of a transformer from scratch"""
    patch_size: int = 1
    """side of the transformer's patches of the latent"""
    dit_epochs: int = 40
    """epochs of stage `dit`"""
    dit_batch_size: int = 64
    """images a step in stage `dit`"""
    dit_lr: float = 5e-4
    """AdamW's learning rate in stage `dit`"""
    tune_epochs: int = 8
    """epochs of stage `tune`, the one with memories"""
    tune_batch_size: int = 8
    """images a step in stage `tune`"""
    tune_lr: float = 1e-3
    """AdamW's learning rate in stage `tune`"""
    flip: bool = True
    """train on mirrored images as well"""
    label_dropout: float = 0.1
    """share of the samples whose label is dropped, for guidance"""
    ema_decay: float = 0.9999
    """decay of the averaged transformer that is saved"""
    real_weight: float = 0.002
    """weight of the distance to the real memory"""
    gen_weight: float = 0.008
    """weight of the similarity to the generated memory"""
    real_memory: int = 64
    """real latents remembered of each class"""
    gen_memory: int = 64
    """predicted latents remembered of each class"""
    memory_update: Literal["step", "epoch"] = "step"
    """`step`, as in the public code, or `epoch`, as in the paper: latents of an epoch count from the next on"""
    guidance_scale: float = 4.0
    """guidance scale of the generator's own sampling, see `DiffusionSampling`"""
    num_inference_steps: int = 50
    """denoising steps of the generator's own sampling"""
    scheduler: Literal["ddim", "ddpm", "dpm++"] = "ddpm"
    """scheduler of the generator's own sampling"""
    codes_ipc: int = 0
    """images of every class that are chosen among draws when training is over; 0 for none, which is published"""
    codes_candidates: int = 200
    """draws of every class to choose from"""
    codes_pool: tuple[str, ...] = ("convnet3",)
    """networks that choose, by name"""
    codes_networks: int = 4
    """number of networks that choose, each with weights of its own; the names of `codes_pool` take turns"""
    codes_inner_steps: int = 300
    """steps of each such network on real data; 0 leaves it untrained"""
    start_from: str | None = None
    """folder of a finished run whose first stages replace this one's"""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = ("epochs", "batch_size", "lr")
        require_positive(self, *(f"{stage}_{field}" for stage in ("vae", "dit", "tune") for field in fields))
        require_positive(self, "vae_width", "vae_levels", "latent_channels", "width", "depth", "heads", "patch_size")
        require_positive(self, "real_memory", "gen_memory")
        require_not_negative(self, "real_weight", "gen_weight", "kl_weight")
        require_share(self, "label_dropout", "ema_decay")
        require_not_negative(self, "codes_ipc", "codes_inner_steps")
        require_positive(self, "codes_candidates", "codes_networks")
        if self.codes_ipc > self.codes_candidates:
            raise ValueError(
                f"codes_ipc is {self.codes_ipc}, but there are {self.codes_candidates} draws to choose from: raise "
                "codes_candidates, or lower codes_ipc."
            )
        if isinstance(self.codes_pool, str) or not self.codes_pool or set(self.codes_pool) - set(NETWORK_NAMES):
            raise ValueError(
                f"codes_pool is {self.codes_pool!r}; it must be a tuple of names among {', '.join(NETWORK_NAMES)}."
            )
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width is {self.width}; it must be a multiple of 4 and of heads, {self.heads}.")
        if self.pretrained and self.start_from:
            raise ValueError("Pass pretrained or start_from, not both: each says where the first stages come from.")
        if self.classes and not self.pretrained:
            raise ValueError("classes are those of a pretrained model: leave them out when training from scratch.")
        self.sampling  # noqa: B018, it refuses what cannot be sampled

    @property
    def sampling(self) -> DiffusionSampling:
        """Default sampling of the trained generator."""
        return DiffusionSampling(self.guidance_scale, self.num_inference_steps, self.scheduler)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the memory terms, 0 for those that the method leaves out."""
        used = self.method != "dit"
        return {"real": self.real_weight * used, "generated": self.gen_weight * used}

    @property
    def base(self) -> tuple[str | None, str | None]:
        """Revision and license of the pretrained model, None where unknown."""
        revision, license = PUBLISHED.get(self.pretrained, (None, None))
        return self.pretrained_revision or revision, self.pretrained_license or license

    @property
    def evict(self) -> str:
        """Eviction rule of the memories."""
        return "oldest" if self.method == "minimax" else "redundant"

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide results, as primitives.

        Sizes of networks that are not built are left out.
        """
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
        guidance_scale=2.0,
        num_inference_steps=20,
        scheduler="dpm++",
        codes_ipc=50,
        codes_pool=("convnet3_narrow",),
        teacher_network="convnet3_narrow",
        teacher_epochs=3,
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
        guidance_scale=1.0,
        num_inference_steps=20,
        scheduler="dpm++",
        codes_ipc=50,
        codes_pool=("convnet2",),
        teacher_network="convnet2",
        checkpoint_every=250,
    ),
}
