import pytest
import torch

from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize, ZCAWhitening, input_transform
from hf_gdd.data.pixels import to_unit


@pytest.fixture(scope="module")
def digits():
    return ImageTensors.from_dataset("digits", "train", device="cpu", progress=False)


def color(n=300, seed=0):
    """Correlated pixels: every image is a mixture of few patterns."""
    draws = torch.Generator().manual_seed(seed)
    patterns = torch.rand(6, 3, 8, 8, generator=draws)
    images = torch.einsum("nk,kchw->nchw", torch.rand(n, 6, generator=draws), patterns)
    labels = torch.arange(n) % 2
    return ImageTensors((60 * images).to(torch.uint8), labels, ("a", "b"), "toy", torch.device("cpu"))


@pytest.mark.parametrize("zca", [False, True])
def test_a_transform_can_be_undone(zca):
    data = color()
    transform, unit = input_transform(data, zca), to_unit(data.images[:20])
    torch.testing.assert_close(transform.inverse(transform(unit)), unit, atol=1e-5, rtol=1e-5)


def test_channels_have_mean_0_and_deviation_1(digits):
    seen = input_transform(digits, zca=False)(to_unit(digits.images))
    torch.testing.assert_close(torch.stack([seen.mean(), seen.std(correction=0)]), torch.tensor([0.0, 1.0]))


def test_whitened_pixels_are_nearly_uncorrelated():
    data = color()
    before, after = (
        torch.cov(x.flatten(1).T) for x in (to_unit(data.images), ZCAWhitening.fit(data, 1e-6)(to_unit(data.images)))
    )
    directions = torch.linalg.matrix_rank(before, atol=1e-4)
    values = torch.linalg.eigvalsh(after)[-directions:]
    torch.testing.assert_close(values, torch.ones_like(values), atol=0.02, rtol=0)


def test_whitening_equals_its_definition():
    data = color(40)
    x = to_unit(data.images).flatten(1).double()
    centered = x - x.mean(0)
    u, s, _ = torch.linalg.svd(centered.T @ centered / 39)
    expected = centered @ (u @ torch.diag((s + 0.1).rsqrt()) @ u.T)
    seen = ZCAWhitening.fit(data)(to_unit(data.images)).flatten(1)
    torch.testing.assert_close(seen.double(), expected, atol=1e-4, rtol=1e-4)


def test_gradients_pass():
    data = color(40)
    unit = to_unit(data.images[:2]).requires_grad_()
    input_transform(data, zca=True)(unit)[0].sum().backward()
    assert unit.grad[0].abs().sum() > 0
    assert not unit.grad[1].any()


def test_equal_statistics_are_equal_transforms(digits):
    assert input_transform(digits, zca=False) == Normalize(digits.mean, digits.std)
