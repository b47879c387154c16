"""Accuracies of networks trained on a set or a generator, beside their baselines."""

import pytest
import torch
from toys import NAMES, QUICK, SHORT, BatchNormed, ToyGenerator, normalization, toy

from hf_gdd.classifiers.learner import Learner
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize
from hf_gdd.evaluation import evaluator
from hf_gdd.evaluation.evaluate import baselines, evaluate
from hf_gdd.evaluation.references import evaluate_references
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.report import FULL_DATA, RANDOM_REAL, Report


def test_a_generator_is_evaluated_as_its_materialized_set():
    generator, real, test = ToyGenerator(contrast=5), toy(contrast=5), toy(seed=1, contrast=5)
    labels, indices = torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3)
    images = ToyGenerator(contrast=5).sample(labels, indices, seed=0)
    data = ImageTensors(images, labels, NAMES, "made", torch.device("cpu")).to_dataset()
    settings = QUICK | {"real": real, "with_baselines": False, "recipe": Recipe(max_steps=30, lr=0.05)}
    from_generator = evaluate(generator, test, ipc=4, **settings).results[0]
    from_data = evaluate(data, test, **settings).results[0]
    assert from_generator.accuracies == from_data.accuracies
    assert len(set(from_data.accuracies)) == 2  # or they would tell nothing
    assert (from_generator.ipc, from_data.ipc) == (4, 4)
    assert (from_generator.name, from_data.name) == ("stub", "dataset")
    assert (from_generator.generator_seed, from_data.generator_seed) == (7, None)
    assert from_data.stored_bytes == from_generator.stored_bytes == 12 * 64
    assert from_generator.steps == 30
    assert from_generator.distinct_images == 12
    assert generator.asked == [(0, list(zip(labels.tolist(), indices.tolist(), strict=True)))]


def test_a_real_generator_is_evaluated():
    torch.manual_seed(0)
    generator = ConditionalGANGenerator(NAMES, (1, 8, 8), width=4, training={"method": "dim", "seed": 2})
    (result,) = evaluate(generator, toy(), ipc=2, protocol="dynamic", **QUICK).results
    assert (result.name, result.generator_seed, result.stored_bytes) == ("dim", 2, generator.stored_bytes)
    assert all(0 <= share <= 1 for share in result.accuracies)


def test_every_run_of_random_real_has_its_own_subset_and_network(monkeypatch):
    subsets, networks, subset, build = [], [], ImageTensors.subset, build_network
    monkeypatch.setattr(ImageTensors, "subset", lambda self, *args: subsets.append(args) or subset(self, *args))
    real, test = toy(), toy(seed=1)
    subject = evaluator.Evaluator(test, normalization(real), ("convnet1",), 3, SHORT, 20, False)
    record = lambda *args, seed: networks.append(seed) or build(*args, seed=seed)  # noqa: E731
    monkeypatch.setattr(evaluator, "build_network", record)
    result = evaluate_references(subject, real, [2])[0]
    assert subsets == [(2, 20), (2, 21), (2, 22)]
    assert networks == [20, 21, 22] * 2  # the same ones for the full data
    assert (result.name, result.ipc, result.distinct_images, result.seeds) == (RANDOM_REAL, 2, 6, (20, 21, 22))


def test_several_ipcs_and_protocols_share_their_baselines():
    report = evaluate(ToyGenerator(), toy(seed=1), real=toy(), ipc=(2, 4, 2), protocol=("fixed", "dynamic"), **QUICK)
    assert [(r.name, r.protocol, r.ipc) for r in report.results] == [
        ("stub", "fixed", 2),
        ("stub", "dynamic", 2),
        ("stub", "fixed", 4),
        ("stub", "dynamic", 4),
        (RANDOM_REAL, "fixed", 2),
        (RANDOM_REAL, "fixed", 4),
        (FULL_DATA, "fixed", None),
    ]
    for alone in ({"ipc": 4}, {"ipc": 2, "protocol": "dynamic"}):
        (expected,) = evaluate(ToyGenerator(), toy(seed=1), real=toy(), with_baselines=False, **alone, **QUICK).results
        (found,) = report.find("stub", **{"protocol": "fixed"} | alone)
        assert found.accuracies == expected.accuracies


def test_the_real_set_gives_normalization_and_baselines(monkeypatch):
    seen, normalize = set(), Normalize.__call__
    monkeypatch.setattr(Normalize, "__call__", lambda self, unit: seen.add(self.mean) or normalize(self, unit))
    real, test = toy(per_class=9), toy(seed=1)
    report = evaluate(ToyGenerator(), test, real=real, ipc=4, **QUICK)
    assert seen == {real.mean}
    assert report.normalization == "the real training set"
    assert [(r.name, r.ipc, r.steps, r.distinct_images) for r in report.results] == [
        ("stub", 4, 5, 12),
        (RANDOM_REAL, 4, 5, 12),
        (FULL_DATA, None, 5, 27),
    ]
    assert report.problems == ()
    assert real.fingerprint[:12] in report.train
    assert test.fingerprint[:12] in report.test


def test_without_the_real_set_the_report_says_what_is_missing(monkeypatch):
    seen, normalize = set(), Normalize.__call__
    monkeypatch.setattr(Normalize, "__call__", lambda self, unit: seen.add(self.mean) or normalize(self, unit))
    report = evaluate(ToyGenerator(), toy(), ipc=4, **QUICK)
    assert seen == {ToyGenerator.mean}
    assert "the generator's record" in report.normalization
    assert [result.name for result in report.results] == ["stub"]
    assert any("no random-real baseline" in problem for problem in report.problems)
    seen.clear()
    data = toy(per_class=4)
    report = evaluate(data, toy(), **QUICK)
    assert seen == {data.mean}
    assert report.normalization == "the evaluated set itself"


def test_baselines_can_be_taken_apart_and_merged():
    real, test = toy(contrast=10), toy(seed=1, contrast=10)
    together = evaluate(ToyGenerator(), test, real=real, ipc=4, **QUICK)
    alone = evaluate(ToyGenerator(), test, real=real, ipc=4, with_baselines=False, **QUICK)
    subsets = baselines(real, test, ipc=(4,), full_data=False, **QUICK)
    merged = Report.merge([alone, subsets, baselines(real, test, ipc=(), **QUICK)])
    assert [(r.cell, r.accuracies) for r in merged.results] == [(r.cell, r.accuracies) for r in together.results]
    assert merged.problems == ()


def test_a_floor_that_full_data_misses_makes_the_report_invalid():
    real, test = toy(contrast=0), toy(seed=1, contrast=0)
    settings = QUICK | {"recipe": Recipe(max_steps=2, floor=1.0)}
    report = evaluate(ToyGenerator(), test, real=real, ipc=4, **settings)
    assert not report.valid
    assert any(problem.startswith("recipe invalid") for problem in report.problems)
    assert "recipe invalid" in report.markdown()
    assert evaluate(ToyGenerator(), test, real=real, ipc=4, **settings | {"recipe": Recipe(max_steps=2)}).valid


def test_the_same_seed_gives_the_same_accuracies():
    test, settings = toy(seed=1, contrast=5), QUICK | {"real": toy(contrast=5), "with_baselines": False}

    def accuracies(seed):
        seeds = {"seed": seed, "image_seed": seed}
        report = evaluate(ToyGenerator(contrast=5), test, ipc=3, protocol="dynamic", **seeds, **settings)
        return report.results[0].accuracies

    first = accuracies(0)
    assert accuracies(0) == first
    assert accuracies(1)[0] == first[1]  # network i of seed s is network 0 of seed s + i
    assert first[0] != first[1]


def test_every_architecture_has_a_result():
    report = evaluate(ToyGenerator(), toy(), ipc=2, **QUICK | {"networks": ("convnet1", BatchNormed), "n": 3})
    assert [(r.network, len(r.accuracies)) for r in report.results] == [("convnet1", 3), ("BatchNormed", 3)]


SHUFFLED = ("bee", "ant", "cat")


@pytest.mark.parametrize(
    ("train", "test", "changes", "message"),
    [
        (ToyGenerator(), toy(), {"ipc": None}, "say how many per class with ipc=10"),
        (ToyGenerator(), toy(), {"ipc": 0}, "ipc is 0; ask for a whole number"),
        (ToyGenerator(), toy(), {"ipc": 1.5}, "ipc is 1.5; ask for a whole number"),
        (ToyGenerator(max_ipc=5), toy(), {"ipc": 6}, "ipc is 6, but this generator holds 5"),
        (
            ToyGenerator(max_ipc=5),
            toy(),
            {"ipc": 5, "protocol": "dynamic"},
            "holds 5 images per class, no fresh ones for 'dynamic': evaluate it under 'fixed'",
        ),
        (ToyGenerator(), toy(), {"ipc": 2, "protocol": "best"}, "Unknown protocol 'best'; choose one of fixed, soft"),
        (toy(), toy(), {"protocol": "dynamic"}, "'fixed' or 'soft'; 'dynamic' needs a generator"),
        (toy(), toy(), {"protocol": "soft"}, "There are no soft labels"),
        (ToyGenerator(), toy(), {"ipc": 2, "protocol": ("fixed", "soft")}, "There are no soft labels"),
        (ToyGenerator(), toy(), {"ipc": 2, "n": 0}, "n is 0; train at least 1 network"),
        (ToyGenerator(), toy(), {"ipc": 2, "networks": ("convnet1", "convnet33")}, "Unknown network 'convnet33'"),
        (ToyGenerator(), toy(), {"ipc": 2, "recipe": "huge"}, "Unknown recipe 'huge'"),
        (ToyGenerator(), toy(names=SHUFFLED), {"ipc": 2}, "Label 0 is 'bee' in .* but 'ant'"),
        (toy(), toy(names=(*NAMES, "dog")), {}, "Label 3 is 'dog' in .* but None"),
        (ToyGenerator(), toy(), {"ipc": 2, "real": toy(names=SHUFFLED)}, "Label 0 is 'ant' in .* but 'bee'"),
        (ToyGenerator(), toy(size=10), {"ipc": 2}, r"\(1, 10, 10\).*\(1, 8, 8\).*image_size"),
        (ToyGenerator(), toy(), {"ipc": 2, "real": toy(channels=3)}, r"\(1, 8, 8\).*\(3, 8, 8\)"),
        (ToyGenerator(), toy(), {"ipc": 9, "real": toy(per_class=8)}, "has 8 images and needs 9"),
        (toy(per_class=4), toy(), {"ipc": 50}, "ipc"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_would_make_the_result_wrong_is_refused_before_training(monkeypatch, train, test, changes, message):
    monkeypatch.setattr(Learner, "step", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        evaluate(train, test, **QUICK | changes)


def test_baselines_refuse_an_ipc_that_the_real_set_cannot_give_before_training(monkeypatch):
    monkeypatch.setattr(Learner, "step", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match="has 8 images and needs 9"):
        baselines(toy(per_class=8), toy(), ipc=(2, 9), **QUICK)


def test_no_network_is_refused():
    with pytest.raises(ValueError, match="at least one network"):
        evaluate(ToyGenerator(), toy(), ipc=2, networks=())
