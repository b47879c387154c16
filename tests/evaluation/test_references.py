"""Coresets of real images stand beside random ones where they are asked for."""

import pytest
import torch
from toys import QUICK, RIGHT, TaughtToy, ToyGenerator, toy

from hf_gdd.classifiers.coresets import CORESETS, coreset_features, select_coreset
from hf_gdd.classifiers.learner import Learner
from hf_gdd.evaluation import evaluator as module
from hf_gdd.evaluation.evaluate import baselines, evaluate
from hf_gdd.report import FULL_DATA, RANDOM_REAL, REFERENCES, Report


def test_coresets_stand_beside_random_subsets():
    settings = QUICK | {"real": toy(), "ipc": (2, 4)}
    report = evaluate(ToyGenerator(), toy(seed=1), coresets=("herding", "k-center"), **settings)
    expected = [("stub", 2), ("stub", 4)]
    expected += [(name, ipc) for ipc in (2, 4) for name in (RANDOM_REAL, "herding", "k-center")]
    assert [(row.name, row.ipc) for row in report.results] == [*expected, (FULL_DATA, None)]
    assert not report.problems
    assert {row.stored_bytes for row in report.find("herding", ipc=4)} == {3 * 4 * 64}
    plain = evaluate(ToyGenerator(), toy(seed=1), **settings)
    assert [row.accuracies for row in plain.results] == [
        row.accuracies for row in report.results if row.name not in CORESETS
    ]
    shared = baselines(toy(), toy(seed=1), ipc=(2, 4), coresets="herding", **QUICK)
    alone = evaluate(ToyGenerator(), toy(seed=1), with_baselines=False, **settings)
    assert [row.accuracies for row in Report.merge([shared, alone]).find("herding")] == [
        row.accuracies for row in report.find("herding")
    ]


def test_all_networks_learn_the_images_that_the_rule_chooses(monkeypatch):
    real, shown, evaluate_set = toy(), {}, module.Evaluator.evaluate_set

    def remember(self, data, images, stored_bytes, **row):
        shown[row["name"]] = [data(i) for i in range(self.n)]
        return evaluate_set(self, data, images, stored_bytes, **row)

    monkeypatch.setattr(module.Evaluator, "evaluate_set", remember)
    baselines(real, toy(seed=1), ipc=3, coresets="herding", seed=5, **QUICK)
    features = coreset_features("convnet1", real, QUICK["recipe"], seed=5)
    rows = torch.cat(select_coreset("herding", features, real.labels, 3))
    for data in shown["herding"]:
        assert torch.equal(data.images, real.images[rows])
        assert torch.equal(data.labels, real.labels[rows])
    assert not torch.equal(shown[RANDOM_REAL][0].images, shown[RANDOM_REAL][1].images)


def test_coresets_have_the_labels_of_the_teacher_too():
    report = evaluate(TaughtToy(RIGHT), toy(seed=1), real=toy(), ipc=2, coresets=("herding",), **QUICK)
    assert [row.protocol for row in report.find("herding")] == ["fixed", "soft"]


def test_every_coreset_is_a_reference():
    """It is of real images: the first line of a report is not about it."""
    assert CORESETS.keys() <= {*REFERENCES}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coresets": "magic"}, "Unknown coreset 'magic'; choose of herding, k-center"),
        ({"coresets": "herding", "real": None}, "pass real="),
        ({"coresets": "herding", "with_baselines": False}, "leave with_baselines as it is"),
    ],
)
def test_coresets_that_cannot_be_are_refused_before_training(monkeypatch, options, message):
    monkeypatch.setattr(Learner, "step", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        evaluate(ToyGenerator(), toy(), ipc=2, **{"real": toy()} | options, **QUICK)
    with pytest.raises(ValueError, match="Unknown coreset"):
        baselines(toy(), toy(), ipc=2, coresets=("magic",), **QUICK)
