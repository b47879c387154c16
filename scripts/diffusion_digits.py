"""Diffusion with self-adaptive memory on the bundled 8x8 digits.

It stands beside its control `dit` and Minimax.

    python scripts/diffusion_digits.py

This takes about six minutes on two CPU cores and needs no network. An autoencoder and a diffusion transformer are
trained from scratch. From there `dit` (no memory), `minimax` and `self-adaptive` train for equally many steps on the
same random draws. In the second table, networks trained on real digits should recognize at least 95 % of the
reconstructions, as they do the test images, and at least 80 % of the samples. Differences of a point between the
methods are noise: there is one generator of each. The effect of the memories shows in the coverage of the test images
at the end, which pairs the methods by image seed. To resume a run that was stopped, repeat the command.
"""

from pathlib import Path

import torch
import tyro

from hf_gdd import DiffusionGenerator, DiffusionMemoryTrainer, ImageTensors, Report, baselines, evaluate
from hf_gdd.classifiers.recipes import find_recipe
from hf_gdd.data.normalization import Normalize
from hf_gdd.evaluation.evaluator import Evaluator
from hf_gdd.evaluation.image_quality import FeatureEvaluator
from hf_gdd.evaluation.protocols import to_image_tensors
from hf_gdd.methods.diffusion_memory.config import PRESETS

METHODS = ("dit", "minimax", "self-adaptive")  # the last two start from the networks of the first
IPCS = (10, 50)
IMAGE_SEEDS = 24


def main(
    output_dir: Path = Path("runs/diffusion-digits"),
    seed: int = 0,
    n: int = 3,
    real_weight: float = PRESETS["tiny"].real_weight,
    gen_weight: float = PRESETS["tiny"].gen_weight,
) -> None:
    """Distill the digits by every method and compare the results.

    Args:
        output_dir: folder for one subfolder per method.
        seed: seed of the trainings and of the images.
        n: networks per row of the tables.
        real_weight: weight of the memory of real latents; 0.002 is published.
        gen_weight: weight of the memory of predicted latents; 0.008 is published.

    """
    real, test = (ImageTensors.from_dataset("digits", split) for split in ("train", "test"))
    training = {"preset": "tiny", "seed": seed, "real_weight": real_weight, "gen_weight": gen_weight}
    training["codes_ipc"] = 0  # plain draws are compared
    settings = {"networks": "convnet2", "recipe": "tiny", "n": n, "seed": seed}
    generators, reports = {}, [baselines(real, test, ipc=IPCS, **settings)]
    for method in METHODS:
        start_from = None if method == "dit" else str(output_dir / "dit")
        options = {"method": method, "start_from": start_from, "output_dir": output_dir / method}
        generators[method] = generator = DiffusionMemoryTrainer(real, **training, **options).fit()
        options = {"real": real, "ipc": IPCS, "with_baselines": False, "quality": True}
        reports.append(evaluate(generator, test, **options, **settings))

    report = Report.merge(reports)
    print(report.markdown())
    print(f"\nCoverage of the test images by 10 images of every class, over {IMAGE_SEEDS} image seeds:")
    normalize, recipe, coverage = Normalize(real.mean, real.std), find_recipe("tiny"), {}
    features = FeatureEvaluator(Evaluator(test, normalize, ("convnet2",), n, recipe, seed, progress=True), real)
    for method, generator in generators.items():
        generator.report = report
        generator.save_pretrained(output_dir / method / "generator")
        coverage[method] = values = coverages(generator, features)
        gain = values - coverage["dit"]
        print(f"  {method:15}{values.mean():.3f}, over dit {gain.mean():+.4f} ± {gain.std() / len(gain) ** 0.5:.4f}")


def coverages(generator: DiffusionGenerator, features: FeatureEvaluator) -> torch.Tensor:
    """Return the coverage of ten images per class for each image seed."""
    labels, indices = torch.arange(10).repeat_interleave(10), torch.arange(10).repeat(10)
    values = []
    for seed in range(IMAGE_SEEDS):
        images = generator.sample(labels, indices, seed).view(10, 10, *generator.image_shape)
        values.append(features.score(to_image_tensors(images, generator.class_names), name="", ipc=10).mean("coverage"))
    return torch.tensor(values)


if __name__ == "__main__":
    tyro.cli(main)
