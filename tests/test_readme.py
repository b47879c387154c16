"""The code in README runs as it is printed, but for sizes that a test can wait for."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_gdd import classifiers

README = (Path(__file__).parent.parent / "README.md").read_text()


def code(section):
    """The Python of a section."""
    return re.search(rf"## {section}\n.*?```python\n(.*?)```", README, re.DOTALL)[1]


def image_folder(root, size, per_class=20):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(("circles", "lines", "spots")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = generator.integers(0, 80, (size, size, 3), dtype=np.uint8)
                pixels[..., number] += 100
                Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def short_recipes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in classifiers.RECIPES:
        monkeypatch.setitem(classifiers.RECIPES, name, classifiers.Recipe(max_steps=4, lr=0.05))


def test_own_data_and_own_network(short_recipes, tmp_path, capsys):
    image_folder(tmp_path / "my_images", size=20)
    scope = {}
    exec(code("Your own data, your own network"), scope)
    assert scope["generator"].class_names == ("circles", "lines", "spots")
    assert scope["generator"].image_shape == (3, 20, 20)
    assert "MyNetwork" in capsys.readouterr().out
    assert (tmp_path / "runs/my_images/generator/config.json").exists()


def test_the_python_use(short_recipes, tmp_path, capsys):
    image_folder(tmp_path / "photos", size=32, per_class=12)
    text = code("From Python").replace('"uoft-cs/cifar10"', '"photos"')
    text = text.replace('preset="paper"', 'preset="tiny", max_steps=2').replace("n=5", "n=1")
    scope = {}
    exec(text, scope)
    assert len(scope["tiny"]) == 30
    assert "random-real IPC 10" in capsys.readouterr().out
    batch = next(iter(scope["stream"]))
    assert batch["image"].shape[1:] == (3, 32, 32)
