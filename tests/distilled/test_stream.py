"""Streams: epoch 0 is the set, every epoch has its own images, and they resume where they stood."""

import itertools
import subprocess
import sys
from collections import Counter

import pytest
import torch
from kinds import gan
from plain_sets import PlainGenerator, make, pixels, requests

import hf_gdd.distilled.stream
from hf_gdd import DistilledStream
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.generators.sampling import Sampling


@pytest.fixture
def calls(monkeypatch):
    """Counts how often any GAN is asked for images."""
    counted, sample = [], ConditionalGANGenerator.sample

    def counting(self, labels, *args, **options):
        counted.append(len(labels))
        return sample(self, labels, *args, **options)

    monkeypatch.setattr(ConditionalGANGenerator, "sample", counting)
    return counted


def stream(generator=None, ipc=5, seed=3, batch_size=4, **options):
    return DistilledStream(generator or gan(), ipc, seed, batch_size, **options)


def epoch_of(data):
    """One epoch: its images, its labels and the sizes of its batches."""
    batches = list(data)
    images, labels = (torch.cat([batch[key] for batch in batches]) for key in ("image", "label"))
    return images, labels, [len(batch["label"]) for batch in batches]


def rows(images, labels):
    """As a multiset of (label, pixels)."""
    return Counter(
        (label, bytes(image.flatten().tolist())) for image, label in zip(images, labels.tolist(), strict=True)
    )


def same(batches, others):
    """True if two sequences of batches are equal in order, sizes, pixels and labels."""
    return len(batches) == len(others) and all(
        a.shape == b.shape and torch.equal(a, b)
        for one, other in zip(batches, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def pairs(data):
    return [(batch["image"], batch["label"]) for batch in data]


def test_epoch_0_is_the_set(tmp_path):
    data = make(tmp_path, gan(), 5, seed=3)
    images, labels, _ = epoch_of(make(tmp_path, gan(), 5, seed=3, streaming=True))
    assert rows(images, labels) == rows(pixels(data), torch.tensor(data["label"]))


def test_every_epoch_has_its_own_indices():
    generator = gan()
    data = stream(generator)
    for epoch in range(3):
        images, labels, _ = epoch_of(data)
        wanted, indices = requests(5, start=5 * epoch)
        assert rows(images, labels) == rows(generator.sample(wanted, indices, 3), wanted)
        assert Counter(labels.tolist()) == {0: 5, 1: 5, 2: 5}
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64


def test_epochs_share_no_image_and_no_order():
    data = stream(PlainGenerator(), batch_size=15)
    epochs = [epoch_of(data)[:2] for _ in range(3)]
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in epochs])
    assert len(seen.unique()) == 45
    orders = {tuple((images[:, 0, 0, 0] - 5 * epoch).tolist()) for epoch, (images, _) in enumerate(epochs)}
    assert len(orders) == 3
    assert all(list(order) != sorted(order) for order in orders)


def test_seed_and_sampling_reach_the_stream():
    generator = gan()
    base, other, calm = (
        epoch_of(stream(generator, seed=seed, sampling=sampling))
        for seed, sampling in ((3, None), (4, None), (3, Sampling(0.25)))
    )
    wanted = requests(5)
    assert rows(*other[:2]) == rows(generator.sample(*wanted, 4), wanted[0])
    assert rows(*calm[:2]) == rows(generator.sample(*wanted, 3, Sampling(0.25)), wanted[0])
    assert torch.equal(base[1], calm[1])
    assert not torch.equal(base[1], other[1])


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 15), (4, [4, 4, 4, 3]), (7, [5, 5, 5]), (15, [15]), (999, [15]), (None, [15])]
)
def test_batches_are_of_nearly_equal_size(batch_size, sizes):
    data = stream(PlainGenerator(), batch_size=batch_size)
    assert epoch_of(data)[2] == sizes
    assert (data.batches_per_epoch, data.images_per_epoch) == (len(sizes), 15)


def test_no_batch_is_a_small_rest():
    assert epoch_of(stream(PlainGenerator(), ipc=7, batch_size=5))[2] == [5, 4, 4, 4, 4]


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 6, 8])
def test_a_stream_resumes_exactly(taken):
    """There are four batches an epoch: in the middle of one, at its end, and at the end of the second."""
    first, second = stream(), stream()
    list(first.batches(taken))
    state = first.state_dict()
    assert state == {"epoch": taken // 4, "position": taken % 4}
    second.load_state_dict(state)
    assert same(list(second.batches(9)), list(first.batches(9)))
    assert second.state_dict() == first.state_dict() == {"epoch": (taken + 9) // 4, "position": (taken + 9) % 4}


def test_an_abandoned_epoch_goes_on():
    whole = pairs(stream())
    data = stream()
    begun = [next(iterator := iter(data)), next(iterator)]
    state = data.state_dict()
    assert state == {"epoch": 0, "position": 2}
    assert same(pairs(begun) + pairs(data), whole)
    assert data.state_dict() == {"epoch": 1, "position": 0}


def test_batches_cross_epochs_as_iteration_does():
    data = stream()
    epochs = pairs(itertools.chain(data, data, data))
    assert len(epochs) == 12
    assert same(list(stream().batches(12)), epochs)
    in_parts = stream()
    assert same([batch for count in (1, 5, 2, 4) for batch in in_parts.batches(count)], epochs)


def test_small_batches_are_made_together(calls):
    list(stream(ipc=100, batch_size=10).batches(60))
    assert sum(calls) == 600
    assert len(calls) <= 3


def test_set_epoch_goes_to_its_beginning():
    data = stream()
    list(data.batches(6))
    second = pairs(stream(generator := gan()))
    data.set_epoch(0)
    assert same(pairs(data), second)
    ahead = stream(generator)
    ahead.set_epoch(1)
    assert same(pairs(ahead), pairs(data))


def test_a_data_loader_passes_batches_on():
    loader = torch.utils.data.DataLoader(stream(), batch_size=None)
    assert same(pairs(loader), pairs(stream()))


def test_workers_on_a_gpu_are_refused(monkeypatch):
    """The view of a worker process is set by hand: torch takes five seconds to end one that failed."""
    monkeypatch.setattr(hf_gdd.distilled.stream, "get_worker_info", lambda: "worker 0 of 1")
    monkeypatch.setattr(PlainGenerator, "device", torch.device("meta"))
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(stream(PlainGenerator())))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(persistent):
    """Not the order, not the epochs: each pass over the loader is the next one."""
    alone, shared = stream(), stream()
    loader = torch.utils.data.DataLoader(shared, batch_size=None, num_workers=2, persistent_workers=persistent)
    for epoch in range(3):
        assert same(pairs(loader), pairs(alone))
        assert alone.state_dict() == {"epoch": epoch + 1, "position": 0}
        assert (shared.epoch, shared.position) == (epoch + 1, 0)


def test_workers_run_ahead_so_the_stream_does_not_know_its_place():
    shared = stream()
    next(iter(torch.utils.data.DataLoader(shared, batch_size=None, num_workers=2)))
    with pytest.raises(RuntimeError, match=r"run ahead of the training.*batches taken"):
        shared.state_dict()
    shared.set_epoch(4)
    assert shared.state_dict() == {"epoch": 4, "position": 0}


def test_more_workers_go_on_where_fewer_ended():
    alone, shared = stream(), stream()
    for workers in (2, 4, 1):
        assert same(pairs(torch.utils.data.DataLoader(shared, batch_size=None, num_workers=workers)), pairs(alone))


def test_no_process_gets_an_empty_batch():
    parts = [stream(ipc=4, batch_size=1).split_by_node(rank, 5) for rank in range(5)]
    sizes = [[len(labels) for _, labels in pairs(part)] for part in parts]
    assert {len(each) for each in sizes} == {2}
    assert sum(map(sum, sizes)) == 12
    assert min(map(min, sizes)) > 0


def test_workers_resume():
    alone, resumed = stream(), stream()
    whole = pairs(alone)
    resumed.load_state_dict({"epoch": 0, "position": 1})
    loader = torch.utils.data.DataLoader(resumed, batch_size=None, num_workers=2)
    assert same(pairs(loader), whole[1:])
    assert same(pairs(loader), pairs(alone))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_and_workers_share_an_epoch(tmp_path, world_size):
    """No image twice, none missing, as many batches for each process; epoch 0 is the materialized set."""
    data = make(tmp_path, gan(), 7, seed=3)
    parts = [stream(ipc=7).split_by_node(rank, world_size) for rank in range(world_size)]
    taken = [pairs(torch.utils.data.DataLoader(part, batch_size=None, num_workers=2)) for part in parts]
    assert len({len(batches) for batches in taken}) == 1
    together = [rows(images, labels) for batches in taken for images, labels in batches]
    assert sum(together, Counter()) == rows(pixels(data), torch.tensor(data["label"]))
    for step, whole in enumerate(pairs(stream(ipc=7, batch_size=4 * world_size))):
        assert sum((rows(*batches[step]) for batches in taken), Counter()) == rows(*whole)


@pytest.mark.parametrize(("rank", "world_size", "words"), [(2, 2, "rank is 2"), (-1, 2, "rank"), (0, 99, "too few")])
def test_impossible_parts_are_refused(rank, world_size, words):
    with pytest.raises(ValueError, match=words):
        stream().split_by_node(rank, world_size)


def test_a_bank_does_not_stream(tmp_path):
    with pytest.raises(ValueError, match="5 images per class, no stream"):
        make(tmp_path, PlainGenerator(max_ipc=5), 5, streaming=True)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_under_one_are_no_stream(tmp_path, batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        stream(batch_size=batch_size)
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        make(tmp_path, PlainGenerator(), 2, batch_size=batch_size, streaming=True)


STREAMED = """
import re
from pathlib import Path

import torch
from hf_gdd.distilled.stream import DistilledStream
from hf_gdd.generators.base import Generator
from hf_gdd.generators.sampling import Sampling

class Flat(Generator):
    num_classes, max_ipc, device, sampling = 10, None, torch.device("cpu"), Sampling()

    def sample(self, labels, indices, seed=0, sampling=None):
        return torch.ones(len(labels), 3, 32, 32, dtype=torch.uint8)

torch.set_num_threads(1)
peak = lambda: int(re.search(r"VmHWM:[^0-9]+([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024
stream, seen, early = DistilledStream(Flat(), ipc=1000, batch_size=100), 0, None
for batch in stream:
    seen += len(batch["label"])
    early = early or (peak() if seen >= 2000 else None)
print(seen, peak() - early)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_long_stream_takes_no_more_memory_than_a_short_one():
    done = subprocess.run([sys.executable, "-c", STREAMED], capture_output=True, text=True, check=True)
    seen, growth_mib = done.stdout.split()
    assert int(seen) == 10_000
    assert float(growth_mib) < 8  # the images after the first 2000 would be 23
