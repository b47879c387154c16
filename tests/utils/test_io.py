"""Files and folders are written whole or not at all, whenever the writer is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from hf_gdd.utils import io
from hf_gdd.utils.io import atomic_folder, atomic_write, load_state, save_state, write_json, write_text


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def write_half(path):
    with atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError("power cut")


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path, before):
    path = tmp_path / "report.json"
    if before:
        path.write_text(before)
    with pytest.raises(RuntimeError, match="power cut"):
        write_half(path)
    assert names(tmp_path) == (["report.json"] if before else [])
    assert not before or path.read_text() == before


def test_what_is_written_is_there(tmp_path):
    write_text(tmp_path / "a", "ä")
    write_json(tmp_path / "b", {"x": [1, 2]})
    assert (tmp_path / "a").read_text(encoding="utf-8") == "ä"
    assert (tmp_path / "b").read_text() == '{\n  "x": [\n    1,\n    2\n  ]\n}\n'
    assert names(tmp_path) == ["a", "b"]


def test_a_state_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    save_state(tmp_path / "state.pt", {"a": torch.arange(3)})
    with pytest.raises(Exception, match="pickle"):
        save_state(tmp_path / "state.pt", {"a": lambda: None})
    assert torch.equal(load_state(tmp_path / "state.pt")["a"], torch.arange(3))
    assert names(tmp_path) == ["state.pt"]


def write_folder(target, generation):
    with atomic_folder(target, replaced=lambda name: name.startswith("own")) as folder:
        (folder / "sub").mkdir()
        for name in ("own-a", "own-b", "sub/own-c"):
            (folder / name).write_text(str(generation))


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_another_and_leaves_what_is_not_its_own(tmp_path, monkeypatch, exchange):
    if not exchange:  # as on systems without such a call
        monkeypatch.setattr(io, "_renameat2", lambda a, b: False)
    target = tmp_path / "generator"
    (target / "notes").mkdir(parents=True)
    (target / "notes" / "mine.txt").write_text("keep me")
    (target / "own-old").write_text("0")
    for generation in (1, 2):
        write_folder(target, generation)
        assert names(target) == ["notes", "notes/mine.txt", "own-a", "own-b", "sub", "sub/own-c"]
        assert {(target / name).read_text() for name in ("own-a", "own-b", "sub/own-c")} == {str(generation)}
        assert (target / "notes" / "mine.txt").read_text() == "keep me"
        assert names(tmp_path) == ["generator", *(f"generator/{name}" for name in names(target))]


def write_half_a_folder(target):
    with atomic_folder(target, bool) as folder:
        (folder / "own-a").write_text("2")
        raise RuntimeError("power cut")


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path):
    write_folder(tmp_path / "generator", 1)
    with pytest.raises(RuntimeError, match="power cut"):
        write_half_a_folder(tmp_path / "generator")
    assert (tmp_path / "generator" / "own-a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["generator"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    write_folder(tmp_path / "real", 1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_folder(tmp_path / "link", 2)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "own-a").read_text() == "2"


def test_remains_of_a_process_that_is_gone_are_removed_and_those_of_a_living_one_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "_STALE", -1)
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, alive = (tmp_path / f".generator.{pid}.0000.part" for pid in (int(done.stdout), os.getppid()))
    for folder in (dead, alive):
        folder.mkdir()
    write_folder(tmp_path / "generator", 1)
    assert not dead.exists()
    assert alive.exists()


def write_for_ever(root):
    """The child of a fork: writes one generation after the other until it is killed."""
    for generation in range(1, 10**9):
        write_folder(root / "generator", generation)
        write_text(root / "run.yaml", str(generation % 10) * 50_000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_a_whole_folder_and_a_whole_file(tmp_path):
    write_folder(tmp_path / "generator", 0)
    generations = set()
    for attempt in range(25):
        if (child := os.fork()) == 0:
            try:
                write_for_ever(tmp_path)
            finally:
                os._exit(1)
        time.sleep(0.01 + 0.0037 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = {(tmp_path / "generator" / name).read_text() for name in ("own-a", "own-b", "sub/own-c")}
        assert len(found) == 1
        text = (tmp_path / "run.yaml").read_text() if (tmp_path / "run.yaml").exists() else ""
        assert text in ("", *(str(digit) * 50_000 for digit in range(10)))
        generations |= found
    assert len(generations) > 1  # the writer was killed at work
