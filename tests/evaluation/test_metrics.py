"""Scores of sets of images: hand-computed cases, and what each score is for."""

import pytest
import torch

from hf_gdd.evaluation.metrics import class_diversity, coverage_scores, frechet_distance


def cloud(n, mean=0.0, spread=1.0, seed=0, size=4):
    return mean + spread * torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def test_a_line_by_hand():
    real, fake = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([[0.4], [0.5], [30.0]])
    # Balls of one neighbor: real radii 1, 1, 1, 8; generated radii 0.1, 0.1, 29.5.
    assert coverage_scores(real, fake, k=1) == {
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(3 / 4),  # 30 +- 29.5 holds 1, 2 and 10
        "density": pytest.approx(4 / 3),
        "coverage": pytest.approx(2 / 4),
    }


def test_equal_distributions_are_close_to_one():
    scores = coverage_scores(cloud(800), cloud(800, seed=1))
    assert min(scores["precision"], scores["recall"], scores["coverage"]) > 0.85
    assert scores["density"] == pytest.approx(1, abs=0.1)


def test_lost_variety_costs_recall_and_coverage_but_not_precision():
    narrow = coverage_scores(cloud(800), cloud(800, spread=0.2, seed=1))
    assert narrow["precision"] > 0.95
    assert narrow["recall"] < 0.1
    assert narrow["coverage"] < 0.5


def test_a_shift_costs_precision():
    scores = coverage_scores(cloud(400), cloud(400, mean=20.0, seed=1))
    assert set(scores.values()) == {0.0}


def test_chunks_change_nothing(monkeypatch):
    real, fake = cloud(70), cloud(50, mean=0.5, seed=1)
    whole = coverage_scores(real, fake)
    monkeypatch.setattr("hf_gdd.evaluation.metrics._ROWS", 16)
    assert coverage_scores(real, fake) == whole


@pytest.mark.parametrize("sizes", [(60, 40), (3, 40), (40, 3)], ids=["many", "few real", "few generated"])
def test_frechet_is_that_of_two_normal_distributions(sizes):
    real, fake = cloud(sizes[0]).double(), cloud(sizes[1], mean=0.3, spread=2.0, seed=1).double()
    a, b = (torch.cov(x.T) for x in (real, fake))
    trace = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    expected = (real.mean(0) - fake.mean(0)).square().sum() + a.trace() + b.trace() - 2 * trace
    assert frechet_distance(real, fake) == pytest.approx(float(expected), rel=1e-5)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_diversity_is_within_classes():
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -3.0], [5.0, 5.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert class_diversity(features, labels) == pytest.approx((0 + 2) / 2)
    assert class_diversity(features[4:], labels[4:]) == 0.0


def test_one_image_has_no_neighbours():
    with pytest.raises(ValueError, match="at least two"):
        coverage_scores(cloud(1), cloud(5))
    assert coverage_scores(cloud(2), cloud(2, seed=1)).keys() == {"precision", "recall", "density", "coverage"}
