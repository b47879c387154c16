import pytest
import torch
from torch import nn

from hf_gdd.classifiers.networks import NETWORK_NAMES, build_network, network_name, penultimate_features


def parameters(name, shape, num_classes=10):
    return sum(p.numel() for p in build_network(name, num_classes, shape).parameters())


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("convnet3", (3, 32, 32), 320_010),  # the first two are published, the others follow from the layers
        ("convnet3", (1, 28, 28), 317_706),
        ("resnet10-dd", (3, 32, 32), 1_228_970),
        ("resnet18-dd", (3, 32, 32), 2_797_610),
        ("resnet18ap-dd", (3, 32, 32), 2_797_610),
        ("resnet18-dc", (3, 32, 32), 11_173_962),
        ("alexnet", (3, 32, 32), 1_872_202),
        ("vgg11", (3, 32, 32), 9_231_114),
    ],
)
def test_parameter_counts(name, shape, count):
    assert parameters(name, shape) == count


def middle_shape(name, side):
    """The feature's shape by arithmetic: two poolings, or the one stride of the second residual stage."""
    grown = 32 if side == 28 and "resnet" not in name and name != "convnet3_narrow" else side
    if name.startswith("resnet"):
        width = 64 if name.endswith("-dd") else 128
        return (width, side // 2, side // 2)
    width = {"alexnet": 192, "convnet3_narrow": 32}.get(name, 128)
    poolings = 1 if name in ("convnet1", "convnet2") else 2
    return (width, grown >> poolings, grown >> poolings)


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_every_network_works_at_every_size(name):
    for channels, side, num_classes in [(1, 8, 3), (1, 28, 10), (3, 20, 3), (3, 32, 10), (3, 64, 3)]:
        network = build_network(name, num_classes, (channels, side, side))
        assert network.training
        with torch.no_grad():
            logits, middle = network(torch.randn(2, channels, side, side))
        assert logits.shape == (2, num_classes)
        assert middle.shape == (2, *middle_shape(name, side))


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_logits_depend_on_the_image_at_the_smallest_size(name):
    """An instance norm of a 1x1 map would make the logits constant, and every gradient before it zero."""
    network = build_network(name, 4, (1, 8, 8), seed=0)
    images = torch.randn(3, 1, 8, 8, requires_grad=True)
    logits, _ = network(images)
    assert not torch.allclose(logits[0], logits[1])
    (gradient,) = torch.autograd.grad(logits[:, 0].square().sum(), images)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_oblong_images():
    for name in ("convnet3", "resnet10-dd", "resnet10ap-dd", "vgg11"):
        logits, _ = build_network(name, 3, (2, 24, 10))(torch.randn(2, 2, 24, 10))
        assert logits.shape == (2, 3)


@pytest.mark.parametrize(("name", "padding"), [("convnet3", 3), ("alexnet", 4), ("vgg11", 3)])
def test_only_images_of_28_pixels_get_a_wider_first_padding(name, padding):
    def first(side, channels=1):
        network = build_network(name, 10, (channels, side, side))
        return next(m for m in network.modules() if isinstance(m, nn.Conv2d)).padding

    assert first(28) == first(28, channels=3) == (padding, padding)
    assert first(32) == first(20) == (padding - 2, padding - 2)
    assert parameters(name, (1, 28, 28)) == parameters(name, (1, 32, 32))


def narrow_of_earlier_results(num_classes, shape):
    """The network as it was written before it had a name of the library."""
    layers = []
    for channels in (shape[0], 32, 32):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.GroupNorm(32, 32), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (shape[1] // 8) ** 2, num_classes))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_the_narrow_network_is_that_of_earlier_results(shape):
    images = torch.randn(3, *shape)
    expected, _ = build_network(narrow_of_earlier_results, 10, shape, seed=5)(images)
    assert torch.equal(build_network("convnet3_narrow", 10, shape, seed=5)(images)[0], expected)


def test_pool_residual_networks_start_from_the_fan_out_normal_and_have_no_biases():
    network = build_network("resnet18-dd", 10, (3, 32, 32), seed=0)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.bias is None for m in convolutions)
    widest = max(convolutions, key=lambda m: m.weight.numel())
    assert widest.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


def test_averaged_residual_networks_have_no_stride():
    network = build_network("resnet18ap-dd", 10, (3, 32, 32))
    assert all(m.stride == (1, 1) for m in network.modules() if isinstance(m, nn.Conv2d))


def test_seed_alone_decides_the_weights_and_leaves_the_global_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_network("resnet10-dd", 10, (3, 8, 8), seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = build_network("resnet10-dd", 10, (3, 8, 8), seed=5).state_dict()
    other = build_network("resnet10-dd", 10, (3, 8, 8), seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_without_a_seed_the_global_state_decides():
    torch.manual_seed(3)
    first, second = (build_network("convnet1", 2, (1, 8, 8)).linear.weight for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(build_network("convnet1", 2, (1, 8, 8)).linear.weight, first)
    assert not torch.equal(first, second)


def test_an_unknown_name_is_refused_with_the_accepted_ones():
    with pytest.raises(ValueError, match=r"'resnet18'.*Did you mean 'resnet18-(dc|dd|in)'.*Accepted names: convnet1"):
        build_network("resnet18", 10, (3, 32, 32))
    with pytest.raises(ValueError, match=r"'zzz'\. Accepted names"):
        build_network("zzz", 10, (3, 32, 32))


class Custom(nn.Module):
    """A user's classifier that returns what `answer` makes of its hidden feature and its logits."""

    def __init__(self, num_classes, shape, answer):
        super().__init__()
        self.conv, self.linear, self.answer = nn.Conv2d(shape[0], 4, 3), nn.Linear(4, num_classes), answer

    def forward(self, x):
        hidden = self.conv(x)
        return self.answer(hidden, self.linear(hidden.mean((2, 3))))


def custom(answer):
    return lambda num_classes, shape: Custom(num_classes, shape, answer)


@pytest.mark.parametrize(
    ("answer", "middle_shape"),
    [
        (lambda hidden, logits: logits, None),
        (lambda hidden, logits: (logits, None), None),
        (lambda hidden, logits: (logits, hidden), (5, 4, 6, 6)),
        (lambda hidden, logits: (logits, hidden.flatten(1)), (5, 144)),
    ],
)
def test_a_users_network_is_adapted(answer, middle_shape):
    network = build_network(custom(answer), 3, (1, 8, 8), seed=0)
    assert all(module.training for module in network.modules())
    logits, middle = network(torch.randn(5, 1, 8, 8))
    assert logits.shape == (5, 3)
    assert middle is None if middle_shape is None else middle.shape == middle_shape


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda hidden, logits: logits[:, :2], r"a tensor \[2, 2\]"),
        (lambda hidden, logits: hidden, r"a tensor \[2, 4, 6, 6\]"),
        (lambda hidden, logits: (logits, hidden[0]), r"a tensor \[2, 3\], a tensor \[4, 6, 6\]"),
        (lambda hidden, logits: (logits, hidden, hidden), r"a tensor \[2, 3\], a tensor .*, a tensor .*"),
        (lambda hidden, logits: {"logits": logits}, "dict"),
    ],
)
def test_a_users_network_with_the_wrong_output_is_refused(answer, got):
    with pytest.raises(ValueError, match=rf"<lambda>' returned {got} for images \[2, 1, 8, 8\]; .*\[2, 3\]"):
        build_network(custom(answer), 3, (1, 8, 8))


def test_a_users_function_must_build_a_module():
    with pytest.raises(ValueError, match=r"must build an nn.Module, got int"):
        build_network(lambda num_classes, shape: 3, 3, (1, 8, 8))


def test_the_check_of_a_users_network_leaves_its_statistics():
    def with_norm(num_classes, shape):
        return nn.Sequential(nn.BatchNorm2d(shape[0]), nn.Flatten(), nn.LazyLinear(num_classes))

    norm = build_network(with_norm, 3, (1, 8, 8)).network[0]
    assert norm.num_batches_tracked == 0
    assert norm.running_var.item() == 1


def test_network_name():
    assert network_name("convnet3") == "convnet3"
    assert network_name(Custom) == "Custom"

    class Factory:
        def __call__(self, num_classes, shape): ...

    assert network_name(Factory()) == "Factory"


@pytest.mark.parametrize("name", ["convnet3", "resnet10-dd", "resnet10ap-dd", "resnet18-dc", "alexnet", "vgg11"])
def test_gradient_reaches_the_image_through_the_feature(name):
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    _, middle = build_network(name, 3, (3, 8, 8))(images)
    (gradient,) = torch.autograd.grad(middle.square().sum(), images)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(("name", "millions"), [("resnet10ap-in", 4.9), ("resnet18-in", 11.2)])
def test_large_images_meet_a_larger_stem(name, millions):
    """Published sizes: 4.91 and 11.18 million at 224 px, where the last map is 7x7 before it is averaged."""
    for side, middle in [(64, 32), (128, 32), (224, 28)]:
        network = build_network(name, 10, (3, side, side), seed=0)
        with torch.no_grad():
            assert network(torch.randn(1, 3, side, side))[1].shape == (1, 128, middle, middle)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_penultimate_is_what_the_last_linear_layer_is_given():
    network, images = build_network("convnet2", 3, (1, 8, 8), seed=0), torch.randn(2, 1, 8, 8)
    logits, features = penultimate_features(network, images)
    torch.testing.assert_close(network.linear(features), logits)
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        penultimate_features(nn.Sequential(nn.Flatten()), images)
