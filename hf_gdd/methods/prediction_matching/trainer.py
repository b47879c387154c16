"""Adversarial prediction matching (Chen et al., 2023, arXiv 2312.08912)."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gdd.classifiers.ensemble import ClassifierEnsemble, stack_groups
from hf_gdd.classifiers.learner import Learner, prediction_gap, shuffled_batches
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.teachers import Teachers
from hf_gdd.data.normalization import input_transform
from hf_gdd.data.pixels import to_unit, unit_to_uint8
from hf_gdd.generators.base import GRID_COLUMNS, GRID_ROWS
from hf_gdd.generators.image_bank import ImageBank
from hf_gdd.generators.teacher import Teacher
from hf_gdd.methods.prediction_matching.config import PRESETS, PredictionMatchingConfig
from hf_gdd.methods.prediction_matching.groups import Group, Groups
from hf_gdd.training.config import Stage
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.plotting import image_grid
from hf_gdd.utils.random import Random

MATCH = "match"
START = "start"  # subfolder of a run, and method, of the bank that it began with


class PredictionMatchingTrainer(Trainer):
    """Optimize images so that students trained on them predict like teachers.

    Teachers are trained on real data. Students learn to predict like a teacher on the images; the images move to where
    the students do not yet.

    Example:
        trainer = PredictionMatchingTrainer("digits", preset="tiny", output_dir="runs/digits-bank")
        bank = trainer.fit()

    """

    config_class = PredictionMatchingConfig
    presets = PRESETS
    config: PredictionMatchingConfig

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The single stage `match`."""
        config = self.config
        steps = min(config.iterations, config.max_steps or config.iterations)
        whole = config.ipc * self.data.num_classes // config.groups
        return (Stage(MATCH, steps, min(config.image_batch or whole, whole), config.image_lr),)

    def check_processes(self) -> None:
        """Refuse groups that do not divide the bank, or that the processes do not divide.

        Raises:
            ValueError: they do not.

        """
        groups, processes = self.config.groups, self.processes.count
        parts = self.config.ipc if self.config.group_by == "images" else self.data.num_classes
        if parts % groups:
            raise ValueError(f"groups is {groups}; it must divide the {parts} {self.config.group_by} of the bank.")
        if groups % processes:
            raise ValueError(
                f"groups is {groups}, which {processes} processes do not divide: pass a multiple of {processes} that "
                f"divides {parts}."
            )

    def setup(self) -> dict[str, Any]:
        """Train or load the teachers, and initialize the groups of images."""
        config, data = self.config, self.data
        if config.start == "real":
            data.check_ipc(config.ipc)
        self.transform = input_transform(data, config.zca)
        self.teachers = Teachers(config.network, data, self.transform, config.teacher_recipe, config.teacher_cache)
        missing = self.teachers.missing(range(config.teachers))
        self.processes.wait()  # until all have looked, so that all divide the same
        mine = missing[self.processes.index :: self.processes.count]
        self.teachers.prepare(mine, progress=self.processes.is_main)
        self.processes.wait()

        images, labels = self._initial_images()
        order = torch.arange(len(images), device=self.device)
        part, parts = (order % config.ipc, config.ipc) if config.group_by == "images" else (labels, data.num_classes)
        own = {}
        for number in self.processes.local_part(torch.arange(config.groups)).tolist():
            rows = order[part * config.groups // parts == number]
            own[number] = Group(rows, images[rows], labels[rows], Random(config.seed, self.device, stream=number + 1))
        self.groups = Groups(own, self.processes, self._network)
        return {"groups": self.groups}

    def _initial_images(self) -> tuple[Tensor, Tensor]:
        """Return the first images as networks see them, by class, and their labels."""
        labels = torch.arange(self.data.num_classes, device=self.device).repeat_interleave(self.config.ipc)
        if self.config.start == "noise":
            shape = (len(labels), *self.data.shape)
            return torch.randn(shape, generator=self.random.rng, device=self.device), labels
        real = self.data.subset(self.config.ipc, self.config.seed)
        order = real.labels.argsort(stable=True)
        return self.transform(to_unit(real.gather(order)[0])), labels

    def _network(self, seed: int = 0) -> nn.Module:
        network = build_network(self.config.network, self.data.num_classes, self.data.shape, seed)
        return network.to(self.device)

    def begin(self, stage: Stage) -> None:
        """Save the bank as it is before the first step.

        Matching is measured against this control.
        """
        bank, record = self.to_generator(), self.training_record()
        shared = ("start", "ipc", "network", "zca", "seed", "source", "license")
        bank.register_to_config(training={"method": START} | {name: record[name] for name in shared})
        if self.processes.is_main:
            bank.save_pretrained(self.run.path / START)

    def next_indices(self, stage: Stage) -> Tensor:
        """Draw positions in every group, [groups, images], anew for every iteration."""
        size, rng = self.config.ipc * self.data.num_classes // self.config.groups, self.random.rng
        keys = torch.rand(self.config.groups, size, generator=rng, device=rng.device)
        return keys.argsort(1)[:, : stage.batch_size]

    def step(self, indices: Tensor) -> dict[str, Tensor]:
        """Take one iteration of every group of this process.

        Args:
            indices: positions of images in each of these groups, int64 [groups / processes, images].

        Returns:
            Means over the groups, as scalar tensors.

        """
        chosen = list(zip(self.groups.own.values(), indices, strict=True))
        if self.state.step % (self.config.mid_gap + 1) == 0:
            for several in stack_groups(chosen, self.config.network, self.device):
                self.train_students(several)
        metrics = [self.move_images(group, rows) for group, rows in chosen]
        return {name: torch.stack([terms[name] for terms in metrics]).mean() for name in metrics[0]}

    def train_students(self, chosen: Sequence[tuple[Group, Tensor]]) -> None:
        """Train a student for each group to predict like a teacher drawn anew.

        Snapshots of the student are taken on the way.

        Args:
            chosen: groups, each with the positions of the images its student learns from, equally many for all.

        """
        recipe = self.config.student_recipe
        groups, learners, sets = zip(*(self._prepare_student(group, rows) for group, rows in chosen), strict=True)
        ensemble, rngs = ClassifierEnsemble(learners, stacked=True), [group.random.rng for group in groups]
        for epoch in range(recipe.epochs):
            orders = [shuffled_batches(len(sets[0][0]), recipe, rng) for rng in rngs]
            for batches in zip(*orders, strict=True):
                pairs = zip(sets, batches, strict=True)
                ensemble.step([(images[batch], logits[batch]) for (images, logits), batch in pairs], rngs)
            if epoch in self.snapshots:
                for group, learner in zip(groups, ensemble.learners, strict=True):
                    group.students.append(deepcopy(learner.network).eval().requires_grad_(False))

    def _prepare_student(self, group: Group, rows: Tensor) -> tuple[Group, Learner, tuple[Tensor, Tensor]]:
        """Return a group, a fresh student, and its training set.

        The set is these images of the group, with the logits of a teacher drawn anew.
        """
        config, recipe = self.config, self.config.student_recipe
        group.teacher_number, group.students = group.random.integer(config.teachers), []
        teacher, images = self.teachers[group.teacher_number], group.images[rows]
        with torch.no_grad(), self.autocast():
            logits = torch.cat([teacher(part)[0] for part in images.split(config.chunk)]).float()
        student = self._network(group.random.integer(2**31))
        return group, Learner(student, self.transform, recipe, recipe.steps(len(rows))), (images, logits)

    def move_images(self, group: Group, rows: Tensor) -> dict[str, Tensor]:
        """Move images of a group by the gradient of Eq. 6.

        They go up the gap between students and teacher, and down the teacher's cross-entropy.
        """
        config, teacher = self.config, self.teachers[group.teacher_number]
        group.velocity.mul_(config.image_momentum)
        totals = {"gap": 0.0, "cross_entropy": 0.0}
        for chunk in rows.split(config.chunk):
            images = group.images[chunk].requires_grad_()
            with self.autocast():
                terms = prediction_terms(images, group.labels[chunk], teacher, group.students)
            share = len(chunk) / len(rows)
            loss = share * (config.hard_weight * terms["cross_entropy"] - terms["gap"])
            (gradient,) = torch.autograd.grad(loss, images)
            group.velocity.index_add_(0, chunk, gradient)
            totals = {name: totals[name] + share * value.detach() for name, value in terms.items()}
        group.images.add_(group.velocity, alpha=-self.rate)
        movement = group.velocity.square().mean().sqrt()  # not finite if an image is not
        return totals | {"gap": totals["gap"] / len(group.students), "movement": movement}

    def batch_size_setting(self, stage: Stage) -> tuple[str, int]:
        """Return the setting to lower when memory runs out: images seen at a time."""
        return "chunk", self.config.chunk

    @property
    def rate(self) -> float:
        """Learning rate of the images in this step."""
        (stage,) = self.stages
        return stage.lr * (0.3 if self.state.step >= stage.steps // 2 else 1.0)

    @property
    def snapshots(self) -> set[int]:
        """Epochs, counted from 0, after which a snapshot of the student is taken."""
        epochs, count = self.config.student_epochs, self.config.snapshots
        return {epochs * (i + 1) // count for i in range(count)}

    @cached_property
    def bank_teacher(self) -> Teacher:
        """The first teacher as a part of the bank; its accuracy is measured once."""
        config, training = self.config, asdict(self.config.teacher_recipe)
        return Teacher.from_network(config.network, self.teachers[0], self.data, zca=config.zca, training=training)

    def to_generator(self) -> ImageBank:
        """Return the images as pixels, and the first teacher's labels for them."""
        config, data = self.config, self.data
        parts = self.groups.images().split(config.chunk)
        images = torch.cat([unit_to_uint8(self.transform.inverse(part.to(self.device))) for part in parts])
        return ImageBank.from_images(
            images.unflatten(0, (data.num_classes, config.ipc)),
            teacher=deepcopy(self.bank_teacher),
            transform=self.transform,
            class_names=data.class_names,
            mean=data.mean,
            std=data.std,
            training=self.training_record(),
        )

    def picture(self) -> Any:
        """Return the first images of every class that this process has some of."""
        rows = torch.cat([group.rows for group in self.groups.own.values()]).sort()
        images = torch.cat([group.images for group in self.groups.own.values()])[rows.indices]
        labels = rows.values // self.config.ipc
        names, counts = labels.unique_consecutive(return_counts=True)
        width = min(GRID_COLUMNS, int(counts.min()))
        shown = torch.cat([part[:width] for part in images.split(counts.tolist())][:GRID_ROWS])
        pixels = unit_to_uint8(self.transform.inverse(shown))
        return image_grid(pixels, width, [self.data.class_names[label] for label in names.tolist()[:GRID_ROWS]])


def prediction_terms(
    images: Tensor, labels: Tensor, teacher: nn.Module, students: Sequence[nn.Module]
) -> dict[str, Tensor]:
    """Return the terms of Eq. 6: the `gap` to ascend, the `cross_entropy` to descend.

    Both are means over images, and the gap a sum over students. The teacher's logits are shared by all students, which
    gives the gradient of the sum of separate gaps.
    """
    logits = teacher(images)[0]
    gap = sum(prediction_gap(student(images)[0], logits) for student in students)
    return {"gap": gap, "cross_entropy": F.cross_entropy(logits.float(), labels)}
