"""The methods as the papers' public code runs them, to compare with.

They are written out from the equations.

Images are arrays that a `DataLoader` turns into PIL images and tensors. One network is trained at a time, in float32
and NCHW, with gradients of everything that takes part, and losses are read in every step. The networks are copies of
the library's own, so that only the way they are run differs. This module is longer than others so that it can be read
beside the papers' code as one file.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import islice, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hf_gdd import DiffusionMemoryTrainer, GlobalLocalTrainer, ImageTensors, PredictionMatchingTrainer, Recipe
from hf_gdd.classifiers.augment import Augment
from hf_gdd.generators.dit_pipeline import NULL_CLASS
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.methods.diffusion_memory.losses import variance_bound


class Pictures(Dataset):
    """Arrays [H, W, C] that become PIL images, then tensors in [-1, 1].

    That happens one at a time, as in torchvision's sets.
    """

    def __init__(self, data: ImageTensors, flip: bool = False) -> None:
        self.arrays, self.labels = data.images.cpu().permute(0, 2, 3, 1).numpy(), data.labels.tolist()
        self.flip = flip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        array = self.arrays[row]
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        if self.flip and torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).view(array.shape).permute(2, 0, 1).contiguous()
        return pixels.float().div(255).sub(0.5).div(0.5), self.labels[row]


def loader(data: ImageTensors, batch_size: int, workers: int, *, drop_last: bool = True, flip: bool = False) -> Any:
    """Load shuffled batches of images in [-1, 1] and labels."""
    options = {"num_workers": workers, "drop_last": drop_last, "pin_memory": data.device.type == "cuda"}
    return DataLoader(Pictures(data, flip), batch_size, shuffle=True, **options)


def endless(batches: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Repeat the epochs of a loader."""
    while True:
        yield from batches


def plain(module: nn.Module) -> Any:
    """Copy a network in NCHW, to be trained in all of its weights."""
    return deepcopy(module).to(memory_format=torch.contiguous_format).train().requires_grad_(True)


class GanStep:
    """One step of the generator, then one of the discriminator.

    The GAN is a WGAN-GP with a class head.
    """

    def __init__(self, trainer: GlobalLocalTrainer, batches: Any, lr: float) -> None:
        self.generator, self.discriminator = plain(trainer.generator), plain(trainer.discriminator)
        self.config, self.device, self.endless = trainer.config, trainer.device, endless(batches)
        self.optimizer_g = torch.optim.Adam(self.generator.parameters(), lr=lr, betas=(0.0, 0.9))
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=(0.0, 0.9))

    def __call__(self) -> dict[str, float]:
        """Take one step on the next batch."""
        real, labels = (part.to(self.device) for part in next(self.endless))

        fake = self.fake(labels)
        scores, classes = self.discriminator(fake)
        loss_g = -scores.mean() + F.cross_entropy(classes, labels) + self.matching(real, fake)
        self.optimizer_g.zero_grad()
        loss_g.backward()
        self.optimizer_g.step()

        drawn = torch.randint(self.generator.num_classes, (len(labels),)).to(self.device)
        with torch.no_grad():
            fake = self.fake(drawn)
        fake_scores, fake_classes = self.discriminator(fake)
        real_scores, real_classes = self.discriminator(real)
        loss_d = fake_scores.mean() - real_scores.mean()
        loss_d = loss_d + F.cross_entropy(fake_classes, drawn) + F.cross_entropy(real_classes, labels)
        loss_d = loss_d + self.config.penalty_weight * self.penalty(real, fake)
        self.optimizer_d.zero_grad()
        loss_d.backward()
        self.optimizer_d.step()
        accuracy = (real_classes.argmax(1) == labels).float().mean()
        return {"generator": loss_g.item(), "discriminator": loss_d.item(), "accuracy": accuracy.item()}

    def fake(self, labels: Tensor) -> Tensor:
        """Generate images of these labels from noise drawn on the host."""
        normal = torch.randn((len(labels), self.generator.config.noise_dim)).to(self.device)
        return self.generator(torch.cat([F.one_hot(labels, self.generator.num_classes).float(), normal], dim=1))

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the gradient penalty.

        It is the squared distance from 1 of the slope between real and fake images.
        """
        mix = torch.rand((len(real),)).to(self.device).view(-1, 1, 1, 1)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.discriminator(between)[0].sum(), between, create_graph=True)
        return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()

    def matching(self, real: Tensor, fake: Tensor) -> Tensor | float:
        """Return the matching loss, which a GAN alone does not have."""
        return 0.0


class MatchStep(GanStep):
    """The same step with matching in a network that is trained on the way.

    Each step begins an epoch of the network's own loader anew, as the public DiM code does.
    """

    def __init__(self, trainer: GlobalLocalTrainer, batches: Any, lr: float, network: nn.Module, own: Any) -> None:
        super().__init__(trainer, batches, lr)
        self.network, self.own, self.normalize = plain(network), own, trainer.normalize
        self.sgd = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def matching(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the weighted distances of log-probabilities and of mean features."""
        for images, labels in islice(self.own, self.config.inner_steps):
            images, labels = images.to(self.device), labels.to(self.device)
            loss = F.cross_entropy(self.network(self.prepare_batch(images, "color_crop", len(images)))[0], labels)
            self.sgd.zero_grad()
            loss.backward()
            self.sgd.step()
            loss.item()
        both = self.prepare_batch(torch.cat([real, fake]), "color_crop_cutout", 1)
        (logits, feature), (fake_logits, fake_feature) = (self.network(half) for half in both.chunk(2))
        distance = (logits.log_softmax(1) - fake_logits.log_softmax(1)).square().mean()
        local = (feature.mean(0) - fake_feature.mean(0)).square().sum()
        return self.config.global_weight * distance + self.config.local_weight * local

    def prepare_batch(self, images: Tensor, policy: str, draws: int) -> Tensor:
        """Normalize and augment a batch with this many random draws."""
        augment = Augment(policy)
        return augment(self.normalize((images + 1) / 2), augment.draw(draws).to(self.device))


class MemoryStep:
    """A step of tuning a diffusion transformer against lists of remembered latents.

    Every batch is encoded anew, the average follows all weights, and a memory is a list of tensors for each class.
    """

    def __init__(self, trainer: DiffusionMemoryTrainer, batches: Any) -> None:
        self.transformer, self.vae = deepcopy(trainer.transformer), deepcopy(trainer.vae).eval().requires_grad_(False)
        self.average = deepcopy(self.transformer).requires_grad_(False)
        self.rows, self.alphas, self.config, self.device = trainer.rows, trainer.alphas, trainer.config, trainer.device
        tuned = [parameter for parameter in self.transformer.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(tuned, lr=self.config.tune_lr, weight_decay=0.0)
        self.endless, classes = endless(batches), range(len(self.rows))
        self.real, self.generated = ({label: [] for label in classes} for _ in range(2))

    def __call__(self) -> dict[str, float]:
        """Take one step on the next batch."""
        images, labels = (part.to(self.device) for part in next(self.endless))
        with torch.no_grad():
            clean = self.vae.encode(images).latent_dist.sample() * self.vae.config.scaling_factor
        t = torch.randint(len(self.alphas), (len(labels),)).to(self.device)
        noise = torch.randn(clean.shape).to(self.device)
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        dropped = torch.rand((len(labels),)).to(self.device) < self.config.label_dropout
        class_labels = torch.where(dropped, NULL_CLASS, self.rows[labels])
        output = self.transformer(noisy, timestep=t, class_labels=class_labels).sample
        pred_noise, model_var = output.chunk(2, dim=1)
        pred_x0 = (noisy - (1 - alpha).sqrt() * pred_noise) / alpha.sqrt()
        loss = F.mse_loss(pred_noise, noise) + variance_bound(pred_noise, model_var, clean, noisy, t, self.alphas)
        loss = loss + self.memory_terms(pred_x0, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.transformer.parameters(), strict=True):
                mean.mul_(self.config.ema_decay).add_(now, alpha=1 - self.config.ema_decay)
            self.remember(pred_x0, clean, labels)
        return {"loss": loss.item()}

    def memory_terms(self, pred_x0: Tensor, labels: Tensor) -> Tensor | float:
        """Return the two memory losses of each class.

        A class is to be like its least similar real latent, and unlike its most similar generated one.
        """
        terms, present = 0.0, labels.unique().tolist()
        for label in present:
            mine = pred_x0[labels == label].flatten(1)
            if self.real[label]:
                terms = terms + self.config.real_weight * (1 - cosines(mine, self.real[label]).min()) / len(present)
                terms = terms + self.config.gen_weight * cosines(mine, self.generated[label]).max() / len(present)
        return terms

    def remember(self, pred_x0: Tensor, clean: Tensor, labels: Tensor) -> None:
        """Add a batch to both memories.

        Of a class with too many members, the one most similar to all others leaves.
        """
        real, generated = (self.real, clean, self.config.real_memory), (self.generated, pred_x0, self.config.gen_memory)
        for (memory, latents, capacity), label in product((real, generated), labels.unique().tolist()):
            memory[label] += list(latents[labels == label].flatten(1).clone())
            while len(memory[label]) > capacity:
                held = torch.stack(memory[label])
                memory[label].pop(int(cosines(held, memory[label]).sum(1).argmax()))


def cosines(latents: Tensor, memory: Sequence[Tensor]) -> Tensor:
    """Return the cosine of each latent with each of the memory."""
    return F.normalize(latents, dim=1) @ F.normalize(torch.stack(tuple(memory)), dim=1).T


class PredictionStep:
    """A step of the images up the gap between students and teacher.

    The teacher predicts anew for every student.
    """

    def __init__(self, trainer: PredictionMatchingTrainer) -> None:
        group, self.config = trainer.groups.own[0], trainer.config
        self.images, self.labels = group.images.detach().clone().requires_grad_(), group.labels
        self.teacher = plain(trainer.teachers[0]).eval()
        self.students = [plain(student).eval() for student in group.students]
        self.optimizer = torch.optim.SGD([self.images], self.config.image_lr, momentum=self.config.image_momentum)

    def __call__(self) -> dict[str, float]:
        """Take one step of all images."""
        gap, cross_entropy = 0.0, 0.0
        self.optimizer.zero_grad()
        for rows in torch.arange(len(self.images), device=self.images.device).split(self.config.chunk):
            share = len(rows) / len(self.images)
            for student in self.students:
                images = self.images[rows]
                loss = -share * (student(images)[0] - self.teacher(images)[0]).abs().mean()
                loss.backward()
                gap -= loss.item() / len(self.students)
            loss = share * F.cross_entropy(self.teacher(self.images[rows])[0], self.labels[rows])
            (self.config.hard_weight * loss).backward()
            cross_entropy += loss.item()
        self.optimizer.step()
        for network in (self.teacher, *self.students):
            network.zero_grad()
        return {"gap": gap, "cross_entropy": cross_entropy}


class BareForward:
    """The generator's forward pass alone, on batches of random labels."""

    def __init__(self, generator: ConditionalGANGenerator, batch_size: int, batches: int) -> None:
        self.generator, self.batch_size, self.batches = plain(generator).eval(), batch_size, batches

    @torch.no_grad()
    def __call__(self) -> None:
        """Generate all batches, one after the other."""
        generator = self.generator
        for _ in range(self.batches):
            labels = torch.randint(generator.num_classes, (self.batch_size,)).to(generator.device)
            normal = torch.randn((self.batch_size, generator.config.noise_dim)).to(generator.device)
            (generator(torch.cat([F.one_hot(labels, generator.num_classes).float(), normal], dim=1)) + 1) / 2


class Evaluation:
    """Networks that are trained and tested one after the other, through loaders."""

    def __init__(self, networks: Sequence[nn.Module], batches: Any, test: Any, normalize: Any, recipe: Recipe) -> None:
        self.networks, self.batches, self.test, self.normalize, self.recipe = networks, batches, test, normalize, recipe
        self.device = next(networks[0].parameters()).device

    def __call__(self) -> list[float]:
        """Return the accuracy of each network."""
        return [self.accuracy(plain(network)) for network in self.networks]

    def accuracy(self, network: nn.Module) -> float:
        """Train one network, and test it."""
        recipe, augment, correct = self.recipe, Augment(self.recipe.augment), 0
        optimizer = torch.optim.SGD(network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
        for images, labels in islice(endless(self.batches), recipe.max_steps):
            images, labels = images.to(self.device), labels.to(self.device)
            logits = network(augment(self.normalize((images + 1) / 2), augment.draw(len(images)).to(self.device)))[0]
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item(), (logits.argmax(1) == labels).sum().item()
        network.eval()
        with torch.no_grad():
            for images, labels in self.test:
                logits = network(self.normalize((images.to(self.device) + 1) / 2))[0]
                correct += (logits.argmax(1) == labels.to(self.device)).sum().item()
        return correct / len(self.test.dataset)
