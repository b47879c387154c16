"""Options and steps that several commands share."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tyro.conf import FlagCreatePairsOff

from hf_gdd.generators.auto import AutoGenerator
from hf_gdd.generators.base import Generator
from hf_gdd.generators.sampling import changed_sampling
from hf_gdd.utils.device import own_device


@dataclass(frozen=True)
class SamplingOptions:
    """Options that change a generator's pixels.

    Each defaults to the value that the generator was saved with.
    """

    truncation: float | None = None
    """GAN only: factor on the noise; below 1 trades diversity for typicality"""
    guidance_scale: float | None = None
    """diffusion only: weight of the class; 1 for none"""
    num_inference_steps: int | None = None
    """diffusion only: denoising steps"""
    scheduler: Literal["ddim", "ddpm", "dpm++"] | None = None
    """diffusion only: how it steps"""
    distilled: FlagCreatePairsOff[bool] = False
    """make the first images of every class from the distilled codes, if there are any and the seed is 0"""
    no_distilled: FlagCreatePairsOff[bool] = False
    """make plain draws alone"""

    def apply_to(self, generator: Generator) -> Any:
        """Return the generator's sampling with these options; None if none was passed.

        Raises:
            ValueError: the generator's sampling has no such option, a value is out of range, or both flags were passed.

        """
        fields = asdict(self)
        flags = fields.pop("distilled"), fields.pop("no_distilled")
        if all(flags):
            raise ValueError("Pass --distilled or --no-distilled, not both.")
        return changed_sampling(generator.sampling, **fields, distilled=flags[0] if any(flags) else None)


def load_generator(source: str, revision: str | None = None, classes: Sequence[str] = ()) -> Generator:
    """Load a generator onto a GPU if there is one.

    Args:
        source: folder or Hub repo id.
        revision: branch, tag or commit of the repo.
        classes: the only classes to take, by name or WordNet id; all if empty.

    Raises:
        LoadError: there is no generator, or it cannot be loaded.
        ValueError: classes are chosen of a generator that has only its own.

    """
    generator = AutoGenerator.from_pretrained(source, revision=revision, device=own_device())
    return generator.select(classes, classes) if classes else generator
