"""The noise is normal, independent between its keys, and a function of them alone."""

import pytest
import torch

from hf_gdd.generators.noise import noise


def test_moments_and_tails_are_normal():
    labels = torch.arange(10).repeat_interleave(1000)
    indices = torch.arange(1000).repeat(10)
    x = noise(0, labels, indices, (90,)).double()
    assert abs(x.mean()) < 5e-3
    assert abs(x.std() - 1) < 5e-3
    assert abs((x**4).mean() - 3) < 0.05
    assert ((x.abs() > 3).double().mean() - 0.0027).abs() < 3e-4
    correlation = torch.corrcoef(x.T)
    assert (correlation - torch.eye(90)).abs().max() < 0.06


@pytest.mark.parametrize("key", ["seed", "label", "index", "stream"])
def test_every_part_of_the_key_gives_unrelated_noise(key):
    def draw(seed=0, label=1, index=2, stream=3):
        return noise(seed, torch.tensor([label]), torch.tensor([index]), (4000,), stream)[0]

    a, b = draw(), draw(**{key: 4})
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.06
    assert torch.equal(a, draw())


def test_neighbouring_keys_never_collide():
    labels = torch.arange(100).repeat_interleave(300)
    indices = torch.arange(300).repeat(100)
    first = torch.cat([noise(s, labels, indices, (2,), t) for s in range(3) for t in range(2)])
    assert len(first.unique(dim=0)) == len(first)


def test_an_image_keeps_its_noise_in_any_batch():
    labels, indices = torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2, 6, 5, 3])
    whole = noise(7, labels, indices, (3, 5))
    alone = torch.cat([noise(7, labels[i : i + 1], indices[i : i + 1], (3, 5)) for i in range(5)])
    assert whole.shape == (5, 3, 5)
    assert torch.equal(whole, alone)


def test_values_are_pinned():
    """A change of the noise changes every published data set: it must never happen unnoticed."""
    x = noise(1, torch.tensor([2]), torch.tensor([3]), (4,), stream=5)[0]
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor(PINNED), rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree_to_rounding():
    labels, indices = torch.arange(64), torch.arange(64) * 7
    cpu = noise(3, labels, indices, (90,))
    torch.testing.assert_close(noise(3, labels.cuda(), indices.cuda(), (90,)).cpu(), cpu, rtol=1e-5, atol=1e-5)


PINNED = [0.4307861626, 1.5989922285, 2.4309217930, -0.0855987370]
