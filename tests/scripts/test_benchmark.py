"""The benchmark's reference computes what the library does, and what is written down is whole."""

import importlib
import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "benchmark"


@pytest.fixture(scope="module")
def scripts():
    """The benchmark, its paths and its reference, as they import each other when they are run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("benchmark"), importlib.import_module("hot_paths")
        for name in ("benchmark", "hot_paths", "plain_reference"):
            sys.modules.pop(name)


@pytest.fixture
def paths(scripts, tmp_path):
    return scripts[1].HotPaths("tiny", tmp_path)


class Replay:
    """Random numbers that one side draws and the other is given, by kind and shape, in the order they were drawn."""

    def __init__(self, monkeypatch):
        self.drawn, self.replaying = {}, False
        for name in ("rand", "randn", "randint"):
            monkeypatch.setattr(torch, name, self.wrapped(name, getattr(torch, name)))

    def wrapped(self, name, original):
        def draw(*args, **kwargs):
            sizes = args if name != "randint" else args[1:]
            shape = tuple(sizes[0] if isinstance(sizes[0], tuple) else sizes)
            if self.replaying:
                return self.drawn[name, shape].pop(0)
            self.drawn.setdefault((name, shape), []).append(original(*args, **kwargs))
            return self.drawn[name, shape][-1]

        return draw


def batch(data, rows):
    return data.images[rows].float() / 127.5 - 1, data.labels[rows]


def assert_same(ours, plain, lr):
    """Equal gradients, and equal weights where the gradient is more than rounding, whose sign is all that Adam sees."""
    largest = max(float(weight.grad.norm()) for weight in ours.parameters())
    assert largest > 0
    compared = 0
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert float((a.grad - b.grad).norm()) <= 1e-4 * max(float(b.grad.norm()), 1e-2 * largest)
        clear = b.grad.abs() > 1e-4 * largest
        compared += int(clear.sum())
        assert torch.allclose(a[clear], b[clear], rtol=0, atol=1e-3 * lr + 1e-7)
    assert compared > 100


@pytest.mark.parametrize("stage", ["gan", "match"])
def test_the_plain_step_is_ours(paths, monkeypatch, stage):
    case = getattr(paths, stage)()
    trainer, plain = case.ours({}).trainer, case.reference(0)
    for name in ("generator", "discriminator"):
        getattr(plain, name).load_state_dict(getattr(trainer, name).state_dict())
    if stage == "match":
        trainer.pool.advance()  # builds the first network
        trainer.pool.learner.network.load_state_dict(plain.network.state_dict())
        trainer.pool.learner.optimizer.state.clear()
    before = [weight.detach().clone() for weight in trainer.generator.parameters()]
    replay = Replay(monkeypatch)
    rows = torch.arange(case.images) * 7
    trainer.step(rows)
    replay.replaying = True
    plain.endless = iter([batch(paths.data, rows)])
    plain.own = [batch(paths.data, drawn) for drawn in replay.drawn.pop(("randint", (64,)), ())]
    assert len(plain.own) == (2 if stage == "match" else 0)
    assert all(math.isfinite(value) for value in plain().values())
    assert not any(replay.drawn.values())
    lr = trainer.stages[trainer.state.stage].lr
    assert_same(trainer.generator, plain.generator, lr)
    assert_same(trainer.discriminator, plain.discriminator, lr)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.generator.parameters(), strict=True))
    if stage == "match":
        for a, b in zip(trainer.pool.learner.network.parameters(), plain.network.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_plain_image_step_is_ours(paths):
    case = paths.prediction()
    trainer, plain = case.ours({}).trainer, case.reference(0)
    group = trainer.groups.own[0]
    plain.images.data.copy_(group.images)
    plain.students = group.students
    group.velocity.zero_()
    before = group.images.detach().clone()
    trainer.move_images(group, torch.arange(case.images))
    plain()
    moved = group.images.detach() - before
    assert float(moved.norm()) > 0
    assert float((plain.images.detach() - before - moved).norm()) <= 1e-4 * float(moved.norm())


@contextmanager
def here():
    """Stands in for a process, which takes seconds to begin."""
    yield lambda function, *args, **kwargs: function(*args, **kwargs)


def test_everything_is_measured_and_written_down(scripts, tmp_path, monkeypatch, capsys):
    benchmark, hot_paths = scripts
    out = tmp_path / "benchmark.json"
    monkeypatch.setattr(benchmark, "process", here)
    monkeypatch.setattr(benchmark, "SIDES", {})  # what was measured goes with the test
    monkeypatch.setattr(benchmark, "LEAST", 0.0)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--size", "tiny", "--out", str(out)])
    benchmark.main(size="tiny", repeats=2, out=out)
    printed = capsys.readouterr().out
    text = out.read_text()
    assert str(tmp_path) not in text
    measured = json.loads(text)
    assert [row["path"] for row in measured["paths"]] == ["gan", "gan", "match", "match", *hot_paths.PATHS[2:]]
    assert [row["variant"] for row in measured["paths"][:5]] == ["paper", "fast", "paper", "fast", ""]
    for row in measured["paths"]:
        assert len(row["seconds"]) == len(row["reference_seconds"]) == 2
        numbers = [*row["seconds"], *row["reference_seconds"], row["images"]]
        assert all(math.isfinite(number) and number > 0 for number in numbers), row
        loads = row["path"] not in ("prediction", "materialize", "stream")
        assert (row["workers"] is None) != loads
        assert ("0" in row["worker_seconds"]) == loads
    assert {"commit", "command", "device", "cores", "versions", "settings"} <= measured.keys()
    assert benchmark.table(measured) + "\n" == printed
    lines = [line.split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(measured["paths"])
    assert len({len(line) for line in lines}) == 1


def test_ratios_pair_the_turns(scripts):
    row = {"path": "gan", "variant": "fast", "precision": "bf16", "images": 8, "workers": None}
    row |= {"reference_seconds": [2.0, 6.0, 4.0], "seconds": [1.0, 2.0, 4.0]}
    facts = {"settings": {"threads": 2, "size": "paper", "repeats": 3}, "versions": {"torch": "2", "hf_gdd": "1"}}
    facts |= {"device": "CPU", "commit": "0123456789-dirty", "command": "python x.py"}
    table = scripts[0].table(facts | {"paths": [row]})
    assert "| gan | fast bf16 | 8 | 4 | 2 | 2.00 (1.00 to 3.00) | 2 | 4 | - |" in table
    assert table.endswith("at commit 0123456-dirty.")


def test_the_committed_page_is_what_the_json_gives(scripts):
    assert scripts[0].render_page() == (ROOT / "docs" / "benchmark.md").read_text()
