"""Distill the bundled 8x8 digits by four GAN methods, and compare them.

    python scripts/digits.py

It takes 3 to 5 minutes on two CPU cores and no network. In the table at the end, `dynamic` at IPC 10 should
lie above random-real at IPC 10 for every method, and full data above 97 %. Differences of a point between the methods
are noise: there is one generator of each. Each method leaves its run in `runs/digits/<method>`: generator, samples,
losses.png and metrics.jsonl. To resume a run that was stopped, repeat the command.
"""

from pathlib import Path

import tyro

from hf_gdd import GlobalLocalTrainer, ImageTensors, Report, baselines, evaluate, load_distilled_dataset

METHODS = ("cgan", "cgan-continued", "dim", "global-local")  # the last three start from the GAN of the first
IPCS = (1, 10, 50)


def main(output_dir: Path = Path("runs/digits"), seed: int = 0, n: int = 3) -> None:
    """Distill the digits by every method and compare the results.

    Args:
        output_dir: folder for one subfolder per method.
        seed: seed of the trainings and of the images.
        n: networks per row of the table.

    """
    real, test = (ImageTensors.from_dataset("digits", split) for split in ("train", "test"))
    generators = {}
    for method in METHODS:
        start_from = None if method == "cgan" else str(output_dir / "cgan")
        options = {"method": method, "start_from": start_from, "output_dir": output_dir / method}
        generators[method] = GlobalLocalTrainer(real, preset="tiny", seed=seed, **options).fit()

    for ipc in IPCS:
        tiny = load_distilled_dataset(generators["global-local"], ipc=ipc, seed=seed)
        tiny.to_parquet(output_dir / f"ipc{ipc}.parquet")

    settings = {"networks": "convnet2", "recipe": "tiny", "n": n}
    reports = [baselines(real, test, ipc=IPCS, **settings)]
    for method, generator in generators.items():
        options = {"ipc": IPCS if method == "global-local" else 10, "protocol": ("fixed", "dynamic")}
        reports.append(evaluate(generator, test, real=real, with_baselines=False, **options, **settings))
    report = Report.merge(reports)
    print(report.markdown())
    for method, generator in generators.items():
        generator.report = report
        generator.save_pretrained(output_dir / method / "generator")


if __name__ == "__main__":
    tyro.cli(main)
