"""The code in README runs as it is printed, but for sizes that a test can wait for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from diffusers import DiTPipeline
from kinds import parts
from PIL import Image

from hf_gdd import AutoGenerator, classifiers
from hf_gdd.data.imagenet import SUBSETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def code(section, containing=""):
    """The Python of a section, the first that contains a text."""
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    return next(part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if containing in part)


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
    text = (
        text.replace('preset="paper"', 'preset="tiny", max_steps=2')
        .replace("n=5", "n=1")
        .replace("resnet18-dd", "resnet10-dd")
    )
    scope = {}
    exec(text, scope)
    assert len(scope["tiny"]) == 30
    assert "random-real IPC 10" in capsys.readouterr().out
    batch = next(iter(scope["stream"]))
    assert batch["image"].shape[1:] == (3, 32, 32)


def test_a_stock_pipeline(short_recipes, tmp_path):
    pipeline = DiTPipeline(**parts(shape=(3, 16, 16)))
    pipeline.register_to_config(id2label={str(row): f"name {row}" for row in range(1000)})
    pipeline.save_pretrained("stock")
    text = code("The diffusion generator").replace("steps=50", "steps=2")
    text = text.replace('"facebook/DiT-XL-2-256", revision="refs/pr/1", device="cuda"', '"stock"')
    scope = {}
    exec(text, scope)
    assert scope["woof"].num_rows == 100
    assert scope["woof"].features["label"].names[0] == SUBSETS["imagewoof"][0]


def test_the_trainer_of_transformers(short_recipes, tmp_path):
    pytest.importorskip("transformers", reason="transformers is no dependency; install it to run this")
    text = code("Publishing and consuming", "transformers")
    exec(text.replace("me/digits-gdd", str(ROOT / "model_cards/digits")), {})


@pytest.mark.parametrize("name", ["digits", "digits-memory", "digits-matching"])
def test_the_published_generator_is_the_one_in_the_table(name):
    generator = AutoGenerator.from_pretrained(ROOT / "model_cards" / name)
    tables = [part for part in generator.report.markdown().split("\n\n") if part.startswith("|")]
    card = (ROOT / "model_cards" / name / "README.md").read_text()
    for table in tables:
        assert table in README
        assert table in card
    scope = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("model_cards", f"{ROOT}/model_cards"), scope)
    assert len(scope["train"]) == 100


def test_nothing_is_left_to_fill_in():
    for path in (ROOT / "README.md", *(ROOT / "scripts").glob("*.py")):
        assert not re.search(r"HEADER|<!--|TODO|XXX", path.read_text()), path


def test_every_link_of_a_page_leads_to_a_file():
    for page in (ROOT / "README.md", *(ROOT / "model_cards").rglob("README.md")):
        for link in re.findall(r"\]\(([^):#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page, link)


def test_the_training_script_takes_real_and_distilled_images(tmp_path):
    script = [sys.executable, ROOT / "scripts/train_downstream.py", "--dataset", "digits", "--steps", "60"]
    generator = ["--generator", ROOT / "model_cards/digits"]
    environment = os.environ | {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for words, least in (([], 90), (generator, 60), ([*generator, "--stream"], 70)):
        done = subprocess.run(
            [*script, *words], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
        )
        assert float(re.search(r"([\d.]+) % of 360 real test images", done.stdout)[1]) > least
