"""Sampling settings: options that change a generator's pixels beside its weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_gdd.report import FORMER_SAMPLING

# `ddpm` takes ancestral steps, as in the papers; the others draw only the first noise, and need fewer steps.
SCHEDULERS = ("ddim", "ddpm", "dpm++")


class _Settings:
    def identity(self) -> dict[str, Any]:
        """Return the fields as primitives, for reports and cards."""
        return asdict(self)

    def without_codes(self) -> Any:
        """Return equal settings for a generator that has no distilled codes."""
        return self


class _DrawnSettings(_Settings):
    """Settings of drawn images, of which the first may be distilled."""

    distilled: bool

    def without_codes(self) -> Any:
        """Return equal settings for a generator that has no distilled codes."""
        return self if self.distilled else replace(self, distilled=True)

    @property
    def _plain(self) -> str:
        """End of a cache key, which sets of earlier versions lack."""
        return "" if self.distilled else ", distilled=False"


@dataclass(frozen=True)
class Sampling(_DrawnSettings):
    """Settings that change the pixels of a one-shot generator.

    Example:
        images = generator.sample(labels, indices, sampling=Sampling(truncation=0.7))

    """

    truncation: float = 1.0
    """factor on the noise; below 1 trades diversity for typicality; distilled codes are never scaled"""
    distilled: bool = True
    """make the first images of every class from the distilled codes, if there are any and the seed is 0"""

    def __post_init__(self) -> None:
        if not 0 <= self.truncation <= 2:
            raise ValueError(f"truncation is {self.truncation}; it must lie in [0, 2], 1 for the trained distribution.")

    @property
    def cache_key(self) -> str:
        """Text that names these settings in caches of data sets; must never change."""
        return f"Sampling(truncation={self.truncation!r}{self._plain})"


@dataclass(frozen=True)
class DiffusionSampling(_DrawnSettings):
    """Settings that change the pixels of a diffusion generator, named as in diffusers.

    Example:
        sampling = DiffusionSampling(guidance_scale=4.0, num_inference_steps=50, scheduler="ddpm")

    """

    guidance_scale: float = 4.0
    """weight of the condition against no condition (Ho & Salimans, 2022); 1 is the model itself. All latent channels
    are guided, as in diffusers; the public DiT code guides three of four"""
    num_inference_steps: int = 50
    """denoising steps"""
    scheduler: str = "ddim"
    """`ddim`, `ddpm` (ancestral, with the learned variance if the model has one) or `dpm++`"""
    distilled: bool = True
    """take the chosen draws for the first images of every class, if there are any and the seed is 0"""

    def __post_init__(self) -> None:
        steps = self.num_inference_steps
        if not 1 <= self.guidance_scale <= 100:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must lie in [1, 100], 1 for none.")
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 1000:
            raise ValueError(f"num_inference_steps is {steps!r}; it must be a whole number in 1..1000.")
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"Unknown scheduler {self.scheduler!r}; choose one of {', '.join(SCHEDULERS)}.")

    @property
    def cache_key(self) -> str:
        """Text that names these settings in caches of data sets; must never change."""
        guidance, steps, scheduler = self.guidance_scale, self.num_inference_steps, self.scheduler
        return f"DiffusionSampling(guidance={guidance!r}, steps={steps!r}, scheduler={scheduler!r}{self._plain})"


@dataclass(frozen=True)
class StoredSampling(_Settings):
    """Sampling of stored images: nothing changes them."""

    @property
    def cache_key(self) -> str:
        """Text that names these settings in caches of data sets; must never change."""
        return "StoredSampling()"


def present_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Translate names of sampling fields that an earlier version saved."""
    return {FORMER_SAMPLING.get(name, name): value for name, value in fields.items()}


def changed_sampling(sampling: Any, **fields: Any) -> Any:
    """Return sampling settings with some fields replaced; None if none are given.

    Args:
        sampling: settings to start from.
        fields: new values; None leaves a field as it is.

    Raises:
        ValueError: these settings have no such field, or a value is out of range.

    """
    fields = {name: value for name, value in fields.items() if value is not None}
    known = sampling.identity()
    if unknown := sorted(fields.keys() - known.keys()):
        reason = f"but {', '.join(known)}" if known else "because its images are stored"
        raise ValueError(f"This generator's sampling has no {', '.join(unknown)}, {reason}.")
    return replace(sampling, **fields) if fields else None
