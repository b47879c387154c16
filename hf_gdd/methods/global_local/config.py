"""Settings and presets of global-local matching and its baselines."""

from dataclasses import dataclass
from typing import Any, Literal

from hf_gdd.classifiers.augment import Augment
from hf_gdd.classifiers.networks import network_name
from hf_gdd.methods.registry import register_method
from hf_gdd.training.config import LabelingConfig, require_not_negative, require_positive, require_share

TRAINER = "hf_gdd.methods.global_local.trainer:GlobalLocalTrainer"


@register_method(
    "cgan-continued", trainer=TRAINER, summary="Train the GAN for as long again without matching: the control."
)
@register_method("cgan", trainer=TRAINER, summary="Train a conditional GAN alone: the baseline.")
@register_method(
    "dim",
    trainer=TRAINER,
    paper="2303.04707",
    summary="Train a conditional GAN, then match logits of real and generated images (DiM).",
)
@register_method(
    "global-local",
    trainer=TRAINER,
    paper="2404.17732",
    summary="Train a conditional GAN, then match logits and features of real and generated images.",
)
@dataclass(frozen=True)
class GlobalLocalConfig(LabelingConfig):
    """Settings of the stages `gan` and `match`.

    The defaults are those of Li et al. (2024, arXiv 2404.17732), or of DiM (Gu et al., 2023) where they are silent.

    Example:
        config = GlobalLocalTrainer.configure("tiny", gan_epochs=60)
        trainer = GlobalLocalTrainer("digits", config=config, output_dir="runs/digits")

    """

    preset: Literal["paper", "fast", "lite", "tiny"] = "paper"
    """`paper` is for a GPU, `fast` is `paper` with a lazy penalty in bf16, `lite` for a CPU, `tiny` for the digits"""
    method: Literal["global-local", "dim", "cgan", "cgan-continued"] = "global-local"
    """`dim` matches logits only, `cgan` stops before matching, `cgan-continued` goes on with weights of zero"""
    width: int = 196
    """channels of generator and discriminator"""
    noise_dim: int = 90
    """random entries of the generator's input"""
    channels_last: bool = True
    """store convolutions channels last, which is faster from about 64 channels on; results differ by rounding"""
    adversarial: Literal["wgan-gp", "minimax"] = "wgan-gp"
    """adversarial loss: `wgan-gp`, as the public DiM code runs it, or `minimax`, Eq. 4 of Li et al."""
    penalty_weight: float = 10.0
    """weight of the gradient penalty of `wgan-gp`"""
    penalty_every: int = 1
    """steps between gradient penalties, each weighted by this number (Karras et al., 2020); 1 is published"""
    class_on_fakes: bool = True
    """let the discriminator also learn classes from generated images (ACGAN)"""
    ema_decay: float = 0.0
    """decay of the averaged generator that is saved; 0 saves the last one"""
    gan_epochs: int = 150
    """epochs of stage `gan`"""
    gan_batch_size: int = 128
    """real images a step in stage `gan`"""
    gan_lr: float = 1e-4
    """Adam's learning rate in stage `gan`"""
    match_epochs: int = 100
    """epochs of stage `match`"""
    match_batch_size: int = 64
    """real images a step in stage `match`"""
    match_lr: float = 5e-6
    """Adam's learning rate in stage `match`"""
    global_weight: float = 0.01
    """weight of the distance between logits"""
    local_weight: float = 0.001
    """weight of the distance between intermediate features"""
    global_reduction: Literal["logsoftmax_mean", "logit_mean", "logit_sum"] = "logsoftmax_mean"
    """form of the distance between logits; the first is that of the public DiM code"""
    local_reduction: Literal["batchmean_sum", "paired_mean", "paired_sum", "paired_sum_batchmean"] = "batchmean_sum"
    """form of the distance between features; the first is that of the public DiM code"""
    match_augment: str = "color_crop_cutout"
    """augmentation shared by real and generated images"""
    pool: tuple[str, ...] = ("convnet3", "resnet10-dd", "resnet18-dd")
    """networks that images are matched in: names, in Python also callables"""
    inner_steps: int = 16
    """steps of the pool's network on real data before each matching"""
    pool_refresh: int | None = None
    """matchings before a fresh network is drawn; one epoch if None"""
    codes_ipc: int = 0
    """images of every class that get distilled codes in stage `codes`; 0 for none, which is published"""
    codes_steps: int = 400
    """steps of stage `codes`"""
    codes_lr: float = 0.1
    """Adam's learning rate in stage `codes`; it falls to zero by a cosine"""
    codes_distance: Literal["energy", "mean"] = "energy"
    """distance of a set from the real images, see `PREFIX_DISTANCES` of losses.py; `mean` compares class means alone"""
    codes_power: float = 0.0
    """the first m images weigh m to this power: above 0 favors large sets, below 0 small ones"""
    codes_global_weight: float = 1.0
    """weight of the distance between logits"""
    codes_local_weight: float = 1.0
    """weight of the distance between intermediate features"""
    codes_class_weight: float = 0.0
    """weight of the cross-entropy of the pool's network on the images"""
    codes_real: int = 64
    """real images of every class a step"""
    codes_chunk: int = 512
    """most images made in a step; of many classes or large codes_ipc some classes are drawn for each step"""
    codes_augment: str = ""
    """augmentation shared by real and generated images in stage `codes`"""
    codes_pool: tuple[str, ...] | None = None
    """networks that sets are matched in; those of `pool` if None"""
    codes_inner_steps: int = 0
    """steps of such a network on real data before each step of the codes; 0 leaves it untrained"""
    codes_refresh: int = 1
    """steps before a fresh network is drawn"""
    start_from: str | None = None
    """folder of a finished run whose stage `gan` replaces this one's"""
    generator: str | None = None
    """folder or repo of a trained GAN that gets codes: stages `gan` and `match` are left out"""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = ("epochs", "batch_size", "lr")
        require_positive(self, *(f"{stage}_{field}" for stage in ("gan", "match") for field in fields))
        require_positive(self, "width", "noise_dim", "penalty_every", "pool_refresh")
        require_not_negative(self, "global_weight", "local_weight", "penalty_weight", "inner_steps")
        require_positive(self, *(f"codes_{field}" for field in ("steps", "lr", "real", "chunk", "refresh")))
        require_not_negative(self, *(f"codes_{field}" for field in ("ipc", "inner_steps", "class_weight")))
        require_not_negative(self, "codes_global_weight", "codes_local_weight")
        require_share(self, "ema_decay")
        if self.penalty_every > 1 and self.adversarial != "wgan-gp":
            raise ValueError("penalty_every belongs to the gradient penalty of wgan-gp: leave it at 1 with minimax.")
        if isinstance(self.pool, str) or callable(self.pool) or not self.pool:
            raise ValueError(f"pool is {self.pool!r}; it must be a tuple of networks, such as ('convnet3',).")
        if self.method == "cgan" and self.start_from:
            raise ValueError("method 'cgan' is the first stage alone: it cannot start from another run's first stage.")
        if self.generator and (self.start_from or not self.codes_ipc):
            raise ValueError("generator names a trained GAN that gets codes: pass codes_ipc too, and no start_from.")
        if self.codes_ipc > self.codes_chunk:
            raise ValueError(
                f"codes_ipc is {self.codes_ipc}, but a step needs all images of a class and makes at most "
                f"{self.codes_chunk}: raise codes_chunk if memory allows, or lower codes_ipc."
            )
        if self.codes_ipc and not (self.codes_global_weight or self.codes_local_weight):
            raise ValueError("codes_global_weight and codes_local_weight are both 0: nothing would tune the codes.")
        for augment in (self.match_augment, self.codes_augment):
            Augment(augment)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide results, as primitives.

        Networks are given by their names.
        """
        pools = {"pool": self.pool, "codes_pool": self.codes_pool or ()}
        return super().identity() | {
            name: [network_name(spec) for spec in pool] or None for name, pool in pools.items()
        }

    def refresh(self, images: int) -> int:
        """Return the matchings of each network in the pool, for so many training images."""
        return self.pool_refresh or max(1, images // self.match_batch_size)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the matching terms, 0 for those that the method leaves out."""
        return {
            "global": self.global_weight if self.method in ("dim", "global-local") else 0.0,
            "local": self.local_weight if self.method == "global-local" else 0.0,
        }


# The published rates and weights move a small generator by next to nothing in a short run. In `lite` and `tiny` they
# are such that matching has a good part of the generator's gradient, and the average outlasts the swings of the GAN.
# The class term on generated images is off: an untrained generator's teach the discriminator nothing of classes.
PRESETS = {
    "paper": GlobalLocalConfig(),
    "fast": GlobalLocalConfig(preset="fast", penalty_every=4, mixed_precision="bf16"),
    "lite": GlobalLocalConfig(
        preset="lite",
        width=64,
        class_on_fakes=False,
        ema_decay=0.99,
        gan_epochs=20,
        gan_batch_size=64,
        gan_lr=5e-4,
        match_epochs=4,
        match_lr=1e-4,
        global_weight=0.1,
        local_weight=0.003,
        inner_steps=4,
        pool_refresh=200,
        codes_ipc=50,
        codes_steps=2000,
        codes_chunk=100,
        codes_pool=("convnet3_narrow",),
        teacher_network="convnet3_narrow",
        teacher_epochs=3,
    ),
    "tiny": GlobalLocalConfig(
        preset="tiny",
        width=24,
        channels_last=False,
        class_on_fakes=False,
        ema_decay=0.99,
        gan_epochs=30,
        gan_batch_size=64,
        gan_lr=1e-3,
        match_epochs=10,
        match_lr=2e-4,
        global_weight=1.0,
        local_weight=0.3,
        pool=("convnet2",),
        inner_steps=2,
        pool_refresh=50,
        codes_ipc=50,
        codes_steps=300,
        teacher_network="convnet2",
        checkpoint_every=250,
    ),
}
