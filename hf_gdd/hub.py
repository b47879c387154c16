"""To and from the Hub: a repo id to a local folder whose contents may be trusted, or a clear refusal; and a push."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT_VERSION = 1
CONFIG_NAME, REPORT_NAME = "config.json", "report.json"
# All that is ever fetched: neither code nor pickles can come along.
LOADED = (CONFIG_NAME, REPORT_NAME, "*.safetensors", "*.safetensors.index.json")


class LoadError(ValueError):
    """A generator could not be loaded; the message names the file, the cause and the remedy."""


class PushError(RuntimeError):
    """A push failed, and the repo holds all of the old or all of the new; the message names cause and remedy."""


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
    if ".." in Path(subfolder or "").parts or Path(subfolder or "").is_absolute():
        raise LoadError(f"subfolder {subfolder!r} leads out of {repo_or_path}: name one inside it.")
    if not folder.is_dir():
        folder = _download(str(repo_or_path), revision, subfolder, token)
    elif revision is not None:
        raise LoadError(f"{folder} is a local folder, which has no revision {revision!r}: leave revision out.")
    folder = folder / (subfolder or "")
    if not (folder / CONFIG_NAME).is_file():
        nested = [path.parent.name for path in sorted(folder.glob(f"*/{CONFIG_NAME}"))]
        hint = f"; did you mean its subfolder {nested[0]!r}?" if nested else ": save one there with save_pretrained."
        raise LoadError(f"{folder} holds no {CONFIG_NAME}, so it is no generator{hint}")
    return folder


def _download(repo: str, revision: str | None, subfolder: str | None, token: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    prefix = f"{subfolder}/" if subfolder else ""
    try:
        wanted = {"allow_patterns": [prefix + name for name in LOADED], "ignore_patterns": prefix + "*/*"}
        return Path(snapshot_download(repo, revision=revision, token=token, **wanted))
    except errors.HFValidationError as error:
        raise LoadError(f"{repo!r} is neither a local folder nor a repo id such as 'me/generator'.") from error
    except errors.GatedRepoError as error:
        raise LoadError(
            f"{repo} is gated: ask for access on its page, then pass a token or `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise LoadError(f"{repo} has no revision {revision!r}: pass a branch, tag or commit that it has.") from error
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
        raise LoadError(f"{repo} could not be fetched: {error} Check your token and the network; try again.") from error


def push(
    write: Callable[[Path], None],
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Make a folder and upload it as one commit; a file that a former push left there and this one lacks is deleted.

    Args:
        write: fills the folder it is given.
        repo: id of the model repo; made if absent.
        private: of a repo made here; the account's default if None.
        revision: the branch; made if absent, `main` if None.
        create_pr: open a pull request rather than commit to `main`.
        token: with write access; the logged-in one if None.
        commit_message: of the commit.

    Returns:
        The address of the commit, a `huggingface_hub.CommitInfo`.

    Raises:
        ValueError: `create_pr` with `revision`.
        PushError: no file was changed, or all were and the answer was lost; repo and branch may have been made.

    """
    from huggingface_hub import HfApi, errors

    if create_pr and revision is not None:
        raise ValueError("A pull request goes to the main branch: leave revision out, or create_pr.")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        try:
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            return api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or "Push generator with hf_gdd",
                delete_patterns=list(LOADED),
            )
        except errors.HFValidationError as error:
            raise PushError(f"{repo!r} is no repo id: pass one such as 'me/generator'.") from error
        except Exception as error:  # of the Hub, of the disk, or whatever the HTTP client of the day raises
            raise PushError(
                f"The push to {repo} failed: {error} The repo holds what it held before, or all of the new if only the "
                "answer was lost. Log in with `hf auth login` or pass a token that may write there, check the name "
                "and the network, and push again."
            ) from error


def origin(folder: Path) -> str | None:
    """The repo and commit, `me/generator@<sha>`, that a folder of the cache is a snapshot of; None for another."""
    found = re.search(r"models--([^/]+)/snapshots/(\w+)", folder.as_posix())
    return f"{found[1].replace('--', '/')}@{found[2]}" if found else None


def forget_place(folder: Path) -> None:
    """Take out of a saved config where on this machine the model was once loaded from, which diffusers writes there."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    config.pop("_name_or_path", None)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


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
