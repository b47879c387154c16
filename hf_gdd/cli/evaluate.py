"""`hf-gdd evaluate`: measure what a generator or a distilled set is worth."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes, Positional

from hf_gdd.classifiers.recipes import RECIPES, find_recipe
from hf_gdd.cli.options import SamplingOptions, load_generator
from hf_gdd.evaluation.evaluate import as_images, evaluate
from hf_gdd.hub.files import CONFIG_NAME, PIPELINE_NAME, REPORT_NAME
from hf_gdd.report import PROTOCOLS
from hf_gdd.utils.device import launched


@dataclass(frozen=True)
class Evaluate:
    """Train networks on distilled images and test them on real images."""

    source: Positional[str]
    """folder or Hub repo id of a generator, or the folder of a distilled data set"""
    dataset: str
    """real data set: its train split gives the baselines, its test split the test"""
    ipc: tuple[int, ...] = ()
    """images per class; several give several rows. Default: 10 for a generator, all for a bank or data set"""
    protocol: tuple[str, ...] = ()
    """protocols, listed above; `fixed` if not given, and `soft` where there are soft labels"""
    networks: tuple[str, ...] = ("convnet3",)
    """architectures, such as convnet3, resnet18-dd, alexnet, vgg11"""
    n: int = 5
    """networks of each architecture"""
    recipe: Literal[tuple(RECIPES)] = "paper"
    """how they are trained; `tiny` is for the 8x8 digits"""
    soft_loss: Literal["l1", "kl"] | None = None
    """how networks learn soft labels: `l1` for the difference of logits, `kl` for the divergence of softened
    predictions; the recipe's own if not given"""
    temperature: float | None = None
    """how much `kl` softens; the recipe's own if not given"""
    coresets: tuple[Literal["herding", "k-center"], ...] = ()
    """choices of real images to stand beside the random ones"""
    quality: bool = False
    """also score the images themselves: precision, recall, density, coverage, Frechet distance, diversity"""
    zca: bool | None = None
    """let networks see whitened images; needed for a set made from a bank whose teacher did"""
    shared_draws: bool = False
    """let all networks see the same batches: quicker, but their deviation then leaves out what batches change"""
    seed: int = 0
    """seed of the first network and of the first random subset"""
    image_seed: int = 0
    """seed of a generator's images; distilled ones are those of seed 0"""
    test_split: str = "test"
    """name of the real test split"""
    revision: str | None = None
    """branch, tag or commit of the generator's repo"""
    classes: tuple[str, ...] = ()
    """of a stock pipeline: the data set's classes, by name or WordNet id, in the data set's order"""
    sampling: OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)
    """how images are sampled"""
    image_column: str | None = None
    """the real data set's image column, if it has several"""
    label_column: str | None = None
    """the real data set's label column, if it has several"""
    output: str | None = None
    """where to write the report as JSON"""

    def __call__(self) -> None:
        """Evaluate, print the table, and write the report."""
        if launched()[1] > 1:
            raise ValueError("evaluate trains all networks in one process: start it without a launcher.")
        output = self._output()
        source = Path(self.source)
        is_generator = not source.is_dir() or any((source / name).is_file() for name in (CONFIG_NAME, PIPELINE_NAME))
        if not is_generator and self.sampling != SamplingOptions():
            raise ValueError("A data set is fixed already: leave out --guidance-scale and other sampling options.")
        changes = {"soft_loss": self.soft_loss, "temperature": self.temperature}
        recipe = replace(find_recipe(self.recipe), **{name: x for name, x in changes.items() if x is not None})
        if not is_generator and self.classes:
            raise ValueError("--classes chooses among the classes of a diffusion generator: leave it out.")
        train = load_generator(self.source, self.revision) if is_generator else as_images(self.source, "train")
        size = (train.image_shape if is_generator else train.shape)[-1]
        columns = {"image_column": self.image_column, "label_column": self.label_column, "image_size": size}
        real, test = (as_images(self.dataset, split, **columns) for split in ("train", self.test_split))
        if self.classes:
            train = train.select(self.classes, real.class_names)
        report = evaluate(
            train,
            test,
            real=real,
            ipc=self.ipc or (10 if is_generator and train.max_ipc is None else None),
            protocol=self.protocol or None,
            networks=self.networks,
            n=self.n,
            recipe=recipe,
            coresets=self.coresets,
            quality=self.quality,
            zca=self.zca,
            shared_draws=self.shared_draws,
            sampling=self.sampling.apply_to(train) if is_generator else None,
            seed=self.seed,
            image_seed=self.image_seed,
        )
        print(report.markdown())
        report.save(output)
        print(f"Report: {output}")

    def _output(self) -> Path:
        """Return the report's path: `--output`, else beside a local generator.

        Raises:
            ValueError: its folder does not exist, or it is itself a folder.

        """
        folder = Path(self.source)
        beside = folder.is_dir() and not self.classes  # a choice of classes is another generator
        output = Path(self.output) if self.output else (folder if beside else Path()) / REPORT_NAME
        if output.is_dir() or not output.parent.is_dir():
            raise ValueError(f"--output {output}: its folder does not exist, or it is itself a folder.")
        return output


def describe() -> str:
    """Return the help text, with every protocol."""
    protocols = "\n".join(f"  {name:<22}{protocol.summary}" for name, protocol in PROTOCOLS.items())
    return f"""Train networks on distilled images and test them on real images.

Prints one table, beside random real subsets of the same IPC and the full data, and writes it to report.json, in the
generator's own folder if it is a local one, where it replaces what was there.

Protocols:
{protocols}
"""
