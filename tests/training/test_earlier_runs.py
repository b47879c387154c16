"""Runs that version 0.1.0 began (its settings had other names, and `auto`) are resumed; equal bits are not promised."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

from hf_gdd import AutoGenerator, DiffusionMemoryConfig, DiffusionMemoryTrainer, GlobalLocalTrainer
from hf_gdd.training.run_folder import read_run
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.io import load_state

EARLIER = Path(__file__).parent / "earlier_runs"
SHARED = {"preset": "tiny", "checkpoint_every": 5, "log_every": 2}
GAN = SHARED | {"width": 2, "noise_dim": 8, "max_steps": 4, "pool": ("convnet1",), "gan_epochs": 1, "match_epochs": 1}
GAN |= {"codes_ipc": 0, "teacher_network": None}
DIFFUSION = SHARED | {"width": 4, "depth": 1, "heads": 1, "vae_width": 4, "max_steps": 3, "real_memory": 2}
DIFFUSION |= {"codes_ipc": 0, "teacher_network": None}
DIFFUSION |= {"gen_memory": 2, "tune_batch_size": 8, "guidance_scale": 1.5, "num_inference_steps": 3}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(Trainer, "save_pictures", lambda self: None)


@pytest.fixture
def earlier(tmp_path):
    def copy(name):
        return shutil.copytree(EARLIER / name, tmp_path / name)

    return copy


@pytest.mark.parametrize(
    ("name", "trainer_class", "settings", "begun", "steps"),
    [("gan", GlobalLocalTrainer, GAN, 6, 8), ("diffusion", DiffusionMemoryTrainer, DIFFUSION, 8, 9)],
)
def test_an_earlier_run_is_resumed(earlier, name, trainer_class, settings, begun, steps):
    folder = earlier(name)
    (checkpoint,) = (folder / "checkpoints").iterdir()
    before, seen = load_state(checkpoint), []
    trainer = trainer_class("digits", output_dir=folder, **settings)
    original = trainer.step

    def step(indices):
        if not seen:
            assert torch.equal(trainer.state_dict()["random"]["device"], before["random"]["device"])
            for part in before.keys() & {"generator", "discriminator", "transformer", "vae"}:
                now = trainer.state_dict()[part]
                assert all(torch.equal(now[key], value) for key, value in before[part].items())
        seen.append(trainer.state.global_step)
        return original(indices)

    trainer.step = step
    generator = trainer.fit()
    assert seen == list(range(begun, steps))
    assert [record["step"] for record in trainer.run.records()][-1] == steps
    assert AutoGenerator.from_pretrained(folder / "generator").fingerprint == generator.fingerprint


def test_an_earlier_run_goes_on_to_stages_that_came_later(earlier):
    """Its settings and checkpoints know nothing of codes and teachers."""
    folder = earlier("gan")
    later = {"codes_ipc": 2, "codes_steps": 3, "teacher_network": "convnet1", "teacher_epochs": 1}
    generator = GlobalLocalTrainer("digits", output_dir=folder, **GAN | later).fit()
    assert (generator.distilled_ipc, generator.teacher.config.network) == (2, "convnet1")
    assert read_run(folder)["config"]["codes_ipc"] == 2
    with pytest.raises(ValueError, match=r"codes_ipc \(now 3, there 2\)"):
        GlobalLocalTrainer("digits", output_dir=folder, **GAN | later | {"codes_ipc": 3}).fit()


def test_an_earlier_run_ends_with_chosen_draws(earlier):
    """Its settings know nothing of them."""
    later = {"codes_ipc": 2, "codes_candidates": 4, "codes_networks": 1, "codes_inner_steps": 1}
    folder = earlier("diffusion")
    assert DiffusionMemoryTrainer("digits", output_dir=folder, **DIFFUSION | later).fit().distilled_ipc == 2
    assert later.items() <= read_run(folder)["config"].items()


def test_settings_get_their_present_names(earlier, caplog):
    caplog.set_level(logging.WARNING, logger="hf_gdd")
    config = read_run(earlier("diffusion"))["config"]
    assert (config["guidance_scale"], config["num_inference_steps"]) == (1.5, 3)
    assert not {"guidance", "sampling_steps"} & config.keys()
    assert DiffusionMemoryConfig.from_identity(config).guidance_scale == 1.5
    assert caplog.text == ""


def test_auto_is_no_and_that_is_said_in_one_line(earlier, caplog):
    caplog.set_level(logging.WARNING, logger="hf_gdd")
    folder = earlier("gan")
    assert read_run(folder)["config"]["mixed_precision"] == "no"
    assert [record.message for record in caplog.records] == [
        f"{folder}: mixed_precision is no longer chosen by timing: `auto` is now `no`."
    ]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_was_chosen_by_timing_resumes_with_any_precision(earlier, precision):
    """The preset `fast` said `auto`, and says bf16 now."""
    folder = earlier("gan")
    GlobalLocalTrainer("digits", output_dir=folder, **GAN, mixed_precision=precision).run.check()


def test_another_setting_than_the_earlier_run_had_is_refused(earlier):
    folder = earlier("gan")
    with pytest.raises(ValueError, match=r"differs in config.seed \(now 1, there 0\)"):
        GlobalLocalTrainer("digits", output_dir=folder, **GAN, seed=1).fit()
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "metrics.jsonl", "run.yaml"]
