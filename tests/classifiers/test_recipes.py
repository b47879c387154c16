"""Recipes: epochs for a set of some size, learning-rate schedules, names."""

from dataclasses import asdict, replace

import pytest

from hf_gdd.classifiers.recipes import RECIPES, SCHEDULES, Recipe, find_recipe


@pytest.mark.parametrize(
    ("ipc", "classes", "epochs"),
    [
        *((1, 10, 3000), (2, 10, 2000), (10, 10, 2000), (50, 10, 1500), (100, 10, 1000), (500, 10, 500)),
        *((1000, 10, 300), (None, 10, 300), (10, 100, 1300), (50, 100, 1000), (None, 100, 200)),
    ],
)
def test_epochs_depend_on_the_images_of_a_class(ipc, classes, epochs):
    assert RECIPES["imagenet-subset"].for_ipc(ipc, classes).epochs == epochs
    assert Recipe().for_ipc(ipc, classes) == Recipe()


def test_the_rate_falls_by_steps():
    assert [SCHEDULES["steps"](done) for done in (0, 0.66, 0.67, 0.83, 0.84, 1)] == pytest.approx(
        [1, 1, 0.2, 0.2, 0.04, 0.04]
    )


def test_recipes_by_name():
    assert find_recipe(None) == find_recipe("paper") == Recipe()
    assert find_recipe("tiny") is RECIPES["tiny"]
    own = Recipe(epochs=1)
    assert find_recipe(own) is own
    with pytest.raises(ValueError, match="Unknown recipe 'huge'; choose one of paper, "):
        find_recipe("huge")


def test_records_of_versions_without_a_choice_of_soft_loss_stay_valid():
    """They have no such fields: reports, keys of teachers and records of experiments are compared with them."""
    former = asdict(Recipe())
    del former["soft_loss"], former["temperature"]
    assert Recipe().identity() == Recipe(temperature=5.0).identity() == former
    softened = Recipe(soft_loss="kl", temperature=5.0)
    assert softened.identity() == former | {"soft_loss": "kl", "temperature": 5.0}
    assert replace(softened, **softened.identity()) == softened


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"soft_loss": "l2"}, "Unknown soft_loss 'l2'; choose l1 or kl"),
        ({"temperature": 0.0}, r"Recipe\.temperature is 0.0; it must be positive"),
    ],
)
def test_soft_losses_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)
