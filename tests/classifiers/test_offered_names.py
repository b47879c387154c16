"""The names that `hf_gdd.data` and `hf_gdd.classifiers` offer, and the examples in their docstrings."""

import inspect
import itertools
import re
from textwrap import dedent

import pytest
import torch

from hf_gdd import classifiers, data

NAMES = {name: getattr(package, name) for package in (data, classifiers) for name in dir(package)}
EXAMPLES = {
    name: dedent(block[1])
    for name, thing in NAMES.items()
    if (block := re.search(r"^Example:\n((?:    .*\n|\n)+)", (inspect.getdoc(thing) or "") + "\n", re.MULTILINE))
}


def test_classes_show_their_use():
    classes = {name for name, thing in NAMES.items() if inspect.isclass(thing) and not issubclass(thing, Exception)}
    assert classes <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path):
    train = data.ImageTensors.from_dataset("digits", device="cpu").subset(2, 0)
    own = {"train": train, "test": train, "steps": 2, "cache_folder": tmp_path, "recipe": classifiers.Recipe()}
    own["transform"] = data.input_transform(train, zca=False)
    own["networks"] = [classifiers.build_network("convnet1", 10, train.shape, seed) for seed in range(2)]
    exec(EXAMPLES[name], NAMES | own | {"torch": torch, "itertools": itertools})
