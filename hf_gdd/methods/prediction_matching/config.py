"""Settings and presets of adversarial prediction matching."""

from dataclasses import dataclass
from typing import Any, Literal

from hf_gdd.classifiers.networks import NETWORK_NAMES
from hf_gdd.classifiers.recipes import Recipe, augmentation
from hf_gdd.methods.registry import register_method
from hf_gdd.training.config import TrainingConfig, require_choice, require_not_negative, require_positive, require_share

_SMALL = {"network": "convnet3", "zca": True, "image_lr": 1.0}
_LARGE = {"network": "convnet4", "zca": False, "student_lr": 0.1, "image_batch": 500}
# Settings of Chen et al. (2023) by preset, without the epochs of their evaluation, which are those of a `Recipe`.
TABLE_A9 = {
    "paper": _SMALL | {"ipc": 50, "student_lr": 0.02},
    "cifar10-ipc500": _SMALL | {"ipc": 500, "student_lr": 0.02, "image_batch": 2500},
    "cifar10-ipc1000": _SMALL | {"ipc": 1000, "student_lr": 0.02, "image_batch": 2500},
    "cifar100-ipc10": _SMALL | {"ipc": 10, "student_lr": 0.02},
    "cifar100-ipc50": _SMALL | {"ipc": 50, "student_lr": 0.04, "image_batch": 2500},
    "cifar100-ipc100": _SMALL | {"ipc": 100, "student_lr": 0.04, "image_batch": 2500},
    "tiny-imagenet-ipc10": _LARGE | {"ipc": 10, "image_lr": 20.0},
    "tiny-imagenet-ipc50": _LARGE | {"ipc": 50, "image_lr": 40.0},
    "tiny-imagenet-ipc100": _LARGE | {"ipc": 100, "image_lr": 40.0},
    "imagenet64-ipc10": _LARGE | {"ipc": 10, "image_lr": 20.0},
    "imagenet64-ipc50": _LARGE | {"ipc": 50, "image_lr": 20.0},
    "imagenet64-ipc100": _LARGE | {"ipc": 100, "image_lr": 20.0},
}


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

    preset: Literal[(*TABLE_A9, "lite", "tiny")] = "paper"
    """`paper` is CIFAR-10 at IPC 50, other names give the data set and IPC; `lite` and `tiny` run on a CPU"""
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
        require_positive(self, "ipc", "teachers", "iterations", "image_batch", "chunk", "image_lr")
        require_positive(self, "snapshots", "groups")
        fields = ("epochs", "batch_size", "lr")
        require_positive(self, *(f"{role}_{field}" for role in ("teacher", "student") for field in fields))
        require_not_negative(self, "mid_gap", "hard_weight")
        require_share(self, "image_momentum")
        require_choice(self, "network", NETWORK_NAMES)
        if self.student_epochs < self.snapshots:
            raise ValueError(
                f"snapshots is {self.snapshots}; it must not exceed student_epochs, {self.student_epochs}."
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
        """Recipe of a student, with one epoch more than `student_epochs`.

        Epochs are counted from 0, and the last snapshot is taken after epoch `student_epochs`.
        """
        return self._recipe("student", self.student_epochs + 1)

    def _recipe(self, role: str, epochs: int) -> Recipe:
        batch_size, lr = (getattr(self, f"{role}_{name}") for name in ("batch_size", "lr"))
        shared = {"schedule": "halved", "augment": self.augment, "mixed_precision": self.mixed_precision}
        return Recipe(epochs=epochs, batch_size=batch_size, lr=lr, **shared)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide results, as primitives.

        The folder of stored teachers is left out.
        """
        return {name: value for name, value in super().identity().items() if name != "teacher_cache"}


PRESETS = {
    **{name: PredictionMatchingConfig(preset=name, **settings) for name, settings in TABLE_A9.items()},
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
