from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from hf_gdd.classifiers import learner as classifiers
from hf_gdd.classifiers.ensemble import ClassifierEnsemble
from hf_gdd.classifiers.learner import Learner, accuracy, iterate_epochs
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import RECIPES, Recipe, find_recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize, ZCAWhitening
from hf_gdd.distilled.stream import DistilledStream
from hf_gdd.evaluation import evaluator as judging
from hf_gdd.evaluation import image_quality as quality
from hf_gdd.evaluation.evaluate import baselines, evaluate
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.generators.noise import noise
from hf_gdd.generators.sampling import Sampling
from hf_gdd.report import FULL_DATA, RANDOM_REAL, Report
from hf_gdd.utils.random import Random

NAMES = ("ant", "bee", "cat")
SHORT = Recipe(max_steps=5)
NO_PROBLEM = {"networks": ("convnet1",), "n": 2, "recipe": SHORT, "progress": False}


def toy(per_class=20, seed=0, names=NAMES, size=8, channels=1, contrast=60):
    """Images of noise, those of a higher class brighter on the whole; a contrast of 5 makes them hard to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(names)).repeat(per_class)
    grain = torch.randint(0, 80, (len(labels), channels, size, size), generator=generator)
    images = (20 + grain + contrast * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ImageTensors(images, labels, names, f"toy{seed}:train", torch.device("cpu"))


class Stub:
    """A generator of noise, and a record of what it was asked for."""

    class_names, image_shape, mean, std = NAMES, (1, 8, 8), (0.4,), (0.2,)
    num_classes, device, stored_bytes, fingerprint = 3, torch.device("cpu"), 4321, "f" * 64
    sampling, report, method, seed = Sampling(), None, "stub", 7

    def __init__(self, max_ipc=None, contrast=50):
        self.max_ipc, self.contrast, self.asked = max_ipc, contrast, []

    def sample(self, labels, indices, seed=0, sampling=None):
        self.asked.append((seed, list(zip(labels.tolist(), indices.tolist(), strict=True))))
        grain = noise(seed, labels, indices, self.image_shape)
        return (60 + self.contrast * labels.view(-1, 1, 1, 1) + 20 * grain).clamp(0, 255).to(torch.uint8)

    def soft_labels(self, labels, indices):
        return None


def normaliser(data):
    return Normalize(data.mean, data.std)


def learner(data, recipe=SHORT, steps=5, network="convnet1", seed=0):
    return Learner(build_network(network, data.num_classes, data.shape, seed=seed), normaliser(data), recipe, steps)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


# Recipes and training.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, r"Recipe\.epochs is 0; it must be positive"),
        ({"batch_size": 0}, r"Recipe\.batch_size is 0"),
        ({"lr": -0.1}, r"Recipe\.lr is -0.1"),
        ({"max_steps": 0}, r"Recipe\.max_steps is 0; pass a positive number, or None"),
        ({"schedule": "linear"}, "Unknown schedule 'linear'; choose one of constant, cosine"),
        ({"augment": "hue"}, "unknown augmentation 'hue'"),
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
    with pytest.raises(
        ValueError, match="Unknown recipe 'huge'; choose one of paper, imagenet-subset, prediction-matching, tiny"
    ):
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
    before = accuracy(student.network, test, normaliser(train))
    ClassifierEnsemble([student]).fit([iterate_epochs(train, recipe, random())], 40, [random(1)])
    assert before < 0.8
    assert accuracy(student.network, test, normaliser(train)) == 1.0


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


class BatchNormed(nn.Sequential):
    def __init__(self, num_classes, shape):
        super().__init__(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_classes))


def test_accuracy_does_not_depend_on_the_batch_size():
    """With batch statistics an image would be judged by its neighbors."""
    data = toy()
    student = learner(data, Recipe(lr=0.1, augment=""), 100, network=BatchNormed)
    ClassifierEnsemble([student]).fit([iterate_epochs(data, SHORT, random())], 10, [random()])
    statistics = student.network.network[1].running_mean.clone()
    shares = {size: accuracy(student.network, data, normaliser(data), batch_size=size) for size in (1, 7, 1000)}
    assert len(set(shares.values())) == 1
    assert shares[7] > 0.5
    assert torch.equal(student.network.network[1].running_mean, statistics)
    assert student.network.training


def test_accuracy_counts_correct_answers():
    data = toy(per_class=5)

    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3), None

    assert accuracy(Constant(), data, normaliser(data)) == pytest.approx(1 / 3)


# Evaluation.


def test_a_generator_is_judged_as_its_materialised_set():
    generator, real, test = Stub(contrast=5), toy(contrast=5), toy(seed=1, contrast=5)
    labels, indices = torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3)
    images = Stub(contrast=5).sample(labels, indices, seed=0)
    data = ImageTensors(images, labels, NAMES, "made", torch.device("cpu")).to_dataset()
    settings = NO_PROBLEM | {"real": real, "with_baselines": False, "recipe": Recipe(max_steps=30, lr=0.05)}
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


def test_a_real_generator_is_judged():
    torch.manual_seed(0)
    generator = ConditionalGANGenerator(NAMES, (1, 8, 8), width=4, training={"method": "dim", "seed": 2})
    (result,) = evaluate(generator, toy(), ipc=2, protocol="dynamic", **NO_PROBLEM).results
    assert (result.name, result.generator_seed, result.stored_bytes) == ("dim", 2, generator.stored_bytes)
    assert all(0 <= share <= 1 for share in result.accuracies)


def test_dynamic_shows_fresh_images_in_every_epoch_and_to_every_network():
    generator, fixed = Stub(), Stub()
    (result,) = evaluate(generator, toy(), ipc=4, protocol="dynamic", seed=11, **NO_PROBLEM).results
    evaluate(fixed, toy(), ipc=4, seed=11, **NO_PROBLEM)
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
    assert result.seeds == (11, 12)


def scripted(monkeypatch, values):
    """Replace the test by given accuracies; a list of how many steps were taken before each."""
    taken, looks, step, answers = [], [], Learner.step, iter(values)
    monkeypatch.setattr(Learner, "step", lambda self, *args: taken.append(self) or step(self, *args))
    monkeypatch.setattr(judging, "accuracy", lambda *args: looks.append(len(taken)) or next(answers))
    return looks


def test_best_of_five_looks_five_times(monkeypatch):
    looks = scripted(monkeypatch, [0.1, 0.5, 0.3, 0.2, 0.4, 0.9, 0.8, 0.7, 0.6, 0.5])
    settings = NO_PROBLEM | {"recipe": Recipe(max_steps=12)}
    (result,) = evaluate(Stub(), toy(), ipc=2, protocol="dynamic-best5-test", **settings).results
    assert result.accuracies == (0.5, 0.9)
    assert looks == [2, 4, 7, 9, 12, 14, 16, 19, 21, 24]


@pytest.mark.parametrize("protocol", ["fixed", "dynamic"])
def test_other_protocols_look_once_at_the_end(monkeypatch, protocol):
    looks = scripted(monkeypatch, [0.1, 0.9])
    (result,) = evaluate(Stub(), toy(), ipc=2, protocol=protocol, **NO_PROBLEM).results
    assert looks == [5, 10]
    assert result.accuracies == (0.1, 0.9)


def test_best_of_five_is_no_worse_than_its_last_look():
    settings = NO_PROBLEM | {"recipe": Recipe(max_steps=20)}
    test = toy(contrast=5)
    last, best = (
        evaluate(Stub(), test, ipc=2, protocol=protocol, **settings).results[0].accuracies
        for protocol in ("dynamic", "dynamic-best5-test")
    )
    assert all(b >= a for a, b in zip(last, best, strict=True))


def test_every_run_of_random_real_has_its_own_subset_and_network(monkeypatch):
    subsets, networks, subset, build = [], [], ImageTensors.subset, build_network
    monkeypatch.setattr(ImageTensors, "subset", lambda self, *args: subsets.append(args) or subset(self, *args))
    real, test = toy(), toy(seed=1)
    judge = judging.Evaluator(test, normaliser(real), ("convnet1",), 3, SHORT, 20, False)
    monkeypatch.setattr(judging, "build_network", lambda *args, seed: networks.append(seed) or build(*args, seed=seed))
    result = judge.baselines(real, [2])[0]
    assert subsets == [(2, 20), (2, 21), (2, 22)]
    assert networks == [20, 21, 22] * 2  # the same ones for the full data
    assert (result.name, result.ipc, result.distinct_images, result.seeds) == (RANDOM_REAL, 2, 6, (20, 21, 22))


def test_several_ipcs_and_protocols_share_their_baselines():
    report = evaluate(Stub(), toy(seed=1), real=toy(), ipc=(2, 4, 2), protocol=("fixed", "dynamic"), **NO_PROBLEM)
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
        (expected,) = evaluate(Stub(), toy(seed=1), real=toy(), with_baselines=False, **alone, **NO_PROBLEM).results
        (found,) = report.find("stub", **{"protocol": "fixed"} | alone)
        assert found.accuracies == expected.accuracies


def test_the_real_set_gives_normalisation_and_baselines(monkeypatch):
    seen, normalize = set(), Normalize.__call__
    monkeypatch.setattr(Normalize, "__call__", lambda self, unit: seen.add(self.mean) or normalize(self, unit))
    real, test = toy(per_class=9), toy(seed=1)
    report = evaluate(Stub(), test, real=real, ipc=4, **NO_PROBLEM)
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
    report = evaluate(Stub(), toy(), ipc=4, **NO_PROBLEM)
    assert seen == {Stub.mean}
    assert "the generator's record" in report.normalization
    assert [result.name for result in report.results] == ["stub"]
    assert any("no random-real baseline" in problem for problem in report.problems)
    seen.clear()
    data = toy(per_class=4)
    report = evaluate(data, toy(), **NO_PROBLEM)
    assert seen == {data.mean}
    assert report.normalization == "the evaluated set itself"


def test_baselines_can_be_taken_apart_and_merged():
    real, test = toy(contrast=10), toy(seed=1, contrast=10)
    together = evaluate(Stub(), test, real=real, ipc=4, **NO_PROBLEM)
    alone = evaluate(Stub(), test, real=real, ipc=4, with_baselines=False, **NO_PROBLEM)
    subsets = baselines(real, test, ipcs=(4,), full_data=False, **NO_PROBLEM)
    merged = Report.merge([alone, subsets, baselines(real, test, ipcs=(), **NO_PROBLEM)])
    assert [(r.cell, r.accuracies) for r in merged.results] == [(r.cell, r.accuracies) for r in together.results]
    assert merged.problems == ()


def test_a_floor_that_full_data_misses_makes_the_report_invalid():
    real, test = toy(contrast=0), toy(seed=1, contrast=0)
    settings = NO_PROBLEM | {"recipe": Recipe(max_steps=2, floor=1.0)}
    report = evaluate(Stub(), test, real=real, ipc=4, **settings)
    assert not report.valid
    assert any(problem.startswith("recipe invalid") for problem in report.problems)
    assert "recipe invalid" in report.markdown()
    assert evaluate(Stub(), test, real=real, ipc=4, **settings | {"recipe": Recipe(max_steps=2)}).valid


def test_the_same_seed_gives_the_same_accuracies():
    test, settings = toy(seed=1, contrast=5), NO_PROBLEM | {"real": toy(contrast=5), "with_baselines": False}

    def accuracies(seed):
        return evaluate(Stub(contrast=5), test, ipc=3, protocol="dynamic", seed=seed, **settings).results[0].accuracies

    first = accuracies(0)
    assert accuracies(0) == first
    assert accuracies(1)[0] == first[1]  # network i of seed s is network 0 of seed s + i
    assert first[0] != first[1]


def test_every_architecture_has_a_result():
    report = evaluate(Stub(), toy(), ipc=2, **NO_PROBLEM | {"networks": ("convnet1", BatchNormed), "n": 3})
    assert [(r.network, len(r.accuracies)) for r in report.results] == [("convnet1", 3), ("BatchNormed", 3)]


# Networks in step.


STEADY = NO_PROBLEM | {"recipe": Recipe(max_steps=8, lr=0.03), "n": 3}


@pytest.mark.parametrize("shared", [False, True])
def test_stacked_networks_are_as_accurate_as_one_by_one(monkeypatch, shared):
    protocols = ("fixed", "soft", "dynamic-best5-test", "dynamic-pool-2")
    told = STEADY | {"networks": ("convnet1", BatchNormed), "ipc": 4, "protocol": protocols, "shared_draws": shared}
    reports = []
    for stacked in (False, True):
        monkeypatch.setattr(judging, "stacking_pays", lambda *args, chosen=stacked: chosen)
        stub, _ = soft_stub(RIGHT, contrast=5)
        stub.max_ipc = None
        reports.append(evaluate(stub, toy(seed=1, contrast=5), real=toy(contrast=5), quality=True, **told))
    for one, other in zip(*(report.results for report in reports), strict=True):
        assert replace(one, accuracies=(), seconds=0) == replace(other, accuracies=(), seconds=0)
        assert one.accuracies == pytest.approx(other.accuracies, abs=1.01 / 60)  # of 60 images, one near a border
    for one, other in zip(*(report.quality for report in reports), strict=True):
        assert one.mean("label_accuracy") == pytest.approx(other.mean("label_accuracy"), abs=0.05)


def alone(train, test, seed, number, batches, steps):
    """The accuracy of network `number` of a seed, trained by itself on batches and draws of the first network."""
    draws = Random(seed).device
    student = learner(test, STEADY["recipe"], steps, seed=seed + number)
    student.normalize = normaliser(train)
    ClassifierEnsemble([student]).fit([batches(draws)], steps, [draws])
    return accuracy(student.network, test, normaliser(train))


def test_with_shared_draws_networks_differ_by_their_first_weights_alone():
    real, test, generator = toy(contrast=5), toy(seed=1, contrast=5), Stub(contrast=5)
    told = STEADY | {"real": real, "ipc": 4, "seed": 11, "protocol": ("fixed", "dynamic"), "shared_draws": True}
    report = evaluate(generator, test, **told)
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
    apart = evaluate(Stub(contrast=5), test, **told | {"shared_draws": False})
    with pytest.raises(ValueError, match="differ in 'shared_draws'"):
        Report.merge([report, apart])
    for one, other in zip(report.results, apart.results, strict=True):
        assert one.accuracies[0] == other.accuracies[0]  # whose stream it is
        assert one.accuracies[1:] != other.accuracies[1:]


def test_baselines_share_draws_too():
    real, test = toy(contrast=5), toy(seed=1, contrast=5)
    together = evaluate(Stub(), test, real=real, ipc=4, shared_draws=True, **STEADY)
    assert [row.accuracies for row in baselines(real, test, ipcs=(4,), shared_draws=True, **STEADY).results] == [
        row.accuracies for row in together.results[1:]
    ]


SHUFFLED = ("bee", "ant", "cat")


@pytest.mark.parametrize(
    ("train", "test", "changes", "message"),
    [
        (Stub(), toy(), {"ipc": None}, "say how many per class with ipc=10"),
        (Stub(), toy(), {"ipc": 0}, "ipc is 0; ask for a whole number"),
        (Stub(), toy(), {"ipc": 1.5}, "ipc is 1.5; ask for a whole number"),
        (Stub(max_ipc=5), toy(), {"ipc": 6}, "ipc is 6, but this generator holds 5"),
        (
            Stub(max_ipc=5),
            toy(),
            {"ipc": 5, "protocol": "dynamic"},
            "holds 5 images per class, no fresh ones for 'dynamic': judge it by 'fixed'",
        ),
        (Stub(), toy(), {"ipc": 2, "protocol": "best"}, "Unknown protocol 'best'; choose one of fixed, soft, dynamic"),
        (toy(), toy(), {"protocol": "dynamic"}, "'fixed' or 'soft'; 'dynamic' needs a generator"),
        (toy(), toy(), {"protocol": "soft"}, "There are no soft labels"),
        (Stub(), toy(), {"ipc": 2, "protocol": ("fixed", "soft")}, "There are no soft labels"),
        (Stub(), toy(), {"ipc": 2, "n": 0}, "n is 0; train at least 1 network"),
        (Stub(), toy(), {"ipc": 2, "networks": ("convnet1", "convnet33")}, "unknown network 'convnet33'"),
        (Stub(), toy(), {"ipc": 2, "recipe": "huge"}, "Unknown recipe 'huge'"),
        (Stub(), toy(names=SHUFFLED), {"ipc": 2}, "Label 0 is 'bee' in .* but 'ant'"),
        (toy(), toy(names=(*NAMES, "dog")), {}, "Label 3 is 'dog' in .* but None"),
        (Stub(), toy(), {"ipc": 2, "real": toy(names=SHUFFLED)}, "Label 0 is 'ant' in .* but 'bee'"),
        (Stub(), toy(size=10), {"ipc": 2}, r"\(1, 10, 10\).*\(1, 8, 8\).*image_size"),
        (Stub(), toy(), {"ipc": 2, "real": toy(channels=3)}, r"\(1, 8, 8\).*\(3, 8, 8\)"),
        (Stub(), toy(), {"ipc": 9, "real": toy(per_class=8)}, "has 8 images and needs 9"),
        (toy(per_class=4), toy(), {"ipc": 50}, "ipc"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_would_make_the_result_wrong_is_refused_before_training(monkeypatch, train, test, changes, message):
    monkeypatch.setattr(classifiers.Learner, "step", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        evaluate(train, test, **NO_PROBLEM | changes)


def test_baselines_refuse_an_ipc_that_the_real_set_cannot_give_before_training(monkeypatch):
    monkeypatch.setattr(classifiers.Learner, "step", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match="has 8 images and needs 9"):
        baselines(toy(per_class=8), toy(), ipcs=(2, 9), **NO_PROBLEM)


def test_no_network_is_refused():
    with pytest.raises(ValueError, match="at least one network"):
        evaluate(Stub(), toy(), ipc=2, networks=())


# A pool of epochs, and the quality of images.


def test_a_pool_goes_round_its_sets(monkeypatch):
    """Epochs 0, 1, 2, 0, 1, 2, ... of the same images as a stream's first three epochs."""
    shown = []

    def remember(self, batches, steps, generators):
        for _, (images, _) in zip(range(steps), *batches, strict=False):
            shown.append(images)

    monkeypatch.setattr(ClassifierEnsemble, "fit", remember)
    generator, recipe = Stub(), Recipe(max_steps=7, batch_size=64)
    options = NO_PROBLEM | {"n": 1, "recipe": recipe}
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
    generator = Stub()
    evaluate(generator, toy(), ipc=(1, 4), protocol=("fixed", "dynamic-pool-2"), **NO_PROBLEM)
    assert [len(rows) for _, rows in generator.asked] == [3 * 4 * 2]


@pytest.mark.parametrize("protocol", ["dynamic-pool", "dynamic-pool-0", "dynamic-pool-x", "pool-3"])
def test_pools_that_are_none_are_refused(protocol):
    with pytest.raises(ValueError, match="dynamic-pool-5"):
        evaluate(Stub(), toy(), ipc=1, protocol=protocol, **NO_PROBLEM)


def test_a_bank_can_be_a_pool_as_far_as_it_goes():
    report = evaluate(Stub(max_ipc=6), toy(), ipc=2, protocol="dynamic-pool-3", **NO_PROBLEM)
    assert report.results[0].distinct_images == 18  # five steps are five epochs of six, of which two are seen again
    with pytest.raises(ValueError, match="holds 6 images per class"):
        evaluate(Stub(max_ipc=6), toy(), ipc=2, protocol="dynamic-pool-4", **NO_PROBLEM)


def test_quality_stands_beside_random_real_and_the_test_images():
    recipe = Recipe(max_steps=60, lr=0.05)
    options = NO_PROBLEM | {"recipe": recipe, "real": toy(), "quality": True}
    good, poor = (evaluate(Stub(contrast=c), toy(seed=1), ipc=(2, 10), name="x", **options) for c in (60, 0))
    rows = {(row.name, row.ipc): row for row in good.quality}
    assert list(rows) == [("test images", None), ("random-real", 2), ("random-real", 10), ("x", 2), ("x", 10)]
    assert rows["x", 10].images == 30
    assert rows["x", 10].seeds == (0, 1)
    assert rows["test images", None].scores.keys() == {"label_accuracy", "diversity"}
    assert rows["random-real", 10].mean("coverage") > 0.6
    worse = good.quality[-1].mean, poor.quality[-1].mean
    assert worse[0]("label_accuracy") > worse[1]("label_accuracy") + 0.3
    assert worse[0]("frechet") < worse[1]("frechet")
    assert "| x | 10 | 30 | convnet1 |" in good.markdown()
    assert Report.merge([good]) == good


def test_reports_share_their_references(tmp_path):
    options = NO_PROBLEM | {"real": toy(), "quality": True, "with_baselines": False}
    test = toy(seed=1)
    reports = [evaluate(Stub(), test, ipc=2, name=name, **options) for name in ("a", "b")]
    merged = Report.merge(reports)
    assert [row.name for row in merged.quality] == ["test images", "random-real", "a", "b"]
    merged.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == merged


def test_critics_are_trained_once_for_many_generators(monkeypatch):
    trained = []
    fit = quality.FeatureEvaluator._trained
    monkeypatch.setattr(quality.FeatureEvaluator, "_trained", lambda self: trained.append(self) or fit(self))
    options = NO_PROBLEM | {"real": toy(), "quality": True, "with_baselines": False}
    test = toy(seed=1)
    for _ in range(3):
        evaluate(Stub(), test, ipc=2, **options)
    assert len(trained) == 1


def test_an_autoencoders_reconstruction_is_judged():
    generator = Stub()
    generator.reconstruct = lambda images: images
    options = NO_PROBLEM | {"real": toy(), "quality": True, "recipe": Recipe(max_steps=40, lr=0.05)}
    report = evaluate(generator, toy(seed=1), ipc=2, **options)
    rows = {row.name: row for row in report.quality}
    assert rows["reconstruction"].scores == rows["test images"].scores
    other = replace(report, results=(), quality=tuple(replace(row, generator="e" * 64) for row in report.quality))
    assert Report.merge([report, other]).markdown().count("| reconstruction |") == 1


def test_quality_needs_the_real_set():
    with pytest.raises(ValueError, match="pass real="):
        evaluate(Stub(), toy(), ipc=2, quality=True, **NO_PROBLEM)


# Soft labels.


class Teacher:
    """Says of every image of class k what it is told to say of k: logits [K, K]; and counts what it labeled."""

    def __init__(self, said):
        self.said, self.labeled = said, []

    def of(self, labels):
        return self.said[labels].half()


def soft_stub(said, **options):
    """A generator of toy images with a teacher's labels, which it also gives to other images, by their brightness."""
    stub, teacher = Stub(max_ipc=20, **options), Teacher(torch.tensor(said))
    stub.soft_labels = lambda labels, indices: teacher.of(labels)

    def label(images, view):
        teacher.labeled.append((len(images), view))
        return teacher.of(((images.float().mean((1, 2, 3)) - 35) / stub.contrast).round().long().clamp(0, 2))

    stub.label = label
    return stub, teacher


RIGHT, TURNED = [[9.0, 0, 0], [0, 9, 0], [0, 0, 9]], [[0, 9.0, 0], [0, 0, 9], [9, 0, 0]]
LEARNS = {"networks": "convnet1", "n": 2, "progress": False}
LEARNS |= {"recipe": Recipe(max_steps=80, lr=0.02, batch_size=20, augment="")}


def test_under_soft_networks_learn_the_logits_and_under_fixed_the_labels():
    stub, teacher = soft_stub(TURNED)
    report = evaluate(stub, toy(seed=1), real=toy(), ipc=10, **LEARNS)
    found = {(row.name, row.protocol): row for row in report.results}
    assert found["stub", "fixed"].mean > 0.9
    assert found["stub", "soft"].mean < 0.1
    assert found[RANDOM_REAL, "fixed"].mean > 0.9
    assert found[RANDOM_REAL, "soft"].mean < 0.1
    assert ("full data", "soft") not in found
    assert [number for number, _ in teacher.labeled] == [30, 30]  # a subset for each network
    assert found["stub", "soft"].stored_bytes == found["stub", "fixed"].stored_bytes + 30 * 3 * 2
    assert found[RANDOM_REAL, "soft"].stored_bytes == found["stub", "soft"].stored_bytes
    assert not report.problems


def test_both_protocols_are_taken_for_a_bank_and_fixed_never_stays_away():
    stub, _ = soft_stub(RIGHT)
    for asked, expected in ((None, ["fixed", "soft"]), ("soft", ["fixed", "soft"]), ("fixed", ["fixed"])):
        report = evaluate(stub, toy(), ipc=2, protocol=asked, **NO_PROBLEM)
        assert [row.protocol for row in report.results] == expected
    assert [row.protocol for row in evaluate(Stub(), toy(), ipc=2, **NO_PROBLEM).results] == ["fixed"]


def test_all_images_of_a_bank_are_judged_unless_told_otherwise():
    assert {row.ipc for row in evaluate(Stub(max_ipc=5), toy(), **NO_PROBLEM).results} == {5}


def test_a_set_with_soft_labels_is_judged_by_them_too():
    data = toy()
    soft = replace(data, soft_labels=torch.tensor(TURNED)[data.labels].half())
    report = evaluate(soft.to_dataset(), toy(seed=1), real=data, **LEARNS)
    found = {(row.name, row.protocol): row.mean for row in report.results}
    assert found["dataset", "fixed"] > 0.9
    assert found["dataset", "soft"] < 0.1
    assert report.problems == (
        "no random-real baseline with soft labels of the same teacher: evaluate the bank itself, with real=",
    )


def test_baselines_of_many_banks_can_be_taken_at_once():
    stub, _ = soft_stub(RIGHT)
    shared = baselines(toy(), toy(seed=1), ipcs=(2, 4), bank=stub, **NO_PROBLEM)
    assert [(row.protocol, row.ipc) for row in shared.results] == [
        *(("fixed", 2), ("soft", 2), ("fixed", 4), ("soft", 4), ("fixed", None))
    ]
    banks = [evaluate(stub, toy(seed=1), real=toy(), ipc=ipc, with_baselines=False, **NO_PROBLEM) for ipc in (2, 4)]
    assert not Report.merge([shared, *banks]).problems


def test_a_whitened_bank_is_judged_through_whitened_images(monkeypatch):
    stub, teacher = soft_stub(RIGHT)
    stub.zca = True
    report = evaluate(stub, toy(), real=toy(), ipc=2, **NO_PROBLEM)
    assert "whitened" in report.normalization
    evaluate(stub, toy(), real=toy(), ipc=2, zca=False, **NO_PROBLEM)  # whatever networks see, the teacher sees its own
    assert [type(view) for _, view in teacher.labeled] == [ZCAWhitening] * 4
    soft = replace(toy(), soft_labels=torch.tensor(RIGHT)[toy().labels].half())
    seen = [evaluate(soft, toy(), real=toy(), zca=zca, **NO_PROBLEM).normalization for zca in (None, True)]
    assert ["whitened" in text for text in seen] == [False, True]
    for source in ({"train": stub, "ipc": 2}, {"train": soft, "zca": True}):
        with pytest.raises(ValueError, match="whitened over the real training set: pass real="):
            evaluate(**source, test=toy(), **NO_PROBLEM)


def test_a_step_on_logits_is_one_of_their_mean_absolute_difference():
    data = toy()
    student, images = learner(data, Recipe(augment="")), data.images[:6]
    with torch.no_grad():
        expected = (student.network(student.normalize(images / 255))[0] - 1).abs().mean()
    torch.testing.assert_close(student.step(images, torch.ones(6, 3), random()), expected)


def test_floats_are_taken_as_they_are():
    data = toy()
    one, other = learner(data), learner(data)
    loss = one.step(data.images[:6], data.labels[:6], random())
    torch.testing.assert_close(loss, other.step(one.normalize(data.images[:6] / 255), data.labels[:6], random()))


def test_the_rate_falls_to_a_tenth_after_half():
    """As the public code, which drops it at epoch E/2 + 1 of E + 1."""
    student = learner(toy(), Recipe(schedule="halved", lr=0.5), steps=251)
    rates = []
    for _ in range(251):
        rates.append(student.optimizer.param_groups[0]["lr"])
        student.optimizer.step()
        student.schedule.step()
    assert rates == [0.5] * 126 + [0.05] * 125
