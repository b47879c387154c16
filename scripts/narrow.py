"""A network to judge images by that two CPU cores can train often."""

from torch import nn

from hf_gdd.classifiers.networks import Shape


def convnet3_narrow(num_classes: int, shape: Shape) -> nn.Module:
    """A ConvNet-3 of 32 channels rather than 128."""
    layers: list[nn.Module] = []
    for channels in (shape[0], 32, 32):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.GroupNorm(32, 32), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (shape[1] // 8) ** 2, num_classes))
