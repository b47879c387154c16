"""Generators: an image for every class, index and seed."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AutoGenerator": "auto",
        "ConditionalGANGenerator": "gan",
        "DiffusionGenerator": "diffusion",
        "DiffusionSampling": "sampling",
        "Discriminator": "gan",
        "Generator": "base",
        "GeneratorModel": "pretrained",
        "ImageBank": "image_bank",
        "PretrainedGenerator": "pretrained",
        "Sampling": "sampling",
        "StoredSampling": "sampling",
        "noise": "noise",
    },
)
