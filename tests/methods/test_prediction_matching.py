"""Adversarial prediction matching: its image step, its students, its groups, exact resume, and that it acts."""

import importlib.util
from copy import deepcopy
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_gdd import (
    AutoGenerator,
    ImageTensors,
    PredictionMatchingTrainer,
    evaluate,
    load_distilled_dataset,
)
from hf_gdd.classifiers import ensemble
from hf_gdd.classifiers.learner import Learner, NonFiniteLossError, accuracy
from hf_gdd.classifiers.networks import build_network, frozen
from hf_gdd.classifiers.recipes import RECIPES, Recipe
from hf_gdd.classifiers.teachers import Teachers
from hf_gdd.cli.main import main
from hf_gdd.data.normalization import input_transform
from hf_gdd.data.pixels import to_unit
from hf_gdd.methods.prediction_matching import trainer as prediction_matching
from hf_gdd.methods.prediction_matching.config import PRESETS, PredictionMatchingConfig
from hf_gdd.methods.prediction_matching.groups import Group
from hf_gdd.methods.prediction_matching.trainer import prediction_terms
from hf_gdd.report import RANDOM_REAL
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.random import Random

DIGITS = ImageTensors.from_dataset("digits", device="cpu", progress=False)
FEW = DIGITS.subset(12, 0)
FAST = {"ipc": 2, "network": "convnet1", "teachers": 2, "teacher_epochs": 2, "student_epochs": 5, "iterations": 6}
FAST |= {"log_every": 1, "checkpoint_every": 1000, "picture_every": 1000}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(Trainer, "save_pictures", lambda self: None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def make(tmp_path, cache):
    def trainer(folder="run", data=FEW, **overrides):
        settings = {"teacher_cache": cache, **FAST, **overrides}
        return PredictionMatchingTrainer(data, preset="tiny", output_dir=tmp_path / folder, **settings)

    return trainer


@pytest.fixture
def opened(make):
    """A trainer at its beginning, and its only group, with networks drawn."""

    def at_start(**overrides):
        trainer = make(**overrides)
        trainer.open()
        (group,) = trainer.groups.own.values()
        trainer.train_students([(group, torch.arange(len(group.images)))])
        return trainer, group

    return at_start


def gap(trainer, group):
    """How far the students are from their teacher on the images as they are."""
    teacher, labels = trainer.teachers[group.teacher_number], group.labels
    with torch.no_grad():
        return prediction_terms(group.images, labels, teacher, group.students)["gap"]


def naive_terms(images, labels, teacher, students):
    """As the equation is written: a teacher's forward for each student, and gradients of all weights."""
    gaps = [(student(images)[0] - teacher(images)[0]).abs().mean() for student in students]
    return sum(gaps), F.cross_entropy(teacher(images)[0], labels)


# ---- the step of the images


def test_the_images_move_up_the_gap(opened):
    trainer, group = opened(hard_weight=0.0, image_lr=0.05, image_momentum=0.0)
    before, start = gap(trainer, group), group.images.clone()
    trainer.move_images(group, torch.arange(20))
    moved = group.images - start
    rise = gap(trainer, group) - before
    assert rise > 0
    # To first order a step of rate r along the gradient g raises the gap by r |g|^2.
    torch.testing.assert_close(rise, moved.square().sum() / 0.05, rtol=0.1, atol=0)


def test_the_cross_entropy_alone_is_moved_down(opened):
    trainer, group = opened(hard_weight=50.0, image_lr=0.05, image_momentum=0.0)
    teacher = trainer.teachers[group.teacher_number]
    before = F.cross_entropy(teacher(group.images)[0], group.labels)
    trainer.move_images(group, torch.arange(20))
    assert F.cross_entropy(teacher(group.images)[0], group.labels) < before


@pytest.mark.parametrize("chunk", [3, 7, 500])
def test_a_step_is_that_of_the_equation(opened, chunk):
    trainer, group = opened(chunk=chunk, image_lr=2.0, image_momentum=0.0, hard_weight=0.3)
    rows = torch.tensor([0, 3, 4, 5, 9, 11, 12, 19])
    teacher, images = deepcopy(trainer.teachers[group.teacher_number]).double(), group.images.double()
    students = [deepcopy(student).double() for student in group.students]
    chosen = images[rows].requires_grad_()
    distance, hard = naive_terms(chosen, group.labels[rows], teacher, students)
    (gradient,) = torch.autograd.grad(0.3 * hard - distance, chosen)
    expected = images.index_add(0, rows, -2.0 * gradient)
    terms = trainer.move_images(group, rows)
    torch.testing.assert_close(group.images.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(terms["gap"].double(), distance.detach() / 5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(terms["cross_entropy"].double(), hard.detach(), atol=1e-5, rtol=1e-4)


def test_momentum_and_rate_are_those_of_sgd_over_the_whole_bank(opened):
    """Images that an iteration leaves out still coast, as under torch's SGD with a gradient of zero."""
    trainer, group = opened(image_lr=1.5, image_momentum=0.5, iterations=4)
    reference = group.images.clone().requires_grad_()
    sgd = torch.optim.SGD([reference], lr=1.5, momentum=0.5)
    teacher = trainer.teachers[group.teacher_number]
    for step, rows in enumerate((torch.arange(20), torch.arange(5), torch.arange(3, 9), torch.arange(2))):
        trainer.state.step = step
        sgd.param_groups[0]["lr"] = 1.5 * (0.3 if step >= 2 else 1.0)
        terms = prediction_terms(reference[rows], group.labels[rows], teacher, group.students)
        (reference.grad,) = torch.autograd.grad(0.1 * terms["cross_entropy"] - terms["gap"], reference)
        sgd.step()
        trainer.move_images(group, rows)
    torch.testing.assert_close(group.images, reference.detach(), atol=1e-5, rtol=1e-4)


def test_an_image_step_costs_at_most_two_fifths_of_the_reference():
    """Cost 12 forwards an image, against 33 where the teacher is run for every student with gradients of weights."""
    images, labels = torch.randn(4, 1, 28, 28), torch.arange(4)
    teacher, *students = (build_network("convnet3", 10, (1, 28, 28), seed=i).eval() for i in range(6))
    counts = []
    for sharing in (True, False):
        for network in (teacher, *students):
            network.requires_grad_(not sharing)
        x = images.clone().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            if sharing:
                terms = prediction_terms(x, labels, teacher, students)
                distance, hard = terms["gap"], terms["cross_entropy"]
            else:
                distance, hard = naive_terms(x, labels, teacher, students)
            (0.1 * hard - distance).backward()
        counts.append(counter.get_total_flops())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        teacher(images)
    forward = counter.get_total_flops()
    assert counts[0] / forward == pytest.approx(12, rel=0.03)
    assert counts[1] / forward == pytest.approx(33, rel=0.03)
    assert counts[0] <= 0.4 * counts[1]


def test_weights_get_no_gradients(opened):
    trainer, group = opened()
    assert not any(p.requires_grad for s in group.students for p in s.parameters())
    assert not any(p.requires_grad for p in trainer.teachers[0].parameters())


# ---- students and teachers


def test_snapshots_come_ever_closer_to_the_teacher(opened):
    trainer, group = opened(student_epochs=60, student_lr=0.02, data=FEW, augment="")
    teacher = trainer.teachers[group.teacher_number]
    with torch.no_grad():
        gaps = [F.l1_loss(s(group.images)[0], teacher(group.images)[0]).item() for s in group.students]
    assert len(gaps) == 5
    assert gaps[-1] < 0.5 * gaps[0]
    assert len({next(student.parameters()).sum().item() for student in group.students}) == 5


@pytest.mark.parametrize(("epochs", "count", "expected"), [(250, 5, {50, 100, 150, 200, 250}), (7, 3, {2, 4, 7})])
def test_when_snapshots_are_taken(make, epochs, count, expected):
    assert make(student_epochs=epochs, snapshots=count).snapshots == expected


def test_students_are_drawn_anew_every_third_iteration(make, monkeypatch):
    seen, train = [], PredictionMatchingTrainer.train_students
    monkeypatch.setattr(
        PredictionMatchingTrainer,
        "train_students",
        lambda self, *args: seen.append(self.state.step) or train(self, *args),
    )
    make(iterations=8).fit()
    assert seen == [0, 3, 6]


def test_every_generation_has_a_teacher_and_weights_of_its_own(opened):
    trainer, group = opened(teachers=2, student_lr=1e-9)
    numbers, weights = set(), set()
    for _ in range(8):
        trainer.train_students([(group, torch.arange(20))])
        numbers.add(group.teacher_number)
        weights.add(round(next(group.students[0].parameters()).double().sum().item(), 4))
    assert numbers == {0, 1}
    assert len(weights) == 8


def test_images_that_are_not_finite_are_neither_kept_nor_published(make, tmp_path):
    trainer = make()
    move = trainer.move_images

    def spoil(group, rows):
        if trainer.state.step == 5:  # the last
            group.velocity[3] = torch.nan
        return move(group, rows)

    trainer.move_images = spoil
    with pytest.raises(NonFiniteLossError, match="movement became nan"):
        trainer.fit()
    assert not (tmp_path / "run" / "generator").exists()


def test_students_learn_from_the_images_that_the_iteration_moves(make, monkeypatch):
    seen = []
    monkeypatch.setattr(
        PredictionMatchingTrainer, "train_students", lambda self, chosen: seen.extend(rows for _, rows in chosen)
    )
    monkeypatch.setattr(
        PredictionMatchingTrainer,
        "move_images",
        lambda self, group, rows: seen.append(rows) or {"gap": torch.zeros(())},
    )
    make(image_batch=8, iterations=5).fit()
    assert [len(rows) for rows in seen] == [8] * 7
    assert torch.equal(seen[0], seen[1])
    assert len({tuple(rows.sort().values.tolist()) for rows in seen[1:5]}) == 4  # every iteration draws its own
    assert all(len(rows.unique()) == 8 for rows in seen)


def trained(monkeypatch):
    """Counts the steps that classifiers are trained."""
    steps, step = [], Learner.step
    monkeypatch.setattr(Learner, "step", lambda self, *args: steps.append(1) or step(self, *args))
    return steps


def teachers(folder, network="convnet1", data=FEW, **settings):
    recipe = PRESETS["tiny"].changed(teacher_epochs=3, **settings).teacher_recipe
    return Teachers(network, data, input_transform(data, zca=False), recipe, folder)


def test_a_teacher_is_trained_once_and_the_same_in_every_run(tmp_path, monkeypatch):
    steps = trained(monkeypatch)
    first = teachers(tmp_path)[1]
    count = len(steps)
    assert count == 3 * 2
    again, elsewhere, other = teachers(tmp_path)[1], teachers(tmp_path / "other")[1], teachers(tmp_path)[0]
    assert len(steps) == 3 * count
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert torch.equal(weight, elsewhere.state_dict()[name])
    assert not any(
        torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.std() > 0
    )
    assert not first.training


def test_other_data_recipes_and_networks_have_teachers_of_their_own(tmp_path):
    made = [teachers(tmp_path), teachers(tmp_path, "convnet2"), teachers(tmp_path, data=DIGITS.subset(11, 0))]
    made += [teachers(tmp_path, teacher_lr=0.1), teachers(tmp_path, augment="")]
    assert len({each.folder for each in made}) == 5


def test_a_stopped_teacher_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_gdd.classifiers.teachers._SAVE_EVERY", 0)
    whole, step, steps = teachers(tmp_path / "whole")[0], Learner.step, []

    def stop(self, *args):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Learner, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        _ = teachers(tmp_path / "cut")[0]
    monkeypatch.setattr(Learner, "step", step)
    steps = trained(monkeypatch)
    resumed = teachers(tmp_path / "cut")[0]
    assert len(steps) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not list((tmp_path / "cut").rglob("*.partial"))


def test_a_teacher_that_diverges_is_named_and_not_kept(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"teacher 0 are not finite.*lower teacher_lr \(now 1000000"):
        _ = teachers(tmp_path, teacher_lr=1e6)[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_teacher_is_named(tmp_path):
    _ = teachers(tmp_path)[0]
    (path,) = tmp_path.rglob("*.pt")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"Delete {path}"):
        _ = teachers(tmp_path)[0]


def in_step(monkeypatch):
    """Train together whatever can be."""
    monkeypatch.setattr(ensemble, "can_stack", lambda network, device: True)


def assert_same_teachers(one, other, numbers=range(3)):
    for number in numbers:
        torch.testing.assert_close(one[number].state_dict(), other[number].state_dict(), rtol=1e-3, atol=1e-4)
        assert one._path(number).stat().st_size == other._path(number).stat().st_size


def test_teachers_trained_in_step_are_those_trained_alone(tmp_path, monkeypatch):
    alone, together = teachers(tmp_path / "alone"), teachers(tmp_path / "together")
    alone.prepare(range(3))
    in_step(monkeypatch)
    parties, train = [], Teachers._train
    monkeypatch.setattr(
        Teachers, "_train", lambda self, begun, bar: parties.append([*begun]) or train(self, begun, bar)
    )
    monkeypatch.setattr("hf_gdd.classifiers.ensemble.MAX_STACK", 2)
    together.prepare(range(3))
    assert parties == [[0, 1], [2]]
    assert_same_teachers(alone, together)


def test_teachers_go_on_together_from_one_place(tmp_path, monkeypatch):
    """Teacher 1 was stopped alone after one epoch, the others in step after two."""
    monkeypatch.setattr("hf_gdd.classifiers.teachers._SAVE_EVERY", 0)
    whole, cut, step = teachers(tmp_path / "whole"), teachers(tmp_path / "cut"), ensemble.ClassifierEnsemble.step
    whole.prepare(range(3))
    in_step(monkeypatch)
    for numbers, last in (([1], 4), ([0, 2], 6)):
        steps = []

        def stop(self, *args, steps=steps, last=last):
            steps.append(1)
            if len(steps) == last:
                raise KeyboardInterrupt
            return step(self, *args)

        monkeypatch.setattr(ensemble.ClassifierEnsemble, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            cut.prepare(numbers)
    monkeypatch.setattr(ensemble.ClassifierEnsemble, "step", step)
    assert len(list((tmp_path / "cut").rglob("*.partial"))) == 3
    parties, train = [], Teachers._train
    monkeypatch.setattr(
        Teachers,
        "_train",
        lambda self, begun, bar: parties.append({n: s["done"] for n, s in begun.items()}) or train(self, begun, bar),
    )
    cut.prepare(range(3))
    assert parties == [{0: 4, 2: 4}, {1: 2}]
    assert_same_teachers(whole, cut)
    assert not list((tmp_path / "cut").rglob("*.partial"))


def test_of_teachers_in_step_only_what_diverged_is_lost(tmp_path, monkeypatch):
    in_step(monkeypatch)
    built = Teachers._build

    def spoiled(self, number):
        network = built(self, number)
        if number == 1:
            next(network.parameters()).data.fill_(torch.nan)
        return network

    monkeypatch.setattr(Teachers, "_build", spoiled)
    made = teachers(tmp_path)
    with pytest.raises(NonFiniteLossError, match="teacher 1 are not finite"):
        made.prepare(range(3))
    assert made.missing(range(3)) == [1]


def test_students_of_groups_in_step_are_those_trained_alone(make, monkeypatch):
    settings = {"groups": 2, "image_batch": 6, "student_batch_size": 4}
    alone, together = make("alone", **settings), make("together", **settings)
    for trainer in (alone, together):
        trainer.open()
        rows = trainer.next_indices(trainer.stages[0])
        trainer.step(rows)
        in_step(monkeypatch)
    for number, group in alone.groups.own.items():
        other = together.groups.own[number]
        assert other.teacher_number == group.teacher_number
        assert torch.equal(other.random.rng.get_state(), group.random.rng.get_state())
        assert len(other.students) == len(group.students) == 5
        for one, two in zip(group.students, other.students, strict=True):
            torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=1e-3, atol=1e-4)
            assert not two.training
        torch.testing.assert_close(group.images, other.images, rtol=1e-3, atol=1e-3)


# ---- the bank


def test_a_bank_begins_with_random_real_images_and_the_first_teachers_labels(make, tmp_path):
    trainer = make(seed=3)
    trainer.fit()
    start = AutoGenerator.from_pretrained(tmp_path / "run" / "start")
    real = FEW.subset(2, 3)
    assert torch.equal(start.images.flatten(0, 1), real.images[real.labels.argsort(stable=True)])
    assert (start.method, start.seed) == ("start", 3)
    assert "iterations" not in start.config.training
    teacher, images = deepcopy(trainer.teachers[0]).half().float(), to_unit(start.images.flatten(0, 1))
    with torch.no_grad(), frozen(teacher):
        expected = teacher(trainer.transform(images))[0]
    torch.testing.assert_close(start.labels.flatten(0, 1).float(), expected, atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(
        start.label_images(real.images, trainer.transform).sort(0).values, start.labels.flatten(0, 1).sort(0).values
    )


@pytest.mark.parametrize("zca", [False, True])
def test_the_bank_holds_the_images_as_pixels(make, tmp_path, zca):
    trainer = make(zca=zca, image_lr=20.0)
    bank = trainer.fit()
    unit = trainer.transform.inverse(trainer.groups.images()).clamp(0, 1).view(10, 2, 1, 8, 8)
    assert (to_unit(bank.images) - unit).abs().max() < 0.51 / 255
    start = AutoGenerator.from_pretrained(tmp_path / "run" / "start")
    assert (bank.images != start.images).float().mean() > 0.5
    loaded = AutoGenerator.from_pretrained(tmp_path / "run" / "generator")
    assert (loaded.zca, loaded.max_ipc, loaded.method) == (zca, 2, "prediction-matching")
    assert "teacher_cache" not in loaded.config.training
    share = accuracy(deepcopy(trainer.teachers[0]).half().float(), FEW, trainer.transform)
    assert loaded.teacher.record == {"network": trainer.config.network, "accuracy": share, "zca": zca}
    assert torch.equal(loaded.labels.flatten(0, 1), loaded.label_images(loaded.images.flatten(0, 1), trainer.transform))


def test_noise_is_another_start(make, tmp_path):
    make(start="noise", iterations=1).fit()
    start = AutoGenerator.from_pretrained(tmp_path / "run" / "start")
    expected = torch.tensor(FEW.mean).item() * 255
    assert abs(start.images.float().mean().item() - expected) < 40
    assert len(start.images.flatten(0, 1).unique(dim=0)) == 20


# ---- groups


@pytest.mark.parametrize("group_by", ["images", "classes"])
def test_groups_divide_the_bank(make, group_by):
    trainer = make(groups=2, group_by=group_by)
    trainer.open()
    rows = [group.rows for group in trainer.groups.own.values()]
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(20))
    assert [len(part) for part in rows] == [10, 10]
    labels = trainer.groups.own[0].labels
    assert sorted(labels.unique().tolist()) == (list(range(10)) if group_by == "images" else list(range(5)))
    assert all(torch.equal(group.labels, group.rows // 2) for group in trainer.groups.own.values())


def test_a_group_does_not_depend_on_the_others(make, monkeypatch):
    """So that processes can have some each."""
    whole = make("whole", groups=2)
    whole.fit()
    setup = PredictionMatchingTrainer.setup

    def with_another_first(self):
        tracked = setup(self)
        self.groups.own[0].images.mul_(-1)
        return tracked

    monkeypatch.setattr(PredictionMatchingTrainer, "setup", with_another_first)
    part = make("part", groups=2)
    part.fit()
    assert torch.equal(part.groups.own[1].images, whole.groups.own[1].images)
    assert not torch.equal(part.groups.own[0].images, whole.groups.own[0].images)


@pytest.mark.parametrize("settings", [{}, {"groups": 2, "image_batch": 6}, {"zca": True}])
@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_goes_on_as_if_it_had_not_stopped(make, monkeypatch, settings, stop):
    whole = make("whole", **settings).fit()
    cut = make("cut", checkpoint_every=1, **settings)
    step = cut.step

    def interrupted(indices):
        if cut.state.global_step == stop:
            raise RuntimeError("power cut")
        return step(indices)

    cut.step = interrupted
    with pytest.raises(RuntimeError, match="power cut"):
        cut.fit()
    resumed = make("cut", checkpoint_every=1, **settings).fit()
    assert resumed.fingerprint == whole.fingerprint


@pytest.mark.parametrize(("group_by", "size"), [("images", 1), ("classes", 2)])
def test_a_picture_shows_what_this_process_has(make, monkeypatch, group_by, size):
    seen = []
    monkeypatch.setattr(prediction_matching, "image_grid", lambda *args: seen.append(args))
    trainer = make(groups=2, group_by=group_by, zca=True)
    trainer.open()
    del trainer.groups.own[1]
    trainer.picture()
    ((images, columns, names),) = seen
    assert (len(images), columns) == (10, size)
    assert names == list("0123456789" if group_by == "images" else "01234")
    start = FEW.subset(2, 0).images
    assert all((start == image).flatten(1).all(1).any() for image in images)


def test_a_selection_takes_the_best(make):
    scores = iter([0.1, 0.9, 0.5])
    seen = []

    def validate(bank, held_out):
        seen.append(bank.fingerprint)
        return next(scores)

    data = DIGITS.subset(20, 1)
    best = make(data=data, iterations=6).fit(validate, every=2)
    assert len(set(seen)) == 3
    assert best.fingerprint == seen[1]


# ---- that it acts


def fresh_gap(trainer, images, held_out):
    """How far four new students of these images are from their teachers on other real images, and their accuracy."""
    (own,) = trainer.groups.own.values()
    group, places = Group(own.rows, images, own.labels, Random(99)), torch.arange(len(images))
    seen, gaps, right = trainer.transform(to_unit(held_out.images)), [], []
    for _ in range(4):
        trainer.train_students([(group, places)])
        with torch.no_grad():
            student, teacher = group.students[-1](seen)[0], trainer.teachers[group.teacher_number](seen)[0]
        gaps.append((student - teacher).abs().mean().item())
        right.append((student.argmax(1) == held_out.labels).float().mean().item())
    return sum(gaps) / 4, sum(right) / 4


def only_the_class(terms):
    """The control of equal length: the images' gap with the students is left out."""
    return {"gap": 0 * terms["gap"], "cross_entropy": terms["cross_entropy"]}


@pytest.mark.parametrize("seed", [0, 1])
def test_students_of_matched_images_predict_more_like_a_teacher(make, monkeypatch, seed):
    """On real images that neither saw, against the images as they began and against a control without the gap."""
    rest, held_out = DIGITS.split(0.25, seed=0)
    settings = {"data": rest, "seed": seed, "teacher_epochs": 10, "student_epochs": 40, "student_lr": 0.02}
    settings |= {"iterations": 30, "image_lr": 1.0, "log_every": 30}
    matched = make("matched", **settings)
    matched.fit()
    terms = prediction_matching.prediction_terms
    monkeypatch.setattr(prediction_matching, "prediction_terms", lambda *args: only_the_class(terms(*args)))
    control = make("control", **settings)
    control.fit()
    start = control.transform(to_unit(AutoGenerator.from_pretrained(control.run.path / "start").images.flatten(0, 1)))
    before, after, without = (
        fresh_gap(matched, images, held_out) for images in (start, matched.groups.images(), control.groups.images())
    )
    assert after[0] < min(before[0], without[0]) - 0.04
    assert after[1] > max(before[1], without[1]) + 0.08


# ---- settings


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("ipc is 0", {"ipc": 0}),
        ("teachers is 0", {"teachers": 0}),
        ("chunk is -1", {"chunk": -1}),
        ("image_batch is 0", {"image_batch": 0}),
        ("image_momentum is 1", {"image_momentum": 1.0}),
        ("hard_weight is -0.1", {"hard_weight": -0.1}),
        ("hard_weight is nan", {"hard_weight": float("nan")}),
        ("mid_gap is -1", {"mid_gap": -1}),
        ("Unknown network 'convnet33'", {"network": "convnet33"}),
        ("must not exceed student_epochs, 4", {"student_epochs": 4}),
        ("Unknown start", {"start": "mean"}),
        ("Unknown augmentation", {"augment": "blur"}),
        ("augment 'imagenet' is for images in unit range", {"augment": "imagenet"}),
        ("student_lr is 0", {"student_lr": 0.0}),
    ],
)
def test_impossible_settings_are_refused(words, settings):
    with pytest.raises(ValueError, match=words):
        PredictionMatchingConfig(**settings)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("groups is 3; it must divide the 2 images", {"groups": 3}),
        ("groups is 3; it must divide the 10 classes", {"groups": 3, "group_by": "classes"}),
        ("has 12 images and needs 13", {"ipc": 13}),
    ],
)
def test_what_does_not_fit_is_refused_before_teachers_are_trained(make, monkeypatch, tmp_path, words, settings):
    monkeypatch.setattr(Teachers, "prepare", lambda *args, **kwargs: pytest.fail("trained"))
    with pytest.raises(ValueError, match=words):
        make(**settings).fit()
    assert not (tmp_path / "run").exists()


# Table A9: IPC, network, rates of images and students, ZCA, images an iteration.
TABLE = {
    "paper": (50, "convnet3", 1, 0.02, True, None),
    "cifar10-ipc500": (500, "convnet3", 1, 0.02, True, 2500),
    "cifar10-ipc1000": (1000, "convnet3", 1, 0.02, True, 2500),
    "cifar100-ipc10": (10, "convnet3", 1, 0.02, True, None),
    "cifar100-ipc50": (50, "convnet3", 1, 0.04, True, 2500),
    "cifar100-ipc100": (100, "convnet3", 1, 0.04, True, 2500),
    "tiny-imagenet-ipc10": (10, "convnet4", 20, 0.1, False, 500),
    "tiny-imagenet-ipc50": (50, "convnet4", 40, 0.1, False, 500),
    "tiny-imagenet-ipc100": (100, "convnet4", 40, 0.1, False, 500),
    "imagenet64-ipc10": (10, "convnet4", 20, 0.1, False, 500),
    "imagenet64-ipc50": (50, "convnet4", 20, 0.1, False, 500),
    "imagenet64-ipc100": (100, "convnet4", 20, 0.1, False, 500),
}


def test_published_settings():
    assert set(PRESETS) == {*TABLE, "lite", "tiny"}
    shared = {"batch_size": 256, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "halved", "augment": "dsa"}
    for name, row in TABLE.items():
        made = PRESETS[name]
        assert (made.ipc, made.network, made.image_lr, made.student_lr, made.zca, made.image_batch) == row
        assert (made.preset, made.iterations, made.mid_gap, made.hard_weight) == (name, 2501, 2, 0.1)
        assert (made.snapshots, made.image_momentum, made.teachers, made.start) == (5, 0.5, 100, "real")
        assert made.teacher_recipe == Recipe(epochs=100, lr=0.05, **shared)
        assert made.student_recipe == Recipe(epochs=251, lr=made.student_lr, **shared)
    assert RECIPES["prediction-matching"] == Recipe(epochs=1000, lr=0.02, **shared)


def test_the_command_trains_judges_and_repeats(tmp_path, monkeypatch, capsys, cache):
    monkeypatch.chdir(tmp_path)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in FAST.items()]
    options += ["--teacher-cache", cache]
    assert (
        main(["distill", "--dataset", "digits", "--method", "prediction-matching", "--preset", "tiny", *options]) == 0
    )
    folder = "runs/digits-prediction-matching-tiny"
    assert f"{folder}/generator" in capsys.readouterr().out
    assert main(["distill", "--config", folder, "--output-dir", "again", "--teacher-cache", cache]) == 0
    one, other = (AutoGenerator.from_pretrained(f"{path}/generator") for path in (folder, "again"))
    assert one.fingerprint == other.fingerprint
    monkeypatch.setitem(RECIPES, "tiny", Recipe(max_steps=3))
    judged = ["evaluate", "again/generator", "--dataset", "digits", "--networks", "convnet1", "--n", "1"]
    assert main([*judged, "--recipe", "tiny"]) == 0
    report = capsys.readouterr().out
    for row in ("prediction-matching | fixed | 2", "prediction-matching | soft | 2", f"{RANDOM_REAL} | soft | 2"):
        assert row in report
    assert main([*judged, "--ipc", "3"]) == 2
    assert "holds 2 images per class" in capsys.readouterr().err
    assert main([*judged, "--truncation", "0.5"]) == 2
    assert "its images are stored" in capsys.readouterr().err
    assert main(["materialize", "again/generator", "--ipc", "2", "--output-dir", "sets"]) == 0
    judged[1] = "sets/ipc2-seed0"
    assert main([*judged, "--recipe", "tiny"]) == 0
    report = capsys.readouterr().out
    assert "dataset | soft | 2" in report
    assert "evaluate the generator, with real=" in report


def test_the_bank_is_judged_as_its_materialised_set(make, tmp_path):
    bank = make().fit()
    test, settings = DIGITS.subset(5, 9), {"networks": "convnet1", "n": 2, "recipe": Recipe(max_steps=20)}
    rows = [
        evaluate(source, test, real=FEW, with_baselines=False, name="x", progress=False, **settings).results
        for source in (bank, load_distilled_dataset(bank, ipc=2, cache_dir=tmp_path))
    ]
    found = [[(row.protocol, row.accuracies, row.stored_bytes) for row in each] for each in rows]
    assert found[0] == found[1]
    assert [r.protocol for r in rows[0]] == ["fixed", "soft"]
    assert rows[0][1].stored_bytes == rows[0][0].stored_bytes + 20 * 10 * 2


def test_the_script_judges_banks_of_several_sizes_together(tmp_path, monkeypatch, capsys, cache):
    path = Path(__file__).parents[2] / "scripts" / "prediction_matching.py"
    spec = importlib.util.spec_from_file_location("prediction_matching_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setitem(PRESETS, "tiny", PRESETS["tiny"].changed(**FAST, zca=True, teacher_cache=cache))
    monkeypatch.setitem(RECIPES, "tiny", Recipe(max_steps=3))
    script.main(output_dir=tmp_path, ipcs=(1, 2), networks=("convnet1", "convnet2"), n=2)
    table = capsys.readouterr().out
    rows = [tuple(cell.strip() for cell in line.split("|")[1:5]) for line in table.splitlines() if "| convnet" in line]
    method, both, nets = "prediction-matching", ("fixed", "soft"), ("convnet1", "convnet2")
    expected = {*product((RANDOM_REAL, method, "start"), both, "12", nets)}
    expected |= {*product(["full data"], ["fixed"], ["all"], nets), ("teacher", "fixed", "all", "convnet1")}
    assert set(rows) == expected
    assert len(rows) == len(expected)
    assert "whitened" in table
    assert "1.4% of the images" in table
    assert AutoGenerator.from_pretrained(tmp_path / "ipc2" / "generator").report is not None
