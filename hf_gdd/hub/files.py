"""Names and checks of the files in a generator's folder."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT_VERSION = 2
CONFIG_NAME, REPORT_NAME = "config.json", "report.json"
CODES, TEACHER = "codes.safetensors", "teacher"
WEIGHTS, INDEX = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
_NUMBER = "[0-9]" * 5
SHARDS = f"diffusion_pytorch_model-{_NUMBER}-of-{_NUMBER}.safetensors"
# A diffusion generator is a diffusers pipeline as well.
STOCK_PIPELINE = "DiTPipeline"
PIPELINE_NAME, SCHEDULER_FILE, PARTS = "model_index.json", "scheduler/scheduler_config.json", ("transformer", "vae")
# Patterns of every file of a generator beside config.json, card and picture. A load fetches these alone, so neither
# code nor pickles come along; a save and a push replace them, so nothing is left of other weights.
OWN_FILES = (
    *(REPORT_NAME, WEIGHTS, INDEX, SHARDS, CODES, PIPELINE_NAME, SCHEDULER_FILE),
    *(f"{part}/{name}" for part in (*PARTS, TEACHER) for name in (CONFIG_NAME, WEIGHTS, INDEX, SHARDS)),
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class LoadError(ValueError):
    """A generator could not be loaded; the message names file, cause and remedy."""


def is_own_file(name: str) -> bool:
    """Return True for a path in a generator's folder that a save or push replaces."""
    return any(fnmatchcase(name, pattern) for pattern in OWN_FILES)


def remove_local_path(folder: Path) -> None:
    """Remove from a saved config the local path that diffusers writes there."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    config.pop("_name_or_path", None)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def check_files(folder: Path) -> None:
    """Refuse a folder whose weights are not plain safetensors files in it.

    Raises:
        LoadError: there are no weights, only pickles, or an index of shards that names any other file.

    """
    if (folder / INDEX).is_file():
        _check_index(folder / INDEX)
    elif not (folder / WEIGHTS).is_file():
        pickles = [path.name for path in folder.iterdir() if path.suffix in _PICKLES]
        hint = f" {pickles[0]} is a pickle, which can run code and is never loaded." if pickles else ""
        raise LoadError(
            f"No {WEIGHTS} found in {folder}.{hint} Check the network and fetch it again, or have its author save it "
            "with save_pretrained."
        )


def _check_index(path: Path) -> None:
    try:
        shards = set(json.loads(path.read_text())["weight_map"].values())
        own = {name for name in shards if any(fnmatchcase(name, pattern) for pattern in (WEIGHTS, SHARDS))}
        strange = [name for name in shards if name not in own or not (path.parent / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{path} is not an index of shards ({error!r}). Fetch or save it again.") from error
    if strange:
        raise LoadError(f"{path} names {min(strange)!r}, no weights of this folder. Fetch or save it again.")


def check_loaded(model: nn.Module, info: dict[str, Any], folder: Path) -> None:
    """Refuse a model that is not exactly what its file should hold.

    diffusers leaves a missing tensor uninitialized and only warns.

    Args:
        model: as diffusers loaded it.
        info: the loading info of diffusers, with `missing_keys` and the like.
        folder: named in messages.

    Raises:
        LoadError: tensors are missing, unexpected, of another shape, or hold impossible values.

    """
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            raise LoadError(
                f"The weights in {folder} do not fit {CONFIG_NAME}: {problem.replace('_', ' ')} {info[problem][:5]}. "
                "The file is damaged or of another model: fetch or save it again."
            )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise LoadError(f"{name} in {folder} holds values that are not finite: the weights are damaged.")
        if name.endswith("running_var") and tensor.min() < 0:
            raise LoadError(f"{name} in {folder} holds negative variances: the weights are damaged.")
