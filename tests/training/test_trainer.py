import errno
import os
import random
import signal
import sys
import time
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import register_to_config
from PIL import Image
from safetensors import SafetensorError
from torch import nn

from hf_gdd import AutoGenerator, Stage, evaluate
from hf_gdd.classifiers.learner import NonFiniteLossError
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.pixels import to_tanh
from hf_gdd.generators.noise import noise
from hf_gdd.generators.pretrained import GeneratorModel
from hf_gdd.methods.global_local import trainer as global_local
from hf_gdd.methods.global_local.trainer import GlobalLocalConfig, GlobalLocalTrainer
from hf_gdd.training.config import BOOKKEEPING, TrainingConfig
from hf_gdd.training.errors import RunError
from hf_gdd.training.metrics_log import MetricsLog
from hf_gdd.training.run_folder import RunFolder, read_run, stage_file
from hf_gdd.training.signals import Interrupted, stop_signals
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.io import disk_full, load_state, save_state

DIGITS = ImageTensors.from_dataset("digits").subset(10, 0)
FAST = {"width": 4, "max_steps": 6, "pool": ("convnet1",), "inner_steps": 1}
FAST |= {"codes_ipc": 0, "teacher_network": None}
FAST |= {"checkpoint_every": 2, "picture_every": 1000, "log_every": 3}
FAST |= {"gan_batch_size": 16, "match_batch_size": 16}  # six batches an epoch: most steps are in the middle of one
DRAW_PICTURES = Trainer.save_pictures


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(Trainer, "save_pictures", lambda self: None)


def make(folder, data=DIGITS, kind=GlobalLocalTrainer, **overrides):
    return kind(data, preset="tiny", output_dir=folder, **FAST | overrides)


def weights(trainer):
    parts = {name: getattr(trainer, name).state_dict() for name in ("generator", "discriminator")}
    return {f"{name}.{key}": value.clone() for name, part in parts.items() for key, value in part.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def timeless(records):
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def at_step(trainer, total, action, before=False):
    """Do something when the step after `total` others is taken."""
    original = trainer.step

    def step(indices):
        now = trainer.state.global_step == total
        if now and before:
            action()
        metrics = original(indices)
        if now and not before:
            action()
        return metrics

    trainer.step = step


class PowerCut(Exception):
    pass


def cut():
    raise PowerCut


def stop_after(folder, total, **overrides):
    """A run that dies in the step after `total` others, its weights already changed by that step."""
    trainer = make(folder, **overrides)
    at_step(trainer, total, cut)
    with pytest.raises(PowerCut):
        trainer.fit()
    return trainer


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def finite(state):
    if isinstance(state, dict):
        return all(map(finite, state.values()))
    if isinstance(state, (list, tuple)):
        return all(map(finite, state))
    return not (isinstance(state, torch.Tensor) and state.is_floating_point()) or bool(state.isfinite().all())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights and the metrics of a run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_pictures", lambda self: None)
        trainer = make(tmp_path_factory.mktemp("whole") / "run")
        trainer.fit()
    return weights(trainer), trainer.run.records()


@pytest.mark.parametrize("total", [0, 1, 3, 5, 6, 7, 10, 11])
def test_a_crashed_run_resumes_to_the_same_weights_and_metrics(tmp_path, whole, total):
    stop_after(tmp_path / "run", total)
    trainer = make(tmp_path / "run")
    trainer.fit()
    assert same(weights(trainer), whole[0])
    records = trainer.run.records()
    assert timeless(records) == timeless(whole[1])
    assert [record["step"] for record in records] == [2, 3, 4, 6, 8, 9, 10, 12]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(set(seconds))
    assert seconds[0] > 0


def test_resuming_repeats_no_finished_step(tmp_path):
    stop_after(tmp_path / "run", 9)
    trainer, taken = make(tmp_path / "run"), []
    original = trainer.step
    trainer.step = lambda indices: (taken.append(trainer.state.global_step), original(indices))[1]
    trainer.fit()
    assert taken == [8, 9, 10, 11]  # from the checkpoint after 8 steps


class Slow(GlobalLocalTrainer):
    """Says which step it takes through a pipe, and takes its time for it."""

    pipe = None

    def step(self, indices):
        if self.pipe is not None:
            os.write(self.pipe, f"{self.state.global_step}\n".encode())
            time.sleep(0.01)
        return super().step(indices)

    def identity(self):
        return super().identity() | {"trainer": "Slow"}


def killed(folder, target, delay, **settings):
    """Fork a process that trains, SIGKILL it `delay` seconds after it began step `target`; the step it reached."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.close(read)
            Slow.pipe = write
            make(folder, kind=Slow, **settings).fit()
        os._exit(0)
    os.close(write)
    reached = -1
    with os.fdopen(read) as lines:
        for line in lines:
            reached = int(line)
            if reached >= target:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
                break
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the process ended before it was killed"
    return reached


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_kills_change_nothing(tmp_path):
    settings = {"max_steps": 16}
    undisturbed = make(tmp_path / "undisturbed", kind=Slow, **settings)
    undisturbed.fit()

    moments = random.Random(0)
    targets = sorted(moments.sample(range(1, 28), 10))
    assert sum(target >= 17 for target in targets) >= 3  # in the matching, too
    for target in targets:
        reached = killed(tmp_path / "run", target, moments.uniform(0, 0.06), **settings)
        assert reached >= target
    trainer = make(tmp_path / "run", kind=Slow, **settings)
    trainer.fit()
    assert same(weights(trainer), weights(undisturbed))
    assert timeless(trainer.run.records()) == timeless(undisturbed.run.records())
    assert not list((tmp_path / "run").rglob("*.part"))


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch, tmp_path):
    """Each would train by itself, all into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes, but 1 formed a group: set ACCELERATE_USE_CPU=true"):
        make(tmp_path / "run")


def test_a_stop_under_a_launcher_says_so(monkeypatch, tmp_path):
    assert "same launcher" not in str(Interrupted(signal.SIGTERM, 1, tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert str(Interrupted(signal.SIGTERM, 1, tmp_path)).endswith("(under the same launcher)")


@pytest.mark.parametrize(("signum", "total"), [(signal.SIGINT, 2), (signal.SIGTERM, 8)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, whole, monkeypatch, signum, total):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--width", "4 or so"])
    handler = signal.getsignal(signum)
    trainer = make(tmp_path / "run", checkpoint_every=1000)
    at_step(trainer, total, lambda: os.kill(os.getpid(), signum), before=True)
    with pytest.raises(Interrupted) as stop:
        trainer.fit()
    assert stop.value.signum == signum
    for part in (signum.name, f"after step {total + 1},", str(tmp_path / "run"), "python train.py --width '4 or so'"):
        assert part in str(stop.value)
    assert trainer.run.newest_checkpoint().name == f"step-{total + 1:09d}.pt"
    assert signal.getsignal(signum) is handler

    resumed = make(tmp_path / "run", checkpoint_every=1000)
    resumed.fit()
    assert same(weights(resumed), whole[0])


def test_the_second_signal_stops_at_once(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), stop_signals() as stop:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert stop == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was swallowed")


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_truncated_checkpoint_is_passed_over(tmp_path, whole, damaged):
    stop_after(tmp_path / "run", 9)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*.pt"))[-damaged:]
    for path in newest:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    trainer = make(tmp_path / "run")
    with pytest.warns(UserWarning, match="cannot be read.*Falling back to the checkpoint before it") as warned:
        trainer.fit()
    named = [str(w.message) for w in warned if "Falling back" in str(w.message)]
    assert [path.name in message for path, message in zip(reversed(newest), named, strict=True)] == [True] * damaged
    assert same(weights(trainer), whole[0])
    assert timeless(trainer.run.records()) == timeless(whole[1])


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, whole, recwarn):
    trainer, save = make(tmp_path / "run"), torch.save

    def disk_full(state, file):
        if trainer.state.global_step < 8:
            return save(state, file)
        file.write(b"PK half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", disk_full)
        with pytest.raises(RunError, match=r"No space left on device\. Free some space, then run .* from .*000006.pt"):
            trainer.fit()
    assert checkpoints(tmp_path / "run") == ["stage-gan.pt", "step-000000006.pt"]  # older ones made room for a last try
    assert not list((tmp_path / "run").rglob("*.part"))
    resumed = make(tmp_path / "run")
    resumed.fit()
    assert not [w for w in recwarn if "Falling back" in str(w.message)]
    assert same(weights(resumed), whole[0])
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_file_that_the_disk_refuses_leaves_the_one_before(tmp_path):
    resource = pytest.importorskip("resource")
    save_state(tmp_path / "state.pt", {"a": torch.ones(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as fault:
            save_state(tmp_path / "state.pt", {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert disk_full(fault.value)
    assert disk_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not disk_full(SafetensorError("Error while deserializing header: header too large"))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert load_state(tmp_path / "state.pt")["a"].sum() == 10


def test_a_batch_that_does_not_fit_names_one_to_try(tmp_path):
    trainer = make(tmp_path / "run")

    def step(indices):
        return {"x": torch.empty(10**14).sum()}

    trainer.step = step
    size = trainer.config.gan_batch_size
    with pytest.raises(
        RunError, match=rf"Out of memory\. It was with gan_batch_size={size}: try gan_batch_size={size // 2}"
    ):
        trainer.fit()


@pytest.mark.parametrize(("keep", "steps"), [(1, [12]), (3, [8, 10, 12])])
def test_only_the_newest_checkpoints_and_those_of_stages_remain(tmp_path, keep, steps):
    trainer = make(tmp_path / "run", keep_checkpoints=keep)
    trainer.fit()
    expected = [f"step-{step:09d}.pt" for step in steps] + ["stage-gan.pt", "stage-match.pt"]
    assert checkpoints(tmp_path / "run") == sorted(expected)
    assert not list((tmp_path / "run").rglob("*.part"))
    assert load_state(stage_file(tmp_path / "run", "gan"))["state"]["global_step"] == 6


@pytest.mark.parametrize(("step", "value"), [(9, float("nan")), (10, float("inf"))])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, step, value):
    calls, original = [], global_local.global_loss

    def global_loss(*args):
        calls.append(args)
        return original(*args) * (value if len(calls) == step - 6 else 1.0)

    monkeypatch.setattr(global_local, "global_loss", global_loss)
    trainer = make(tmp_path / "run", keep_checkpoints=100)
    with pytest.raises(NonFiniteLossError) as error:
        trainer.fit()
    for part in (f"global became {value}", f"in step {step} ", "stage match", "step-000000008.pt", "learning rate"):
        assert part in str(error.value)
    assert trainer.run.newest_checkpoint().name == "step-000000008.pt"
    assert finite(load_state(trainer.run.newest_checkpoint()))
    assert all(np.isfinite(v) for r in trainer.run.records() for v in r.values() if not isinstance(v, str))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """An infinite gradient of a finite loss spoils the weights in one step, and the losses only in the next."""
    trainer = make(tmp_path / "run")
    update = trainer.update

    def spoil(module, optimizer, loss):
        update(module, optimizer, loss)
        if trainer.state.global_step == 7 and module is trainer.discriminator:
            next(module.parameters()).data.fill_(float("nan"))

    trainer.update = spoil
    with pytest.raises(NonFiniteLossError, match=r"step-000000006\.pt"):
        trainer.fit()
    assert finite(load_state(trainer.run.newest_checkpoint()))


def test_a_loss_that_is_not_finite_before_any_checkpoint(tmp_path):
    trainer = make(tmp_path / "run")
    trainer.step = lambda indices: {"adversarial": torch.tensor(0.0), "class": torch.tensor(float("nan"))}
    with pytest.raises(NonFiniteLossError, match=r"class became nan in step 1 .*none: the run is too young"):
        trainer.fit()


def test_the_folder_of_another_run_is_refused(tmp_path):
    make(tmp_path / "run").fit()
    before = (tmp_path / "run" / "run.yaml").read_bytes(), checkpoints(tmp_path / "run")
    with pytest.raises(ValueError, match=r"config\.seed \(now 3, there 0\).*output_dir"):
        make(tmp_path / "run", seed=3).fit()
    with pytest.raises(ValueError, match=r"config\.width \(now 5, there 4\); config\.match_lr"):
        make(tmp_path / "run", width=5, match_lr=1e-5).fit()
    with pytest.raises(ValueError, match="fingerprint"):
        make(tmp_path / "run", data=ImageTensors.from_dataset("digits").subset(10, 1)).fit()
    assert ((tmp_path / "run" / "run.yaml").read_bytes(), checkpoints(tmp_path / "run")) == before


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = make(tmp_path / "run").fit()
    monkeypatch.setattr(GlobalLocalTrainer, "step", lambda self, indices: pytest.fail("it was"))
    again = make(tmp_path / "run", log_every=1, keep_checkpoints=9).fit()  # which change nothing that is computed
    assert again.fingerprint == first.fingerprint


def test_repeating_a_finished_run_keeps_the_report_of_its_generator(tmp_path):
    generator = make(tmp_path / "run").fit()
    settings = {"ipc": 1, "networks": "convnet1", "n": 1, "recipe": Recipe(max_steps=1), "progress": False}
    generator.report = evaluate(generator, DIGITS, **settings)
    generator.save_pretrained(tmp_path / "run" / "generator")
    assert make(tmp_path / "run").fit().report == generator.report
    assert AutoGenerator.from_pretrained(tmp_path / "run" / "generator").report == generator.report


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(GlobalLocalTrainer, "step", lambda self, indices: pytest.fail("trained"))
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"Cannot write to the output folder .*choose another"):
            make(folder).fit()
    assert (tmp_path / "file").read_text() == "in the way"


def test_validation_returns_the_best_on_images_held_out(tmp_path):
    seen, scores = [], iter([0.1, 0.9, 0.3])

    def validate(generator, held_out):
        seen.append((generator.fingerprint, held_out))
        return next(scores)

    trainer = make(tmp_path / "run")
    best = trainer.fit(validate, every=2, held_out=0.2)
    assert len(seen) == 3
    assert len({fingerprint for fingerprint, _ in seen}) == 3
    assert best.fingerprint == seen[1][0]
    assert not best.training

    held_out = seen[0][1]
    assert held_out.class_counts == (2,) * 10
    assert trainer.data.class_counts == (8,) * 10
    assert trainer.pool.data is trainer.data
    assert trainer.batches.rows == 80
    parts = [{image.numpy().tobytes() for image in part.images} for part in (trainer.data, held_out)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {image.numpy().tobytes() for image in DIGITS.images}


def test_validation_at_the_end_by_default_survives_a_restart(tmp_path):
    calls = []
    best = make(tmp_path / "run").fit(lambda generator, held_out: calls.append(generator.fingerprint) or 0.5)
    assert calls == [best.fingerprint]
    again = make(tmp_path / "run").fit(lambda generator, held_out: pytest.fail("judged again"))
    assert again.fingerprint == best.fingerprint
    with pytest.raises(ValueError, match="held_out"):
        make(tmp_path / "run").fit()


def test_fitting_again_goes_on_as_a_new_process_would(tmp_path, whole):
    trainer = stop_after(tmp_path / "run", 7, checkpoint_every=2)
    del trainer.step
    for _ in range(2):
        trainer.fit()
        assert same(weights(trainer), whole[0])


def test_fitting_again_holds_out_the_same(tmp_path):
    trainer = make(tmp_path / "run")
    for _ in range(2):
        trainer.fit(lambda generator, held_out: 0.5)
        assert (len(trainer.data), len(trainer.held_out)) == (90, 10)


def test_nothing_is_held_out_unless_asked_for(tmp_path):
    trainer = make(tmp_path / "run")
    trainer.fit()
    assert trainer.held_out is None
    assert len(trainer.data) == trainer.batches.rows == 100


@dataclass(frozen=True)
class OtherConfig(TrainingConfig):
    pass


def tensors(size=8, names=("a", "b"), rows=8):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (rows, 1, size, size), dtype=np.uint8))
    return ImageTensors(images, torch.arange(rows) % len(names), names, "toy:train", torch.device("cpu"))


def mixed_sizes():
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [Image.new("L", (size, size)) for size in (8, 10)]
    return datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "Unknown preset 'huge'; choose one of paper, fast, lite, tiny"),
        ({"config": OtherConfig(), "preset": None}, "needs a GlobalLocalConfig, not a OtherConfig"),
        ({"widht": 8}, "Unknown setting widht; .*width"),
        ({"max_steps": 0}, "max_steps is 0; it must be positive"),
        ({"width": 0}, "width is 0; it must be positive"),
        ({"width": 5000}, "width is 5000; it must lie in"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; it must lie in"),
        ({"global_weight": -1.0}, "must not be negative; 0 switches it off"),
        ({"config": GlobalLocalTrainer.configure("tiny")}, "preset='tiny' or config, not both"),
        ({"seed": -1}, r"seed is -1; it must lie in \[0, 2\*\*63\)"),
        ({"method": "gan"}, "Unknown method 'gan'; choose one of global-local, dim, cgan, cgan-continued"),
        ({"adversarial": "hinge"}, "Unknown adversarial 'hinge'; choose one of wgan-gp, minimax"),
        ({"global_reduction": "sum"}, "Unknown global_reduction 'sum'; choose one of logsoftmax_mean"),
        ({"local_reduction": "sum"}, "Unknown local_reduction 'sum'; choose one of batchmean_sum"),
        ({"mixed_precision": "fp8"}, "Unknown mixed_precision 'fp8'; choose one of no, bf16"),
        ({"match_augment": "hue"}, "(?i)unknown augmentation 'hue'"),
        ({"pool": ("convnet33",)}, "(?i)unknown network 'convnet33'. Did you mean 'convnet3'"),
        ({"pool": ()}, r"pool is \(\); it must be a tuple of networks"),
        ({"trackers": ("nosuch",)}, "Tracker nosuch is not installed: pip install"),
        ({"start_from": "nowhere"}, "nowhere is not the file of a run"),
        ({"method": "cgan", "start_from": "nowhere"}, "first stage alone"),
        ({"data": tensors(names=("a",))}, "has 1 class; training needs 2"),
        ({"data": tensors(names=("a", "b"), rows=1)}, "Class 'b' .* has 0 images and needs 1"),
        ({"data": tensors(size=7)}, "7x7 pixels, .* image_size=32"),
        ({"data": mixed_sizes()}, "Row 0 is 8x8 pixels but row 1 is 10x10: .*image_size=8"),
        ({"data": tensors(), "image_size": 16}, "already decoded"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_any_step(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(GlobalLocalTrainer, "step", lambda self, indices: pytest.fail("trained"))
    arguments = {"data": DIGITS, "preset": "tiny", "output_dir": tmp_path / "run"} | arguments
    with pytest.raises(ValueError, match=message):
        GlobalLocalTrainer(arguments.pop("data"), **arguments).fit()
    assert not (tmp_path / "run").exists()


def test_data_smaller_than_a_batch_trains(tmp_path):
    trainer = make(tmp_path / "run", data=DIGITS.subset(2, 0), max_steps=3, gan_batch_size=64, match_batch_size=64)
    sizes, original = [], trainer.step
    trainer.step = lambda indices: (sizes.append(sorted(indices.tolist())), original(indices))[1]
    trainer.fit()
    assert sizes == [list(range(20))] * 6
    assert trainer.run.records()[-1]["step"] == 6


def test_the_run_file_repeats_the_run(tmp_path):
    trainer = make(tmp_path / "run", match_lr=3e-4, ema_decay=0.5, method="dim", seed=4)
    trainer.fit()
    config = GlobalLocalConfig.from_identity(read_run(tmp_path / "run")["config"])
    default = GlobalLocalConfig()
    assert config == replace(trainer.config, **{name: getattr(default, name) for name in BOOKKEEPING})
    again = GlobalLocalTrainer(DIGITS, config=config, output_dir=tmp_path / "again")
    again.fit()
    assert same(weights(again), weights(trainer))


def test_settings_that_this_version_does_not_know_are_refused():
    with pytest.raises(ValueError, match="Unknown setting depth"):
        GlobalLocalConfig.from_identity({"depth": 3})


def test_a_loop_of_ones_own_is_the_same_run(tmp_path, whole):
    """It saves after its last step, and leaves the folder unlocked for the next process."""
    trainer, steps = make(tmp_path / "run"), 0
    trainer.open()
    while trainer.advance():
        steps += 1
    trainer.save_checkpoint()
    trainer.close()
    assert steps == 12
    assert same(weights(trainer), whole[0])
    again = make(tmp_path / "run")
    again.open()
    assert not again.advance()
    again.close()
    assert same(weights(again), whole[0])


def test_opening_that_fails_unlocks_the_folder(tmp_path, monkeypatch):
    trainer = make(tmp_path / "run")
    monkeypatch.setattr(MetricsLog, "resume", lambda *args: cut())
    with pytest.raises(PowerCut):
        trainer.open()
    monkeypatch.undo()
    other = make(tmp_path / "run")
    other.open()
    other.close()


def test_a_checkpoint_without_a_part_is_refused(tmp_path):
    stop_after(tmp_path / "run", 9)
    for path in (tmp_path / "run" / "checkpoints").glob("step-*.pt"):
        save_state(path, {name: part for name, part in load_state(path).items() if name != "pool"})
    with pytest.raises(ValueError, match="The checkpoint has no 'pool'"):
        make(tmp_path / "run").fit()


def test_lengths_of_the_stages(tmp_path):
    data = ImageTensors.from_dataset("digits")
    assert len(data) == 1437
    gan, match = GlobalLocalTrainer(data, output_dir=tmp_path).stages
    assert (gan.name, gan.steps, gan.batch_size, gan.lr) == ("gan", 150 * 11, 128, 1e-4)
    assert (match.name, match.steps, match.batch_size, match.lr) == ("match", 100 * 22, 64, 5e-6)
    capped = GlobalLocalTrainer(data, output_dir=tmp_path, max_steps=2000).stages
    assert [stage.steps for stage in capped] == [1650, 2000]
    short = GlobalLocalTrainer(data.subset(2, 0), output_dir=tmp_path, gan_epochs=3, match_epochs=4).stages
    assert [stage.steps for stage in short] == [3, 4]


def test_every_stage_has_its_own_rate_and_batch(tmp_path):
    trainer = make(tmp_path / "run", gan_batch_size=32, match_batch_size=16, gan_lr=1e-3, match_lr=1e-5)
    seen, original = [], trainer.step

    def step(indices):
        rates = {g["lr"] for o in (trainer.optimizer_g, trainer.optimizer_d) for g in o.param_groups}
        seen.append((len(indices), rates))
        return original(indices)

    trainer.step = step
    trainer.fit()
    assert seen == [(32, {1e-3})] * 6 + [(16, {1e-5})] * 6


def test_pictures_can_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "save_pictures", DRAW_PICTURES)
    make(tmp_path / "run", picture_every=4).fit()
    grids = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in grids] == [f"step-{step:09d}.png" for step in (4, 6, 10, 12)]
    for path in [*grids, tmp_path / "run" / "generator" / "grid.png"]:
        picture = Image.open(path)
        picture.load()
        assert picture.height == 580  # 10 classes by 10 images of 8 px, enlarged sevenfold, 1 px around
        assert 580 <= picture.width <= 700  # and the names of the classes
        assert len(picture.getcolors(maxcolors=2**20)) > 10
    curves = Image.open(tmp_path / "run" / "losses.png").convert("L")
    assert min(curves.size) > 300
    assert np.asarray(curves).std() > 5


# A method of one's own, as README says.


@AutoGenerator.register
class MeanGenerator(GeneratorModel):
    """The mean image of every class, brighter or darker."""

    @register_to_config
    def __init__(self, class_names, image_shape, mean=(0.5,), std=(0.5,), training=None, format_version=1):
        super().__init__()
        self.images = nn.Parameter(torch.zeros(len(class_names), *image_shape))

    def make(self, labels, indices, seed, sampling):
        return self.images[labels] + 0.1 * noise(seed, labels, indices, (1, 1, 1))


class MeanTrainer(Trainer):
    @property
    def stages(self):
        return (Stage("mean", steps=self.config.max_steps or 8, batch_size=50, lr=0.5),)

    def setup(self):
        self.generator = MeanGenerator(self.data.class_names, self.data.shape, self.data.mean, self.data.std)
        return {"generator": self.generator}

    def step(self, indices):
        images, labels = self.data.gather(indices)
        distance = to_tanh(images) - self.generator.images[labels]
        with torch.no_grad():
            self.generator.images.index_add_(0, labels, distance.detach(), alpha=0.1)
        return {"distance": distance.square().mean()}

    def to_generator(self):
        return deepcopy(self.generator).eval()


def test_a_method_of_ones_own(tmp_path):
    def contrast(generator, held_out):
        return float(generator.images.detach().std())

    data, folder = ImageTensors.from_dataset("digits"), tmp_path / "run"
    trainer = MeanTrainer(data, output_dir=folder, checkpoint_every=2)
    at_step(trainer, 5, cut)
    with pytest.raises(PowerCut):
        trainer.fit(contrast, every=4)
    trainer = MeanTrainer(data, output_dir=folder, checkpoint_every=2)
    best = trainer.fit(contrast, every=4)
    assert type(best) is MeanGenerator
    distances = [record["distance"] for record in trainer.run.records()]
    assert distances[-1] < distances[0]
    report = evaluate(best, ImageTensors.from_dataset("digits", "test"), ipc=5, networks="convnet2", n=1, recipe="tiny")
    assert report.results[0].mean > 0.5
    assert {path.name for path in (tmp_path / "run" / "generator").iterdir()} >= {
        "config.json",
        "grid.png",
        "README.md",
    }


def test_rates_are_over_whole_stages(tmp_path):
    run = RunFolder(tmp_path, {"trainer": "T", "config": {}})
    for step, stage, rate, seconds in ((1, "gan", 10, 2.0), (2, "gan", 40, 3.0), (3, "match", 5, 7.0)):
        run.log({"step": step, "stage": stage, "images_per_second": rate, "seconds": seconds})
    assert MetricsLog(run, True, print).rates() == {"gan": 20.0, "match": 5.0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"match_lr": float("inf")}, "match_lr is inf"),
        ({"gan_lr": float("nan")}, "gan_lr is nan"),
        ({"global_weight": float("nan")}, "global_weight is nan"),
        ({"pool": "convnet2"}, "pool is 'convnet2'; it must be a tuple"),
    ],
)
def test_settings_that_are_no_numbers_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        GlobalLocalTrainer.configure("tiny", **settings)


def test_checkpoints_of_an_unknown_run_are_not_taken_over(tmp_path):
    make(tmp_path / "run").fit()
    (tmp_path / "run" / "run.yaml").unlink()
    with pytest.raises(ValueError, match=r"holds checkpoints but no run.yaml"):
        make(tmp_path / "run", seed=9).fit()
