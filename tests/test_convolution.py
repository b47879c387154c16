"""Convolutions whose weight gradient is a matrix product are torch's own, in every order of differentiation."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from hf_gdd import convolution
from hf_gdd.convolution import WeightProducts, of_images_alone
from hf_gdd.generators.gan import ConditionalGANGenerator, Discriminator
from hf_gdd.losses import gradient_penalty

# Taps, stride, padding and side of every convolution that the published GAN has, and one whose sides all differ.
SHAPES = [(3, 1, 1, 5), (3, 2, 1, 5), (3, 2, 1, 6), (4, 2, 1, 6), ((2, 3), (1, 2), (0, 1), (4, 6))]


def pair(sides):
    return (sides, sides) if isinstance(sides, int) else sides


def leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def of_weights(monkeypatch):
    """Where weight gradients that are matrix products are listed, as they are taken."""
    taken, plain = [], convolution._Shape._weights
    monkeypatch.setattr(convolution._Shape, "_weights", lambda *args: taken.append(args[1].shape) or plain(*args))
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


def test_a_step_of_both_networks_has_torchs_gradients(monkeypatch):
    """Of the adversarial losses and the gradient penalty, in float64, channels last."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
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
    finally:
        torch.set_default_dtype(torch.float32)
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


def test_weight_gradients_are_back_after_a_failure():
    x, weight = leaves((1, 1, 3, 3), (1, 1, 3, 3))
    with pytest.raises(ZeroDivisionError), of_images_alone():
        raise ZeroDivisionError
    with WeightProducts(1):
        F.conv2d(x, weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 4, 3, 3), {}),  # too few channels
        ((4, 4, 3, 3), {"dilation": 2}),
        ((4, 4, 3, 3), {"padding": "same"}),
        ((4, 2, 3, 3), {"groups": 2}),
    ],
)
def test_other_convolutions_stay_torchs(monkeypatch, shape, options):
    taken = of_weights(monkeypatch)
    x, weight = leaves((1, 4, 8, 8), shape)
    with WeightProducts(4):
        made = F.conv2d(x, weight, **options)
    made.sum().backward()
    torch.testing.assert_close(made, F.conv2d(x, weight, **options))
    assert not taken
    assert weight.grad is not None


def test_what_is_not_trained_stays_torchs(monkeypatch):
    x, weight = leaves((1, 4, 8, 8), (4, 4, 3, 3))
    with WeightProducts(4):
        assert "Convolution" in type(F.conv2d(x, weight.detach()).grad_fn).__name__
        with torch.no_grad():
            assert F.conv2d(x, weight).grad_fn is None
