"""Diffusion with self-adaptive memory (arXiv 2505.19469) and, on the same path, its baselines Minimax and DiT."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hf_gdd.data.pixels import tanh_to_uint8, to_tanh
from hf_gdd.generators.diffusion import DiffusionGenerator
from hf_gdd.hub.cards import union
from hf_gdd.methods.diffusion_memory.autoencoder import Latents, autoencoder_losses, small_autoencoder
from hf_gdd.methods.diffusion_memory.class_memory import ClassMemory
from hf_gdd.methods.diffusion_memory.config import PRESETS, DiffusionMemoryConfig
from hf_gdd.methods.diffusion_memory.dit import (
    NULL_CLASS,
    for_saving,
    for_training,
    null_labels,
    small_transformer,
    tuned_parameters,
)
from hf_gdd.methods.global_local.losses import (
    at_least_float32,
    diversity_loss,
    gradient_shares,
    representativeness_loss,
    variance_bound,
)
from hf_gdd.training.config import Stage
from hf_gdd.training.run_folder import check_start, load_state, stage_file, start_settings
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.plotting import image_grid
from hf_gdd.utils.random import seeded

VAE, DIT, TUNE = "vae", "dit", "tune"
# What shapes the first stages: a run may start from another's only if these are equal.
FIRST_SETTINGS = ("seed", "vae_width", "vae_levels", "latent_channels", "kl_weight", "width", "depth", "heads")
FIRST_SETTINGS += ("patch_size", "flip", "label_dropout", "ema_decay", "tuning")
FIRST_STATE = ("vae", "transformer", "average_dit", "random", "batches")
FIRST_LENGTH = tuple(f"{stage}_{name}" for stage in (VAE, DIT) for name in ("epochs", "batch_size", "lr"))


class Base:
    """The pretrained model of a run: its weights are not in the checkpoints, so that none may go on with another."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def state_dict(self) -> dict[str, str]:
        """The model's fingerprint."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Refuse to go on from the checkpoint of another model.

        Raises:
            ValueError: it is of another.

        """
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                "The pretrained model is no longer the one this run began with: pin it by pretrained_revision, or "
                "choose another output_dir."
            )


class DiffusionMemoryTrainer(Trainer):
    """Stage `vae` trains an autoencoder, `dit` a transformer on its latents, `tune` that one against memories.

    A pretrained model takes the place of the first two.
    """

    config_class = DiffusionMemoryConfig
    presets = PRESETS
    largest = 512
    config: DiffusionMemoryConfig

    @property
    def stages(self) -> tuple[Stage, ...]:
        """`vae` and `dit`, unless they are given, then `tune`."""
        given = self.config.pretrained or self.config.start_from
        return tuple(self._stage(name) for name in ((TUNE,) if given else (VAE, DIT, TUNE)))

    def _stage(self, name: str) -> Stage:
        epochs, size, lr = (getattr(self.config, f"{name}_{what}") for what in ("epochs", "batch_size", "lr"))
        steps = epochs * max(1, len(self.data) // size)
        return Stage(name, min(steps, self.config.max_steps or steps), size, lr)

    def setup(self) -> dict[str, Any]:
        """Autoencoder, transformer, their optimisers and averages, and the memories."""
        config = self.config
        self._build()
        transformer = for_training(self.transformer, scaled=config.tuning == "difffit")
        self.transformer = transformer.to(self.device).train()
        self.vae.to(self.device)
        self.alphas = self.noise_schedule.alphas_cumprod.to(self.device)
        self.latents: Latents | None = None  # made when they are first needed
        self.learning: str | None = None
        self.trained = {TUNE: self._of(self.transformer, TUNE)}
        tracked = {"average_tune": self._average(TUNE)}
        optimizers = {TUNE: torch.optim.AdamW(self.trained[TUNE], lr=config.tune_lr, weight_decay=0.0)}
        if config.pretrained:
            tracked["tuned"] = self.trained[TUNE]  # the rest of a large model stays as it is: not worth saving
            tracked["base"] = Base(self.model.fingerprint)
        else:
            self.trained |= {VAE: nn.ParameterList(self.vae.parameters()), DIT: self._of(self.transformer, DIT)}
            tracked |= {"vae": self.vae, "transformer": self.transformer, "average_dit": self._average(DIT)}
            optimizers[VAE] = torch.optim.Adam(self.trained[VAE], lr=config.vae_lr)
            optimizers[DIT] = torch.optim.AdamW(self.trained[DIT], lr=config.dit_lr, weight_decay=0.0)
        self.parts = tracked | {f"optimizer_{name}": self.accelerator.prepare(o) for name, o in optimizers.items()}
        if any(config.weights.values()):
            self.parts |= {"real": self._memory(config.real_memory), "generated": self._memory(config.gen_memory)}
        return self.parts

    def _of(self, transformer: nn.Module, stage: str) -> nn.ParameterList:
        """What a stage trains of a transformer."""
        return nn.ParameterList(tuned_parameters(transformer, self.config.tuning if stage == TUNE else "full"))

    def _average(self, stage: str) -> AveragedModel:
        average = AveragedModel(self.trained[stage], multi_avg_fn=get_ema_multi_avg_fn(self.config.ema_decay))
        average.n_averaged.fill_(1)  # it begins with these weights; torch's own begins with those of the first step
        return average

    def _build(self) -> None:
        """The networks and the noise schedule, and the rows of the label table that stand for our classes."""
        config, data = self.config, self.data
        if data.num_classes > NULL_CLASS:
            raise ValueError(f"{data.source} has {data.num_classes} classes; a DiTPipeline takes {NULL_CLASS} at most.")
        if config.pretrained:
            revision, _ = config.base
            model = DiffusionGenerator.from_pretrained(config.pretrained, revision=revision, dtype="float32")
            if model.image_shape != data.shape:
                remedy = f"pass image_size={model.image_shape[-1]}"
                if model.image_shape[0] != data.shape[0]:
                    remedy = "convert the images to its channels, or choose another model"
                raise ValueError(
                    f"{config.pretrained} makes images {model.image_shape}, but those of {data.source} are "
                    f"{data.shape} (channels, height, width): {remedy}."
                )
            chosen = config.classes or data.class_names
            if len(chosen) != data.num_classes:
                raise ValueError(f"{len(chosen)} classes are named for the {data.num_classes} of {data.source}.")
            self.model = model.select(chosen, data.class_names)
            self.transformer, self.vae = self.model.transformer, self.model.vae
            self.noise_schedule, rows = self.model.scheduler, self.model.rows
        else:
            with seeded(config.seed):
                sizes = {"width": config.vae_width, "levels": config.vae_levels, "channels": config.latent_channels}
                self.vae = small_autoencoder(data.shape, **sizes)
                side = data.shape[-1] // 2 ** (config.vae_levels - 1)
                if side % config.patch_size:
                    raise ValueError(f"patch_size {config.patch_size} does not divide the latent's {side} px.")
                sizes = {name: getattr(config, name) for name in ("width", "depth", "heads", "patch_size")}
                self.transformer = small_transformer(config.latent_channels, side, **sizes)
            self.noise_schedule = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
            rows = torch.arange(data.num_classes)
        self.rows = rows.to(self.device)

    def _memory(self, capacity: int) -> ClassMemory:
        transformer, stage = self.transformer.config, self._stage(TUNE)
        by_step = self.config.memory_update == "step"
        return ClassMemory(
            self.data.num_classes,
            transformer.in_channels * transformer.sample_size**2,
            capacity,
            evict=self.config.evict,
            waiting=self._batch_size(stage) if by_step else max(self.data.class_counts),
            device=self.device,
        )

    def taken_over(self) -> dict[str, Any] | None:
        """The end of another run's first stages, if this one starts from there."""
        if not self.config.start_from:
            return None
        check_start(self.config.start_from, self.run.identity, DIT, FIRST_SETTINGS)
        return load_state(stage_file(self.config.start_from, DIT), self.device)

    def begin(self, stage: Stage) -> None:
        """Enter a stage: the last one starts from the average that the one before it made."""
        if stage.name == DIT:
            self.latents = None
        if stage.name != TUNE or self.config.pretrained:
            return
        if self.config.start_from:
            state = self.taken_over()
            for name in FIRST_STATE:
                self.tracked[name].load_state_dict(state[name])
            self.latents = None
        copy(self.trained[DIT], self.parts["average_dit"].module)
        copy(self.parts["average_tune"].module, self.trained[TUNE])

    def step(self, indices: Tensor) -> dict[str, Tensor]:
        """One step of the autoencoder or of the transformer."""
        stage = self.stages[self.at.stage].name
        if stage != self.learning:
            self._freeze_all_but(stage)
        terms = self.autoencode(indices) if stage == VAE else self.denoise(indices, stage)
        return {name: value.detach() for name, value in terms.items()}

    def _freeze_all_but(self, stage: str) -> None:
        """Compute no gradients of weights that this stage leaves as they are."""
        self.transformer.requires_grad_(False)
        for parameter in self.trained[stage]:
            parameter.requires_grad_(True)
        self.learning = stage

    def autoencode(self, indices: Tensor) -> dict[str, Tensor]:
        """Make the autoencoder restore images from latents near the normal distribution."""
        images = to_tanh(self.data.gather(indices)[0])
        side = images.shape[-1] // 2 ** (self.config.vae_levels - 1)
        drawn = self.normal(len(images), (self.config.latent_channels, side, side))
        with self.computing():
            terms = autoencoder_losses(self.vae, images, drawn)
        terms["divergence"] = self.config.kl_weight * terms["divergence"]
        self.update(self.trained[VAE], self.parts["optimizer_vae"], sum(terms.values()))
        return terms

    def denoise(self, indices: Tensor, stage: str) -> dict[str, Tensor]:
        """Make the transformer predict the noise in latents and, through it, latents like and unlike the memories."""
        clean, labels = self.draw(indices)
        steps, noise = self.steps(len(labels)), self.normal(len(labels), clean.shape[1:])
        hidden = self.uniform(len(labels)) < self.config.label_dropout
        alpha = self.alphas[steps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with self.computing():
            given = null_labels(self.rows[labels], hidden)
            output = self.transformer(noisy, timestep=steps, class_labels=given).sample
        predicted, spread = at_least_float32(output).tensor_split((clean.shape[1],), dim=1)
        terms = {"noise": F.mse_loss(predicted, noise)}
        if remembering := stage == TUNE and any(self.config.weights.values()):
            restored = (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
            whole = tuple(self.processes.gathered(part) for part in (restored, clean, labels))
            terms |= self.compare(whole[0], whole[2])
        shares = gradient_shares(terms, predicted) if self.logging and remembering else {}
        if spread.numel():  # a model need not have learned its variance
            terms["variance"] = variance_bound(predicted, spread, clean, noisy, steps, self.alphas)

        self.update(self.trained[stage], self.parts[f"optimizer_{stage}"], sum(terms.values()))
        self.parts[f"average_{stage}"].update_parameters(self.trained[stage])
        if remembering:
            self.remember(*whole)
            if self.logging:
                terms["memory_cosine"] = self.parts["generated"].mean_cosine()
        return terms | {f"share/{name}": share for name, share in shares.items()}

    def compare(self, restored: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The weighted memory terms of predicted clean latents: like the real ones, unlike the generated ones."""
        weights, terms = self.config.weights, {}
        if weights["real"]:
            terms["real"] = weights["real"] * representativeness_loss(*self._seen("real", restored, labels), labels)
        if weights["generated"]:
            seen = self._seen("generated", restored, labels)
            terms["generated"] = weights["generated"] * diversity_loss(*seen, labels)
        return terms

    def _seen(self, memory: str, latents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.parts[memory].compare(latents, labels)

    def remember(self, restored: Tensor, clean: Tensor, labels: Tensor) -> None:
        """Let both memories take in this batch, at once or when the epoch ends."""
        epoch_ends = self.batches.ends(len(labels))
        for memory, latents in ((self.parts["real"], clean), (self.parts["generated"], restored)):
            memory.add(latents, labels)
            if self.config.memory_update == "step" or epoch_ends:
                memory.update()

    # What is drawn, by every process alike for the whole batch, of which each takes its part.

    def draw(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled latents of these rows, from their posterior and half of them mirrored, and their labels."""
        latents = self._encoded()
        rows = indices.to(self.device)
        drawn = self.normal(len(rows), latents.shape)
        scaled = latents.draw(rows, self.uniform(len(rows)), drawn) * self.vae.config.scaling_factor
        return scaled, latents.labels[rows]

    def steps(self, rows: int) -> Tensor:
        """Steps of the noise schedule."""
        shape = (rows * self.processes.count,)
        drawn = torch.randint(len(self.alphas), shape, generator=self.random.device, device=self.device)
        return self.processes.part(drawn)

    def uniform(self, rows: int) -> Tensor:
        """Numbers in [0, 1)."""
        shape = (rows * self.processes.count,)
        return self.processes.part(torch.rand(shape, generator=self.random.device, device=self.device))

    def normal(self, rows: int, shape: tuple[int, ...]) -> Tensor:
        """Normal noise [rows, *shape]."""
        shape = (rows * self.processes.count, *shape)
        return self.processes.part(torch.randn(shape, generator=self.random.device, device=self.device))

    def _encoded(self) -> Latents:
        """The data set's latents; those of an autoencoder from scratch also say how to scale them."""
        if self.latents is None:
            self.latents = Latents(self.vae, self.data, self.config.flip)
            if not self.config.pretrained:
                self.vae.register_to_config(scaling_factor=self.latents.scale)
        return self.latents

    # What comes out.

    def to_generator(self) -> DiffusionGenerator:
        """The averaged transformer in a stock layout, with the autoencoder."""
        self._encoded()
        stage = TUNE if self.at.stage >= len(self.stages) - 1 else DIT
        transformer = deepcopy(self.transformer)
        copy(self._of(transformer, stage), self.parts[f"average_{stage}"].module)
        names, rows = self.data.class_names, tuple(self.rows.tolist())
        return DiffusionGenerator(
            transformer=for_saving(transformer),
            vae=deepcopy(self.vae),
            scheduler=self.noise_schedule,
            class_names=names,
            class_rows=rows,
            known_classes=self.model.config.known_classes if self.config.pretrained else None,
            mean=self.data.mean,
            std=self.data.std,
            training=self._provenance(),
            sampling=self.config.sampling.identity(),
        )

    def _provenance(self) -> dict[str, Any]:
        """Settings, data and licences that made the generator; models and runs by what they are, not by their place."""
        made = start_settings(self.config.identity(), self.config.start_from, FIRST_LENGTH)
        licences = self.data.license
        if self.config.pretrained:
            made["pretrained"] = self.model.origin or f"a local model ({self.model.fingerprint[:12]})"
            _, base = self.config.base
            licences = union(licences, base or self.model.license)
            licences = licences if len(licences) > 1 else next(iter(licences), None)
        return made | {"source": self.data.source, "license": licences}

    def picture(self) -> Any:
        """Samples; while the autoencoder is trained, images and under them what it makes of them."""
        if self.stages[min(self.at.stage, len(self.stages) - 1)].name != VAE:
            return super().picture()
        shown = self.data.gather(torch.arange(min(10, len(self.data)), device=self.data.images.device))[0]
        with torch.no_grad():
            restored = tanh_to_uint8(self.vae(to_tanh(shown)).sample)
        return image_grid(torch.cat([shown, restored]), len(shown), ("real", "restored"))


@torch.no_grad()
def copy(parameters: nn.ParameterList, values: nn.ParameterList) -> None:
    """Give parameters the values of others."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
