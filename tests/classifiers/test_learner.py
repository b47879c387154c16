"""A learner prepares a batch before its step; see also the tests of evaluation."""

import torch

from hf_gdd.classifiers.learner import Learner
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
