"""Run the code of a docs page as a reader would, but for sizes that a test can wait for.

Blocks of a page run in order, in one folder and one scope. A block with a title is a file, which is written. A line
`<!-- not run: reason -->` or `<!-- needs: module -->` above a block keeps it out.
"""

import importlib
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*?) -->\n)?```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Replaced by small stand-ins: a data set and a model that would have to be fetched.
CIFAR10, DIT = "uoft-cs/cifar10", "facebook/DiT-XL-2-256"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the number of the line above its code."""

    language: str
    title: str | None
    code: str
    note: str
    line: int

    @property
    def needs(self):
        return self.note.removeprefix("needs: ") if self.note.startswith("needs: ") else None


def blocks(page):
    text = (ROOT / page).read_text()
    return [
        Block(
            match["language"],
            match["title"],
            match["code"],
            match["note"] or "",
            text[: match.start("code")].count("\n"),
        )
        for match in FENCE.finditer(text)
    ]


def commands(code):
    """The commands of a shell block, as lists of words."""
    lines = code.replace("\\\n", " ").splitlines()
    words = [word for line in lines for word in [*shlex.split(line, comments=True), "&&"]]
    found, command = [], []
    for word in words:
        if word == "&&":
            found += [command] if command else []
            command = []
        else:
            command.append(word)
    return found


def hf_gdd_arguments(command):
    """The arguments of `hf-gdd`, also behind a launcher; None for another command."""
    return command[command.index("hf-gdd") + 1 :] if "hf-gdd" in command else None


def run_page(page, folder, run_commands=False, replace=None):
    """Run all blocks of a page in a folder; returns what its scope holds under names that stand for simple values.

    Args:
        page: path under the repository.
        folder: where to run; holds `model_cards` and what earlier pages leave behind.
        run_commands: run the page's `hf-gdd` commands rather than parse them.
        replace: pieces of code and what stands in for them; each must be there.

    """
    _shorten(folder)
    scope = {"__name__": "__main__"}
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    replace, before = dict(replace or {}), set(sys.modules)
    try:
        for block in blocks(page):
            if block.note:
                continue
            code = block.code
            for old in [old for old in replace if old in code]:
                code = code.replace(old, replace[old])
                replace[old] = None
            replace = {old: new for old, new in replace.items() if new is not None}
            if block.language == "bash":
                for command in commands(code):
                    _run_command(command, run_commands)
            elif block.title:
                Path(block.title).write_text(code)
                importlib.invalidate_caches()
            elif block.language == "python":
                exec(compile("\n" * block.line + code, page, "exec"), scope)
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]
    assert not replace, f"not on the page: {list(replace)}"
    return {name: value for name, value in scope.items() if isinstance(value, (int, float, str, list, tuple, dict))}


def _run_command(command, run):
    from hf_gdd.cli import main as cli

    arguments = hf_gdd_arguments(command)
    if arguments is None:
        for word in command:
            assert not re.fullmatch(r"scripts/\S+", word) or (ROOT / word).exists(), word
    elif run and command[0] == "hf-gdd":  # a launcher would start processes of its own
        assert cli.main(arguments) == 0, command
    else:
        cli._parse(arguments)


def _shorten(folder):
    """Few steps and small networks everywhere, and stand-ins for downloads."""
    import datasets

    from hf_gdd import AutoGenerator, Recipe, Trainer
    from hf_gdd.training.base import TrainerBase

    if not hasattr(Recipe, "whole"):
        Recipe.whole, Recipe.steps = Recipe.steps, lambda self, images: min(2, self.whole(images))
        TrainerBase.whole_configure = TrainerBase.configure.__func__
        TrainerBase.configure = classmethod(_short_configure)
        Trainer.save_pictures = lambda self: None
        datasets.whole_load_dataset, datasets.load_dataset = datasets.load_dataset, _load_dataset
        AutoGenerator.whole_from_pretrained = AutoGenerator.from_pretrained
        AutoGenerator.from_pretrained = staticmethod(_from_pretrained)
    if not (folder / "model_cards").exists():
        (folder / "model_cards").symlink_to(ROOT / "model_cards")
        _image_folder(folder / "my_images", size=24)


SHORT = {
    "GlobalLocalTrainer": {"width": 8, "pool": ("convnet1",), "inner_steps": 1},
    "DiffusionMemoryTrainer": {"width": 16, "depth": 1, "num_inference_steps": 2},
    "PredictionMatchingTrainer": {"teachers": 1, "teacher_epochs": 1, "student_epochs": 1, "snapshots": 1},
}


def _short_configure(cls, preset=None, config=None, **overrides):
    from hf_gdd.training.base import TrainerBase

    config = TrainerBase.whole_configure(cls, preset, config, **overrides)
    short = {"max_steps": 2} | SHORT.get(cls.__name__, {})
    return config.changed(**{name: value for name, value in short.items() if name not in overrides})


def _load_dataset(path, *arguments, **options):
    import datasets

    if path != CIFAR10:
        return datasets.whole_load_dataset(path, *arguments, **options)
    features = datasets.Features(
        img=datasets.Image(), label=datasets.ClassLabel(names=[f"class {i}" for i in range(10)])
    )
    splits = datasets.DatasetDict()
    for split, per_class in (("train", 12), ("test", 2)):
        labels = [label for label in range(10) for _ in range(per_class)]
        rows = {"img": [_picture(16, label) for label in labels], "label": labels}
        splits[split] = datasets.Dataset.from_dict(rows, features=features, split=split)
    return splits[options["split"]] if "split" in options else splits


def _from_pretrained(repo_or_path, **options):
    from diffusers import DiTPipeline
    from kinds import parts

    from hf_gdd import AutoGenerator

    if repo_or_path == DIT:
        pipeline = DiTPipeline(**parts(shape=(3, 16, 16)))
        pipeline.register_to_config(id2label={str(row): f"name {row}" for row in range(1000)})
        pipeline.save_pretrained("stock")
        repo_or_path, options = "stock", {}
    return AutoGenerator.whole_from_pretrained(repo_or_path, **options)


def _picture(size, number):
    pixels = np.random.default_rng(number).integers(0, 80, (size, size, 3), dtype=np.uint8)
    pixels[..., number % 3] += 100
    return Image.fromarray(pixels)


def _image_folder(root, size, per_class=12):
    for split in ("train", "test"):
        for number, name in enumerate(("circles", "lines", "spots")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                _picture(size, 3 * i + number).save(folder / f"{i}.png")
