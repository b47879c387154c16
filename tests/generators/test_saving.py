"""Whenever a save is killed or fails, the folder holds one whole generator, and other files stay."""

import os
import re
import signal
import time

import numpy as np
import pytest
from kinds import KINDS
from PIL import Image

from hf_gdd import AutoGenerator
from hf_gdd.generators import pretrained
from hf_gdd.hub.loading import LoadError
from hf_gdd.report import Report, Result
from hf_gdd.utils import io

OTHERS = {"notes.txt": b"mine", "transformer/notes.txt": b"mine too", "deep/down/x.safetensors": b"\0"}


def generator_of(kind, seed):
    """A generator whose weights, config, report and card all show its seed."""
    generator = KINDS[kind](seed, training={"method": "test", "seed": seed})
    row = {"name": "test", "protocol": "fixed", "network": "n", "ipc": 1, "accuracies": (round(0.1 + seed / 10**4, 4),)}
    row |= {"seeds": (0,), "generator_seed": seed, "steps": 1, "distinct_images": 3, "stored_bytes": 1, "seconds": 1.0}
    results = (Result(**row, generator=generator.fingerprint),)
    generator.report = Report(results, "train", "test", {}, "real", "cpu")
    return generator


def put_others(folder):
    for name, content in OTHERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def check_folder(folder):
    """The seed of the generator in a folder, all of whose files must be of it."""
    generator = AutoGenerator.from_pretrained(folder)
    seed, card = generator.seed, (folder / "README.md").read_text()
    (row,) = generator.report.results
    assert (row.generator, row.generator_seed) == (generator.fingerprint, seed)
    assert f"| seed | {seed} |" in card
    assert f"value: {row.mean}" in card
    assert np.array_equal(np.asarray(Image.open(folder / "grid.png")), np.asarray(generator.grid()))
    assert {name: (folder / name).read_bytes() for name in OTHERS} == OTHERS
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert ("model_index.json" in names) == (type(generator).__name__ == "DiffusionGenerator")
    return seed


def fork(function):
    """Run a function in a child process, which ends when it returns."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(3)
    return child


def kill_while_saving(folder, kinds, first, moment):
    """Let a child save one generator after the other, and kill it at a moment (0 to 1) of its second save."""
    done, says_done = os.pipe()

    def save_for_ever():
        for seed in range(first, first + 100):
            generator_of(kinds[seed % len(kinds)], seed).save_pretrained(folder)
            os.write(says_done, b".")

    start = time.perf_counter()
    child = fork(save_for_ever)
    os.close(says_done)
    with open(done, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"."
    time.sleep(moment * (time.perf_counter() - start))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_moment_leaves_one_whole_generator(tmp_path, monkeypatch, exchange):
    if not exchange:  # as where the system has no call to exchange two names
        monkeypatch.setattr(io, "_renameat2", lambda a, b: False)
    folder, seeds, kills = tmp_path / "generator", set(), 12
    put_others(folder)
    for kill in range(kills):
        kill_while_saving(folder, list(KINDS), 100 * kill + kill % 3, (kill + 0.5) / kills)
        if not folder.exists():  # between two renames, which the next save mends
            assert not exchange
            generator_of("gan", 100 * kill + 99).save_pretrained(folder)
        seeds.add(check_folder(folder))
    assert len(seeds) == kills  # each had saved at least once


@needs_fork
def test_a_kill_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "_renameat2", lambda a, b: False)
    folder, rename = tmp_path / "generator", os.rename
    put_others(folder)
    generator_of("gan", 1).save_pretrained(folder)

    def die_after_the_first(old, new):
        rename(old, new)
        os._exit(0)

    def save():
        io.os.rename = die_after_the_first
        generator_of("gan", 2).save_pretrained(folder)

    os.waitpid(fork(save), 0)
    assert not folder.exists()
    with pytest.raises(LoadError, match="neither a local folder"):
        AutoGenerator.from_pretrained(folder)
    generator_of("gan", 3).save_pretrained(folder)
    assert check_folder(folder) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fixed", [False, True], ids=["replaced", "in place"])
def test_a_failed_save_leaves_the_former_whole(tmp_path, monkeypatch, kind, fixed):
    if fixed:  # as where the folder is a mount point
        monkeypatch.setattr(os.path, "ismount", lambda path: True)
    folder = tmp_path / "generator"
    put_others(folder)
    generator_of(kind, 1).save_pretrained(folder)
    names = sorted(tmp_path.rglob("*"))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "generator_card", fail)
        with pytest.raises(OSError, match="No space left"):
            generator_of(kind, 2).save_pretrained(folder)
    assert check_folder(folder) == 1
    assert sorted(tmp_path.rglob("*")) == names


def test_a_rename_that_fails_leaves_the_former_whole(tmp_path, monkeypatch):
    folder, rename = tmp_path / "generator", os.rename
    put_others(folder)
    generator_of("gan", 1).save_pretrained(folder)
    monkeypatch.setattr(io, "_renameat2", lambda a, b: False)

    def fail(old, new):
        if str(old).endswith(".part"):
            raise PermissionError("not here")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(PermissionError, match="not here"):
        generator_of("gan", 2).save_pretrained(folder)
    assert check_folder(folder) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["generator"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_point_is_filled_in_place(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    folder = tmp_path / "generator"
    put_others(folder)
    inode = folder.stat().st_ino
    generator_of("diffusion", 1).save_pretrained(folder)
    generator_of(kind, 2).save_pretrained(folder)
    assert check_folder(folder) == 2
    assert folder.stat().st_ino == inode
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("kind", KINDS)
def test_saving_through_a_link_replaces_the_folder_behind_it(tmp_path, kind):
    folder, link = tmp_path / "real", tmp_path / "link"
    put_others(folder)
    link.symlink_to(folder)
    for seed in (1, 2):
        generator_of(kind, seed).save_pretrained(link)
        assert link.is_symlink()
        assert check_folder(folder) == check_folder(link) == seed
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


def test_saving_to_the_working_folder_leaves_the_process_in_it(tmp_path, monkeypatch):
    folder = tmp_path / "generator"
    put_others(folder)
    monkeypatch.chdir(folder / "deep")
    for seed, path in ((1, ".."), (2, tmp_path / "generator")):
        generator_of("gan", seed).save_pretrained(path)
        assert os.getcwd() == str(folder / "deep")
        assert (folder / "deep").samefile(".")
        assert check_folder(folder) == seed
    assert (folder / "README.md").read_text().count("\n# generator\n") == 1


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file: choose another folder"):
        generator_of("gan", 1).save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_other_files_and_the_folders_permissions_stay_as_they_are(tmp_path):
    folder = tmp_path / "generator"
    put_others(folder)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("nowhere")
    folder.chmod(0o2750)
    inodes = {name: (folder / name).stat().st_ino for name in OTHERS}
    generator_of("gan", 1).save_pretrained(folder)
    assert check_folder(folder) == 1
    assert {name: (folder / name).stat().st_ino for name in OTHERS} == inodes  # links, not copies
    assert (folder / "empty").is_dir()
    assert os.readlink(folder / "link") == "nowhere"
    assert folder.stat().st_mode & 0o7777 == 0o2750


def test_a_report_of_other_weights_is_neither_saved_nor_left(tmp_path):
    generator_of("gan", 1).save_pretrained(tmp_path)
    bare = generator_of("gan", 2)
    bare.report = generator_of("gan", 1).report
    bare.save_pretrained(tmp_path)
    assert not (tmp_path / "report.json").exists()
    assert not re.search("value: ", (tmp_path / "README.md").read_text())
