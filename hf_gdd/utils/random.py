"""Counter-based noise: every image's noise is a pure function of (seed, label, index, stream).

Nothing is stored and nothing is consumed in order, so image 7 of class 3 is the same whether it is drawn alone, in a
batch of 256, on another shard or years later. Integer hashing is exact everywhere; only the last step, from uniform to
normal, rounds, so devices agree to float32 rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Odd 64-bit constants of the splitmix64 generator (Steele, Lea & Flood, 2014), as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically, so the copies of the sign bit are masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Finaliser of splitmix64: a bijection of int64 in which every input bit reaches every output bit."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def noise(seed: int, labels: Tensor, indices: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Standard normal noise, one independent block for every (label, index).

    Args:
        seed: any integer in [0, 2**63).
        labels: int64 [B], the class of each image.
        indices: int64 [B], the number of each image within its class.
        shape: the shape of one image's block of noise.
        stream: separates several blocks of one image, such as the steps of a diffusion sampler.

    Returns:
        float32 [B, *shape] on the device of `labels`.

    """
    key = torch.full_like(labels, seed)
    for part in (labels, indices, torch.full_like(labels, stream)):
        key = _mix(key * _GOLDEN + part + 1)
    size = torch.Size(shape).numel()
    pairs = torch.arange((size + 1) // 2, device=labels.device)
    bits = _mix(key[:, None] + (pairs + 1) * _GOLDEN)

    # Box-Muller: 32 bits for the radius, 32 for the angle. The half keeps the logarithm finite.
    radius = ((_shift_right(bits, 32) + 0.5) * 2.0**-32).log().mul(-2).clamp(min=0).sqrt()
    angle = (bits & 0xFFFFFFFF) * (2 * torch.pi * 2.0**-32)
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return normal[:, :size].reshape(len(labels), *shape)


def check_seed(seed: int) -> None:
    """Refuse a seed that the noise cannot take.

    Raises:
        ValueError: it lies outside [0, 2**63).

    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2**63).")


def derive(seed: int, *parts: int) -> int:
    """Another seed in [0, 2**63) for every (seed, parts): sequences of neighbouring seeds share nothing."""
    key = torch.tensor(seed)
    for part in parts:
        key = _mix(key * _GOLDEN + part + 1)
    return int(key) % 2**63


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Make what is drawn from torch's global generator of the host depend on this number alone; None leaves it as is.

    The global state is restored. torch.manual_seed would reseed every CUDA device as well, which nothing would restore.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


class Random:
    """The random draws of a training run, resumable: one generator on the device, one on the host for decisions.

    Args:
        seed: of the run.
        device: where tensors are drawn.
        stream: separates several sequences of one run.

    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", stream: int = 0) -> None:
        self.device = torch.Generator(device).manual_seed(derive(seed, stream, 0))
        self.host = torch.Generator().manual_seed(derive(seed, stream, 1))

    def integer(self, high: int) -> int:
        """An integer in [0, high), on the host, without waiting for the device."""
        return int(torch.randint(high, (), generator=self.host))

    def state_dict(self) -> dict[str, Tensor]:
        """The position in both sequences."""
        return {"device": self.device.get_state(), "host": self.host.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self.device.set_state(state["device"].cpu())
        self.host.set_state(state["host"].cpu())
