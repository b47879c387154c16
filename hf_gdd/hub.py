"""From a repo id or a folder to a local folder whose contents may be trusted, or a clear refusal."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"


class LoadError(ValueError):
    """A generator could not be loaded; the message names the file, the cause and the remedy."""


def resolve(
    repo_or_path: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
) -> Path:
    """The local folder of a generator: the folder itself, or a snapshot of the Hub repo at one commit.

    Raises:
        LoadError: neither a folder with a generator nor a repo that can be reached.

    """
    folder = Path(repo_or_path)
    if not folder.is_dir():
        folder = _download(str(repo_or_path), revision, token)
    folder = folder / (subfolder or "")
    if not (folder / CONFIG_NAME).is_file():
        nested = [path.parent.name for path in sorted(folder.glob(f"*/{CONFIG_NAME}"))]
        hint = f"; did you mean its subfolder {nested[0]!r}?" if nested else ": save one there with save_pretrained."
        raise LoadError(f"{folder} holds no {CONFIG_NAME}, so it is no generator{hint}")
    return folder


def _download(repo: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repo, revision=revision, token=token))
    except (HFValidationError, OSError, ValueError) as error:  # every Hub error is an OSError or a ValueError
        raise LoadError(
            f"{repo!r} is no local folder, and it could not be fetched from the Hub: {error} Check the path or the "
            "repo id, the revision, your network and, for a private repo, your token."
        ) from error


def read_config(folder: Path, expected: str | None = None) -> dict[str, Any]:
    """The generator's config, checked before anything is built from it.

    Args:
        folder: from `resolve`.
        expected: the class the caller wants; None for any.

    Raises:
        LoadError: not JSON, no class name, another class, or a format from a newer hf_gdd.

    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text())
        name, version = config["_class_name"], config.get("format_version", 0)
        if not isinstance(name, str) or not isinstance(version, int):
            raise TypeError(f"_class_name {name!r}, format_version {version!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{path} is not the config of a generator ({error!r}). Fetch or save it again.") from error
    if expected and name != expected:
        raise LoadError(
            f"{path} describes a {name}, not a {expected}. Load it with AutoGenerator, which picks the class."
        )
    if version > FORMAT_VERSION:
        raise LoadError(f"{path} has format {version}, newer than {FORMAT_VERSION}. Upgrade: pip install -U hf_gdd.")
    return config


def check_loaded(model: nn.Module, info: dict[str, Any], folder: Path) -> None:
    """Refuse a model that is not exactly what the file should hold.

    diffusers leaves a missing tensor uninitialised with only a warning, so silence is not proof.

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
