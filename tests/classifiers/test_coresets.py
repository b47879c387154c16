"""Coresets: herding and k-center on features of a trained network."""

import pytest
import torch

from hf_gdd.classifiers.coresets import CORESETS, coreset_features, cut_coresets, select_coreset
from hf_gdd.classifiers.networks import penultimate_features
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors

DIGITS = ImageTensors.from_dataset("digits", device="cpu", progress=False).subset(12, 0)
SHORT = Recipe(max_steps=20, batch_size=32)


def test_rules_on_a_line():
    """Herding balances its choices about the mean; k-center chooses what is farthest from them."""
    points = torch.tensor([[0.0], [1.0], [4.0], [5.0], [15.0]])  # the mean is 5
    assert CORESETS["herding"](points, 4).tolist() == [3, 2, 1, 4]  # the nearest four are 3, 2, 1, 0
    assert CORESETS["k-center"](points, 3).tolist() == [3, 4, 0]
    labels = torch.tensor([1, 0, 1, 0, 1])
    assert [rows.tolist() for rows in select_coreset("k-center", points, labels, 2)] == [[1, 3], [2, 4]]


def test_features_are_what_the_last_layer_of_a_trained_network_gets(monkeypatch):
    seen = []

    def spy(network, images):
        seen.append(network)
        return penultimate_features(network, images)

    monkeypatch.setattr("hf_gdd.classifiers.coresets.penultimate_features", spy)
    monkeypatch.setattr("hf_gdd.classifiers.coresets._BATCH", 50)
    features = coreset_features("convnet1", DIGITS, SHORT, seed=3)
    assert features.shape == (120, 2048)
    assert not features.requires_grad
    assert not seen[0].training
    assert len(seen) == 3
    accuracy = (seen[0].linear(features).argmax(1) == DIGITS.labels).float().mean()
    assert accuracy > 0.5  # of a tenth by chance


@pytest.mark.parametrize(
    ("rule", "zeros", "sevens"),
    [("herding", [100, 109, 61, 53], [6, 11, 111, 51]), ("k-center", [100, 47, 34, 70], [6, 45, 105, 111])],
)
def test_choices_never_change(rule, zeros, sevens):
    """Those of the first version, with pixels as features."""
    rows = select_coreset(rule, DIGITS.images.flatten(1).float() / 255, DIGITS.labels, 4)
    assert [rows[0].tolist(), rows[7].tolist()] == [zeros, sevens]


@pytest.mark.parametrize("rule", CORESETS)
def test_a_smaller_coreset_begins_a_larger_one(rule):
    features = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    small, large = (select_coreset(rule, features, DIGITS.labels, count) for count in (3, 7))
    for label, (few, many) in enumerate(zip(small, large, strict=True)):
        assert torch.equal(few, many[:3])
        assert len(many.unique()) == 7
        assert (DIGITS.labels[many] == label).all()


def test_coresets_are_cut_as_data_sets():
    features = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    cut = cut_coresets(("herding", "k-center"), features, DIGITS, (2, 5))
    assert set(cut) == {(rule, ipc) for rule in CORESETS for ipc in (2, 5)}
    for (rule, ipc), data in cut.items():
        rows = torch.cat(select_coreset(rule, features, DIGITS.labels, ipc))
        assert torch.equal(data.images, DIGITS.images[rows])
        assert data.class_counts == (ipc,) * 10
        assert data.source.endswith(f"[{rule}]")
