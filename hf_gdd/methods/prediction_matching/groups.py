"""Groups of images that are optimized independently of each other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_gdd.training.distributed import Processes
from hf_gdd.utils.random import Random


class Group:
    """Images that are matched on their own, and the networks they are moved against.

    Args:
        rows: numbers of the images within the bank, int64 [n].
        images: as networks see them, float32 [n, C, H, W].
        labels: int64 [n].
        random: all draws of the group.

    """

    def __init__(self, rows: Tensor, images: Tensor, labels: Tensor, random: Random) -> None:
        self.rows, self.images, self.labels, self.random = rows, images, labels, random
        self.velocity = torch.zeros_like(images)
        self.teacher_number: int | None = None
        self.students: list[nn.Module] = []

    def state_dict(self) -> dict[str, Any]:
        """Return images, momentum, draws and networks, in host memory."""
        return {
            "images": self.images.cpu(),
            "velocity": self.velocity.cpu(),
            "random": self.random.state_dict(),
            "teacher_number": self.teacher_number,
            "students": [{name: x.cpu() for name, x in student.state_dict().items()} for student in self.students],
        }

    def load_state_dict(self, state: dict[str, Any], build: Callable[[], nn.Module]) -> None:
        """Continue where `state_dict` was taken.

        Args:
            state: from `state_dict`.
            build: builds a network, whose weights are then replaced by those of a student.

        """
        for name in ("images", "velocity"):
            getattr(self, name).copy_(state[name])
        self.random.load_state_dict(state["random"])
        self.teacher_number, self.students = state["teacher_number"], [build() for _ in state["students"]]
        for student, weights in zip(self.students, state["students"], strict=True):
            student.load_state_dict(weights)
            student.eval().requires_grad_(False)


class Groups:
    """All groups of a bank, divided among the processes.

    Args:
        own: groups of this process, by number.
        processes: the processes of the run.
        build: builds a network for a student's weights.

    """

    def __init__(self, own: dict[int, Group], processes: Processes, build: Callable[[], nn.Module]) -> None:
        self.own, self.processes, self.build = own, processes, build

    def images(self) -> Tensor:
        """Return the images of all groups in the bank's order, in host memory."""
        parts = self.processes.gather_objects([(group.rows.cpu(), group.images.cpu()) for group in self.own.values()])
        rows, images = (torch.cat(part) for part in zip(*parts, strict=True))
        return images[rows.argsort()]

    def state_dict(self) -> dict[int, Any]:
        """Return the groups of all processes: any number of processes can resume."""
        return dict(self.processes.gather_objects([(number, group.state_dict()) for number, group in self.own.items()]))

    def load_state_dict(self, state: dict[int, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for number, group in self.own.items():
            group.load_state_dict(state[number], self.build)
