"""Seeds, hashing and resumable random number generators."""

import pytest
import torch

from hf_gdd.utils.random import Random, check_seed, derive_seed, mix64, seeded, shift_right


def test_shifts_fill_with_zeros():
    x = torch.tensor([-1, 8])
    assert shift_right(x, 1).tolist() == [2**63 - 1, 4]


def test_hashes_are_those_of_splitmix64():
    """The first two outputs of the published generator at seed 0."""
    golden = 0x9E3779B97F4A7C15 - (1 << 64)
    states = torch.tensor([1, 2]) * golden
    assert [value % 2**64 for value in mix64(states).tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\*\*63\)"):
        check_seed(seed)
    check_seed(0)
    check_seed(2**63 - 1)


def test_derived_seeds_differ_and_never_change():
    """A change of derived seeds changes every published generator: it must never happen unnoticed."""
    keys = [(seed, *parts) for seed in range(4) for parts in [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2, 3) == PINNED


def test_a_block_is_seeded_and_the_global_generator_restored():
    state = torch.get_rng_state()
    draws = []
    for seed in (5, 5, 6):
        with seeded(seed):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(None):
        torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_state_is_resumed():
    first, second = Random(3), Random(4)
    first.integer(9)
    second.load_state_dict(first.state_dict())
    assert [first.integer(1000) for _ in range(5)] == [second.integer(1000) for _ in range(5)]
    assert torch.equal(torch.rand(4, generator=first.rng), torch.rand(4, generator=second.rng))


def test_streams_of_one_seed_are_unrelated():
    draws = [torch.rand(2, generator=rng) for stream in range(2) for rng in vars(Random(3, stream=stream)).values()]
    assert len(torch.stack(draws).unique(dim=0)) == 4


PINNED = 1865119310891967314
