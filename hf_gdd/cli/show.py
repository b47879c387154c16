"""`hf-gdd show`: print what a generator is, without its weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from hf_gdd.generators.auto import CLASSES
from hf_gdd.hub.files import CONFIG_NAME, REPORT_NAME, STOCK_PIPELINE, LoadError
from hf_gdd.hub.loading import read_report, resolve

_MOST_NAMES = 10


@dataclass(frozen=True)
class Show:
    """Print what a generator is, and its report.

    Only its config and report are read, so nothing large is fetched from the Hub.
    """

    generator: Positional[str]
    """folder or Hub repo id of a generator"""
    revision: str | None = None
    """branch, tag or commit of the repo"""

    def __call__(self) -> None:
        """Print kind, classes, images, labels, origin and report."""
        accept = (*CLASSES, STOCK_PIPELINE)
        folder, config, origin = resolve(self.generator, accept, revision=self.revision, files=(REPORT_NAME,))
        try:
            lines = [f"{name + ':':<11}{text}" for name, text in describe(config)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LoadError(f"{CONFIG_NAME} in {folder} is damaged ({error!r}): fetch or save it again.") from error
        report = read_report(folder)
        lines.append(f"{'From:':<11}{origin or folder}")
        lines += ["", report.markdown() if report else "Not evaluated yet: hf-gdd evaluate adds the report."]
        text = "\n".join(lines)
        print("".join(x if x.isprintable() or x == "\n" else "?" for x in text))  # it may come from a stranger


def describe(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the title and text of every line about a generator.

    Args:
        config: of the generator, or the index of a stock pipeline, which has no record of images and training.

    """
    training, ipc = config.get("training") or {}, config.get("ipc")
    method, seed = training.get("method"), training.get("seed")
    yield "Kind", config["_class_name"] + (f", trained by {method}, seed {seed}" if method else "")
    if training.get("source"):
        license = training.get("license") or "not named"
        yield "Data", f"{training['source']}, license {license if isinstance(license, str) else ', '.join(license)}"
    names = list(config["class_names"] if "class_names" in config else config.get("id2label", {}).values())
    yield "Classes", f"{len(names)}: {', '.join(names[:_MOST_NAMES])}{', ...' * (len(names) > _MOST_NAMES)}"
    if config.get("image_shape"):
        channels, height, width = config["image_shape"]
        count = f"{ipc} of every class" if ipc else "as many as you ask for"
        yield "Images", f"{count}, {width}x{height} pixels, {'gray' if channels == 1 else 'color'}"
    distilled = config.get("distilled_ipc")
    none = "all" if ipc else "none, every image is a plain draw"
    yield "Distilled", f"the first {int(distilled)} of every class, at seed 0" if distilled else none
    yield "Labels", _labels(config.get("teacher"))


def _labels(teacher: Mapping[str, Any] | str | None) -> str:
    """Describe the labels; earlier versions named the teacher's architecture alone."""
    if not teacher:
        return "hard"
    record = {"network": teacher} if isinstance(teacher, str) else teacher
    share = record.get("accuracy")
    right = "" if share is None else f" that classifies {share:.1%} of the real training images correctly"
    return f"hard, and soft ones by a {record['network']}{right}"
