"""A generator that is one torch module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from hf_gdd.generators.base import Sampling
from hf_gdd.generators.pretrained import Model, SavedGenerator
from hf_gdd.hub.loading import check_files, check_loaded, forget_place


class GeneratorModel(SavedGenerator, ModelMixin, ConfigMixin):
    """A generator that is one torch module; a subclass writes `make`."""

    config_name = "config.json"
    sampling: Any = Sampling()

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers."""
        return self.state_dict()

    def sample(self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None) -> Tensor:
        """See `SavedGenerator.sample`; always in eval mode, whatever mode the module is in."""
        training = self.training
        self.eval()
        try:
            return super().sample(labels, indices, seed, sampling)
        finally:
            self.train(training)

    def write(self, folder: Path, max_shard_size: str) -> None:
        """Write config.json and safetensors."""
        ModelMixin.save_pretrained(self, folder, max_shard_size=max_shard_size)
        forget_place(folder)

    @classmethod
    def read(cls: type[Model], folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Model:
        """See `SavedGenerator.read`."""
        check_files(folder)
        options = {"use_safetensors": True, "output_loading_info": True}
        model, info = ModelMixin.from_pretrained.__func__(cls, folder, torch_dtype=dtype, **options)
        check_loaded(model, info, folder)
        return model

    def place(self: Model, device: str | torch.device | None, dtype: torch.dtype | None) -> Model:
        """See `SavedGenerator.place`."""
        # diffusers' own `to` warns of every cast, though no part of a generator needs another precision.
        return torch.nn.Module.to(self, device=device, dtype=dtype)
