"""ImageNet classes by WordNet id, and ten-class subsets from distillation papers."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

SYNSETS = Path(__file__).parent / "imagenet_synsets.txt"

# In the order of their local labels. IDC: the first ten of the list of a hundred in the public Minimax code.
_SUBSETS = {
    "imagenette": "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257",
    "imagewoof": "n02096294 n02093754 n02111889 n02088364 n02086240 n02089973 n02087394 n02115641 n02099601 n02105641",
    "imageidc": "n02869837 n01749939 n02488291 n02107142 n13037406 n02091831 n04517823 n04589890 n03062245 n01773797",
}
SUBSETS: dict[str, tuple[str, ...]] = {name: tuple(ids.split()) for name, ids in _SUBSETS.items()}


@cache
def synsets() -> tuple[str, ...]:
    """Return the WordNet ids of the 1,000 classes of ILSVRC 2012.

    They are in the label order of pretrained models.
    """
    return tuple(SYNSETS.read_text().split())


def class_rows_of(classes: Sequence[str], labels: Mapping[int, str]) -> tuple[int, ...]:
    """Return the label that a pretrained model uses for each class.

    Labels are looked up by name. A position in a sorted list of names would change with the subset.

    Args:
        classes: WordNet ids, full names as in `labels`, or one of the comma-separated names there.
        labels: the model's name of each label, as `id2label` in a pipeline's model_index.json.

    Raises:
        ValueError: a class is unknown, or a name is that of several classes.

    """
    rows = []
    for wanted in classes:
        if wanted in synsets() and len(labels) == len(synsets()):
            matches = [synsets().index(wanted)]
        else:
            key = _normalized(wanted)
            matches = [row for row, text in labels.items() if key == _normalized(text)]
            matches = matches or [row for row, text in labels.items() if key in map(_normalized, text.split(","))]
        if len(matches) != 1:
            reason = f"is the name of {len(matches)} classes" if matches else "is none of the model's classes"
            raise ValueError(
                f"{wanted!r} {reason}; name it as the model does, or by its WordNet id, such as n01440764."
            )
        rows += matches
    return tuple(rows)


def _normalized(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
