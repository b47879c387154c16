"""Save, load and push a generator as a folder with config, weights and card."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from hf_gdd.generators.parts import GeneratorWithParts
from hf_gdd.generators.sampling import Sampling
from hf_gdd.hub.cards import generator_card
from hf_gdd.hub.files import (
    CONFIG_NAME,
    FORMAT_VERSION,
    REPORT_NAME,
    LoadError,
    check_files,
    check_loaded,
    is_own_file,
    remove_local_path,
)
from hf_gdd.hub.loading import read_report, resolve
from hf_gdd.hub.upload import push
from hf_gdd.utils.device import default_dtype_restored, floating_dtype
from hf_gdd.utils.io import atomic_folder

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.getLogger("hf_gdd")

Model = TypeVar("Model", bound="PretrainedGenerator")


class PretrainedGenerator(GeneratorWithParts):
    """A generator that can be saved, loaded and pushed.

    A subclass implements `make`, `weights`, `write`, `read` and `to`. Its constructor takes, beside arguments of its
    own, the record that config.json holds:

    Args:
        class_names: in the order of the labels.
        image_shape: (C, H, W).
        mean: per-channel mean of the real training images, in [0, 1].
        std: per-channel standard deviation of the real training images, for pixels in [0, 1].
        training: source, license, method, seed and settings of the training, as primitives.
        sampling: fields of the default sampling settings.
        teacher: network, accuracy and `zca` of the teacher in subfolder `teacher/`; None if there is none.
        fingerprint: of what was saved with this config.
        weights_dtype: floating-point dtype of those weights.
        format_version: of the saved folder.

    Example:
        generator.push_to_hub("me/cifar10-gdd")
        generator = ConditionalGANGenerator.from_pretrained("me/cifar10-gdd", revision="main")

    """

    other_names: ClassVar[tuple[str, ...]] = ()
    """class names beside its own of configs that the class can load"""

    def write(self, folder: Path, max_shard_size: str) -> None:
        """Write config and weights."""
        raise NotImplementedError

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, max_shard_size: str = "10GB"
    ) -> None:
        """Write config, safetensors, grid.png, card and, if evaluated, report.json.

        The folder is replaced as a whole: a process killed at any moment leaves the old generator or the new one. Other
        files in it stay. A report of other weights than these is left out, with a warning. A generator of an earlier
        format takes on the present one, see `upgrade`.

        Args:
            save_directory: made if absent.
            repo_id: the repo that the card names; the folder's name if None.
            max_shard_size: weights above it are split into several files.

        Raises:
            OSError: nothing could be written, for example because the disk is full; the old folder stays.

        """
        if self.config.get("format_version") != FORMAT_VERSION or isinstance(self.config.get("teacher"), str):
            self.upgrade()
        target, report, fingerprint = Path(save_directory), self.report, self.fingerprint
        dtypes = [str(x.dtype).removeprefix("torch.") for x in self.weights.values() if x.is_floating_point()]
        self.register_to_config(
            sampling=self.sampling_identity(), fingerprint=fingerprint, weights_dtype=next(iter(dtypes), None)
        )
        if report is not None and not any(result.generator == fingerprint for result in report.results):
            logger.warning("The report is of other weights than these and is not saved with them.")
            report = None
        with atomic_folder(target, replaced=is_own_file) as folder:
            self.write(folder, max_shard_size)
            self.write_parts(folder)
            self.grid().save(folder / "grid.png")
            if report is not None:
                report.save(folder / REPORT_NAME)
            card = generator_card(repo_id or target.resolve().name, self.config, report)
            (folder / "README.md").write_text(card, encoding="utf-8")

    def push_to_hub(self, repo_id: str, *, max_shard_size: str = "10GB", **options: Any) -> "CommitInfo":
        """Save to a temporary folder and push that as one commit.

        Args:
            repo_id: id of the model repo; made if absent.
            max_shard_size: weights above it are split into several files.
            options: of `hf_gdd.hub.push`: `private`, the visibility of a repo made here; `revision`, a branch, made if
                absent; `create_pr`, to open a pull request instead of committing to `main`; `token`; `commit_message`.

        Returns:
            The commit. Its `oid` as a revision always loads these weights.

        Raises:
            PushError: the repo holds all of the old or all of the new; the message says what to do.

        """
        write = partial(self.save_pretrained, repo_id=repo_id, max_shard_size=max_shard_size)
        return push(write, repo_id, **options)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        repo_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> Model:
        """Load a generator and check it whole; runs no code from the repo.

        Args:
            repo_or_path: a local folder or a Hub repo id.
            revision: branch, tag or commit of the repo.
            subfolder: folder of the generator within the repo.
            token: access token for private repos.
            cache_dir: cache for repos; that of `huggingface_hub` if None.
            local_files_only: take a repo from the cache or not at all.
            dtype: of the weights, such as "bfloat16", which changes pixels; as they were saved if None.
            device: device of the weights; the CPU if None.

        Raises:
            LoadError: the generator is absent, damaged, of another class or of a newer format.
            ValueError: `dtype` is not a floating-point dtype.

        """
        source = {"revision": revision, "subfolder": subfolder, "token": token}
        source |= {"cache_dir": cache_dir, "local_files_only": local_files_only}
        return cls.load(*resolve(repo_or_path, (cls.__name__, *cls.other_names), **source), dtype, device)

    @classmethod
    def load(
        cls: type[Model],
        folder: Path,
        config: Mapping[str, Any],
        origin: str | None,
        dtype: str | torch.dtype | None,
        device: str | torch.device | None,
    ) -> Model:
        """Load from what `hf_gdd.hub.loading.resolve` returned; see `from_pretrained`."""
        wanted = floating_dtype(dtype)
        try:
            with default_dtype_restored():
                model = cls.read(folder, config, floating_dtype(config.get("weights_dtype")))
                model.register_to_config(format_version=config.get("format_version", 0))
                model.read_parts(folder, config)
        except LoadError:
            raise
        except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
            raise LoadError(
                f"The generator in {folder} could not be loaded: {error} Fetch or save it again."
            ) from error
        if "fingerprint" in config and config["fingerprint"] != model.fingerprint:
            raise LoadError(
                f"The weights in {folder} do not have the fingerprint that {CONFIG_NAME} names: they were changed or "
                "damaged after they were saved. Fetch or save them again."
            )
        model.report, model.origin = read_report(folder), origin
        return model.to(device=device, dtype=wanted)

    @classmethod
    def read(cls: type[Model], folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Model:
        """Build the generator of a config from checked weights, in the dtype given.

        Raises:
            LoadError: the weights are not exactly those that the config describes.
            Exception: any of those that `load` turns into a `LoadError`.

        """
        raise NotImplementedError

    def to(self: Model, *args: Any, **kwargs: Any) -> Model:
        """Move to a device or dtype as `torch.nn.Module.to` does; returns self."""
        raise NotImplementedError


class GeneratorModel(PretrainedGenerator, ModelMixin, ConfigMixin):
    """A generator that is one torch module; subclasses add a constructor and `make`."""

    config_name = CONFIG_NAME
    sampling: Any = Sampling()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a property, such as `teacher`, or any other attribute.

        torch would make a teacher a part of the weights instead.
        """
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, *args: Any, **kwargs: Any) -> "GeneratorModel":
        super()._apply(*args, **kwargs)
        self.move_parts()
        return self

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers."""
        return self.state_dict()

    def sample(self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None) -> Tensor:
        """Make images in eval mode and restore the mode; see `Generator.sample`."""
        training = self.training
        self.eval()
        try:
            return super().sample(labels, indices, seed, sampling)
        finally:
            self.train(training)

    def write(self, folder: Path, max_shard_size: str) -> None:
        """Write config.json and safetensors."""
        ModelMixin.save_pretrained(self, folder, max_shard_size=max_shard_size)
        remove_local_path(folder)

    @classmethod
    def read(cls: type[Model], folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Model:
        """Build the generator; see `PretrainedGenerator.read`."""
        check_files(folder)
        options = {"use_safetensors": True, "output_loading_info": True}
        model, info = ModelMixin.from_pretrained.__func__(cls, folder, torch_dtype=dtype, **options)
        check_loaded(model, info, folder)
        return model

    def to(self: Model, *args: Any, **kwargs: Any) -> Model:
        """Move to a device or dtype, without the warnings of diffusers; returns self."""
        return torch.nn.Module.to(self, *args, **kwargs)
