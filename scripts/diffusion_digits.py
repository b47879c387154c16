"""Diffusion with self-adaptive memory on the bundled 8x8 digits, beside its control and Minimax.

    python scripts/diffusion_digits.py

Expect about six minutes on two CPU cores and no network. An autoencoder and a diffusion transformer are trained from
scratch; from there `dit` (no memory), `minimax` and `self-adaptive` go on for equally many steps on the same draws. In
the lower table networks trained on real digits should take at least 95 % of the reconstructions for what they are
labeled, as they do the test images, and at least 80 % of the samples. Between the three methods, differences of a
point are noise at one generator seed; what the memories do is seen in the coverage under it, paired over image seeds.
Stopped half way? The same command goes on.
"""

import sys
from pathlib import Path

import torch
import tyro

from hf_gdd import DiffusionGenerator, DiffusionMemoryTrainer, ImageTensors, Report, baselines, evaluate
from hf_gdd.classifiers.recipes import find_recipe
from hf_gdd.data.normalization import Normalize
from hf_gdd.evaluation.evaluator import Evaluator
from hf_gdd.evaluation.image_quality import FeatureEvaluator, feature_evaluator
from hf_gdd.methods.diffusion_memory.config import PRESETS

METHODS = ("dit", "minimax", "self-adaptive")  # two that share the first one's networks
IPCS = (10, 50)
IMAGE_SEEDS = 24


def main(
    output_dir: Path = Path("runs/diffusion-digits"),
    seed: int = 0,
    n: int = 3,
    real_weight: float = PRESETS["tiny"].real_weight,
    gen_weight: float = PRESETS["tiny"].gen_weight,
) -> None:
    """Distil the digits by every method and judge the results side by side.

    Args:
        output_dir: one folder a method is made in it.
        seed: of the training and of the images.
        n: networks per row of the tables.
        real_weight: of the memory of real latents; 0.002 is the published one.
        gen_weight: of the memory of predicted latents; 0.008 is the published one.

    """
    weights = {"real_weight": real_weight, "gen_weight": gen_weight}
    real, test = (ImageTensors.from_dataset("digits", split) for split in ("train", "test"))
    settings = {"networks": "convnet2", "recipe": "tiny", "n": n, "seed": seed}
    generators, reports = {}, [baselines(real, test, ipcs=IPCS, **settings)]
    for method in METHODS:
        start_from = None if method == "dit" else str(output_dir / "dit")
        shared = {"preset": "tiny", "seed": seed, "start_from": start_from}
        folder = output_dir / method
        generator = DiffusionMemoryTrainer(real, method=method, output_dir=folder, **shared, **weights).fit()
        options = {"real": real, "ipc": IPCS, "with_baselines": False, "quality": True}
        reports.append(evaluate(generator, test, **options, **settings))
        generators[method] = generator

    report = Report.merge(reports)
    for method, generator in generators.items():
        generator.report = report
        generator.save_pretrained(output_dir / method / "generator")
    print(report.markdown())
    judge = Evaluator(test, Normalize(real.mean, real.std), ("convnet2",), n, find_recipe("tiny"), seed, progress=True)
    print(f"\nCoverage of the test images by 10 images of every class, over {IMAGE_SEEDS} image seeds:")
    found = {method: coverages(generator, feature_evaluator(judge, real)) for method, generator in generators.items()}
    for method, values in found.items():
        gain = values - found["dit"]
        print(f"  {method:15}{values.mean():.3f}, over dit {gain.mean():+.4f} ± {gain.std() / len(gain) ** 0.5:.4f}")
    if not report.valid:
        sys.exit("The recipe is invalid here, so the table decides nothing.")


def coverages(generator: DiffusionGenerator, seen_by: FeatureEvaluator) -> torch.Tensor:
    """The coverage of ten images of every class for each image seed, a mean over the critics."""
    labels, indices = torch.arange(10).repeat_interleave(10), torch.arange(10).repeat(10)
    found = []
    for seed in range(IMAGE_SEEDS):
        images = generator.sample(labels, indices, seed).view(10, 10, *generator.image_shape)
        found.append(seen_by.judged(seen_by.judge.images_of(images), name="", ipc=10).mean("coverage"))
    return torch.tensor(found)


if __name__ == "__main__":
    tyro.cli(main)
