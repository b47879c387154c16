"""Open a split of a `datasets` object, a folder or a Hub data set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # datasets takes over half a second to import, so each function that needs it does so
    from datasets import Dataset, DatasetDict

    Source = Dataset | DatasetDict | str | Path

DIGITS, CARD = Path(__file__).parent / "digits", "README.md"


def open_split(data: Source, split: str | None) -> tuple[Dataset, str, str | list[str] | None]:
    """Open one split of a data set.

    Args:
        data: see `ImageTensors.from_dataset`.
        split: name of the split; None for "train", or for the split that a `Dataset` is.

    Returns:
        The split, its source such as "digits:train", and the license its card names, or None.

    Raises:
        TypeError: `data` is of another type.
        ValueError: the data set cannot be read, or has no such split.

    """
    from datasets import Dataset, DatasetDict, load_dataset

    name = card = None
    if data == "digits":
        name, card, data = "digits", DIGITS / CARD, _bundled_digits()
    elif isinstance(data, (str, Path)):
        folder = Path(data).expanduser()
        name, card = (folder.resolve().name, folder / CARD) if folder.is_dir() else (str(data), None)
        try:
            data = load_dataset(str(folder))
        except (FileNotFoundError, ConnectionError, RuntimeError) as error:  # of an unknown folder or id, or a script
            state = "cannot be read as a data set" if folder.is_dir() else "does not exist"
            reason = str(error).rstrip(".")
            raise ValueError(
                f"Data set {str(data)!r} cannot be loaded. The local folder {state}; the Hub says: {reason}. Check the "
                "spelling, the network and, for a private data set, your login."
            ) from error
    if isinstance(data, DatasetDict):
        wanted = split or "train"
        if wanted not in data:
            raise ValueError(f"There is no split {wanted!r}: pass split=... with one of {list(data)}.")
        data, split = data[wanted], None
    if not isinstance(data, Dataset):
        raise TypeError(
            f"data is a {type(data).__name__}: pass a datasets.Dataset or DatasetDict (not a streaming one), "
            "a folder, a Hub id or 'digits'."
        )
    if split not in (None, str(data.split)):
        raise ValueError(
            f"This Dataset is already one split ({data.split}) and has no split {split!r}: leave split out, or pass "
            "the DatasetDict."
        )
    if pinned := _repo_and_commit(data):
        name, card = "@".join(pinned), _hub_card(*pinned)
    name = name or data.info.dataset_name or "unnamed"
    return data.with_format(None), f"{name}:{data.split}" if data.split else name, _license(card)


def _repo_and_commit(data: Dataset) -> tuple[str, str] | None:
    """Return the Hub repo and commit that a data set was loaded from, or None.

    Only the paths of its files contain them.
    """
    for address in data.info.download_checksums or ():
        if match := re.search(r"hf://datasets/([^@\s]+)@(\w+)/", address):
            return match[1], match[2]
    for file in data.cache_files:
        if match := re.search(r"/([^/]+)/[^/]+/[^/]+/([0-9a-f]{40})/[^/]+\.arrow$", Path(file["filename"]).as_posix()):
            return match[1].replace("___", "/"), match[2]
    return None


def _hub_card(repo: str, sha: str) -> Path | None:
    """Return the cached card of a Hub data set, or None.

    `load_dataset` has downloaded it, if there is one.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, CARD, repo_type="dataset", revision=sha, local_files_only=True))
    except OSError:
        return None


def _license(card: Path | None) -> str | list[str] | None:
    from huggingface_hub import DatasetCard

    if card is None or not card.is_file():
        return None
    return DatasetCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict().get("license")


def _bundled_digits() -> DatasetDict:
    # Read directly: load_dataset would copy the files to a cache, which may not be writable.
    import pyarrow.parquet as pq
    from datasets import Dataset, DatasetDict, NamedSplit

    tables = {name: pq.read_table(DIGITS / f"{name}.parquet") for name in ("train", "test")}
    return DatasetDict({name: Dataset(table, split=NamedSplit(name)) for name, table in tables.items()})
