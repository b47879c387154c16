"""Whatever is wrong with a folder, loading it is a LoadError that says what and what to do, never a wrong generator."""

import json
import os
import pickle
import random
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from kinds import KINDS
from safetensors.torch import load_file, save_file

from hf_gdd import AutoGenerator
from hf_gdd.generators.gan import ConditionalGANGenerator
from hf_gdd.generators.pretrained import GeneratorModel
from hf_gdd.hub.files import FORMAT_VERSION
from hf_gdd.hub.loading import LoadError, resolve
from hf_gdd.report import Quality, Report, Result

WEIGHTS = "diffusion_pytorch_model.safetensors"
FIRST, BUFFER = "start.0.weight", "start.1.running_mean"


@pytest.fixture
def folder(tmp_path):
    ConditionalGANGenerator(("a", "b"), (1, 8, 8), width=4).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def configure(folder, **fields):
    """Change fields of the config; None drops one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder, edit):
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)


def refused(*words, error=LoadError):
    """Expect a refusal whose message has these words in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(words))


def test_the_undamaged_folder_loads(folder):
    for load in (AutoGenerator, ConditionalGANGenerator):
        assert load.from_pretrained(folder).class_names == ("a", "b")
    assert resolve(folder, {"ConditionalGANGenerator"})[0] == folder


# ---- finding it


@pytest.mark.parametrize("path", ["no/such/folder", "bad name!"])
def test_a_path_that_is_nothing(path):
    with refused(path, "neither a local folder nor a repo id"):
        AutoGenerator.from_pretrained(path)


def test_a_missing_absolute_folder(tmp_path):
    with refused("gone", "neither a local folder nor a repo id"):
        AutoGenerator.from_pretrained(tmp_path / "gone")


def test_a_file_is_not_a_folder(folder):
    with refused(WEIGHTS, "neither a local folder"):
        AutoGenerator.from_pretrained(folder / WEIGHTS)


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with refused("someone/generator", "cannot be reached", "nothing is cached", "check the network"):
        AutoGenerator.from_pretrained("someone/generator")


def test_a_local_folder_has_no_revision(folder):
    with refused("saved", "local folder", "no revision 'v1'", "leave revision out"):
        AutoGenerator.from_pretrained(folder, revision="v1")


@pytest.mark.parametrize("option", ["revison", "variant", "class_names"])
def test_an_unknown_option_is_refused(folder, option):
    for load in (AutoGenerator, ConditionalGANGenerator):
        with pytest.raises(TypeError, match=option):
            load.from_pretrained(folder, **{option: "x"})


def test_a_local_folder_asks_no_network(monkeypatch, folder):
    def download(*_, **__):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    AutoGenerator.from_pretrained(folder)


def test_no_config(folder):
    (folder / "config.json").unlink()
    with refused("No config.json found in .*saved; not an hf_gdd generator", "save_pretrained"):
        AutoGenerator.from_pretrained(folder)


def test_no_config_but_in_a_subfolder(folder):
    with refused("No config.json found", "Did you mean its subfolder 'saved'"):
        AutoGenerator.from_pretrained(folder.parent)


def test_no_such_subfolder(folder):
    with refused("No config.json found in .*other;"):
        AutoGenerator.from_pretrained(folder, subfolder="other")


# ---- its config


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b'"text"', b"null", b"\xff\xfe\x00"])
def test_config_is_no_json_object(folder, content):
    (folder / "config.json").write_bytes(content)
    with refused("config.json", "not the config of a generator", "save it again"):
        AutoGenerator.from_pretrained(folder)


def test_config_without_class(folder):
    configure(folder, _class_name=None)
    with refused("config.json", "_class_name", "save it again"):
        AutoGenerator.from_pretrained(folder)


def test_class_of_another_library(folder):
    configure(folder, _class_name="UNet2DModel")
    with refused("UNet2DModel", "ConditionalGANGenerator", "another library"):
        AutoGenerator.from_pretrained(folder)


@pytest.mark.parametrize("name", [["ConditionalGANGenerator"], 3, {}])
def test_class_that_is_no_name(folder, name):
    configure(folder, _class_name=name)
    with refused("saved"):
        AutoGenerator.from_pretrained(folder)


def test_class_cannot_name_a_module(folder):
    configure(folder, _class_name="os.system")
    with refused("os.system", "another library"):
        AutoGenerator.from_pretrained(folder)


def test_another_class_than_called(folder):
    class Other(GeneratorModel):
        pass

    with refused("describes a 'ConditionalGANGenerator', not a Other", "AutoGenerator"):
        Other.from_pretrained(folder)


def test_newer_format(folder):
    configure(folder, format_version=FORMAT_VERSION + 1)
    with refused(f"format {FORMAT_VERSION + 1}", f"newer than {FORMAT_VERSION}", "pip install -U"):
        AutoGenerator.from_pretrained(folder)


@pytest.mark.parametrize("version", ["x", [1], float("inf"), float("nan")])
def test_format_that_is_no_number(folder, version):
    configure(folder, format_version=version)
    with refused("config.json", "save it again"):
        AutoGenerator.from_pretrained(folder)


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("width is 1000000000000", {"width": 10**12}),
        ("width is -1", {"width": -1}),
        ("not 9000x9000", {"image_shape": [1, 9000, 9000]}),
        ("channels, not 2", {"image_shape": [2, 8, 8]}),
        ("classes, not 1", {"class_names": ["a"]}),
        ("class_names", {"class_names": None}),
        ("could not be loaded", {"width": "wide"}),
        ("could not be loaded", {"image_shape": [8, 8]}),
        ("could not be loaded", {"image_shape": 3}),
    ],
)
def test_config_of_an_impossible_network(folder, words, fields):
    configure(folder, **fields)
    with refused("saved", words, "save it again"):
        AutoGenerator.from_pretrained(folder)


@pytest.mark.parametrize("fields", [{"width": 5}, {"noise_dim": 91}, {"class_names": ["a", "b", "c"]}])
def test_config_that_the_weights_do_not_fit(folder, fields):
    configure(folder, **fields)
    with refused("saved", "expected shape", "save it again"):
        AutoGenerator.from_pretrained(folder)


# ---- its weights


@pytest.mark.parametrize("name", [FIRST, BUFFER])
def test_missing_tensor(folder, name):
    edit_weights(folder, lambda state: state.pop(name))
    with refused("saved", "missing keys", name, "save it again"):
        AutoGenerator.from_pretrained(folder)


def test_extra_tensor(folder):
    edit_weights(folder, lambda state: state.update(stowaway=torch.zeros(1)))
    with refused("saved", "unexpected keys", "stowaway", "save it again"):
        AutoGenerator.from_pretrained(folder)


def test_tensor_of_another_shape(folder):
    edit_weights(folder, lambda state: state.update({FIRST: torch.zeros(64, 7)}))
    with refused("saved", FIRST, "save it again"):
        AutoGenerator.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_truncated_weights(folder, keep):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with refused("saved", "could not be loaded", WEIGHTS, "save it again"):
        AutoGenerator.from_pretrained(folder)


def test_garbage_for_weights(folder):
    (folder / WEIGHTS).write_bytes(b"not a tensor in sight " * 100)
    with refused("saved", "could not be loaded", WEIGHTS, "save it again"):
        AutoGenerator.from_pretrained(folder)


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    with refused(f"No {WEIGHTS} found in .*saved", "fetch it again"):
        AutoGenerator.from_pretrained(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{}", ["is not an index of shards", "save it again"]),
        ("{", ["is not an index of shards", "save it again"]),
        ('{"weight_map": {"a": "w.bin"}}', ["names 'w.bin', no weights of this folder"]),
        ('{"weight_map": {"a": "../x.safetensors"}}', ["names '../x.safetensors'"]),
        ('{"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}', ["names", "no weights"]),
    ],
)
def test_a_broken_index_of_shards(folder, index, words):
    (folder / WEIGHTS).unlink()
    (folder / "w.bin").write_bytes(b"")
    (folder / f"{WEIGHTS}.index.json").write_text(index)
    with refused("index.json", *words):
        AutoGenerator.from_pretrained(folder)


def test_a_quantiser_is_refused(folder):
    configure(folder, quantization_config={"quant_method": "bitsandbytes"})
    with refused("config.json", "quantizer"):
        AutoGenerator.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [FIRST, BUFFER])
def test_weights_that_are_not_finite(folder, name, value):
    edit_weights(folder, lambda state: state[name].view(-1)[-1:].fill_(value))
    with refused(name, "saved", "not finite", "damaged"):
        AutoGenerator.from_pretrained(folder)


def test_negative_variances(folder):
    name = BUFFER.replace("mean", "var")
    edit_weights(folder, lambda state: state[name].fill_(-1))
    with refused(name, "saved", "negative variances", "damaged"):
        AutoGenerator.from_pretrained(folder)


class Canary:
    """Unpickling it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_never_opened(folder, tmp_path):
    song, path = tmp_path / "song", folder / "diffusion_pytorch_model.bin"
    pickle.loads(pickle.dumps(Canary(song)))
    assert song.is_file()
    song.unlink()
    torch.save({FIRST: Canary(song)}, path)
    (folder / "pytorch_model.bin").write_bytes(path.read_bytes())
    (folder / WEIGHTS).unlink()
    with refused(f"No {WEIGHTS} found", "is a pickle, which can run code and is never loaded"):
        AutoGenerator.from_pretrained(folder)
    assert not song.exists()


# ---- its report


def reported(folder):
    """Save the generator once more, with a report, and return both."""
    generator = AutoGenerator.from_pretrained(folder)
    row = {"name": "dim", "protocol": "fixed", "network": "n", "ipc": 1, "accuracies": (0.5, 0.6), "seeds": (0, 1)}
    row |= {"generator_seed": 4, "steps": 1, "distinct_images": 3, "stored_bytes": 1, "seconds": 1.0}
    results = (Result(**row, generator=generator.fingerprint),)
    quality = Quality("dim", 1, 2, "n", (0,), {"diversity": (0.5,)})
    generator.report = Report(results, "train", "test", {"lr": 0.1}, "real", "cpu", quality=(quality,))
    generator.save_pretrained(folder)
    return generator


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"results": [{}]}',
        b'{"results": "text"}',
        b'{"results": [], "recipe": ' + b"9" * 5000 + b"}",
    ],
    ids=range(10),
)
def test_a_damaged_report_is_left_out(folder, content, caplog):
    generator = reported(folder)
    assert AutoGenerator.from_pretrained(folder).report == generator.report
    (folder / "report.json").write_bytes(content)
    check_report_is_left_out(folder, generator, caplog)


def check_report_is_left_out(folder, generator, caplog):
    caplog.clear()
    loaded = AutoGenerator.from_pretrained(folder)
    assert (loaded.report, loaded.fingerprint) == (None, generator.fingerprint)
    assert "report.json is damaged and left out" in caplog.text
    loaded.save_pretrained(folder.parent / "again")
    assert not (folder.parent / "again" / "report.json").exists()


def test_a_report_that_was_cut_is_left_out(folder, caplog):
    generator = reported(folder)
    content = (folder / "report.json").read_bytes()
    for length in range(1, len(content) - 2, len(content) // 7):
        (folder / "report.json").write_bytes(content[:length])
        check_report_is_left_out(folder, generator, caplog)


@pytest.mark.parametrize("value", [None, {"x": ["y"]}], ids=str)
def test_a_report_with_a_value_of_another_type_never_stops_weights(folder, value):
    """Whatever the field; what can still be shown may be taken for a report."""
    generator, path = reported(folder), folder / "report.json"
    whole = json.loads(path.read_text())
    places = [(), ("results", 0), ("quality", 0), ("quality", 0, "scores")]
    for place, name in [(where, field) for where in places for field in at(whole, where)]:
        content = json.loads(json.dumps(whole))
        at(content, place)[name] = value
        path.write_text(json.dumps(content))
        loaded = AutoGenerator.from_pretrained(folder)
        assert loaded.fingerprint == generator.fingerprint
        loaded.save_pretrained(folder.parent / "again")


def at(content, place):
    for step in place:
        content = content[step]
    return content


# ---- the state of the process


def state():
    """All that a load may change for the rest of the program."""
    return {
        "dtype": torch.get_default_dtype(),
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "init": [getattr(torch.nn.init, name) for name in ("normal_", "kaiming_uniform_", "xavier_uniform_")],
        "register": (torch.nn.Module.register_parameter, torch.nn.Module.register_buffer),
        "path": (list(sys.path), os.getcwd()),
    }


DAMAGE = {
    "no network": lambda folder: break_config(folder),
    "another network": lambda folder: configure(folder, class_names=["a", "b", "c", "d"]),
    "cut": lambda folder: cut(weights_of(folder)),
    "not finite": lambda folder: spoil(weights_of(folder)),
    "missing": lambda folder: weights_of(folder).unlink(),
    "fingerprint": lambda folder: configure(folder, fingerprint="0" * 64),
}


def break_config(folder):
    """Let the constructor of a network refuse the config."""
    if (folder / "transformer").is_dir():
        configure(folder / "transformer", num_attention_heads=2.5)
    else:
        configure(folder, width=-1, teacher="no network")


def weights_of(folder):
    return sorted(folder.rglob(WEIGHTS))[0]


def cut(path):
    path.write_bytes(path.read_bytes()[:500])


def spoil(path):
    tensors = load_file(path)
    tensor = next(tensor for tensor in tensors.values() if tensor.is_floating_point())
    tensor.view(-1)[:1] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_refused_load_leaves_the_state_of_the_process(tmp_path, kind, dtype, damage):
    """diffusers sets the default dtype to that of the weights while it builds a model, and forgets it if that fails."""
    generator = KINDS[kind]()
    generator.to(dtype=dtype)
    generator.save_pretrained(tmp_path)
    before = state()
    AutoGenerator.from_pretrained(tmp_path)
    assert state() == before
    DAMAGE[damage](tmp_path)
    with refused(tmp_path.name):
        AutoGenerator.from_pretrained(tmp_path)
    assert state() == before
