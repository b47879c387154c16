"""The whole path on the bundled 8x8 digits: distil by four methods, materialize, evaluate, compare.

    python scripts/digits.py

Expect about four minutes on two CPU cores and no network. The table at the end should show `dynamic` IPC 10 of every
method above random-real IPC 10, and full data above 97 %; between the four methods, differences of a point are noise at
one generator seed. That matching acts is seen in the losses under it. `runs/digits/<method>` keeps each run: generator,
samples, losses.png, metrics.jsonl. Stopped half way? The same command goes on.
"""

import sys
from pathlib import Path

import tyro

from hf_gdd import GlobalLocalTrainer, ImageTensors, Report, baselines, evaluate, load_distilled_dataset
from hf_gdd.methods.global_local.matching_distance import matching_losses
from hf_gdd.methods.global_local.model_pool import ModelPool
from hf_gdd.utils.random import Random

METHODS = ("cgan", "cgan-continued", "dim", "global-local")  # three that share the first one's GAN
IPCS = (1, 10, 50)


def main(output_dir: Path = Path("runs/digits"), seed: int = 0, n: int = 3) -> None:
    """Distil the digits by every method and judge the results side by side.

    Args:
        output_dir: one folder a method is made in it.
        seed: of the training and of the images.
        n: networks per row of the table.

    """
    real, test = (ImageTensors.from_dataset("digits", split) for split in ("train", "test"))
    generators = {}
    for method in METHODS:
        start_from = None if method == "cgan" else str(output_dir / "cgan")
        trainer = GlobalLocalTrainer(
            real, preset="tiny", method=method, start_from=start_from, seed=seed, output_dir=output_dir / method
        )
        generators[method] = trainer.fit()

    for ipc in IPCS:
        tiny = load_distilled_dataset(generators["global-local"], ipc=ipc, seed=seed)
        tiny.to_parquet(output_dir / f"ipc{ipc}.parquet")

    settings = {"networks": "convnet2", "recipe": "tiny", "n": n}
    reports = [baselines(real, test, ipcs=IPCS, **settings)]
    for method, generator in generators.items():
        ipc, protocol = IPCS if method == "global-local" else 10, ("fixed", "dynamic")
        reports.append(
            evaluate(generator, test, real=real, ipc=ipc, protocol=protocol, with_baselines=False, **settings)
        )
    report = Report.merge(reports)
    for method, generator in generators.items():
        generator.report = report
        generator.save_pretrained(output_dir / method / "generator")

    print(report.markdown())
    print("\nDistance from test images in 5 fresh networks:")
    for method, generator in generators.items():
        pool = ModelPool(("convnet2",), real, inner_steps=20, refresh=1, random=Random(seed))
        losses = matching_losses(generator, test, pool)
        print(f"  {method:15}global {losses['global']:.4f}, local {losses['local']:.4f}")
    if not report.valid:
        sys.exit("The recipe is invalid here, so the table decides nothing.")


if __name__ == "__main__":
    tyro.cli(main)
