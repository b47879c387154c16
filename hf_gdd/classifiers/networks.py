"""Classifiers that match and evaluate: one forward returns the logits and one intermediate feature.

The feature is returned rather than captured by a hook, so that a network can be vmapped, compiled or captured
in a CUDA graph as it stands.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hf_gdd.utils.random import seeded

Shape = tuple[int, int, int]
NetworkSpec = str | Callable[[int, Shape], nn.Module]
_Size = tuple[int, int]
_Norm = Callable[[int, _Size], nn.Module]


def build_network(spec: NetworkSpec, num_classes: int, shape: Shape, seed: int | None = None) -> nn.Module:
    """Build a freshly initialized classifier in train mode.

    Args:
        spec: one of `NETWORK_NAMES`, or a callable `spec(num_classes, shape)` that returns an nn.Module whose
            forward returns logits [B, K], or (logits [B, K], feature [B, ...] or None).
        num_classes: K.
        shape: (C, H, W) of one image, any C >= 1. Every named network works from 8 pixels a side upwards.
        seed: the weights then depend on this number alone, and the global random state is left as it was.

    Returns:
        A module that maps normalized float images [B, C, H, W] to (logits [B, K], feature [B, c, h, w]); the
        feature is None where a user's module returns logits alone. Named networks take it after the second
        pooling (the first, if a `convnet` has fewer than three blocks) or after the second residual stage.

    Raises:
        ValueError: the name is unknown, or the user's module does not return what is described above.

    Source: `convnet` and the `-dc` family, `alexnet` and `vgg11` are the networks of the public DC code (Zhao et al.,
    2021, arXiv 2006.05929); the `-dd` family is the pool of the public DiM code (Gu et al., 2023, arXiv 2303.04707);
    the `-in` family, with instance norm and for any size of image, is from Minimax (Gu et al., 2024, arXiv 2311.15529).
    """
    if isinstance(spec, str) and spec not in _BUILDERS:
        close = difflib.get_close_matches(spec, _BUILDERS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown network {spec!r}.{hint} Accepted names: {', '.join(_BUILDERS)}.")
    with seeded(seed):
        if isinstance(spec, str):
            return _BUILDERS[spec](num_classes, shape)
        return _adapt(spec(num_classes, shape), network_name(spec), num_classes, shape)


def network_name(spec: NetworkSpec) -> str:
    """Name a network in reports: the name itself, or that of the callable or of its class."""
    return spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network without computing those of its weights."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def penultimate_features(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] of normalized images, and what the network's last linear layer is given for them, [B, D].

    Raises:
        ValueError: the network has no linear layer.

    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("The network has no nn.Linear, so it has no feature space before its last one.")
    given: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    try:
        logits = network(images)[0]
    finally:
        hook.remove()
    return logits, given[-1].flatten(1)


class _Classifier(nn.Module):
    """Two trunks with the returned feature between them, and a linear layer on the flattened end."""

    def __init__(self, early: Sequence[nn.Module], late: Sequence[nn.Module], features: int, num_classes: int) -> None:
        super().__init__()
        self.early = nn.Sequential(*early)
        self.late = nn.Sequential(*late)
        self.linear = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.early(x)
        return self.linear(self.late(middle).flatten(1)), middle


def _instance_norm(channels: int, size: _Size) -> nn.Module:
    # A lone value normalized by itself is zero whatever the image: a 1x1 map is normalized across channels.
    return nn.GroupNorm(1 if size == (1, 1) else channels, channels)


def _batch_norm(channels: int, size: _Size) -> nn.Module:
    return nn.BatchNorm2d(channels)


def _halve(pool: type[nn.AvgPool2d] | type[nn.MaxPool2d], size: _Size) -> tuple[nn.Module, _Size]:
    """Return a 2x2 pooling and the size after it; a map that is too small for one passes unchanged."""
    if min(size) < 2:
        return nn.Identity(), size
    return pool(2), (size[0] // 2, size[1] // 2)


def _plain(
    num_classes: int,
    shape: Shape,
    *,
    stages: Sequence[tuple[int, Sequence[int]]],
    pool: type[nn.AvgPool2d] | type[nn.MaxPool2d],
    normalized: bool,
) -> nn.Module:
    """Stages of convolutions, each given as (kernel side, widths) and closed by a pooling."""
    channels, *sides = shape
    # As published: the first convolution grows 28-pixel images to 32, so that three poolings leave 4x4.
    border = 2 if sides == [28, 28] else 0
    size = (sides[0] + 2 * border, sides[1] + 2 * border)
    blocks: list[nn.Module] = []
    for kernel, widths in stages:
        layers: list[nn.Module] = []
        for width in widths:
            layers.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2 + border))
            if normalized:
                layers.append(_instance_norm(width, size))
            layers.append(nn.ReLU())
            channels, border = width, 0
        pooling, size = _halve(pool, size)
        blocks.append(nn.Sequential(*layers, pooling))
    # The feature must not be the last map where there is an earlier one: the logits are linear in the last.
    cut = min(2, max(len(blocks) - 1, 1))
    return _Classifier(blocks[:cut], blocks[cut:], channels * size[0] * size[1], num_classes)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `averaged` replaces the stride by a 2x2 average pooling."""

    def __init__(self, channels: int, width: int, size: _Size, *, halved: bool, averaged: bool, norm: _Norm) -> None:
        super().__init__()
        stride = 2 if halved and not averaged else 1
        inner = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        pooling, self.size = _halve(nn.AvgPool2d, inner) if halved and averaged else (nn.Identity(), inner)
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            norm(width, inner),
            nn.ReLU(),
            pooling,
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(width, self.size),
        )
        self.shortcut: nn.Module = nn.Identity()
        if halved or channels != width:
            projection = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, pooling, norm(width, self.size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def _stem(channels: int, width: int, size: _Size, *, norm: _Norm, averaged: bool) -> tuple[list[nn.Module], _Size]:
    """The first layers, and the size after them: images above 64 px are pooled, those above 128 px to a quarter."""
    kernel, stride = (7, 1 if averaged else 2) if min(size) > 128 else (3, 1)
    size = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    layers = [nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False), norm(width, size), nn.ReLU()]
    if min(size) > 64:
        large = averaged and kernel == 7
        layers.append(nn.AvgPool2d(4) if large else nn.MaxPool2d(3, 2, padding=1))
        size = tuple(side // 4 if large else math.ceil(side / 2) for side in size)
    return layers, size


def _resnet(
    num_classes: int, shape: Shape, *, width: int, blocks: int, norm: _Norm, averaged: bool = False, large: bool = False
) -> nn.Module:
    """Four stages of `blocks` basic blocks; each after the first doubles the width and halves the map.

    The stem of a `large` one depends on the size of the images.
    """
    size = shape[1:]
    stem: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1, bias=False), norm(width, size), nn.ReLU()]
    if large:
        stem, size = _stem(shape[0], width, size, norm=norm, averaged=averaged)
    stages = [nn.Sequential(*stem)]
    channels = width
    for index in range(4):
        stage = nn.Sequential()
        for position in range(blocks):
            halved = index > 0 and position == 0
            block = _BasicBlock(channels, width << index, size, halved=halved, averaged=averaged, norm=norm)
            stage.append(block)
            channels, size = width << index, block.size
        stages.append(stage)
    return _Classifier(stages[:3], [*stages[3:], nn.AdaptiveAvgPool2d(1)], channels, num_classes)


def _pool_resnet(
    num_classes: int, shape: Shape, *, width: int = 32, norm: _Norm = _batch_norm, **options: bool | int
) -> nn.Module:
    """Family A: normal weights scaled by the fan out; for the pool half the usual width and batch norm."""
    network = _resnet(num_classes, shape, width=width, norm=norm, **options)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    return network


_BUILDERS: dict[str, Callable[[int, Shape], nn.Module]] = {
    **{
        f"convnet{depth}": partial(_plain, stages=[(3, [128])] * depth, pool=nn.AvgPool2d, normalized=True)
        for depth in range(1, 7)
    },
    "resnet10-dd": partial(_pool_resnet, blocks=1, averaged=False),
    "resnet18-dd": partial(_pool_resnet, blocks=2, averaged=False),
    "resnet10ap-dd": partial(_pool_resnet, blocks=1, averaged=True),
    "resnet18ap-dd": partial(_pool_resnet, blocks=2, averaged=True),
    "resnet10ap-in": partial(_pool_resnet, width=64, norm=_instance_norm, blocks=1, averaged=True, large=True),
    "resnet18-in": partial(_pool_resnet, width=64, norm=_instance_norm, blocks=2, large=True),
    "resnet18-dc": partial(_resnet, width=64, blocks=2, norm=_instance_norm),
    "alexnet": partial(
        _plain, stages=[(5, [128]), (5, [192]), (3, [256, 192, 192])], pool=nn.MaxPool2d, normalized=False
    ),
    "vgg11": partial(
        _plain,
        stages=[(3, [64]), (3, [128]), (3, [256, 256]), (3, [512, 512]), (3, [512, 512])],
        pool=nn.MaxPool2d,
        normalized=True,
    ),
}

NETWORK_NAMES: tuple[str, ...] = tuple(_BUILDERS)


class _LogitsOnly(nn.Module):
    """Give a user's plain classifier the common (logits, feature) output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.network(x), None


def _adapt(module: nn.Module, name: str, num_classes: int, shape: Shape) -> nn.Module:
    """Check a user's module on two blank images and give it the common output."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"network {name!r} must build an nn.Module, got {type(module).__name__}.")
    with torch.no_grad():
        output = module.eval()(torch.zeros(2, *shape))
    plain = isinstance(output, Tensor)
    logits, middle = (output, None) if plain else _pair(output)
    valid_logits = isinstance(logits, Tensor) and logits.shape == (2, num_classes)
    valid_middle = middle is None or (isinstance(middle, Tensor) and middle.ndim >= 2 and len(middle) == 2)
    if not (valid_logits and valid_middle):
        raise ValueError(
            f"network {name!r} returned {_describe(output)} for images {[2, *shape]}; expected logits "
            f"[2, {num_classes}], alone or as a pair (logits, feature [2, ...] or None)."
        )
    module.train()
    return _LogitsOnly(module) if plain else module


def _pair(output: object) -> tuple[object, object]:
    return output if isinstance(output, tuple) and len(output) == 2 else (None, None)


def _describe(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    if isinstance(output, tuple):
        return f"({', '.join(map(_describe, output))})"
    return type(output).__name__
