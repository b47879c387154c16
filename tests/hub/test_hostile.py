"""Folders made to do harm end in a clear error: none of their code runs, and no memory is taken for their claims."""

import os
import resource
from pathlib import Path

import pytest

from hf_gdd import AutoGenerator, ConditionalGANGenerator
from hf_gdd.hub.loading import LoadError

HOSTILE = Path(__file__).parent / "hostile"
MESSAGES = {
    "pickle": "is a pickle, which can run code and is never loaded",
    "code": "describes a 'Evil', not a ConditionalGANGenerator",
    "other_library": "describes a 'UNet2DModel', not a",
    "path_like": "describes a '../code/evil', not a",
    "huge": "could not be loaded",
    "huge_numbers": "8 to 64 px",
    "huge_bank": "claims 60,000,000,000 bytes of images and labels, but the weights are",
    "deep": "not the config of a generator",
}


def attempt(folder, where, loader):
    """The error, and by how many MiB the peak of memory rose."""
    os.chdir(where)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        loader.from_pretrained(folder)
    except LoadError as error:
        return str(error), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return "it was loaded", 0


def prepare(folder):
    """A first load, so that imports count for nothing in what follows."""
    ConditionalGANGenerator(("a", "b"), (1, 8, 8), width=4).save_pretrained(folder)
    AutoGenerator.from_pretrained(folder)


@pytest.fixture(scope="module")
def victim(shared_client, tmp_path_factory):
    process = shared_client()
    process.run(prepare, tmp_path_factory.mktemp("good"))
    return process


def test_every_folder_is_tried():
    assert {path.name for path in HOSTILE.iterdir()} == set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_hostile_folder(victim, tmp_path, name):
    said, grown = victim.run(attempt, HOSTILE / name, tmp_path, AutoGenerator)
    assert MESSAGES[name] in said
    assert name in said
    assert not list(tmp_path.iterdir())
    assert grown < 100


@pytest.mark.parametrize("name", ["path_like", "code"])
def test_a_hostile_folder_that_claims_the_right_class(victim, tmp_path, name):
    """The same files under an honest class name: neither the index of shards nor the code is followed."""
    folder = tmp_path / name
    folder.mkdir()
    for path in (HOSTILE / name).iterdir():
        text = path.read_text().replace('"Evil"', '"ConditionalGANGenerator"')
        (folder / path.name).write_text(text.replace('"../code/evil"', '"ConditionalGANGenerator"'))
    (tmp_path / "cwd").mkdir()
    said, grown = victim.run(attempt, folder, tmp_path / "cwd", AutoGenerator)
    assert "no weights of this folder" in said or "No diffusion_pytorch_model.safetensors found" in said
    assert not list((tmp_path / "cwd").iterdir())
    assert grown < 100
