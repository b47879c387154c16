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
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically, so the copies of the sign bit are masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """Finalizer of splitmix64: a bijection of int64 in which every input bit reaches every output bit."""
    x = (x ^ shift_right(x, 30)) * _MIX_1
    x = (x ^ shift_right(x, 27)) * _MIX_2
    return x ^ shift_right(x, 31)


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
        key = mix64(key * GOLDEN + part + 1)
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
        self.rng = torch.Generator(device).manual_seed(derive(seed, stream, 0))
        self.host_rng = torch.Generator().manual_seed(derive(seed, stream, 1))

    def integer(self, high: int) -> int:
        """An integer in [0, high), on the host, without waiting for the device."""
        return int(torch.randint(high, (), generator=self.host_rng))

    def state_dict(self) -> dict[str, Tensor]:
        """The position in both sequences."""
        return {"device": self.rng.get_state(), "host": self.host_rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self.rng.set_state(state["device"].cpu())
        self.host_rng.set_state(state["host"].cpu())
