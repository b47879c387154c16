"""Prepare a diffusion transformer for training, and return it to the stock layout."""

from collections.abc import Iterator
from copy import deepcopy

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from hf_gdd.generators.dit_pipeline import NULL_CLASS


def small_transformer(
    channels: int, size: int, *, width: int, depth: int, heads: int, patch_size: int
) -> DiTTransformer2DModel:
    """Build an untrained DiT on latents [channels, size, size].

    It also predicts its variance. It is initialized as in the DiT paper (Peebles & Xie, 2023, Sec. 3.2, adaLN-Zero),
    which diffusers does not do: every block begins as the identity, and the output as zero.
    """
    transformer = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=channels,
        out_channels=2 * channels,
        num_layers=depth,
        sample_size=size,
        patch_size=patch_size,
        num_embeds_ada_norm=NULL_CLASS,
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
    for block in transformer.transformer_blocks:
        nn.init.trunc_normal_(block.norm1.emb.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.trunc_normal_(block.norm1.emb.timestep_embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(transformer.proj_out_1.weight)
    nn.init.zeros_(transformer.proj_out_2.weight)
    return transformer


class DiffFitLinear(nn.Module):
    """A linear layer with learned factors on its output (DiffFit, Xie et al., 2023).

    Args:
        linear: the layer.
        count: number of factors on each output, all 1 at first.

    """

    def __init__(self, linear: nn.Linear, count: int = 1) -> None:
        super().__init__()
        self.linear = linear
        self.gammas = nn.ParameterList(torch.ones_like(linear.bias) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output times its factors."""
        return self.linear(x) * self._factor()

    def _factor(self) -> Tensor:
        return torch.stack(tuple(self.gammas)).prod(0)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Return a plain linear layer that computes the same."""
        merged, factor = deepcopy(self.linear), self._factor()
        merged.weight.mul_(factor[:, None])
        merged.bias.mul_(factor)
        return merged


def prepare_for_training(transformer: DiTTransformer2DModel, scaled: bool) -> DiTTransformer2DModel:
    """Share one embedder of timestep and label between the blocks, in place.

    The embedder then drops no labels. diffusers gives each block its own embedder. They have equal weights at first but
    drop labels independently: training would let them diverge, and mix conditions within one sample.

    Args:
        transformer: from a checkpoint or untrained.
        scaled: put learned factors on the outputs of the first half of the blocks, as DiffFit does: on query, key and
            value, on the attention's projection and its branch, and on the MLP's branch.

    """
    blocks = transformer.transformer_blocks
    shared = blocks[0].norm1.emb
    shared.class_embedder.dropout_prob = 0.0
    for block in blocks:
        block.norm1.emb = shared
    for block in blocks[: len(blocks) // 2] if scaled else ():
        for name in ("to_q", "to_k", "to_v"):
            setattr(block.attn1, name, DiffFitLinear(getattr(block.attn1, name)))
        block.attn1.to_out[0] = DiffFitLinear(block.attn1.to_out[0], count=2)
        block.ff.net[2] = DiffFitLinear(block.ff.net[2])
    return transformer


def to_stock_layout(transformer: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Convert in place to the stock model that computes the same.

    Embedders are untied, and factors merged into their layers.
    """
    for parent in list(transformer.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DiffFitLinear):
                setattr(parent, name, child.merge())
    for block in transformer.transformer_blocks:
        block.norm1.emb = deepcopy(block.norm1.emb)
        block.norm1.emb.class_embedder.dropout_prob = 0.1  # what diffusers sets, which keeps the null row
    return transformer.requires_grad_(True).eval()


def tuned_parameters(transformer: DiTTransformer2DModel, tuning: str) -> Iterator[nn.Parameter]:
    """Yield the parameters that a tuning mode trains.

    Args:
        transformer: from `prepare_for_training`.
        tuning: `full` for all but the factors, `difffit` for biases, label table and factors.

    """
    for name, parameter in transformer.named_parameters():
        factor = ".gammas." in name
        if not factor if tuning == "full" else factor or name.endswith(("bias", "embedding_table.weight")):
            yield parameter


@torch.no_grad()
def copy_parameters(parameters: nn.ParameterList, values: nn.ParameterList) -> None:
    """Set parameters to the values of others."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
