"""The settings of global-local matching and its baselines, and the presets that hold them."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from hf_gdd.classifiers.augment import Augment
from hf_gdd.classifiers.networks import network_name
from hf_gdd.training.config import TrainingConfig, require_positive


@dataclass(frozen=True)
class GlobalLocalConfig(TrainingConfig):
    """Settings of the GAN stage and the matching stage; the defaults are the papers', or DiM's where they are silent.

    Attributes:
        preset: label of the preset that the settings were taken from: `paper` is for a GPU, `fast` is `paper` with a
            lazy penalty and in the faster precision, `lite` is for a patient CPU, `tiny` for digits.
            `GlobalLocalTrainer.configure("tiny")` gives the settings of one.
        method: `global-local`; `dim` matches logits only; `cgan` stops before matching; `cgan-continued` goes on
            with all matching weights at zero, the control that any gain of matching must be measured against.
        width: channels of generator and discriminator.
        noise_dim: random entries of the generator's input.
        adversarial: `wgan-gp`, as the public DiM code runs it, or `minimax`, Eq. 4 of Li et al.
        penalty_weight: of the gradient penalty of `wgan-gp`.
        penalty_every: steps from one penalty to the next, which counts as many times; 1, the published, is in every
            step. Lazy regularisation (Karras et al., 2020, arXiv 1912.04958, who also rescale Adam, which we do not) is
            cheaper, but another training.
        class_on_fakes: whether the discriminator also learns classes from generated images (ACGAN).
        ema_decay: of the averaged generator that is saved; 0 saves the last one.
        gan_epochs: length of the first stage.
        gan_batch_size: of the first stage.
        gan_lr: Adam's rate in the first stage.
        match_epochs: length of the second stage.
        match_batch_size: of the second stage.
        match_lr: Adam's rate in the second stage.
        global_weight: of the distance between logits.
        local_weight: of the distance between intermediate features.
        global_reduction: its form, see `hf_gdd.methods.global_local.losses.GLOBAL`.
        local_reduction: its form, see `hf_gdd.methods.global_local.losses.LOCAL`.
        match_augment: augmentation shared by real and generated images.
        pool: names of the networks that images are matched in; in Python also callables, see `build_network`.
        inner_steps: steps of the pool's network on real data before each matching.
        pool_refresh: matchings before a fresh network; one epoch if None.
        start_from: folder of a finished run whose first stage replaces this one's.

    """

    preset: Literal["paper", "fast", "lite", "tiny"] = "paper"
    method: Literal["global-local", "dim", "cgan", "cgan-continued"] = "global-local"
    width: int = 196
    noise_dim: int = 90
    adversarial: Literal["wgan-gp", "minimax"] = "wgan-gp"
    penalty_weight: float = 10.0
    penalty_every: int = 1
    class_on_fakes: bool = True
    ema_decay: float = 0.0
    gan_epochs: int = 150
    gan_batch_size: int = 128
    gan_lr: float = 1e-4
    match_epochs: int = 100
    match_batch_size: int = 64
    match_lr: float = 5e-6
    global_weight: float = 0.01
    local_weight: float = 0.001
    global_reduction: Literal["logsoftmax_mean", "logit_mean", "logit_sum"] = "logsoftmax_mean"
    local_reduction: Literal["batchmean_sum", "paired_mean", "paired_sum", "paired_sum_batchmean"] = "batchmean_sum"
    match_augment: str = "color_crop_cutout"
    pool: tuple[str, ...] = ("convnet3", "resnet10-dd", "resnet18-dd")
    inner_steps: int = 16
    pool_refresh: int | None = None
    start_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "noise_dim", "gan_epochs", "gan_batch_size", "gan_lr", "penalty_every"):
            require_positive(self, name)
        for name in ("match_epochs", "match_batch_size", "match_lr"):
            require_positive(self, name)
        for name in ("global_weight", "local_weight", "penalty_weight", "inner_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative; 0 switches a term off.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1), 0 for none.")
        if self.pool_refresh is not None:
            require_positive(self, "pool_refresh")
        if self.penalty_every > 1 and self.adversarial != "wgan-gp":
            raise ValueError("penalty_every is of the gradient penalty of wgan-gp: leave it at 1 with minimax.")
        if isinstance(self.pool, str) or callable(self.pool):
            raise ValueError(f"pool is {self.pool!r}; it must be a tuple of networks, such as ('convnet3',).")
        if not self.pool:
            raise ValueError("The pool is empty: name at least one network.")
        if self.method == "cgan" and self.start_from:
            raise ValueError(
                "method 'cgan' is the first stage alone, so it cannot start from another run's first stage."
            )
        Augment(self.match_augment)

    def identity(self) -> dict[str, Any]:
        """What is computed, as primitives: networks by their names."""
        return super().identity() | {"pool": [network_name(spec) for spec in self.pool]}

    def refresh(self, images: int) -> int:
        """Matching steps for each network of the pool, of `images` training images: as set, or one pass."""
        return self.pool_refresh or max(1, images // self.match_batch_size)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the matching terms that the method uses."""
        return {
            "global": self.global_weight if self.method in ("dim", "global-local") else 0.0,
            "local": self.local_weight if self.method == "global-local" else 0.0,
        }


# The published rates and weights move a small generator by next to nothing in a short run. In `lite` and `tiny` they
# are such that matching has a good part of the generator's gradient, and the average outlasts the swings of the GAN.
# The class term on generated images is off: an untrained generator's teach the discriminator nothing of classes.
PRESETS = {
    "paper": GlobalLocalConfig(),
    "fast": GlobalLocalConfig(preset="fast", penalty_every=4, mixed_precision="auto"),
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
    ),
    "tiny": GlobalLocalConfig(
        preset="tiny",
        width=24,
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
        checkpoint_every=250,
    ),
}
