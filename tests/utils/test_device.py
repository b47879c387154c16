"""Devices, precision and memory."""

import platform
import resource
from contextlib import suppress

import pytest
import torch
from conftest import Client
from kinds import gan

from hf_gdd import GlobalLocalTrainer, ImageTensors, Recipe, evaluate
from hf_gdd.evaluation import evaluator
from hf_gdd.generators import base as generators
from hf_gdd.training import base as training
from hf_gdd.utils.device import (
    at_least_float32,
    autocast,
    default_dtype_restored,
    floating_dtype,
    keep_freed_memory,
    launched,
    own_device,
)


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision, dtype):
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_only_reduced_precision_is_cast():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert at_least_float32(torch.ones(1, dtype=dtype)).dtype == torch.float32
    assert at_least_float32(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_a_launcher_is_known_by_its_variables(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert launched() == (2, 3)


def on_gpus(monkeypatch, count, local_rank=None, current=0):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))


@pytest.mark.parametrize(
    ("count", "local_rank", "current", "expected"),
    [(0, None, 0, "cpu"), (0, 1, 0, "cpu"), (2, None, 1, "cuda:1"), (2, 0, 1, "cuda:0"), (1, 1, 0, "cuda:0")],
)
def test_a_process_has_its_own_device(monkeypatch, count, local_rank, current, expected):
    on_gpus(monkeypatch, count, local_rank, current)
    assert own_device() == torch.device(expected)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    on_gpus(monkeypatch, 2, local_rank=2)
    with pytest.raises(ValueError, match="Process 2 has no GPU: this machine has 2"):
        own_device()


def test_the_default_dtype_is_restored_after_a_failure():
    with suppress(RuntimeError), default_dtype_restored():
        torch.set_default_dtype(torch.float16)
        raise RuntimeError
    assert torch.get_default_dtype() == torch.float32


def test_dtypes_by_name():
    assert floating_dtype(None) is None
    assert floating_dtype("bfloat16") == floating_dtype(torch.bfloat16) == torch.bfloat16
    for wrong in ("int8", "float33", "nn", torch.uint8):
        with pytest.raises(ValueError, match="pass one of floating point"):
            floating_dtype(wrong)


def page_faults():
    """Counts of page faults for as many large tensors, by default and after `keep_freed_memory`."""
    counts = []
    for keep in (lambda device: True, keep_freed_memory):
        assert keep(torch.device("cpu"))
        torch.ones(2**22)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(2**22)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return counts


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_kept_is_not_cleared_by_the_system_again(tmp_path):
    process = Client({"HF_HOME": str(tmp_path)})
    try:
        by_default, reused = process.run(page_faults)
    finally:
        process.close()
    assert by_default > 10 * 2**22 * 4 / 2**21 > reused  # a fault a page, of 2 MiB at most


def test_memory_of_a_process_that_computes_on_a_gpu_is_left_alone():
    assert not keep_freed_memory(torch.device("cuda"))


@pytest.mark.parametrize("module", [training, evaluator, generators])
def test_whatever_computes_on_a_cpu_keeps_freed_memory(tmp_path, monkeypatch, module):
    called = []
    monkeypatch.setattr(module, "keep_freed_memory", lambda device: called.append(module))
    data, first = ImageTensors.from_dataset("digits", device="cpu").subset(1, 0), torch.zeros(1, dtype=torch.int64)
    if module is training:
        GlobalLocalTrainer(data, preset="tiny", output_dir=tmp_path / "run")
    elif module is evaluator:
        evaluate(data, data, networks="convnet1", n=1, recipe=Recipe(max_steps=1), progress=False)
    else:
        gan().sample(first, first)
    assert called
