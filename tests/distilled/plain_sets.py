"""A plain generator, and sets made from generators, for tests of sets and streams."""

import torch
from kinds import NAMES

from hf_gdd import ImageTensors, load_distilled_dataset
from hf_gdd.generators.base import Generator
from hf_gdd.generators.sampling import Sampling


class PlainGenerator(Generator):
    """A generator that is no torch module: flat images that tell their label, index and seed."""

    class_names, num_classes, image_shape = NAMES, 3, (1, 8, 8)
    mean, std, report = (0.5,), (0.5,), None
    method, seed, stored_bytes, device = "stub", 0, 1, torch.device("cpu")
    fingerprint, has_soft_labels = "", False

    def __init__(self, max_ipc=None, soft=False, sampling=None):
        self.max_ipc, self.has_soft_labels = max_ipc, soft
        self.fingerprint, self.sampling = f"stub {max_ipc} {soft}", sampling or Sampling()

    def sample(self, labels, indices, seed=0, sampling=None):
        value = (labels * 50 + indices + 10 * seed).to(torch.uint8)
        return value[:, None, None, None].expand(-1, 1, 8, 8)

    def soft_labels(self, labels, indices, seed=0, sampling=None, *, images=None):
        if not self.has_soft_labels:
            return None
        return torch.stack([labels, indices, labels - indices], dim=1).half() / 8


def requests(per_class, start=0):
    return torch.arange(3).repeat_interleave(per_class), torch.arange(start, start + per_class).repeat(3)


def make(folder, generator, ipc, **options):
    return load_distilled_dataset(generator, ipc=ipc, cache_dir=folder, **options)


def pixels(data):
    return ImageTensors.from_dataset(data, device="cpu", progress=False).images
