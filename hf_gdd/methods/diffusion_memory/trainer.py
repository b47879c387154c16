"""Diffusion with self-adaptive memory (arXiv 2505.19469), Minimax and plain DiT."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hf_gdd.data.pixels import tanh_to_uint8, to_tanh
from hf_gdd.generators.base import Generator
from hf_gdd.generators.diffusion import DiffusionGenerator
from hf_gdd.generators.dit_pipeline import NULL_CLASS
from hf_gdd.hub.cards import merge_licenses
from hf_gdd.methods.diffusion_memory.autoencoder import Latents, autoencoder_losses
from hf_gdd.methods.diffusion_memory.class_memory import ClassMemory
from hf_gdd.methods.diffusion_memory.components import PretrainedBase, build_components, load_components
from hf_gdd.methods.diffusion_memory.config import PRESETS, DiffusionMemoryConfig
from hf_gdd.methods.diffusion_memory.dit import copy_parameters, prepare_for_training, to_stock_layout, tuned_parameters
from hf_gdd.methods.diffusion_memory.losses import diversity_loss, representativeness_loss, variance_bound
from hf_gdd.methods.diffusion_memory.selection import attach_codes
from hf_gdd.training.config import Stage
from hf_gdd.training.labels import attach_teacher
from hf_gdd.training.metrics_log import gradient_shares
from hf_gdd.training.run_folder import stage_file
from hf_gdd.training.start_point import StartPoint
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.device import at_least_float32
from hf_gdd.utils.plotting import image_grid

VAE, DIT, TUNE, CODES = "vae", "dit", "tune", "codes"
# Settings that shape the first stages: a run may start from another's only if these are equal.
FIRST_SETTINGS = ("seed", "vae_width", "vae_levels", "latent_channels", "kl_weight", "width", "depth", "heads")
FIRST_SETTINGS += ("patch_size", "flip", "label_dropout", "ema_decay", "tuning")
FIRST_PARTS = frozenset({"vae", "transformer", "average_dit", "random", "batches"})
FIRST_LENGTH = tuple(f"{stage}_{name}" for stage in (VAE, DIT) for name in ("epochs", "batch_size", "lr"))


class DiffusionMemoryTrainer(Trainer):
    """Train a diffusion model, and tune it against per-class memories.

    Stage `vae` trains an autoencoder, `dit` a transformer on its latents, and `tune` this transformer against memories.
    A pretrained model replaces the first two stages. At the end draws are chosen for small sets, see `choose_draws`.

    Example:
        trainer = DiffusionMemoryTrainer("digits", preset="tiny", output_dir="runs/digits-memory")
        generator = trainer.fit()

    """

    config_class = DiffusionMemoryConfig
    presets = PRESETS
    max_image_size = 512
    config: DiffusionMemoryConfig

    @property
    def stages(self) -> tuple[Stage, ...]:
        """`vae` and `dit`, unless a trained model replaces them, then `tune`."""
        trained = self.config.pretrained or self.config.start_from
        return tuple(map(self.epoch_stage, (TUNE,) if trained else (VAE, DIT, TUNE)))

    @property
    def start_point(self) -> StartPoint | None:
        """The run whose stages `vae` and `dit` replace this one's, or None."""
        folder = self.config.start_from
        return StartPoint(folder, DIT, FIRST_SETTINGS, FIRST_PARTS, FIRST_LENGTH) if folder else None

    def setup(self) -> dict[str, Any]:
        """Build autoencoder, transformer, their optimizers and averages, and the memories."""
        config, device = self.config, self.device
        self.components = components = (load_components if config.pretrained else build_components)(config, self.data)
        transformer = prepare_for_training(components.transformer, scaled=config.tuning == "difffit")
        self.transformer, self.vae = transformer.to(device).train(), components.vae.to(device)
        self.alphas, self.rows = components.schedule.alphas_cumprod.to(device), components.rows.to(device)
        self.latents: Latents | None = None  # encoded when they are first needed
        self.learning: str | None = None
        self.trained = {TUNE: self._trained_parameters(self.transformer, TUNE)}
        tracked = {"average_tune": self._average(TUNE)}
        optimizers = {TUNE: torch.optim.AdamW(self.trained[TUNE], lr=config.tune_lr, weight_decay=0.0)}
        if config.pretrained:
            tracked["tuned"] = self.trained[TUNE]  # the rest of a large model stays as it is: not worth saving
            tracked["base"] = PretrainedBase(components.pretrained.fingerprint)
        else:
            self.trained[VAE] = nn.ParameterList(self.vae.parameters())
            self.trained[DIT] = self._trained_parameters(self.transformer, DIT)
            tracked |= {"vae": self.vae, "transformer": self.transformer, "average_dit": self._average(DIT)}
            optimizers[VAE] = torch.optim.Adam(self.trained[VAE], lr=config.vae_lr)
            optimizers[DIT] = torch.optim.AdamW(self.trained[DIT], lr=config.dit_lr, weight_decay=0.0)
        self.parts = tracked | {f"optimizer_{name}": self.accelerator.prepare(o) for name, o in optimizers.items()}
        if any(config.weights.values()):
            self.parts |= {"real": self._memory(config.real_memory), "generated": self._memory(config.gen_memory)}
        return self.parts

    def _trained_parameters(self, transformer: nn.Module, stage: str) -> nn.ParameterList:
        """Return the parameters of a transformer that a stage trains."""
        return nn.ParameterList(tuned_parameters(transformer, self.config.tuning if stage == TUNE else "full"))

    def _average(self, stage: str) -> AveragedModel:
        average = AveragedModel(self.trained[stage], multi_avg_fn=get_ema_multi_avg_fn(self.config.ema_decay))
        average.n_averaged.fill_(1)  # start from these weights; torch would start from those after the first step
        return average

    def _memory(self, capacity: int) -> ClassMemory:
        transformer, stage = self.transformer.config, self.epoch_stage(TUNE)
        by_step = self.config.memory_update == "step"
        return ClassMemory(
            self.data.num_classes,
            transformer.in_channels * transformer.sample_size**2,
            capacity,
            evict=self.config.evict,
            waiting=self._batch_size(stage) if by_step else max(self.data.class_counts),
            device=self.device,
        )

    def begin(self, stage: Stage) -> None:
        """Enter a stage; the last one starts from the average that the one before left."""
        if stage.name == DIT:
            self.latents = None  # the autoencoder has changed
        if stage.name == TUNE and not self.config.pretrained:
            copy_parameters(self.trained[DIT], self.parts["average_dit"].module)
            copy_parameters(self.parts["average_tune"].module, self.trained[TUNE])

    def step(self, indices: Tensor) -> dict[str, Tensor]:
        """Take one step of the autoencoder or of the transformer."""
        stage = self.stage.name
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
        """Train the autoencoder to restore images from nearly normal latents."""
        images = to_tanh(self.data.gather(indices)[0])
        side = images.shape[-1] // 2 ** (self.config.vae_levels - 1)
        noise = self.normal(len(images), self.config.latent_channels, side, side)
        with self.autocast():
            terms = autoencoder_losses(self.vae, images, noise)
        terms["divergence"] = self.config.kl_weight * terms["divergence"]
        self.update(self.trained[VAE], self.parts["optimizer_vae"], sum(terms.values()))
        return terms

    def denoise(self, indices: Tensor, stage: str) -> dict[str, Tensor]:
        """Take one step of the transformer.

        It learns to predict noise and, in stage `tune`, latents that are like real and unlike generated ones.
        """
        clean, labels = self.sample_latents(indices)
        t, noise = self.integers(len(self.alphas), len(labels)), self.normal(len(labels), *clean.shape[1:])
        dropped = self.uniform(len(labels)) < self.config.label_dropout
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with self.autocast():
            class_labels = self.rows[labels].masked_fill(dropped, NULL_CLASS)
            output = self.transformer(noisy, timestep=t, class_labels=class_labels).sample
        pred_noise, model_var = at_least_float32(output).tensor_split((clean.shape[1],), dim=1)
        terms = {"noise": F.mse_loss(pred_noise, noise)}
        if remembering := stage == TUNE and any(self.config.weights.values()):
            pred_x0 = (noisy - (1 - alpha).sqrt() * pred_noise) / alpha.sqrt()
            whole_x0, whole_clean, whole_labels = map(self.processes.gather, (pred_x0, clean, labels))
            terms |= self.compare(whole_x0, whole_labels)
        shares = gradient_shares(terms, pred_noise) if self.log_this_step and remembering else {}
        if model_var.numel():  # a model need not have learned its variance
            terms["variance"] = variance_bound(pred_noise, model_var, clean, noisy, t, self.alphas)

        self.update(self.trained[stage], self.parts[f"optimizer_{stage}"], sum(terms.values()))
        self.parts[f"average_{stage}"].update_parameters(self.trained[stage])
        if remembering:
            self.remember(whole_x0, whole_clean, whole_labels)
            if self.log_this_step:
                terms["memory_cosine"] = self.parts["generated"].mean_cosine()
        return terms | {f"share/{name}": share for name, share in shares.items()}

    def compare(self, pred_x0: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted memory terms of clean latents [B, c, h, w] as predicted."""
        weights, terms = self.config.weights, {}
        for name, loss in (("real", representativeness_loss), ("generated", diversity_loss)):
            if weights[name]:
                terms[name] = weights[name] * loss(*self.parts[name].compare(pred_x0, labels), labels)
        return terms

    def remember(self, pred_x0: Tensor, clean: Tensor, labels: Tensor) -> None:
        """Add this batch to both memories, at once or when the epoch ends."""
        epoch_ends = self.batches.ends(len(labels))
        for memory, latents in ((self.parts["real"], clean), (self.parts["generated"], pred_x0)):
            memory.add(latents, labels)
            if self.config.memory_update == "step" or epoch_ends:
                memory.update()

    def sample_latents(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Draw scaled latents [B, c, h, w] of these rows; return their labels as well."""
        latents = self._encoded()
        rows = indices.to(self.device)
        noise = self.normal(len(rows), *latents.shape)
        scaled = latents.sample(rows, self.uniform(len(rows)), noise) * self.vae.config.scaling_factor
        return scaled, latents.labels[rows]

    def _encoded(self) -> Latents:
        """Return the data set's latents; encode them and set their scale if necessary."""
        if self.latents is None:
            self.latents = Latents(self.vae, self.data, self.config.flip)
            if not self.config.pretrained:
                self.vae.register_to_config(scaling_factor=self.latents.scale)
        return self.latents

    def finish(self, generator: Generator) -> Generator:
        """Attach chosen draws and the teacher, if the settings ask for them."""
        attach_codes(generator, self.config, self.data, self.processes, stage_file(self.run.path, CODES))
        attach_teacher(generator, self.config, self.data, self.processes)
        return generator

    def to_generator(self) -> DiffusionGenerator:
        """Return the averaged transformer in the stock layout, with the autoencoder."""
        self._encoded()
        stage = TUNE if self.stage is None or self.stage.name == TUNE else DIT
        transformer = deepcopy(self.transformer)
        copy_parameters(self._trained_parameters(transformer, stage), self.parts[f"average_{stage}"].module)
        names, rows = self.data.class_names, tuple(self.rows.tolist())
        return DiffusionGenerator(
            transformer=to_stock_layout(transformer),
            vae=deepcopy(self.vae),
            scheduler=self.components.schedule,
            class_names=names,
            class_rows=rows,
            known_classes=self.components.pretrained.config.known_classes if self.config.pretrained else None,
            mean=self.data.mean,
            std=self.data.std,
            training=self.training_record(),
            sampling=self.config.sampling.identity(),
        )

    def training_record(self) -> dict[str, Any]:
        """Return the training record, with the base model's commit and license."""
        record = super().training_record()
        if not self.config.pretrained:
            return record
        model = self.components.pretrained
        record["pretrained"] = model.origin or f"a local model ({model.fingerprint[:12]})"
        _, base_license = self.config.base
        return record | {"license": merge_licenses(self.data.license, base_license or model.license)}

    def picture(self) -> Any:
        """Return samples; in stage `vae` real images above their reconstructions."""
        if self.stage is None or self.stage.name != VAE:
            return super().picture()
        shown = self.data.gather(torch.arange(min(10, len(self.data)), device=self.data.images.device))[0]
        with torch.no_grad():
            restored = tanh_to_uint8(self.vae(to_tanh(shown)).sample)
        return image_grid(torch.cat([shown, restored]), len(shown), ("real", "restored"))
