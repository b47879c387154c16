"""Sets with exactly ipc images a class, the same however they are made; streams that resume where they stood."""

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from kinds import NAMES
from kinds import gan as trained

import hf_gdd.distilled.stream
from hf_gdd import DistilledStream, GenerativeDistilledDataset, ImageTensors, load_distilled_dataset
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.generators.sampling import Sampling
from hf_gdd.hub.loading import LoadError


class Stub:
    """A generator that is no torch module: flat images that tell their label, index and seed."""

    class_names, num_classes, image_shape = NAMES, 3, (1, 8, 8)
    mean, std, sampling, report = (0.5,), (0.5,), Sampling(), None
    method, seed, stored_bytes, device = "stub", 0, 1, torch.device("cpu")

    def __init__(self, max_ipc=None, soft=False):
        self.max_ipc, self.soft = max_ipc, soft
        self.fingerprint = f"stub {max_ipc} {soft}"

    def sample(self, labels, indices, seed=0, sampling=None):
        value = (labels * 50 + indices + 10 * seed).to(torch.uint8)
        return value[:, None, None, None].expand(-1, 1, 8, 8)

    def soft_labels(self, labels, indices):
        if not self.soft:
            return None
        return torch.stack([labels, indices, labels - indices], dim=1).half() / 8


def requests(per_class, start=0):
    return torch.arange(3).repeat_interleave(per_class), torch.arange(start, start + per_class).repeat(3)


def make(folder, generator, ipc, **options):
    return load_distilled_dataset(generator, ipc=ipc, cache_dir=folder, **options)


def pixels(data):
    return ImageTensors.from_dataset(data, device="cpu", progress=False).images


def where(data):
    """The folder that holds the set's files."""
    (folder,) = {Path(file["filename"]).parent for file in data.cache_files}
    return folder


@pytest.fixture
def calls(monkeypatch):
    """Counts how often any GAN is asked for images."""
    counted, sample = [], ConditionalGANGenerator.sample

    def counting(self, labels, *args, **options):
        counted.append(len(labels))
        return sample(self, labels, *args, **options)

    monkeypatch.setattr(ConditionalGANGenerator, "sample", counting)
    return counted


# ---- the set


def test_counts_columns_and_order(tmp_path):
    data = make(tmp_path, trained(), 7)
    assert isinstance(data, datasets.Dataset)
    assert Counter(data["label"]) == {0: 7, 1: 7, 2: 7}
    assert list(data["label"]) == sorted(data["label"])
    assert data.features == datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    assert data[0]["image"].size == (8, 8)
    assert data[0]["image"].mode == "L"


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_a_small_set_begins_a_large_one(tmp_path, batch_size, num_proc, request):
    request.addfinalizer(lambda: torch.set_num_threads(1))
    torch.set_num_threads(num_proc or 1)  # a process that has used two cannot be forked without care
    generator, options = trained(), {"batch_size": batch_size, "num_proc": num_proc, "seed": 5}
    small, large = (make(tmp_path, generator, ipc, **options) for ipc in (3, 50))
    assert torch.equal(pixels(large), generator.sample(*requests(50), seed=5))
    assert list(large["label"]) == [0] * 50 + [1] * 50 + [2] * 50
    assert torch.equal(pixels(small), pixels(large).unflatten(0, (3, 50))[:, :3].flatten(0, 1))
    assert len(pixels(large).flatten(1).unique(dim=0)) == 150


def test_colour_images_and_labels_survive(tmp_path):
    generator = trained(shape=(3, 8, 8))
    held = ImageTensors.from_dataset(make(tmp_path, generator, 4), device="cpu", progress=False)
    assert torch.equal(held.images, generator.sample(*requests(4)))
    assert torch.equal(held.labels, requests(4)[0])
    assert held.class_names == NAMES


def test_sampling_reaches_the_images(tmp_path):
    generator, calm = trained(), Sampling(0.25)
    calm_images = generator.sample(*requests(4), sampling=calm)
    assert not torch.equal(calm_images, generator.sample(*requests(4)))
    assert torch.equal(pixels(make(tmp_path / "a", generator, 4, sampling=calm)), calm_images)
    generator.sampling = calm
    assert torch.equal(pixels(make(tmp_path / "b", generator, 4)), calm_images)
    assert torch.equal(pixels(make(tmp_path / "b", generator, 4, sampling=Sampling())), trained().sample(*requests(4)))


def test_parts_of_the_split(tmp_path):
    generator = trained()
    whole = pixels(make(tmp_path, generator, 4))
    assert torch.equal(pixels(make(tmp_path, generator, 4, split="train[:50%]")), whole[:6])
    assert torch.equal(pixels(make(tmp_path, generator, 4, split="train[2:5]")), whole[2:5])
    with pytest.raises(ValueError, match="test"):
        make(tmp_path, generator, 4, split="test")


@pytest.mark.parametrize("ipc", [0, -1])
def test_ipc_under_one_is_refused(tmp_path, ipc):
    for build in (
        lambda: make(tmp_path, trained(), ipc),
        lambda: make(tmp_path, trained(), ipc, streaming=True),
        lambda: GenerativeDistilledDataset(trained(), ipc, cache_dir=str(tmp_path)),
        lambda: DistilledStream(trained(), ipc),
    ):
        with pytest.raises(ValueError, match=rf"ipc is {ipc}.*at least 1"):
            build()


def test_ipc_above_what_is_held_is_refused(tmp_path):
    assert len(make(tmp_path, Stub(max_ipc=5), 5)) == 15
    with pytest.raises(ValueError, match=r"ipc is 6.*holds 5 images per class"):
        make(tmp_path, Stub(max_ipc=5), 6)


def test_a_bank_has_no_seeds(tmp_path):
    """What is held was made once: another seed is the same set, from the same cache."""
    first, second = (make(tmp_path, Stub(max_ipc=5), 5, seed=seed) for seed in (0, 1))
    assert where(first) == where(second)
    assert torch.equal(pixels(second), Stub().sample(*requests(5)))
    assert torch.equal(pixels(make(tmp_path, Stub(), 5, seed=1)), Stub().sample(*requests(5), seed=1))


def test_soft_labels_are_a_column(tmp_path):
    data = make(tmp_path, Stub(max_ipc=5, soft=True), 4, batch_size=5)
    assert list(data.features) == ["image", "label", "soft_label"]
    assert data.features["soft_label"] == datasets.List(datasets.Value("float16"), length=3)
    held = torch.tensor(list(data["soft_label"]))
    assert torch.equal(held, Stub(soft=True).soft_labels(*requests(4)).float())


def test_num_proc_is_for_the_cpu(tmp_path):
    generator = Stub()
    generator.device = torch.device("cuda")
    with pytest.raises(ValueError, match="num_proc"):
        make(tmp_path, generator, 2, num_proc=2)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_seed_beyond_63_bits_is_refused(tmp_path, streaming):
    make(tmp_path, trained(), 2, seed=2**63 - 1, streaming=streaming)
    with pytest.raises(ValueError, match="seed"):
        make(tmp_path, trained(), 2, seed=2**63, streaming=streaming)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_under_one_are_no_set(tmp_path, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        make(tmp_path, Stub(), 2, batch_size=batch_size)


def test_a_saved_folder_is_enough(tmp_path):
    trained().save_pretrained(tmp_path / "top" / "inner")
    expected = trained().sample(*requests(3), seed=2)
    for source, options in (
        (tmp_path / "top" / "inner", {}),
        (str(tmp_path / "top" / "inner"), {"device": "cpu"}),
        (tmp_path / "top", {"subfolder": "inner"}),
    ):
        assert torch.equal(pixels(make(tmp_path / "cache", source, 3, seed=2, **options)), expected)
    with pytest.raises(LoadError, match="subfolder 'inner'"):
        make(tmp_path / "cache", tmp_path / "top", 3)


# ---- the cache


def test_the_same_set_is_made_once(tmp_path, calls):
    folder = tmp_path / "saved"
    trained().save_pretrained(folder)
    calls.clear()
    first = make(tmp_path, trained(), 20, batch_size=7)
    assert sum(calls) == 60
    calls.clear()
    for generator, options in (
        (trained(), {"batch_size": 7}),
        (trained(), {"batch_size": 1}),
        (trained(), {}),
        (trained(), {"num_proc": 2}),
        (trained(), {"sampling": Sampling(1.0)}),
        (trained(), {"device": "cpu"}),
        (folder, {}),
        (folder, {"device": "cpu"}),
    ):
        again = make(tmp_path, generator, 20, **options)
        assert where(again) == where(first)
        assert torch.equal(pixels(again), pixels(first))
    assert calls == []


def test_whatever_changes_pixels_makes_another_set(tmp_path, calls):
    sets = [
        make(tmp_path, trained(), 4),
        make(tmp_path, trained(), 5),
        make(tmp_path, trained(), 4, seed=1),
        make(tmp_path, trained(), 4, sampling=Sampling(0.5)),
        make(tmp_path, trained(seed=1), 4),
        make(tmp_path, trained(shape=(3, 8, 8)), 4),
    ]
    assert calls == [12, 15, 12, 12, 12, 12]
    assert len({where(data) for data in sets}) == len(sets)
    one = trained()
    with torch.no_grad():
        one.start[0].weight[0, 0] += 1e-3
    assert where(make(tmp_path, one, 4)) not in {where(data) for data in sets}


def test_renamed_classes_are_not_read_from_an_old_cache(tmp_path):
    """The weights are equal, and so are the pixels, but the columns are not."""
    make(tmp_path, trained(), 2)
    names = ("cat", "dog", "eel")
    assert make(tmp_path, trained(names=names), 2).features["label"].names == list(names)


# ---- the stream


def stream(generator=None, ipc=5, seed=3, batch_size=4, **options):
    return DistilledStream(generator or trained(), ipc, seed, batch_size, **options)


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
    """Whether two sequences of batches are equal in order, sizes, pixels and labels."""
    return len(batches) == len(others) and all(
        a.shape == b.shape and torch.equal(a, b)
        for one, other in zip(batches, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def pairs(data):
    return [(batch["image"], batch["label"]) for batch in data]


def test_epoch_0_is_the_set(tmp_path):
    data = make(tmp_path, trained(), 5, seed=3)
    images, labels, _ = epoch_of(make(tmp_path, trained(), 5, seed=3, streaming=True))
    assert rows(images, labels) == rows(pixels(data), torch.tensor(data["label"]))


def test_every_epoch_has_its_own_indices():
    generator = trained()
    data = stream(generator)
    for epoch in range(3):
        images, labels, _ = epoch_of(data)
        wanted, indices = requests(5, start=5 * epoch)
        assert rows(images, labels) == rows(generator.sample(wanted, indices, 3), wanted)
        assert Counter(labels.tolist()) == {0: 5, 1: 5, 2: 5}
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64


def test_epochs_share_no_image_and_no_order():
    data = stream(Stub(), batch_size=15)
    epochs = [epoch_of(data)[:2] for _ in range(3)]
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in epochs])
    assert len(seen.unique()) == 45
    orders = {tuple((images[:, 0, 0, 0] - 5 * epoch).tolist()) for epoch, (images, _) in enumerate(epochs)}
    assert len(orders) == 3
    assert all(list(order) != sorted(order) for order in orders)


def test_seed_and_sampling_reach_the_stream():
    generator = trained()
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
    data = stream(Stub(), batch_size=batch_size)
    assert epoch_of(data)[2] == sizes
    assert (data.batches_per_epoch, data.images_per_epoch) == (len(sizes), 15)


def test_no_batch_is_a_small_rest():
    assert epoch_of(stream(Stub(), ipc=7, batch_size=5))[2] == [5, 4, 4, 4, 4]


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
    second = pairs(stream(generator := trained()))
    data.set_epoch(0)
    assert same(pairs(data), second)
    ahead = stream(generator)
    ahead.set_epoch(1)
    assert same(pairs(ahead), pairs(data))


def test_a_data_loader_passes_batches_on():
    loader = torch.utils.data.DataLoader(stream(), batch_size=None)
    assert same(pairs(loader), pairs(stream()))


def test_workers_on_a_gpu_are_refused(monkeypatch):
    """What a worker process sees is put here by hand: torch takes five seconds to end one that failed."""
    monkeypatch.setattr(hf_gdd.distilled.stream, "get_worker_info", lambda: "worker 0 of 1")
    monkeypatch.setattr(Stub, "device", torch.device("meta"))
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(stream(Stub())))


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
    data = make(tmp_path, trained(), 7, seed=3)
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


@pytest.mark.parametrize("options", [{"split": "test"}, {"streaming": True, "split": "train[:5]"}])
def test_a_split_that_is_none_is_refused_before_any_work(tmp_path, options):
    with pytest.raises(ValueError, match="train"):
        make(tmp_path, Stub(), 5, **options)
    assert not any(tmp_path.rglob("*.arrow"))


def test_a_bank_does_not_stream(tmp_path):
    with pytest.raises(ValueError, match="5 images per class, no stream"):
        make(tmp_path, Stub(max_ipc=5), 5, streaming=True)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_under_one_are_no_stream(tmp_path, batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        stream(batch_size=batch_size)
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        make(tmp_path, Stub(), 2, batch_size=batch_size, streaming=True)


STREAMED = """
import resource, torch
from hf_gdd import ConditionalGANGenerator, DistilledStream

torch.set_num_threads(1)
generator = ConditionalGANGenerator(tuple("abcdefghij"), (3, 32, 32), width=4).eval()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
stream, seen, early = DistilledStream(generator, ipc=1000, batch_size=100), 0, None
for batch in stream:
    seen += len(batch["label"])
    early = early or (peak() if seen >= 2000 else None)
print(seen, peak() - early)
"""


def test_a_long_stream_takes_no_more_memory_than_a_short_one():
    done = subprocess.run([sys.executable, "-c", STREAMED], capture_output=True, text=True, check=True)
    seen, growth_mib = done.stdout.split()
    assert int(seen) == 10_000
    assert float(growth_mib) < 8  # all of the images would be 29


@pytest.mark.parametrize("ipc", [10**12, 1.5, True, "3"])
def test_an_ipc_that_is_no_number_of_images_is_refused(tmp_path, ipc):
    with pytest.raises(ValueError, match="ipc"):
        make(tmp_path, Stub(), ipc)
    assert not any(tmp_path.rglob("*.arrow"))
