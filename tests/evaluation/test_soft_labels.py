"""Networks that learn a teacher's logits, beside those that learn labels."""

from dataclasses import replace

import pytest
import torch
from toys import QUICK, RIGHT, TURNED, TaughtToy, ToyGenerator, toy

from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.normalization import ZCAWhitening
from hf_gdd.evaluation.evaluate import baselines, evaluate
from hf_gdd.report import RANDOM_REAL, Report

LEARNS = {"networks": "convnet1", "n": 2, "progress": False}
LEARNS |= {"recipe": Recipe(max_steps=80, lr=0.02, batch_size=20, augment="")}


def test_under_soft_networks_learn_the_logits_and_under_fixed_the_labels():
    stub = TaughtToy(TURNED)
    report = evaluate(stub, toy(seed=1), real=toy(), ipc=10, **LEARNS)
    found = {(row.name, row.protocol): row for row in report.results}
    assert found["stub", "fixed"].mean > 0.9
    assert found["stub", "soft"].mean < 0.1
    assert found[RANDOM_REAL, "fixed"].mean > 0.9
    assert found[RANDOM_REAL, "soft"].mean < 0.1
    assert ("full data", "soft") not in found
    assert [number for number, _ in stub.labeled] == [30, 30, 60]  # a subset for each network, and the test images
    assert found["stub", "soft"].stored_bytes == found["stub", "fixed"].stored_bytes + 30 * 3 * 2
    assert found[RANDOM_REAL, "soft"].stored_bytes == found["stub", "soft"].stored_bytes
    assert not report.problems


def test_both_protocols_are_taken_for_a_bank_and_fixed_never_stays_away():
    stub = TaughtToy(RIGHT)
    for asked, expected in ((None, ["fixed", "soft"]), ("soft", ["fixed", "soft"]), ("fixed", ["fixed"])):
        report = evaluate(stub, toy(), ipc=2, protocol=asked, **QUICK)
        assert [row.protocol for row in report.results] == expected
    assert [row.protocol for row in evaluate(ToyGenerator(), toy(), ipc=2, **QUICK).results] == ["fixed"]


def test_all_images_of_a_bank_are_evaluated_by_default():
    assert {row.ipc for row in evaluate(ToyGenerator(max_ipc=5), toy(), **QUICK).results} == {5}


def test_a_set_with_soft_labels_is_evaluated_by_them_too():
    data = toy()
    soft = replace(data, soft_labels=torch.tensor(TURNED)[data.labels].half())
    report = evaluate(soft.to_dataset(), toy(seed=1), real=data, **LEARNS)
    found = {(row.name, row.protocol): row.mean for row in report.results}
    assert found["dataset", "fixed"] > 0.9
    assert found["dataset", "soft"] < 0.1
    assert report.problems == (
        "no random-real baseline with soft labels of the same teacher: evaluate the generator, with real=",
    )


def test_baselines_of_many_banks_can_be_taken_at_once():
    stub = TaughtToy(RIGHT)
    shared = baselines(toy(), toy(seed=1), ipc=(2, 4), bank=stub, **QUICK)
    assert [(row.protocol, row.ipc) for row in shared.results] == [
        *(("fixed", 2), ("soft", 2), ("fixed", 4), ("soft", 4), ("fixed", None), ("fixed", None))
    ]
    banks = [evaluate(stub, toy(seed=1), real=toy(), ipc=ipc, with_baselines=False, **QUICK) for ipc in (2, 4)]
    assert not Report.merge([shared, *banks]).problems


def test_a_whitened_bank_is_evaluated_through_whitened_images():
    stub = TaughtToy(RIGHT)
    stub.zca = True
    report = evaluate(stub, toy(), real=toy(), ipc=2, **QUICK)
    assert "whitened" in report.normalization
    evaluate(stub, toy(), real=toy(), ipc=2, zca=False, **QUICK)  # whatever networks see, the teacher sees its own
    assert [type(transform) for _, transform in stub.labeled] == [ZCAWhitening] * 6
    soft = replace(toy(), soft_labels=torch.tensor(RIGHT)[toy().labels].half())
    seen = [evaluate(soft, toy(), real=toy(), zca=zca, **QUICK).normalization for zca in (None, True)]
    assert ["whitened" in text for text in seen] == [False, True]
    for source in ({"train": stub, "ipc": 2}, {"train": soft, "zca": True}):
        with pytest.raises(ValueError, match="whitened over the real training set: pass real="):
            evaluate(**source, test=toy(), **QUICK)
