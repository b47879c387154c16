"""Adversarial prediction matching (Chen et al., 2023, arXiv 2312.08912): the images themselves are optimised."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gdd.classifiers.ensemble import Cohort, in_step
from hf_gdd.classifiers.learner import Learner, shuffled
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.teachers import Teachers
from hf_gdd.data.normalization import view_of
from hf_gdd.data.pixels import to_unit, unit_to_uint8
from hf_gdd.generators.image_bank import ImageBank
from hf_gdd.generators.pretrained import GRID_COLUMNS, GRID_ROWS
from hf_gdd.methods.global_local.losses import prediction_gap
from hf_gdd.methods.prediction_matching.config import PRESETS, PredictionMatchingConfig
from hf_gdd.methods.prediction_matching.groups import Group, Groups
from hf_gdd.training.config import Stage
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.plotting import image_grid
from hf_gdd.utils.random import Random

MATCH = "match"
START = "start"  # folder in a run's own, and method, of the bank that it began with


class PredictionMatchingTrainer(Trainer):
    """Students learn to predict like a teacher on the images; the images move to where they do not yet."""

    config_class = PredictionMatchingConfig
    presets = PRESETS
    config: PredictionMatchingConfig

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The only one."""
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
            raise ValueError(
                f"groups is {groups}, which does not divide the {parts} {self.config.group_by} of the bank."
            )
        if groups % processes:
            raise ValueError(
                f"groups is {groups}, which {processes} processes do not divide: pass a multiple of {processes} that "
                f"divides {parts}."
            )

    def setup(self) -> dict[str, Any]:
        """Teachers, and the groups of images to begin with."""
        config, data = self.config, self.data
        if config.start == "real":
            data.require_ipc(config.ipc)
        self.view = view_of(data, config.zca)
        self.teachers = Teachers(config.network, data, self.view, config.teacher_recipe, config.teacher_cache)
        missing = self.teachers.missing(range(config.teachers))
        self.processes.wait()  # until all have looked, so that all divide the same
        mine = missing[self.processes.index :: self.processes.count]
        self.teachers.prepare(mine, progress=self.processes.main)
        self.processes.wait()

        images, labels = self._first()
        place = torch.arange(len(images), device=self.device)
        part, parts = (place % config.ipc, config.ipc) if config.group_by == "images" else (labels, data.num_classes)
        own = {}
        for number in self.processes.part(torch.arange(config.groups)).tolist():
            rows = place[part * config.groups // parts == number]
            own[number] = Group(rows, images[rows], labels[rows], Random(config.seed, self.device, stream=number + 1))
        self.groups = Groups(own, self.processes, self._network)
        return {"groups": self.groups}

    def _first(self) -> tuple[Tensor, Tensor]:
        """Images as networks see them and labels, class after class."""
        labels = torch.arange(self.data.num_classes, device=self.device).repeat_interleave(self.config.ipc)
        if self.config.start == "noise":
            shape = (len(labels), *self.data.shape)
            return torch.randn(shape, generator=self.random.device, device=self.device), labels
        real = self.data.subset(self.config.ipc, self.config.seed)
        order = real.labels.argsort(stable=True)
        return self.view(to_unit(real.gather(order)[0])), labels

    def _network(self, seed: int = 0) -> nn.Module:
        network = build_network(self.config.network, self.data.num_classes, self.data.shape, seed)
        return network.to(self.device)

    def begin(self, stage: Stage) -> None:
        """Keep the bank as it is before the first step, with the same labels: what the matching is measured against."""
        bank = self.to_generator()
        bank.register_to_config(
            training={"method": START} | self._provenance(("start", "ipc", "network", "zca", "seed"))
        )
        if self.processes.main:
            bank.save_pretrained(self.run.path / START)

    def next_rows(self, stage: Stage) -> Tensor:
        """Places in a group, drawn anew for every iteration and group, [groups, images]."""
        size, generator = self.config.ipc * self.data.num_classes // self.config.groups, self.random.device
        drawn = torch.rand(self.config.groups, size, generator=generator, device=generator.device)
        return drawn.argsort(1)[:, : stage.batch_size]

    def step(self, indices: Tensor) -> dict[str, Tensor]:
        """One iteration of every group of this process, on its images of these places."""
        chosen = list(zip(self.groups.own.values(), indices, strict=True))
        if self.at.step % (self.config.mid_gap + 1) == 0:
            recipe = self.config.student_recipe
            batch_size = min(recipe.batch_size, indices.shape[1])
            for several in in_step(chosen, self.config.network, self.data, recipe, batch_size):
                self.train_students(several)
        found = [self.move_images(group, rows) for group, rows in chosen]
        return {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}

    def train_students(self, chosen: Sequence[tuple[Group, Tensor]]) -> None:
        """For each group draw a teacher, and train a student to predict like it, with snapshots on the way.

        Args:
            chosen: groups, and which of a group's images its student learns from, as many of each.

        """
        recipe = self.config.student_recipe
        groups, learners, sets = zip(*(self._lesson(group, rows) for group, rows in chosen), strict=True)
        cohort, generators = Cohort(learners, stacked=True), [group.random.device for group in groups]
        for epoch in range(recipe.epochs):
            orders = [shuffled(len(sets[0][0]), recipe, generator) for generator in generators]
            for batches in zip(*orders, strict=True):
                drawn = zip(sets, batches, strict=True)
                cohort.step([(images[batch], logits[batch]) for (images, logits), batch in drawn], generators)
            if epoch in self.snapshots:
                for group, learner in zip(groups, cohort.learners, strict=True):
                    group.students.append(deepcopy(learner.network).eval().requires_grad_(False))

    def _lesson(self, group: Group, rows: Tensor) -> tuple[Group, Learner, tuple[Tensor, Tensor]]:
        """A fresh student of a group, these images of it, and what a teacher drawn anew predicts for them."""
        config, recipe = self.config, self.config.student_recipe
        group.teacher_number, group.students = group.random.integer(config.teachers), []
        teacher, images = self.teachers[group.teacher_number], group.images[rows]
        with torch.no_grad(), self.computing():
            logits = torch.cat([teacher(part)[0] for part in images.split(config.chunk)]).float()
        student = self._network(group.random.integer(2**31))
        return group, Learner(student, self.view, recipe, recipe.steps(len(rows))), (images, logits)

    def move_images(self, group: Group, rows: Tensor) -> dict[str, Tensor]:
        """One step up the gap between students and teacher, and down the teacher's cross-entropy (Eq. 6)."""
        config, teacher = self.config, self.teachers[group.teacher_number]
        group.velocity.mul_(config.image_momentum)
        totals = {"gap": 0.0, "cross_entropy": 0.0}
        for chunk in rows.split(config.chunk):
            images = group.images[chunk].requires_grad_()
            with self.computing():
                terms = prediction_terms(images, group.labels[chunk], teacher, group.students)
            share = len(chunk) / len(rows)
            loss = share * (config.hard_weight * terms["cross_entropy"] - terms["gap"])
            (gradient,) = torch.autograd.grad(loss, images)
            group.velocity.index_add_(0, chunk, gradient)
            totals = {name: totals[name] + share * value.detach() for name, value in terms.items()}
        group.images.add_(group.velocity, alpha=-self.rate)
        movement = group.velocity.square().mean().sqrt()  # not finite if an image is not
        return totals | {"gap": totals["gap"] / len(group.students), "movement": movement}

    def memory_setting(self, stage: Stage) -> tuple[str, int]:
        """The images that teacher and students see at a time."""
        return "chunk", self.config.chunk

    @property
    def rate(self) -> float:
        """The images' learning rate now."""
        (stage,) = self.stages
        return stage.lr * (0.3 if self.at.step >= stage.steps // 2 else 1.0)

    @property
    def snapshots(self) -> set[int]:
        """After which epochs, counted from 0, a student is kept."""
        epochs, count = self.config.student_epochs, self.config.snapshots
        return {epochs * (i + 1) // count for i in range(count)}

    # What comes out.

    def to_generator(self) -> ImageBank:
        """The images as pixels, with the first teacher's labels for what they have become."""
        config, data = self.config, self.data
        parts = self.groups.images().split(config.chunk)
        images = torch.cat([unit_to_uint8(self.view.inverse(part.to(self.device))) for part in parts])
        return ImageBank.of(
            images.unflatten(0, (data.num_classes, config.ipc)),
            teacher=(config.network, self.teachers[0].state_dict()),
            view=self.view,
            class_names=data.class_names,
            zca=config.zca,
            mean=data.mean,
            std=data.std,
            training=self._provenance(),
        )

    def _provenance(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """The settings of these names, or all, and the data."""
        settings = {name: value for name, value in self.config.identity().items() if names is None or name in names}
        return settings | {"source": self.data.source, "license": self.data.license}

    def picture(self) -> Any:
        """The first images of every class that this process has some of."""
        rows = torch.cat([group.rows for group in self.groups.own.values()]).sort()
        images = torch.cat([group.images for group in self.groups.own.values()])[rows.indices]
        labels = rows.values // self.config.ipc
        names, counts = labels.unique_consecutive(return_counts=True)
        width = min(GRID_COLUMNS, int(counts.min()))
        shown = torch.cat([part[:width] for part in images.split(counts.tolist())][:GRID_ROWS])
        pixels = unit_to_uint8(self.view.inverse(shown))
        return image_grid(pixels, width, [self.data.class_names[label] for label in names.tolist()[:GRID_ROWS]])


def prediction_terms(
    images: Tensor, labels: Tensor, teacher: nn.Module, students: Sequence[nn.Module]
) -> dict[str, Tensor]:
    """The gap that images ascend, a sum over students, and the cross-entropy they descend; means over images.

    The teacher's logits are shared by all students, which gives the gradient of the sum of separate gaps.
    """
    logits = teacher(images)[0]
    gap = sum(prediction_gap(student(images)[0], logits) for student in students)
    return {"gap": gap, "cross_entropy": F.cross_entropy(logits.float(), labels)}
