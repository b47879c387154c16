"""The diffusion generator: a stock pipeline in and out, exact steps, ImageNet's classes, partial tuning."""

import json
import shutil
from copy import deepcopy

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler
from kinds import NAMES, diffusion, parts

from hf_gdd import AutoGenerator, DiffusionGenerator, DiffusionSampling
from hf_gdd.data.imagenet import SUBSETS, class_rows_of, synsets
from hf_gdd.generators.denoising import ancestral_step
from hf_gdd.generators.dit_pipeline import NULL_CLASS
from hf_gdd.generators.noise import noise
from hf_gdd.hub.loading import LoadError
from hf_gdd.methods.diffusion_memory.dit import DiffFitLinear, prepare_for_training, to_stock_layout, tuned_parameters

LABELS, INDICES = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 0, 1])


def stock_folder(folder, names=None, **changes):
    """What diffusers itself writes of the same parts, with nothing of ours in it."""
    pipeline = DiTPipeline(**parts(shape=(3, 16, 16), **changes))
    if names is not None:
        pipeline.register_to_config(id2label={str(row): name for row, name in names.items()})
    pipeline.save_pretrained(folder)
    return folder


# ---- the stock pipeline


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
def test_the_stock_pipeline_with_default_arguments_makes_our_images(tmp_path, monkeypatch, scheduler):
    generator = diffusion(sampling={"scheduler": scheduler})
    assert generator.sampling == DiffusionSampling(4.0, 50, scheduler)  # the pipeline's own defaults
    generator.save_pretrained(tmp_path)
    pipeline = DiTPipeline.from_pretrained(tmp_path)
    drawn = noise(7, LABELS, INDICES, (2, 4, 4))
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **options: drawn)
    asked = pipeline.get_label_ids([NAMES[label] for label in LABELS])
    theirs = pipeline(asked, output_type="pt").images
    ours = generator.make(LABELS, INDICES, 7, generator.sampling)
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=0)
    assert theirs.std() > 0.05


def test_a_stock_repo_loads_with_all_its_classes(tmp_path):
    stock_folder(tmp_path, {0: "tench, Tinca tinca", 3: "crane", 7: "crane", 9: "owl"})
    generator = AutoGenerator.from_pretrained(tmp_path)
    assert generator.class_names == ("tench, Tinca tinca", "crane (3)", "crane (7)", "owl")
    assert generator.config.class_rows == (0, 3, 7, 9)
    assert generator.sampling == DiffusionSampling(4.0, 50, "ddim")
    assert generator.method == "untrained"
    (image,) = generator.sample(torch.tensor([1]), torch.tensor([0]), sampling=DiffusionSampling(num_inference_steps=2))
    assert DiffusionGenerator.from_pretrained(tmp_path).select(["OWL", "Tinca tinca"]).config.class_rows == (9, 0)
    assert image.shape == (3, 16, 16)


def test_a_stock_repo_without_names_numbers_its_classes(tmp_path):
    generator = AutoGenerator.from_pretrained(stock_folder(tmp_path))
    assert generator.num_classes == 1000
    assert generator.class_names[:2] == ("class 0", "class 1")


def test_selected_classes_are_the_models_own(tmp_path):
    """Fishes are the model's class 5 whatever the user's order, and keep their pixels' class through a save."""
    names = {row: f"name {row}, alias {row}" for row in range(1000)}
    whole = AutoGenerator.from_pretrained(stock_folder(tmp_path / "stock", names))
    chosen = whole.select([synsets()[217], "alias 5", "name_0"], ("dog", "fish", "tench"))
    assert chosen.config.class_rows == (217, 5, 0)
    chosen.save_pretrained(tmp_path / "chosen")
    again = AutoGenerator.from_pretrained(tmp_path / "chosen")
    assert again.class_names == ("dog", "fish", "tench")
    assert DiTPipeline.from_pretrained(tmp_path / "chosen").get_label_ids(["alias 5"]) == [5]
    few = DiffusionSampling(2.0, 2, "ddim")
    rows = [
        generator.make(torch.tensor([label]), torch.tensor([0]), 0, few)
        for generator, label in ((again, 1), (whole, 5))
    ]
    assert not torch.equal(*rows)  # noise is of the label; the condition is of the row
    torch.testing.assert_close(again.rows, torch.tensor([217, 5, 0]))


# ---- ImageNet


def test_subsets_are_the_published_classes():
    known = dict(enumerate(f"name {row}" for row in range(1000)))
    assert class_rows_of(SUBSETS["imagenette"], known) == (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
    assert class_rows_of(SUBSETS["imagewoof"], known) == (193, 182, 258, 162, 155, 167, 159, 273, 207, 229)
    assert class_rows_of(SUBSETS["imageidc"], known) == (452, 64, 374, 236, 993, 176, 882, 904, 503, 74)
    assert len(set(synsets())) == 1000


@pytest.mark.parametrize(
    ("wanted", "words"), [("unicorn", "none of"), ("crane", "2 classes"), ("n01440764", "none of")]
)
def test_classes_that_are_not_one_are_refused(wanted, words):
    with pytest.raises(ValueError, match=words):
        class_rows_of([wanted], {0: "tench", 1: "crane", 2: "crane"})


# ---- steps


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("steps", [1000, 10])
def test_ancestral_steps_are_those_of_diffusers(monkeypatch, learned, steps):
    rng = torch.Generator().manual_seed(0)
    latents, pred_noise, model_var, step_noise = (torch.randn(2, 3, 4, 4, generator=rng) for _ in range(4))
    scheduler = DDPMScheduler(
        clip_sample=False, timestep_spacing="linspace", variance_type="learned_range" if learned else "fixed_small"
    )
    scheduler.set_timesteps(steps)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *sizes, **options: step_noise)
    times = [*scheduler.timesteps.tolist(), -1]
    for place in (0, 4, steps - 2, steps - 1):
        output = torch.cat([pred_noise, model_var], 1) if learned else pred_noise
        theirs = scheduler.step(output, times[place], latents).prev_sample
        given = (pred_noise, model_var if learned else None, times[place], times[place + 1], latents, step_noise)
        torch.testing.assert_close(ancestral_step(scheduler.alphas_cumprod, *given), theirs, atol=1e-4, rtol=1e-4)


def test_guidance_of_one_asks_the_model_once(monkeypatch):
    generator, sizes = diffusion(), []
    forward = generator.transformer.forward
    monkeypatch.setattr(generator.transformer, "forward", lambda x, **k: sizes.append(len(x)) or forward(x, **k))
    generator.make(LABELS, INDICES, 0, DiffusionSampling(1.0, 2, "ddim"))
    assert sizes == [4, 4]
    generator.make(LABELS, INDICES, 0, DiffusionSampling(1.5, 1, "ddim"))
    assert sizes[-1] == 8


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("guidance_scale is 0.5", {"guidance_scale": 0.5}),
        ("num_inference_steps is 0", {"num_inference_steps": 0}),
        ("num_inference_steps is 2.5", {"num_inference_steps": 2.5}),
        ("Unknown scheduler", {"scheduler": "euler"}),
    ],
)
def test_impossible_sampling_is_refused(words, fields):
    with pytest.raises(ValueError, match=words):
        DiffusionSampling(**fields)


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "record"),
    [
        ("different strings", {"names": ("a", "a")}),
        ("2 to 10,000", {"names": ("a",)}),
        ("row of its own", {"class_rows": (0, 1, 1000)}),
        ("row of its own", {"class_rows": (0, 1)}),
        ("row of its own", {"class_rows": (0, 1, 1)}),
        ("finite value per channel", {"mean": (0.1, 0.2)}),
        ("must be a mapping", {"training": [1]}),
        ("The parts make images", {"image_shape": (1, 16, 16)}),
    ],
)
def test_impossible_records_are_refused(words, record):
    with pytest.raises(ValueError, match=words):
        diffusion(**record)


@pytest.fixture
def folder(tmp_path):
    diffusion().save_pretrained(tmp_path / "generator")
    return tmp_path / "generator"


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("words", "file", "fields"),
    [
        ("PixArtTransformer2DModel", "model_index.json", {"transformer": ["diffusers", "PixArtTransformer2DModel"]}),
        ("evil.Model", "model_index.json", {"vae": ["evil", "Model"]}),
        ("not the index", "model_index.json", {"scheduler": 3}),
        ("not a AutoencoderKL", "vae/config.json", {"_class_name": "VQModel"}),
        ("size of 100,000,000", "transformer/config.json", {"num_layers": 100_000_000}),
        ("size of 100,000", "vae/config.json", {"block_out_channels": [100_000, 8]}),
        ("size of 5,000", "transformer/config.json", {"sample_size": 5000}),
        ("quantizer", "transformer/config.json", {"quantization_config": {"load_in_8bit": True}}),
        ("latents of the autoencoder", "transformer/config.json", {"in_channels": 3}),
        ("num_train_timesteps is 'many'", "scheduler/scheduler_config.json", {"num_train_timesteps": "many"}),
        ("num_train_timesteps is 1000000", "scheduler/scheduler_config.json", {"num_train_timesteps": 1_000_000}),
        ("not the noise", "scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
        ("fingerprint", "transformer/config.json", {"num_attention_heads": 4, "attention_head_dim": 4}),
        ("fingerprint", "vae/config.json", {"norm_num_groups": 4}),
        ("fingerprint", "vae/config.json", {"scaling_factor": 0.5}),
        ("fingerprint", "scheduler/scheduler_config.json", {"beta_end": 0.03}),
    ],
)
def test_foreign_parts_are_refused(folder, words, file, fields):
    edit(folder / file, **fields)
    with pytest.raises(LoadError, match=None if words == "latents of the autoencoder" else words):
        AutoGenerator.from_pretrained(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler", "model_index.json"])
def test_a_missing_part_is_refused(folder, part):
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LoadError, match=part.split(".")[0]):
        AutoGenerator.from_pretrained(folder)


def test_other_pipelines_are_refused(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(LoadError, match="StableDiffusionPipeline"):
        AutoGenerator.from_pretrained(tmp_path)


def test_a_label_table_of_another_size_is_refused(tmp_path):
    made = parts()
    config = {**made["transformer"].config, "num_embeds_ada_norm": 3}
    with pytest.raises(ValueError, match="class 1000 for no label"):
        DiffusionGenerator(**made | {"transformer": DiTTransformer2DModel.from_config(config)}, class_names=NAMES)


# ---- partial tuning


def published(depth=28):
    with torch.device("meta"):
        return DiTTransformer2DModel(out_channels=8, num_layers=depth)


def test_partial_tuning_trains_the_published_parameters():
    """Biases, label table and factors of the public Minimax code; 675 million in all."""
    transformer = prepare_for_training(published(), scaled=True)
    counts = {"gammas": 0, "embedding_table": 0, "bias": 0}
    for parameter, name in ((p, n) for n, p in transformer.named_parameters()):
        kind = next((kind for kind in counts if kind in name), None)
        if kind:
            counts[kind] += parameter.numel()
    assert counts == {"gammas": 96_768, "embedding_table": 1_153_152, "bias": 489_632}
    assert sum(p.numel() for p in tuned_parameters(transformer, "difffit")) == sum(counts.values())
    whole = sum(p.numel() for p in tuned_parameters(transformer, "full"))
    assert whole == sum(p.numel() for p in transformer.parameters()) - 96_768
    assert round((whole + transformer.pos_embed.pos_embed.numel()) / 1e6, 1) == 675.1


def forward(transformer, labels=LABELS):
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return transformer(x, timestep=torch.tensor([0, 10, 500, 999]), class_labels=labels).sample


def test_what_is_saved_computes_what_was_trained():
    transformer = parts()["transformer"].eval()  # in train mode diffusers' own model drops labels
    one, other = (block.norm1.emb for block in transformer.transformer_blocks)
    other.load_state_dict(one.state_dict())  # as in a published model
    before = forward(transformer)
    trained = prepare_for_training(transformer, scaled=True).train()
    torch.testing.assert_close(forward(trained), before)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    saved = to_stock_layout(deepcopy(trained))
    torch.testing.assert_close(forward(saved), forward(trained), atol=1e-5, rtol=1e-5)
    assert (forward(saved) - before).abs().max() > 0.1
    assert not any(isinstance(module, DiffFitLinear) for module in saved.modules())
    assert saved.state_dict().keys() == parts()["transformer"].state_dict().keys()
    embedders = [block.norm1.emb for block in saved.transformer_blocks]
    assert embedders[0].class_embedder is not embedders[1].class_embedder


def test_training_drops_no_label_of_its_own():
    trained = prepare_for_training(parts()["transformer"], scaled=False).train()
    outputs = [forward(trained) for _ in range(8)]
    assert all(torch.equal(outputs[0], other) for other in outputs)
    hidden = torch.full_like(LABELS, NULL_CLASS)
    assert not torch.allclose(forward(trained, hidden), outputs[0])


def test_a_multistep_scheduler_is_kept(tmp_path):
    generator = diffusion(sampling={"scheduler": "dpm++", "num_inference_steps": 3})
    generator.save_pretrained(tmp_path)
    assert type(DiTPipeline.from_pretrained(tmp_path).scheduler) is DPMSolverMultistepScheduler
    assert AutoGenerator.from_pretrained(tmp_path).fingerprint == generator.fingerprint


@pytest.mark.parametrize("saved", ["ddim", "ddpm", "dpm++"])
def test_what_a_scheduler_was_saved_as_changes_no_other(tmp_path, saved):
    """Else two generators of one fingerprint, sampled alike, would make other images."""
    generator = diffusion(sampling={"scheduler": saved, "num_inference_steps": 4})
    generator.save_pretrained(tmp_path)
    loaded = AutoGenerator.from_pretrained(tmp_path)
    edit(tmp_path / "scheduler/scheduler_config.json", use_karras_sigmas=True, timestep_spacing="trailing")
    edited = AutoGenerator.from_pretrained(tmp_path)
    for scheduler in ("ddim", "ddpm", "dpm++"):
        sampling = DiffusionSampling(2.0, 4, scheduler)
        images = [each.sample(LABELS, INDICES, sampling=sampling) for each in (generator, loaded, edited)]
        assert torch.equal(images[0], images[1])
        assert torch.equal(images[0], images[2])


def test_parts_of_two_dtypes_are_refused():
    made = parts()
    with pytest.raises(ValueError, match="cast one of them"):
        DiffusionGenerator(**made | {"vae": made["vae"].to(torch.bfloat16)}, class_names=NAMES)


def test_reconstruction_keeps_shape_and_bytes():
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    restored = diffusion().reconstruct(images)
    assert restored.shape == images.shape
    assert restored.dtype == torch.uint8
