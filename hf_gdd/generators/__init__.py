"""Generators: an image for every class, index and seed."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    auto="AutoGenerator",
    gan="ConditionalGANGenerator Discriminator",
    diffusion="DiffusionGenerator",
    sampling="DiffusionSampling Sampling StoredSampling",
    base="Generator",
    pretrained="GeneratorModel PretrainedGenerator",
    image_bank="ImageBank",
    teacher="Teacher",
)
