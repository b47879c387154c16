"""Choose among a diffusion generator's draws those that make a good set together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_gdd.classifiers.coresets import train_network
from hf_gdd.classifiers.learner import NonFiniteLossError
from hf_gdd.classifiers.recipes import find_recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize
from hf_gdd.data.pixels import to_unit
from hf_gdd.generators.diffusion import DiffusionGenerator
from hf_gdd.methods.diffusion_memory.config import DiffusionMemoryConfig
from hf_gdd.training.distributed import Processes
from hf_gdd.utils.device import at_least_float32
from hf_gdd.utils.io import load_state, save_state
from hf_gdd.utils.progress import progress_bar
from hf_gdd.utils.random import derive_seed

_STREAM = 0xC0DE  # separates the random draws of the networks from those of the run
_BATCH = 250


def attach_codes(
    generator: DiffusionGenerator,
    config: DiffusionMemoryConfig,
    data: ImageTensors,
    processes: Processes,
    path: Path,
) -> None:
    """Choose draws, or take an earlier fit's choice, and give them to a generator.

    Args:
        generator: its first `codes_ipc` images of every class are the chosen ones from then on.
        config: settings `codes_*`.
        data: real training images.
        processes: of the run; one of them chooses.
        path: file of the choice.

    Raises:
        NonFiniteLossError: a network that chooses diverged.

    """
    if not config.codes_ipc:
        return
    chosen: list[Tensor] = []

    def choose() -> None:
        state = load_state(path) if path.is_file() else {}
        if state.get("generator") != generator.fingerprint:
            networks = train_networks(config, data)
            codes = choose_draws(generator, data, networks, config.codes_ipc, config.codes_candidates)
            state = {"generator": generator.fingerprint, "codes": codes}
            save_state(path, state)
        chosen.append(state["codes"])

    processes.on_main(choose)
    (generator.codes,) = processes.gather_objects(chosen)


def train_networks(config: DiffusionMemoryConfig, data: ImageTensors) -> list[nn.Module]:
    """Train the networks that choose on real images; returns them in eval mode."""
    steps = min(config.codes_inner_steps, config.max_steps or config.codes_inner_steps)
    recipe = replace(find_recipe("short"), max_steps=steps or None, mixed_precision=config.mixed_precision)
    networks = []
    for number in progress_bar(True, iterable=range(config.codes_networks), desc="networks", unit="network"):
        name = config.codes_pool[number % len(config.codes_pool)]
        seed = derive_seed(config.seed, _STREAM, number)
        networks.append(train_network(name, data, recipe if steps else None, seed))
    return networks


def choose_draws(
    generator: DiffusionGenerator, data: ImageTensors, networks: Sequence[nn.Module], count: int, candidates: int
) -> Tensor:
    """Choose plain draws of seed 0 of every class, one after the other.

    Every prefix of the list has, as nearly as one more draw can make it, the least energy distance from the real images
    of the class, in logits and features. Each output of a network is divided by its spread over real images, so that
    all count alike. Memory holds the draws of one class at a time.

    Args:
        generator: sampled by its own settings.
        data: real training images.
        networks: in eval mode.
        count: draws to choose of every class, M.
        candidates: draws of every class to choose from.

    Returns:
        Numbers of draws in order of choice, int32 [K, M], on the CPU. A shorter list is the beginning of a longer one.

    Raises:
        NonFiniteLossError: the outputs of a network are not finite.

    """
    normalize, plain = Normalize(data.mean, data.std), replace(generator.sampling, distilled=False)
    indices, chosen = torch.arange(candidates), []
    for label in progress_bar(True, iterable=range(data.num_classes), desc="choosing draws", unit="class"):
        rows = (data.labels == label).nonzero()[:, 0]
        draws = generator.sample(torch.full_like(indices, label), indices, sampling=plain).split(_BATCH)
        ours = [
            torch.cat(each)
            for each in zip(*(network_outputs(networks, normalize(to_unit(x))) for x in draws), strict=True)
        ]
        to_real, spreads = 0.0, None
        for part in rows.split(_BATCH):
            theirs = network_outputs(networks, normalize(to_unit(data.gather(part)[0])))
            spreads = spreads or [(x.std() * x.shape[1] ** 0.5).clamp(min=1e-6) for x in theirs]
            pairs = zip(ours, theirs, spreads, strict=True)
            to_real = to_real + sum(torch.cdist(x, y).sum(1) / spread for x, y, spread in pairs) / len(rows)
        among = sum(torch.cdist(x, x).fill_diagonal_(0) / spread for x, spread in zip(ours, spreads, strict=True))
        if not (to_real.isfinite().all() and among.isfinite().all()):
            raise NonFiniteLossError("A network of codes_pool diverged on the real images: change codes_inner_steps.")
        chosen.append(torch.tensor(choose(to_real, among, count)))
    return torch.stack(chosen).int()


@torch.no_grad()
def network_outputs(networks: Sequence[nn.Module], images: Tensor) -> list[Tensor]:
    """Return logits and features of normalized images, one [B, d] for each output."""
    return [at_least_float32(x).flatten(1) for network in networks for x in network(images) if x is not None]


def choose(to_real: Tensor, among: Tensor, count: int) -> list[int]:
    """Choose rows greedily so that every prefix is nearest to real images.

    That is by the energy distance (Szekely & Rizzo, 2013): twice the mean distance between chosen and real images,
    minus the mean distance between chosen ones. With squared distances it is twice the squared distance of the means.

    Args:
        to_real: mean distance of each candidate from the real images, [N].
        among: distances between candidates, [N, N], with a diagonal of zeros.
        count: rows to choose.

    Returns:
        Row numbers in order of choice.

    """
    chosen, between, within, from_chosen = [], 0.0, 0.0, torch.zeros_like(to_real)
    for number in range(1, count + 1):
        energy = 2 * (between + to_real) / number - (within + 2 * from_chosen) / number**2
        energy[chosen] = torch.inf
        chosen.append(row := int(energy.argmin()))
        between, within = between + to_real[row], within + 2 * from_chosen[row]
        from_chosen = from_chosen + among[row]
    return chosen
