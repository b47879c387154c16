"""A generator may carry a teacher: its logits are the same in any batch, and what does not fit is refused."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from kinds import NAMES, bank, diffusion, gan, labeled, teacher_of, with_codes

from hf_gdd import AutoGenerator, DistilledStream, ImageBank, ImageTensors, load_distilled_dataset
from hf_gdd.classifiers.learner import accuracy
from hf_gdd.classifiers.networks import build_network
from hf_gdd.data.normalization import Normalize, ZCAWhitening
from hf_gdd.data.pixels import to_unit
from hf_gdd.generators.teacher import Teacher
from hf_gdd.hub.files import LoadError

SAVED = Path(__file__).with_name("saved_before")
DIGITS = ImageTensors.from_dataset("digits").subset(5, 0)
LABELED = {"gan": labeled, "diffusion": lambda: labeled(build=diffusion), "bank": bank}
kinds = pytest.mark.parametrize("kind", LABELED)


def requests(per_class, start=0):
    return torch.arange(3).repeat_interleave(per_class), torch.arange(start, start + per_class).repeat(3)


def rows_of(data):
    """Images and logits of a materialized set."""
    held = ImageTensors.from_dataset(data, device="cpu", progress=False)
    return held.images, held.soft_labels


# Logits.


@kinds
def test_soft_labels_are_the_logits_of_the_images(kind):
    generator, asked = LABELED[kind](), requests(9)
    images, soft = generator.sample(*asked), generator.soft_labels(*asked)
    network = deepcopy(generator.teacher.classifier).float()
    with torch.no_grad():
        expected = network(Normalize((0.5,), (0.5,))(to_unit(images)))[0]
    assert (soft.dtype, soft.shape) == (torch.float16, (27, 3))
    torch.testing.assert_close(soft.float(), expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(generator.soft_labels(*asked, images=images), soft)
    assert torch.equal(generator.label_images(images), soft)
    assert generator.has_soft_labels
    assert not generator.zca


@pytest.mark.parametrize("kind", ["gan", "diffusion"])
def test_soft_labels_follow_seed_and_sampling(kind):
    generator, asked = LABELED[kind](), requests(4)
    other = {"gan": {"truncation": 0.5}, "diffusion": {"guidance_scale": 4.0}}[kind]
    sampling = type(generator.sampling)(**generator.sampling.identity() | other)
    for options in ({"seed": 3}, {"seed": 1, "sampling": sampling}):
        soft = generator.soft_labels(*asked, **options)
        assert torch.equal(soft, generator.label_images(generator.sample(*asked, **options)))
        assert not torch.equal(soft, generator.soft_labels(*asked))


@pytest.mark.parametrize("network", ["convnet1", "resnet10-dd"])
def test_batches_and_threads_change_no_bit_of_the_logits(network, request):
    request.addfinalizer(lambda: torch.set_num_threads(1))
    teacher = teacher_of(network=network)
    images = torch.randint(256, (70, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = teacher.logits(images)
    assert torch.equal(torch.cat([teacher.logits(part) for part in images.split([1, 2, 34, 33])]), whole)
    torch.set_num_threads(2)
    assert torch.equal(teacher.logits(images), whole)
    assert teacher.logits(images[:0]).shape == (0, 3)
    assert len(whole.unique(dim=0)) > 60


def test_the_network_sees_batches_of_one_size_alone():
    """Kernels may round differently at another, even where they do not on this machine."""
    teacher, sizes = teacher_of(), set()
    teacher.classifier.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    for count in (1, 64, 70):
        teacher.logits(torch.zeros(count, 1, 8, 8, dtype=torch.uint8))
    assert sizes == {64}


def test_a_teacher_is_made_of_a_trained_network():
    network = build_network("convnet1", 10, (1, 8, 8), seed=3)
    teacher = Teacher.from_network("convnet1", network, DIGITS, training={"epochs": 2})
    assert {tensor.dtype for tensor in teacher.parameters()} == {torch.float16}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    halved = deepcopy(network).half().float()
    assert teacher.config.accuracy == accuracy(halved, DIGITS, Normalize(DIGITS.mean, DIGITS.std)) > 0
    assert (teacher.config.mean, teacher.config.class_names) == (DIGITS.mean, DIGITS.class_names)
    assert teacher.record == {"network": "convnet1", "accuracy": teacher.config.accuracy, "zca": False}
    torch.nn.init.constant_(next(network.parameters()), 1e6)
    with pytest.raises(ValueError, match="not finite in half precision"):
        Teacher.from_network("convnet1", network, DIGITS)


def test_a_teacher_of_whitened_images_needs_their_transform():
    network = build_network("convnet1", 10, (1, 8, 8), seed=3)
    teacher, whitening = Teacher.from_network("convnet1", network, DIGITS, zca=True), ZCAWhitening.fit(DIGITS)
    assert teacher.config.accuracy == accuracy(deepcopy(network).half().float(), DIGITS, whitening)
    with pytest.raises(ValueError, match=r"pass input_transform\(real, zca=True\)"):
        teacher.logits(DIGITS.images)
    record = {"class_names": DIGITS.class_names, "mean": DIGITS.mean, "std": DIGITS.std}
    images = DIGITS.images[DIGITS.labels.argsort(stable=True)].unflatten(0, (10, 5))
    with pytest.raises(ValueError, match="pass input_transform"):
        ImageBank.from_images(images, teacher=teacher, **record)
    held = ImageBank.from_images(images, teacher=teacher, transform=whitening, **record)
    assert held.zca
    assert torch.equal(held.label_images(images.flatten(0, 1), whitening), held.labels.flatten(0, 1))
    with pytest.raises(ValueError, match="only a bank can have it"):
        gan(names=DIGITS.class_names).teacher = teacher


# Sets and streams.


@pytest.mark.parametrize(("kind", "num_proc"), [*((kind, None) for kind in LABELED), ("gan", 2), ("bank", 2)])
def test_a_set_has_the_logits_of_its_images(kind, num_proc, tmp_path, request):
    request.addfinalizer(lambda: torch.set_num_threads(1))
    torch.set_num_threads(num_proc or 1)
    generator, options = LABELED[kind](), {"cache_dir": tmp_path, "num_proc": num_proc}
    small, large = (rows_of(load_distilled_dataset(LABELED[kind](), ipc=ipc, **options)) for ipc in (3, 12))
    assert torch.equal(large[0], generator.sample(*requests(12)))
    assert torch.equal(large[1], generator.soft_labels(*requests(12)))
    for few, many in zip(small, large, strict=True):
        assert torch.equal(few, many.unflatten(0, (3, 12))[:, :3].flatten(0, 1))


def test_a_set_of_another_seed_has_the_logits_of_its_own_images(tmp_path):
    images, soft = rows_of(load_distilled_dataset(labeled(), ipc=4, seed=2, cache_dir=tmp_path))
    assert torch.equal(soft, labeled().label_images(images))
    assert torch.equal(images, gan().sample(*requests(4), seed=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_has_the_logits_of_its_images(workers):
    stream = DistilledStream(labeled(), 7, seed=3, batch_size=6)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers) if workers else stream
    for _ in range(2):
        for batch in loader:
            assert list(batch) == ["image", "label", "soft_label"]
            assert torch.equal(batch["soft_label"], labeled().label_images(batch["image"]))
    assert [list(batch) for batch in DistilledStream(gan(), 7, batch_size=21)] == [["image", "label"]]


def test_batches_have_logits_if_asked_for_them():
    first, second = (DistilledStream(labeled(), 7, batch_size=6) for _ in range(2))
    for (images, labels), (same, again, soft) in zip(first.batches(5), second.batches(5, soft=True), strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, again)
        assert torch.equal(soft, labeled().label_images(images))
    with pytest.raises(ValueError, match="has no teacher"):
        next(DistilledStream(gan(), 7).batches(1, soft=True))


# Identity and storage.


def test_a_teacher_changes_no_image_and_is_part_of_the_fingerprint():
    assert torch.equal(labeled().sample(*requests(9)), with_codes().sample(*requests(9)))
    other = with_codes()
    other.teacher = teacher_of(1)
    assert len({with_codes().fingerprint, labeled().fingerprint, other.fingerprint}) == 3
    assert labeled().state_dict().keys() == gan().state_dict().keys()
    other.teacher = None
    assert other.fingerprint == with_codes().fingerprint
    assert other.soft_labels(*requests(1)) is None


def test_a_teacher_moves_with_the_generator_and_stays_float16():
    moved = deepcopy(labeled()).to(torch.bfloat16)
    assert {tensor.dtype for tensor in moved.teacher.parameters()} == {torch.float16}
    for build in LABELED.values():
        assert build().to("meta").teacher.device.type == "meta"


@kinds
def test_a_teacher_lies_in_a_subfolder(kind, tmp_path):
    generator = LABELED[kind]()
    generator.save_pretrained(tmp_path)
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["teacher"] == {"network": "convnet1", "accuracy": 0.75, "zca": False}
    loaded = AutoGenerator.from_pretrained(tmp_path)
    assert loaded.fingerprint == generator.fingerprint
    assert loaded.teacher.config.accuracy == 0.75
    assert torch.equal(loaded.soft_labels(*requests(3)), generator.soft_labels(*requests(3)))
    assert loaded.stored_parts(3) == generator.stored_parts(3)
    assert loaded.stored_parts(3)["teacher"] == teacher_of().stored_bytes
    gan().save_pretrained(tmp_path)
    assert not (tmp_path / "teacher").exists()


def test_a_stock_pipeline_loads_a_repo_that_carries_a_teacher(tmp_path):
    labeled(build=diffusion).save_pretrained(tmp_path)
    pipeline = DiTPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(pipeline.get_label_ids(["ant"]), num_inference_steps=2).images[0].size == (8, 8)


# Banks of format 1.


def test_a_bank_of_an_earlier_format_labels_as_before_and_is_saved_in_the_present_one(tmp_path):
    name = "digits-matching"
    held = AutoGenerator.from_pretrained(SAVED / name)
    labels, images, before = held.labels.flatten(0, 1).clone(), held.images.flatten(0, 1), held.fingerprint
    assert torch.allclose(held.label_images(images).float(), labels.float(), rtol=2e-3, atol=2e-3)
    assert held.fingerprint == before == json.loads((SAVED / name / "config.json").read_text())["fingerprint"]
    parts = held.stored_parts(10)
    assert parts["generator"] == images.nbytes + labels.nbytes
    held.save_pretrained(tmp_path)
    again = AutoGenerator.from_pretrained(tmp_path)
    assert again.fingerprint == held.fingerprint != before
    assert torch.equal(again.images.flatten(0, 1), images)
    assert torch.equal(again.labels.flatten(0, 1), labels)
    assert torch.equal(again.label_images(images), held.label_images(images))
    assert again.stored_parts(10) == parts
    assert again.config.teacher == {"network": held.teacher.config.network, "accuracy": None, "zca": False}
    of_before = sum(row.generator == before for row in AutoGenerator.from_pretrained(SAVED / name).report.results)
    assert sum(row.generator == again.fingerprint for row in again.report.results) == of_before > 0
    assert again.report == held.report


def test_a_generator_of_an_earlier_format_is_the_same_until_it_is_saved_again(tmp_path):
    shutil.copytree(SAVED / "digits", tmp_path / "zero")
    config = json.loads((tmp_path / "zero" / "config.json").read_text())
    del config["format_version"]
    (tmp_path / "zero" / "config.json").write_text(json.dumps(config))
    for folder in (SAVED / "digits", tmp_path / "zero"):
        generator = AutoGenerator.from_pretrained(folder)
        assert generator.fingerprint == config["fingerprint"]
        generator.save_pretrained(tmp_path / "new")
        new = AutoGenerator.from_pretrained(tmp_path / "new")
        assert new.fingerprint == generator.fingerprint != config["fingerprint"]
        assert new.config.format_version == 2
        assert any(row.generator == new.fingerprint for row in new.report.results)
        assert not any(row.generator == config["fingerprint"] for row in new.report.results)
        asked = torch.arange(10), torch.zeros(10, dtype=torch.int64)
        assert np.array_equal(new.sample(*asked), generator.sample(*asked))


# Refusals.


@pytest.mark.parametrize(
    "record", [{"names": ("ant", "zebra", "mole")}, {"names": (*NAMES, "bee")}, {"shape": (3, 8, 8)}]
)
@pytest.mark.parametrize("build", [gan, diffusion, bank])
def test_a_teacher_that_does_not_fit_is_refused_before_any_work(record, build, tmp_path):
    words = "sees images" if "shape" in record else "classes"
    generator, images = build(), torch.zeros(3, 2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"The teacher.*{words}"):
        generator.teacher = teacher_of(**record)
    with pytest.raises(ValueError, match=f"The teacher.*{words}"):
        ImageBank.from_images(images, teacher=teacher_of(**record), class_names=NAMES)
    LABELED["bank" if build is bank else "gan"]().save_pretrained(tmp_path)
    teacher_of(**record).write(tmp_path / "teacher")
    with pytest.raises(LoadError, match=f"teacher does not fit: The teacher.*{words}"):
        AutoGenerator.from_pretrained(tmp_path)


def test_a_bank_takes_no_other_teacher_than_that_of_its_labels():
    for held in (bank(), bank(teacher=None)):
        with pytest.raises(ValueError, match=r"pass its teacher to ImageBank\.from_images"):
            held.teacher = teacher_of()
    labeled_bank = bank()
    with pytest.raises(ValueError, match="stored"):
        labeled_bank.teacher = None
    bank(teacher=None).teacher = None


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f / "teacher"), "there must be a teacher"),
        (lambda f: edit(f / "config.json", teacher=None), "does not name the teacher|unexpected keys"),
        (lambda f: teacher_of(accuracy=0.99).write(f / "teacher"), "does not name the teacher"),
        (lambda f: teacher_of(1).write(f / "teacher"), "fingerprint"),
        (lambda f: teacher_of(mean=(0.25,)).write(f / "teacher"), "fingerprint"),
        (lambda f: edit(f / "teacher" / "config.json", network="convnet2"), "could not be loaded"),
        (lambda f: edit(f / "teacher" / "config.json", network="convnet99"), "Unknown network 'convnet99'"),
        (lambda f: edit(f / "teacher" / "config.json", accuracy=7), "accuracy of the teacher is 7"),
        (lambda f: edit(f / "teacher" / "config.json", _class_name="Evil"), "describes a 'Evil', not a Teacher"),
        (lambda f: edit(f / "teacher" / "config.json", quantization_config={}), "asks for a quantizer"),
        (lambda f: edit(f / "teacher" / "config.json", class_names=5), "does not fit"),
        (lambda f: (f / "teacher" / "config.json").write_text("{"), "not the config"),
    ],
)
@kinds
def test_a_damaged_teacher_is_refused(kind, tmp_path, damage, message):
    LABELED[kind]().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(LoadError, match=message):
        AutoGenerator.from_pretrained(tmp_path)


def test_a_teacher_whose_weights_are_not_finite_is_refused(tmp_path):
    generator = labeled()
    next(generator.teacher.parameters()).fill_(torch.inf)
    generator.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="not finite"):
        AutoGenerator.from_pretrained(tmp_path)
