"""Methods register themselves, also from outside the package, and their records reach generator and card."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import pytest

from hf_gdd import AutoGenerator, GlobalLocalConfig, TrainingConfig
from hf_gdd.cli.main import main
from hf_gdd.methods import registry
from hf_gdd.methods.registry import all_methods, find_method, register_method
from hf_gdd.training.trainer import Trainer

PLUGIN = '''
from dataclasses import dataclass
from typing import Literal

import torch

from hf_gdd import ImageBank, Stage, Trainer, TrainingConfig, register_method


@register_method(
    "class-mean", trainer="ClassMeanTrainer", summary="Average the images of every class.", paper="0000.00001"
)
@dataclass(frozen=True)
class ClassMeanConfig(TrainingConfig):
    method: Literal["class-mean"] = "class-mean"
    blend: float = 1.0
    """share of the mean in every image"""


class Mean:
    def __init__(self, data):
        self.sums, self.count = torch.zeros(data.num_classes, *data.shape), torch.zeros(data.num_classes)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


class ClassMeanTrainer(Trainer):
    config_class = ClassMeanConfig

    @property
    def stages(self):
        return (Stage("mean", self.config.max_steps or 20, batch_size=50, lr=1.0),)

    def setup(self):
        self.mean = Mean(self.data)
        return {"mean": self.mean}

    def step(self, indices):
        images, labels = self.data.gather(indices)
        self.mean.sums.index_add_(0, labels, images.float())
        self.mean.count.index_add_(0, labels, torch.ones(len(labels)))
        return {"images": self.mean.count.sum()}

    def to_generator(self):
        mean = self.mean.sums / self.mean.count.clamp(min=1).view(-1, 1, 1, 1)
        images = (self.config.blend * mean).round().to(torch.uint8)[:, None]
        record = {name: getattr(self.data, name) for name in ("class_names", "mean", "std")}
        return ImageBank.from_images(images, training=self.training_record(), **record)
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "save_pictures", lambda self: None)
    monkeypatch.setattr(registry, "_METHODS", dict(all_methods()))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "class_mean.py").write_text(PLUGIN)
    yield tmp_path
    sys.modules.pop("class_mean", None)


def test_the_methods_of_the_package():
    assert set(all_methods()) >= {
        *("global-local", "dim", "cgan", "cgan-continued", "self-adaptive", "minimax", "dit", "prediction-matching"),
    }
    for name, method in all_methods().items():
        assert name in get_args(get_type_hints(method.config_class)["method"])
        assert method.trainer_class.config_class is method.config_class
        assert method.summary.endswith(".")
    assert find_method("dim").paper == "2303.04707"


def test_every_value_of_a_configs_method_is_registered():
    for method in all_methods().values():
        assert set(get_args(get_type_hints(method.config_class)["method"])) <= set(all_methods())


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown method 'mine'; choose one of .*global-local"):
        find_method("mine")


def test_a_name_is_one_methods(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(all_methods()))

    @dataclass(frozen=True)
    class Other(TrainingConfig):
        method: Literal["cgan"] = "cgan"

    with pytest.raises(ValueError, match=r"'cgan' is registered by hf_gdd.methods.global_local.config: choose another"):
        register_method("cgan", trainer="OtherTrainer", summary="Another.")(Other)
    assert find_method("cgan").config_class is GlobalLocalConfig


def test_a_method_in_one_file_outside_the_package_trains_from_the_command_line(plugin, capsys):
    command = ["distill", "--dataset", "digits", "--method", "class-mean", "--plugin", "class_mean"]
    assert main([*command, "--blend", "0.5", "--output-dir", "run"]) == 0
    assert "Generator: run/generator" in capsys.readouterr().out
    bank = AutoGenerator.from_pretrained(plugin / "run" / "generator")
    assert bank.method == "class-mean"
    assert 20 < bank.images.float().max() < 140
    assert bank.config.training["blend"] == 0.5
    card = (plugin / "run" / "generator" / "README.md").read_text()
    assert "arxiv.org/abs/0000.00001" in card
    assert "average the images of every class." in card
    assert main(["distill", "--config", "run", "--plugin", "class_mean", "--output-dir", "again"]) == 0
    assert AutoGenerator.from_pretrained(plugin / "again" / "generator").fingerprint == bank.fingerprint


def test_a_run_of_a_plugin_without_it_names_the_option(plugin, capsys):
    assert main(["distill", "--dataset", "digits", "--method", "class-mean"]) == 2
    assert "--plugin" in capsys.readouterr().err


def test_a_plugin_that_is_not_there_is_named(capsys):
    assert main(["distill", "--dataset", "digits", "--plugin", "not_there"]) == 2
    assert "--plugin not_there cannot be imported" in capsys.readouterr().err


def test_help_lists_the_options_of_a_plugin(plugin):
    command = [sys.executable, "-m", "hf_gdd", "distill", "--plugin", "class_mean", "--method", "class-mean", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "--blend" in done.stdout
    assert "share of the mean in every image" in " ".join(done.stdout.replace("│", " ").split())
    assert "class-mean" in done.stdout


def test_an_entry_point_registers_a_method(plugin, monkeypatch):
    from importlib.metadata import EntryPoint

    point = EntryPoint("class-mean", "class_mean", registry.ENTRY_POINTS)
    monkeypatch.syspath_prepend(plugin)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.ENTRY_POINTS else [])
    registry._import_others.cache_clear()
    assert find_method("class-mean").trainer_class.__name__ == "ClassMeanTrainer"


def test_a_package_whose_methods_cannot_be_imported_is_left_out(monkeypatch, caplog):
    from importlib.metadata import EntryPoint

    point = EntryPoint("broken", "not_there.at_all", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    registry._import_others.cache_clear()
    assert "global-local" in all_methods()
    assert "The methods of not_there.at_all cannot be imported and are left out" in caplog.text


def test_a_config_without_a_method_field_is_refused():
    with pytest.raises(ValueError, match="Plain needs a field `method` that accepts 'plain'"):

        @register_method("plain", trainer="PlainTrainer", summary="Nothing.")
        @dataclass(frozen=True)
        class Plain(TrainingConfig):
            pass


def test_the_method_of_a_generator_is_described_in_its_training_record():
    from hf_gdd import GlobalLocalTrainer

    record = GlobalLocalTrainer("digits", preset="tiny", output_dir="unused", method="dim").training_record()
    assert record["paper"] == "2303.04707"
    assert record["summary"] == find_method("dim").summary
    assert record["source"] == "digits:train"
