"""Global-local matching (Li et al., 2024, arXiv 2404.17732), CGAN and DiM."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hf_gdd.classifiers.augment import Augment
from hf_gdd.classifiers.networks import frozen
from hf_gdd.classifiers.recipes import SCHEDULES
from hf_gdd.data.normalization import Normalize
from hf_gdd.data.pixels import to_tanh
from hf_gdd.generators.base import Generator
from hf_gdd.generators.gan import ConditionalGANGenerator, Discriminator
from hf_gdd.methods.global_local.codes import CODES, DistilledCodes, codes_stage, load_trained
from hf_gdd.methods.global_local.config import PRESETS, GlobalLocalConfig
from hf_gdd.methods.global_local.losses import (
    discriminator_adversarial,
    generator_adversarial,
    global_loss,
    gradient_penalty,
    local_loss,
)
from hf_gdd.methods.global_local.model_pool import MATCHING, ModelPool, check_networks
from hf_gdd.training.config import Stage
from hf_gdd.training.labels import attach_teacher
from hf_gdd.training.metrics_log import gradient_shares
from hf_gdd.training.start_point import StartPoint
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.device import at_least_float32
from hf_gdd.utils.random import Random, seeded

GAN, MATCH = "gan", "match"
# Settings that shape stage `gan`: a run may start from another's only if these are equal.
GAN_SETTINGS = ("seed", "width", "noise_dim", "adversarial", "penalty_weight", "penalty_every")
GAN_SETTINGS += ("class_on_fakes", "ema_decay")
GAN_PARTS = frozenset({"generator", "discriminator", "optimizer_g", "optimizer_d", "ema", "random", "batches"})
GAN_LENGTH = ("gan_epochs", "gan_batch_size", "gan_lr")


class GlobalLocalTrainer(Trainer):
    """Train a conditional GAN, then match its images with real ones.

    Stage `gan` trains the GAN. Stage `match` tunes it further, with its images matched in the networks of a pool. Stage
    `codes`, with the generator frozen, tunes what the first images of every class are made from.

    Example:
        trainer = GlobalLocalTrainer("digits", preset="tiny", output_dir="runs/digits")
        generator = trainer.fit()

    """

    config_class = GlobalLocalConfig
    presets = PRESETS
    later_parts = frozenset({"codes", "codes_pool", "codes_random", "optimizer_codes"})
    config: GlobalLocalConfig

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages `gan`, `match` and `codes`, less those that are not wanted."""
        config = self.config
        names = () if config.start_from or config.generator else (GAN,)
        names += () if config.method == "cgan" or config.generator else (MATCH,)
        codes = (codes_stage(config, self.data.num_classes),) if config.codes_ipc else ()
        return (*map(self.epoch_stage, names), *codes)

    @property
    def start_point(self) -> StartPoint | None:
        """The run whose stage `gan` replaces this one's, or None."""
        folder = self.config.start_from
        return StartPoint(folder, GAN, GAN_SETTINGS, GAN_PARTS, GAN_LENGTH) if folder else None

    def setup(self) -> dict[str, Any]:
        """Build networks, optimizers and pool, and the EMA and the codes if any."""
        config = self.config
        self.frozen_generator: ConditionalGANGenerator | None = None
        if config.generator:
            self.generator, tracked = load_trained(config, self.data), {}
        else:
            tracked = self._setup_gan()
        if config.codes_ipc:
            # Codes draw from a sequence of their own, so that the stages before them stay as they are without.
            self.codes_random = Random(config.seed, self.device, stream=2)
            self.codes = DistilledCodes(config, self.data, self.generator, self.codes_random)
            self.optimizer_codes = self.accelerator.prepare(torch.optim.Adam([self.codes.codes], lr=config.codes_lr))
            tracked |= {"codes": self.codes, "codes_pool": self.codes.pool, "codes_random": self.codes_random}
            tracked |= {"optimizer_codes": self.optimizer_codes}
        return tracked

    def _setup_gan(self) -> dict[str, Any]:
        config, data, device = self.config, self.data, self.device
        with seeded(config.seed):
            generator = ConditionalGANGenerator(
                class_names=data.class_names,
                image_shape=data.shape,
                width=config.width,
                noise_dim=config.noise_dim,
                mean=data.mean,
                std=data.std,
                training=self.training_record(),
            )
            self.generator = generator.to(device).train()
            self.discriminator = Discriminator(data.num_classes, data.shape, config.width).to(device)
        for network in (self.generator, self.discriminator) if config.channels_last else ():
            network.to(memory_format=torch.channels_last)
        adam = partial(torch.optim.Adam, lr=config.gan_lr, betas=(0.0, 0.9))
        self.optimizer_g = self.accelerator.prepare(adam(self.generator.parameters()))
        self.optimizer_d = self.accelerator.prepare(adam(self.discriminator.parameters()))
        # The GAN draws from its own sequence, so that runs with other matching see the same noise and batches.
        self.match_random = Random(config.seed, device, stream=1)
        self.augment, self.normalize = Augment(config.match_augment), Normalize(data.mean, data.std)
        check_networks(config.pool, data, needs_feature=config.weights["local"] > 0)
        refresh, recipe = config.refresh(len(data)), replace(MATCHING, mixed_precision=config.mixed_precision)
        self.pool = ModelPool(
            config.pool, data, inner_steps=config.inner_steps, refresh=refresh, random=self.match_random, recipe=recipe
        )
        tracked = {name: getattr(self, name) for name in ("generator", "discriminator", "optimizer_g", "optimizer_d")}
        tracked |= {"match_random": self.match_random, "pool": self.pool}
        if config.ema_decay:
            average = get_ema_multi_avg_fn(config.ema_decay)
            self.ema = AveragedModel(self.generator, multi_avg_fn=average, use_buffers=True)
            tracked["ema"] = self.ema
        return tracked

    def begin(self, stage: Stage) -> None:
        """Set the learning rate of the stage."""
        for optimizer in (self.optimizer_g, self.optimizer_d) if stage.name != CODES else ():
            for group in optimizer.param_groups:
                group["lr"] = stage.lr

    def step(self, indices: Tensor) -> dict[str, Tensor]:
        """Train generator and discriminator for a step; in stage `codes` the codes."""
        if self.stage.name == CODES:
            return self.tune_codes(indices)
        images, labels = self.data.gather(indices)
        real = to_tanh(images)
        network = self.pool.advance() if self.matching else None

        # Generator: fool the discriminator, be recognized, and look to the pool's network as real images do.
        with self.autocast(), frozen(self.discriminator):
            fake = self.generate(labels)
            scores, classes = self.discriminator(fake)
            adversarial = generator_adversarial(scores, self.config.adversarial)
            terms = {"adversarial": adversarial, "class": F.cross_entropy(classes, labels)}
            if network is not None:
                terms |= self.match(network, real, fake)
        shares = gradient_shares(terms, fake) if self.log_this_step else {}
        self.update(self.generator, self.optimizer_g, sum(terms.values()))
        if self.config.ema_decay:
            self.ema.update_parameters(self.generator)

        # Discriminator: tell real from generated, and classes apart.
        with self.autocast():
            loss = self.discriminator_loss(real, labels)
        self.update(self.discriminator, self.optimizer_d, loss)

        metrics = terms | {"discriminator": loss} | {f"share/{name}": share for name, share in shares.items()}
        return {name: value.detach() for name, value in metrics.items()}

    def next_indices(self, stage: Stage) -> Tensor:
        """Return the row numbers of the next batch; in stage `codes` by class, [C, R]."""
        return self.codes.draw_rows() if stage.name == CODES else super().next_indices(stage)

    def tune_codes(self, indices: Tensor) -> dict[str, Tensor]:
        """Move codes so that every prefix of their images looks as real images do."""
        if self.frozen_generator is None:
            self.frozen_generator = self.plain_generator().float()
        for group in self.optimizer_codes.param_groups:
            group["lr"] = self.stage.lr * SCHEDULES["cosine"](self.state.step / self.stage.steps)
        network = self.codes.pool.advance()
        with self.autocast():
            terms = self.codes.terms(self.frozen_generator, network, indices)
        self.update(self.codes, self.optimizer_codes, sum(terms.values()))
        return {f"codes/{name}": value.detach() for name, value in terms.items()}

    @property
    def matching(self) -> bool:
        """True if this step compares images in the networks of the pool."""
        return self.stage.name == MATCH and any(self.config.weights.values())

    def match(self, network: nn.Module, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Return the weighted global and local terms (Eqs. 6 and 7 of Li et al., 2024).

        Args:
            network: of the pool.
            real: images in [-1, 1], [B, C, H, W].
            fake: images in [-1, 1] of the same labels, [B, C, H, W].

        """
        weights, config = self.config.weights, self.config
        draw = self.augment.draw(1, self.match_random.rng, self.device)
        real, fake = (self.augment(self.normalize((x + 1) / 2), draw) for x in (real, fake))
        with frozen(network), self.processes.joint_moments():
            with torch.no_grad():
                real_logits, real_feature = network(real)
            fake_logits, fake_feature = network(fake)
        terms, gather = {}, self.processes.gather
        if weights["global"]:
            distance = global_loss(gather(fake_logits), gather(real_logits), config.global_reduction)
            terms["global"] = weights["global"] * distance
        if weights["local"]:
            distance = local_loss(gather(fake_feature), gather(real_feature), config.local_reduction)
            terms["local"] = weights["local"] * distance
        return terms

    def discriminator_loss(self, real: Tensor, labels: Tensor) -> Tensor:
        """Return the discriminator's loss on real and fresh images.

        It is that of Eq. 4 of Li et al. or of WGAN-GP, with the class terms of ACGAN.
        """
        config = self.config
        fake_labels = self.integers(self.data.num_classes, len(real))
        with torch.no_grad():
            fake = self.generate(fake_labels)
        (real_scores, real_classes), (fake_scores, fake_classes) = map(self.discriminator, (real, fake))
        loss = discriminator_adversarial(real_scores, fake_scores, config.adversarial)
        loss = loss + F.cross_entropy(real_classes, labels)
        if config.class_on_fakes:
            loss = loss + F.cross_entropy(fake_classes, fake_labels)
        if self.penalty_share:
            mix = self.uniform(len(real))
            penalty = gradient_penalty(lambda x: self.discriminator(x)[0], real, fake, mix)
            loss = loss + self.penalty_share * config.penalty_weight * penalty
        return loss

    @property
    def penalty_share(self) -> int:
        """Factor on the gradient penalty; 0 in the steps that a lazy one leaves out."""
        every = self.config.penalty_every
        return every if self.config.adversarial == "wgan-gp" and self.state.step % every == 0 else 0

    def generate(self, labels: Tensor) -> Tensor:
        """Generate fresh images in [-1, 1], [B, C, H, W], of these labels [B]."""
        code = self.generator.code(labels, self.normal(len(labels), self.config.noise_dim))
        with self.processes.joint_moments():
            return at_least_float32(self.generator(code))

    def finish(self, generator: Generator) -> Generator:
        """Attach the teacher, if the settings name one."""
        attach_teacher(generator, self.config, self.data, self.processes)
        return generator

    def to_generator(self) -> ConditionalGANGenerator:
        """Return a copy of the generator, with its codes from stage `codes` on."""
        generator = self.plain_generator()
        if self.config.codes_ipc and (self.stage is None or self.stage.name == CODES):
            generator.codes = self.codes.stored()
        return generator

    def plain_generator(self) -> ConditionalGANGenerator:
        """Return a copy of the generator, averaged if there is an EMA."""
        generator = self.ema.module if self.config.ema_decay and not self.config.generator else self.generator
        # In the layout in which it is saved, and in which pixels are made everywhere.
        return deepcopy(generator).to(memory_format=torch.contiguous_format).eval()
