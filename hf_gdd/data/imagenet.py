"""ImageNet: its classes by WordNet id, the subsets that the diffusion papers distil, and their augmentation."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

SYNSETS = Path(__file__).parent / "imagenet_synsets.txt"

# In the order of their local labels. IDC: the first ten of the list of a hundred in the public Minimax code.
SUBSETS: dict[str, tuple[str, ...]] = {
    "imagenette": (
        *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
        *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
    ),
    "imagewoof": (
        *("n02096294", "n02093754", "n02111889", "n02088364", "n02086240"),
        *("n02089973", "n02087394", "n02115641", "n02099601", "n02105641"),
    ),
    "imageidc": (
        *("n02869837", "n01749939", "n02488291", "n02107142", "n13037406"),
        *("n02091831", "n04517823", "n04589890", "n03062245", "n01773797"),
    ),
}


@cache
def synsets() -> tuple[str, ...]:
    """The WordNet id of each of the 1,000 classes of ILSVRC 2012, in the order that pretrained models number them."""
    return tuple(SYNSETS.read_text().split())


def class_rows_of(classes: Sequence[str], labels: Mapping[int, str]) -> tuple[int, ...]:
    """The number under which a model knows each class: never by position in a sorted list, which a subset changes.

    Args:
        classes: names, as in `labels` or any one of the names parted by commas there, or WordNet ids.
        labels: what the model calls each number, as `id2label` in a pipeline's model_index.json.

    Raises:
        ValueError: a class is unknown, or a name stands for several.

    """
    rows = []
    for wanted in classes:
        if wanted in synsets() and len(labels) == len(synsets()):
            found = [synsets().index(wanted)]
        else:
            key = _plain(wanted)
            found = [row for row, text in labels.items() if key == _plain(text)]
            found = found or [row for row, text in labels.items() if key in map(_plain, text.split(","))]
        if len(found) != 1:
            said = f"is the name of {len(found)} classes" if found else "is none of the model's classes"
            raise ValueError(f"{wanted!r} {said}; name it as the model does, or by its WordNet id, such as n01440764.")
        rows += found
    return tuple(rows)


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
