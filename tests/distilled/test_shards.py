"""Sets are made in shards: none is made twice, whoever was killed, failed or shared the work."""

import errno
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch
from kinds import gan

import hf_gdd.distilled.builder
import hf_gdd.distilled.shards
import hf_gdd.utils.io
from hf_gdd import GenerativeDistilledDataset, ImageTensors, load_distilled_dataset
from hf_gdd.data.decoding import dataset_features
from hf_gdd.distilled.shards import ShardStore, ShardWriter
from hf_gdd.generators.sampling import Sampling

IPC, SIZE = 13, 5  # 39 images in 8 shards, the last of four, some of two classes
SHARDS = [range(start, min(start + SIZE, 39)) for start in range(0, 39, SIZE)]


class Fault(Exception):
    """What a test puts into the making."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(hf_gdd.distilled.builder, "SHARD_SIZE", SIZE)
    monkeypatch.setattr(hf_gdd.distilled.shards, "ENCODE_SIZE", 2)


def counting(at=None, act=None):
    """A GAN that notes the rows it is asked for, and calls `act` instead of making those from row `at` on."""
    generator = gan()
    sample, generator.asked = generator.sample, []

    def noting(labels, indices, *rest):
        rows = (labels * IPC + indices).tolist()
        if act is not None and rows[-1] >= at:
            act()
        generator.asked += rows
        return sample(labels, indices, *rest)

    generator.sample = noting
    return generator


def fail():
    raise Fault("the device is gone")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def make(folder, generator, **options):
    return load_distilled_dataset(generator, ipc=IPC, cache_dir=folder, **options)


def content(data):
    """The files of a set by their names."""
    return {Path(file["filename"]).name: Path(file["filename"]).read_bytes() for file in data.cache_files}


def stored(folder):
    """The files of finished shards."""
    return sorted(folder.rglob("*.parts/*/*.arrow"))


def in_child(function, *arguments, **options):
    """Run it in a fork of this process; the exit code."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments, kwargs=options)
    child.start()
    child.join(60)
    return child.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of the set as one uninterrupted run makes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_gdd.distilled.builder, "SHARD_SIZE", SIZE)
        return content(make(tmp_path_factory.mktemp("whole"), gan()))


def test_a_killed_run_goes_on_where_it_was(tmp_path, whole):
    assert in_child(make, tmp_path, counting(27, killed)) == -signal.SIGKILL
    # Rows 25 to 29 were being sampled, so 20 to 24 were not yet written.
    assert [file.name for file in stored(tmp_path)] == [f"{p.start:09}-{p.stop:09}.arrow" for p in SHARDS[:4]]
    generator = counting()
    assert content(make(tmp_path, generator)) == whole
    assert generator.asked == list(range(20, 39))
    assert not list(tmp_path.rglob("*.parts"))


@pytest.mark.parametrize("stop", [Fault, KeyboardInterrupt])
def test_what_stops_the_sampling_is_reported_and_leaves_no_thread(tmp_path, whole, stop):
    def act():
        raise stop("in row 27")

    with pytest.raises((datasets.exceptions.DatasetGenerationError, KeyboardInterrupt)) as raised:
        make(tmp_path, counting(27, act))
    assert stop("in row 27").args in (raised.value.args, getattr(raised.value.__cause__, "args", None))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("encode")]
    generator = counting()
    assert content(make(tmp_path, generator)) == whole
    assert generator.asked == list(range(20, 39))


def test_a_fault_of_the_encoding_is_reported(tmp_path, monkeypatch):
    def spoiled(image):
        raise Fault("no memory to encode")

    monkeypatch.setattr(hf_gdd.distilled.shards, "encode_png", spoiled)
    with pytest.raises(datasets.exceptions.DatasetGenerationError) as raised:
        make(tmp_path, gan())
    assert isinstance(raised.value.__cause__, Fault)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("encode")]
    assert not stored(tmp_path)


def test_more_processes_go_on_with_the_same_parts(tmp_path):
    in_child(make, tmp_path, counting(27, killed))
    generator = counting()
    sample = generator.sample

    def only_the_rest(labels, indices, *rest):
        assert int(labels[0] * IPC + indices[0]) >= 20
        return sample(labels, indices, *rest)

    generator.sample = only_the_rest
    images = ImageTensors.from_dataset(make(tmp_path, generator, num_proc=2), device="cpu").images
    assert torch.equal(images, gan().sample(torch.arange(39) // IPC, torch.arange(39) % IPC))


def test_two_processes_keep_their_shards(tmp_path):
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        make(tmp_path, counting(38, fail), num_proc=2)
    there = len(stored(tmp_path))
    assert there >= 2
    generator = counting()
    make(tmp_path, generator)
    assert len(generator.asked) == 39 - sum(len(rows) for rows in SHARDS[:there])


def test_a_full_disk_leaves_the_parts_that_are_there(tmp_path, monkeypatch, whole):
    generator, written, replace = counting(), [], os.replace

    def full(own, path):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        replace(own, path)

    with monkeypatch.context() as patch:
        patch.setattr(hf_gdd.utils.io.os, "replace", full)
        with pytest.raises(OSError, match=r"left on device: .* holds the set a second time until it is") as raised:
            make(tmp_path, generator)
    assert raised.value.errno == errno.ENOSPC
    folder = written[0].parent
    assert sorted(path for path in folder.iterdir() if ".arrow" in path.name) == sorted(written)
    again = counting()
    assert content(make(tmp_path, again)) == whole
    assert again.asked == list(range(2 * SIZE, 39))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[:99] + b"x" + b[100:], lambda b: b[:7], lambda b: b""]
)
def test_a_damaged_part_is_made_again(tmp_path, whole, damage):
    in_child(make, tmp_path, counting(27, killed))
    second = stored(tmp_path)[1]
    second.write_bytes(damage(second.read_bytes()))
    generator = counting()
    assert content(make(tmp_path, generator)) == whole
    assert generator.asked == [*range(5, 10), *range(20, 39)]


def test_parts_of_other_images_are_not_taken(tmp_path):
    in_child(make, tmp_path, counting(27, killed))
    for other in ({"seed": 1}, {"sampling": Sampling(0.5)}):
        generator = counting()
        make(tmp_path, generator, **other)
        assert len(generator.asked) == 39
    assert len(stored(tmp_path)) == 4


def test_a_set_of_one_part_stores_none(tmp_path, monkeypatch):
    monkeypatch.setattr(ShardStore, "write", fail)
    load_distilled_dataset(gan(), ipc=1, cache_dir=tmp_path)


# ---- the writer of shards


def writer(folder=None, generator=None):
    generator = generator or counting()
    schema = dataset_features(generator.class_names).arrow_schema
    return ShardWriter(generator, IPC, 0, generator.sampling, SIZE, schema, ShardStore(folder) if folder else None)


def test_the_generator_is_no_more_than_a_part_ahead():
    made = writer()
    tables = made.tables(made.shards)
    for number, table in enumerate(tables):
        assert len(made.generator.asked) <= (number + 2) * SIZE
        assert table["label"].to_pylist() == [row // IPC for row in SHARDS[number]]


def test_a_part_is_read_as_it_was_written(tmp_path):
    files = ShardStore(tmp_path / "new")
    table = pa.table({"label": [1, 2, 3]})
    assert files.read(range(3)) is None
    files.write(range(3), table)
    assert files.has(range(3))
    assert files.read(range(3)).equals(table)
    assert files.read(range(2)) is None
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["000000000-000000003.arrow"]


def test_a_folder_that_another_process_removes_meanwhile_is_no_error(tmp_path, monkeypatch):
    """It has completed the set, so the shard is not needed."""
    files, replace = ShardStore(tmp_path / "new"), os.replace
    monkeypatch.setattr(hf_gdd.utils.io.os, "replace", lambda *args: shutil.rmtree(files.folder) or replace(*args))
    files.write(range(3), pa.table({"label": [1, 2, 3]}))
    assert not files.folder.exists()


def shared(folder, generator=None, done=lambda: False):
    return list(writer(folder, generator).share(done))


def test_what_one_process_is_making_another_leaves_alone(tmp_path):
    one, other = counting(), counting()
    first, second = (writer(tmp_path, generator).share(lambda: False) for generator in (one, other))
    made = [next(first), *(next(second) for _ in range(6)), *first, *second]
    assert sum(made) == 39
    assert (one.asked, other.asked) == (list(range(10)), list(range(10, 39)))


def test_a_dead_process_leaves_its_part_to_others(tmp_path):
    assert in_child(shared, tmp_path, counting(27, killed)) == -signal.SIGKILL
    generator = counting()
    shared(tmp_path, generator)
    assert generator.asked == list(range(20, 39))


def holding(folder, begun, seconds):
    lock = ShardStore(folder).claim(SHARDS[3])
    assert lock is not None
    begun.set()
    time.sleep(seconds)
    killed()


def test_a_process_waits_for_the_last_part_only_while_its_maker_lives(tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    holder = context.Process(target=holding, args=(tmp_path, begun, 0.3))
    holder.start()
    assert begun.wait(60)
    generator = counting()
    shared(tmp_path, generator)
    holder.join()
    assert generator.asked == [row for rows in (*SHARDS[:3], *SHARDS[4:], SHARDS[3]) for row in rows]


def completing(folder, begun):
    files = ShardStore(folder / "parts")
    lock = files.claim(SHARDS[0])
    assert lock is not None
    begun.set()
    while not all(map(files.has, SHARDS[1:])):  # which the other process makes
        time.sleep(0.01)
    time.sleep(0.2)
    (folder / "done").touch()
    shutil.rmtree(files.folder, ignore_errors=True)  # the other may add its lock meanwhile
    time.sleep(0.2)


def test_a_process_that_waits_may_find_the_set_complete_and_its_parts_gone(tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    other = context.Process(target=completing, args=(tmp_path, begun))
    other.start()
    assert begun.wait(60)
    generator = counting()
    shared(tmp_path / "parts", generator, done=(tmp_path / "done").is_file)
    other.join()
    assert other.exitcode == 0
    assert not set(generator.asked) & set(SHARDS[0])


def test_nothing_is_made_of_a_set_that_is_complete(tmp_path):
    generator = counting()
    assert shared(tmp_path, generator, done=lambda: True) == []
    assert generator.asked == []


def test_a_failure_gives_the_parts_back(tmp_path):
    with pytest.raises(Fault):
        shared(tmp_path, counting(27, fail))
    generator = counting()
    shared(tmp_path, generator)
    assert generator.asked == list(range(20, 39))


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_a_launcher_waits_for_no_other(tmp_path, monkeypatch, whole, rank):
    """As where a script lets the main process go first, or where the others have died."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert content(make(tmp_path, gan(), num_proc=2)) == whole
    assert not list(tmp_path.rglob("*.parts"))


def test_files_of_a_killed_run_do_not_stay(tmp_path):
    builder = GenerativeDistilledDataset(gan(), IPC, cache_dir=str(tmp_path))
    left = Path(f"{builder.cache_dir}.incomplete") / "hf_gdd-train-00001-00000-of-NNNNN.arrow"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"part of a set")
    builder.download_and_prepare()
    assert {file.name for file in Path(builder.cache_dir).iterdir()} == {"hf_gdd-train.arrow", "dataset_info.json"}
