import math

import pytest
import torch
import torch.nn.functional as F

from hf_gdd.classifiers.augment import (
    Augment,
    brightness,
    contrast,
    crop,
    cutmix,
    cutout,
    flip,
    rotate,
    saturation,
    scale,
)
from hf_gdd.classifiers.recipes import augmentation

ALL = "flip_color_crop_scale_rotate_cutout"
OPERATIONS = [
    (flip, 1),
    (brightness, 1),
    (saturation, 1),
    (contrast, 1),
    (crop, 2),
    (scale, 2),
    (rotate, 1),
    (cutout, 2),
]
per_operation = pytest.mark.parametrize(("operation", "columns"), OPERATIONS)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images(rng):
    return torch.randn(6, 3, 12, 10, generator=rng)


def test_an_empty_policy_is_the_identity(images):
    augment = Augment("")
    assert torch.equal(augment(images, augment.draw(1)), images)


@pytest.mark.parametrize("n", [1, 6])
def test_one_draw_treats_equal_pixels_equally(images, rng, n):
    augment = Augment(ALL)
    draw = augment.draw(n, rng)
    assert torch.equal(augment(images, draw), augment(images.clone(), draw))
    assert not torch.equal(augment(images, draw), augment(images, augment.draw(n, rng)))


@per_operation
def test_a_shared_draw_is_the_same_row_for_every_image(operation, columns, images, rng):
    u = torch.rand(1, columns, generator=rng)
    torch.testing.assert_close(operation(images, u), operation(images, u.expand(6, -1)))


def test_a_shared_draw_of_a_policy_is_the_same_row_for_every_image(images, rng):
    augment = Augment(ALL)
    for _ in range(4):
        draw = augment.draw(1, rng)
        torch.testing.assert_close(augment(images, draw), augment(images, draw.repeat(6, 1)))


@per_operation
def test_one_image_is_treated_as_it_is_in_a_batch(operation, columns, images, rng):
    u = torch.rand(6, columns, generator=rng)
    alone = torch.cat([operation(images[i : i + 1], u[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(operation(images, u), alone)


def test_flip_mirrors_below_one_half(images):
    flipped = flip(images, torch.tensor([[0.0], [0.49], [0.5], [0.99], [0.2], [0.7]]))
    for index, mirrored in enumerate([True, True, False, False, True, False]):
        expected = torch.fliplr(images[index].movedim(0, -1)).movedim(-1, 0) if mirrored else images[index]
        assert torch.equal(flipped[index], expected)


def test_colours_follow_their_formulas(images, rng):
    u = torch.rand(6, 1, generator=rng)
    for operation, formula in {
        brightness: lambda x, v: x + (v - 0.5),
        saturation: lambda x, v: x.mean(0) + (x - x.mean(0)) * 2 * v,
        contrast: lambda x, v: x.mean() + (x - x.mean()) * (v + 0.5),
    }.items():
        expected = torch.stack([formula(x, v.item()) for x, v in zip(images, u, strict=True)])
        torch.testing.assert_close(operation(images, u), expected)


def test_saturation_leaves_one_channel(images, rng):
    gray = images[:, :1]
    assert torch.equal(saturation(gray, torch.rand(6, 1, generator=rng)), gray)


def naive_crop(image, u, limit):
    moved = torch.zeros_like(image)
    down, right = (math.floor(v * (2 * m + 1)) - m for v, m in zip(u, limit, strict=True))
    height, width = image.shape[1:]
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                moved[:, y, x] = image[:, y + down, x + right]
    return moved


def test_crop_equals_the_loop(images, rng):
    u = torch.rand(6, 2, generator=rng)
    limit = (round(0.125 * 12), round(0.125 * 10))
    expected = torch.stack([naive_crop(x, v.tolist(), limit) for x, v in zip(images, u, strict=True)])
    assert torch.equal(crop(images, u), expected)


@pytest.mark.parametrize(("side", "limit"), [(8, 1), (28, 4), (32, 4), (64, 8)])
def test_crop_reaches_its_limit_both_ways_and_no_further(side, limit):
    image = torch.zeros(1, 1, side, side)
    image[0, 0, side // 2, side // 2] = 1
    edge = 1 - 2**-24  # the largest float32 that torch.rand returns
    u = torch.cat([torch.linspace(0, edge, 200), torch.tensor([edge])])
    moved = crop(image.expand(len(u), -1, -1, -1), u[:, None].expand(-1, 2))
    offsets = moved.flatten(1).argmax(1) // side - side // 2
    assert moved.sum((1, 2, 3)).eq(1).all()
    assert set(offsets.tolist()) == set(range(-limit, limit + 1))


def naive_cutout(image, u):
    height, width = image.shape[1:]
    box_height, box_width = int(0.5 * height), int(0.5 * width)
    top = math.floor(u[0] * (height + 1 - box_height % 2)) - box_height // 2
    left = math.floor(u[1] * (width + 1 - box_width % 2)) - box_width // 2
    cut = image.clone()
    cut[:, max(top, 0) : max(top + box_height, 0), max(left, 0) : max(left + box_width, 0)] = 0
    return cut


@pytest.mark.parametrize("shape", [(3, 12, 10), (1, 9, 11), (1, 8, 8)])
def test_cutout_equals_the_loop(shape, rng):
    images, u = torch.randn(20, *shape, generator=rng), torch.rand(20, 2, generator=rng)
    expected = torch.stack([naive_cutout(x, v.tolist()) for x, v in zip(images, u, strict=True)])
    assert torch.equal(cutout(images, u), expected)


def test_a_cutout_inside_the_image_has_half_its_side_and_is_centred():
    blank = cutout(torch.ones(1, 1, 8, 8), torch.full((1, 2), 0.5))
    expected = torch.ones(8, 8)
    expected[2:6, 2:6] = 0
    assert torch.equal(blank[0, 0], expected)


def test_contrast_and_saturation_stay_in_their_ranges(images):
    ends = torch.tensor([[0.0], [1 - 2**-24]])
    x = images[:2]
    torch.testing.assert_close(contrast(x, ends).std((1, 2, 3)) / x.std((1, 2, 3)), torch.tensor([0.5, 1.5]))
    gray = x.mean(1, keepdim=True)
    torch.testing.assert_close(saturation(x, ends), torch.stack([gray[0].expand_as(x[0]), 2 * x[1] - gray[1]]))
    torch.testing.assert_close((brightness(x, ends) - x).mean((1, 2, 3)), torch.tensor([-0.5, 0.5]))


@pytest.mark.parametrize("operation", [scale, rotate])
def test_the_middle_draw_of_a_resampling(operation, images):
    """The middle angle is none; the middle factor, 1.0167, is the mean of 1/1.2 and 1.2."""
    factor = (1.2 + 1 / 1.2) / 2 if operation is scale else 1
    columns = 2 if operation is scale else 1
    theta = torch.tensor([[factor, 0.0, 0.0], [0.0, factor, 0.0]]).expand(6, -1, -1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(operation(images, torch.full((1, columns), 0.5)), expected)


@pytest.mark.parametrize(("u", "factors"), [((0.0, 1.0), (1 / 1.2, 1.2)), ((1.0, 0.0), (1.2, 1 / 1.2))])
def test_scale_acts_on_each_axis_apart(u, factors):
    """On a ramp of coordinates, resampling by a factor about the center multiplies the coordinates by it."""
    ramp = torch.stack(torch.meshgrid(*[torch.arange(21.0) - 10] * 2, indexing="ij"))[None]
    rows, columns = scale(ramp, torch.tensor([u]))[0, :, 5:16, 5:16]
    torch.testing.assert_close(columns, ramp[0, 1, 5:16, 5:16] * factors[0])
    torch.testing.assert_close(rows, ramp[0, 0, 5:16, 5:16] * factors[1])


@pytest.mark.parametrize("sides", [(21, 21), (31, 21)])
@pytest.mark.parametrize(("u", "degrees"), [(0.0, -15), (1.0, 15), (0.75, 7.5)])
def test_rotate_turns_without_shearing(sides, u, degrees):
    height, width = sides
    rows, columns = torch.meshgrid(
        torch.arange(height) - height // 2.0, torch.arange(width) - width // 2.0, indexing="ij"
    )
    turned = rotate(torch.stack([rows, columns])[None], torch.tensor([[u]]))[0]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    inner = (slice(height // 2 - 5, height // 2 + 6), slice(width // 2 - 5, width // 2 + 6))
    torch.testing.assert_close(turned[0][inner], (sine * columns + cosine * rows)[inner])
    torch.testing.assert_close(turned[1][inner], (cosine * columns - sine * rows)[inner])


@per_operation
@pytest.mark.parametrize("n", [1, 6])
def test_gradients_are_finite(operation, columns, n, images, rng):
    images.requires_grad_()
    operation(images, torch.rand(n, columns, generator=rng)).square().sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


@per_operation
@pytest.mark.parametrize("n", [1, 2])
def test_gradients_are_right(operation, columns, n, rng):
    x = torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    u = torch.rand(n, columns, generator=rng)
    assert torch.autograd.gradcheck(lambda images: operation(images, u), x)


def test_the_rng_decides_the_draw():
    augment = Augment(ALL)
    first, second, other = (augment.draw(4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() < 1


def test_one_geometric_operation_is_chosen_for_the_whole_call(images):
    """Every one of the three is met over some calls, and each call applies it to all images."""
    augment, met = Augment("crop_scale_rotate"), set()
    for seed in range(30):
        draw = augment.draw(6, torch.Generator().manual_seed(seed))
        result = augment(images, draw)
        alone = {name: Augment(name)(images, draw) for name in ("crop", "scale", "rotate")}
        matching = {name for name, expected in alone.items() if torch.equal(result, expected)}
        assert len(matching) == 1
        met |= matching
    assert met == {"crop", "scale", "rotate"}


def test_a_single_operation_is_one_of_all_listed(images):
    """As DSA was published: color counts as one, and every one is met."""
    words = ("color", "crop", "cutout", "flip", "scale", "rotate")
    augment, met = Augment("_".join(words), single=True), []
    for seed in range(60):
        draw = augment.draw(6, torch.Generator().manual_seed(seed))
        result = augment(images, draw)
        matching = [word for word in words if torch.equal(result, Augment(word)(images, draw))]
        assert len(matching) == 1
        met += matching
    assert set(met) == set(words)
    assert augmentation("dsa") == Augment("color_crop_cutout_flip_scale_rotate", single=True)


def test_operations_follow_in_the_stated_order(images, rng):
    """Whatever the order of the policy's words: cutout last, so that its box is zero after the colors."""
    augment = Augment("cutout_crop_color_flip")
    draw = augment.draw(6, rng)
    assert torch.equal(augment(images, draw), Augment("flip_color_crop_cutout")(images, draw))
    steps = images
    for word in ("flip", "color", "crop", "cutout"):
        steps = Augment(word)(steps, draw)
    assert torch.equal(augment(images, draw), steps)


@pytest.mark.parametrize("policy", ["color_crp", "color__crop", "brightness"])
def test_an_unknown_operation_is_refused_with_the_accepted_ones(policy):
    with pytest.raises(ValueError, match=r"accepted: flip, color, crop, scale, rotate, cutout"):
        Augment(policy)


def test_a_draw_of_the_wrong_length_is_refused(images):
    augment = Augment("color")
    with pytest.raises(ValueError, match="1 or 6 rows for 6 images, got 4"):
        augment(images, augment.draw(4))


def test_cutmix_pastes_one_box_and_counts_its_area():
    x = torch.arange(32).float().view(32, 1, 1, 1).expand(32, 2, 16, 16)
    shares = []
    for seed in range(200):
        mixed, order, kept = cutmix(x, torch.Generator().manual_seed(seed))
        foreign = mixed != x
        moved = order != torch.arange(32)
        assert torch.equal(foreign[moved].all(1).float().mean((1, 2)), (1 - kept).expand(int(moved.sum())))
        assert torch.equal(mixed[foreign], order.float().view(-1, 1, 1, 1).expand_as(x)[foreign])
        shares.append(float(kept))
    assert min(shares) < 0.3  # a large box is clipped at the border
    assert max(shares) > 0.95
    assert 0.5 < sum(shares) / 200 < 0.75
