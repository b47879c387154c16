"""The library is a stack of rooms: each may use only those below it, and few may draw noise."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hf_gdd

PACKAGE = Path(hf_gdd.__file__).parent
SCRIPTS = PACKAGE.parent / "scripts"
ROOMS = """
    rng convolution arithmetic augment imagenet networks losses memory metrics report pictures card pixels reading
    images normalizing classifiers cohort pool hub upload generators.base generators.saved generators.model
    generators.gan generators.dit generators.pipeline generators.diffusion generators.bank generators.auto matching
    faults runs logs progress settings processes teachers training trainers.global_local_config
    trainers.global_local trainers.autoencoder trainers.diffusion_memory_config trainers.diffusion_memory
    trainers.groups trainers.prediction_matching_config trainers.prediction_matching stream parts builder publishing
    judging quality evaluation cli
"""
ORDER = ["hf_gdd", *(f"hf_gdd.{room}" for room in ROOMS.split())]
LEVEL = {name: level for level, name in enumerate(ORDER)}
FILES = {
    ".".join(("hf_gdd", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FOLDERS = {"hf_gdd.generators", "hf_gdd.trainers"}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
NORMAL = {"randn", "randn_like", "normal", "normal_", "randn_tensor", "standard_normal"}


def imported(tree, module="", is_package=False):
    """Every dotted name a module imports, wherever in it the import stands; `from a import b` gives a.b."""
    parent = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parent[: len(parent) - node.level + 1]) if node.level else ""
            start = ".".join(part for part in (base, node.module) if part)
            yield from (f"{start}.{alias.name}" for alias in node.names)


def room_of(name):
    """The room that holds a dotted name; one that hf_gdd itself passes on belongs to where it comes from."""
    parts = name.split(".")
    if parts[0] != "hf_gdd":
        return None
    if len(parts) == 2 and parts[1] in hf_gdd._LAZY:
        return hf_gdd._LAZY[parts[1]]
    return next(room for end in range(len(parts), 0, -1) if (room := ".".join(parts[:end])) in FILES)


def used_rooms(name):
    """The rooms a module imports or names in a string, as `import_module` takes it."""
    is_package = FILES[name].name == "__init__.py"
    rooms = {room_of(other) for other in imported(TREES[name], name, is_package)}
    texts = (node.value for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant))
    rooms |= {text for text in texts if isinstance(text, str) and text in FILES and text != "hf_gdd"}
    return rooms - {None, name}


def called(tree):
    """Dotted names of all that is called, such as `torch.randn` or `x.normal_`; `?` stands for an expression."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            parts, function = [], node.func
            while isinstance(function, ast.Attribute):
                parts.insert(0, function.attr)
                function = function.value
            yield ".".join([function.id if isinstance(function, ast.Name) else "?", *parts])


def test_the_readers_of_these_tests_see_what_they_should():
    source = "import hf_gdd.a\nfrom hf_gdd.b import c\ndef f():\n    from ..d import e\n    x[0].normal_(g.h(1))"
    tree = ast.parse(source)
    assert set(imported(tree, "hf_gdd.trainers.x")) == {"hf_gdd.a", "hf_gdd.b.c", "hf_gdd.d.e"}
    assert set(called(tree)) == {"?.normal_", "g.h"}
    assert room_of("hf_gdd.generators.noise.noise") == "hf_gdd.utils.random"
    assert room_of("hf_gdd.Sampling") == "hf_gdd.generators.base"
    assert room_of("torch.nn") is None
    assert used_rooms("hf_gdd.generators.gan") >= {"hf_gdd.generators.pretrained", "hf_gdd.utils.random"}


def test_every_module_has_its_place():
    assert set(FILES) - FOLDERS <= set(ORDER)
    assert {"hf_gdd.utils.random", "hf_gdd.generators.gan", "hf_gdd.distilled.builder", "hf_gdd.cli.main"} <= set(FILES)


@pytest.mark.parametrize("name", sorted(set(FILES) - FOLDERS - {"hf_gdd"}))
def test_a_room_uses_only_those_below(name):
    above = {room for room in used_rooms(name) if LEVEL.get(room, len(ORDER)) >= LEVEL[name]}
    assert not above


def test_the_package_itself_imports_nothing_of_its_rooms():
    assert not {room_of(name) for name in imported(TREES["hf_gdd"], "hf_gdd", is_package=True)} - {None}
    for folder in FOLDERS & set(FILES):
        assert not used_rooms(folder)


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_scripts_use_the_public_library(path):
    """By themselves or through another script."""
    every = list(imported(ast.parse(path.read_text())))
    names = [name for name in every if name.split(".")[0] == "hf_gdd"]
    assert names or {name.split(".")[0] for name in every} & {other.stem for other in SCRIPTS.glob("*.py")}
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]


def test_only_trainers_and_the_noise_itself_draw_normal_numbers():
    """Images come of counter-based noise alone: any other draw would depend on the batch it is made in."""
    drawn = {
        (name, call)
        for name, tree in TREES.items()
        if name != "hf_gdd.utils.random" and not name.startswith("hf_gdd.trainers.")
        for call in called(tree)
        if call.split(".")[-1] in NORMAL and not call.startswith("self.")
    }
    assert drawn <= {("hf_gdd.classifiers.networks", "nn.init.normal_")}


def test_only_generators_use_the_noise_of_images():
    users = {name for name, tree in TREES.items() if "hf_gdd.generators.noise.noise" in set(imported(tree, name))}
    assert "hf_gdd.generators.gan" in users
    assert all(name.startswith(("hf_gdd.generators.", "hf_gdd.trainers.")) for name in users)
    whole = {
        name
        for name, tree in TREES.items()
        if {"hf_gdd.utils.random", "hf_gdd.utils.random.*"} & set(imported(tree, name))
    }
    assert not whole


def test_import_is_light():
    heavy = {"torch", "datasets", "diffusers", "accelerate", "matplotlib"}
    code = f"import sys, hf_gdd; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_every_public_name_is_there():
    for name, module in hf_gdd._LAZY.items():
        assert getattr(hf_gdd, name) is getattr(import_module(module), name)
        assert name in dir(hf_gdd)
    with pytest.raises(AttributeError, match="nothing"):
        _ = hf_gdd.nothing
