"""Ordinary training script that also takes distilled data.

Only the line that loads `train` differs.

    python scripts/train_downstream.py --dataset digits                                     # real images
    python scripts/train_downstream.py --dataset digits --generator model_cards/digits      # 10 images of every class
    python scripts/train_downstream.py --dataset digits --generator model_cards/digits --stream

`--generator` takes a folder or a Hub repo id, `--dataset` a Hub id, a folder or `digits`. Each command above takes
seconds on two CPU cores and prints the accuracy on the real test images. Under `accelerate launch` each process takes
its own batches. This is a demonstration: `hf-gdd evaluate` is the fair comparison, with several networks and baselines.
"""

from itertools import chain, islice, repeat

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_gdd import ImageTensors, load_distilled_dataset


def network(channels: int, classes: int) -> nn.Module:
    """Build a small convolutional network for images of any size."""
    blocks = []
    for width_in, width in ((channels, 64), (64, 128)):
        blocks += [nn.Conv2d(width_in, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128 * 4, classes))


def main(
    dataset: str, generator: str | None = None, stream: bool = False, ipc: int = 10, steps: int = 500, seed: int = 0
) -> None:
    """Train on real or distilled images, test on real ones.

    Args:
        dataset: the real data set.
        generator: generator that replaces its training images; None trains on the real ones.
        stream: take fresh images every epoch instead of a fixed set.
        ipc: images per class, with a stream in each epoch.
        steps: SGD steps.
        seed: seed of the network and of the images.

    """
    if stream and generator is None:
        raise SystemExit("--stream needs a --generator to stream from.")
    accelerator = Accelerator()
    torch.manual_seed(seed)
    test = ImageTensors.from_dataset(dataset, "test", device=accelerator.device)

    if stream:
        train = load_distilled_dataset(generator, ipc=ipc, seed=seed, streaming=True, batch_size=64)
        rank, processes = accelerator.process_index, accelerator.num_processes
        loader = DataLoader(train.split_by_node(rank, processes), batch_size=None)
    else:
        if generator is None:
            train = ImageTensors.from_dataset(dataset, "train").to_dataset()
        else:
            train = load_distilled_dataset(generator, ipc=ipc, seed=seed)
        loader = accelerator.prepare(DataLoader(train.with_format("torch"), batch_size=64, shuffle=True))

    model = network(test.shape[0], test.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    model, optimizer = accelerator.prepare(model, optimizer)

    def normalized(images: torch.Tensor) -> torch.Tensor:
        return images.to(accelerator.device).float() / 127.5 - 1

    batches = islice(chain.from_iterable(repeat(loader)), steps)  # one epoch after the other
    for batch in tqdm(batches, total=steps, unit="step", disable=not accelerator.is_main_process or None):
        loss = F.cross_entropy(model(normalized(batch["image"])), batch["label"].to(accelerator.device))
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

    model.eval()
    with torch.no_grad():
        parts = torch.arange(len(test), device=test.labels.device).split(500)
        correct = 0
        for images, labels in map(test.gather, parts):
            correct += int((model(normalized(images)).argmax(1) == labels).sum())
    accelerator.print(f"{100 * correct / len(test):.1f} % of {len(test):,} real test images")


if __name__ == "__main__":
    tyro.cli(main)
