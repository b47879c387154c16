"""Distilled codes and teachers in an evaluation: what is measured of them, beside what, and what the report says."""

import pytest
import torch
from kinds import gan
from toys import NAMES, QUICK, RIGHT, TaughtToy, toy

from hf_gdd.classifiers.learner import softened_divergence
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.evaluation import evaluator as module
from hf_gdd.evaluation.evaluate import baselines, evaluate
from hf_gdd.generators.sampling import Sampling
from hf_gdd.generators.teacher import Teacher
from hf_gdd.report import RANDOM_REAL, SOFT, TEACHER, Report

M = 4


@pytest.fixture
def distilled():
    """A GAN with four codes a class and a teacher, and the seeds and settings it was asked for."""
    generator, asked = gan(names=NAMES), []
    generator.codes = torch.randn(3, M, 90, generator=torch.Generator().manual_seed(1))
    generator.teacher = Teacher.from_network("convnet1", build_network("convnet1", 3, (1, 8, 8), seed=0), toy())
    sample = generator.sample

    def remember(labels, indices, seed=0, sampling=None):
        asked.append((seed, generator.choose_sampling(sampling).distilled, len(labels)))
        return sample(labels, indices, seed, sampling)

    generator.sample = remember
    generator.asked = asked
    return generator


@pytest.fixture
def seen(monkeypatch):
    """The images and labels that networks learn, by protocol, of each first network."""
    batches, of = {}, module.Evaluator.evaluate_batches

    def remember(self, make, images, stored_bytes, **row):
        def spy(i, random):
            for batch in make(i, random):
                batches.setdefault((row["name"], row["protocol"]), []).append(batch)
                yield batch

        return of(self, spy, images, stored_bytes, **row)

    monkeypatch.setattr(module.Evaluator, "evaluate_batches", remember)
    return batches


def pixels(batches):
    return {image.numpy().tobytes() for images, _ in batches for image in images}


def images_of(generator, ipc, seed=0, **sampling):
    labels, indices = torch.arange(3).repeat_interleave(ipc), torch.arange(ipc).repeat(3)
    return {image.numpy().tobytes() for image in generator.sample(labels, indices, seed, Sampling(**sampling))}


def test_sets_are_distilled_and_fresh_images_are_plain(distilled, seen):
    protocols = ("fixed", "soft", "dynamic", "dynamic-soft", "dynamic-best5-test", "dynamic-pool-2")
    options = QUICK | {"n": 1, "recipe": Recipe(max_steps=1)}
    report = evaluate(distilled, toy(seed=1), ipc=2, protocol=protocols, **options)
    plain, ours = images_of(distilled, 4, distilled=False), images_of(distilled, 4)
    assert not plain & ours
    for protocol in protocols:
        shown = pixels(seen[distilled.method, protocol])
        assert shown <= (plain if protocol.startswith("dynamic") else ours), protocol
    found = {row.protocol: row for row in report.results}
    for protocol, row in found.items():
        assert row.sampling == f"truncation=1.0, distilled={not protocol.startswith('dynamic')}"
    codes, teacher = 3 * 2 * 90 * 2, distilled.teacher.stored_bytes
    weights = {"generator": distilled.stored_bytes}
    assert found["fixed"].stored_parts == weights | {"codes": codes}
    assert found["soft"].stored_parts == weights | {"codes": codes, "teacher": teacher}
    assert found["dynamic"].stored_parts == found["dynamic-pool-2"].stored_parts == weights
    assert found["dynamic-soft"].stored_parts == weights | {"teacher": teacher}
    names = [line.split("|")[1].strip() for line in report.markdown().splitlines() if line.startswith("| untrained")]
    assert names == ["untrained, distilled=True"] * 2 + ["untrained, distilled=False"] * 4


def test_soft_rows_learn_the_teachers_logits(distilled, seen):
    evaluate(distilled, toy(seed=1), ipc=2, protocol=("soft", "dynamic-soft"), **QUICK | {"n": 1})
    for protocol in ("soft", "dynamic-soft"):
        for images, labels in seen[distilled.method, protocol]:
            assert torch.equal(labels.half(), distilled.label_images(images))
    images, labels = seen[distilled.method, "fixed"][0]
    assert labels.dtype == torch.int64


def test_images_have_a_seed_of_their_own(distilled, caplog):
    protocols, options = ("fixed", "dynamic"), QUICK | {"recipe": Recipe(max_steps=1)}
    evaluate(distilled, toy(seed=1), ipc=2, protocol=protocols, seed=7, **options)
    assert [(seed, is_distilled) for seed, is_distilled, _ in distilled.asked] == [(0, True), (0, False), (1, False)]
    assert not caplog.messages
    distilled.asked.clear()
    report = evaluate(distilled, toy(seed=1), ipc=2, protocol=protocols, image_seed=3, **options)
    assert [seed for seed, _, _ in distilled.asked] == [3, 3, 4]
    assert len([message for message in caplog.messages if "Seed 3" in message]) == 1
    fixed = report.results[0]
    assert fixed.sampling == "truncation=1.0, distilled=False, image_seed=3"  # as the images are
    assert fixed.seeds == (0, 1)
    assert "codes" not in fixed.stored_parts


def test_plain_draws_of_a_set_can_be_asked_for(distilled, seen):
    options = QUICK | {"n": 1, "sampling": Sampling(distilled=False)}
    report = evaluate(distilled, toy(seed=1), ipc=2, protocol="fixed", **options)
    assert pixels(seen[distilled.method, "fixed"]) == images_of(distilled, 2, distilled=False)
    assert report.results[0].stored_parts.keys() == {"generator"}


def test_quality_is_that_of_the_set(distilled):
    options = QUICK | {"real": toy(), "quality": True, "with_baselines": False}
    (row,) = evaluate(distilled, toy(seed=1), ipc=2, protocol="dynamic", name="ours", **options).quality[2:]
    assert (row.name, row.sampling) == ("ours", "truncation=1.0, distilled=True")


def test_a_generator_without_codes_keeps_the_text_of_its_rows():
    for protocol in ("fixed", "dynamic"):
        (row,) = evaluate(gan(names=NAMES), toy(), ipc=2, protocol=protocol, **QUICK).results
        assert row.sampling == "truncation=1.0"


def test_the_teacher_and_random_real_images_stand_beside_soft_rows(distilled):
    test = toy(seed=1)
    for protocol in ("soft", "dynamic-soft"):
        report = evaluate(distilled, test, real=toy(), ipc=2, protocol=protocol, **QUICK)
        (row,) = report.find(TEACHER)
        share = (distilled.label_images(test.images).argmax(1) == test.labels).float().mean()
        assert row.accuracies == (pytest.approx(float(share)),)
        assert (row.network, row.ipc, row.stored_bytes) == ("convnet1", None, distilled.teacher.stored_bytes)
        assert [row.ipc for row in report.find(RANDOM_REAL, protocol=SOFT)] == [2]
        assert not report.problems
    assert not evaluate(distilled, test, real=toy(), ipc=2, protocol="fixed", **QUICK).find(TEACHER)
    assert not evaluate(distilled, test, ipc=2, protocol="soft", **QUICK).find(TEACHER)
    shared = baselines(toy(), test, ipc=2, bank=distilled, **QUICK)
    alone = evaluate(distilled, test, real=toy(), ipc=2, with_baselines=False, **QUICK)
    assert Report.merge([shared, alone]).find(TEACHER) == shared.find(TEACHER)


def test_dynamic_soft_needs_fresh_images():
    with pytest.raises(ValueError, match="no fresh ones for 'dynamic-soft'"):
        evaluate(TaughtToy(RIGHT, max_ipc=5), toy(), ipc=2, protocol="dynamic-soft", **QUICK)
    with pytest.raises(ValueError, match="There are no soft labels"):
        evaluate(gan(names=NAMES), toy(), ipc=2, protocol="dynamic-soft", **QUICK)


def test_stored_images_and_data_sets_have_no_image_seed():
    with pytest.raises(ValueError, match="images of this generator are stored"):
        evaluate(TaughtToy(RIGHT), toy(), ipc=2, image_seed=1, **QUICK)
    with pytest.raises(ValueError, match="image_seed is 1, but the images of a data set are fixed"):
        evaluate(toy(), toy(), image_seed=1, **QUICK)


def test_the_recipe_names_the_soft_loss(distilled, monkeypatch):
    losses = []
    monkeypatch.setattr(
        "hf_gdd.classifiers.learner.softened_divergence",
        lambda *args, **kwargs: losses.append(kwargs["temperature"]) or softened_divergence(*args, **kwargs),
    )
    options = QUICK | {"n": 1, "recipe": Recipe(max_steps=2, soft_loss="kl", temperature=3.0)}
    report = evaluate(distilled, toy(), ipc=2, protocol="soft", **options)
    assert losses == [3.0, 3.0]
    assert "soft_loss kl, temperature 3.0" in report.markdown()
    plain = evaluate(distilled, toy(), ipc=2, protocol="soft", **QUICK)
    assert "soft_loss" not in plain.recipe
    with pytest.raises(ValueError, match="differ in 'recipe'"):
        Report.merge([report, plain])
