"""Stage `codes`: its loss, its effect on fresh networks, its bounds, resume, and codes for a generator that exists."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from hf_gdd import AutoGenerator, GlobalLocalTrainer
from hf_gdd.classifiers.networks import build_network
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize
from hf_gdd.data.pixels import to_unit
from hf_gdd.generators.base import class_grid
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.generators.sampling import Sampling
from hf_gdd.methods.global_local.losses import prefix_loss
from hf_gdd.training.trainer import Trainer

DIGITS = ImageTensors.from_dataset("digits").subset(20, 0)
WHOLE = ImageTensors.from_dataset("digits").subset(100, 0)
CARD = Path(__file__).parents[1] / "generators" / "saved_before" / "digits"  # without codes
GAN = {"width": 4, "noise_dim": 8, "max_steps": 4, "pool": ("convnet1",), "inner_steps": 1, "checkpoint_every": 1000}
GAN |= {"teacher_network": None}
CODES = {"codes_ipc": 3, "codes_steps": 6, "codes_real": 4, "codes_inner_steps": 1, "codes_refresh": 2, "log_every": 2}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(Trainer, "save_pictures", lambda self: None)


def make(folder, data=DIGITS, **overrides):
    return GlobalLocalTrainer(data, preset="tiny", output_dir=folder, **GAN | CODES | overrides)


def tune(folder, **overrides):
    """Codes of ten images per class for a trained generator."""
    codes = CODES | {"codes_ipc": 10, "codes_pool": ("convnet2",), "codes_real": 10} | overrides
    options = {"preset": "tiny", "generator": str(CARD), "teacher_network": None}
    return GlobalLocalTrainer(WHOLE, output_dir=folder, **options, **codes)


# The loss.


def distance_of_means(fake, real):
    return (fake.mean(0) - real.mean(0)).square().sum()


def energy_distance(fake, real):
    between = [(a - b).norm() for a in fake for b in real]
    within = [(a - b).norm() for a in fake for b in fake]
    return 2 * sum(between) / len(between) - sum(within) / len(within)


@pytest.mark.parametrize("power", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize(("name", "distance"), [("mean", distance_of_means), ("energy", energy_distance)])
def test_the_loss_is_the_equation(name, distance, power):
    fake, real = torch.randn(2, 4, 3, 2, dtype=torch.float64), torch.randn(2, 5, 3, 2, dtype=torch.float64)
    total, weights = 0.0, [m**power for m in range(1, 5)]
    for c in range(2):
        for m in range(1, 5):
            total += weights[m - 1] / sum(weights) * distance(fake[c, :m].flatten(1), real[c].flatten(1)) / 2
    scale = real.std() * 6**0.5 if name == "energy" else 1
    torch.testing.assert_close(prefix_loss(fake, real, name, power), total / scale)


@pytest.mark.parametrize("distance", ["mean", "energy"])
def test_a_prefix_is_matched_whatever_follows(distance):
    """Sets of the same images differ if their beginnings do."""
    real = torch.tensor([[[-1.0], [0.0], [0.0], [1.0]]])
    good, bad = torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]]]), torch.tensor([[[1.0], [1.0], [-1.0], [-1.0]]])
    assert prefix_loss(good, real, distance) < prefix_loss(bad, real, distance)


def test_the_energy_distance_sees_that_images_are_too_alike():
    real = torch.randn(1, 500, 4)
    alike, varied = real.mean(1, keepdim=True).expand(1, 50, 4), real[:, :50]
    assert prefix_loss(alike, real, "mean", 60.0) < prefix_loss(varied, real, "mean", 60.0)
    assert prefix_loss(alike, real, "energy", 60.0) > prefix_loss(varied, real, "energy", 60.0)


def test_equal_images_leave_a_finite_gradient():
    fake = torch.ones(1, 3, 4, requires_grad=True)
    prefix_loss(fake, torch.ones(1, 2, 4) + torch.eye(4)[:2]).backward()
    assert fake.grad.isfinite().all()


@pytest.mark.parametrize("left_out", ["codes_global_weight", "codes_local_weight", "codes_class_weight"])
def test_every_term_is_weighted_and_counts(tmp_path, left_out):
    trainers = [
        make(tmp_path / str(i), **{"codes_class_weight": 0.5, left_out: w}) for i, w in enumerate((0.0, 0.5, 1.0))
    ]
    terms = []
    for trainer in trainers:
        trainer.open()
        generator = trainer.plain_generator()
        network = build_network("convnet1", 10, (1, 8, 8), seed=1).eval()
        terms.append(trainer.codes.terms(generator, network, trainer.codes.draw_rows()))
        trainer.close()
    (name,) = terms[1].keys() - terms[0].keys()
    assert f"codes_{name}_weight" == left_out
    torch.testing.assert_close(2 * terms[1][name], terms[2][name])
    assert terms[2][name] > 0


def test_the_terms_compare_prefixes_with_real_images_of_their_class(tmp_path):
    trainer = make(tmp_path, codes_distance="mean")
    trainer.open()
    codes, generator, rows = trainer.codes, trainer.plain_generator(), trainer.codes.draw_rows()
    network = build_network("convnet1", 10, (1, 8, 8), seed=1).eval()
    terms = codes.terms(generator, network, rows)
    normalize, expected = Normalize(DIGITS.mean, DIGITS.std), {"global": 0.0, "local": 0.0}
    for part in rows:
        images, labels = DIGITS.gather(part)
        assert len(set(labels.tolist())) == 1
        one_hot = torch.zeros(3, 10).index_fill(1, labels[:1], 1.0)
        fake = generator(torch.cat([one_hot, codes.codes[labels[0]]], dim=1))
        for name, a, b in zip(
            expected, network(normalize((fake + 1) / 2)), network(normalize(to_unit(images))), strict=True
        ):
            expected[name] += prefix_loss(a[None], b[None], "mean") / 10
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name])
    trainer.close()


def test_rows_are_drawn_from_every_image_of_a_class(tmp_path):
    data = ImageTensors.from_dataset("digits").subset(3, 0)
    trainer = make(tmp_path, data=data)
    trainer.open()
    seen = torch.cat([trainer.codes.draw_rows().flatten() for _ in range(30)])
    assert set(seen.tolist()) == set(range(30))
    trainer.close()


# The effect, in networks that the codes were not tuned in, against the same number of plain draws.


def distances(generator):
    """Distances of the mean logits and features of the first 1, 3 and 10 images from the real means, by part."""
    data, normalize, totals = WHOLE, Normalize(WHOLE.mean, WHOLE.std), torch.zeros(2, 3)
    labels, indices = class_grid(10, 10)
    images = normalize(to_unit(generator.sample(labels, indices)))
    order = data.labels.argsort(stable=True)
    real = normalize(to_unit(data.images[order]))
    for seed in range(100, 103):
        network = build_network("convnet2", 10, (1, 8, 8), seed=seed).eval()
        with torch.no_grad():
            outputs = zip(network(images), network(real), strict=True)
        for part, (a, b) in enumerate(outputs):
            a, mean = a.flatten(1).unflatten(0, (10, 10)), b.flatten(1).unflatten(0, (10, -1)).mean(1)
            for i, m in enumerate((1, 3, 10)):
                totals[part, i] += (a[:, :m].mean(1) - mean).square().sum(1).mean() / mean.square().sum(1).mean()
    return totals


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Codes tuned by all, by one of the terms, and for the whole list alone, equally long and with equal draws."""
    folder = tmp_path_factory.mktemp("tuned")
    kinds = {
        "both": {},
        "global": {"codes_local_weight": 0.0},
        "local": {"codes_global_weight": 0.0},
        "whole": {"codes_power": 60.0},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_pictures", lambda self: None)
        return {name: tune(folder / name, codes_steps=30, **kind).fit() for name, kind in kinds.items()}


def test_codes_bring_every_prefix_nearer_to_the_real_images(tuned):
    plain, both = distances(AutoGenerator.from_pretrained(CARD)), distances(tuned["both"])
    assert (both < 0.7 * plain).all()


def test_each_term_moves_its_own_distance(tuned):
    plain = distances(AutoGenerator.from_pretrained(CARD))
    logits, features = (distances(tuned[name]) for name in ("global", "local"))
    assert (logits[0] < plain[0]).all()
    assert (features[1] < plain[1]).all()
    assert (features[1] < logits[1]).all()


def test_the_weights_of_small_prefixes_serve_small_sets(tuned):
    """Codes tuned for the whole list alone leave its first image where plain draws are."""
    assert (distances(tuned["both"])[:, 0] < 0.8 * distances(tuned["whole"])[:, 0]).all()


# The stage.


def test_codes_leave_the_generator_and_its_plain_draws_as_they_are(tmp_path):
    without, with_codes = make(tmp_path / "a", codes_ipc=0).fit(), make(tmp_path / "b").fit()
    assert without.codes is None
    assert (with_codes.codes.shape, with_codes.codes.dtype) == ((10, 3, 8), torch.float16)
    labels, indices = class_grid(10, 5)
    plain = without.sample(labels, indices)
    assert torch.equal(with_codes.sample(labels, indices, sampling=Sampling(distilled=False)), plain)
    distilled = with_codes.sample(labels, indices)
    assert torch.equal(distilled[indices >= 3], plain[indices >= 3])
    assert not torch.equal(distilled[indices < 3], plain[indices < 3])
    assert torch.equal(with_codes.sample(labels, indices, seed=1), without.sample(labels, indices, seed=1))


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({}, ["gan", "match", "codes"]),
        ({"method": "dim"}, ["gan", "match", "codes"]),
        ({"method": "cgan"}, ["gan", "codes"]),
        ({"codes_ipc": 0}, ["gan", "match"]),
        ({"generator": str(CARD)}, ["codes"]),
    ],
)
def test_stages(tmp_path, settings, stages):
    trainer = make(tmp_path, **settings)
    assert [stage.name for stage in trainer.stages] == stages
    assert all(stage.steps <= 4 for stage in trainer.stages)


def test_pictures_show_codes_from_their_stage_on(tmp_path):
    trainer, seen = make(tmp_path), []
    trainer.open()
    while trainer.advance():
        seen.append((trainer.stage.name, trainer.to_generator().codes is not None))
    trainer.close()
    assert set(seen) == {("gan", False), ("match", False), ("codes", True)}


@pytest.mark.parametrize("stop", [9, 11])
def test_a_stopped_stage_resumes_bit_for_bit(tmp_path, stop):
    whole = make(tmp_path / "whole").fit()
    first = make(tmp_path / "parts")
    first.open()
    while first.state.global_step < stop:
        first.advance()
    first.save_checkpoint()
    first.close()
    again = make(tmp_path / "parts").fit()
    assert torch.equal(again.codes, whole.codes)
    assert again.fingerprint == whole.fingerprint


def test_the_rate_falls_to_zero(tmp_path):
    trainer, rates = make(tmp_path), []
    trainer.open()
    while trainer.advance():
        if trainer.stage.name == "codes":
            rates.append(trainer.optimizer_codes.param_groups[0]["lr"])
    trainer.close()
    assert rates[0] == trainer.config.codes_lr
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]


# Bounds.


def test_classes_take_turns_where_all_would_be_too_many_images(tmp_path):
    trainer = make(tmp_path, codes_chunk=8)  # 3 images of 10 classes
    trainer.open()
    rows = [trainer.codes.draw_rows() for _ in range(30)]
    assert {tuple(each.shape) for each in rows} == {(2, 4)}
    classes = [DIGITS.labels[each[:, 0]].tolist() for each in rows]
    assert {label for pair in classes for label in pair} == set(range(10))
    trainer.close()
    before = deepcopy(trainer.codes.codes.detach())
    trainer.fit()
    assert (trainer.codes.codes.detach() != before).any()


def test_more_images_than_a_step_can_make_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"codes_ipc is 513, .* at most 512: raise codes_chunk"):
        make(tmp_path, codes_ipc=513)


def test_codes_that_do_not_fit_are_refused_before_they_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4000))
    with pytest.raises(ValueError, match=r"codes_ipc is 3: .* lower codes_ipc"):
        make(tmp_path).open()


def test_memory_running_out_names_the_setting(tmp_path):
    trainer = make(tmp_path)
    assert trainer.batch_size_setting(trainer.stages[-1]) == ("codes_chunk", 512)


@pytest.mark.parametrize("name", ["codes_ipc", "codes_inner_steps", "codes_class_weight"])
def test_negative_settings_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} is -1; it must not be negative"):
        make(tmp_path, **{name: -1})


def test_a_stage_without_any_distance_is_refused(tmp_path):
    with pytest.raises(ValueError, match="are both 0: nothing would tune the codes"):
        make(tmp_path, codes_global_weight=0.0, codes_local_weight=0.0)


# Codes for a generator that exists.


def test_a_trained_generator_gets_codes(tmp_path):
    original = AutoGenerator.from_pretrained(CARD)
    generator = make(tmp_path, generator=str(CARD)).fit()
    assert all(torch.equal(generator.weights[name], weight) for name, weight in original.weights.items())
    assert generator.codes.shape == (10, 3, 90)
    record = AutoGenerator.from_pretrained(tmp_path / "generator").config.training
    assert record["method"] == original.method
    assert (record["codes_ipc"], record["codes_source"]) == (3, DIGITS.source)


def test_a_generator_of_other_classes_is_refused(tmp_path):
    names = tuple("abcdefghij")
    ConditionalGANGenerator(names, (1, 8, 8), width=2, noise_dim=4).eval().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"Label 0 is .* give both the same classes"):
        make(tmp_path / "run", generator=str(tmp_path / "other")).open()


def test_a_generator_of_another_size_is_refused(tmp_path):
    other = ConditionalGANGenerator(DIGITS.class_names, (1, 16, 16), width=2, noise_dim=4).eval()
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="pass image_size=16, or another generator"):
        make(tmp_path / "run", generator=str(tmp_path / "other")).open()


def test_a_generator_without_codes_to_give_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pass codes_ipc too"):
        make(tmp_path, generator=str(CARD), codes_ipc=0)


# The teacher, which every stage comes before.


def test_a_finished_run_can_still_be_given_a_teacher(tmp_path):
    first = make(tmp_path).fit()
    assert not first.has_soft_labels
    again = make(tmp_path, teacher_network="convnet1", teacher_epochs=2)
    generator = again.fit()
    assert again.state.global_step == again.log.run.records()[-1]["step"] == 12
    assert torch.equal(generator.codes, first.codes)
    saved = AutoGenerator.from_pretrained(tmp_path / "generator")
    labels, indices = class_grid(10, 2)
    assert torch.equal(saved.soft_labels(labels, indices), generator.soft_labels(labels, indices))
    assert saved.teacher.config.training["epochs"] == 2
    assert 0 < saved.teacher.config.accuracy <= 1
