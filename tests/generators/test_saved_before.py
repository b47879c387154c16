"""Generators saved by earlier versions load as they were: the same weights, pixels, soft labels and reports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from kinds import diffusion

from hf_gdd import AutoGenerator

SAVED = Path(__file__).parents[2] / "model_cards"
# First two images of every class, soft labels and fingerprints, as the version that saved the generators had them.
BEFORE = np.load(Path(__file__).with_suffix("").with_name("saved_before.npz"))
NAMES = sorted({key.partition("/")[0] for key in BEFORE})
# Those that model_cards/ has in today's format, as they were.
OWN = Path(__file__).with_name("saved_before")


def load(name):
    folder = OWN / name if (OWN / name).is_dir() else SAVED / name
    if not (folder / "config.json").is_file():
        pytest.skip("model_cards/ is part of a clone, not of an installed package")
    return AutoGenerator.from_pretrained(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_saved_before_has_the_same_pixels_soft_labels_and_report(name):
    generator = load(name)
    labels, indices = torch.arange(10).repeat_interleave(2), torch.arange(2).repeat(10)
    images, before = generator.sample(labels, indices), torch.from_numpy(BEFORE[f"{name}/images"])
    if generator.config.format_version < 2:  # saved again, it has one that also covers the record
        assert generator.fingerprint == str(BEFORE[f"{name}/fingerprint"])
    assert (images.int() - before.int()).abs().max() <= 1  # another CPU may round differently
    soft = generator.soft_labels(labels, indices)
    assert (soft is not None) == (f"{name}/soft_labels" in BEFORE) == generator.has_soft_labels
    if soft is not None:
        assert np.array_equal(soft.numpy(), BEFORE[f"{name}/soft_labels"])
    assert any(row.generator == generator.fingerprint for row in generator.report.results)


def test_every_kind_is_tried_as_it_was_saved():
    formats = {type(load(name)).__name__ for name in NAMES if load(name).config.format_version < 2}
    assert formats == {"ConditionalGANGenerator", "DiffusionGenerator", "ImageBank"}


def test_every_generator_of_the_repo_is_tried():
    if SAVED.is_dir():
        assert {path.parent.name for folder in (SAVED, OWN) for path in folder.glob("*/config.json")} >= set(NAMES)
    assert len(NAMES) == 6


def test_a_stock_pipeline_loads_the_diffusion_generator():
    load("digits-memory")
    pipeline = DiTPipeline.from_pretrained(SAVED / "digits-memory")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(pipeline.get_label_ids(["3", "8"]), num_inference_steps=5, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    assert images.std() > 0.1


def test_a_config_with_the_former_names_of_sampling_loads(tmp_path):
    generator = diffusion(sampling={"guidance_scale": 1.5, "num_inference_steps": 2, "scheduler": "ddim"})
    generator.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["sampling"] = {"guidance": 1.5, "steps": 2, "scheduler": "ddim"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, one = AutoGenerator.from_pretrained(tmp_path), torch.tensor([1])
    assert (loaded.sampling, loaded.fingerprint) == (generator.sampling, generator.fingerprint)
    assert torch.equal(loaded.sample(one, one), generator.sample(one, one))
    assert loaded.sampling.cache_key == "DiffusionSampling(guidance=1.5, steps=2, scheduler='ddim')"
