"""The training script takes real images, a fixed set or a stream, and learns from each."""

import re
import runpy
import sys
from pathlib import Path

import datasets
import pytest

ROOT = Path(__file__).parent.parent.parent
GENERATOR = ["--generator", str(ROOT / "model_cards/digits")]


@pytest.mark.parametrize(("words", "least"), [([], 90), (GENERATOR, 60), ([*GENERATOR, "--stream"], 70)])
def test_it_takes_real_and_distilled_images(words, least, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_downstream.py", "--dataset", "digits", "--steps", "60", *words])
    runpy.run_path(str(ROOT / "scripts/train_downstream.py"), run_name="__main__")
    assert float(re.search(r"([\d.]+) % of 360 real test images", capsys.readouterr().out)[1]) > least
