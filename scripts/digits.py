"""The whole path on the bundled 8x8 digits: distil by four methods, materialise, evaluate, compare.

    python scripts/digits.py

Expect about four minutes on two CPU cores and no network. The table at the end should show `dynamic` IPC 10 of every
method above random-real IPC 10 and full data above 97 %; between the four methods, differences of a point are noise at
one generator seed. `runs/digits/<method>` keeps each run: generator, samples, losses.png, metrics.jsonl.
Stopped half way? The same command goes on.
"""

import sys
from pathlib import Path

import tyro

from hf_gdd import GlobalLocalTrainer, ImageTensors, Report, baselines, evaluate, load_distilled_dataset

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

    judged = {"networks": ("convnet2",), "recipe": "tiny", "n": n}
    reports = [
        evaluate(
            generator,
            test,
            real=real,
            ipc=IPCS if method == "global-local" else 10,
            protocol=("fixed", "dynamic"),
            with_baselines=False,
            **judged,
        )
        for method, generator in generators.items()
    ]
    report = Report.merge([*reports, baselines(real, test, ipcs=IPCS, **judged)])
    for method, generator in generators.items():
        generator.report = report
        generator.save_pretrained(output_dir / method / "generator")
    print(report.markdown())
    if not report.valid:
        sys.exit("The recipe is invalid here, so the table decides nothing.")


if __name__ == "__main__":
    tyro.cli(main)
