"""Seeds, integer hashing and resumable random number generators."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Odd 64-bit constants of the splitmix64 generator (Steele, Lea & Flood, 2014), as signed integers.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int64 to the right, filling with zeros; torch's shift copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """Hash int64 one to one (splitmix64); every input bit affects every output bit."""
    x = (x ^ shift_right(x, 30)) * _MIX_1
    x = (x ^ shift_right(x, 27)) * _MIX_2
    return x ^ shift_right(x, 31)


def check_seed(seed: int) -> None:
    """Raise ValueError unless a seed lies in [0, 2**63)."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2**63).")


def derive_seed(seed: int, *parts: int) -> int:
    """Return another seed in [0, 2**63) for every (seed, parts).

    Random sequences of neighboring seeds or parts are unrelated.
    """
    key = torch.tensor(seed)
    for part in parts:
        key = mix64(key * GOLDEN + part + 1)
    return int(key) % 2**63


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block, and restore it afterwards.

    `torch.manual_seed` would also reseed every CUDA device, and nothing would restore those.

    Args:
        seed: the seed; None leaves the generator as it is.

    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


def draw_rows(labels: Tensor, counts: Sequence[int], seed: int) -> Tensor:
    """Return the sorted numbers of counts[k] random rows of every class k."""
    rng = torch.Generator().manual_seed(seed)
    labels, chosen = labels.cpu(), []
    for label, count in enumerate(counts):
        rows = (labels == label).nonzero().flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=rng)[:count]])
    return torch.cat(chosen).sort().values


class Random:
    """Random number generators of a training run, with a state that can be saved.

    Args:
        seed: seed of the run.
        device: device of `rng`.
        stream: runs that need several independent sequences number them here.

    Attributes:
        rng: draws tensors on the device.
        host_rng: draws decisions on the CPU, so that none waits for the device.

    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", stream: int = 0) -> None:
        self.rng = torch.Generator(device).manual_seed(derive_seed(seed, stream, 0))
        self.host_rng = torch.Generator().manual_seed(derive_seed(seed, stream, 1))

    def integer(self, high: int) -> int:
        """Draw an integer in [0, high) on the CPU."""
        return int(torch.randint(high, (), generator=self.host_rng))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states of both generators."""
        return {"device": self.rng.get_state(), "host": self.host_rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state that `state_dict` returned."""
        self.rng.set_state(state["device"].cpu())
        self.host_rng.set_state(state["host"].cpu())
