"""From a `datasets` object, folder or Hub id to decoded pixels and labels, or an error that says what to do."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

if TYPE_CHECKING:  # datasets takes over half a second to import, so each function that needs it does so
    from datasets import Dataset, DatasetDict

    Source = Dataset | DatasetDict | str | Path

DIGITS, CARD = Path(__file__).parent / "digits", "README.md"
_CHUNK = 1024  # rows decoded at a time: bounds the extra memory


def open_split(data: Source, split: str | None) -> tuple[Dataset, str, str | list[str] | None]:
    """Return one split, where it comes from, and its license if its card names one."""
    from datasets import Dataset, DatasetDict, load_dataset

    name = card = None
    if data == "digits":
        name, card, data = "digits", DIGITS / CARD, _bundled_digits()
    elif isinstance(data, (str, Path)):
        folder = Path(data).expanduser()
        name, card = (folder.resolve().name, folder / CARD) if folder.is_dir() else (str(data), None)
        try:
            data = load_dataset(str(folder))
        except (FileNotFoundError, ConnectionError) as error:  # as datasets reports what is neither here nor there
            told = str(error).rstrip(".")
            raise ValueError(
                f"{str(data)!r} is no data set that can be read: as a local folder it is "
                f"{'unreadable' if folder.is_dir() else 'absent'}, and on the Hub: {told}. Check the spelling, the "
                "network and, for a private one, your login."
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
            f"This Dataset is already one split ({data.split}), which has no part {split!r}: leave split "
            "out, or pass the DatasetDict."
        )
    if pinned := _repo_and_commit(data):
        name, card = "@".join(pinned), _hub_card(*pinned)
    name = name or data.info.dataset_name or "unnamed"
    return data.with_format(None), f"{name}:{data.split}" if data.split else name, _license(card)


def _repo_and_commit(data: Dataset) -> tuple[str, str] | None:
    """Return where load_dataset fetched a data set of the Hub; only the places of its files tell."""
    for address in data.info.download_checksums or ():
        if found := re.search(r"hf://datasets/([^@\s]+)@(\w+)/", address):
            return found[1], found[2]
    for file in data.cache_files:
        if found := re.search(r"/([^/]+)/[^/]+/[^/]+/([0-9a-f]{40})/[^/]+\.arrow$", Path(file["filename"]).as_posix()):
            return found[1].replace("___", "/"), found[2]
    return None


def _hub_card(repo: str, sha: str) -> Path | None:
    """Return the card of a Hub data set, which load_dataset has left in the cache; None if it has none."""
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

    parts = {name: pq.read_table(DIGITS / f"{name}.parquet") for name in ("train", "test")}
    return DatasetDict({name: Dataset(table, split=NamedSplit(name)) for name, table in parts.items()})


def find_columns(dataset: Dataset, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    """Return the names of the one Image and the one ClassLabel column, or of those the caller names."""
    from datasets import ClassLabel, Image

    remedy = "make one with ds.cast_column(name, Image()), or pass image_column='...' if there is one"
    image = _find_column(dataset, Image, "image_column", image_column, remedy)
    remedy = "make one with ds.cast_column('label', ClassLabel(names=[...])) or ds.class_encode_column('label')"
    label = _find_column(dataset, ClassLabel, "label_column", label_column, remedy)
    return image, label


def _find_column(dataset: Dataset, kind: type, option: str, named: str | None, remedy: str) -> str:
    columns = list(dataset.features)
    found = [name for name in columns if isinstance(dataset.features[name], kind)]
    if named is not None:
        if named not in columns:
            raise ValueError(f"There is no column {named!r}: pass {option}=... with one of {columns}.")
        if named not in found:
            raise ValueError(f"Column {named!r} is {dataset.features[named]}, not {kind.__name__}: {remedy}.")
        return named
    if not found:
        raise ValueError(f"None of the columns {columns} is {kind.__name__}: {remedy}.")
    if len(found) > 1:
        raise ValueError(f"Several columns are {kind.__name__}, {found}: pass {option}={found[0]!r} or another.")
    return found[0]


def read_labels(dataset: Dataset, column: str) -> Tensor:
    """Return int64 [N]; ValueError if a row is unlabeled."""
    labels, names = dataset[column][:], dataset.features[column].names
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < len(names):
            raise ValueError(
                f"Row {row} has label {label}, outside 0..{len(names) - 1}: it is unlabeled or wrong; drop "
                "such rows with ds.filter(...), or take another split."
            )
    return torch.tensor(labels)


def read_soft_labels(dataset: Dataset, num_classes: int) -> Tensor | None:
    """Return float16 [N,K] of the column `soft_label`; None if there is none of the kind that our own sets have."""
    from datasets import List, Value

    if dataset.features.get("soft_label") != List(Value("float16"), length=num_classes):
        return None
    found = torch.from_numpy(np.asarray(dataset.with_format("numpy")["soft_label"][:], np.float16))
    if not found.isfinite().all():
        raise ValueError("Column 'soft_label' holds values that are not finite: drop the column, or repair it.")
    return found


def read_images(dataset: Dataset, column: str, image_size: int | None, progress: bool) -> Tensor:
    """Decode all rows to uint8 [N,C,H,W], C 3 if any of them is color."""
    import datasets

    decode_example = replace(dataset.features[column], decode=True).decode_example
    encoded = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False))

    def decode(row: int, value: dict | None) -> np.ndarray:
        try:
            image = decode_example(value or {"bytes": None, "path": None})  # it returns None for None
        except Exception as error:  # Pillow and its plugins raise many types
            raise ValueError(
                f"The image of row {row} cannot be read ({error}): repair the file, or drop the row with "
                "ds.select(...)."
            ) from error
        return _to_array(row, image, image_size)

    pixels = None
    hidden = {} if progress else {"disable": True}  # so that TQDM_DISABLE still counts
    bar = tqdm(total=len(dataset), desc="decoding", unit="image", delay=2, **hidden)
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(dataset), _CHUNK):
            values = encoded[start : start + _CHUNK][column]
            for row, array in enumerate(pool.map(decode, range(start, len(dataset)), values), start):
                if pixels is None:
                    pixels = np.empty((len(dataset), *array.shape), np.uint8)
                _check_same_size(row, array, pixels)
                if len(array) > pixels.shape[1]:
                    pixels = pixels.repeat(3, axis=1)
                pixels[row] = array
            bar.update(len(values))
    return torch.from_numpy(pixels)


def _check_same_size(row: int, array: np.ndarray, pixels: np.ndarray) -> None:
    (height, width), (first_height, first_width) = array.shape[1:], pixels.shape[2:]
    if (height, width) != (first_height, first_width):
        raise ValueError(
            f"Row 0 is {first_width}x{first_height} pixels but row {row} is {width}x{height}: pass "
            f"image_size={min(first_width, first_height)}, say, to resize and crop all to one square."
        )


def _to_array(row: int, image: Image.Image, image_size: int | None) -> np.ndarray:
    """Return uint8 [1,H,W] for black-and-white and gray, [3,H,W] for every kind of color."""
    if image.mode[0] in "IF":  # I, I;16, F and kin
        raise ValueError(
            f"The image of row {row} has 16-bit, 32-bit or float pixels (mode {image.mode!r}), which would "
            "be clipped silently: scale the pixels to 0..255 and save as 8 bits first."
        )
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def merge_licenses(*values: str | list[str] | None) -> list[str]:
    """All of them, each once, in order."""
    lists = [[value] if isinstance(value, str) else value or [] for value in values]
    return list(dict.fromkeys(item for items in lists for item in items))
