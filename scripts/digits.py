"""Distill the bundled 8x8 digits, and see whether the set beats real images.

    python scripts/digits.py

It takes four to five minutes on two CPU cores and no network. It trains a plain GAN (`cgan`), and from it `dim` and
`global-local`. The last one also gets distilled codes and a teacher. The table at the end has its distilled images, its
plain draws (`distilled=False`), random real images and herding at 1, 10 and 50 images per class. Its first line says
where the sets beat random real images. Full data should lie above 97 %. To resume a run that was stopped, repeat the
command.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import tyro

from hf_gdd import GlobalLocalTrainer, ImageTensors, Report, Sampling, baselines, evaluate, load_distilled_dataset
from hf_gdd.classifiers import coreset_features, cut_coresets, find_recipe
from hf_gdd.generators.base import Generator

METHODS = ("cgan", "dim", "global-local")  # the last two start from the GAN of the first
BEST = "global-local"
IPCS = (1, 10, 50)
RECIPE = replace(find_recipe("tiny"), soft_loss="kl")  # by which networks learn soft labels better in few steps
HARD = {"codes_ipc": 0, "teacher_network": None}


def train(real: ImageTensors, method: str, seed: int, output_dir: Path) -> Generator:
    """Train a generator; only the best one gets codes and a teacher."""
    options = {"method": method, "seed": seed, "output_dir": output_dir / method}
    options |= {} if method == "cgan" else {"start_from": str(output_dir / "cgan")}
    options |= {} if method == BEST else HARD
    return GlobalLocalTrainer(real, preset="tiny", **options).fit()


def measure(
    generators: dict[str, Generator], real: ImageTensors, test: ImageTensors, n: int, n_real: int
) -> Iterator[Report]:
    """Yield the parts of the table.

    Ten random real images per class differ much from draw to draw, so more of them are drawn.
    """
    best, settings = generators[BEST], {"networks": "convnet2", "recipe": RECIPE, "n": n}
    yield baselines(real, test, ipc=1, full_data=False, **settings)
    yield baselines(real, test, ipc=10, full_data=False, bank=best, **settings | {"n": n_real})  # soft labels too
    yield baselines(real, test, ipc=50, **settings)
    settings |= {"real": real, "with_baselines": False}
    features = coreset_features("convnet2", real, RECIPE)
    for (name, _), subset in cut_coresets(("herding",), features, real, IPCS).items():
        yield evaluate(subset, test, name=name, **settings)
    for method in METHODS[:-1]:
        yield evaluate(generators[method], test, ipc=10, **settings)
    yield evaluate(best, test, ipc=10, protocol="dynamic", **settings)
    yield evaluate(best, test, ipc=IPCS, protocol="fixed", sampling=Sampling(distilled=False), **settings)
    for ipc in IPCS:
        yield evaluate(best, test, ipc=ipc, protocol=("fixed", "soft") if ipc == 10 else "fixed", **settings)


def main(output_dir: Path = Path("runs/digits"), seed: int = 0, n: int = 3, n_real: int = 20) -> None:
    """Distill the digits by every method and compare the results.

    Args:
        output_dir: folder for the sets and for one subfolder per method.
        seed: seed of the trainings.
        n: networks per row of the table.
        n_real: networks of the rows of 10 random real images per class.

    """
    real, test = (ImageTensors.from_dataset("digits", split) for split in ("train", "test"))
    generators = {method: train(real, method, seed, output_dir) for method in METHODS}
    for ipc in IPCS:
        load_distilled_dataset(generators[BEST], ipc=ipc).to_parquet(output_dir / f"ipc{ipc}.parquet")
    report = Report.merge(measure(generators, real, test, n, n_real))
    print(report.markdown())
    for method, generator in generators.items():
        generator.report = report
        generator.save_pretrained(output_dir / method / "generator")
    print(next_steps(output_dir))


def next_steps(output_dir: Path) -> str:
    """Return where everything is, and commands to go on with."""
    run, command = output_dir / BEST, shutil.which("hf-gdd")
    command = "hf-gdd" if command else os.path.relpath(Path(sys.executable).parent / "hf-gdd")
    return f"""
Generator: {run / "generator"} (README.md is its card, with this table)
Sets:      {", ".join(str(output_dir / f"ipc{ipc}.parquet") for ipc in IPCS)}
Pictures:  {run / "generator" / "grid.png"}, {run / "samples"}, {run / "losses.png"}

Next:
  {command} show {run / "generator"}
  {command} materialize {run / "generator"} --ipc 20 --output-dir distilled
  {command} push {run / "generator"} YOUR_NAME/digits-gdd
  {command} distill --dataset FOLDER_OR_HUB_ID --preset lite --output-dir runs/mine"""


if __name__ == "__main__":
    tyro.cli(main)
