"""Distance of generated images from real ones, by the losses of matching."""

import torch

from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize
from hf_gdd.data.pixels import to_unit
from hf_gdd.generators.base import Generator
from hf_gdd.methods.global_local.losses import global_loss, local_loss
from hf_gdd.methods.global_local.model_pool import ModelPool


@torch.no_grad()
def matching_losses(
    generator: Generator,
    real: ImageTensors,
    pool: ModelPool,
    n: int = 5,
    *,
    per_image: int = 8,
    global_reduction: str = "logsoftmax_mean",
    local_reduction: str = "batchmean_sum",
) -> dict[str, float]:
    """Measure the losses of matching in `n` fresh networks.

    Generated images are compared with real ones of equal labels.

    Args:
        generator: its first images of each class are compared.
        real: images that neither the generator nor the pool was trained on.
        pool: draws and trains the networks; with `refresh=1`, so that each is a fresh one.
        n: number of networks.
        per_image: generated images for each real one, which reduces the noise of the measurement.
        global_reduction: a name in `GLOBAL_REDUCTIONS` of losses.py.
        local_reduction: a name in `LOCAL_REDUCTIONS` of losses.py.

    Returns:
        The unweighted `global` and `local` losses, means over the networks.

    """
    images, labels = real.gather(torch.arange(len(real), device=real.labels.device).repeat(per_image))
    indices = torch.zeros_like(labels)
    for label in range(real.num_classes):
        members = labels == label
        indices[members] = torch.arange(int(members.sum()), device=labels.device)
    normalize = Normalize(pool.data.mean, pool.data.std)
    generated, images = (normalize(to_unit(x)) for x in (generator.sample(labels, indices), images))
    sums = {"global": 0.0, "local": 0.0}
    for _ in range(n):
        with torch.enable_grad():
            network = pool.advance()
        (fake_logits, fake_feature), (real_logits, real_feature) = network(generated), network(images)
        sums["global"] += float(global_loss(fake_logits, real_logits, global_reduction))
        sums["local"] += float(local_loss(fake_feature, real_feature, local_reduction))
    return {name: total / n for name, total in sums.items()}
