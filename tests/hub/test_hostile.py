"""Folders made to do harm end in a clear error: none of their code runs, and no memory is taken for their claims."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
from kinds import labeled

from hf_gdd import AutoGenerator
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


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def prepare(folder):
    """A first load, so that imports count for nothing in what follows."""
    labeled().save_pretrained(folder)
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


def huge_codes(folder):
    """A header and a config that agree on 16 GB, of which the file holds a few bytes."""
    edit(folder / "config.json", distilled_ipc=30_000_000)
    size = 3 * 30_000_000 * 90 * 2
    header = json.dumps({"codes": {"dtype": "F16", "shape": [3, 30_000_000, 90], "data_offsets": [0, size]}}).encode()
    (folder / "codes.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0" * 1000)


def pickled_teacher(folder):
    (folder / "teacher" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copy(HOSTILE / "pickle" / "diffusion_pytorch_model.bin", folder / "teacher")


def teacher_of_other_files(folder):
    index = {"metadata": {}, "weight_map": {"classifier.linear.weight": "../codes.safetensors"}}
    (folder / "teacher" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (huge_codes, "codes.safetensors cannot be read"),
        (lambda f: edit(f / "config.json", distilled_ipc=10**15), "distilled_ipc is 1000000000000000"),
        (pickled_teacher, "is a pickle, which can run code and is never loaded"),
        (lambda f: edit(f / "teacher" / "config.json", image_shape=[3, 10**6, 10**6]), "teacher does not fit"),
        (lambda f: edit(f / "teacher" / "config.json", class_names=["x"] * 10**6), "teacher does not fit"),
        (lambda f: edit(f / "teacher" / "config.json", network="vgg11"), "could not be loaded"),
        (lambda f: edit(f / "teacher" / "config.json", _class_name="../code/evil"), "describes a '../code/evil'"),
        (
            lambda f: edit(f / "teacher" / "config.json", auto_map={"AutoModel": "evil.Evil"}, mean="x"),
            "could not be loaded",
        ),
        (teacher_of_other_files, "no weights of this folder"),
    ],
)
def test_hostile_codes_and_teachers(victim, tmp_path, harm, message):
    labeled().save_pretrained(tmp_path / "folder")
    shutil.copy(HOSTILE / "code" / "evil.py", tmp_path / "folder" / "teacher")
    harm(tmp_path / "folder")
    (tmp_path / "cwd").mkdir()
    said, grown = victim.run(attempt, tmp_path / "folder", tmp_path / "cwd", AutoGenerator)
    assert message in said
    assert not list((tmp_path / "cwd").iterdir())
    assert grown < 100
