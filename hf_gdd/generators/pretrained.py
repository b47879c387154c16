"""Generators that are saved, loaded and pushed as a folder of config, safetensors, card and report."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from hf_gdd.generators.base import Generator
from hf_gdd.generators.sampling import Sampling
from hf_gdd.hub.cards import generator_card
from hf_gdd.hub.loading import (
    CONFIG_NAME,
    REPORT_NAME,
    LoadError,
    check_files,
    check_loaded,
    is_own_file,
    remove_local_path,
    resolve,
)
from hf_gdd.hub.upload import push
from hf_gdd.report import Report
from hf_gdd.utils.device import default_dtype_restored, floating_dtype
from hf_gdd.utils.io import atomic_folder

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.getLogger("hf_gdd")

Model = TypeVar("Model", bound="PretrainedGenerator")


class PretrainedGenerator(Generator):
    """Save, load and push a generator; a subclass implements `make`, `weights`, `write`, `read` and `place`.

    Example:
        generator.push_to_hub("me/cifar10-gdd")
        generator = ConditionalGANGenerator.from_pretrained("me/cifar10-gdd", revision="main")

    """

    @property
    def fingerprint(self) -> str:
        """The sha256 of kind, weights and buffers: equal fingerprints make equal images."""
        digest = hashlib.sha256(repr(self.kind).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def kind(self) -> tuple[Any, ...]:
        """Primitives that decide pixels beside weights and sampling: class, number of classes, image shape."""
        return type(self).__name__, self.num_classes, self.image_shape

    def write(self, folder: Path, max_shard_size: str) -> None:
        """Write config and weights."""
        raise NotImplementedError

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, max_shard_size: str = "10GB"
    ) -> None:
        """Write all that a push would: config.json, safetensors, grid.png, README.md and, if evaluated, report.json.

        The folder is replaced as a whole: a process killed at any moment leaves the old generator or the new one. Other
        files in it stay. A report of other weights than these is left out, with a warning.

        Args:
            save_directory: made if absent.
            repo_id: what the card tells people to load; the folder's name if None.
            max_shard_size: weights above it are split into several files.

        """
        target, report, fingerprint = Path(save_directory), self.report, self.fingerprint
        dtypes = [str(x.dtype).removeprefix("torch.") for x in self.weights.values() if x.is_floating_point()]
        self.register_to_config(
            sampling=self.sampling.identity(), fingerprint=fingerprint, weights_dtype=next(iter(dtypes), None)
        )
        if report is not None and not any(result.generator == fingerprint for result in report.results):
            logger.warning("The report is of other weights than these, so it is not saved with them.")
            report = None
        with atomic_folder(target, replaced=is_own_file) as folder:
            self.write(folder, max_shard_size)
            self.grid().save(folder / "grid.png")
            if report is not None:
                report.save(folder / REPORT_NAME)
            card = generator_card(repo_id or target.resolve().name, self.config, report)
            (folder / "README.md").write_text(card, encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
        max_shard_size: str = "10GB",
    ) -> "CommitInfo":
        """Save to a temporary folder and push that as one commit.

        Args:
            repo_id: of a model repo; made if absent.
            private: of a repo made here; the account's default if None.
            revision: the branch; made if absent, `main` if None.
            create_pr: open a pull request rather than commit to `main`.
            token: with write access; the logged-in one if None.
            commit_message: of the commit.
            max_shard_size: weights above it are split into several files.

        Returns:
            The commit; its `oid` pins these weights for ever.

        Raises:
            PushError: the repo holds all of the old or all of the new; the message says what to do.

        """
        return push(
            lambda folder: self.save_pretrained(folder, repo_id=repo_id, max_shard_size=max_shard_size),
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=commit_message,
        )

    @classmethod
    def saved_as(cls) -> tuple[str, ...]:
        """Return the class names by which a config may name this one."""
        return (cls.__name__,)

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
        """Load a generator, or refuse with the reason; never leaves a tensor unset.

        Args:
            repo_or_path: a local folder or a Hub repo id.
            revision: branch, tag or commit of the repo.
            subfolder: where in it the generator lies.
            token: for private repos.
            cache_dir: where repos are kept; that of `huggingface_hub` if None.
            local_files_only: take a repo from the cache or not at all.
            dtype: of the weights, such as "bfloat16", which changes pixels; that they were saved in if None.
            device: where to put it; the CPU if None.

        Raises:
            LoadError: the generator is absent, damaged, of another class or of a newer format.
            ValueError: `dtype` is none of floating point.

        """
        place = {"revision": revision, "subfolder": subfolder, "token": token}
        place |= {"cache_dir": cache_dir, "local_files_only": local_files_only}
        return cls.load(*resolve(repo_or_path, cls.saved_as(), **place), dtype, device)

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
        except LoadError:
            raise
        except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
            raise LoadError(
                f"The generator in {folder} could not be loaded: {error} Fetch or save it again."
            ) from error
        if "fingerprint" in config and config["fingerprint"] != model.fingerprint:
            raise LoadError(
                f"The weights in {folder} are not those that {CONFIG_NAME} names by their fingerprint: they were "
                "changed or damaged after they were saved. Fetch or save them again."
            )
        model.report, model.origin = _read_report(folder), origin
        return model.place(device, wanted)

    @classmethod
    def read(cls: type[Model], folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Model:
        """Build the generator of this config from a folder whose files were checked, in the dtype it was saved in.

        Raises:
            LoadError: the weights are not exactly those that the config describes.
            Exception: any of those that `load` turns into a `LoadError`.

        """
        raise NotImplementedError

    def place(self: Model, device: str | torch.device | None, dtype: torch.dtype | None) -> Model:
        """Move to a device and dtype; returns self. None leaves either as it is."""
        raise NotImplementedError


class GeneratorModel(PretrainedGenerator, ModelMixin, ConfigMixin):
    """A generator that is one torch module; a subclass implements `make` and `__init__`."""

    config_name = CONFIG_NAME
    sampling: Any = Sampling()

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers."""
        return self.state_dict()

    def sample(self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None) -> Tensor:
        """Make images in eval mode, whatever mode the module is in; see `Generator.sample`."""
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

    def place(self: Model, device: str | torch.device | None, dtype: torch.dtype | None) -> Model:
        """Move to a device and dtype; see `PretrainedGenerator.place`."""
        # diffusers' own `to` warns of every cast, though no part of a generator needs another precision.
        return torch.nn.Module.to(self, device=device, dtype=dtype)


def _read_report(folder: Path) -> Report | None:
    """Read the report of a folder; None, with a warning, if it cannot be read: good weights stay loadable."""
    path = folder / REPORT_NAME
    if not path.is_file():
        return None
    try:
        return Report.load(path)
    except (ValueError, OSError) as error:
        logger.warning("The report beside the weights is left out: %s", error)
        return None
