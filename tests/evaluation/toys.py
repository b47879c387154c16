"""Toy data sets and a toy generator that networks learn from in a few steps."""

from types import SimpleNamespace

import torch
from torch import nn

from hf_gdd.classifiers.learner import Learner
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize
from hf_gdd.generators.base import Generator
from hf_gdd.generators.noise import noise
from hf_gdd.generators.sampling import Sampling

NAMES = ("ant", "bee", "cat")
SHORT = Recipe(max_steps=5)
QUICK = {"networks": ("convnet1",), "n": 2, "recipe": SHORT, "progress": False}
# Logits of the three classes: the label, and another class.
RIGHT, TURNED = [[9.0, 0, 0], [0, 9, 0], [0, 0, 9]], [[0, 9.0, 0], [0, 0, 9], [9, 0, 0]]


def toy(per_class=20, seed=0, names=NAMES, size=8, channels=1, contrast=60):
    """Images of noise; those of a higher class are brighter. A contrast of 5 makes classes hard to tell apart."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(names)).repeat(per_class)
    grain = torch.randint(0, 80, (len(labels), channels, size, size), generator=rng)
    images = (20 + grain + contrast * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ImageTensors(images, labels, names, f"toy{seed}:train", torch.device("cpu"))


class ToyGenerator(Generator):
    """A generator of noise that records what it was asked for."""

    class_names, image_shape, mean, std = NAMES, (1, 8, 8), (0.4,), (0.2,)
    num_classes, device, stored_bytes, fingerprint = 3, torch.device("cpu"), 4321, "f" * 64
    sampling, report, method, seed = Sampling(), None, "stub", 7
    has_soft_labels, zca = False, False

    def __init__(self, max_ipc=None, contrast=50):
        self.max_ipc, self.contrast, self.asked = max_ipc, contrast, []

    def sample(self, labels, indices, seed=0, sampling=None):
        self.asked.append((seed, list(zip(labels.tolist(), indices.tolist(), strict=True))))
        grain = noise(seed, labels, indices, self.image_shape)
        return (60 + self.contrast * labels.view(-1, 1, 1, 1) + 20 * grain).clamp(0, 255).to(torch.uint8)


class TaughtToy(ToyGenerator):
    """A toy generator with a teacher that gives `logits[k]` to every image of class k, judged by its brightness."""

    has_soft_labels = True
    teacher = SimpleNamespace(config=SimpleNamespace(network="convnet1"), stored_bytes=1000)

    def __init__(self, logits, max_ipc=20, contrast=50):
        super().__init__(max_ipc, contrast)
        self.logits, self.labeled = torch.tensor(logits).half(), []

    def soft_labels(self, labels, indices, seed=0, sampling=None, *, images=None):
        return self.logits[labels]

    def label_images(self, images, transform=None):
        self.labeled.append((len(images), transform))
        return self.logits[((images.float().mean((1, 2, 3)) - 35) / self.contrast).round().long().clamp(0, 2)]


class BatchNormed(nn.Sequential):
    """A network of a user's own, for gray images of 8 pixels."""

    def __init__(self, num_classes, shape):
        super().__init__(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_classes))


def normalization(data):
    return Normalize(data.mean, data.std)


def learner(data, recipe=SHORT, steps=5, network="convnet1", seed=0):
    return Learner(build_network(network, data.num_classes, data.shape, seed=seed), normalization(data), recipe, steps)


def random(seed=0):
    return torch.Generator().manual_seed(seed)
