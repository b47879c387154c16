"""Protocols: which images networks see in each epoch, and how often they are tested."""

import pytest
import torch
from toys import QUICK, ToyGenerator, toy

from hf_gdd.classifiers.ensemble import ClassifierEnsemble
from hf_gdd.classifiers.learner import Learner
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.evaluation import evaluator
from hf_gdd.evaluation.evaluate import evaluate


def test_dynamic_shows_fresh_images_in_every_epoch_and_to_every_network():
    generator, fixed = ToyGenerator(), ToyGenerator()
    (result,) = evaluate(generator, toy(), ipc=4, protocol="dynamic", seed=5, image_seed=11, **QUICK).results
    evaluate(fixed, toy(), ipc=4, image_seed=11, **QUICK)
    streams = {}
    for seed, pairs in generator.asked:
        streams.setdefault(seed, []).extend(pairs)
    assert sorted(streams) == [11, 12]
    for pairs in streams.values():
        assert len(pairs) == len(set(pairs)) == 5 * 12
        assert set(pairs) == {(label, index) for label in range(3) for index in range(5 * 4)}
        assert set(pairs[:12]) == set(fixed.asked[0][1])
    assert (result.steps, result.distinct_images, result.stored_bytes) == (5, 60, 4321)
    assert result.protocol == "dynamic"
    assert result.seeds == (5, 6)
    assert result.sampling == "truncation=1.0, image_seed=11"


def scripted(monkeypatch, values):
    """Replace the test by given accuracies; a list of how many steps were taken before each."""
    taken, looks, step, answers = [], [], Learner.step, iter(values)
    monkeypatch.setattr(Learner, "step", lambda self, *args: taken.append(self) or step(self, *args))
    monkeypatch.setattr(evaluator, "accuracy", lambda *args: looks.append(len(taken)) or next(answers))
    return looks


def test_best_of_five_looks_five_times(monkeypatch):
    looks = scripted(monkeypatch, [0.1, 0.5, 0.3, 0.2, 0.4, 0.9, 0.8, 0.7, 0.6, 0.5])
    settings = QUICK | {"recipe": Recipe(max_steps=12)}
    (result,) = evaluate(ToyGenerator(), toy(), ipc=2, protocol="dynamic-best5-test", **settings).results
    assert result.accuracies == (0.5, 0.9)
    assert looks == [2, 4, 7, 9, 12, 14, 16, 19, 21, 24]


@pytest.mark.parametrize("protocol", ["fixed", "dynamic"])
def test_other_protocols_look_once_at_the_end(monkeypatch, protocol):
    looks = scripted(monkeypatch, [0.1, 0.9])
    (result,) = evaluate(ToyGenerator(), toy(), ipc=2, protocol=protocol, **QUICK).results
    assert looks == [5, 10]
    assert result.accuracies == (0.1, 0.9)


def test_best_of_five_is_no_worse_than_its_last_look():
    settings = QUICK | {"recipe": Recipe(max_steps=20)}
    test = toy(contrast=5)
    last, best = (
        evaluate(ToyGenerator(), test, ipc=2, protocol=protocol, **settings).results[0].accuracies
        for protocol in ("dynamic", "dynamic-best5-test")
    )
    assert all(b >= a for a, b in zip(last, best, strict=True))


def test_a_pool_goes_round_its_sets(monkeypatch):
    """Epochs 0, 1, 2, 0, 1, 2, ... of the same images as a stream's first three epochs."""
    shown = []

    def remember(self, batches, steps, generators):
        for _, (images, _) in zip(range(steps), *batches, strict=False):
            shown.append(images)

    monkeypatch.setattr(ClassifierEnsemble, "fit", remember)
    generator, recipe = ToyGenerator(), Recipe(max_steps=7, batch_size=64)
    options = QUICK | {"n": 1, "recipe": recipe}
    report = evaluate(generator, toy(), ipc=2, protocol="dynamic-pool-3", **options)
    epochs = [{tuple(image.flatten().tolist()) for image in images} for images in shown]
    expected = [
        {
            tuple(x.flatten().tolist())
            for x in generator.sample(torch.arange(3).repeat(2), torch.tensor([i] * 3 + [j] * 3))
        }
        for i, j in ((0, 1), (2, 3), (4, 5))
    ]
    assert epochs == [*expected, *expected, expected[0]]
    (row,) = report.results
    assert (row.protocol, row.distinct_images, row.stored_bytes) == ("dynamic-pool-3", 18, 18 * 64)


def test_a_set_and_a_pool_are_made_once_for_all_sizes():
    generator = ToyGenerator()
    evaluate(generator, toy(), ipc=(1, 4), protocol=("fixed", "dynamic-pool-2"), **QUICK)
    assert [len(rows) for _, rows in generator.asked] == [3 * 4 * 2]


@pytest.mark.parametrize("protocol", ["dynamic-pool", "dynamic-pool-0", "dynamic-pool-x", "pool-3"])
def test_pools_that_are_none_are_refused(protocol):
    with pytest.raises(ValueError, match="dynamic-pool-5"):
        evaluate(ToyGenerator(), toy(), ipc=1, protocol=protocol, **QUICK)


def test_a_bank_can_be_a_pool_as_far_as_it_goes():
    report = evaluate(ToyGenerator(max_ipc=6), toy(), ipc=2, protocol="dynamic-pool-3", **QUICK)
    assert report.results[0].distinct_images == 18  # five steps are five epochs of six, of which two are seen again
    with pytest.raises(ValueError, match="holds 6 images per class"):
        evaluate(ToyGenerator(max_ipc=6), toy(), ipc=2, protocol="dynamic-pool-4", **QUICK)
