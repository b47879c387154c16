"""Measure what a diffusion generator's sets gain by choosing among its draws.

    python scripts/paper/selection.py

Of 200 draws a class, images are chosen one after the other so that every prefix of the list looks to some networks as
the real images do (kernel herding: Welling, 2009). Sets are judged on held-out training images of the digits. Results
go to one JSON file, row by row. What is there is skipped, so repeat the command to resume.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import tyro
from codes import HELD_OUT, IPCS, add, rows
from torch import Tensor

from hf_gdd import DiffusionMemoryTrainer, ImageTensors, load_distilled_dataset
from hf_gdd.classifiers.coresets import coreset_features, select_coreset
from hf_gdd.classifiers.recipes import find_recipe
from hf_gdd.data.normalization import Normalize
from hf_gdd.data.pixels import to_unit
from hf_gdd.evaluation.evaluator import Evaluator
from hf_gdd.methods.diffusion_memory.selection import choose
from hf_gdd.methods.global_local.model_pool import ModelPool
from hf_gdd.report import FIXED, HERDING
from hf_gdd.utils.comparison import Difference
from hf_gdd.utils.random import Random

RESULTS = Path(__file__).parent / "results" / "selection.json"
RECIPE, NETWORK, CANDIDATES = "tiny", "convnet2", 200  # of judges and choosers, whose weights differ; draws a class
RANDOM, OF_REAL = "random draws", "energy, all ages"  # the second also chooses real images, as a control
AGES = {"untrained": (0, 0, 0, 0), "trained": (300, 300, 300, 300), "all ages": (0, 20, 60, 300)}
# SGD steps on real images of each network that chooses, power of the distances, outputs: logits (0), features (1).
RULES = {f"{name}, {age}": (AGES[age], 1 + (name == "means"), (0, 1)) for name in ("means", "energy") for age in AGES}
RULES |= {f"energy, trained, {name}": (AGES["trained"], 1, (i,)) for i, name in enumerate(("logits", "features"))}


def select(real: ImageTensors, draws: ImageTensors, rule: tuple, count: int) -> list[Tensor]:
    """Choose draws of every class by one of `RULES`; returns row numbers in order."""
    (ages, power, used), normalize, compared = rule, Normalize(real.mean, real.std), []
    for seed, age in enumerate(ages, 1000):
        settings = {"inner_steps": age, "refresh": 1, "random": Random(seed, real.device)}
        network = ModelPool((NETWORK,), real, recipe=find_recipe(RECIPE), **settings).advance().eval()
        with torch.no_grad():
            outputs = [network(normalize(to_unit(data.images))) for data in (real, draws)]
        compared += [[each[i].flatten(1) for each in outputs] for i in used]
    chosen = []
    for label in range(real.num_classes):
        candidates, to_real, among = (draws.labels == label).nonzero()[:, 0], 0.0, 0.0
        for of_real, of_draws in compared:
            theirs, ours = of_real[real.labels == label], of_draws[candidates]
            scale = theirs.std() * theirs.shape[1] ** 0.5  # so that logits and features count alike
            to_real = to_real + (torch.cdist(ours, theirs) / scale).pow(power).mean(1)
            among = among + (torch.cdist(ours, ours) / scale).pow(power).fill_diagonal_(0)
        chosen.append(candidates[choose(to_real, among, count)])
    return chosen


def draw(real: ImageTensors, seed: int, folder: Path) -> ImageTensors:
    """Train a generator of preset `tiny`, and draw the candidates."""
    options = {"codes_ipc": 0, "teacher_network": None, "seed": seed, "output_dir": folder}
    generator = DiffusionMemoryTrainer(real, preset="tiny", **options).fit()
    draws = load_distilled_dataset(generator, ipc=CANDIDATES, cache_dir=folder / "draws")
    return ImageTensors.from_dataset(draws, device="cpu")


def gains(measured: list[dict[str, Any]]) -> Iterator[str]:
    """Compare every choice with random draws of all generators, a line for each."""
    for key, name in product((f"IPC {ipc}" for ipc in IPCS), dict.fromkeys(row["name"] for row in measured)):
        ours, plain = ([x for row in measured if row["name"] == each for x in row[key]] for each in (name, RANDOM))
        yield f"{key:7}{name:32}{fmean(ours):6.1%}  over random draws {Difference.between(ours, plain)}"


def main(seeds: tuple[int, ...] = (0, 1), n: int = 5, runs: Path = Path("runs/selection")) -> None:
    """Measure what is missing, with n networks a row and 2 n where sets are random."""
    real, held_out = ImageTensors.from_dataset("digits", "train", device="cpu").split(HELD_OUT, seed=0)
    protocol = {"train": real.source, "judged on": held_out.source, "recipe": RECIPE, "candidates": CANDIDATES}
    transform, recipe = Normalize(real.mean, real.std), find_recipe(RECIPE)

    def measure(name: str, seed: int | None, data: ImageTensors, choice: Callable | None = None) -> None:
        if (name, seed) in {(row["name"], row["seed"]) for row in rows(RESULTS)}:
            return
        row, chosen = {"name": name, "seed": seed}, choice and choice()
        for ipc in IPCS:
            if chosen:
                images, labels = data.gather(torch.cat([each[:ipc] for each in chosen]))
                sets = n * [replace(data, images=images, labels=labels)]
            else:
                sets = [data.subset(ipc, seed=i) for i in range(2 * n)]
            judge = Evaluator(held_out, transform, (NETWORK,), len(sets), recipe, seed=0, progress=False)
            (result,) = judge.evaluate_set(sets.__getitem__, len(sets[0]), 0, name=name, protocol=FIXED, ipc=ipc)
            row[f"IPC {ipc}"] = [round(share, 4) for share in result.accuracies]
        add(RESULTS, row, **protocol)
        print(row, flush=True)

    measure("random real images", None, real)
    features = coreset_features(NETWORK, real, recipe)
    measure(HERDING, None, real, partial(select_coreset, HERDING, features, real.labels, max(IPCS)))
    measure(f"real images, {OF_REAL}", None, real, partial(select, real, real, RULES[OF_REAL], max(IPCS)))
    for seed in seeds:
        draws = draw(real, seed, runs / f"seed{seed}")
        measure(RANDOM, seed, draws)
        for name, rule in RULES.items():
            measure(name, seed, draws, partial(select, real, draws, rule, max(IPCS)))
    print(*gains(rows(RESULTS)), sep="\n")


if __name__ == "__main__":
    tyro.cli(main)
