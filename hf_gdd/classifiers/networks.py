"""Build classifiers by name or from a user's function.

All networks return logits and one intermediate feature. The feature is returned rather than captured by a hook, so that
networks can be vmapped, compiled or captured in a CUDA graph.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_gdd.classifiers.architectures import BUILDERS, Shape
from hf_gdd.utils.random import seeded

NetworkSpec = str | Callable[[int, Shape], nn.Module]
NETWORK_NAMES: tuple[str, ...] = tuple(BUILDERS)


def build_network(spec: NetworkSpec, num_classes: int, shape: Shape, seed: int | None = None) -> nn.Module:
    """Build a freshly initialized classifier in train mode.

    Sources: `convnet`, `-dc`, `alexnet` and `vgg11` are the networks of the public DC code (Zhao et al., 2021, arXiv
    2006.05929). `-dd` is the pool of the public DiM code (Gu et al., 2023, arXiv 2303.04707). `-in`, with instance norm
    and for images of any size, is from Minimax (Gu et al., 2024, arXiv 2311.15529).

    Args:
        spec: one of `NETWORK_NAMES`, or a callable `spec(num_classes, shape)` that returns an nn.Module whose forward
            returns logits [B, K], or a pair of logits [B, K] and a feature [B, ...] or None.
        num_classes: K.
        shape: (C, H, W) of one image, any C >= 1. Named networks work from 8 pixels a side upwards.
        seed: the weights then depend on this number alone, and the global random state is restored.

    Returns:
        A module that maps normalized float images [B, C, H, W] to (logits [B, K], feature [B, c, h, w]). The feature of
        named networks follows the second pooling (the first, if a `convnet` has fewer than three blocks) or the second
        residual stage. It is None if a user's module returns only logits.

    Raises:
        ValueError: the name is unknown, or a user's module returns something else.

    Example:
        network = build_network("convnet3", num_classes=10, shape=(1, 8, 8), seed=0)
        logits, feature = network(torch.zeros(4, 1, 8, 8))  # [4, 10], [4, 128, 2, 2]

    """
    if isinstance(spec, str) and spec not in BUILDERS:
        close = difflib.get_close_matches(spec, BUILDERS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown network {spec!r}.{hint} Accepted names: {', '.join(BUILDERS)}.")
    with seeded(seed):
        if isinstance(spec, str):
            return BUILDERS[spec](num_classes, shape)
        return _adapt(spec(num_classes, shape), network_name(spec), num_classes, shape)


def network_name(spec: NetworkSpec) -> str:
    """Return the name of a network in reports."""
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
    """Return logits [B, K] and the input [B, D] of the last linear layer.

    The images are normalized.

    Raises:
        ValueError: the network has no linear layer.

    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("The network has no nn.Linear layer whose input could serve as features.")
    captured: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    try:
        logits = network(images)[0]
    finally:
        hook.remove()
    return logits, captured[-1].flatten(1)


class _LogitsOnly(nn.Module):
    """Adapter of a user's classifier that returns only logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.network(x), None


def _adapt(module: nn.Module, name: str, num_classes: int, shape: Shape) -> nn.Module:
    """Check a user's module on two blank images; make its output a pair if necessary."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"Network {name!r} must build an nn.Module, got {type(module).__name__}.")
    with torch.no_grad():
        output = module.eval()(torch.zeros(2, *shape))
    logits, feature = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    valid_logits = isinstance(logits, Tensor) and logits.shape == (2, num_classes)
    valid_feature = feature is None or (isinstance(feature, Tensor) and feature.ndim >= 2 and len(feature) == 2)
    if not (valid_logits and valid_feature):
        parts = output if isinstance(output, tuple) else (output,)
        texts = (f"a tensor {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in parts)
        raise ValueError(
            f"Network {name!r} returned {', '.join(texts)} for images {[2, *shape]}; expected logits "
            f"[2, {num_classes}], alone or as a pair (logits, feature [2, ...] or None)."
        )
    module.train()
    return _LogitsOnly(module) if isinstance(output, Tensor) else module
