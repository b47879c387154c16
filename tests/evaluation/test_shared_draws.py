"""Networks trained together: stacked, or on the draws of the first one."""

from dataclasses import replace

import pytest
import torch
from toys import NAMES, QUICK, RIGHT, BatchNormed, TaughtToy, ToyGenerator, learner, normalization, toy

from hf_gdd.classifiers import ensemble
from hf_gdd.classifiers.ensemble import ClassifierEnsemble
from hf_gdd.classifiers.learner import accuracy, iterate_epochs
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.distilled.stream import DistilledStream
from hf_gdd.evaluation import evaluator
from hf_gdd.evaluation.evaluate import baselines, evaluate
from hf_gdd.report import FULL_DATA, RANDOM_REAL, Report
from hf_gdd.utils.random import Random

STEADY = QUICK | {"recipe": Recipe(max_steps=8, lr=0.03), "n": 3}


@pytest.mark.parametrize("shared", [False, True])
def test_stacked_networks_are_as_accurate_as_one_by_one(monkeypatch, shared):
    protocols = ("fixed", "soft", "dynamic-best5-test", "dynamic-pool-2")
    settings = STEADY | {"networks": ("convnet1", BatchNormed), "ipc": 4, "protocol": protocols, "shared_draws": shared}
    reports = []
    for stacked in (False, True):
        for module in (evaluator, ensemble):  # by rule only networks on a GPU are stacked
            monkeypatch.setattr(module, "can_stack", lambda *args, chosen=stacked: chosen)
        stub = TaughtToy(RIGHT, max_ipc=None, contrast=5)
        reports.append(evaluate(stub, toy(seed=1, contrast=5), real=toy(contrast=5), quality=True, **settings))
    for one, other in zip(*(report.results for report in reports), strict=True):
        assert replace(one, accuracies=(), seconds=0) == replace(other, accuracies=(), seconds=0)
        assert one.accuracies == pytest.approx(other.accuracies, abs=1.01 / 60)  # of 60 images, one near a border
    for one, other in zip(*(report.quality for report in reports), strict=True):
        assert one.mean("label_accuracy") == pytest.approx(other.mean("label_accuracy"), abs=0.05)


def alone(train, test, seed, number, batches, steps):
    """The accuracy of network `number` of a seed, trained by itself on batches and draws of the first network."""
    draws = Random(seed).rng
    student = learner(test, STEADY["recipe"], steps, seed=seed + number)
    student.transform = normalization(train)
    ClassifierEnsemble([student]).fit([batches(draws)], steps, [draws])
    return accuracy(student.network, test, normalization(train))


def test_with_shared_draws_networks_differ_by_their_first_weights_alone():
    real, test, generator = toy(contrast=5), toy(seed=1, contrast=5), ToyGenerator(contrast=5)
    settings = STEADY | {
        "real": real,
        "ipc": 4,
        "seed": 11,
        "image_seed": 11,
        "protocol": ("fixed", "dynamic"),
        "shared_draws": True,
    }
    report = evaluate(generator, test, **settings)
    stream = [pair for _, pairs in generator.asked[1:] for pair in pairs]
    assert [seed for seed, _ in generator.asked] == [11] * len(generator.asked)
    assert len(stream) == len(set(stream)) == 8 * 12  # made once for all three networks
    labels, indices = torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3)
    made = ImageTensors(generator.sample(labels, indices, 11), labels, NAMES, "made", torch.device("cpu"))
    recipe, size = STEADY["recipe"], STEADY["recipe"].batch_size
    expected = {
        ("stub", "fixed"): lambda i: lambda draws: iterate_epochs(made, recipe, draws),
        ("stub", "dynamic"): lambda i: lambda draws: DistilledStream(generator, 4, 11, size).batches(8),
        (RANDOM_REAL, "fixed"): lambda i: lambda draws: iterate_epochs(real.subset(4, 11 + i), recipe, draws),
        (FULL_DATA, "fixed"): lambda i: lambda draws: iterate_epochs(real, recipe, draws),
    }
    assert {(row.name, row.protocol): row.accuracies for row in report.results} == {
        row: tuple(alone(real, test, 11, i, batches(i), 8) for i in range(3)) for row, batches in expected.items()
    }
    assert report.shared_draws
    apart = evaluate(ToyGenerator(contrast=5), test, **settings | {"shared_draws": False})
    with pytest.raises(ValueError, match="differ in 'shared_draws'"):
        Report.merge([report, apart])
    for one, other in zip(report.results, apart.results, strict=True):
        assert one.accuracies[0] == other.accuracies[0]  # whose stream it is
        assert one.accuracies[1:] != other.accuracies[1:]


def test_baselines_share_draws_too():
    real, test = toy(contrast=5), toy(seed=1, contrast=5)
    together = evaluate(ToyGenerator(), test, real=real, ipc=4, shared_draws=True, **STEADY)
    assert [row.accuracies for row in baselines(real, test, ipc=(4,), shared_draws=True, **STEADY).results] == [
        row.accuracies for row in together.results[1:]
    ]
