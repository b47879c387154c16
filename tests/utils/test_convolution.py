"""Convolutions whose weight gradient is a matrix product are torch's own, in every order of differentiation."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from hf_gdd.generators.gan import ConditionalGANGenerator, Discriminator
from hf_gdd.methods.global_local.losses import gradient_penalty
from hf_gdd.utils import convolution
from hf_gdd.utils.convolution import WeightProducts, of_images_alone

# Taps, stride, padding and side of every convolution that the published GAN has, and one whose sides all differ.
SHAPES = [(3, 1, 1, 5), (3, 2, 1, 5), (3, 2, 1, 6), (4, 2, 1, 6), ((2, 3), (1, 2), (0, 1), (4, 6))]


def pair(sides):
    return (sides, sides) if isinstance(sides, int) else sides


def leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def of_weights(monkeypatch):
    """Where weight gradients that are matrix products are listed, as they are taken."""
    return listed(monkeypatch, "_weight_gradient")


def listed(monkeypatch, name):
    taken, plain = [], getattr(convolution._Geometry, name)
    monkeypatch.setattr(convolution._Geometry, name, lambda *args: taken.append(args) or plain(*args))
    return taken


@pytest.mark.parametrize(("taps", "stride", "padding", "side"), SHAPES)
@pytest.mark.parametrize("chunk", [1, 2**24])
def test_every_derivative_is_right(monkeypatch, taps, stride, padding, side, chunk):
    monkeypatch.setattr(convolution, "_CHUNK", chunk)
    taken = of_weights(monkeypatch)
    x, weight, bias, other_bias = leaves((2, 3, *pair(side)), (4, 3, *pair(taps)), 4, 3)

    def made(x, weight, bias):
        with WeightProducts(1):
            return F.conv2d(x, weight, bias, stride, padding)

    expected = F.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(made(x, weight, bias), expected)
    assert gradcheck(made, (x, weight, bias))
    assert gradgradcheck(made, (x, weight, bias))
    assert taken
    taken.clear()
    (y,) = leaves(expected.shape)
    for more in range(max(pair(stride))):
        more = tuple(min(more, step - 1) for step in pair(stride))

        def back(y, weight, bias, more=more):
            with WeightProducts(1):
                return F.conv_transpose2d(y, weight, bias, stride, padding, more)

        torch.testing.assert_close(
            back(y, weight, other_bias), F.conv_transpose2d(y, weight, other_bias, stride, padding, more)
        )
        assert gradcheck(back, (y, weight, other_bias))
        assert gradgradcheck(back, (y, weight, other_bias))
    assert taken


def test_a_step_of_both_networks_has_torchs_gradients(monkeypatch, float64):
    """Of the adversarial losses and the gradient penalty, in float64, channels last."""
    torch.manual_seed(0)
    generator = ConditionalGANGenerator(("a", "b"), (1, 14, 14), width=6, noise_dim=3)
    critic = Discriminator(2, (1, 14, 14), width=6)
    for network in (generator, critic):
        network.to(memory_format=torch.channels_last)
    code, real, mix = torch.randn(5, 5), torch.randn(5, 1, 14, 14), torch.rand(5)
    parameters = [*generator.parameters(), *critic.parameters()]
    found, taken = [], of_weights(monkeypatch)
    for context in (nullcontext(), WeightProducts(2)):
        with context:
            fake = generator(code)
            scores, classes = critic(fake)
            loss = scores.square().sum() + classes.square().sum()
            loss = loss + gradient_penalty(lambda x: critic(x)[0], real, fake, mix)
        found.append([fake, loss, *torch.autograd.grad(loss, parameters)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
    in_generator, in_critic = (
        [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and min(m.weight.shape[:2]) > 1]
        for network in (generator, critic)
    )
    # Once for the losses; in the critic also for the penalty: of its slope, and of the pass that the slope is of.
    assert len(taken) == len(in_generator) + 3 * len(in_critic)


def test_a_slope_computes_no_weight_gradient(monkeypatch):
    taken = of_weights(monkeypatch)
    x, weight = leaves((2, 3, 4, 4), (3, 3, 3, 3))
    with WeightProducts(1):
        loss = F.conv2d(x, weight).square().sum()
    with of_images_alone():
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    assert not taken
    torch.autograd.grad(slope.sum(), weight)
    assert len(taken) == 2


def test_weight_gradients_are_left_out_here_and_now_alone(monkeypatch):
    """Not after a failure, not after an inner context, not in another thread."""
    taken = of_weights(monkeypatch)
    x, weight = leaves((1, 1, 3, 3), (1, 1, 3, 3))

    def backward():
        with WeightProducts(1):
            F.conv2d(x, weight).sum().backward()
        return len(taken)

    with pytest.raises(ZeroDivisionError), of_images_alone():
        raise ZeroDivisionError
    assert backward() == 1
    with of_images_alone():
        with of_images_alone():
            assert backward() == 1
        assert backward() == 1
        with ThreadPoolExecutor(1) as other:
            assert other.submit(backward).result() == 2


def test_weights_that_come_of_images_pass_gradients_on():
    x, weight = leaves((2, 3, 4, 4), (3, 3, 3, 3))
    found = []
    for context in (nullcontext(), WeightProducts(1)):
        with context:
            loss = F.conv2d(x, weight * x.mean()).square().sum()
        with of_images_alone():
            found.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(*found)


CALLS = [F.conv2d, F.conv_transpose2d]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 4, 3, 3), {}),  # too few channels, in or out
        ((4, 4, 3, 3), {"dilation": 2}),
        ((4, 4, 3, 3), {"groups": 4}),
        ((4, 4, 3, 3), {"padding": "same"}),
    ],
)
def test_other_convolutions_stay_torchs(monkeypatch, call, shape, options):
    if call is F.conv_transpose2d and "padding" in options:
        pytest.skip("it knows no such padding")
    taken = listed(monkeypatch, "third")
    shape = (shape[0], 1, *shape[2:]) if "groups" in options else shape
    x, weight = leaves((1, shape[0] if call is F.conv_transpose2d else 4, 8, 8), shape)
    with WeightProducts(1 if "groups" in options else 4):
        made = call(x, weight, **options)
    made.sum().backward()
    torch.testing.assert_close(made, call(x, weight, **options))
    assert not taken
    assert weight.grad is not None


@pytest.mark.parametrize("call", CALLS)
def test_what_is_not_trained_stays_torchs(monkeypatch, call):
    taken = listed(monkeypatch, "third")
    x, weight = leaves((1, 4, 8, 8), (4, 4, 3, 3))
    with WeightProducts(4):
        call(x, weight.detach())
        with torch.no_grad():
            call(x, weight)
        assert not taken
        call(x, weight)
    assert len(taken) == 1


@pytest.mark.parametrize("call", CALLS)
def test_all_that_torch_takes_is_taken(monkeypatch, call):
    """By keywords, with one side for both, images that are no batch, and other precisions."""
    taken = listed(monkeypatch, "third")
    x, weight, bias = leaves((2, 4, 8, 8), (4, 4, 3, 3), 4)
    single, one, narrow = x[0].detach().requires_grad_(), x.float(), weight.float()
    for ours, arguments in (
        (True, {"input": x, "weight": weight, "bias": bias, "stride": (2,), "padding": [1]}),
        (False, {"input": single, "weight": weight, "bias": bias}),
    ):
        with WeightProducts(4):
            made = call(**arguments)
        torch.testing.assert_close(made, call(**arguments))
        made.sum().backward()
        assert bool(taken) == ours
        taken.clear()
    with WeightProducts(4), torch.autocast("cpu", torch.bfloat16):
        made = call(one, narrow)
    made.float().sum().backward()
    assert not taken
    assert weight.grad is not None
