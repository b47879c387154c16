"""Every equation against numbers worked out by hand, or by loops over python floats."""

import math

import pytest
import torch

from hf_gdd.methods.diffusion_memory.losses import diversity_loss, representativeness_loss, variance_bound
from hf_gdd.methods.global_local.losses import (
    GLOBAL_REDUCTIONS,
    LOCAL_REDUCTIONS,
    discriminator_adversarial,
    generator_adversarial,
    global_loss,
    gradient_penalty,
    local_loss,
)
from hf_gdd.training.metrics_log import gradient_shares

FAKE_LOGITS = [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
REAL_LOGITS = [[1.0, 0.0, 3.0], [2.0, 0.0, 1.0]]
# Batch means (2, 1, 2) and (1, 3, 1); differences (1, 0, 2) and (1, -4, 0).
FAKE_FEATURES = [[1.0, 2.0, 3.0], [3.0, 0.0, 1.0]]
REAL_FEATURES = [[0.0, 2.0, 1.0], [2.0, 4.0, 1.0]]
FAKE_SCORES, REAL_SCORES = [0.5, -1.0, 2.0], [1.0, -2.0]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def log_softmax(row):
    return [x - math.log(sum(math.exp(y) for y in row)) for x in row]


def logsoftmax_mean():
    pairs = zip(FAKE_LOGITS, REAL_LOGITS, strict=True)
    squares = [(f - r) ** 2 for fake, real in pairs for f, r in zip(log_softmax(fake), log_softmax(real), strict=True)]
    return sum(squares) / 6


EXPECTED_GLOBAL = {"logsoftmax_mean": logsoftmax_mean(), "logit_mean": 9 / 6, "logit_sum": 9.0}
EXPECTED_LOCAL = {"batchmean_sum": 6.0, "paired_mean": 22 / 6, "paired_sum": 22.0, "paired_sum_batchmean": 11.0}


def maps(values):
    """The same numbers as maps [2, 1, 3, 1]: the layout must not matter."""
    return tensor(values).reshape(2, 1, 3, 1)


@pytest.mark.parametrize("reduction", GLOBAL_REDUCTIONS)
def test_global_loss(reduction):
    loss = global_loss(tensor(FAKE_LOGITS), tensor(REAL_LOGITS), reduction)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(EXPECTED_GLOBAL[reduction], rel=1e-12)


@pytest.mark.parametrize("reduction", LOCAL_REDUCTIONS)
@pytest.mark.parametrize("layout", [tensor, maps])
def test_local_loss(reduction, layout):
    loss = local_loss(layout(FAKE_FEATURES), layout(REAL_FEATURES), reduction)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(EXPECTED_LOCAL[reduction], rel=1e-12)


def test_defaults_are_the_forms_of_the_public_code():
    assert global_loss(tensor(FAKE_LOGITS), tensor(REAL_LOGITS)).item() == pytest.approx(logsoftmax_mean(), rel=1e-12)
    assert local_loss(tensor(FAKE_FEATURES), tensor(REAL_FEATURES)).item() == pytest.approx(6, rel=1e-12)


@pytest.mark.parametrize("reduction", LOCAL_REDUCTIONS)
def test_only_paired_forms_see_the_order_of_a_batch(reduction):
    fake = tensor(FAKE_FEATURES)
    assert (local_loss(fake.flip(0), fake, reduction).item() == 0) == (reduction == "batchmean_sum")


def test_global_loss_ignores_a_shift_of_the_logits_only_after_softmax():
    fake = tensor(FAKE_LOGITS)
    assert global_loss(fake + 5, fake, "logsoftmax_mean").item() == pytest.approx(0, abs=1e-20)
    assert global_loss(fake + 5, fake, "logit_mean").item() == pytest.approx(25)


@pytest.mark.parametrize(("loss", "forms"), [(global_loss, GLOBAL_REDUCTIONS), (local_loss, LOCAL_REDUCTIONS)])
def test_gradient_reaches_the_generated_side(loss, forms):
    for reduction in forms:
        fake = tensor(FAKE_FEATURES).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, r=reduction: loss(x, tensor(REAL_FEATURES), r), fake)
        loss(fake, tensor(REAL_FEATURES), reduction).backward()
        assert (fake.grad.abs().sum(dim=1) > 0).all()


def test_wasserstein_scores():
    fake, real = tensor(FAKE_SCORES), tensor(REAL_SCORES)
    assert generator_adversarial(fake, "wgan-gp").item() == pytest.approx(-0.5)
    assert discriminator_adversarial(real, fake, "wgan-gp").item() == pytest.approx(0.5 - (-0.5))


def test_minimax_scores():
    fake, real = tensor(FAKE_SCORES), tensor(REAL_SCORES)
    fooled = sum(math.log(1 - sigmoid(x)) for x in FAKE_SCORES) / 3
    accepted = sum(math.log(sigmoid(x)) for x in REAL_SCORES) / 2
    assert generator_adversarial(fake, "minimax").item() == pytest.approx(fooled, rel=1e-12)
    assert discriminator_adversarial(real, fake, "minimax").item() == pytest.approx(-accepted - fooled, rel=1e-12)


def test_minimax_stays_finite_for_confident_scores():
    sure = torch.tensor([300.0, -300.0])
    assert generator_adversarial(sure, "minimax").item() == pytest.approx(-150)
    assert discriminator_adversarial(sure, sure, "minimax").item() == pytest.approx(300)


@pytest.mark.parametrize("form", ["wgan-gp", "minimax"])
def test_the_two_players_pull_apart(form):
    fake, real = tensor(FAKE_SCORES).requires_grad_(), tensor(REAL_SCORES).requires_grad_()
    (wanted,) = torch.autograd.grad(generator_adversarial(fake, form), fake)
    toward_real, toward_fake = torch.autograd.grad(discriminator_adversarial(real, fake, form), (real, fake))
    assert (wanted < 0).all()
    assert (toward_fake > 0).all()
    assert (toward_real < 0).all()


def images(seed, rows=3):
    return torch.randn(rows, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_penalty_of_a_linear_critic_is_its_slope():
    weight = torch.arange(8.0, dtype=torch.float64).reshape(2, 2, 2)
    penalty = gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), images(0), images(1), torch.rand(3).double())
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx((math.sqrt(sum(i * i for i in range(8))) - 1) ** 2, rel=1e-12)


def test_penalty_is_taken_between_real_and_fake():
    real, fake, mix = images(0), images(1), [1.0, 0.0, 0.25]
    # The slope of |x|^2 / 2 is x itself.
    penalty = gradient_penalty(lambda x: x.square().flatten(1).sum(1) / 2, real, fake, tensor(mix))
    expected = 0.0
    for m, r, f in zip(mix, real.flatten(1).tolist(), fake.flatten(1).tolist(), strict=True):
        norm = math.sqrt(sum((m * a + (1 - m) * b) ** 2 for a, b in zip(r, f, strict=True)))
        expected += (norm - 1) ** 2 / 3
    assert penalty.item() == pytest.approx(expected, rel=1e-12)


def test_penalty_trains_the_critic():
    mix = tensor([0.2, 0.5, 0.9])
    hidden = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    last = torch.linspace(-1, 1, 4, dtype=torch.float64).requires_grad_()

    def penalty(hidden, last):
        return gradient_penalty(lambda x: (x.flatten(1) @ hidden.T).tanh() @ last, images(0), images(1), mix)

    gradients = torch.autograd.grad(penalty(hidden, last), (hidden, last))
    for weights, gradient in zip((hidden, last), gradients, strict=True):
        for at in (0, weights.numel() // 2, weights.numel() - 1):
            step = torch.zeros_like(weights).flatten()
            step[at] = 1e-6
            step = step.reshape(weights.shape)
            above, below = (
                penalty(hidden + sign * step, last) if weights is hidden else penalty(hidden, last + sign * step)
                for sign in (1, -1)
            )
            assert gradient.flatten()[at].item() == pytest.approx((above - below).item() / 2e-6, rel=1e-6)


def test_penalty_leaves_the_generator_alone():
    fake = images(1).requires_grad_()
    weight = torch.ones(8, dtype=torch.float64, requires_grad=True)
    gradient_penalty(lambda x: (x.flatten(1) * weight).square().sum(1), images(0), fake, torch.rand(3)).backward()
    assert fake.grad is None
    assert weight.grad.abs().min() > 0


def test_shares_are_the_parts_of_the_gradient_norms():
    x = images(0).requires_grad_()
    terms = {"a": 3 * x.sum(), "b": x.square().sum() / 2, "none": (0 * x).sum()}
    norms = {"a": 3 * math.sqrt(x.numel()), "b": math.sqrt(sum(v * v for v in x.flatten().tolist())), "none": 0.0}
    shares = gradient_shares(terms, x)
    assert list(shares) == list(terms)
    for name, share in shares.items():
        assert share.item() == pytest.approx(norms[name] / sum(norms.values()), rel=1e-6)
    assert sum(shares.values()).item() == pytest.approx(1, rel=1e-6)


def test_shares_keep_the_graph_and_leave_no_gradients():
    x = images(0).requires_grad_()
    terms = {"a": x.exp().sum(), "b": x.square().sum()}
    gradient_shares(terms, x)
    assert x.grad is None
    sum(terms.values()).backward()
    torch.testing.assert_close(x.grad, (x.exp() + 2 * x).detach())


def test_shares_of_vanished_gradients_are_zero_not_nan():
    x = images(0).requires_grad_()
    assert [share.item() for share in gradient_shares({"a": (0 * x).sum(), "b": (0 * x).sum()}, x).values()] == [0, 0]


# ---- diffusion


def memory_case():
    """Four latents of two classes before a memory of three places."""
    cosines = torch.tensor([[0.9, 0.1, -9.0], [0.5, 0.4, 9.0], [0.3, -0.2, -0.6], [0.0, 0.0, 0.0]], requires_grad=True)
    held = torch.tensor([[True, True, False], [True, True, False], [True, True, True], [False, False, False]])
    return cosines, held, torch.tensor([4, 4, 1, 7])


def test_memory_terms_by_hand():
    """Class 4: least 0.1, most 0.9; class 1: least -0.6, most 0.3; class 7 remembers nothing; three classes."""
    cosines, held, labels = memory_case()
    far, like = representativeness_loss(cosines, held, labels), diversity_loss(cosines, held, labels)
    assert far.item() == pytest.approx(((1 - 0.1) + (1 + 0.6)) / 3)
    assert like.item() == pytest.approx((0.9 + 0.3) / 3)
    (gradient,) = torch.autograd.grad(far, cosines)
    assert gradient.nonzero().tolist() == [[0, 1], [2, 2]]
    torch.testing.assert_close(gradient[0, 1], torch.tensor(-1 / 3))
    (gradient,) = torch.autograd.grad(like, cosines)
    assert gradient.nonzero().tolist() == [[0, 0], [2, 0]]
    torch.testing.assert_close(gradient[2, 0], torch.tensor(1 / 3))


def test_memory_terms_of_empty_memories_are_zero():
    cosines, held, labels = memory_case()
    for loss in (representativeness_loss, diversity_loss):
        value = loss(cosines, torch.zeros_like(held), labels)
        assert value.item() == 0
        assert torch.autograd.grad(value, cosines)[0].abs().sum() == 0


ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def noised(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean, noise, spread = (torch.randn(len(steps), 2, 3, 3, generator=generator) for _ in range(3))
    a = ALPHAS[steps].float().view(-1, 1, 1, 1)
    return clean, noise, spread, a.sqrt() * clean + (1 - a).sqrt() * noise


def test_the_variance_bound_is_zero_for_the_true_posterior():
    steps = torch.tensor([1, 2, 400, 999])
    clean, noise, _, noisy = noised(steps)
    least = torch.full_like(noise, -1.0)
    assert variance_bound(noise, least, clean, noisy, steps, ALPHAS).item() == pytest.approx(0, abs=1e-4)
    assert variance_bound(noise, -least, clean, noisy, steps, ALPHAS) > 0.01


@pytest.mark.parametrize("step", [0, 1, 500])
def test_the_variance_bound_is_that_of_the_distributions(step):
    steps = torch.full((64,), step)
    clean, noise, spread, noisy = noised(steps)
    spread, wrong = spread.tanh(), noise + 0.1
    a, b = ALPHAS[step], ALPHAS[step - 1] if step else torch.tensor(1.0, dtype=torch.float64)
    beta = 1 - a / b
    least = (beta * (1 - b) / (1 - a)) if step else (1 - ALPHAS[1] / ALPHAS[0]) * (1 - ALPHAS[0]) / (1 - ALPHAS[1])

    def mean(start):
        return (b.sqrt() * beta * start + (a / b).sqrt() * (1 - b) * noisy.double()) / (1 - a)

    start = (noisy - (1 - a).sqrt() * wrong) / a.sqrt()
    variance = (((spread + 1) / 2) * beta.log() + (1 - (spread + 1) / 2) * least.log()).exp()
    model = torch.distributions.Normal(mean(start), variance.sqrt())
    if step:
        truth = torch.distributions.Normal(mean(clean), least.sqrt())
        expected = torch.distributions.kl_divergence(truth, model)
    else:
        inside = model.cdf(clean + 1 / 255) - model.cdf(clean - 1 / 255)
        inside = torch.where(clean < -0.999, model.cdf(clean + 1 / 255), inside)
        inside = torch.where(clean > 0.999, 1 - model.cdf(clean - 1 / 255), inside)
        expected = -inside.clamp(min=1e-12).log()
    actual = variance_bound(wrong, spread, clean, noisy, steps, ALPHAS)
    assert actual.item() == pytest.approx(float(expected.mean() / torch.tensor(2.0).log()), rel=2e-3)


def test_the_variance_bound_teaches_only_the_variance():
    steps = torch.tensor([0, 3, 700])
    clean, noise, spread, noisy = noised(steps)
    noise.requires_grad_()
    spread.requires_grad_()
    variance_bound(noise, spread, clean, noisy, steps, ALPHAS).backward()
    assert noise.grad is None
    assert spread.grad.abs().sum() > 0
