"""Distilled codes: nested sets of seed 0, plain draws untouched, a file of their own, and refusals before any work."""

import json
import logging
from copy import deepcopy

import pytest
import torch
from kinds import NAMES, bank, chosen, codes, diffusion, gan, with_chosen, with_codes
from safetensors.torch import load_file, save_file

from hf_gdd import (
    AutoGenerator,
    DiffusionSampling,
    DistilledStream,
    ImageTensors,
    Sampling,
    load_distilled_dataset,
)
from hf_gdd.generators.codes import draw_numbers
from hf_gdd.generators.noise import noise
from hf_gdd.hub.files import CODES, LoadError
from hf_gdd.report import Report, Result

PLAIN = Sampling(distilled=False)


def requests(per_class, start=0):
    return torch.arange(3).repeat_interleave(per_class), torch.arange(start, start + per_class).repeat(3)


def pixels(data):
    return ImageTensors.from_dataset(data, device="cpu", progress=False).images


def configure(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# The seed rule.


def test_the_first_images_of_seed_0_are_made_from_the_codes():
    generator, (labels, indices) = with_codes(), requests(5)
    made = generator(generator.code(labels, codes().flatten(0, 1).float()))
    expected = ((made.detach() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(generator.sample(labels, indices), expected)
    assert (generator.sample(labels, indices) != gan().sample(labels, indices)).float().mean() > 0.5


@pytest.mark.parametrize(("start", "seed", "sampling"), [(5, 0, None), (0, 3, None), (0, 0, PLAIN), (3, 2, PLAIN)])
def test_all_other_images_are_those_of_the_generator_without_codes(start, seed, sampling):
    asked = (*requests(9, start), seed, sampling)
    assert torch.equal(with_codes().sample(*asked), gan().sample(*asked))


def test_a_stream_takes_the_distilled_images_once_and_plain_ones_after():
    stream = DistilledStream(with_codes(), 4, batch_size=12)
    for start in (0, 4, 8):
        (images, labels), expected = next(stream.batches(1)), with_codes().sample(*requests(4, start))
        order = {bytes(image.flatten().tolist()): label for image, label in zip(expected, requests(4)[0], strict=True)}
        assert {bytes(x.flatten().tolist()): y for x, y in zip(images, labels, strict=True)} == order
    plain = DistilledStream(with_codes(), 4, batch_size=12, sampling=PLAIN)
    bare = DistilledStream(gan(), 4, batch_size=12)
    for one, other in zip(plain.batches(3), bare.batches(3), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_truncation_scales_plain_draws_alone():
    calm, labels = Sampling(0.5), requests(5)[0]
    assert torch.equal(with_codes().sample(*requests(5), sampling=calm), with_codes().sample(*requests(5)))
    scaled = with_codes().sample(*requests(5, 5), sampling=calm)
    assert torch.equal(scaled, gan().sample(*requests(5, 5), sampling=calm))
    assert noise(0, labels, labels, (90,)).std() > 0.5


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_small_set_begins_a_large_one_across_the_end_of_the_codes(tmp_path, num_proc, request):
    request.addfinalizer(lambda: torch.set_num_threads(1))
    torch.set_num_threads(num_proc or 1)
    options = {"cache_dir": tmp_path, "num_proc": num_proc}
    small, large = (pixels(load_distilled_dataset(with_codes(), ipc=ipc, **options)) for ipc in (3, 50))
    assert torch.equal(small, large.unflatten(0, (3, 50))[:, :3].flatten(0, 1))
    parts = [with_codes().sample(*part) for part in zip(*(x.split(7) for x in requests(50)), strict=True)]
    assert torch.equal(large, torch.cat(parts))


@pytest.mark.parametrize("streaming", [False, True])
def test_another_seed_logs_one_line(tmp_path, caplog, streaming):
    options = {"ipc": 2, "streaming": streaming, "cache_dir": tmp_path}
    with caplog.at_level(logging.INFO, "hf_gdd"):
        load_distilled_dataset(with_codes(), seed=3, **options)
        assert [record.message for record in caplog.records] == [
            "Seed 3 draws plain images: the distilled ones are those of seed 0."
        ]
        caplog.clear()
        load_distilled_dataset(with_codes(), **options)
        load_distilled_dataset(with_codes(), seed=3, sampling=PLAIN, **options)
        load_distilled_dataset(gan(), seed=3, **options)
    assert not caplog.records


# Identity.


def test_sampling_names_distilled_only_where_there_are_codes():
    assert gan().sampling_identity() == gan().sampling_identity(PLAIN) == {"truncation": 1.0}
    assert gan().choose_sampling(PLAIN) == Sampling()
    assert with_codes().sampling_identity(PLAIN) == {"truncation": 1.0, "distilled": False}
    assert with_codes().choose_sampling(PLAIN).cache_key == "Sampling(truncation=1.0, distilled=False)"
    assert with_codes().choose_sampling().cache_key == Sampling().cache_key == "Sampling(truncation=1.0)"
    assert bank().sampling_identity() == {}
    assert set(diffusion().sampling_identity()) == {"guidance_scale", "num_inference_steps", "scheduler"}


def test_sets_with_and_without_codes_are_different_sets(tmp_path):
    def place(generator, **options):
        data = load_distilled_dataset(generator, ipc=2, cache_dir=tmp_path, **options)
        return data.cache_files[0]["filename"]

    assert place(gan()) == place(gan(), sampling=PLAIN)
    assert len({place(gan()), place(with_codes()), place(with_codes(), sampling=PLAIN)}) == 3


def test_codes_are_part_of_the_fingerprint():
    other = with_codes()
    changed = other.codes.clone()
    changed[2, 4, 89] += 1e-3
    other.codes = changed
    assert len({gan().fingerprint, with_codes().fingerprint, other.fingerprint}) == 3


@pytest.mark.parametrize("field", [{"mean": (0.25,)}, {"std": (0.25,)}, {"names": ("zebra", "ant", "mouse")}])
def test_statistics_and_class_names_are_part_of_the_fingerprint(field):
    assert gan(**field).fingerprint != gan().fingerprint


def test_sizes_are_stated_by_part():
    generator = with_codes()
    assert generator.stored_parts(3) == {"generator": gan().stored_bytes, "codes": 3 * 3 * 90 * 2}
    assert generator.stored_parts(50)["codes"] == generator.codes.nbytes == 3 * 5 * 90 * 2
    assert gan().stored_parts(3) == {"generator": gan().stored_bytes}
    assert (gan().distilled_ipc, generator.distilled_ipc, bank().distilled_ipc) == (0, 5, 12)


# Storage.


def test_codes_are_no_weights_and_stay_float16():
    generator = with_codes()
    assert generator.state_dict().keys() == gan().state_dict().keys()
    assert torch.equal(deepcopy(generator).to(torch.bfloat16).codes, codes())
    assert torch.equal(deepcopy(generator).double().half().codes, codes())
    assert deepcopy(generator).to("meta").codes.device.type == "meta"
    generator.codes = None
    assert torch.equal(generator.sample(*requests(5)), gan().sample(*requests(5)))
    assert generator.fingerprint == gan().fingerprint


def test_codes_travel_in_a_file_of_their_own(tmp_path):
    generator = with_codes()
    generator.save_pretrained(tmp_path)
    assert {name: (x.dtype, tuple(x.shape)) for name, x in load_file(tmp_path / CODES).items()} == {
        "codes": (torch.float16, (3, 5, 90))
    }
    loaded = AutoGenerator.from_pretrained(tmp_path)
    assert torch.equal(loaded.codes, generator.codes)
    assert torch.equal(loaded.sample(*requests(9)), generator.sample(*requests(9)))
    assert loaded.fingerprint == generator.fingerprint
    assert json.loads((tmp_path / "config.json").read_text())["sampling"] == {"truncation": 1.0, "distilled": True}
    gan().save_pretrained(tmp_path)
    assert not (tmp_path / CODES).exists()
    assert AutoGenerator.from_pretrained(tmp_path).codes is None


def test_codes_for_a_generator_of_an_earlier_format_give_it_the_present_one():
    generator = gan(format_version=1)
    before, row = generator.fingerprint, {"name": "x", "protocol": "fixed", "network": "n", "ipc": 1, "steps": 1}
    row |= {"accuracies": (0.5,), "seeds": (0,), "generator_seed": 0, "distinct_images": 3, "stored_bytes": 1}
    generator.report = Report((Result(**row, seconds=1.0, generator=before),), "train", "test", {}, "real", "cpu")
    generator.codes = None
    assert generator.fingerprint == before
    generator.codes = codes()
    assert generator.config.format_version == 2
    assert generator.fingerprint == with_codes().fingerprint


# Refusals.


@pytest.mark.parametrize(
    "wrong", [codes(noise_dim=80), codes(num_classes=4), codes(count=0), codes()[0], codes().fill_(torch.nan)]
)
def test_codes_that_do_not_fit_are_refused_before_any_work(wrong, tmp_path):
    message = "not finite" if wrong.isnan().any() else "do not fit a generator of 3 classes and noise_dim 90"
    generator = gan()
    with pytest.raises(ValueError, match=message):
        generator.codes = wrong
    assert generator.codes is None
    with_codes().save_pretrained(tmp_path)
    save_file({"codes": wrong.contiguous()}, tmp_path / CODES)
    with pytest.raises(LoadError, match="not finite" if wrong.isnan().any() else r"describes codes float16 \[3, 5, 90"):
        AutoGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / CODES).unlink(), "codes.safetensors cannot be read"),
        (lambda folder: (folder / CODES).write_bytes(b"\xff" * 100), "cannot be read"),
        (lambda folder: save_file({"codes": codes().float()}, folder / CODES), "holds .*F32"),
        (lambda folder: save_file({"codes": codes(), "more": codes()}, folder / CODES), "holds .*more"),
        (lambda folder: save_file({"codes": codes(1)}, folder / CODES), "fingerprint"),
        (lambda folder: configure(folder, distilled_ipc=0), "names none"),
        (lambda folder: configure(folder, distilled_ipc=4), r"describes codes float16 \[3, 4, 90"),
        (lambda folder: configure(folder, distilled_ipc=30_000_000), r"describes codes float16 \[3, 30000000, 90"),
        (lambda folder: configure(folder, distilled_ipc=10**12), "distilled_ipc is 1000000000000"),
        (lambda folder: configure(folder, distilled_ipc="5"), "distilled_ipc is '5'"),
        (lambda folder: configure(folder, distilled_ipc=-5), "distilled_ipc is -5"),
    ],
)
def test_a_damaged_or_foreign_file_of_codes_is_refused(tmp_path, damage, message):
    with_codes().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(LoadError, match=message):
        AutoGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize("build", [diffusion, bank])
def test_codes_that_no_config_names_are_refused(tmp_path, build):
    build().save_pretrained(tmp_path)
    save_file({"codes": codes()}, tmp_path / CODES)
    with pytest.raises(LoadError, match="names none"):
        AutoGenerator.from_pretrained(tmp_path)


def test_a_bank_has_no_codes(tmp_path):
    with pytest.raises(ValueError, match="ImageBank is a kind of generator without distilled codes"):
        bank().codes = codes()
    bank().save_pretrained(tmp_path)
    save_file({"codes": codes()}, tmp_path / CODES)
    configure(tmp_path, distilled_ipc=5)
    with pytest.raises(LoadError, match="which this kind of generator cannot have"):
        AutoGenerator.from_pretrained(tmp_path)


# Chosen draws of a diffusion generator.

QUICK = {"num_inference_steps": 3, "guidance_scale": 2.0, "scheduler": "ddpm"}  # its own settings
DRAWN = DiffusionSampling(**QUICK, distilled=False)


def test_images_are_a_permutation_of_draws():
    rows = chosen()[:1].expand(14, -1)  # 7, 2, 11, 6, 1: so 0, 3 and 4 go to the places of 6, 7 and 11
    assert draw_numbers(rows, torch.arange(14)).tolist() == [7, 2, 11, 6, 1, 5, 0, 3, 8, 9, 10, 4, 12, 13]
    rng = torch.Generator().manual_seed(0)
    for count, candidates in ((1, 1), (1, 9), (4, 4), (6, 8), (6, 60), (40, 60)):
        for _ in range(5):
            row = torch.randperm(candidates, generator=rng)[:count].int()
            numbers = draw_numbers(row.expand(80, -1), torch.arange(80))
            assert torch.equal(numbers.sort().values, torch.arange(80))
            assert torch.equal(numbers[:count], row.long())
            stay = ~torch.isin(torch.arange(80), row)
            stay[:count] = False
            assert torch.equal(numbers[stay], torch.arange(80)[stay])


def test_the_first_images_are_the_chosen_draws_and_none_is_repeated_or_lost(tmp_path):
    drawn = diffusion().sample(*requests(40)).unflatten(0, (3, 40))
    large = with_chosen().sample(*requests(40)).unflatten(0, (3, 40))
    for label, row in enumerate(chosen()):
        assert torch.equal(large[label, :5], drawn[label, row])
        ours, theirs = (sorted(image.flatten().tolist() for image in images[label]) for images in (large, drawn))
        assert ours == theirs
        assert ours[0] != ours[1]
    for ipc in (3, 12):
        made = pixels(load_distilled_dataset(with_chosen(), ipc=ipc, cache_dir=tmp_path, batch_size=7))
        assert torch.equal(made, large[:, :ipc].flatten(0, 1))
    stream = DistilledStream(with_chosen(), 8, batch_size=24)
    seen = torch.cat([images for images, _ in stream.batches(5)])
    assert sorted(x.flatten().tolist() for x in seen) == sorted(x.flatten().tolist() for x in drawn.flatten(0, 1))


@pytest.mark.parametrize(("seed", "sampling"), [(3, None), (0, DRAWN), (2, DRAWN)])
def test_plain_draws_are_those_of_the_generator_without_chosen_ones(seed, sampling):
    asked = (*requests(12), seed, sampling)
    assert torch.equal(with_chosen().sample(*asked), diffusion().sample(*asked))


def test_sampling_of_diffusion_names_distilled_only_where_draws_are_chosen():
    key = "DiffusionSampling(guidance=2.0, steps=3, scheduler='ddpm')"
    assert diffusion().choose_sampling(DRAWN).cache_key == with_chosen().choose_sampling().cache_key == key
    assert with_chosen().choose_sampling(DRAWN).cache_key == f"{key[:-1]}, distilled=False)"
    assert diffusion().sampling_identity(DRAWN) == QUICK
    assert with_chosen().sampling_identity(DRAWN) == QUICK | {"distilled": False}


def test_chosen_draws_travel_in_a_file_of_their_own(tmp_path):
    generator = with_chosen()
    assert generator.stored_parts(3) == {"generator": diffusion().stored_bytes, "codes": 3 * 3 * 4}
    assert len({diffusion().fingerprint, generator.fingerprint}) == 2
    generator.save_pretrained(tmp_path)
    (name, tensor), *others = load_file(tmp_path / CODES).items()
    assert (name, tensor.dtype, tuple(tensor.shape), others) == ("codes", torch.int32, (3, 5), [])
    for dtype in (None, "bfloat16"):
        loaded = AutoGenerator.from_pretrained(tmp_path, dtype=dtype)
        assert torch.equal(loaded.codes, chosen())
        assert loaded.codes.dtype == torch.int32
        assert loaded.distilled_ipc == 5
    loaded = AutoGenerator.from_pretrained(tmp_path)
    assert loaded.fingerprint == generator.fingerprint
    assert torch.equal(loaded.sample(*requests(9)), generator.sample(*requests(9)))
    assert deepcopy(loaded).to("meta").codes.device.type == "meta"
    loaded.codes = None
    assert loaded.fingerprint == diffusion().fingerprint
    loaded.save_pretrained(tmp_path)
    assert not (tmp_path / CODES).exists()
    assert AutoGenerator.from_pretrained(tmp_path).codes is None


def test_chosen_draws_go_with_their_classes(tmp_path, caplog):
    whole = with_chosen()
    some = whole.select(["mole", "zebra"], ("m", "z"))
    assert torch.equal(some.codes, chosen()[[2, 0]])
    labels, indices = torch.tensor([0, 1]).repeat_interleave(9), torch.arange(9).repeat(2)
    for sampling in (None, DRAWN):
        expected = whole.sample(torch.tensor([2, 0])[labels], indices, sampling=sampling)
        assert torch.equal(some.sample(labels, indices, sampling=sampling), expected)
    again = some.select(["zebra", "mole"])
    assert again.noise_labels.tolist() == [0, 2]
    some.save_pretrained(tmp_path)
    loaded = AutoGenerator.from_pretrained(tmp_path)
    assert loaded.fingerprint == some.fingerprint
    assert torch.equal(loaded.sample(labels, indices), some.sample(labels, indices))
    assert whole.select(NAMES).fingerprint == whole.fingerprint
    assert not caplog.records
    assert some.select(["ant", "mole"]).codes is None  # which the model knows, but this generator has no draws of
    assert "all images are plain draws" in caplog.text
    plain = diffusion().select(["mole", "zebra"], ("m", "z"))
    assert plain.noise_labels.tolist() == [0, 1]
    assert plain.codes is None


NUMBERS = "Chosen draws are numbers in 0..99,999,999"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (chosen()[:, [0, 1, 0]], "chosen twice"),
        (chosen() - 2, NUMBERS),
        (chosen() + 10**8, NUMBERS),
        (chosen(2), "do not fit a generator of 3 classes"),
        (chosen()[:, :0], "do not fit a generator of 3 classes"),
        (chosen()[0], "do not fit a generator of 3 classes"),
        (codes(), "do not fit a generator of 3 classes"),
        (chosen().float(), "whole numbers, int32 or int64, not float32"),
        (chosen().float() * torch.nan, "whole numbers"),
    ],
)
def test_chosen_draws_that_do_not_fit_are_refused(tmp_path, wrong, message):
    generator = diffusion()
    with pytest.raises(ValueError, match=message):
        generator.codes = wrong
    assert generator.codes is None
    with_chosen().save_pretrained(tmp_path)
    save_file({"codes": wrong.contiguous()}, tmp_path / CODES)
    same_layout = (wrong.dtype, tuple(wrong.shape)) == (torch.int32, (3, wrong.shape[-1])) and wrong.numel()
    if same_layout:
        configure(tmp_path, distilled_ipc=wrong.shape[1])
    expected = message if same_layout and len(wrong) == 3 else r"describes codes int32 \[3, 5\]"
    with pytest.raises(LoadError, match=expected):
        AutoGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distilled_ipc": 0}, "names none"),
        ({"distilled_ipc": 30_000_000}, r"describes codes int32 \[3, 30000000\]"),
        ({"distilled_ipc": 10**12}, "distilled_ipc is 1000000000000"),
        ({"noise_labels": [0, 1]}, "noise_labels"),
        ({"noise_labels": [0, 1, -1]}, "noise_labels"),
        ({"noise_labels": [2, 1, 0]}, "fingerprint"),
    ],
)
def test_a_config_that_does_not_fit_the_chosen_draws_is_refused(tmp_path, fields, message):
    with_chosen().save_pretrained(tmp_path)
    configure(tmp_path, **fields)
    with pytest.raises(LoadError, match=message):
        AutoGenerator.from_pretrained(tmp_path)
