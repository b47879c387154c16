"""Every recipe runs to its end, at sizes that take seconds."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from datasets import load_dataset
from diffusers import DiTPipeline
from kinds import parts

from hf_gdd import AutoGenerator, ImageTensors, Recipe, Trainer
from hf_gdd.classifiers import recipes
from hf_gdd.cli import main as cli
from hf_gdd.generators.base import class_grid
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
        changes["teacher_cache"] = str(tmp_path / "teachers")
        monkeypatch.setitem(global_local.PRESETS, name, global_local.PRESETS[name].changed(**changes))
        changes = {"width": 8, "heads": 2, "depth": 1, "vae_width": 8, "max_steps": 2, "num_inference_steps": 2}
        changes["teacher_cache"] = str(tmp_path / "teachers")
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


def test_digits(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, folder = script("digits"), Path("runs/digits")
    recipe.main(folder, n=2, n_real=3)
    generators = {name: AutoGenerator.from_pretrained(folder / name / "generator") for name in recipe.METHODS}
    best, report, printed = generators["global-local"], generators["dim"].report, capsys.readouterr().out
    assert {name: (each.distilled_ipc, each.has_soft_labels) for name, each in generators.items()} == {
        "cgan": (0, False),
        "dim": (0, False),
        "global-local": (50, True),
    }
    assert report == best.report
    rows = {(row.name, row.protocol, row.sampling, row.ipc): len(row.accuracies) for row in report.results}
    distilled, drawn = (f"truncation=1.0, distilled={x}" for x in (True, False))
    expected = {("random-real", "fixed", None, ipc): 3 if ipc == 10 else 2 for ipc in (1, 10, 50)}
    expected |= {("herding", "fixed", None, ipc): 2 for ipc in (1, 10, 50)}
    expected |= {("global-local", "fixed", how, ipc): 2 for how in (distilled, drawn) for ipc in (1, 10, 50)}
    expected |= {(name, "fixed", "truncation=1.0", 10): 2 for name in ("cgan", "dim")}
    expected |= {("random-real", "soft", None, 10): 3, ("global-local", "soft", distilled, 10): 2}
    expected |= {("global-local", "dynamic", drawn, 10): 2}
    expected |= {("full data", "fixed", None, None): 2, ("teacher", "fixed", None, None): 1}
    assert rows == expected
    assert printed.startswith("Against random real images with hard labels: ")
    assert report.markdown() in printed
    stored = ImageTensors.from_dataset(load_dataset("parquet", data_files=str(folder / "ipc10.parquet")))
    labels, indices = class_grid(10, 10)
    assert torch.equal(stored.images, best.sample(labels, indices))
    assert torch.equal(stored.soft_labels, best.soft_labels(labels, indices))

    # It ends by saying where things are and what to type.
    places, _, commands = printed[printed.index("Generator:") :].partition("Next:\n")
    paths = re.findall(r"runs/[\w./-]+", places)
    assert len(paths) == 7
    missing = {path for path in paths if not Path(path).exists()}
    assert missing <= {f"{folder}/global-local/samples", f"{folder}/global-local/losses.png"}  # pictures are left out
    verbs = [cli._parse(shlex.split(line)[1:]) for line in commands.splitlines()]
    assert [type(verb).__name__ for verb in verbs] == ["Show", "Materialize", "Push", "Distill"]


def test_global_local(tmp_path, capsys):
    settings = {"preset": "lite", "source": "digits", "max_steps": 1, "eval_steps": 2, "ipcs": (1,), "n": 1}
    script("global_local").main("mnist", output_dir=tmp_path, codes_ipc=3, **settings)
    generator = AutoGenerator.from_pretrained(tmp_path / "generator")
    report = generator.report
    assert generator.distilled_ipc == 3
    assert {row.protocol for row in report.results} == {"fixed", "soft", "dynamic"}
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
