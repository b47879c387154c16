"""Scores of images stand beside those of random real and of test images."""

from dataclasses import replace

import pytest
from toys import QUICK, ToyGenerator, toy

from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.evaluation.evaluate import evaluate
from hf_gdd.evaluation.image_quality import FeatureEvaluator
from hf_gdd.report import Report


def test_quality_stands_beside_random_real_and_the_test_images():
    recipe = Recipe(max_steps=60, lr=0.05)
    options = QUICK | {"recipe": recipe, "real": toy(), "quality": True, "with_baselines": False}
    good, poor = (evaluate(ToyGenerator(contrast=c), toy(seed=1), ipc=(2, 10), name="x", **options) for c in (60, 0))
    rows = {(row.name, row.ipc): row for row in good.quality}
    assert list(rows) == [("test images", None), ("random-real", 2), ("random-real", 10), ("x", 2), ("x", 10)]
    assert rows["x", 10].images == 30
    assert rows["x", 10].seeds == (0, 1)
    assert rows["test images", None].scores.keys() == {"label_accuracy", "diversity"}
    assert rows["random-real", 10].mean("coverage") > 0.6
    worse = good.quality[-1].mean, poor.quality[-1].mean
    assert worse[0]("label_accuracy") > worse[1]("label_accuracy") + 0.3
    assert worse[0]("frechet") < worse[1]("frechet")
    assert "| x | 10 | 30 | convnet1 |" in good.markdown()
    assert Report.merge([good]) == good


def test_reports_share_their_references(tmp_path):
    options = QUICK | {"real": toy(), "quality": True, "with_baselines": False}
    test = toy(seed=1)
    reports = [evaluate(ToyGenerator(), test, ipc=2, name=name, **options) for name in ("a", "b")]
    merged = Report.merge(reports)
    assert [row.name for row in merged.quality] == ["test images", "random-real", "a", "b"]
    merged.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == merged


def test_networks_that_score_are_trained_once_for_many_generators(monkeypatch):
    trained = []
    fit = FeatureEvaluator._train
    monkeypatch.setattr(FeatureEvaluator, "_train", lambda self: trained.append(self) or fit(self))
    options = QUICK | {"real": toy(), "quality": True, "with_baselines": False}
    test = toy(seed=1)
    for _ in range(3):
        evaluate(ToyGenerator(), test, ipc=2, **options)
    assert len(trained) == 1


def test_an_autoencoders_reconstruction_is_evaluated():
    generator = ToyGenerator()
    generator.reconstruct = lambda images: images
    options = QUICK | {"real": toy(), "quality": True, "with_baselines": False}
    report = evaluate(generator, toy(seed=1), ipc=2, **options)
    rows = {row.name: row for row in report.quality}
    assert rows["reconstruction"].scores == rows["test images"].scores
    other = replace(report, results=(), quality=tuple(replace(row, generator="e" * 64) for row in report.quality))
    assert Report.merge([report, other]).markdown().count("| reconstruction |") == 1


def test_quality_needs_the_real_set():
    with pytest.raises(ValueError, match="pass real="):
        evaluate(ToyGenerator(), toy(), ipc=2, quality=True, **QUICK)
