"""Packages form a line: each imports only from those before it, and few modules draw noise."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hf_gdd
from hf_gdd.methods.registry import builtin_classes

ROOT = Path(hf_gdd.__file__).parent
PACKAGES = (
    *("utils", "data", "report", "classifiers", "hub", "generators", "training"),
    *("distilled", "methods", "evaluation", "cli"),
)
FLAT = {"__init__", "__main__", "report"}  # modules outside any package
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
RIDDLES, PARTICIPLES = {"What", "Of", "Whether", "Where"}, {"told", "made", "kept", "found"}
SOURCES = {
    path.relative_to(ROOT.parent).as_posix(): ast.parse(path.read_text())
    for folder in (ROOT, ROOT.parent / "scripts")
    for path in sorted(folder.rglob("*.py"))
}
NORMAL = {"randn", "randn_like", "normal", "normal_", "randn_tensor", "standard_normal"}


def nodes(tree, at_run_time):
    """Every node; `at_run_time` leaves out what stands under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if not (at_run_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node, at_run_time)


def imported(tree, at_run_time=False):
    """Every dotted name that a module imports, wherever the import stands; else also what it names in a string."""
    for node in nodes(tree, at_run_time):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not at_run_time:
            yield node.value.partition(":")[0]


def module_of(name):
    """The module of hf_gdd that a dotted name belongs to; None for all else."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 1, -1))
    return next((prefix for prefix in prefixes if prefix in MODULES), None) if parts[0] == "hf_gdd" else None


def package_of(module):
    return module.split(".")[1]


def uses(module, at_run_time=False):
    return {used for name in imported(TREES[module], at_run_time) if (used := module_of(name))} - {module}


def called(tree):
    """Last part of the names of all that is called, with its first part, such as ("torch", "randn")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            parts, function = [], node.func
            while isinstance(function, ast.Attribute):
                parts.insert(0, function.attr)
                function = function.value
            yield ".".join([function.id if isinstance(function, ast.Name) else "?", *parts])


def test_the_packages_are_those_of_the_line():
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()} == {*PACKAGES} - FLAT
    assert {path.stem for path in ROOT.glob("*.py")} == FLAT


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"hf_gdd", "hf_gdd.__main__"}))
def test_a_package_imports_only_from_those_before_it(module):
    level = PACKAGES.index(package_of(module))
    assert not {used for used in uses(module) if PACKAGES.index(package_of(used)) > level}


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_of_a_package_are_in_an_order_too(package):
    """There is no circle of imports within it; a package's own `__init__` only offers names."""
    left = {
        module: {used for used in uses(module, at_run_time=True) if "." in used and package_of(used) == package}
        for module in MODULES
        if "." in module and package_of(module) == package and MODULES[module].name != "__init__.py"
    }
    while ready := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in ready}
    assert not left


@pytest.mark.parametrize("package", sorted(set(PACKAGES) - FLAT))
def test_a_package_says_in_a_sentence_what_it_is_for(package):
    tree = TREES[f"hf_gdd.{package}"]
    assert ast.get_docstring(tree).endswith(".")
    for name in dir(import_module(f"hf_gdd.{package}")):
        assert getattr(import_module(f"hf_gdd.{package}"), name) is not None


def test_modules_are_short_or_say_why():
    long = {name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 260}
    assert long <= {name for name in long if "longer than others because" in ast.get_docstring(TREES[name])}


def test_scripts_use_the_public_library():
    for path, tree in SOURCES.items():
        names = [name for name in imported(tree) if path.startswith("scripts/") and name.startswith("hf_gdd.")]
        assert not [name for name in names if any(part.startswith("_") for part in name.split("."))], path


def test_a_docstring_begins_with_one_short_sentence():
    """An imperative or a noun phrase; a line that begins with one of four words is a riddle."""
    wrong = []
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                first = (ast.get_docstring(node) or "None.").splitlines()[0]
                if len(first) > 80 or not first.endswith(".") or first.split()[0] in RIDDLES:
                    wrong.append(f"{path}: {first}")
    assert not wrong


def test_names_say_what_a_thing_is():
    """Participles such as these say no more than that something happened."""
    wrong = []
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            stored = isinstance(getattr(node, "ctx", None), ast.Store)
            name = {
                ast.Name: getattr(node, "id", None) if stored else None,
                ast.Attribute: getattr(node, "attr", None) if stored else None,
                ast.arg: getattr(node, "arg", None),
            }.get(type(node), getattr(node, "name", None))
            if name in PARTICIPLES:
                wrong.append(f"{path}:{node.lineno} {name}")
    assert not wrong


def test_images_come_of_counter_based_noise_alone():
    """Any other normal draw would depend on the batch an image is made in: only training draws so."""
    drawn = {
        (module, call)
        for module, tree in TREES.items()
        if module.split(".")[1:2] not in (["training"], ["methods"]) and module != "hf_gdd.generators.noise"
        for call in called(tree)
        if call.split(".")[-1] in NORMAL and not call.startswith("self.")
    }
    assert drawn <= {("hf_gdd.classifiers.architectures", "nn.init.normal_")}
    users = {module for module in MODULES if "hf_gdd.generators.noise" in uses(module)}
    assert users
    assert {package_of(module) for module in users} == {"generators"}


def test_import_is_light():
    heavy = {"torch", "datasets", "diffusers", "accelerate", "matplotlib"}
    code = f"import sys, hf_gdd; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_every_public_name_is_there():
    for name in hf_gdd._public_names():
        assert getattr(hf_gdd, name).__module__ in MODULES
        assert name in dir(hf_gdd)
    for name, module in builtin_classes().items():
        assert getattr(hf_gdd, name) is getattr(import_module(module), name)
        assert name in dir(hf_gdd)
    with pytest.raises(AttributeError, match="nothing"):
        _ = hf_gdd.nothing
    with pytest.raises(AttributeError, match="NoTrainer"):
        _ = hf_gdd.NoTrainer


def test_the_names_of_the_registry_are_public():
    assert {"GlobalLocalTrainer", "DiffusionMemoryConfig", "PredictionMatchingTrainer"} <= builtin_classes().keys()
