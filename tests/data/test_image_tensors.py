import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, config
from PIL import Image as Pillow

from hf_gdd.data.decoding import dataset_features
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.loading import DIGITS
from hf_gdd.data.pixels import encode_png, tanh_to_uint8, to_tanh, to_unit, unit_to_uint8
from hf_gdd.data.placement import place

NAMES = ("cat", "dog", "eel")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tensors(per_class=(6, 6, 6), channels=3, size=8, seed=0, names=NAMES):
    """Images of noise, their labels shuffled."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(per_class)), per_class))
    images = noise(len(labels), channels, size, size, seed=seed)
    return ImageTensors(torch.from_numpy(images), torch.from_numpy(labels), names, "toy:train", torch.device("cpu"))


def dataset(images, labels=None, names=NAMES):
    """A Dataset of Pillow images or of the bytes of image files."""
    labels = [0] * len(images) if labels is None else labels
    rows = [{"bytes": image if isinstance(image, bytes) else png(image), "path": None} for image in images]
    return Dataset.from_dict({"image": rows, "label": labels}, features=dataset_features(names))


def png(image):
    file = io.BytesIO()
    image.save(file, "TIFF" if image.mode in ("I", "F", "CMYK") else "PNG")
    return file.getvalue()


def picture(mode="RGB", width=8, height=8, seed=0):
    return Pillow.fromarray(noise(height, width, 3, seed=seed)).convert(mode)


def load(data, *args, **options):
    return ImageTensors.from_dataset(data, *args, device="cpu", progress=False, **options)


def fails(*words, error=ValueError):
    """Expect an error whose message has these words in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(words))


# ---- the bundled digits


def test_digits_are_fixed_and_need_no_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "none")
    train, test = load("digits"), load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    assert train.shape == (1, 8, 8)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert (train.source, test.source) == ("digits:train", "digits:test")
    for name in ("train", "test"):
        assert (DIGITS / f"{name}.parquet").stat().st_size < 500_000
    shares = np.array(train.class_counts) / np.array(test.class_counts)
    assert shares.min() > 3.5
    assert shares.max() < 4.5
    both = {image.numpy().tobytes() for image in train.images} & {i.numpy().tobytes() for i in test.images}
    assert not both
    assert not (tmp_path / "none").exists()
    train.check_trainable()


# ---- what can be opened


def test_dataset_dict_takes_train_by_default():
    parts = DatasetDict(train=dataset([picture()] * 2), test=dataset([picture()] * 3))
    assert len(load(parts)) == 2
    assert len(load(parts, "test")) == 3
    with fails("no split 'dev'", "pass split=", "train", "test"):
        load(parts, "dev")
    with fails("no split 'train'", "pass split=", "test"):
        load(DatasetDict(test=parts["test"]))


def test_a_dataset_is_one_split_already():
    test = load("digits", "test").to_dataset()
    with fails("already one split", "'train'", "leave split out"):
        load(test, "train")


def test_image_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "Pets"
    expected = {}
    for label, name in enumerate(NAMES):
        (folder / "train" / name).mkdir(parents=True)
        for row in range(2):
            image = picture(width=20, height=20, seed=10 * label + row)
            image.save(folder / "train" / name / f"{row}.png")
            expected[np.asarray(image).transpose(2, 0, 1).tobytes()] = label
    data = load(str(folder))
    assert data.source == "Pets:train"
    assert data.class_names == NAMES
    assert data.shape == (3, 20, 20)
    found = {image.numpy().tobytes(): label for image, label in zip(data.images, data.labels.tolist(), strict=True)}
    assert found == expected
    assert load(folder).fingerprint == data.fingerprint


def test_parquet_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tensors()
    (tmp_path / "toy").mkdir()
    data.to_dataset().to_parquet(tmp_path / "toy" / "train.parquet")
    again = load(tmp_path / "toy")
    assert again.fingerprint == data.fingerprint
    assert again.source == "toy:train"


def test_hub_source_names_the_commit():
    data = dataset([picture()])
    data.info.download_checksums = {f"hf://datasets/me/pets@{'a1' * 20}/data/train-0.parquet": {}}
    assert load(data).source == f"me/pets@{'a1' * 20}"
    assert load(dataset([picture()])).source == "unnamed"


def test_a_format_set_by_the_user_is_ignored():
    data = tensors().to_dataset()
    assert load(data.with_format("torch")).fingerprint == load(data).fingerprint
    undecoded = data.cast_column("image", Image(decode=False))
    assert load(undecoded).fingerprint == load(data).fingerprint


def test_image_tensors_are_only_moved():
    data = tensors()
    again = load(data)
    assert again.images is data.images
    assert again.device == torch.device("cpu")
    with fails("already decoded", "image_size"):
        load(data, image_size=16)


def test_another_type_and_streaming_data_are_refused():
    with fails("list", "pass a datasets.Dataset", error=TypeError):
        load([1, 2])
    with fails("IterableDataset", "not a streaming one", error=TypeError):
        load(dataset([picture()]).to_iterable_dataset())


# ---- columns and labels


def test_columns_by_name():
    data = dataset([picture(seed=1)], [2])
    extra = data.rename_columns({"image": "other", "label": "coarse"}).map(lambda row: {"coarse": 1})
    both = Dataset.from_dict({**data[:], **extra[:]}, features=Features({**data.features, **extra.features}))
    with fails("Several", "image", "other", "pass image_column='image'"):
        load(both)
    with fails("Several", "label", "coarse", "pass label_column='label'"):
        load(both, image_column="other")
    assert load(both, image_column="other", label_column="coarse").labels.tolist() == [1]


def test_absent_and_mistyped_columns():
    data = dataset([picture()])
    with fails("no column 'img'", "pass image_column=", "'image'"):
        load(data, image_column="img")
    with fails("no column 'y'", "pass label_column=", "'label'"):
        load(data, label_column="y")
    with fails("None of the columns", "is Image", "cast_column", "image_column='...'"):
        load(data.remove_columns("image"))
    plain = data.cast_column("label", Value("int64"))
    for options in ({}, {"label_column": "label"}):
        with fails("ClassLabel", "cast_column.*ClassLabel.names", "class_encode_column"):
            load(plain, **options)


@pytest.mark.parametrize("label", [-1, None, 3])
def test_bad_labels_name_the_row(label):
    good = dataset([picture()] * 3, [0, 1, 2])
    # Written as plain integers, since datasets itself refuses some of these.
    labels = pa.array([0, label, 2], pa.int64())
    table = good.data.table.set_column(1, "label", labels).replace_schema_metadata(good.features.arrow_schema.metadata)
    with fails("Row 1", f"label {label}", r"0\.\.2", "filter"):
        load(Dataset(table))


def test_an_empty_data_set():
    with fails("empty", "another split"):
        load(dataset([picture()]).select([]))


# ---- pixels


@pytest.mark.parametrize(
    ("mode", "target"), [("1", "L"), ("L", "L"), ("LA", "L"), ("P", "RGB"), ("RGBA", "RGB"), ("CMYK", "RGB")]
)
def test_modes_become_gray_or_rgb(mode, target):
    image = picture(mode, width=9, height=7)
    data = load(dataset([image]))
    expected = np.atleast_3d(np.asarray(image.convert(target))).transpose(2, 0, 1)
    assert data.shape == expected.shape
    np.testing.assert_array_equal(data.images[0].numpy(), expected)


@pytest.mark.parametrize("order", [("L", "RGB", "L"), ("RGB", "L", "L")])
def test_one_colour_image_makes_all_rgb(order):
    data = load(dataset([picture(mode) for mode in order]))
    assert data.shape == (3, 8, 8)
    for mode, image in zip(order, data.images, strict=True):
        np.testing.assert_array_equal(image.numpy(), np.asarray(picture(mode).convert("RGB")).transpose(2, 0, 1))


def test_mixed_sizes():
    data = dataset([picture(), picture(width=12, height=10)])
    with fails("Row 0 is 8x8", "row 1 is 12x10", "image_size=8"):
        load(data)
    assert load(data, image_size=8).shape == (3, 8, 8)


def test_image_size_crops_the_centre():
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 8:24] = 200
    cropped = load(dataset([Pillow.fromarray(wide)]), image_size=8).images[0, 0]
    assert cropped.min() > 180  # not 200 throughout: Lanczos rings at the edges
    same = picture(seed=3)
    assert torch.equal(load(dataset([same]), image_size=8).images, load(dataset([same])).images)
    with fails("image_size=0", "image_size=32"):
        load("digits", image_size=0)


def test_an_unreadable_image_names_the_row_and_the_cause():
    with fails("row 1 cannot be read", "select") as caught:
        load(dataset([picture(), b"not an image"]))
    assert isinstance(caught.value.__cause__, Pillow.UnidentifiedImageError)
    with fails("row 0 cannot be read", "truncated"):
        load(dataset([png(picture())[:100]]))
    rows = {"image": [None], "label": [0]}
    with fails("row 0 cannot be read", "select"):
        load(Dataset.from_dict(rows, features=dataset_features(NAMES)))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_pixels_are_refused(dtype):
    with fails("row 0", "16-bit", "mode", "8 bits"):
        load(dataset([Pillow.fromarray(np.full((8, 8), 300, dtype))]))


def test_more_rows_than_one_chunk_keep_their_order(monkeypatch):
    monkeypatch.setattr("hf_gdd.data.decoding._CHUNK", 4)
    data = tensors()
    assert torch.equal(load(data.to_dataset()).images, data.images)


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip_is_exact(channels):
    data = tensors(channels=channels)
    written = data.to_dataset()
    assert written.features == Features(image=Image(), label=ClassLabel(names=list(NAMES)))
    again = load(written)
    assert torch.equal(again.images, data.images)
    assert torch.equal(again.labels, data.labels)
    assert again.fingerprint == data.fingerprint


def test_encode_png_refuses_other_arrays():
    for wrong in (noise(2, 8, 8), noise(8, 8), noise(3, 8, 8).astype(np.float32)):
        with fails("uint8", "not"):
            encode_png(wrong)


def test_ranges():
    levels = torch.arange(256, dtype=torch.uint8)
    assert to_unit(levels)[[0, -1]].tolist() == [0, 1]
    assert to_tanh(levels)[[0, -1]].tolist() == [-1, 1]
    assert torch.equal(tanh_to_uint8(to_tanh(levels)), levels)
    assert tanh_to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    assert torch.equal(unit_to_uint8(to_unit(levels)), levels)
    assert unit_to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


# ---- storage


class OnCPU:
    """A tensor that only says where it is put."""

    device, nbytes = torch.device("cpu"), 50

    def cpu(self):
        return self

    def pin_memory(self):
        return "pinned"

    def to(self, device):
        return device.type


@pytest.mark.parametrize(("free_bytes", "where"), [(100, "cuda"), (99, "pinned")])
def test_images_take_at_most_half_of_the_free_memory(monkeypatch, free_bytes, where):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, 200))
    assert place((OnCPU(), OnCPU(), None), torch.device("cuda")) == (where, where, None)


def test_gather():
    data = tensors()
    images, labels = data.gather(torch.tensor([5, 0, 5]))
    assert torch.equal(images, data.images[[5, 0, 5]])
    assert torch.equal(labels, data.labels[[5, 0, 5]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("free_bytes", "resting"), [(10**9, "cuda"), (0, "cpu")])
def test_gpu_storage(monkeypatch, free_bytes, resting):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, free_bytes))
    host = tensors()
    data = ImageTensors.from_dataset(host, device="cuda")
    assert data.images.device.type == resting
    assert data.images.is_pinned() == (resting == "cpu")
    images, labels = data.gather(torch.tensor([4, 2], device="cuda"))
    assert images.device == labels.device == data.device
    assert torch.equal(images.cpu(), host.images[[4, 2]])
    assert data.subset(2, seed=0).fingerprint == host.subset(2, seed=0).fingerprint
    assert (data.mean, data.std, data.fingerprint) == (host.mean, host.std, host.fingerprint)


# ---- parts


def test_split_is_stratified_disjoint_and_deterministic():
    data = tensors(per_class=(20, 10, 2))
    rest, held_out = data.split(0.2, seed=3)
    assert held_out.class_counts == (4, 2, 1)
    assert rest.class_counts == (16, 8, 1)
    parts = [image.numpy().tobytes() for part in (rest, held_out) for image in part.images]
    assert sorted(parts) == sorted(image.numpy().tobytes() for image in data.images)
    assert len(set(parts)) == len(data)
    assert data.split(0.2, seed=3)[1].fingerprint == held_out.fingerprint
    assert data.split(0.2, seed=4)[1].fingerprint != held_out.fingerprint
    assert held_out.source == "toy:train[held-out 0.2, seed 3]"
    assert rest.source == "toy:train[without held-out 0.2, seed 3]"
    assert data.split(0.99)[0].class_counts == (1, 1, 1)


def test_split_refuses():
    for fraction in (0, 1, -0.5):
        with fails(f"fraction={fraction}", "between 0 and 1"):
            tensors().split(fraction)
    with fails("'eel'", "has 1 ", "needs 2", "drop the class or add images"):
        tensors(per_class=(5, 5, 1)).split(0.1)


def test_subset_is_exact_and_nested():
    data = tensors(per_class=(9, 5, 4))
    four, two = data.subset(4, seed=1), data.subset(2, seed=1)
    assert four.class_counts == (4, 4, 4)
    assert two.class_counts == (2, 2, 2)
    whole = {image.numpy().tobytes() for image in four.images}
    assert {image.numpy().tobytes() for image in two.images} < whole
    assert data.subset(2, seed=1).fingerprint == two.fingerprint
    assert data.subset(2, seed=2).fingerprint != two.fingerprint
    assert two.source == "toy:train[random 2 per class, seed 1]"


def test_subset_refuses():
    with fails("'eel'", "has 4 ", "needs 5", "smaller ipc"):
        tensors(per_class=(9, 5, 4)).subset(5, seed=0)
    with fails("ipc=0", "ipc=1 or more"):
        tensors().subset(0, seed=0)


# ---- properties


def test_statistics_agree_with_numpy(monkeypatch):
    monkeypatch.setattr("hf_gdd.data.statistics._CHUNK", 5)
    data = tensors()
    pixels = data.images.numpy() / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3)), rtol=1e-12)
    flat = ImageTensors(torch.zeros_like(data.images), data.labels, NAMES, "flat", data.device)
    assert flat.std == (1e-6,) * 3


def test_fingerprint_sees_everything_but_the_source():
    data = tensors()
    pixel = data.images.clone()
    pixel[0, 0, 0, 0] ^= 1
    variants = [
        (data.images, data.labels, NAMES),
        (pixel, data.labels, NAMES),
        (data.images, data.labels.flip(0), NAMES),
        (data.images, data.labels, NAMES[::-1]),
        (data.images.reshape(-1, 3, 4, 16), data.labels, NAMES),
    ]
    prints = [ImageTensors(*variant, "elsewhere", data.device).fingerprint for variant in variants]
    assert len(set(prints)) == len(prints)
    assert prints[0] == data.fingerprint
    whole = json.dumps([[18, 3, 8, 8], NAMES]).encode() + data.images.numpy().tobytes()
    assert data.fingerprint == hashlib.sha256(whole + data.labels.numpy().tobytes()).hexdigest()


def test_check_same_classes():
    data = tensors()
    data.check_same_classes(tensors(seed=1))
    with fails("Label 1", "'dog'", "'eel'", "align_labels_with_mapping"):
        data.check_same_classes(tensors(names=("cat", "eel", "dog")))
    with fails("Label 3", "None", "'fox'"):
        data.check_same_classes(tensors(names=(*NAMES, "fox")))


def test_check_trainable():
    tensors().check_trainable()
    with fails("'eel'", "has 0 ", "drop the class"):
        tensors(per_class=(5, 5)).check_trainable()
    with fails("1 class", "needs 2", "add another class"):
        tensors(per_class=(5,), names=("cat",)).check_trainable()
    for size in (7, 65):
        with fails(f"{size}x{size}", "8 to 64", "image_size=32"):
            tensors(size=size).check_trainable()
    data = tensors()
    oblong = ImageTensors(data.images[..., :4, :], data.labels, NAMES, "toy", data.device)
    with fails("8x4", "squares", "image_size=32"):
        oblong.check_trainable()


def softly():
    data = tensors()
    return replace(data, soft_labels=torch.arange(len(data) * data.num_classes).view(len(data), -1).half())


def test_soft_labels_stay_with_their_images(tmp_path):
    data = softly()
    written = data.to_dataset()
    assert written.features["soft_label"] == List(Value("float16"), length=data.num_classes)
    written.to_parquet(tmp_path / "train.parquet")
    read = ImageTensors.from_dataset(tmp_path, device="cpu", progress=False)
    for again in (load(written), load(written.with_format("torch")), read):
        assert torch.equal(again.soft_labels, data.soft_labels)
        assert again.fingerprint == data.fingerprint
    assert data.fingerprint != tensors().fingerprint
    rows = torch.tensor([4, 0])
    assert torch.equal(data.gather_soft(rows), data.soft_labels[rows].float())
    for part in (data.subset(2, 0), *data.split(0.3)):
        places = [(data.images == image).flatten(1).all(1).nonzero().item() for image in part.images]
        assert torch.equal(part.soft_labels, data.soft_labels[places])
    assert data.stored_bytes == data.images.nbytes + 2 * data.soft_labels.numel()


def test_a_column_of_that_name_that_is_not_ours_is_left_alone():
    written = softly().to_dataset()
    for feature in (Value("string"), List(Value("float16"), length=2)):
        values = ["a"] * len(written) if feature == Value("string") else [[0.0, 1.0]] * len(written)
        foreign = written.remove_columns("soft_label").add_column("soft_label", values, feature=feature)
        assert load(foreign).soft_labels is None


def test_soft_labels_that_are_no_numbers_are_refused():
    data = softly()
    data.soft_labels[3, 0] = torch.nan
    with fails("soft_label", "not finite"):
        load(data.to_dataset())
