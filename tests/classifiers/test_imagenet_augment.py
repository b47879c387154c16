"""Augmentation for subsets of ImageNet."""

import pytest
import torch

from hf_gdd.classifiers.imagenet_augment import ImageNetAugment
from hf_gdd.classifiers.learner import Learner
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.normalization import Normalize

AUGMENT = ImageNetAugment()
MIDDLE = [0.5] * 12  # crop, mirror image, factors, order and lighting


def images(n=64, channels=3, side=16, seed=0):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def drawn(n=64, seed=0):
    return AUGMENT.draw(n, torch.Generator().manual_seed(seed))


def fixed(n, **columns):
    """A draw that leaves an image as it is, but for some columns."""
    u = torch.tensor([MIDDLE]).repeat(n, 1)
    u[:, 0] = 1.0  # all of the area
    for name, value in columns.items():
        u[:, int(name[1:])] = value
    return u


def test_the_middle_of_every_draw_changes_nothing():
    x = images(4)
    torch.testing.assert_close(AUGMENT(x, fixed(4)), x, atol=1e-5, rtol=1e-5)


def test_a_mirror_image():
    x = images(4)
    torch.testing.assert_close(AUGMENT(x, fixed(4, c4=0.2)), x.flip(3), atol=1e-5, rtol=1e-5)


def test_crops_have_half_to_all_of_the_area_within_the_image():
    """A ramp tells which part of an image is seen, and how much of it."""
    ramp = torch.linspace(-1, 1, 64)
    x = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(500, -1, -1, -1)
    u = drawn(500)
    u[:, 4:] = 0.5
    seen = AUGMENT._crop(x, u[:, :5])
    width = (seen[:, 0, 0, -1] - seen[:, 0, 0, 0]) / 2 * 64 / 63
    height = (seen[:, 1, -1, 0] - seen[:, 1, 0, 0]) / 2 * 64 / 63
    area, oblong = width * height, width / height
    assert 0.48 < area.min() < 0.56
    assert area.max() < 1.04
    assert 0.72 < oblong.min() < 0.85
    assert 1.18 < oblong.max() < 1.4
    assert seen[:, :2].abs().max() <= 1


@pytest.mark.parametrize(("column", "kept"), [(5, "black"), (6, "mean"), (7, "gray")])
def test_factors_move_away_from_black_from_the_mean_and_from_grey(column, kept):
    x = images(3)
    out = AUGMENT(x, fixed(3, **{f"c{column}": 0.75}))  # a factor of 1.2
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    gray = (x * weights).sum(1, keepdim=True)
    anchor = {"black": torch.zeros_like(x), "mean": gray.mean((2, 3), keepdim=True), "gray": gray}[kept]
    torch.testing.assert_close(out, anchor + 1.2 * (x - anchor), atol=1e-5, rtol=1e-5)


def test_the_order_of_factors_matters_and_is_drawn():
    x, u = images(1), fixed(1, c5=0.9, c6=0.1, c7=0.8)
    made = []
    for order in range(6):
        u[:, 8] = (order + 0.5) / 6
        made.append(AUGMENT(x, u).flatten())
    assert len({tuple(image.tolist()) for image in made}) >= 2


def test_light_shifts_all_pixels_alike():
    x = images(200)
    u = fixed(200)
    u[:, 9:] = drawn(200)[:, 9:]
    shift = AUGMENT(x, u) - x
    assert shift.flatten(2).std(dim=2).max() < 1e-5
    assert shift[:, :, 0, 0].std(dim=0).mean() == pytest.approx(0.0125, abs=0.004)  # a tenth of the first deviation


def test_grey_images_stay_grey():
    x = images(8, channels=1)
    assert AUGMENT(x, drawn(8)).shape == x.shape
    torch.testing.assert_close(AUGMENT(x, fixed(8, c7=0.9, c9=0.9)), x, atol=1e-5, rtol=1e-5)


def test_augmentation_of_unit_images_comes_before_normalising(monkeypatch):
    seen = []
    monkeypatch.setattr(ImageNetAugment, "__call__", lambda self, x, draw: seen.append(x) or x)
    recipe = Recipe(augment="imagenet")
    learner = Learner(build_network("convnet1", 3, (1, 8, 8), seed=0), Normalize((0.5,), (0.1,)), recipe, 1)
    learner.step(torch.full((2, 1, 8, 8), 255, dtype=torch.uint8), torch.tensor([0, 1]), torch.Generator())
    assert seen[0].unique().tolist() == [1.0]
