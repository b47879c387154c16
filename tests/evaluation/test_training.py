"""Recipes, and the one loop that trains every classifier."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from toys import SHORT, BatchNormed, learner, normalization, random, toy

from hf_gdd.classifiers.ensemble import ClassifierEnsemble
from hf_gdd.classifiers.learner import accuracy, iterate_epochs
from hf_gdd.classifiers.recipes import RECIPES, Recipe, find_recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, r"Recipe\.epochs is 0; it must be positive"),
        ({"batch_size": 0}, r"Recipe\.batch_size is 0"),
        ({"lr": -0.1}, r"Recipe\.lr is -0.1"),
        ({"max_steps": 0}, r"Recipe\.max_steps is 0; pass a positive number, or None"),
        ({"schedule": "linear"}, "Unknown schedule 'linear'; choose one of constant, cosine"),
        ({"augment": "hue"}, "Unknown augmentation 'hue'"),
    ],
    ids=str,
)
def test_recipes_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


@pytest.mark.parametrize(("ipc", "batches"), [(1, 1), (10, 2), (50, 8)])
def test_steps_of_a_recipe(ipc, batches):
    assert Recipe(batch_size=64).batches(10 * ipc) == batches
    assert Recipe(epochs=1000, batch_size=64).steps(10 * ipc) == 1000 * batches
    assert Recipe(epochs=1000, batch_size=64, max_steps=1500).steps(10 * ipc) == min(1000 * batches, 1500)


def test_recipes_are_found_by_name():
    assert find_recipe(None) == find_recipe("paper") == RECIPES["paper"] == Recipe()
    assert find_recipe("tiny") == Recipe(batch_size=32, max_steps=300, lr=0.05, schedule="cosine", floor=0.97)
    assert find_recipe(SHORT) is SHORT
    names = "paper, imagenet-subset, prediction-matching, short, tiny"
    with pytest.raises(ValueError, match=f"Unknown recipe 'huge'; choose one of {names}"):
        find_recipe("huge")


def test_an_epoch_has_every_image_once_in_batches_of_nearly_equal_size():
    data, recipe = toy(per_class=7), Recipe(batch_size=8)  # 21 images in 3 batches
    batches = iterate_epochs(data, recipe, random())
    epochs = [[next(batches) for _ in range(3)] for _ in range(2)]
    every = sorted(image.numpy().tobytes() for image in data.images)
    for epoch in epochs:
        assert [len(labels) for _, labels in epoch] == [7, 7, 7]
        assert sorted(image.numpy().tobytes() for images, _ in epoch for image in images) == every
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_separable_classes_are_learned():
    train, test = toy(seed=0), toy(seed=1)
    recipe = Recipe(lr=0.05, augment="", batch_size=20)
    student = learner(train, recipe, 40)
    before = accuracy(student.network, test, normalization(train))
    ClassifierEnsemble([student]).fit([iterate_epochs(train, recipe, random())], 40, [random(1)])
    assert before < 0.8
    assert accuracy(student.network, test, normalization(train)) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_learner_resumes_exactly(schedule):
    data, recipe = toy(), Recipe(schedule=schedule, lr=0.1)
    first, generator = learner(data, recipe, steps=6, network="resnet10-dd"), random()
    for _ in range(3):
        first.step(data.images, data.labels, generator)
    state, drawn = first.state_dict(), generator.get_state()
    state = deepcopy(state)
    second, other = learner(data, recipe, steps=6, network="resnet10-dd", seed=9), random(5)
    second.load_state_dict(state)
    other.set_state(drawn)
    losses = [
        [float(s.step(data.images, data.labels, g)) for _ in range(3)] for s, g in ((first, generator), (second, other))
    ]
    assert losses[0] == losses[1]
    rate = second.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(0.1 if schedule == "constant" else 0.0)
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name])


def test_accuracy_does_not_depend_on_the_batch_size():
    """With batch statistics an image would be classified by its neighbors."""
    data = toy()
    student = learner(data, Recipe(lr=0.1, augment=""), 100, network=BatchNormed)
    ClassifierEnsemble([student]).fit([iterate_epochs(data, SHORT, random())], 10, [random()])
    statistics = student.network.network[1].running_mean.clone()
    shares = {size: accuracy(student.network, data, normalization(data), batch_size=size) for size in (1, 7, 1000)}
    assert len(set(shares.values())) == 1
    assert shares[7] > 0.5
    assert torch.equal(student.network.network[1].running_mean, statistics)
    assert student.network.training


def test_accuracy_counts_correct_answers():
    data = toy(per_class=5)

    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3), None

    assert accuracy(Constant(), data, normalization(data)) == pytest.approx(1 / 3)


def test_a_step_on_logits_is_one_of_their_mean_absolute_difference():
    data = toy()
    student, images = learner(data, Recipe(augment="")), data.images[:6]
    with torch.no_grad():
        expected = (student.network(student.transform(images / 255))[0] - 1).abs().mean()
    torch.testing.assert_close(student.step(images, torch.ones(6, 3), random()), expected)


def test_floats_are_taken_as_they_are():
    data = toy()
    one, other = learner(data), learner(data)
    loss = one.step(data.images[:6], data.labels[:6], random())
    torch.testing.assert_close(loss, other.step(one.transform(data.images[:6] / 255), data.labels[:6], random()))


def test_the_rate_falls_to_a_tenth_after_half():
    """As the public code, which drops it at epoch E/2 + 1 of E + 1."""
    student = learner(toy(), Recipe(schedule="halved", lr=0.5), steps=251)
    rates = []
    for _ in range(251):
        rates.append(student.optimizer.param_groups[0]["lr"])
        student.optimizer.step()
        student.schedule.step()
    assert rates == [0.5] * 126 + [0.05] * 125
