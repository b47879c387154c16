"""The choice among draws descends the distances of stage `codes`, prefix by prefix, and its measurement resumes."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from hf_gdd import ImageTensors, Recipe
from hf_gdd.classifiers import recipes
from hf_gdd.methods.global_local.losses import PREFIX_DISTANCES

PAPER = Path(__file__).parents[2] / "scripts" / "paper"


@pytest.fixture
def selection(monkeypatch):
    """Import the script beside its neighbors, and forget them all afterwards."""
    monkeypatch.syspath_prepend(str(PAPER))
    yield importlib.import_module("selection")
    for name in {path.stem for path in PAPER.glob("*.py")} & set(sys.modules):
        del sys.modules[name]


@pytest.mark.parametrize(("distance", "power"), [("energy", 1), ("mean", 2)])
def test_each_choice_is_the_best_one_for_the_prefix(selection, distance, power):
    rng = torch.Generator().manual_seed(0)
    candidates, real = (torch.randn(count, 3, generator=rng, dtype=torch.float64) for count in (9, 20))
    to_real, among = (torch.cdist(candidates, x).pow(power) for x in (real, candidates))
    chosen = []
    for _ in range(5):
        rest = [row for row in range(9) if row not in chosen]
        prefixes = torch.stack([candidates[[*chosen, row]] for row in rest])
        distances = PREFIX_DISTANCES[distance](prefixes, real.expand(len(rest), -1, -1))[:, -1]
        chosen.append(rest[int(distances.argmin())])
    assert selection.choose(to_real.mean(1), among, 5) == chosen
    assert selection.choose(to_real.mean(1), among, 3) == chosen[:3]


def test_rows_are_measured_once_and_compared_with_random_draws(selection, monkeypatch, tmp_path):
    monkeypatch.setitem(recipes.RECIPES, "tiny", Recipe(max_steps=2))
    monkeypatch.setattr(selection, "RESULTS", tmp_path / "selection.json")
    monkeypatch.setattr(selection, "IPCS", (1, 3))
    monkeypatch.setattr(selection, "NETWORK", "convnet1")
    monkeypatch.setattr(selection, "RULES", {"energy, all ages": ((0, 1), 1, (0, 1)), "logits": ((0,), 2, (0,))})
    monkeypatch.setattr(selection, "draw", lambda real, seed, folder: real.subset(6, seed))
    selection.main(seeds=(0,), n=2, runs=tmp_path)
    measured = selection.rows(selection.RESULTS)
    names = ["random real images", "herding", "real images, energy, all ages", "random draws", *selection.RULES]
    assert [row["name"] for row in measured] == names
    assert [len(row["IPC 3"]) for row in measured] == [4, 2, 2, 4, 2, 2]
    content = json.loads(selection.RESULTS.read_text())
    content["rows"][-1]["IPC 1"] = [0.7, 0.8]
    content["rows"][3]["IPC 1"] = [0.5, 0.5]
    selection.RESULTS.write_text(json.dumps(content))
    selection.main(seeds=(0,), n=2, runs=tmp_path)  # nothing is left to measure
    assert selection.rows(selection.RESULTS) == content["rows"]
    lines = list(selection.gains(content["rows"]))
    assert len(lines) == 2 * len(names)
    assert lines[5].split() == ["IPC", "1", "logits", "75.0%", "over", "random", "draws", "+25.0", "±", "5.0"]


def test_draws_of_every_class_are_chosen_among_its_own(selection, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "tiny", Recipe(max_steps=2))
    real = ImageTensors.from_dataset("digits", "train", device="cpu")
    draws = real.subset(8, seed=0)
    chosen = selection.select(real, draws, ((0, 1), 1, (0, 1)), 4)
    assert [set(draws.labels[rows].tolist()) for rows in chosen] == [{label} for label in range(10)]
    assert all(len(set(rows.tolist())) == 4 for rows in chosen)
