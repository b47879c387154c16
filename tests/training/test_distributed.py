"""Two processes train what one would."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import Client
from kinds import gan

import hf_gdd.distilled.builder
from hf_gdd import (
    AutoGenerator,
    DiffusionMemoryTrainer,
    GlobalLocalTrainer,
    ImageTensors,
    PredictionMatchingTrainer,
    load_distilled_dataset,
)
from hf_gdd.classifiers.learner import NonFiniteLossError
from hf_gdd.classifiers.teachers import Teachers
from hf_gdd.methods.global_local.losses import GLOBAL_REDUCTIONS, LOCAL_REDUCTIONS, global_loss, local_loss
from hf_gdd.training.errors import RunError
from hf_gdd.training.signals import Interrupted
from hf_gdd.utils.device import own_device
from hf_gdd.utils.io import load_state

SETTINGS = {"preset": "tiny", "width": 4, "max_steps": 4, "gan_batch_size": 8, "match_batch_size": 8, "log_every": 2}
SETTINGS |= {"codes_ipc": 0, "teacher_network": None}


def trainer(folder, kind=GlobalLocalTrainer, **settings):
    data = ImageTensors.from_dataset("digits").subset(10, 0)
    return kind(data, output_dir=folder, **SETTINGS | settings)


@contextmanager
def two_processes(home):
    """Two processes of one group, as a launcher would start them; forks of this one would share its threads' locks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["HF_HOME"] = str(home)
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    processes = [Client(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with two_processes(tmp_path_factory.mktemp("hf_home")) as processes:
        yield processes


def on_two(pair, function, *arguments):
    """Run it in both; what either raises is raised."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda process: process.run(function, *arguments), pair))


def everywhere(tensor):
    """A tensor of every process."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def train(folder):
    run = trainer(folder)
    run.fit()
    assert run.accelerator.num_processes == 2
    for module in (run.generator, run.discriminator, run.pool.learner.network):
        one, other = everywhere(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
        assert torch.equal(one, other)
    for state in (run.random.rng.get_state(), run.match_random.rng.get_state()):
        one, other = everywhere(state)
        assert torch.equal(one, other)


def test_processes_stay_together(pair, tmp_path):
    on_two(pair, train, tmp_path / "run")
    records = trainer(tmp_path / "run").run.records()
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    resumed = trainer(tmp_path / "run").fit()  # one process reads what two have written
    assert resumed.class_names == tuple("0123456789")


CODES = {"codes_ipc": 3, "codes_steps": 5, "codes_real": 4, "codes_refresh": 2, "codes_inner_steps": 1}
CODES |= {"pool": ("convnet1",), "max_steps": 5, "teacher_network": "convnet1", "teacher_epochs": 1}
CODES["generator"] = str(Path(__file__).parents[2] / "model_cards" / "digits")


def train_codes(folder):
    run = trainer(folder, **CODES)
    generator = run.fit()
    for tensor in (run.codes.codes.detach(), *generator.teacher.state_dict().values()):
        one, other = everywhere(tensor.flatten())
        assert torch.equal(one, other)


def test_two_processes_tune_the_codes_that_one_would(pair, tmp_path):
    """Every process takes all of each step; one of them trains the teacher."""
    on_two(pair, train_codes, tmp_path / "two")
    trainer(tmp_path / "one", **CODES).fit()
    one, two = (AutoGenerator.from_pretrained(tmp_path / name / "generator") for name in ("one", "two"))
    assert two.teacher.config.network == "convnet1"
    assert torch.equal(two.codes, one.codes)
    plain = one.plain_codes(torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert (one.codes[0].float() - plain).abs().max() > 0.1


EXACT = {"pool": ("convnet1", "resnet10-dd"), "pool_refresh": 7, "inner_steps": 1, "max_steps": 20, "gan_lr": 3e-4}
EXACT["checkpoint_every"] = 7
# Weights at which every term has a good part of the gradient, so that none can be forgotten.
EXACT |= {"class_on_fakes": True, "global_weight": 0.1, "local_weight": 0.01, "global_reduction": "logit_sum"}


def exact_gan(folder, **settings):
    return trainer(folder, **EXACT | settings)


def exact_diffusion(folder, **settings):
    data = ImageTensors.from_dataset("digits").subset(10, 0)
    weights = {"real_weight": 0.5, "gen_weight": 0.5, "max_steps": 20, "checkpoint_every": 7}
    return DiffusionMemoryTrainer(data, preset="tiny", output_dir=folder, **SMALL | weights | settings)


def recorded(make, folder, **settings):
    """The gradients of every update of a training in float64, and the weights at its end."""
    torch.set_default_dtype(torch.float64)
    try:
        run, gradients = make(folder, **settings), []
        update = run.update

        def record(module, *rest):
            update(module, *rest)
            gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))

        run.update = record
        run.fit()
        parts = [part for part in run.tracked.values() if isinstance(part, torch.nn.Module)]
        weights = [x.flatten() for part in parts for x in part.state_dict().values() if x.is_floating_point()]
        return gradients, torch.cat(weights)
    finally:
        torch.set_default_dtype(torch.float32)


def record(make, folder, kept, settings):
    found = recorded(make, folder / "two", **settings)
    if dist.get_rank() == 0:
        torch.save(found, kept)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (exact_gan, {}),
        (exact_gan, {"adversarial": "minimax", "local_reduction": "paired_sum", "local_weight": 1e-3, "max_steps": 4}),
        (exact_diffusion, {}),
    ],
)
def test_two_processes_compute_what_one_does(pair, tmp_path, make, settings):
    on_two(pair, record, make, tmp_path, tmp_path / "kept.pt", settings)
    gradients, weights = torch.load(tmp_path / "kept.pt")
    alone, weights_alone = recorded(make, tmp_path / "one", **settings)
    assert len(gradients) == len(alone)
    for one, other in zip(alone, gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-8 * float(one.abs().max()))
    torch.testing.assert_close(weights, weights_alone, rtol=1e-8, atol=1e-8)
    _, last = sorted((tmp_path / "two" / "checkpoints").glob("step-*.pt"))
    last.unlink()
    resumed, weights_resumed = recorded(make, tmp_path / "two", **settings)  # by one process from what two have saved
    assert 0 < len(resumed) < len(alone)
    torch.testing.assert_close(weights_resumed, weights_alone, rtol=1e-8, atol=1e-8)


SMALL = {
    "codes_ipc": 0,
    "teacher_network": None,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "vae_width": 4,
    "latent_channels": 2,
    "num_inference_steps": 1,
    "log_every": 2,
}
SMALL |= {"vae_batch_size": 8, "dit_batch_size": 8, "tune_batch_size": 8, "max_steps": 4}


def train_diffusion(folder):
    data = ImageTensors.from_dataset("digits").subset(10, 0)
    run = DiffusionMemoryTrainer(data, preset="tiny", output_dir=folder, **SMALL)
    run.fit()
    state = [*run.transformer.parameters(), *run.vae.parameters(), *run.trained["tune"]]
    state += [run.parts[memory].vectors for memory in ("real", "generated")]
    one, other = everywhere(torch.nn.utils.parameters_to_vector([tensor.detach() for tensor in state]))
    assert torch.equal(one, other)
    assert int(run.parts["generated"].is_member.sum()) == 4 * 8  # the latents of both processes


def test_memories_take_in_the_whole_batch(pair, tmp_path):
    on_two(pair, train_diffusion, tmp_path / "run")


CHOICE = {"codes_ipc": 3, "codes_candidates": 6, "codes_networks": 1, "codes_inner_steps": 2}


def choose(folder):
    data = ImageTensors.from_dataset("digits").subset(10, 0)
    generator = DiffusionMemoryTrainer(data, preset="tiny", output_dir=folder, **SMALL | CHOICE).fit()
    one, other = everywhere(generator.codes)
    assert torch.equal(one, other)
    assert one.shape == (10, 3)
    assert (folder / "generator" / "codes.safetensors").is_file()


def test_one_of_two_processes_chooses_draws_for_both(pair, tmp_path):
    on_two(pair, choose, tmp_path / "run")


def matching(folder, **settings):
    data = ImageTensors.from_dataset("digits").subset(10, 0)
    small = {"ipc": 4, "network": "convnet1", "teachers": 3, "teacher_epochs": 2, "student_epochs": 5, "iterations": 20}
    small |= {"groups": 2, "log_every": 2, "checkpoint_every": 9, "teacher_cache": str(folder.parent / "teachers")}
    return PredictionMatchingTrainer(data, preset="tiny", output_dir=folder, **small | settings)


def match(folder, group_by):
    run = matching(folder, group_by=group_by)
    numbers, train = [], Teachers._train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teachers, "_train", lambda self, begun, bar: numbers.extend(begun) or train(self, begun, bar))
        bank = run.fit()
    assert numbers == list(range(run.processes.index, 3, 2))
    assert list(run.groups.own) == [run.processes.index]
    one, other = everywhere(bank.images)
    assert torch.equal(one, other)


@pytest.mark.parametrize("group_by", ["images", "classes"])
def test_processes_match_groups_of_their_own(pair, tmp_path, group_by):
    on_two(pair, match, tmp_path / "two", group_by)
    alone = matching(tmp_path / "one", group_by=group_by).fit()
    made = AutoGenerator.from_pretrained(tmp_path / "two" / "generator")
    assert torch.equal(made.images, alone.images)
    (tmp_path / "two" / "checkpoints" / "step-000000020.pt").unlink()
    assert torch.equal(matching(tmp_path / "two", group_by=group_by).fit().images, alone.images)  # one goes on from two


def too_few_groups(folder):
    with pytest.raises(ValueError, match="2 processes do not divide: pass a multiple of 2 that divides 4"):
        matching(folder, groups=1).fit()


def test_fewer_groups_than_processes_are_refused(pair, tmp_path):
    on_two(pair, too_few_groups, tmp_path / "run")


def gradients(folder):
    run = trainer(folder)
    mine, every = run.processes.local_part, run.processes.gather
    generator = torch.Generator().manual_seed(1)
    fake, real = torch.randn(2, 6, 5, generator=generator)
    for loss, reductions in ((global_loss, GLOBAL_REDUCTIONS), (local_loss, LOCAL_REDUCTIONS)):
        for reduction in reductions:
            whole = fake.clone().requires_grad_()
            loss(whole, real, reduction).backward()
            part = mine(fake).clone().requires_grad_()
            loss(every(part), every(mine(real)), reduction).backward()
            # What reaches the generator's weights is the mean over processes of each one's share.
            torch.testing.assert_close(part.grad / 2, mine(whole.grad), msg=lambda m, r=reduction: f"{r}: {m}")


def test_matching_gradients_are_those_of_the_whole_batch(pair, tmp_path):
    on_two(pair, gradients, tmp_path / "run")


def uneven(folder):
    with pytest.raises(ValueError, match="stage 'match', 9 images, does not divide over 2 processes"):
        trainer(folder, match_batch_size=9).fit()


def test_a_batch_that_does_not_divide_is_refused(pair, tmp_path):
    on_two(pair, uneven, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def spoiled(folder):
    run = trainer(folder)
    step = run.step

    def spoil(indices):
        metrics = step(indices)
        return metrics | ({"class": torch.tensor(torch.nan)} if run.accelerator.process_index else {})

    run.step = spoil
    with pytest.raises(NonFiniteLossError, match="class became nan"):
        run.fit()


def test_a_bad_loss_in_one_process_stops_all(pair, tmp_path):
    on_two(pair, spoiled, tmp_path / "run")


def stopped(folder, log_every, seconds, step_reached):
    run = trainer(folder, log_every=log_every)
    step = run.step

    def stop(indices):
        if run.accelerator.process_index and run.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(indices)

    run.step = stop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_gdd.training.distributed._ASK_EVERY", seconds)
        with pytest.raises(Interrupted, match=f"after step {step_reached}"):
            run.fit()


@pytest.mark.parametrize(("log_every", "seconds", "step"), [(2, 1000, 6), (1000, 0, 5)])
def test_a_signal_to_one_process_stops_all(pair, tmp_path, log_every, seconds, step):
    on_two(pair, stopped, tmp_path / "run", log_every, seconds, step)
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:09d}.pt").exists()


def one_is_killed(folder, at):
    run = trainer(folder, checkpoint_every=2)
    step = run.step

    def last_step(indices):
        if run.state.global_step == at and run.processes.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(indices)

    run.step = last_step
    told = f"processes of this run lost each other.*the same command again: it goes on from .*step-00000000{at - 1}"
    with pytest.raises(RunError, match=told):
        run.fit()


def test_a_killed_process_ends_the_other_and_the_run_goes_on(pair, tmp_path):
    with two_processes(tmp_path) as processes, pytest.raises(RuntimeError, match=r"the client is gone: .*exit code -9"):
        on_two(processes, one_is_killed, tmp_path / "killed", 5)
    on_two(pair, train, tmp_path / "killed")
    on_two(pair, train, tmp_path / "whole")
    last = [load_state(tmp_path / name / "checkpoints" / "step-000000008.pt") for name in ("killed", "whole")]
    for part in ("generator", "discriminator", "optimizer_g", "match_random"):
        torch.testing.assert_close(last[0][part], last[1][part], rtol=0, atol=0)


def materialize(folder, fails=None):
    """Make a set of 15 parts and note the rows that this process was asked for; one process may fail at its first."""
    rank, generator, asked = int(os.environ["RANK"]), gan(), []
    sample = generator.sample

    def noting(labels, indices, *rest):
        (folder / f"began-{rank}").touch()
        while len(list(folder.glob("began-*"))) < 2:  # so that neither makes all before the other has begun
            time.sleep(0.01)
        if rank == fails:
            raise MemoryError("the device is full")
        asked.extend((labels * 20 + indices).tolist())
        return sample(labels, indices, *rest)

    generator.sample = noting
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_gdd.distilled.builder, "SHARD_SIZE", 4)
        if rank == fails:
            with pytest.raises(MemoryError, match="the device is full"):
                load_distilled_dataset(generator, ipc=20, cache_dir=folder)
            return
        data = load_distilled_dataset(generator, ipc=20, cache_dir=folder)
    images = ImageTensors.from_dataset(data, device="cpu", progress=False).images
    assert torch.equal(images, gan().sample(torch.arange(60) // 20, torch.arange(60) % 20))
    (folder / f"asked-{rank}").write_text(" ".join(map(str, asked)))


def asked_in(folder):
    return [list(map(int, file.read_text().split())) for file in sorted(folder.glob("asked-*"))]


def test_processes_divide_a_set(pair, tmp_path):
    on_two(pair, materialize, tmp_path)
    one, other = asked_in(tmp_path)
    assert sorted(one + other) == list(range(60))
    assert min(len(one), len(other)) >= 4
    assert not list(tmp_path.rglob("*.parts"))


@pytest.mark.parametrize("fails", [0, 1])
def test_what_one_process_fails_to_make_the_other_makes(pair, tmp_path, fails):
    on_two(pair, materialize, tmp_path, fails)
    assert [sorted(rows) for rows in asked_in(tmp_path)] == [list(range(60))]


@pytest.mark.parametrize(
    ("number", "gpus", "place"), [("1", 2, "cuda:1"), ("0", 1, "cuda:0"), ("3", 1, "cuda:0"), (None, 2, "cuda:0")]
)
def test_a_process_has_a_gpu_of_its_own_where_there_are_several(monkeypatch, number, gpus, place):
    on_gpus(monkeypatch, number, gpus)
    assert own_device() == torch.device(place)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    on_gpus(monkeypatch, "2", 2)
    with pytest.raises(ValueError, match=r"Process 2 has no GPU: this machine has 2\. Launch at most"):
        own_device()


def on_gpus(monkeypatch, number, gpus):
    """As a launcher tells the process with this number, on a machine with so many GPUs."""
    if number is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", number)
    for name, answer in (("is_available", True), ("device_count", gpus), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
