"""Networks trained in step: equal to each alone, whichever way, and the way that is the faster one."""

import logging
from itertools import islice

import pytest
import torch
from torch import nn

from hf_gdd.classifiers import ensemble as cohort
from hf_gdd.classifiers import networks
from hf_gdd.classifiers.ensemble import ClassifierEnsemble, in_step, stacking_pays
from hf_gdd.classifiers.learner import Learner, iterate_epochs
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import input_transform
from hf_gdd.data.pixels import to_unit

DIGITS = ImageTensors.from_dataset("digits", device="cpu").subset(3, 0)
VIEW = input_transform(DIGITS, zca=False)
FIRM = Recipe(batch_size=6, lr=0.05, momentum=0.9, weight_decay=0.01, schedule="cosine")
CPU = torch.device("cpu")


def learners(network="convnet1", recipe=FIRM, n=3, steps=20, dtype=torch.float32, first=0):
    made = [build_network(network, 10, DIGITS.shape, seed=first + i) for i in range(n)]
    return [Learner(each.to(dtype), VIEW, recipe, steps) for each in made]


def resnet(num_classes, shape):
    """A `resnet10-dd`, with batch norm, that is narrow enough for a test."""
    return networks._pool_resnet(num_classes, shape, blocks=1, width=4)


def streams(n=3, recipe=FIRM, soft=False, double=False, seeds=None):
    """For each network a generator and batches drawn from it, as in evaluation; images may come as floats."""

    def batches(generator):
        for images, labels in iterate_epochs(DIGITS, recipe, generator):
            shown = VIEW(to_unit(images)).double() if double else images
            yield shown, nn.functional.one_hot(labels, 10).to(shown.dtype) if soft else labels

    generators = [torch.Generator().manual_seed(seed) for seed in (range(n) if seeds is None else seeds)]
    return [batches(generator) for generator in generators], generators


def trained_alone(each, steps=20, **how):
    """Learners after their steps, each by itself; and what their generators are left at."""
    rows, generators = streams(len(each), **how)
    for learner, batches, generator in zip(each, rows, generators, strict=True):
        for batch in islice(batches, steps):
            learner.step(*batch, generator)
    return each, [generator.get_state() for generator in generators]


def assert_equal(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        ours, theirs = one.state_dict(), other.state_dict()
        assert ours["schedule"] == theirs["schedule"]
        assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
        torch.testing.assert_close(ours["network"], theirs["network"], **tolerance)
        torch.testing.assert_close(ours["optimizer"]["state"], theirs["optimizer"]["state"], **tolerance)


EXACT, ROUNDING = {"rtol": 1e-8, "atol": 1e-10}, {"rtol": 1e-3, "atol": 1e-4}
MIXED = Recipe(batch_size=6, lr=0.05, weight_decay=0.01, schedule="steps", augment="imagenet", cutmix=True)
CASES = [("convnet1", FIRM, False), ("convnet1", MIXED, True), (resnet, MIXED, False)]


@pytest.mark.parametrize(("network", "recipe", "soft"), CASES)
def test_stacked_networks_learn_what_each_would_alone(network, recipe, soft):
    """Weights, running statistics and their count, momentum, schedule, and the place in the random numbers."""
    told = {"recipe": recipe, "soft": soft, "double": True}
    expected, states = trained_alone(learners(network, recipe, dtype=torch.float64), **told)
    together, (rows, generators) = (
        ClassifierEnsemble(learners(network, recipe, dtype=torch.float64), True),
        streams(**told),
    )
    together.fit(rows, 20, generators)
    assert_equal(together.learners, expected, **EXACT)
    assert all(torch.equal(g.get_state(), state) for g, state in zip(generators, states, strict=True))
    counts = [v for k, v in together.learners[2].network.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(count == 20 for count in counts)
    assert bool(counts) == (network is resnet)


@pytest.mark.parametrize("augment", ["color_crop", "dsa"])
@pytest.mark.parametrize("network", ["convnet1", resnet])
def test_pixels_are_augmented_by_each_networks_own_draws(network, augment):
    recipe = Recipe(batch_size=10, lr=0.01, augment=augment)
    expected, _ = trained_alone(learners(network, recipe), 6, recipe=recipe)
    together, (rows, generators) = ClassifierEnsemble(learners(network, recipe), stacked=True), streams(recipe=recipe)
    together.fit(rows, 6, generators)
    assert_equal(together.learners, expected, **ROUNDING)


def test_one_by_one_is_exactly_alone():
    expected, _ = trained_alone(learners(), 6)
    together, (rows, generators) = ClassifierEnsemble(learners()), streams()
    together.fit(rows, 6, generators)
    assert_equal(together.learners, expected, rtol=0, atol=0)


def test_losses_are_those_of_each_in_lower_precision_too():
    recipe = Recipe(batch_size=10, augment="", mixed_precision="bf16")
    losses = []
    for stacked in (False, True):
        rows, generators = streams(recipe=recipe)
        losses.append(
            ClassifierEnsemble(learners(recipe=recipe), stacked).step([next(row) for row in rows], generators)
        )
    assert losses[1].shape == (3,)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("stacked", [False, True])
def test_one_batch_can_be_seen_by_all(stacked):
    """As if each were trained alone on the same stream."""
    for recipe in (FIRM, MIXED):
        told = {"recipe": recipe, "double": True}
        expected, _ = trained_alone(learners(recipe=recipe, dtype=torch.float64), 8, seeds=[4, 4, 4], **told)
        together = ClassifierEnsemble(learners(recipe=recipe, dtype=torch.float64), stacked)
        rows, generators = streams(seeds=[4], **told)
        together.fit(rows, 8, generators)
        assert_equal(together.learners, expected, **EXACT)


@pytest.mark.parametrize("stacked_first", [False, True])
def test_a_checkpoint_goes_on_in_the_other_way(stacked_first):
    expected, _ = trained_alone(learners(dtype=torch.float64), 8, double=True)
    first = ClassifierEnsemble(learners(dtype=torch.float64), stacked_first)
    rows, generators = streams(double=True)
    first.fit(rows, 5, generators)
    fresh = learners(dtype=torch.float64, first=7)
    for learner, other in zip(fresh, first.learners, strict=True):
        learner.load_state_dict(other.state_dict())
    second = ClassifierEnsemble(fresh, not stacked_first)
    second.fit(rows, 3, generators)
    assert_equal(second.learners, expected, **EXACT)


def test_a_networks_state_holds_nothing_of_the_others():
    together, (rows, generators) = ClassifierEnsemble(learners(), stacked=True), streams()
    together.fit(rows, 2, generators)
    state = together.learners[1].state_dict()
    kept = [*state["network"].values(), *(x["momentum_buffer"] for x in state["optimizer"]["state"].values())]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)


def test_being_looked_at_changes_nothing():
    looked_at, left = ClassifierEnsemble(learners(), stacked=True), ClassifierEnsemble(learners(), stacked=True)
    for each in (looked_at, left):
        rows, generators = streams()
        for _ in range(3):
            each.fit(rows, 1, generators)
            if each is looked_at:
                assert each.learners[0].network.training
    assert_equal(looked_at.learners, left.learners, rtol=0, atol=0)


def test_frozen_weights_stay_as_they_are():
    both = [learners(dtype=torch.float64) for _ in range(2)]
    for learner in (learner for each in both for learner in each):
        learner.network.early.requires_grad_(False)
    expected, _ = trained_alone(both[0], 4, double=True)
    together, (rows, generators) = ClassifierEnsemble(both[1], stacked=True), streams(double=True)
    together.fit(rows, 4, generators)
    assert_equal(together.learners, expected, **EXACT)


# What cannot be stacked, and what it costs.


def test_batches_that_differ_in_shape_end_the_stacking(caplog):
    caplog.set_level(logging.INFO, "hf_gdd")
    expected, (rows, generators) = learners(dtype=torch.float64), streams(double=True)
    together = ClassifierEnsemble(learners(dtype=torch.float64), stacked=True)
    others = [torch.Generator().manual_seed(i) for i in range(3)]
    for generator in others:
        torch.randperm(len(DIGITS), generator=generator)  # as each epoch begins
    for sizes in ((6, 6, 6), (6, 5, 4), (6, 6, 6)):
        batches = [tuple(part[:size] for part in next(row)) for row, size in zip(rows, sizes, strict=True)]
        together.step(batches, generators)
        for learner, batch, generator in zip(expected, batches, others, strict=True):
            learner.step(*batch, generator)
    assert_equal(together.learners, expected, **EXACT)
    assert caplog.messages == ["Networks are trained one by one from here on: their batches differ in shape."]


class Undecided(nn.Module):
    """Looks at its images before it knows what to do."""

    def __init__(self, num_classes, shape):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.linear(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


class Forgetful(nn.Sequential):
    """Draws from torch's global generator, in another order if stacked."""

    def __init__(self, num_classes, shape):
        super().__init__(nn.Flatten(), nn.Dropout(), nn.Linear(64, num_classes))


@pytest.fixture
def stacked_on_cpu(monkeypatch):
    """Let a CPU try, too."""
    monkeypatch.setattr(cohort, "STACKED_ON", ("cpu",))
    stacking_pays.cache_clear()
    yield
    stacking_pays.cache_clear()


@pytest.mark.usefixtures("stacked_on_cpu")
@pytest.mark.parametrize(("network", "reason"), [(Undecided, "data-dependent control flow"), (Forgetful, "random")])
def test_networks_that_cannot_be_stacked_are_trained_one_by_one(caplog, network, reason):
    caplog.set_level(logging.INFO, "hf_gdd")
    assert not stacking_pays(3, network, 10, DIGITS.shape, CPU, FIRM, 10)
    (said,) = caplog.messages
    assert said.startswith(f"3 networks {network.__name__}, 10 images a step: one by one, for they cannot be stacked (")
    assert reason in said


@pytest.mark.usefixtures("stacked_on_cpu")
@pytest.mark.parametrize(("alone", "together", "pays"), [(1.0, 2.0, True), (1.0, 2.9, False), (1.0, 4.0, False)])
def test_the_faster_way_is_taken_and_remembered(monkeypatch, caplog, alone, together, pays):
    caplog.set_level(logging.INFO, "hf_gdd")
    timed = []

    def seconds(each, batch):
        timed.append(len(each.learners))
        return alone if len(each.learners) == 1 else together

    monkeypatch.setattr(cohort, "_step_seconds", seconds)
    for _ in range(2):
        assert stacking_pays(3, "convnet1", 10, DIGITS.shape, CPU, FIRM, 10) == pays
    assert timed == [1, 3]
    how = "stacked" if pays else "one by one"
    (said,) = caplog.messages
    assert said.startswith(f"3 networks convnet1, 10 images a step: {how}, for a step takes {1000 * together:.1f} ms")


@pytest.mark.usefixtures("stacked_on_cpu")
def test_a_trial_leaves_the_random_numbers_as_they_were():
    state = torch.get_rng_state()
    assert isinstance(stacking_pays(2, "convnet1", 10, DIGITS.shape, CPU, FIRM, 4), bool)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_single_network_or_a_cpu_needs_no_trial(monkeypatch):
    monkeypatch.setattr(cohort, "_step_seconds", lambda *args: pytest.fail("tried"))
    monkeypatch.setattr(cohort, "stack_module_state", lambda *args: pytest.fail("stacked"))
    told = ("convnet1", 10, DIGITS.shape)
    assert not stacking_pays(1, *told, torch.device("cuda"), FIRM, 10)
    assert not stacking_pays(5, *told, CPU, FIRM, 10)
    ClassifierEnsemble(learners(n=1), stacked=True)


def test_all_go_in_step_or_each_alone(monkeypatch):
    told = ("convnet1", DIGITS, FIRM, 10)
    assert in_step("abc", *told) == ["a", "b", "c"]
    monkeypatch.setattr(cohort, "stacking_pays", lambda n, *args: n > 1)
    assert in_step("abcde", *told) == ["abcde"]
    monkeypatch.setattr(cohort, "_TOGETHER", 2)
    assert in_step("abcde", *told) == ["ab", "cd", "e"]
    assert in_step("", *told) == []
