"""Sets with exactly ipc images per class, the same however they are made, and found again in the cache."""

from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from kinds import NAMES, gan
from plain_sets import PlainGenerator, make, pixels, requests

from hf_gdd import DistilledStream, GenerativeDistilledDataset, ImageTensors
from hf_gdd.distilled.builder import write_parquet
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.generators.sampling import DiffusionSampling, Sampling, StoredSampling
from hf_gdd.hub.loading import LoadError


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


def test_counts_columns_and_order(tmp_path):
    data = make(tmp_path, gan(), 7)
    assert isinstance(data, datasets.Dataset)
    assert Counter(data["label"]) == {0: 7, 1: 7, 2: 7}
    assert list(data["label"]) == sorted(data["label"])
    assert data.features == datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    assert data[0]["image"].size == (8, 8)
    assert data[0]["image"].mode == "L"


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_small_set_begins_a_large_one(tmp_path, num_proc, request):
    request.addfinalizer(lambda: torch.set_num_threads(1))
    torch.set_num_threads(num_proc or 1)  # a process that has used two cannot be forked without care
    generator, options = gan(), {"num_proc": num_proc, "seed": 5}
    small, large = (make(tmp_path, generator, ipc, **options) for ipc in (3, 50))
    assert torch.equal(pixels(large), generator.sample(*requests(50), seed=5))
    assert list(large["label"]) == [0] * 50 + [1] * 50 + [2] * 50
    assert torch.equal(pixels(small), pixels(large).unflatten(0, (3, 50))[:, :3].flatten(0, 1))
    assert len(pixels(large).flatten(1).unique(dim=0)) == 150


def test_color_images_and_labels_survive(tmp_path):
    generator = gan(shape=(3, 8, 8))
    held = ImageTensors.from_dataset(make(tmp_path, generator, 4), device="cpu", progress=False)
    assert torch.equal(held.images, generator.sample(*requests(4)))
    assert torch.equal(held.labels, requests(4)[0])
    assert held.class_names == NAMES


def test_sampling_reaches_the_images(tmp_path):
    generator, calm = gan(), Sampling(0.25)
    calm_images = generator.sample(*requests(4), sampling=calm)
    assert not torch.equal(calm_images, generator.sample(*requests(4)))
    assert torch.equal(pixels(make(tmp_path / "a", generator, 4, sampling=calm)), calm_images)
    generator.sampling = calm
    assert torch.equal(pixels(make(tmp_path / "b", generator, 4)), calm_images)
    assert torch.equal(pixels(make(tmp_path / "b", generator, 4, sampling=Sampling())), gan().sample(*requests(4)))


def test_parts_of_the_split(tmp_path):
    generator = gan()
    whole = pixels(make(tmp_path, generator, 4))
    assert torch.equal(pixels(make(tmp_path, generator, 4, split="train[:50%]")), whole[:6])
    assert torch.equal(pixels(make(tmp_path, generator, 4, split="train[2:5]")), whole[2:5])
    with pytest.raises(ValueError, match="test"):
        make(tmp_path, generator, 4, split="test")


@pytest.mark.parametrize("ipc", [0, -1])
def test_ipc_under_one_is_refused(tmp_path, ipc):
    for build in (
        lambda: make(tmp_path, gan(), ipc),
        lambda: make(tmp_path, gan(), ipc, streaming=True),
        lambda: GenerativeDistilledDataset(gan(), ipc, cache_dir=str(tmp_path)),
        lambda: DistilledStream(gan(), ipc),
    ):
        with pytest.raises(ValueError, match=rf"ipc is {ipc}.*at least 1"):
            build()


def test_ipc_above_what_is_held_is_refused(tmp_path):
    assert len(make(tmp_path, PlainGenerator(max_ipc=5), 5)) == 15
    with pytest.raises(ValueError, match=r"ipc is 6.*holds 5 images per class"):
        make(tmp_path, PlainGenerator(max_ipc=5), 6)


def test_a_bank_has_no_seeds(tmp_path):
    """Stored images are one set: another seed finds it in the same cache."""
    first, second = (make(tmp_path, PlainGenerator(max_ipc=5), 5, seed=seed) for seed in (0, 1))
    assert where(first) == where(second)
    assert torch.equal(pixels(second), PlainGenerator().sample(*requests(5)))
    assert torch.equal(
        pixels(make(tmp_path, PlainGenerator(), 5, seed=1)), PlainGenerator().sample(*requests(5), seed=1)
    )


def test_soft_labels_are_a_column(tmp_path):
    data = make(tmp_path, PlainGenerator(max_ipc=5, soft=True), 4)
    assert list(data.features) == ["image", "label", "soft_label"]
    assert data.features["soft_label"] == datasets.List(datasets.Value("float16"), length=3)
    held = torch.tensor(list(data["soft_label"]))
    assert torch.equal(held, PlainGenerator(soft=True).soft_labels(*requests(4)).float())


def test_num_proc_is_for_the_cpu(tmp_path):
    generator = PlainGenerator()
    generator.device = torch.device("cuda")
    with pytest.raises(ValueError, match="num_proc"):
        make(tmp_path, generator, 2, num_proc=2)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_seed_beyond_63_bits_is_refused(tmp_path, streaming):
    make(tmp_path, gan(), 2, seed=2**63 - 1, streaming=streaming)
    with pytest.raises(ValueError, match="seed"):
        make(tmp_path, gan(), 2, seed=2**63, streaming=streaming)


def test_a_saved_folder_is_enough(tmp_path):
    gan().save_pretrained(tmp_path / "top" / "inner")
    expected = gan().sample(*requests(3), seed=2)
    for source, options in (
        (tmp_path / "top" / "inner", {}),
        (str(tmp_path / "top" / "inner"), {"device": "cpu"}),
        (tmp_path / "top", {"subfolder": "inner"}),
    ):
        assert torch.equal(pixels(make(tmp_path / "cache", source, 3, seed=2, **options)), expected)
    with pytest.raises(LoadError, match="subfolder 'inner'"):
        make(tmp_path / "cache", tmp_path / "top", 3)


def test_the_same_set_is_made_once(tmp_path, calls):
    folder = tmp_path / "saved"
    gan().save_pretrained(folder)
    calls.clear()
    first = make(tmp_path, gan(), 20)
    assert sum(calls) == 60
    calls.clear()
    for generator, options in (
        (gan(), {"batch_size": 7}),
        (gan(), {}),
        (gan(), {"num_proc": 2}),
        (gan(), {"sampling": Sampling(1.0)}),
        (gan(), {"device": "cpu"}),
        (folder, {}),
        (folder, {"device": "cpu"}),
    ):
        again = make(tmp_path, generator, 20, **options)
        assert where(again) == where(first)
        assert torch.equal(pixels(again), pixels(first))
    assert calls == []


def test_whatever_changes_pixels_makes_another_set(tmp_path, calls):
    sets = [
        make(tmp_path, gan(), 4),
        make(tmp_path, gan(), 5),
        make(tmp_path, gan(), 4, seed=1),
        make(tmp_path, gan(), 4, sampling=Sampling(0.5)),
        make(tmp_path, gan(seed=1), 4),
        make(tmp_path, gan(shape=(3, 8, 8)), 4),
    ]
    assert calls == [12, 15, 12, 12, 12, 12]
    assert len({where(data) for data in sets}) == len(sets)
    one = gan()
    with torch.no_grad():
        one.start[0].weight[0, 0] += 1e-3
    assert where(make(tmp_path, one, 4)) not in {where(data) for data in sets}


def cache_names(generator, ipc, **options):
    builder = GenerativeDistilledDataset(generator, ipc, cache_dir="cache", **options)
    return Path(builder.cache_dir).parts[-4:]


def test_sets_cached_by_an_earlier_version_are_found(tmp_path, monkeypatch):
    """These names are those of version 0.1.0 before its sampling fields were renamed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PlainGenerator, "class_names", ("zebra", "ant", "mole"))
    place = ("hf_gdd", "ipc10-seed3-{}", "1.0.0", "1.0.0")
    for sampling, digest in (
        (Sampling(), "85545f664b6638ea"),
        (Sampling(0.25), "8ddd057cf1a09b9f"),
        (DiffusionSampling(guidance_scale=4.0, num_inference_steps=50, scheduler="ddim"), "edbf1efccaf00183"),
        (StoredSampling(), "ea91e669fffa325c"),
    ):
        one = PlainGenerator(sampling=sampling)
        one.fingerprint = "0123456789abcdef" * 4
        assert cache_names(one, 10, seed=3) == tuple(part.format(digest) for part in place)


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_a_parquet_file_is_whole_or_absent(tmp_path, monkeypatch, error):
    data, path = make(tmp_path / "cache", PlainGenerator(), 2), tmp_path / "set.parquet"
    write_parquet(data, path)
    whole = path.read_bytes()
    assert datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path))["label"][:] == [0, 0, 1, 1, 2, 2]

    def broken(self, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(datasets.Dataset, "to_parquet", broken)
    with pytest.raises(type(error)):
        write_parquet(data, path)
    assert path.read_bytes() == whole
    assert {each.name for each in tmp_path.glob("set*")} == {"set.parquet"}


def test_renamed_classes_are_not_read_from_an_old_cache(tmp_path):
    """The weights are equal, and so are the pixels, but the columns are not."""
    make(tmp_path, gan(), 2)
    names = ("cat", "dog", "eel")
    assert make(tmp_path, gan(names=names), 2).features["label"].names == list(names)


@pytest.mark.parametrize("options", [{"split": "test"}, {"streaming": True, "split": "train[:5]"}])
def test_a_split_that_is_none_is_refused_before_any_work(tmp_path, options):
    with pytest.raises(ValueError, match="train"):
        make(tmp_path, PlainGenerator(), 5, **options)
    assert not any(tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize("ipc", [10**12, 1.5, True, "3"])
def test_an_ipc_that_is_no_number_of_images_is_refused(tmp_path, ipc):
    with pytest.raises(ValueError, match="ipc"):
        make(tmp_path, PlainGenerator(), ipc)
    assert not any(tmp_path.rglob("*.arrow"))
