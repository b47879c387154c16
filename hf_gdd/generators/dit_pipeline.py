"""Read and check the parts of a stock `DiTPipeline` folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
from diffusers.schedulers import KarrasDiffusionSchedulers

from hf_gdd.hub.files import CONFIG_NAME, PIPELINE_NAME, SCHEDULER_FILE, LoadError, check_files, check_loaded

NULL_CLASS = 1000  # the class that a stock DiTPipeline takes for "no label", whatever the number of classes
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MAX_LATENT, MAX_WIDTH, MAX_DEPTH, MAX_STEPS = 256, 8192, 128, 10_000
SCHEDULE_FIELDS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
# Names in `DiffusionSampling` of a stock pipeline's scheduler. Of any other only the noise schedule is used.
NAMES = {"DDPMScheduler": "ddpm", "DPMSolverMultistepScheduler": "dpm++"}


def noise_schedule(config: Mapping[str, Any]) -> DDIMScheduler:
    """Return a scheduler with the noise schedule of a config, and nothing else of it.

    Raises:
        ValueError: the model does not predict the noise, or the schedule is invalid.

    """
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"The model predicts {config['prediction_type']!r}, not the noise ('epsilon').")
    if config.get("rescale_betas_zero_snr"):
        raise ValueError("The schedule is rescaled to end in pure noise, from which noise cannot be predicted.")
    fields = {name: config[name] for name in SCHEDULE_FIELDS if config.get(name) is not None}
    steps = fields.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 2 <= steps <= MAX_STEPS:
        raise ValueError(f"num_train_timesteps is {steps!r}; it must be a whole number in 2..{MAX_STEPS:,}.")
    return DDIMScheduler(**fields, clip_sample=False)


def read_pipeline(folder: Path, dtype: torch.dtype | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the index of a pipeline and its parts: transformer, vae, scheduler.

    Raises:
        LoadError: a part is absent, damaged, of another class, or of an absurd size.
        ValueError: a part is of the right class but cannot be used.

    """
    index = _read_index(folder)
    path = folder / SCHEDULER_FILE
    try:
        schedule = noise_schedule(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, NotImplementedError, RecursionError) as error:
        raise LoadError(f"{path} holds no noise schedule ({error}). Fetch or save it again.") from error
    return index, {
        "transformer": _read_part(DiTTransformer2DModel, folder / "transformer", dtype),
        "vae": _read_part(AutoencoderKL, folder / "vae", dtype),
        "scheduler": schedule,
    }


def _read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a pipeline and check the classes of its parts.

    Raises:
        LoadError: it is not a DiTPipeline, or a part is of another class.

    """
    path = folder / PIPELINE_NAME
    allowed = {"transformer": {"DiTTransformer2DModel"}, "vae": {"AutoencoderKL"}}
    allowed["scheduler"] = {member.name for member in KarrasDiffusionSchedulers}
    try:
        index = json.loads(path.read_text())
        names = {part: tuple(index[part]) for part in allowed}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{path} is not the index of a DiTPipeline ({error!r}). Fetch or save it again.") from error
    for part, (library, name) in names.items():
        if library != "diffusers" or name not in allowed[part]:
            raise LoadError(
                f"{path} asks for {library}.{name} as {part}; a diffusion generator needs one of "
                f"{', '.join(sorted(allowed[part]))} from diffusers. Is it another kind of pipeline?"
            )
    return index


def _read_part(part_class: type, folder: Path, dtype: torch.dtype | None) -> Any:
    check_files(folder)
    _check_sizes(folder / CONFIG_NAME, part_class.__name__)
    part, info = part_class.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, output_loading_info=True, local_files_only=True
    )
    check_loaded(part, info, folder)
    return part


def _check_sizes(path: Path, name: str) -> None:
    """Refuse a config of another class or of absurd sizes before a model is built."""
    try:
        config = json.loads(path.read_text())
        class_name = config.get("_class_name")
        sizes = {
            MAX_LATENT: [config.get("sample_size", 32), config.get("patch_size", 2), config.get("latent_channels", 4)],
            MAX_DEPTH: [config.get("num_layers", 1), config.get("layers_per_block", 1), config.get("in_channels", 1)],
            MAX_WIDTH: [
                config.get("num_attention_heads", 1) * config.get("attention_head_dim", 1),
                *config.get("block_out_channels", []),
                config.get("num_embeds_ada_norm", 1),
            ],
        }
        if name == "AutoencoderKL":
            sizes[MAX_LATENT] = sizes[MAX_LATENT][2:]
            sizes[MAX_DEPTH].append(len(config["block_out_channels"]) * 8)
        absurd = [size for limit, asked in sizes.items() for size in asked if not 1 <= size <= limit]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{path} is not the config of a {name} ({error!r}). Fetch or save it again.") from error
    if class_name != name:
        raise LoadError(f"{path} describes a {class_name!r}, not a {name}. Fetch or save it again.")
    if "quantization_config" in config:
        raise LoadError(f"{path} asks for a quantizer, which no generator of this library has. Is it another's?")
    if absurd:
        raise LoadError(f"{path} asks for a size of {absurd[0]:,}, which no {name} for images has.")


def stock_record(index: Mapping[str, Any], vae: AutoencoderKL) -> dict[str, Any]:
    """Return the record of a stock pipeline, with the statistics of ImageNet."""
    known = {str(row): name for row, name in (index.get("id2label") or {}).items()}
    known = known or {str(row): f"class {row}" for row in range(NULL_CLASS)}
    rows = sorted(map(int, known))
    statistics = IMAGENET if vae.config.out_channels == 3 else {}
    return {
        "class_names": _unique([known[str(row)] for row in rows], rows),
        "class_rows": tuple(rows),
        "known_classes": known,
        "sampling": {"scheduler": NAMES.get(index["scheduler"][1], "ddim")},
        **statistics,
    }


def _unique(names: list[str], rows: list[int]) -> tuple[str, ...]:
    """Number the classes that share a name, as some of ImageNet do."""
    return tuple(name if names.count(name) == 1 else f"{name} ({row})" for name, row in zip(names, rows, strict=True))
