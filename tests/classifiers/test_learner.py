"""A learner prepares a batch before its step; see also the tests of evaluation."""

import pytest
import torch
import torch.nn.functional as F

from hf_gdd.classifiers.learner import Learner, softened_divergence
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.normalization import Normalize


def test_mixed_labels_count_by_area(monkeypatch):
    monkeypatch.setattr(
        "hf_gdd.classifiers.learner.cutmix", lambda x, rng: (x, torch.tensor([1, 0]), torch.tensor(0.75))
    )
    recipe = Recipe(cutmix=True, augment="", max_steps=1)
    learner = Learner(build_network("convnet1", 3, (1, 8, 8), seed=0), Normalize((0.5,), (0.5,)), recipe, 1)
    x, labels = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8), torch.tensor([0, 2])
    with torch.no_grad():
        logits = learner.network((x / 255 - 0.5) / 0.5)[0].log_softmax(1)
    expected = -(0.75 * (logits[0, 0] + logits[1, 2]) + 0.25 * (logits[0, 2] + logits[1, 0])) / 2
    torch.testing.assert_close(learner.step(x, labels, torch.Generator()), expected)


LOGITS = [[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_that_of_softened_predictions(temperature):
    teacher, student = torch.tensor(LOGITS), torch.tensor(LOGITS[::-1])
    p, q = (F.softmax(logits / temperature, 1) for logits in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(softened_divergence(student, teacher, temperature), expected)
    torch.testing.assert_close(softened_divergence(student, teacher.half(), temperature), expected)
    assert softened_divergence(teacher, teacher, temperature) == pytest.approx(0, abs=1e-6)


def test_a_recipe_names_the_loss_on_logits():
    x, teacher, losses = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(LOGITS), {}
    network = build_network("convnet1", 3, (1, 8, 8), seed=0)
    for name in ("l1", "kl"):
        recipe = Recipe(augment="", soft_loss=name, temperature=3.0)
        learner = Learner(network, Normalize((0.5,), (0.5,)), recipe, 1)
        losses[name] = learner.loss(network, x, teacher)
        torch.testing.assert_close(
            learner.loss(network, x, torch.tensor([0, 1])), F.cross_entropy(network(x)[0], torch.tensor([0, 1]))
        )
    logits = network(x)[0]
    torch.testing.assert_close(losses["l1"], (logits - teacher).abs().mean())
    torch.testing.assert_close(losses["kl"], softened_divergence(logits, teacher, 3.0))
