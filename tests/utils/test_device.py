"""What a run computes in is chosen by timing, changes nothing that it should not, and is kept."""

import logging
import platform
import resource

import pytest
import torch
import torch.nn.functional as F
from conftest import Client
from kinds import gan

from hf_gdd import GlobalLocalTrainer, ImageTensors, Recipe, arithmetic, convolution, evaluate, judging, training
from hf_gdd.generators import pretrained as saved
from hf_gdd.generators.gan import Discriminator
from hf_gdd.methods.global_local.losses import gradient_penalty
from hf_gdd.utils.device import FEWEST_CHANNELS, Arithmetic, Way

CPU = torch.device("cpu")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
PLAIN, LAST, PRODUCTS = Way("no"), Way("no", torch.channels_last), Way("no", torch.channels_last, products=True)
BF16, BF16_LAST = Way("bf16"), Way("bf16", torch.channels_last)


def timed(monkeypatch, seconds):
    """Let convolutions take so long; returns the ways that were timed."""
    asked = []

    def of(self):
        asked.extend(self._ways)
        return [seconds[way] for way in asked]

    monkeypatch.setattr(Arithmetic, "_times", of)
    return asked


def make(folder, **settings):
    data = ImageTensors.from_dataset("digits").subset(10, 0)
    small = {"preset": "tiny", "width": 6, "max_steps": 3, "gan_batch_size": 8, "match_batch_size": 8, "log_every": 1}
    return GlobalLocalTrainer(data, output_dir=folder, **small | settings)


SECONDS = {PLAIN: 4.0, LAST: 3.0, PRODUCTS: 2.5, BF16: 2.0, BF16_LAST: 1.0}


@pytest.mark.parametrize(
    ("asked", "channels", "seconds", "chosen"),
    [
        ("no", FEWEST_CHANNELS, {}, PRODUCTS),
        ("no", FEWEST_CHANNELS, {PRODUCTS: 5.0}, LAST),
        ("no", FEWEST_CHANNELS, {LAST: 5.0, PRODUCTS: 5.0}, PLAIN),
        ("no", FEWEST_CHANNELS, {LAST: 3.9, PRODUCTS: 3.9}, PLAIN),  # within the noise of a trial
        ("no", FEWEST_CHANNELS, {PRODUCTS: 2.95}, LAST),
        ("bf16", FEWEST_CHANNELS, {BF16_LAST: 9.0}, BF16),
        ("auto", FEWEST_CHANNELS, {}, BF16_LAST),
        ("auto", FEWEST_CHANNELS, {BF16: 9.0, BF16_LAST: 9.0}, PRODUCTS),
        ("auto", 0, {}, BF16),
    ],
)
def test_the_fastest_way_is_taken(monkeypatch, caplog, asked, channels, seconds, chosen):
    timed(monkeypatch, SECONDS | seconds)
    made = Arithmetic(asked, channels, CPU)
    with caplog.at_level(logging.INFO, logger="hf_gdd"):
        made.choose(lambda seconds: seconds)
    assert made.way == chosen
    assert f"Computing in {chosen}. A convolution took: " in caplog.text


def test_ways_are_told_in_words():
    assert str(PLAIN) == "fp32"
    assert str(BF16_LAST) == "bf16, channels last"
    assert str(PRODUCTS) == "fp32, channels last, weight gradients as matrix products"


def test_matrix_products_are_a_way_of_cpus_in_float32():
    def offered(*told):
        return any(way.products for way in Arithmetic(*told)._ways)

    gpu = torch.device("cuda")
    assert offered("no", FEWEST_CHANNELS, CPU)
    assert offered("auto", FEWEST_CHANNELS, CPU)
    assert not offered("bf16", FEWEST_CHANNELS, CPU)
    assert not offered("auto", FEWEST_CHANNELS, gpu)
    chosen = {"precision": "no", "channels_last": True, "products": True}
    for device, state, way in ((CPU, chosen, PRODUCTS), (gpu, chosen, LAST), (CPU, chosen | {"products": False}, LAST)):
        resumed = Arithmetic("no", FEWEST_CHANNELS, device)
        resumed.load_state_dict(state)
        assert resumed.way == way


@pytest.mark.parametrize("way", [PLAIN, LAST, PRODUCTS, BF16, BF16_LAST])
def test_a_trial_computes_in_its_way(monkeypatch, way):
    seen, taken, plain = [], products_taken(monkeypatch), F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *rest, **more: seen.append(x) or plain(x, *rest, **more))
    gradients = Arithmetic("auto", FEWEST_CHANNELS, CPU)._convolution(way)()
    assert len(taken) == 2 * way.products
    assert seen[0].is_contiguous(memory_format=way.layout)
    plain_way = Arithmetic("auto", FEWEST_CHANNELS, CPU)._convolution(PLAIN)()
    for one, other in zip(gradients, plain_way, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05 if way.precision == "bf16" else 1e-4, atol=1e-3)


def products_taken(monkeypatch):
    taken, plain = [], convolution._Geometry._weight_gradient
    monkeypatch.setattr(convolution._Geometry, "_weight_gradient", lambda *args: taken.append(1) or plain(*args))
    return taken


@pytest.mark.parametrize("way", [LAST, PRODUCTS])
def test_a_run_computes_in_the_way_that_was_chosen(tmp_path, monkeypatch, way):
    taken = products_taken(monkeypatch)
    monkeypatch.setattr(Arithmetic, "choose", lambda self, agreed: setattr(self, "way", way))
    make(tmp_path / "run", width=FEWEST_CHANNELS, method="cgan", max_steps=1).fit()
    assert bool(taken) == way.products


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_small_networks_are_not_timed(monkeypatch, precision):
    asked = timed(monkeypatch, SECONDS)
    made = Arithmetic(precision, FEWEST_CHANNELS - 1, CPU)
    made.choose(lambda seconds: seconds)
    assert asked == []
    assert made.way == Way(precision)


def test_processes_choose_by_the_mean_of_their_times(monkeypatch):
    timed(monkeypatch, SECONDS)
    made = Arithmetic("no", FEWEST_CHANNELS, CPU)
    made.choose(lambda seconds: (seconds + torch.tensor([0.0, 3.0, 4.0])) / 2)  # the other found these slower
    assert made.way == PLAIN


def test_every_way_is_timed_and_hopeless_ones_seldom(monkeypatch):
    calls = []

    def seconds(call, device):
        calls.append(call())
        return {PLAIN: 1.0, BF16: 9.0, LAST: 1.5, BF16_LAST: 9.0, PRODUCTS: 1.6}[calls[-1]]

    monkeypatch.setattr(arithmetic, "seconds", seconds)
    monkeypatch.setattr(Arithmetic, "_convolution", lambda self, way: lambda: way)
    assert Arithmetic("auto", FEWEST_CHANNELS, CPU)._times() == [1.0, 9.0, 1.5, 9.0, 1.6]
    assert calls.count(LAST) == calls.count(PLAIN) == calls.count(PRODUCTS) > 5
    assert calls.count(BF16) == 2


def test_real_times_are_positive():
    assert all(time > 0 for time in Arithmetic("no", FEWEST_CHANNELS, CPU)._times())


def page_faults():
    """Of as many large tensors, made and freed one after the other, before memory is kept and after."""
    found = []
    for keep in (lambda: True, arithmetic.keep_freed_memory):
        assert keep()
        torch.ones(2**22)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(2**22)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_kept_is_not_cleared_by_the_system_again(tmp_path):
    process = Client({"HF_HOME": str(tmp_path)})
    try:
        by_default, kept = process.run(page_faults)
    finally:
        process.close()
    assert by_default > 10 * 2**22 * 4 / 2**21 > kept  # a fault a page, of 2 MiB at most


@pytest.mark.parametrize("room", [training, judging, saved])
def test_whatever_computes_on_a_cpu_keeps_memory(tmp_path, monkeypatch, room):
    called = []
    monkeypatch.setattr(room, "keep_freed_memory", lambda: called.append(room))
    first = torch.zeros(1, dtype=torch.int64)
    if room is training:
        make(tmp_path / "run")
    elif room is judging:
        data = ImageTensors.from_dataset("digits").subset(1, 0)
        evaluate(data, data, networks="convnet1", n=1, recipe=Recipe(max_steps=1), progress=False)
    else:
        gan().sample(first, first)
    assert called


def test_the_launchers_precision_is_not_used_in_silence(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = make(tmp_path / "run")
    assert "launcher's mixed precision is not used" in caplog.text
    assert trainer.accelerator.mixed_precision == "no"


def test_the_critic_is_the_same_function_in_either_layout(float64):
    torch.manual_seed(0)
    critics = [Discriminator(4, (3, 12, 12), width=10) for _ in LAYOUTS]
    critics[1].load_state_dict(critics[0].state_dict())
    critics[1].to(memory_format=torch.channels_last)
    real, fake, mix = torch.rand(5, 3, 12, 12), torch.rand(5, 3, 12, 12), torch.rand(5)
    found = []
    for critic in critics:
        scores, classes = critic(fake)
        penalty = gradient_penalty(lambda x, critic=critic: critic(x)[0], real, fake, mix)
        gradients = torch.autograd.grad(penalty + scores.sum() + classes.square().sum(), list(critic.parameters()))
        found.append([scores, classes, penalty, *gradients])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)
    assert any(not p.is_contiguous() for p in critics[1].parameters())


def test_layer_norms_copy_no_image_into_another_layout():
    critic = Discriminator(4, (3, 12, 12), width=10).to(memory_format=torch.channels_last)
    layouts = []
    for module in critic.features[:-1]:  # all but the last, which flattens
        module.register_forward_hook(lambda m, i, o: layouts.append(o.is_contiguous(memory_format=LAYOUTS[1])))
    critic(torch.rand(2, 3, 12, 12).to(memory_format=torch.channels_last))
    assert all(layouts)


def test_a_training_is_the_same_in_either_layout(tmp_path, monkeypatch, float64):
    found = []
    for layout in LAYOUTS:
        way = Way("no", layout)
        monkeypatch.setattr(Arithmetic, "choose", lambda self, agreed, way=way: setattr(self, "way", way))
        trainer = make(tmp_path / str(layout))
        generator = trainer.fit()
        assert trainer.discriminator.features[3].weight.is_contiguous() == (layout == torch.contiguous_format)
        assert all(weight.is_contiguous() for weight in generator.parameters())  # as it is saved
        found.append([*generator.parameters(), *trainer.discriminator.parameters()])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_bf16_is_near_float32(tmp_path):
    """One step's losses to 5 % of their size or 0.02, and its gradients in nearly the same direction."""
    found = []
    for precision in ("no", "bf16"):
        trainer = make(tmp_path / precision, width=32, mixed_precision=precision)
        trainer._open(None)
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


def test_a_resumed_run_goes_on_in_what_it_began_in(tmp_path, monkeypatch):
    settings = {"width": FEWEST_CHANNELS, "mixed_precision": "auto", "checkpoint_every": 1, "method": "cgan"}
    timed(monkeypatch, SECONDS | {BF16: 9.0, BF16_LAST: 9.0})
    trainer = make(tmp_path / "run", **settings)
    generator = trainer.fit()
    assert trainer.arithmetic.state_dict() == {"precision": "no", "channels_last": True, "products": True}
    assert generator.config.training["mixed_precision"] == "no"
    asked = timed(monkeypatch, SECONDS)
    again = make(tmp_path / "run", **settings)
    again.fit()
    assert asked == []
    assert again.arithmetic.state_dict() == trainer.arithmetic.state_dict()
    assert not again.discriminator.features[3].weight.is_contiguous()


def test_a_run_goes_on_from_another_in_what_that_was_in(tmp_path, monkeypatch):
    settings = {"width": FEWEST_CHANNELS, "mixed_precision": "auto"}
    timed(monkeypatch, SECONDS | {BF16: 9.0, BF16_LAST: 9.0})
    make(tmp_path / "first", method="cgan", **settings).fit()
    asked = timed(monkeypatch, SECONDS)
    trainer = make(tmp_path / "second", start_from=str(tmp_path / "first"), **settings)
    trainer.fit()
    assert asked == []
    assert trainer.arithmetic.state_dict() == {"precision": "no", "channels_last": True, "products": True}
    with pytest.raises(ValueError, match="mixed_precision is 'bf16', but was 'no' so far"):
        make(
            tmp_path / "third", start_from=str(tmp_path / "first"), width=FEWEST_CHANNELS, mixed_precision="bf16"
        ).fit()


def test_a_lazy_penalty_is_of_wgan_gp_alone(tmp_path):
    with pytest.raises(ValueError, match="penalty_every is of the gradient penalty of wgan-gp"):
        make(tmp_path / "run", penalty_every=2, adversarial="minimax")


def test_a_lazy_penalty_counts_as_often_as_it_is_left_out(tmp_path):
    trainer = make(tmp_path / "run", penalty_every=3, penalty_weight=2.0)
    trainer._open(None)
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
