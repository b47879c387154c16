"""How far a generator's images are from real ones, by the distances that matching minimizes."""

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
    """How far generated images are from real ones of equal labels, in `n` fresh networks that `pool` draws and trains.

    Args:
        generator: its first images of each class are compared.
        real: images that neither the generator nor the pool was trained on.
        pool: with `refresh=1`, so that each network is a fresh one.
        n: networks.
        per_image: generated images for each real one, so that the generator's chance matters less.
        global_reduction: see `hf_gdd.methods.global_local.losses.GLOBAL_REDUCTIONS`.
        local_reduction: see `hf_gdd.methods.global_local.losses.LOCAL_REDUCTIONS`.

    Returns:
        The unweighted `global` and `local` losses, means over the networks.

    """
    images, labels = real.gather(torch.arange(len(real), device=real.labels.device).repeat(per_image))
    indices = torch.zeros_like(labels)
    for label in range(real.num_classes):
        of_class = labels == label
        indices[of_class] = torch.arange(int(of_class.sum()), device=labels.device)
    normalize = Normalize(pool.data.mean, pool.data.std)
    fake, truth = (normalize(to_unit(x)) for x in (generator.sample(labels, indices), images))
    sums = {"global": 0.0, "local": 0.0}
    for _ in range(n):
        with torch.enable_grad():
            network = pool.advance()
        (fake_logits, fake_feature), (real_logits, real_feature) = network(fake), network(truth)
        sums["global"] += float(global_loss(fake_logits, real_logits, global_reduction))
        sums["local"] += float(local_loss(fake_feature, real_feature, local_reduction))
    return {name: total / n for name, total in sums.items()}
