"""Every public class shows its use in its docstring, and what it shows runs."""

import inspect
import re
from textwrap import dedent

import datasets
import pytest
import torch
from kinds import bank, diffusion, gan

import hf_gdd

CLASSES = {
    name: thing
    for name in sorted(dir(hf_gdd))
    if inspect.isclass(thing := getattr(hf_gdd, name)) and thing.__module__.startswith("hf_gdd")
}
# Examples that train for minutes, or talk to the Hub: they are read as Python, not run.
NOT_RUN = {"AutoGenerator", "DiffusionGenerator", "Trainer"}
NOT_RUN |= {"DiffusionMemoryTrainer", "GlobalLocalTrainer", "PredictionMatchingTrainer"}


def example(thing):
    """The block under `Example:` of a docstring, up to the next section or the end."""
    found = re.search(r"^Example:\n(.*?)(?=^\w[\w ]*:$|\Z)", inspect.getdoc(thing) or "", re.DOTALL | re.MULTILINE)
    lines = found[1].splitlines() if found else []
    return dedent("\n".join(line for line in lines if line.startswith("    ") or not line)).strip()


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_shows_its_use(name):
    assert compile(example(CLASSES[name]) or "!", name, "exec")


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - NOT_RUN))
def test_what_a_public_class_shows_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    real = hf_gdd.ImageTensors.from_dataset("digits")
    generator = {"DiffusionGenerator": diffusion, "DiffusionSampling": diffusion, "ImageBank": bank}.get(name, gan)()
    names = {public: getattr(hf_gdd, public) for public in dir(hf_gdd) if not public.startswith("_")}
    names |= {"torch": torch, "generator": generator, "real": real}
    names |= {"labels": torch.tensor([0, 1, 1]), "indices": torch.tensor([0, 0, 1])}
    exec(compile(example(CLASSES[name]), name, "exec"), names)
