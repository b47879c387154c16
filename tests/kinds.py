"""A small generator of every kind, for tests of the guarantees that all kinds share."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import nn

from hf_gdd.classifiers.networks import build_network
from hf_gdd.generators.diffusion import DiffusionGenerator
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.generators.image_bank import ImageBank
from hf_gdd.generators.sampling import DiffusionSampling, Sampling, StoredSampling
from hf_gdd.generators.teacher import Teacher
from hf_gdd.methods.diffusion_memory.dit import small_transformer

NAMES = ("zebra", "ant", "mole")


def gan(seed=0, names=NAMES, shape=(1, 8, 8), **record):
    """A GAN whose BatchNorm statistics fit its weights, so that its images use the range of pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = ConditionalGANGenerator(names, shape, width=4, **record)
        norms = [module for module in generator.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            generator.train()(generator.code(torch.arange(64) % len(names), torch.randn(64, 90)))
    return generator.eval()


def parts(seed=0, shape=(1, 8, 8), learned=True):
    """Transformer, autoencoder and scheduler with random weights, far enough from zero to make varied images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = small_transformer(2, shape[-1] // 2, width=16, depth=2, heads=2, patch_size=2)
        if not learned:
            transformer = type(transformer).from_config({**transformer.config, "out_channels": 2})
        for parameter in transformer.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        vae = AutoencoderKL(
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=2,
            norm_num_groups=2,
            scaling_factor=0.3,
        )
    return {"transformer": transformer, "vae": vae, "scheduler": DDIMScheduler(clip_sample=False)}


def diffusion(seed=0, names=NAMES, shape=(1, 8, 8), sampling=None, **record):
    """A diffusion transformer of two blocks that takes three steps."""
    sampling = sampling or {"num_inference_steps": 3, "guidance_scale": 2.0, "scheduler": "ddpm"}
    return DiffusionGenerator(**parts(seed, shape), class_names=names, sampling=sampling, **record)


def codes(seed=0, count=5, num_classes=3, noise_dim=90):
    """Codes that no noise equals."""
    return torch.randn(num_classes, count, noise_dim, generator=torch.Generator().manual_seed(1000 + seed)).half()


def chosen(num_classes=3):
    """Five chosen draws of every class, some of them within the first five."""
    return torch.tensor([[7, 2, 11, 6, 1], [9, 4, 3, 30, 5], [8, 13, 10, 6, 21]], dtype=torch.int32)[:num_classes]


def teacher_of(seed=0, names=NAMES, shape=(1, 8, 8), network="convnet1", **record):
    """A network that learned nothing."""
    record = {"mean": (0.5,), "std": (0.5,), "accuracy": 0.75} | record
    teacher = Teacher(network, names, shape, **record)
    teacher.classifier.load_state_dict(build_network(network, len(names), shape, seed=seed).state_dict())
    return teacher


def with_codes(seed=0, **record):
    """A GAN whose first five images of every class are distilled."""
    generator = gan(seed, **record)
    generator.codes = codes(seed)
    return generator


def with_chosen(seed=0, **record):
    """A diffusion generator whose first five images of every class are chosen draws."""
    generator = diffusion(seed, **record)
    generator.codes = chosen()
    return generator


def labeled(seed=0, build=with_codes, **record):
    """A generator with a teacher, and with codes unless another kind is built."""
    generator = build(seed, **record)
    generator.teacher = teacher_of(seed)
    return generator


def bank(seed=0, names=NAMES, shape=(1, 8, 8), ipc=12, teacher="convnet1", **record):
    """A bank of noise with the labels of a network that learned nothing."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(names), ipc, *shape), generator=draws, dtype=torch.uint8)
    record = {"mean": (0.5,), "std": (0.5,)} | record
    if teacher is not None:
        teacher = teacher_of(seed, names, shape, network=teacher)
    return ImageBank.from_images(images, teacher=teacher, class_names=names, **record)


KINDS = {"gan": gan, "labeled": labeled, "diffusion": diffusion, "chosen": with_chosen, "bank": bank}
OTHER_SAMPLING = {"gan": Sampling(0.25), "labeled": Sampling(distilled=False)}
OTHER_SAMPLING |= {"diffusion": DiffusionSampling(3.0, 2, "ddim"), "bank": StoredSampling()}
OTHER_SAMPLING["chosen"] = DiffusionSampling(2.0, 3, "ddpm", distilled=False)
MADE = tuple(kind for kind in KINDS if kind != "bank")  # kinds that make as many images as one asks for
