"""Networks trained together learn what each would learn alone, stacked or not."""

import logging
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn

from hf_gdd.classifiers import architectures, ensemble
from hf_gdd.classifiers.ensemble import ClassifierEnsemble, can_stack, stack_groups
from hf_gdd.classifiers.learner import Learner, iterate_epochs
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import input_transform
from hf_gdd.data.pixels import to_unit

DIGITS = ImageTensors.from_dataset("digits", device="cpu").subset(3, 0)
TRANSFORM = input_transform(DIGITS, zca=False)
FIRM = Recipe(batch_size=6, lr=0.05, momentum=0.9, weight_decay=0.01, schedule="cosine")


def learners(network="convnet1", recipe=FIRM, n=3, steps=20, dtype=torch.float32, first=0):
    made = [build_network(network, 10, DIGITS.shape, seed=first + i) for i in range(n)]
    return [Learner(each.to(dtype), TRANSFORM, recipe, steps) for each in made]


def resnet(num_classes, shape):
    """A `resnet10-dd`, with batch norm, that is narrow enough for a test."""
    return architectures._resnet(num_classes, shape, blocks=1, width=4)


def streams(n=3, recipe=FIRM, soft=False, double=False, seeds=None):
    """For each network a rng and batches drawn from it, as in evaluation; images may come as floats."""

    def batches(rng):
        for images, labels in iterate_epochs(DIGITS, recipe, rng):
            shown = TRANSFORM(to_unit(images)).double() if double else images
            yield shown, nn.functional.one_hot(labels, 10).to(shown.dtype) if soft else labels

    rngs = [torch.Generator().manual_seed(seed) for seed in (range(n) if seeds is None else seeds)]
    return [batches(rng) for rng in rngs], rngs


def trained_alone(each, steps=20, **how):
    """Learners after their steps, each by itself; and what their rngs are left at."""
    rows, rngs = streams(len(each), **how)
    for learner, batches, rng in zip(each, rows, rngs, strict=True):
        for batch in islice(batches, steps):
            learner.step(*batch, rng)
    return each, [rng.get_state() for rng in rngs]


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
CASES.append(("convnet1", replace(FIRM, soft_loss="kl"), True))


@pytest.mark.parametrize(("network", "recipe", "soft"), CASES)
def test_stacked_networks_learn_what_each_would_alone(network, recipe, soft):
    """Weights, running statistics and their count, momentum, schedule, and the place in the random numbers."""
    told = {"recipe": recipe, "soft": soft, "double": True}
    expected, states = trained_alone(learners(network, recipe, dtype=torch.float64), **told)
    together, (rows, rngs) = (
        ClassifierEnsemble(learners(network, recipe, dtype=torch.float64), True),
        streams(**told),
    )
    together.fit(rows, 20, rngs)
    assert_equal(together.learners, expected, **EXACT)
    assert all(torch.equal(g.get_state(), state) for g, state in zip(rngs, states, strict=True))
    counts = [v for k, v in together.learners[2].network.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(count == 20 for count in counts)
    assert bool(counts) == (network is resnet)


@pytest.mark.parametrize("augment", ["color_crop", "dsa"])
@pytest.mark.parametrize("network", ["convnet1", resnet])
def test_pixels_are_augmented_by_each_networks_own_draws(network, augment):
    recipe = Recipe(batch_size=10, lr=0.01, augment=augment)
    expected, _ = trained_alone(learners(network, recipe), 6, recipe=recipe)
    together, (rows, rngs) = ClassifierEnsemble(learners(network, recipe), stacked=True), streams(recipe=recipe)
    together.fit(rows, 6, rngs)
    assert_equal(together.learners, expected, **ROUNDING)


def test_one_by_one_is_exactly_alone():
    expected, _ = trained_alone(learners(), 6)
    together, (rows, rngs) = ClassifierEnsemble(learners()), streams()
    together.fit(rows, 6, rngs)
    assert_equal(together.learners, expected, rtol=0, atol=0)


def test_losses_are_those_of_each_in_lower_precision_too():
    recipe = Recipe(batch_size=10, augment="", mixed_precision="bf16")
    losses = []
    for stacked in (False, True):
        rows, rngs = streams(recipe=recipe)
        losses.append(ClassifierEnsemble(learners(recipe=recipe), stacked).step([next(row) for row in rows], rngs))
    assert losses[1].shape == (3,)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("stacked", [False, True])
def test_one_batch_can_be_seen_by_all(stacked):
    """As if each were trained alone on the same stream."""
    for recipe in (FIRM, MIXED):
        told = {"recipe": recipe, "double": True}
        expected, _ = trained_alone(learners(recipe=recipe, dtype=torch.float64), 8, seeds=[4, 4, 4], **told)
        together = ClassifierEnsemble(learners(recipe=recipe, dtype=torch.float64), stacked)
        rows, rngs = streams(seeds=[4], **told)
        together.fit(rows, 8, rngs)
        assert_equal(together.learners, expected, **EXACT)


@pytest.mark.parametrize("stacked_first", [False, True])
def test_a_checkpoint_goes_on_in_the_other_way(stacked_first):
    expected, _ = trained_alone(learners(dtype=torch.float64), 8, double=True)
    first = ClassifierEnsemble(learners(dtype=torch.float64), stacked_first)
    rows, rngs = streams(double=True)
    first.fit(rows, 5, rngs)
    fresh = learners(dtype=torch.float64, first=7)
    for learner, other in zip(fresh, first.learners, strict=True):
        learner.load_state_dict(other.state_dict())
    second = ClassifierEnsemble(fresh, not stacked_first)
    second.fit(rows, 3, rngs)
    assert_equal(second.learners, expected, **EXACT)


def test_a_networks_state_holds_nothing_of_the_others():
    together, (rows, rngs) = ClassifierEnsemble(learners(), stacked=True), streams()
    together.fit(rows, 2, rngs)
    state = together.learners[1].state_dict()
    kept = [*state["network"].values(), *(x["momentum_buffer"] for x in state["optimizer"]["state"].values())]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)


def test_being_looked_at_changes_nothing():
    looked_at, left = ClassifierEnsemble(learners(), stacked=True), ClassifierEnsemble(learners(), stacked=True)
    for each in (looked_at, left):
        rows, rngs = streams()
        for _ in range(3):
            each.fit(rows, 1, rngs)
            if each is looked_at:
                assert each.learners[0].network.training
    assert_equal(looked_at.learners, left.learners, rtol=0, atol=0)


def test_frozen_weights_stay_as_they_are():
    both = [learners(dtype=torch.float64) for _ in range(2)]
    for learner in (learner for each in both for learner in each):
        learner.network.early.requires_grad_(False)
    expected, _ = trained_alone(both[0], 4, double=True)
    together, (rows, rngs) = ClassifierEnsemble(both[1], stacked=True), streams(double=True)
    together.fit(rows, 4, rngs)
    assert_equal(together.learners, expected, **EXACT)


# ---- what is stacked


def test_batches_that_differ_in_shape_end_the_stacking(caplog):
    caplog.set_level(logging.INFO, "hf_gdd")
    expected, (rows, rngs) = learners(dtype=torch.float64), streams(double=True)
    together = ClassifierEnsemble(learners(dtype=torch.float64), stacked=True)
    others = [torch.Generator().manual_seed(i) for i in range(3)]
    for rng in others:
        torch.randperm(len(DIGITS), generator=rng)  # as each epoch begins
    for sizes in ((6, 6, 6), (6, 5, 4), (6, 6, 6)):
        batches = [tuple(part[:size] for part in next(row)) for row, size in zip(rows, sizes, strict=True)]
        together.step(batches, rngs)
        for learner, batch, rng in zip(expected, batches, others, strict=True):
            learner.step(*batch, rng)
    assert_equal(together.learners, expected, **EXACT)
    assert caplog.messages == ["Networks are trained one by one from here on: their batches differ in shape."]


def test_a_single_network_is_not_stacked(monkeypatch):
    monkeypatch.setattr(ensemble, "stack_module_state", lambda *args: pytest.fail("stacked"))
    ClassifierEnsemble(learners(n=1), stacked=True)


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("network", "device", "stacked"),
    [("convnet1", GPU, True), ("convnet1", CPU, False), (resnet, GPU, False), (resnet, CPU, False)],
)
def test_named_networks_are_stacked_on_gpus(network, device, stacked):
    assert can_stack(network, device) == stacked
    assert stack_groups("abc", network, device) == (["abc"] if stacked else ["a", "b", "c"])


def test_a_stack_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(ensemble, "MAX_STACK", 2)
    assert stack_groups("abcde", "convnet1", GPU) == ["ab", "cd", "e"]
    assert stack_groups("", "convnet1", GPU) == []
