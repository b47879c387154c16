"""Architectures of the named classifiers: ConvNets, AlexNet, VGG and ResNets.

Each builder takes the number of classes and the shape (C, H, W) of an image; see `hf_gdd.classifiers.networks`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
_Size = tuple[int, int]
_Norm = Callable[[int, _Size], nn.Module]


class _Classifier(nn.Module):
    """Two halves of a network, with the returned feature between them."""

    def __init__(self, early: Sequence[nn.Module], late: Sequence[nn.Module], features: int, num_classes: int) -> None:
        super().__init__()
        self.early = nn.Sequential(*early)
        self.late = nn.Sequential(*late)
        self.linear = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.early(x)
        return self.linear(self.late(middle).flatten(1)), middle


def _instance_norm(channels: int, size: _Size) -> nn.Module:
    # A 1x1 map normalized by itself is zero for every image, so it is normalized across channels.
    return nn.GroupNorm(1 if size == (1, 1) else channels, channels)


def _batch_norm(channels: int, size: _Size) -> nn.Module:
    return nn.BatchNorm2d(channels)


def _halve(pool: type[nn.AvgPool2d] | type[nn.MaxPool2d], size: _Size) -> tuple[nn.Module, _Size]:
    """Return a 2x2 pooling and the size after it; skip maps under 2 pixels."""
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
    grow_28: bool = True,
) -> nn.Module:
    """Build stages of convolutions, given as (kernel side, widths), with poolings.

    With `grow_28`, the first convolution grows 28-pixel images to 32, as published: three poolings then leave 4x4.
    """
    channels, *sides = shape
    border = 2 if grow_28 and sides == [28, 28] else 0
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
    # The logits are linear in the last map, so the feature is an earlier one if there is any.
    cut = min(2, max(len(blocks) - 1, 1))
    return _Classifier(blocks[:cut], blocks[cut:], channels * size[0] * size[1], num_classes)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `averaged` pools instead of striding."""

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
    """Return the first layers and the size after them; pool images above 64 pixels."""
    kernel, stride = (7, 1 if averaged else 2) if min(size) > 128 else (3, 1)
    size = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    layers = [nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False), norm(width, size), nn.ReLU()]
    if min(size) > 64:
        large = averaged and kernel == 7
        layers.append(nn.AvgPool2d(4) if large else nn.MaxPool2d(3, 2, padding=1))
        size = tuple(side // 4 if large else math.ceil(side / 2) for side in size)
    return layers, size


def _resnet(
    num_classes: int,
    shape: Shape,
    *,
    blocks: int,
    width: int = 32,
    norm: _Norm = _batch_norm,
    averaged: bool = False,
    large: bool = False,
    fan_out: bool = True,
) -> nn.Module:
    """Build a ResNet of four stages of `blocks` blocks; by default one of the pool.

    Each stage after the first doubles the width and halves the map. The stem of a `large` network depends on the
    size of the images. With `fan_out`, the weights of convolutions are normal and scaled by the fan-out.
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
    network = _Classifier(stages[:3], [*stages[3:], nn.AdaptiveAvgPool2d(1)], channels, num_classes)
    for module in network.modules() if fan_out else ():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
    return network


BUILDERS: dict[str, Callable[[int, Shape], nn.Module]] = {
    **{
        f"convnet{depth}": partial(_plain, stages=[(3, [128])] * depth, pool=nn.AvgPool2d, normalized=True)
        for depth in range(1, 7)
    },
    "resnet10-dd": partial(_resnet, blocks=1),
    "resnet18-dd": partial(_resnet, blocks=2),
    "resnet10ap-dd": partial(_resnet, blocks=1, averaged=True),
    "resnet18ap-dd": partial(_resnet, blocks=2, averaged=True),
    "resnet10ap-in": partial(_resnet, blocks=1, width=64, norm=_instance_norm, averaged=True, large=True),
    "resnet18-in": partial(_resnet, blocks=2, width=64, norm=_instance_norm, large=True),
    "resnet18-dc": partial(_resnet, blocks=2, width=64, norm=_instance_norm, fan_out=False),
    # The network that the results on two CPU cores were evaluated with. It is a ConvNet-3 of 32 channels, but does not
    # grow 28-pixel images. Its name is the one in those results, whose rows stay comparable.
    "convnet3_narrow": partial(_plain, stages=[(3, [32])] * 3, pool=nn.AvgPool2d, normalized=True, grow_28=False),
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
