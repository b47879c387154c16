"""Make the bundled digits: hf_gdd/data/digits/{train,test}.parquet and README.md.

Needs scikit-learn, which hf_gdd itself does not: `pip install scikit-learn`.
"""

from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hf_gdd.data.image_tensors import features
from hf_gdd.data.loading import DIGITS
from hf_gdd.data.pixels import encode_png

SEED, TEST_ROWS = 0, 360

README = f"""---
license: cc-by-4.0
pretty_name: Digits
task_categories: [image-classification]
size_categories: [1K<n<10K]
---

# Digits

1,797 handwritten digits as 8x8 gray images: 1,437 to train with and {TEST_ROWS} to test with.

**Source.** "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, license
[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). Taken from the copy that scikit-learn ships
(`sklearn.datasets.load_digits`), which is the test part of the original.

**Changes.** The 4-bit pixels 0..16 were scaled to 0..255 (round(value * 255 / 16)) and saved as PNG. The
split is ours: stratified by class and drawn with seed {SEED}, so the same writers can be in both parts.

**Columns.** `image` (Image) and `label` (ClassLabel "0" to "9"). Made by `scripts/make_digits.py`.
"""


def write(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write uint8 images [N,8,8] and labels [N] as one parquet file."""
    rows = {
        "image": [{"bytes": encode_png(image[None]), "path": None} for image in images],
        "label": labels.tolist(),
    }
    names = [str(digit) for digit in range(10)]
    Dataset.from_dict(rows, features=features(names)).to_parquet(path)


def main() -> None:
    """Write the three files."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=TEST_ROWS, stratify=digits.target, random_state=SEED
    )
    DIGITS.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", np.sort(train)), ("test", np.sort(test))):
        path = DIGITS / f"{name}.parquet"
        write(path, images[rows], digits.target[rows])
        print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")
    (DIGITS / "README.md").write_text(README)


if __name__ == "__main__":
    main()
