"""A run folder is one process's at a time, and says whose."""

import json
import os
import shutil
import signal
import socket
import time

import pytest

from hf_gdd.training.run_folder import OWNER_FILE, RunFolder

IDENTITY = {"trainer": "Test", "config": {"seed": 0}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("end", ["exit", "kill"])
def test_a_second_process_is_refused_by_name_until_the_first_one_ends(tmp_path, end):
    ready, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            run = RunFolder(tmp_path / "run", IDENTITY)
            run.lock()
            run.claim()
            os.write(write, b"1")
            time.sleep(60 if end == "kill" else 0.3)
            run.unlock()
        finally:
            os._exit(0)
    os.read(ready, 1)
    other = RunFolder(tmp_path / "run", IDENTITY)
    with pytest.raises(ValueError, match=f"in use by process {child} on {socket.gethostname()}: wait for it"):
        other.lock()
    if end == "kill":
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    other.lock()
    assert json.loads((tmp_path / "run" / OWNER_FILE).read_text())["process"] == os.getpid()
    other.unlock()
    other.unlock()
    assert (tmp_path / "run" / "run.yaml").is_file()
    assert OWNER_FILE not in names(tmp_path / "run")


def test_a_folder_that_got_nothing_is_removed(tmp_path):
    run = RunFolder(tmp_path / "deep" / "run", IDENTITY)
    run.lock()
    run.unlock()
    assert not (tmp_path / "deep" / "run").exists()


def test_what_a_killed_process_wrote_in_part_is_removed(tmp_path):
    run = RunFolder(tmp_path, IDENTITY)
    (tmp_path / "checkpoints").mkdir()
    for path in (tmp_path / "run.yaml.1234.part", tmp_path / "checkpoints" / "step-000000004.pt.1.part"):
        path.write_text("half")
    (tmp_path / ".generator.1.0000.part").mkdir()  # of a save that was killed: the next save clears it
    run.lock()
    run.unlock()
    assert not [path for path in tmp_path.rglob("*.part") if path.is_file()]


def test_locking_twice_is_unlocked_once(tmp_path):
    run = RunFolder(tmp_path / "run", IDENTITY)
    run.lock()
    run.lock()
    run.claim()
    run.unlock()
    RunFolder(tmp_path / "run", IDENTITY).lock()


def test_a_folder_that_vanished_is_unlocked_without_a_word(tmp_path):
    run = RunFolder(tmp_path / "run", IDENTITY)
    run.lock()
    shutil.rmtree(tmp_path / "run")
    run.unlock()
    assert not run._lock.is_locked
