"""Every recipe runs to its end, at sizes that take seconds."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from datasets import load_dataset
from diffusers import DiTPipeline
from kinds import parts

from hf_gdd import AutoGenerator, ImageTensors, Recipe, Trainer
from hf_gdd.classifiers import recipes
from hf_gdd.methods.diffusion_memory import config as diffusion
from hf_gdd.methods.global_local import config as global_local

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Make the presets and recipes of the scripts small."""
    for name in recipes.RECIPES:
        monkeypatch.setitem(recipes.RECIPES, name, Recipe(max_steps=3))
    for name in ("lite", "tiny"):
        changes = {"width": 4, "max_steps": 2, "pool": ("convnet1",), "inner_steps": 1}
        monkeypatch.setitem(global_local.PRESETS, name, global_local.PRESETS[name].changed(**changes))
        changes = {"width": 8, "heads": 2, "depth": 1, "vae_width": 8, "max_steps": 2, "num_inference_steps": 2}
        monkeypatch.setitem(diffusion.PRESETS, name, diffusion.PRESETS[name].changed(**changes))
    monkeypatch.setitem(diffusion.PRESETS, "paper", diffusion.PRESETS["paper"].changed(num_inference_steps=2))
    monkeypatch.setattr(Trainer, "save_pictures", lambda self: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def script(name):
    spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(report):
    return {row.name for row in report.results}


def test_digits(tmp_path, capsys):
    script("digits").main(tmp_path, n=1)
    methods = {"cgan", "cgan-continued", "dim", "global-local"}
    report = AutoGenerator.from_pretrained(tmp_path / "dim" / "generator").report
    assert names(report) == methods | {"random-real", "full data"}
    assert report.markdown() in capsys.readouterr().out
    assert len(ImageTensors.from_dataset(load_dataset("parquet", data_files=str(tmp_path / "ipc10.parquet")))) == 100


def test_global_local(tmp_path, capsys):
    settings = {"preset": "lite", "source": "digits", "max_steps": 1, "eval_steps": 2, "ipcs": (1,), "n": 1}
    script("global_local").main("mnist", output_dir=tmp_path, **settings)
    report = AutoGenerator.from_pretrained(tmp_path / "generator").report
    assert {row.protocol for row in report.results} == {"fixed", "dynamic"}
    assert report.recipe["floor"] == 0.985
    assert report.markdown() in capsys.readouterr().out


def test_diffusion_digits(tmp_path, capsys, monkeypatch):
    recipe = script("diffusion_digits")
    monkeypatch.setattr(recipe, "IMAGE_SEEDS", 2)
    monkeypatch.setattr(recipe, "IPCS", (1,))
    recipe.main(tmp_path, n=1)
    report = AutoGenerator.from_pretrained(tmp_path / "minimax" / "generator").report
    assert names(report) == {"dit", "minimax", "self-adaptive", "random-real", "full data"}
    assert capsys.readouterr().out.count("over dit") == 3


def test_imagenet_subsets(tmp_path, capsys, monkeypatch):
    recipe = script("imagenet_subsets")
    read = lambda data, split, image_size: ImageTensors.from_dataset(data, split, image_size=image_size // 16)  # noqa: E731
    monkeypatch.setattr(recipe, "ImageTensors", SimpleNamespace(from_dataset=read))
    pipeline = DiTPipeline(**parts(shape=(1, 16, 16)))
    pipeline.register_to_config(id2label={str(row): f"name {row}" for row in range(1000)})
    pipeline.save_pretrained(tmp_path / "stock")
    settings = {"ipcs": (1,), "networks": ("convnet1",), "n": 1, "max_steps": 1, "pretrained": str(tmp_path / "stock")}
    recipe.main("digits", "imagenette", output_dir=tmp_path / "run", test_split="test", **settings)
    generator = AutoGenerator.from_pretrained(tmp_path / "run" / "generator")
    assert generator.config.class_rows[:2] == (0, 217)
    assert generator.report.markdown() in capsys.readouterr().out


def test_make_digits(tmp_path, monkeypatch):
    sklearn = {"sklearn.datasets": SimpleNamespace(), "sklearn.model_selection": SimpleNamespace()}
    stored = {split: ImageTensors.from_dataset("digits", split) for split in ("train", "test")}
    images = np.concatenate([part.images[:, 0].numpy() for part in stored.values()])
    labels = np.concatenate([part.labels.numpy() for part in stored.values()])
    digits = SimpleNamespace(images=np.round(images.astype(float) * 16 / 255), target=labels)
    sklearn["sklearn.datasets"].load_digits = lambda: digits
    split = lambda rows, test_size, **options: (rows[:-test_size], rows[-test_size:])  # noqa: E731
    sklearn["sklearn.model_selection"].train_test_split = split
    for name, module in {"sklearn": SimpleNamespace(), **sklearn}.items():
        monkeypatch.setitem(sys.modules, name, module)
    recipe = script("make_digits")
    monkeypatch.setattr(recipe, "DIGITS", tmp_path)
    recipe.main()
    for name, part in stored.items():
        rows = load_dataset("parquet", data_files=str(tmp_path / f"{name}.parquet"), split="train")
        assert ImageTensors.from_dataset(rows).fingerprint == part.fingerprint
