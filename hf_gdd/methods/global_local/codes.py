"""Stage `codes`: tune what the first images of every class are made from."""

from dataclasses import replace

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gdd.classifiers.augment import Augment
from hf_gdd.classifiers.networks import frozen
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize
from hf_gdd.data.pixels import to_unit
from hf_gdd.generators.base import class_grid
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.methods.global_local.config import GlobalLocalConfig
from hf_gdd.methods.global_local.losses import prefix_loss
from hf_gdd.methods.global_local.model_pool import MATCHING, ModelPool, check_networks
from hf_gdd.training.config import Stage
from hf_gdd.utils.random import Random

CODES = "codes"


class DistilledCodes(nn.Module):
    """Codes of the first M images of every class, tuned as a set.

    The generator is frozen. Codes start as the noise of plain draws. Each step shows the images of some classes, and
    real images of each, to a network of the pool, and moves the codes so that every prefix of a class has logits and
    features as its real images have: the two distances of Li et al. (2024), taken on the set that a user trains on.

    Args:
        config: settings `codes_*`.
        data: real training images.
        generator: the codes start as those of its plain draws.
        random: draws classes, real images, augmentation and networks. Its state and that of `pool` are not in
            `state_dict`: a trainer saves them beside it.

    Raises:
        ValueError: the codes do not fit in memory, or a network of the pool cannot be used.

    """

    def __init__(
        self, config: GlobalLocalConfig, data: ImageTensors, generator: ConditionalGANGenerator, random: Random
    ) -> None:
        super().__init__()
        self.config, self.data, self.random = config, data, random
        count = data.num_classes * config.codes_ipc
        check_memory(16 * count * generator.config.noise_dim, config.codes_ipc, data.device)
        labels, indices = (x.to(data.device) for x in class_grid(data.num_classes, config.codes_ipc))
        self.codes = nn.Parameter(generator.plain_codes(labels, indices).view(data.num_classes, config.codes_ipc, -1))
        self.augment, self.normalize = Augment(config.codes_augment), Normalize(data.mean, data.std)
        networks = config.codes_pool or config.pool
        check_networks(networks, data, needs_feature=config.codes_local_weight > 0)
        self.pool = ModelPool(
            networks,
            data,
            inner_steps=config.codes_inner_steps,
            refresh=config.codes_refresh,
            random=random,
            recipe=replace(MATCHING, mixed_precision=config.mixed_precision),
        )
        counts = torch.tensor(data.class_counts)
        self.rows_by_class = data.labels.cpu().argsort(stable=True).to(data.device)
        self.counts = counts.to(data.device)
        self.starts = (counts.cumsum(0) - counts).to(data.device)

    @property
    def classes_per_step(self) -> int:
        """Number of classes in a step, which makes at most `codes_chunk` images."""
        return min(self.data.num_classes, max(1, self.config.codes_chunk // self.config.codes_ipc))

    def draw_rows(self) -> Tensor:
        """Draw classes, and row numbers of real images of each, int64 [C, R]."""
        rng, size = self.random.rng, (self.classes_per_step, self.config.codes_real)
        classes = torch.randperm(self.data.num_classes, generator=rng, device=rng.device)[: size[0], None]
        places = torch.rand(size, generator=rng, device=rng.device) * self.counts[classes]
        return self.rows_by_class[self.starts[classes] + places.long()]

    def terms(self, generator: ConditionalGANGenerator, network: nn.Module, rows: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the loss for the classes of a step (`prefix_loss`).

        Args:
            generator: frozen, in eval mode.
            network: of the pool.
            rows: from `draw_rows`.

        """
        config = self.config
        images, labels = self.data.gather(rows.flatten())
        classes = labels.view(rows.shape)[:, 0]
        fake_labels = classes.repeat_interleave(config.codes_ipc)
        with frozen(generator):
            fake = generator(generator.code(fake_labels, self.codes[classes].flatten(0, 1)))
        draw = self.augment.draw(1, self.random.rng, self.data.device)
        real, fake = (self.augment(self.normalize(x), draw) for x in (to_unit(images), (fake + 1) / 2))
        with frozen(network):
            with torch.no_grad():
                real_outputs = network(real)
            fake_outputs = network(fake)
        terms, shapes = {}, ((len(classes), config.codes_ipc), tuple(rows.shape))
        weights = (config.codes_global_weight, config.codes_local_weight)
        for name, weight, *outputs in zip(("global", "local"), weights, fake_outputs, real_outputs, strict=True):
            if weight:
                fake_part, real_part = (x.unflatten(0, shape) for x, shape in zip(outputs, shapes, strict=True))
                terms[name] = weight * prefix_loss(fake_part, real_part, config.codes_distance, config.codes_power)
        if config.codes_class_weight:
            terms["class"] = config.codes_class_weight * F.cross_entropy(fake_outputs[0].float(), fake_labels)
        return terms

    def stored(self) -> Tensor:
        """Return the codes as a generator stores them, float16 [K, M, noise_dim]."""
        return self.codes.detach().half()


def codes_stage(config: GlobalLocalConfig, num_classes: int) -> Stage:
    """Return the stage `codes` of a run; every process takes all of each step."""
    steps = min(config.codes_steps, config.max_steps or config.codes_steps)
    images = num_classes * config.codes_real
    return Stage(CODES, steps, images, config.codes_lr, divided=False, size_setting="codes_chunk")


def check_memory(needed: int, ipc: int, device: torch.device) -> None:
    """Refuse codes that take more than half of the free memory.

    Args:
        needed: bytes of codes, gradients and moments.
        ipc: codes of a class.
        device: device of the codes.

    Raises:
        ValueError: they do.

    """
    cuda = device.type == "cuda"
    available = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    if needed > available // 2:
        raise ValueError(
            f"codes_ipc is {ipc}: its codes and their optimizer take {needed / 2**30:,.1f} GiB, but {device} has "
            f"{available / 2**30:,.1f} GiB free: lower codes_ipc."
        )


def load_trained(config: GlobalLocalConfig, data: ImageTensors) -> ConditionalGANGenerator:
    """Load the trained GAN of setting `generator`, to give it codes.

    Raises:
        LoadError: it cannot be loaded, or is another kind of generator.
        ValueError: its classes or its images are others than the data's.

    """
    generator = ConditionalGANGenerator.from_pretrained(config.generator, device=data.device)
    data.check_same_classes(generator)
    if generator.image_shape != data.shape:
        raise ValueError(
            f"{config.generator} makes images {generator.image_shape}, but those of {data.source} are {data.shape}: "
            f"pass image_size={generator.image_shape[-1]}, or another generator."
        )
    codes = {name: value for name, value in config.identity().items() if name.startswith("codes_")}
    codes |= {"codes_seed": config.seed, "codes_source": data.source}
    generator.register_to_config(training={**(generator.config.training or {}), **codes})
    generator.report = None  # which is of its images without these codes
    return generator.requires_grad_(False).eval()
