"""What every generator of this library shares: its record, sampling in tiles, saving with its evidence, pushing."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from hf_gdd.data.pixels import tanh_to_uint8
from hf_gdd.generators.base import check_request
from hf_gdd.hub.cards import generator_card
from hf_gdd.hub.loading import CONFIG_NAME, REPORT_NAME, LoadError, own_files, resolve
from hf_gdd.hub.upload import push
from hf_gdd.report import Report
from hf_gdd.utils.device import keep_freed_memory
from hf_gdd.utils.plotting import image_grid

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.getLogger("hf_gdd")

# Images are always made this many at a time, padded if need be: kernels round differently for other batch sizes.
TILE = {"cpu": 64}
DEFAULT_TILE = 512
GRID_COLUMNS, GRID_ROWS = 10, 100

Model = TypeVar("Model", bound="SavedGenerator")


class SavedGenerator:
    """A generator with a diffusers config; a subclass writes `make`, `weights`, `write`, `read` and `place`."""

    config: Mapping[str, Any]
    device: torch.device
    max_ipc: int | None = None
    report: Report | None = None
    origin: str | None = None
    sampling: Any

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return tuple(self.config.class_names)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.config.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.config.image_shape)

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the real training images in unit range, per channel."""
        return tuple(self.config.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Of the real training images in unit range, per channel."""
        return tuple(self.config.std)

    @property
    def method(self) -> str:
        """The training method's name."""
        return (self.config.training or {}).get("method", "untrained")

    @property
    def seed(self) -> int | None:
        """Of the training."""
        return (self.config.training or {}).get("seed")

    @property
    def license(self) -> str | list[str] | None:
        """Of the training data, as its card names it."""
        return (self.config.training or {}).get("license")

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Every tensor that decides pixels, by name."""
        raise NotImplementedError

    @property
    def stored_bytes(self) -> int:
        """The size of the weights and buffers."""
        return sum(tensor.nbytes for tensor in self.weights.values())

    @property
    def fingerprint(self) -> str:
        """The sha256 of class, image shape, weights and buffers: equal fingerprints make equal images."""
        digest = hashlib.sha256(repr(self.kind).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def kind(self) -> tuple[Any, ...]:
        """What decides pixels beside weights and sampling, as primitives."""
        return type(self).__name__, self.num_classes, self.image_shape

    @property
    def tile(self) -> int:
        """How many images are made at a time, always as many on one device type."""
        return TILE.get(self.device.type, DEFAULT_TILE)

    def make(self, labels: Tensor, indices: Tensor, seed: int, sampling: Any) -> Tensor:
        """Images in [-1, 1], one for each entry; each may depend on its own entry alone."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None) -> Tensor:
        """Make images, pixel for pixel the same in any batch on one device type and version.

        Args:
            labels: int64 [B].
            indices: int64 [B], the number of each image within its class.
            seed: another seed gives another image for every (label, index).
            sampling: overrides `self.sampling`.

        Returns:
            uint8 [B, C, H, W] on the generator's device.

        Raises:
            ValueError: a label or an index is out of range, or `sampling` is another kind of generator's.

        """
        check_request(self, labels, indices)
        sampling = self.sampling if sampling is None else sampling
        if type(sampling) is not type(self.sampling):
            raise ValueError(f"This generator is sampled by a {type(self.sampling).__name__}, not {sampling!r}.")
        if self.device.type == "cpu":
            keep_freed_memory()
        size = self.tile
        pad = (0, -len(labels) % size)
        # To wait here for a GPU would be to wait for the images it was asked for before these.
        padded = (F.pad(x, pad).to(self.device, non_blocking=True) for x in (labels, indices))
        tiles = list(zip(*(x.split(size) for x in padded), strict=True))
        bar = tqdm(tiles, desc="sampling", unit="img", unit_scale=size, delay=2, leave=False, dynamic_ncols=True)
        images = [tanh_to_uint8(self.make(*tile, seed, sampling)) for tile in bar]
        empty = torch.empty(0, *self.image_shape, dtype=torch.uint8, device=self.device)
        return torch.cat([empty, *images])[: len(labels)]

    def soft_labels(self, labels: Tensor, indices: Tensor) -> Tensor | None:
        """None: the labels of a conditional generator are hard."""
        return None

    def grid(self, seed: int = 0) -> Any:
        """A picture of the first images of each of the first 100 classes, a class a row."""
        shown, width = min(self.num_classes, GRID_ROWS), min(GRID_COLUMNS, self.max_ipc or GRID_COLUMNS)
        labels = torch.arange(shown).repeat_interleave(width)
        columns = torch.arange(width).repeat(shown)
        return image_grid(self.sample(labels, columns, seed), width, self.class_names[:shown])

    def write(self, folder: Path, max_shard_size: str) -> None:
        """Write config and weights."""
        raise NotImplementedError

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, max_shard_size: str = "10GB"
    ) -> None:
        """Write all that a push would: config.json, safetensors, grid.png, README.md and, if evaluated, report.json.

        A report of other weights than these is left out, with a warning.

        Args:
            save_directory: made if absent.
            repo_id: what the card tells people to load; the folder's name if None.
            max_shard_size: weights above it are split into several files.

        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for path in own_files(folder):  # first, so that a kill leaves no generator rather than a mixed one
            path.unlink()
        fingerprint = self.fingerprint
        dtypes = [str(x.dtype).removeprefix("torch.") for x in self.weights.values() if x.is_floating_point()]
        self.register_to_config(
            sampling=self.sampling.identity(), fingerprint=fingerprint, weights_dtype=next(iter(dtypes), None)
        )
        self.write(folder, max_shard_size)
        self.grid().save(folder / "grid.png")
        report = self.report
        if report is not None and not any(result.generator == fingerprint for result in report.results):
            logger.warning("The report is of other weights than these, so it is not saved with them.")
            report = None
        if report is not None:
            report.save(folder / REPORT_NAME)
        card = generator_card(repo_id or folder.resolve().name, self.config, report)
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
        """The classes by which a config may name this one."""
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
        """Load what `hf_gdd.hub.loading.resolve` found; see `from_pretrained`."""
        wanted = floating(dtype)
        try:
            model = cls.read(folder, config, floating(config.get("weights_dtype")))
            if (folder / REPORT_NAME).is_file():
                model.report = Report.load(folder / REPORT_NAME)
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
        model.origin = origin
        return model.place(device, wanted)

    @classmethod
    def read(cls: type[Model], folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Model:
        """The generator of this config from a folder whose files were checked, in the dtype it was saved in.

        Raises:
            LoadError: the weights are not exactly those that the config describes.
            Exception: any of those that `load` turns into a `LoadError`.

        """
        raise NotImplementedError

    def place(self: Model, device: str | torch.device | None, dtype: torch.dtype | None) -> Model:
        """Itself, after a move to this device and dtype; None leaves either as it is."""
        raise NotImplementedError


def floating(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name.

    Raises:
        ValueError: it is none of floating point.

    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}; pass one of floating point, such as 'float32' or 'bfloat16'.")
    return found
