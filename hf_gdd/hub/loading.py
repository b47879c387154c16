"""Resolve a repo id or path to a local generator folder and check its config."""

import contextlib
import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hf_gdd.hub.files import (
    CONFIG_NAME,
    FORMAT_VERSION,
    OWN_FILES,
    PIPELINE_NAME,
    REPORT_NAME,
    STOCK_PIPELINE,
    LoadError,
)
from hf_gdd.hub.redaction import printable_cause, redact
from hf_gdd.report import Report

logger = logging.getLogger("hf_gdd")


def resolve(
    repo_or_path: str | Path,
    accept: Collection[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    files: Collection[str] = OWN_FILES,
) -> tuple[Path, dict[str, Any], str | None]:
    """Return the local folder and the config of a generator.

    A repo is fetched as a snapshot of one commit. The config is fetched and checked first, the weights after it.

    Args:
        repo_or_path: a folder or a repo id.
        accept: class names that the caller can load.
        revision: branch, tag or commit of the repo.
        subfolder: folder of the generator within the repo or folder.
        token: access token for private repos.
        cache_dir: cache for repos; that of `huggingface_hub` if None.
        local_files_only: take a repo from the cache or not at all.
        files: patterns of the files that are fetched beside the config.

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
        return folder / sub, read_config(folder / sub, accept), None

    from huggingface_hub import snapshot_download

    repo, prefix = str(repo_or_path), f"{sub.as_posix()}/" if subfolder else ""
    options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    try:
        stock = prefix + PIPELINE_NAME if STOCK_PIPELINE in accept else None
        path = _fetch_config(repo, prefix + CONFIG_NAME, stock, revision=revision, **options)
        config, sha = read_config(path.parent, accept), path.parents[len(sub.parts)].name
        snapshot_download(repo, allow_patterns=[prefix + name for name in files], revision=sha, **options)
    except LoadError:
        raise
    except Exception as error:  # a cut connection surfaces as whatever the HTTP client of the day raises
        message = _explain(error, repo, prefix + CONFIG_NAME, revision)
        raise LoadError(redact(message, token)) from printable_cause(error, token)
    return path.parent, config, f"{repo}@{sha}" + (f"/{sub.as_posix()}" if subfolder else "")


def _fetch_config(repo: str, name: str, instead: str | None, **options: Any) -> Path:
    """Download a file; if the repo has none, download `instead`."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, **options))
    except (errors.RemoteEntryNotFoundError, errors.LocalEntryNotFoundError) as absent:
        if instead is not None:
            if isinstance(absent, errors.LocalEntryNotFoundError):  # no network: do not wait for it again
                options["local_files_only"] = True
            with contextlib.suppress(errors.EntryNotFoundError):
                return Path(hf_hub_download(repo, instead, **options))
        raise


def _explain(error: Exception, repo: str, name: str, revision: str | None) -> str:
    """Return the message of a failed download: its cause and the remedy."""
    from huggingface_hub import errors

    messages = {  # the first that fits
        errors.HFValidationError: f"{repo!r} is neither a local folder nor a repo id such as 'me/generator'.",
        errors.GatedRepoError: f"{repo} is gated: ask for access on its page, then `hf auth login` or pass a token.",
        errors.RevisionNotFoundError: (
            f"{repo} has no revision {revision!r}: pass a branch, tag or commit that it has."
        ),
        errors.RemoteEntryNotFoundError: (
            f"No {name} found in {repo}; not an hf_gdd generator. Check the repo and subfolder."
        ),
        errors.RepositoryNotFoundError: (
            f"{repo!r} is no local folder, and no model repo of that name can be seen on the Hub: check the spelling; "
            "if it is private, pass a token or `hf auth login`."
        ),
        errors.LocalEntryNotFoundError: (
            f"{repo!r} is no local folder, the Hub cannot be reached, and nothing is cached: check the network, "
            "HF_ENDPOINT and HF_HUB_OFFLINE, or the path."
        ),
    }
    for kind, message in messages.items():
        if isinstance(error, kind):
            return message
    if getattr(getattr(error, "response", None), "status_code", None) == 401:
        return f"The Hub refused the token for {repo}: `hf auth login` again, or pass another."
    return f"{repo} could not be fetched: {error} Check the network, and try again."


def read_config(folder: Path, accept: Collection[str]) -> dict[str, Any]:
    """Read and check a generator's config, or the index of a stock pipeline.

    Raises:
        LoadError: the config is absent, not JSON, of another class than those of `accept`, of a newer format, or asks
            for more than a plain load.

    """
    path = folder / CONFIG_NAME
    if not path.is_file() and STOCK_PIPELINE in accept and (folder / PIPELINE_NAME).is_file():
        path = folder / PIPELINE_NAME
    if not path.is_file():
        nested = [path.parent.name for path in sorted(folder.glob(f"*/{CONFIG_NAME}"))]
        hint = f"Did you mean its subfolder {nested[0]!r}?" if nested else "Save one there with save_pretrained."
        raise LoadError(f"No {CONFIG_NAME} found in {folder}; not an hf_gdd generator. {hint}")
    try:
        config = json.loads(path.read_text())
        name, version = config["_class_name"], config.get("format_version", 0)
        if not isinstance(name, str) or not isinstance(version, int):
            raise TypeError(f"_class_name {name!r}, format_version {version!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{path} is not the config of a generator ({error!r}). Fetch or save it again.") from error
    if name not in accept:
        raise LoadError(
            f"{path} describes a {name!r}, not a {' or '.join(accept)}. AutoGenerator loads every class of this "
            "library; is it another library's?"
        )
    if version > FORMAT_VERSION:
        raise LoadError(f"{path} has format {version}, newer than {FORMAT_VERSION}. Upgrade: pip install -U hf_gdd.")
    if "quantization_config" in config:
        raise LoadError(f"{path} asks for a quantizer, which no generator of this library has. Is it another's?")
    return config


def read_report(folder: Path) -> Report | None:
    """Return the report in a folder, or None.

    A damaged report is left out with a warning, so that good weights stay loadable.
    """
    path = folder / REPORT_NAME
    if not path.is_file():
        return None
    try:
        report = Report.load(path)
        report.markdown()  # values of a wrong type would only fail in the next save
        if not isinstance(report.train, str) or not isinstance(report.test, str):
            raise TypeError(f"train {report.train!r}, test {report.test!r}")
        return report
    except Exception as error:  # damaged JSON and wrong types fail in many ways
        logger.warning("The report %s is damaged and left out: %s", path, error)
        return None
