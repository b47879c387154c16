"""`hf-gdd materialize`: turn a generator into training sets on disk."""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from hf_gdd.cli.options import SamplingOptions, load_generator
from hf_gdd.distilled.builder import load_distilled_dataset, write_parquet
from hf_gdd.distilled.push import config_name, push_distilled_dataset
from hf_gdd.generators.checks import check_image_seed, check_ipc
from hf_gdd.utils.device import launched


@dataclass(frozen=True)
class Materialize:
    """Turn a generator into training sets on disk.

    Each IPC gets a Parquet folder, which `datasets.load_dataset` reads. A run that was stopped resumes when the same
    command is repeated. Several GPUs divide the work if it is started by `torchrun --nproc-per-node 8 --no-python
    hf-gdd materialize ...`.
    """

    generator: Positional[str]
    """folder or Hub repo id of a generator"""
    ipc: tuple[int, ...] = (10,)
    """images per class; several make several sets. A smaller set is the beginning of a larger one"""
    output_dir: str = "distilled"
    """each set goes to <output_dir>/ipc<N>-seed<S>/train.parquet"""
    seed: int = 0
    """another seed makes other images; distilled ones are those of seed 0"""
    sampling: OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)
    """how images are sampled"""
    classes: tuple[str, ...] = ()
    """of a stock pipeline: which of its classes, by name or WordNet id; all if not given"""
    revision: str | None = None
    """branch, tag or commit of the repo"""
    num_proc: int | None = None
    """processes; each makes a part of the images (CPU only)"""
    push_to_hub: str | None = None
    """id of a data set repo to push the sets to as well, one configuration each"""
    private: bool = False
    """make that repo private, if it is created now"""
    overwrite: bool = False
    """replace configurations there that hold other images"""

    def __call__(self) -> None:
        """Make the sets, and print how to load them."""
        generator = load_generator(self.generator, self.revision, self.classes)
        if not self.ipc:
            raise ValueError("--ipc names no number of images per class: pass --ipc 10, say.")
        check_image_seed(generator, self.seed)
        for ipc in self.ipc:
            check_ipc(generator, ipc)
        sampling = generator.choose_sampling(self.sampling.apply_to(generator))
        options = {"seed": self.seed, "sampling": sampling, "num_proc": self.num_proc}
        distilled = 0 if self.seed or not sampling.identity().get("distilled", True) else generator.distilled_ipc
        for ipc in self.ipc:
            data = load_distilled_dataset(generator, ipc=ipc, **options)
            if launched()[0] > 0:  # all processes have made the set; one writes it
                continue
            folder = Path(self.output_dir) / f"ipc{ipc}-seed{self.seed}"
            write_parquet(data, folder / "train.parquet")
            count = min(ipc, distilled) * generator.num_classes
            note = (", all distilled" if count == len(data) else f", {count:,} of them distilled") if count else ""
            print(f'{len(data):,} images{note}: load_dataset("{folder}", split="train")')
        if self.push_to_hub and launched()[0] == 0:
            options |= {"private": self.private or None, "overwrite": self.overwrite}
            push_distilled_dataset(generator, self.push_to_hub, ipc=self.ipc, **options)
            for ipc in self.ipc:
                print(f'load_dataset("{self.push_to_hub}", "{config_name(ipc, self.seed)}", split="train")')
