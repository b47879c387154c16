"""Settings and presets of adversarial prediction matching."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hf_gdd.classifiers.networks import NETWORK_NAMES
from hf_gdd.classifiers.recipes import Recipe, augmentation
from hf_gdd.methods.registry import register_method
from hf_gdd.training.config import TrainingConfig, require_choice, require_positive


@register_method(
    "prediction-matching",
    trainer="hf_gdd.methods.prediction_matching.trainer:PredictionMatchingTrainer",
    paper="2312.08912",
    summary="Optimize the images themselves so that students trained on them predict like teachers.",
)
@dataclass(frozen=True)
class PredictionMatchingConfig(TrainingConfig):
    """Settings of adversarial prediction matching.

    The defaults are those of table A9 of Chen et al. (2023, arXiv 2312.08912) for CIFAR-10 at IPC 50.

    Example:
        config = PredictionMatchingTrainer.configure("tiny", ipc=1)
        trainer = PredictionMatchingTrainer("digits", config=config, output_dir="runs/bank")

    """

    preset: Literal[
        "paper",
        "cifar10-ipc500",
        "cifar10-ipc1000",
        "cifar100-ipc10",
        "cifar100-ipc50",
        "cifar100-ipc100",
        "tiny-imagenet-ipc10",
        "tiny-imagenet-ipc50",
        "tiny-imagenet-ipc100",
        "imagenet64-ipc10",
        "imagenet64-ipc50",
        "imagenet64-ipc100",
        "lite",
        "tiny",
    ] = "paper"
    """see `TrainingConfig`; names such as `cifar100-ipc10` give the data set and IPC of a row of table A9"""
    method: Literal["prediction-matching"] = "prediction-matching"
    """the only method of this config"""
    ipc: int = 50
    """images of every class"""
    network: str = "convnet3"
    """architecture of teachers and students"""
    zca: bool = True
    """let networks see whitened images; the bank is stored in image space all the same"""
    start: Literal["real", "noise"] = "real"
    """`real` begins with random real images, `noise` with normal noise in the range that networks see"""
    teachers: int = 100
    """number of teachers; one is drawn for each generation of students, the first labels the final images"""
    teacher_epochs: int = 100
    """epochs of a teacher's training"""
    teacher_batch_size: int = 256
    """batch size of a teacher's training"""
    teacher_lr: float = 0.05
    """learning rate of a teacher's training; a tenth of it after half"""
    iterations: int = 2501
    """steps of the images"""
    image_batch: int | None = None
    """images of each group that an iteration moves, drawn anew for the next; None for all"""
    chunk: int = 500
    """images whose gradient is computed at a time: fewer need less memory and more time"""
    image_lr: float = 1.0
    """learning rate of the images; 0.3 of it after half of the iterations"""
    image_momentum: float = 0.5
    """momentum of the images' SGD"""
    hard_weight: float = 0.1
    """weight of the teacher's cross-entropy, which keeps an image in its class"""
    mid_gap: int = 2
    """iterations between two generations of students"""
    student_epochs: int = 250
    """epochs of a student's training"""
    student_batch_size: int = 256
    """batch size of a student's training"""
    student_lr: float = 0.02
    """learning rate of a student's training; a tenth of it after half"""
    snapshots: int = 5
    """snapshots of each student, evenly spaced in its training, that the images are moved against together"""
    augment: str = "dsa"
    """augmentation of teachers and students, see `Recipe`"""
    groups: int = 1
    """parts of the bank that are matched independently of each other, as processes do"""
    group_by: Literal["images", "classes"] = "images"
    """`images` gives each group some images of every class, `classes` all images of some classes"""
    teacher_cache: str | None = None
    """folder in which trained teachers are stored; a part of the Hugging Face cache if None"""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("ipc", "teachers", "iterations", "chunk", "image_lr", "snapshots", "groups")
        positive += tuple(f"{who}_{what}" for who in ("teacher", "student") for what in ("epochs", "batch_size", "lr"))
        for name in (*positive, *(() if self.image_batch is None else ("image_batch",))):
            require_positive(self, name)
        require_choice(self, "network", NETWORK_NAMES)
        if not 0 <= self.image_momentum < 1:
            raise ValueError(f"image_momentum is {self.image_momentum}; it must lie in [0, 1).")
        for name in ("mid_gap", "hard_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or above: 0 switches it off.")
        if self.student_epochs < self.snapshots:
            raise ValueError(
                f"{self.snapshots} snapshots of {self.student_epochs} student_epochs: ask for one an epoch at most."
            )
        for recipe in (self.teacher_recipe, self.student_recipe):  # which refuse what no classifier can be trained by
            if augmentation(recipe.augment).takes_unit_range:
                raise ValueError(f"augment {self.augment!r} is for images in unit range, which a bank's are not.")

    @property
    def teacher_recipe(self) -> Recipe:
        """Recipe of a teacher."""
        return self._recipe("teacher", self.teacher_epochs)

    @property
    def student_recipe(self) -> Recipe:
        """Recipe of a student: E + 1 epochs, for the last snapshot is taken after epoch E, counted from 0."""
        return self._recipe("student", self.student_epochs + 1)

    def _recipe(self, who: str, epochs: int) -> Recipe:
        batch_size, lr = (getattr(self, f"{who}_{name}") for name in ("batch_size", "lr"))
        return Recipe(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            schedule="halved",
            augment=self.augment,
            mixed_precision=self.mixed_precision,
        )

    def identity(self) -> dict[str, Any]:
        """Return what is computed, as primitives; where teachers are stored changes nothing."""
        return {name: value for name, value in super().identity().items() if name != "teacher_cache"}


def _published() -> Mapping[str, PredictionMatchingConfig]:
    """Return the settings of table A9, without the epochs of its evaluation, which a `Recipe` has."""
    small = {"network": "convnet3", "zca": True, "image_lr": 1.0}
    large = {"network": "convnet4", "zca": False, "student_lr": 0.1, "image_batch": 500}
    rows = {
        ("cifar10", 50): small | {"student_lr": 0.02},
        ("cifar10", 500): small | {"student_lr": 0.02, "image_batch": 2500},
        ("cifar10", 1000): small | {"student_lr": 0.02, "image_batch": 2500},
        ("cifar100", 10): small | {"student_lr": 0.02},
        ("cifar100", 50): small | {"student_lr": 0.04, "image_batch": 2500},
        ("cifar100", 100): small | {"student_lr": 0.04, "image_batch": 2500},
        ("tiny-imagenet", 10): large | {"image_lr": 20.0},
        ("tiny-imagenet", 50): large | {"image_lr": 40.0},
        ("tiny-imagenet", 100): large | {"image_lr": 40.0},
        ("imagenet64", 10): large | {"image_lr": 20.0},
        ("imagenet64", 50): large | {"image_lr": 20.0},
        ("imagenet64", 100): large | {"image_lr": 20.0},
    }
    named = {"paper" if row == ("cifar10", 50) else f"{row[0]}-ipc{row[1]}": (row[1], rows[row]) for row in rows}
    return {name: PredictionMatchingConfig(preset=name, ipc=ipc, **row) for name, (ipc, row) in named.items()}


PRESETS = {
    **_published(),
    "lite": PredictionMatchingConfig(
        preset="lite",
        ipc=10,
        zca=False,
        teachers=2,
        teacher_epochs=1,
        teacher_batch_size=64,
        iterations=45,
        image_lr=10.0,
        student_epochs=40,
        student_lr=0.05,
        augment="color_crop",
        checkpoint_every=15,
        picture_every=15,
        log_every=5,
    ),
    "tiny": PredictionMatchingConfig(
        preset="tiny",
        ipc=10,
        network="convnet2",
        zca=False,
        teachers=3,
        teacher_epochs=20,
        teacher_batch_size=64,
        iterations=90,
        student_epochs=80,
        student_lr=0.05,
        augment="color_crop",
        checkpoint_every=30,
        picture_every=30,
        log_every=10,
    ),
}
