"""Precision, memory layout and lazy penalty of a GAN's training."""

import pytest
import torch
import torch.nn.functional as F

from hf_gdd import GlobalLocalTrainer, ImageTensors
from hf_gdd.generators.gan import Discriminator
from hf_gdd.methods.global_local.losses import gradient_penalty

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def make(folder, **settings):
    data = ImageTensors.from_dataset("digits").subset(10, 0)
    small = {"preset": "tiny", "width": 6, "max_steps": 3, "gan_batch_size": 8, "match_batch_size": 8, "log_every": 1}
    small |= {"codes_ipc": 0, "teacher_network": None}
    return GlobalLocalTrainer(data, output_dir=folder, **small | settings)


def test_the_launchers_precision_is_not_used_in_silence(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = make(tmp_path / "run")
    assert "launcher's mixed precision is not used" in caplog.text
    assert trainer.accelerator.mixed_precision == "no"


def test_the_discriminator_is_the_same_function_in_either_layout(float64):
    torch.manual_seed(0)
    discriminators = [Discriminator(4, (3, 12, 12), width=10) for _ in LAYOUTS]
    discriminators[1].load_state_dict(discriminators[0].state_dict())
    discriminators[1].to(memory_format=torch.channels_last)
    real, fake, mix = torch.rand(5, 3, 12, 12), torch.rand(5, 3, 12, 12), torch.rand(5)
    found = []
    for discriminator in discriminators:
        scores, classes = discriminator(fake)
        penalty = gradient_penalty(lambda x, discriminator=discriminator: discriminator(x)[0], real, fake, mix)
        gradients = torch.autograd.grad(
            penalty + scores.sum() + classes.square().sum(), list(discriminator.parameters())
        )
        found.append([scores, classes, penalty, *gradients])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)
    assert any(not p.is_contiguous() for p in discriminators[1].parameters())


def test_layer_norms_copy_no_image_into_another_layout():
    discriminator = Discriminator(4, (3, 12, 12), width=10).to(memory_format=torch.channels_last)
    layouts = []
    for module in discriminator.features[:-1]:  # all but the last, which flattens
        module.register_forward_hook(lambda m, i, o: layouts.append(o.is_contiguous(memory_format=LAYOUTS[1])))
    discriminator(torch.rand(2, 3, 12, 12).to(memory_format=torch.channels_last))
    assert all(layouts)


def test_a_training_is_the_same_in_either_layout(tmp_path, float64):
    found = []
    for channels_last in (False, True):
        trainer = make(tmp_path / str(channels_last), channels_last=channels_last)
        generator = trainer.fit()
        assert trainer.discriminator.features[3].weight.is_contiguous() != channels_last
        assert all(weight.is_contiguous() for weight in generator.parameters())  # as it is saved
        found.append([*generator.parameters(), *trainer.discriminator.parameters()])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_bf16_is_near_float32(tmp_path):
    """One step's losses to 5 % of their size or 0.02, and its gradients in nearly the same direction."""
    found = []
    for precision in ("no", "bf16"):
        trainer = make(tmp_path / precision, width=32, mixed_precision=precision)
        trainer.open()
        trainer.state.stage = 1
        losses = trainer.step(torch.arange(8))
        gradients = [
            torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (trainer.generator, trainer.discriminator)
        ]
        found.append((losses, gradients))
    (losses, gradients), (rounded, rough) = found
    for name in losses:
        assert float(rounded[name]) == pytest.approx(float(losses[name]), rel=0.05, abs=0.02), name
    for one, other in zip(gradients, rough, strict=True):
        assert float(F.cosine_similarity(one, other, dim=0)) > 0.98


def test_a_lazy_penalty_is_of_wgan_gp_alone(tmp_path):
    with pytest.raises(ValueError, match="penalty_every belongs to the gradient penalty of wgan-gp"):
        make(tmp_path / "run", penalty_every=2, adversarial="minimax")


def test_a_lazy_penalty_counts_as_often_as_it_is_left_out(tmp_path):
    trainer = make(tmp_path / "run", penalty_every=3, penalty_weight=2.0)
    trainer.open()
    images, labels = trainer.data.gather(torch.arange(8))
    real, state = images / 127.5 - 1, trainer.random.state_dict()

    def loss(step, **settings):
        trainer.state.step, trainer.config = step, trainer.config.changed(**settings)
        trainer.random.load_state_dict(state)
        return trainer.discriminator_loss(real, labels).item()

    with_penalty, without = loss(3), loss(4)
    assert loss(5) == without
    thrice = loss(4, penalty_every=1, penalty_weight=6.0)
    assert with_penalty == pytest.approx(thrice, rel=1e-6)
    assert abs(with_penalty - without) > 0.1
