"""The cache of teachers: its keys, and runs that share it. Their training is tested with prediction matching."""

from dataclasses import fields

import pytest
import torch

from hf_gdd.classifiers.learner import Learner
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.classifiers.teachers import Teachers
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import input_transform

PIXELS = (torch.arange(6 * 3 * 64).view(6, 3, 8, 8) % 256).to(torch.uint8)
DATA = ImageTensors(PIXELS, torch.arange(6) % 2, ("a", "b"), "toy", torch.device("cpu"))


def teachers(folder, zca=False, **recipe):
    return Teachers("convnet1", DATA, input_transform(DATA, zca), Recipe(epochs=3, **recipe), folder)


@pytest.mark.parametrize(("zca", "name"), [(False, "convnet1-fbf8e1e343e56d8c"), (True, "convnet1-8f9622c9ec935e12")])
def test_teachers_of_the_first_version_are_still_used(tmp_path, zca, name):
    """Folders named by the first version. A new field of `Recipe` must not enter the key at its default."""
    assert teachers(tmp_path, zca).folder == tmp_path / name


def test_every_field_of_a_recipe_that_teachers_use_is_part_of_the_key(tmp_path):
    values = {"epochs_up_to": ((1, 2),), "max_steps": 9, "schedule": "cosine", "augment": "", "mixed_precision": "bf16"}
    soft = {"soft_loss": "kl", "temperature": 4.0}  # which teachers do not learn from
    assert teachers(tmp_path, **soft).folder == teachers(tmp_path).folder
    others = {"epochs", *values, *soft}
    values |= {field.name: field.default + 1 for field in fields(Recipe) if field.name not in others}
    folders = {teachers(tmp_path, **{name: value}).folder for name, value in values.items()}
    assert len(folders | {teachers(tmp_path).folder}) == len(values) + 1


def test_two_runs_may_train_the_same_teacher_at_once(tmp_path, monkeypatch):
    """The second begins and ends while the first is training."""
    step, others = Learner.step, []

    def interrupted(self, *args):
        if not others:
            others.append(teachers(tmp_path))
            others[0].prepare([0], progress=False)
        return step(self, *args)

    monkeypatch.setattr(Learner, "step", interrupted)
    first = teachers(tmp_path)
    first.prepare([0], progress=False)
    assert [path.name for path in first.folder.iterdir()] == ["teacher-000.pt"]
    images = torch.zeros(1, 3, 8, 8)
    assert torch.equal(first[0](images)[0], others[0][0](images)[0])


def test_a_stop_while_saving_leaves_no_teacher(tmp_path, monkeypatch):
    """A file that is not whole would be taken for a finished teacher."""

    def cut(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            teachers(tmp_path).prepare([0], progress=False)
    assert teachers(tmp_path).missing([0]) == [0]
    assert teachers(tmp_path)[0] is not None
