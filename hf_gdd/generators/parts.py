"""Generators with parts in files of their own: distilled codes and a teacher."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_gdd.generators.base import Generator
from hf_gdd.generators.codes import read_codes, write_codes
from hf_gdd.generators.teacher import Teacher
from hf_gdd.hub.files import CONFIG_NAME, FORMAT_VERSION, TEACHER, LoadError


class GeneratorWithParts(Generator):
    """A generator that may have distilled codes and a teacher beside its weights.

    A subclass has the methods of a diffusers `ConfigMixin`. One that may have codes says of which dtype and shape each
    is, and has a config field `distilled_ipc`.
    """

    @property
    def code_layout(self) -> tuple[torch.dtype, tuple[int, ...]] | None:
        """Dtype and shape of the code of one image; None for a kind without codes."""
        return None

    def checked_codes(self, codes: Tensor) -> Tensor:
        """Return codes [K, M, ...] as they are stored.

        Raises:
            ValueError: this kind of generator has none, or they do not fit.

        """
        raise ValueError(f"{type(self).__name__} is a kind of generator without distilled codes.")

    @property
    def codes(self) -> Tensor | None:
        """Distilled codes of the first M images of every class; None if there are none.

        A GAN's are the noise of each image, float16 [K, M, noise_dim]. Those of a diffusion generator are the numbers
        of chosen draws, int32 [K, M]. They stay of this dtype, and move with the generator's device.
        """
        return self.__dict__.get("_codes")

    @codes.setter
    def codes(self, codes: Tensor | None) -> None:
        if codes is None and self.codes is None:
            return
        self.__dict__["_codes"] = None if codes is None else self.checked_codes(codes.detach())
        self.move_parts()
        self.register_to_config(distilled_ipc=self.distilled_ipc, format_version=FORMAT_VERSION)

    @property
    def teacher(self) -> Teacher | None:
        """Network whose logits are soft labels; None for hard labels alone.

        It moves with the generator's device and stays float16.
        """
        return self.__dict__.get("_teacher")

    @teacher.setter
    def teacher(self, teacher: Teacher | None) -> None:
        if teacher is None and self.teacher is None:
            return
        if teacher is not None:
            self.check_teacher(teacher)
        self.__dict__["_teacher"] = teacher  # past torch, which would make it a part of the weights
        self.move_parts()
        self.register_to_config(teacher=teacher and teacher.record, format_version=FORMAT_VERSION)

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise ValueError unless a teacher can label the images."""
        teacher.check_fits(self)
        if teacher.config.zca:
            raise ValueError("This teacher sees whitened images; only a bank can have it, whose labels are stored.")

    def move_parts(self) -> None:
        """Move codes and teacher to the device of the weights, in their own dtype."""
        if self.codes is not None:
            self.__dict__["_codes"] = self.codes.to(self.device)
        if (teacher := self.__dict__.get("_teacher")) is not None:
            teacher.to(self.device)

    def upgrade(self) -> None:
        """Take on the present format, and its fingerprint in the rows of the report."""
        former = self.fingerprint
        self.take_present_layout()
        self.register_to_config(format_version=FORMAT_VERSION)
        if self.report is not None:
            present = self.fingerprint
            results, quality = (
                tuple(replace(row, generator=present) if row.generator == former else row for row in rows)
                for rows in (self.report.results, self.report.quality)
            )
            self.report = replace(self.report, results=results, quality=quality)

    def take_present_layout(self) -> None:
        """Move what earlier formats stored elsewhere; nothing by default."""

    def write_parts(self, folder: Path) -> None:
        """Write codes and teacher, if there are any, into a folder."""
        if self.codes is not None:
            write_codes(folder, self.codes)
        if self.teacher is not None:
            self.teacher.write(folder / TEACHER)

    def read_parts(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Load the distilled codes and the teacher that a config names.

        Raises:
            LoadError: one is absent, damaged, or does not fit; or there is one that the config does not name.

        """
        self.codes = read_codes(folder, config, self.num_classes, self.code_layout)
        named, present = isinstance(config.get("teacher"), Mapping), (folder / TEACHER / CONFIG_NAME).is_file()
        if named:
            self.teacher = Teacher.read(folder / TEACHER, self)
        if present > named or (named and self.teacher.record != config["teacher"]):
            raise LoadError(
                f"{CONFIG_NAME} in {folder} does not name the teacher that lies in {TEACHER}/: save it again."
            )
