"""Create the bundled digits, hf_gdd/data/digits/{train,test}.parquet.

The README.md there describes them.

This needs scikit-learn, which hf_gdd itself does not need: `pip install scikit-learn`.
"""

from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hf_gdd.data.decoding import dataset_features
from hf_gdd.data.loading import DIGITS
from hf_gdd.data.pixels import encode_png

SEED, TEST_ROWS = 0, 360


def write(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write uint8 images [N,8,8] and labels [N] as one parquet file."""
    pictures = [{"bytes": encode_png(image[None]), "path": None} for image in images]
    features = dataset_features([str(digit) for digit in range(10)])
    Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features).to_parquet(path)


def main() -> None:
    """Write both files."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    options = {"test_size": TEST_ROWS, "stratify": digits.target, "random_state": SEED}
    train, test = train_test_split(np.arange(len(images)), **options)
    DIGITS.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", np.sort(train)), ("test", np.sort(test))):
        path = DIGITS / f"{name}.parquet"
        write(path, images[rows], digits.target[rows])
        print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
