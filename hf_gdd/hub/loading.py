"""From a repo id or a folder to a local folder whose contents may be trusted, or a clear refusal."""

import contextlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT_VERSION = 1
CONFIG_NAME, REPORT_NAME = "config.json", "report.json"
WEIGHTS, INDEX = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
SHARDS = "diffusion_pytorch_model-*-of-*.safetensors"
# The files of a diffusers pipeline, which a diffusion generator is as well.
STOCK_PIPELINE = "DiTPipeline"
PIPELINE_NAME, SCHEDULER_FILE, PARTS = "model_index.json", "scheduler/scheduler_config.json", ("transformer", "vae")
# All that is ever fetched beside the config: neither code nor pickles can come along.
LOADED = (
    *(REPORT_NAME, WEIGHTS, INDEX, SHARDS, PIPELINE_NAME, SCHEDULER_FILE),
    *(f"{part}/{name}" for part in PARTS for name in (CONFIG_NAME, WEIGHTS, INDEX, SHARDS)),
)
WEIGHT_FILE = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
# What a push replaces, and a save clears first, so that nothing of other weights is left beside the new.
OWN_FILE = re.compile(
    rf"report\.json|model_index\.json|{SCHEDULER_FILE}|((transformer|vae)/)?{WEIGHT_FILE.pattern}|"
    r"(transformer|vae)/config\.json"
)


class LoadError(ValueError):
    """A generator could not be loaded; the message names the file, the cause and the remedy."""


def resolve(
    repo_or_path: str | Path,
    accept: Collection[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, dict[str, Any], str | None]:
    """The local folder of a generator and its config: the folder itself, or a snapshot of the Hub repo at one commit.

    The config is fetched and judged first, the weights at the same commit after it.

    Args:
        repo_or_path: the folder, or the repo id.
        accept: the classes that the caller can load.
        revision: branch, tag or commit of the repo.
        subfolder: of the folder or repo.
        token: for private repos.
        cache_dir: where repos are kept; that of `huggingface_hub` if None.
        local_files_only: take a repo from the cache or not at all.

    Returns:
        Folder, config, and for a repo its `me/generator@<sha>`.

    Raises:
        LoadError: neither a folder with a generator nor a repo that can be reached, or another class of generator.

    """
    folder, sub = Path(repo_or_path), Path(subfolder or "")
    if ".." in sub.parts or sub.is_absolute():
        raise LoadError(f"subfolder {subfolder!r} leads out of {repo_or_path}: name one inside it.")
    if folder.is_dir():
        if revision is not None:
            raise LoadError(f"{folder} is a local folder, which has no revision {revision!r}: leave revision out.")
        config = read_config(folder / sub, accept)
        return folder / sub, config, None

    fetch = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    prefix = f"{sub.as_posix()}/" if subfolder else ""
    stock = prefix + PIPELINE_NAME if STOCK_PIPELINE in accept else None
    path = Path(_download(str(repo_or_path), prefix + CONFIG_NAME, revision, instead=stock, **fetch))
    config, sha = read_config(path.parent, accept), path.parents[len(sub.parts)].name
    _download(str(repo_or_path), [prefix + name for name in LOADED], sha, **fetch)
    return path.parent, config, f"{repo_or_path}@{sha}" + (f"/{sub.as_posix()}" if subfolder else "")


def _download(
    repo: str, wanted: str | list[str], revision: str | None, *, instead: str | None = None, **fetch: Any
) -> str:
    """One file, another instead of it if there is none, or what matches patterns, in the cache."""
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    try:
        if isinstance(wanted, list):
            return snapshot_download(repo, revision=revision, allow_patterns=wanted, **fetch)
        try:
            return hf_hub_download(repo, wanted, revision=revision, **fetch)
        except (errors.RemoteEntryNotFoundError, errors.LocalEntryNotFoundError) as absent:
            with contextlib.suppress(errors.EntryNotFoundError):
                if instead is not None:
                    if isinstance(absent, errors.LocalEntryNotFoundError):  # no network: what is cached, at once
                        fetch |= {"local_files_only": True}
                    return hf_hub_download(repo, instead, revision=revision, **fetch)
            raise absent
    except errors.HFValidationError as error:
        raise LoadError(f"{repo!r} is neither a local folder nor a repo id such as 'me/generator'.") from error
    except errors.GatedRepoError as error:
        raise LoadError(
            f"{repo} is gated: ask for access on its page, then `hf auth login` or pass a token."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise LoadError(f"{repo} has no revision {revision!r}: pass a branch, tag or commit that it has.") from error
    except errors.RemoteEntryNotFoundError as error:
        raise LoadError(f"{repo} holds no {wanted}, so it is no generator: check the repo and subfolder.") from error
    except errors.RepositoryNotFoundError as error:
        raise LoadError(
            f"{repo!r} is no local folder, and no model repo of that name can be seen on the Hub: check the spelling; "
            "if it is private, pass a token or `hf auth login`."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise LoadError(
            f"{repo!r} is no local folder, the Hub cannot be reached, and nothing is cached: check the network, "
            "HF_ENDPOINT and HF_HUB_OFFLINE, or the path."
        ) from error
    except Exception as error:  # a cut connection surfaces as whatever the HTTP client of the day raises
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise LoadError(f"The Hub refused the token for {repo}: `hf auth login` again, or pass another.") from error
        raise LoadError(f"{repo} could not be fetched: {error} Check the network, and try again.") from error


def is_own_file(name: str) -> bool:
    """Return True for the path, within a generator's folder, of a file that a save or a push replaces."""
    return OWN_FILE.fullmatch(name) is not None


def remove_local_path(folder: Path) -> None:
    """Take out of a saved config where on this machine the model was once loaded from, which diffusers writes there."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    config.pop("_name_or_path", None)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_config(folder: Path, accept: Collection[str]) -> dict[str, Any]:
    """The generator's config, or the index of a stock pipeline, checked before anything is built from it.

    Raises:
        LoadError: absent, not JSON, no class name or another class than those of `accept`, from a newer hf_gdd, or
            one that asks for more than a plain load.

    """
    path = folder / CONFIG_NAME
    if not path.is_file() and STOCK_PIPELINE in accept and (folder / PIPELINE_NAME).is_file():
        path = folder / PIPELINE_NAME
    if not path.is_file():
        nested = [path.parent.name for path in sorted(folder.glob(f"*/{CONFIG_NAME}"))]
        hint = f"; did you mean its subfolder {nested[0]!r}?" if nested else ": save one there with save_pretrained."
        raise LoadError(f"{folder} holds no {CONFIG_NAME}, so it is no generator{hint}")
    try:
        config = json.loads(path.read_text())
        name, version = config["_class_name"], config.get("format_version", 0)
        if not isinstance(name, str) or not isinstance(version, int):
            raise TypeError(f"_class_name {name!r}, format_version {version!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{path} is not the config of a generator ({error!r}). Fetch or save it again.") from error
    if name not in accept:
        raise LoadError(
            f"{path} describes a {name!r}, not a {' or '.join(accept)}. AutoGenerator picks among the classes of this "
            "library; is it another library's?"
        )
    if version > FORMAT_VERSION:
        raise LoadError(f"{path} has format {version}, newer than {FORMAT_VERSION}. Upgrade: pip install -U hf_gdd.")
    if "quantization_config" in config:
        raise LoadError(f"{path} asks for a quantizer, which no generator of this library has. Is it another's?")
    return config


def check_files(folder: Path) -> None:
    """Refuse a folder whose weights are not plain safetensors files in it.

    Raises:
        LoadError: there are none, only pickles, or an index that names anything else.

    """
    if (folder / INDEX).is_file():
        try:
            shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
            strange = sorted(
                name for name in shards if not WEIGHT_FILE.fullmatch(name) or not (folder / name).is_file()
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LoadError(f"{folder / INDEX} is no index of shards ({error!r}). Fetch or save it again.") from error
        if strange:
            raise LoadError(
                f"{folder / INDEX} names {strange[0]!r}, no weights of this folder. Fetch or save it again."
            )
    elif not (folder / WEIGHTS).is_file():
        pickles = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
        hint = f" Its {pickles[0]} is a pickle, which can run code and is never loaded." if pickles else ""
        raise LoadError(
            f"{folder} holds no {WEIGHTS}.{hint} Check the network and fetch it again, or have its author save it with "
            "save_pretrained."
        )


def check_loaded(model: nn.Module, info: dict[str, Any], folder: Path) -> None:
    """Refuse a model that is not exactly what the file should hold.

    diffusers leaves a missing tensor uninitialized with only a warning, so silence is not proof.

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
