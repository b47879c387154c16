"""The paper's experiments run in order, resume where they stopped, and become tables that say what was measured."""

import importlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from hf_gdd import AutoGenerator, GlobalLocalTrainer, Recipe, Trainer
from hf_gdd.report import Report, Result

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "scripts" / "paper"


@pytest.fixture(scope="module")
def scripts():
    """The modules of scripts/paper by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PAPER))
        modules = {path.stem: importlib.import_module(path.stem) for path in PAPER.glob("*.py")}
        yield modules
        for name in modules:
            del sys.modules[name]


WITHOUT = {"codes_ipc": 0, "teacher_network": None}


@pytest.fixture(scope="module", autouse=True)
def small(scripts):
    """A size on the digits that takes seconds."""
    experiments = scripts["experiments"]
    size = experiments.Size(
        training={"preset": "tiny", "width": 4, "pool": ("convnet1",), "checkpoint_every": 2, **WITHOUT},
        steps=(6, 4),
        network="convnet1",
        recipe=Recipe(max_steps=2, batch_size=16, floor=0.0),
        seeds={"digits": (0,)},
        floors={"digits": 0.0},
        n=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_pictures", lambda self: None)
        patch.setitem(experiments.SIZES, "small", size)
        patch.setitem(experiments.DATA, "digits", ("digits", None))
        yield size


@pytest.fixture(scope="module")
def finished(scripts, tmp_path_factory):
    """A runner that has run every experiment of the small size."""
    folder = tmp_path_factory.mktemp("paper")
    runner = scripts["run"].Runner(folder / "runs", folder / "results")
    for experiment in scripts["experiments"].experiments("small"):
        runner.run(experiment)
    return runner


@pytest.fixture
def runner(scripts, tmp_path):
    return scripts["run"].Runner(tmp_path / "runs", tmp_path / "results")


def named(scripts, name):
    (experiment,) = [e for e in scripts["experiments"].experiments("small") if e.name == f"small/digits/{name}"]
    return experiment


def record(runner, experiment):
    return json.loads(runner.result(experiment).read_text())


@pytest.mark.parametrize("size", ["paper", "lite"])
def test_experiments_come_after_what_they_need(scripts, size):
    experiments, before = scripts["experiments"].experiments(size), set()
    for experiment in experiments:
        assert set(experiment.needs) <= before, experiment.name
        before.add(experiment)
    assert len({experiment.name for experiment in experiments}) == len(experiments)
    for data, seeds in (("fashion_mnist", 3), ("mnist", 3), ("cifar10", 1)):
        trained = {(e.variant, e.seed) for e in experiments if e.data == data and e.kind == "train"}
        assert {(name, seed) for name in scripts["experiments"].TABLE_1 for seed in range(seeds)} <= trained
    assert [e.data for e in experiments if e.kind == "real"] == ["fashion_mnist", "mnist", "cifar10"]


def test_every_variant_can_be_trained(scripts):
    experiments = scripts["experiments"]
    for name, variant in experiments.VARIANTS.items():
        assert (variant.start is None) == (variant.method == "cgan"), name
        for size in experiments.SIZES.values():
            start = {"start_from": "there"} if variant.start else {}
            config = GlobalLocalTrainer.configure(**size.settings(variant), **start)
            assert (config.max_steps is None) == (size.steps[0] is None)


def test_all_is_run_and_written_down(scripts, finished, small):
    experiments = scripts["experiments"]
    assert {e.kind for e in experiments.experiments("small")} == {
        *("real", "train", "judge", "best5", "herding", "k-center")
    }
    results = scripts["results"].load(finished.results, "small")
    assert all(results.records.values())
    for name in experiments.TABLE_1:
        for protocol in (*experiments.PROTOCOLS, "dynamic-best5-test"):
            (row,) = results.rows("digits", name, protocol, 10)
            assert (row.generator_seed, len(row.accuracies)) == (0, small.n)
    trained, judged = (record(finished, named(scripts, f"dim-seed0-{kind}")) for kind in ("train", "judge"))
    for each in (trained, judged):
        assert {"commit", "device", "versions", "data", "caveats", "experiment"} <= each.keys()
    assert trained["run"]["source"] == "digits:train"
    assert (trained["steps"], trained["run"]["config"]["start_from"]) == (4, "cgan")
    cgan = finished.runs / named(scripts, "cgan-seed0-train").name
    for method in experiments.TABLE_1[1:]:  # all are tuned from one GAN
        run = finished.runs / named(scripts, f"{method}-seed0-train").name / "run.yaml"
        assert yaml.safe_load(run.read_text())["config"]["start_from"] == str(cgan)


def test_an_evaluation_is_of_the_half_precision_file(scripts, finished):
    """Its images are those of the stored file, not of the weights before they were rounded."""
    folder = finished.runs / named(scripts, "cgan-seed0-train").name
    half = AutoGenerator.from_pretrained(folder / "half")
    assert half.dtype == torch.float16
    judged = record(finished, named(scripts, "cgan-seed0-judge"))
    assert {row["generator"] for row in judged["report"]["results"]} == {half.fingerprint}
    whole = AutoGenerator.from_pretrained(folder / "generator")
    assert whole.fingerprint != half.fingerprint


def test_finished_experiments_are_skipped(scripts, finished, monkeypatch, tmp_path):
    run, started = scripts["run"], []
    monkeypatch.setattr(run.Runner, "run", lambda self, experiment: started.append(experiment.name))
    monkeypatch.setattr(run, "RESULTS", finished.results)
    run.main(size="small", runs=finished.runs)
    assert started == []
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    run.main(size="small", runs=finished.runs, only="dim")
    assert started == [f"small/digits/dim-seed0-{kind}" for kind in ("train", "judge", "best5")]


def test_a_stopped_training_resumes(scripts, runner, monkeypatch):
    experiment, steps, plain = named(scripts, "cgan-seed0-train"), [], GlobalLocalTrainer.step

    def step(self, indices):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(self.state.global_step)
        return plain(self, indices)

    monkeypatch.setattr(GlobalLocalTrainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        runner.run(experiment)
    assert not runner.result(experiment).exists()
    first = [*steps]
    steps.clear()
    monkeypatch.setattr(
        GlobalLocalTrainer, "step", lambda self, rows: steps.append(self.state.global_step) or plain(self, rows)
    )
    runner.run(experiment)
    assert (first, steps) == ([0, 1, 2], [2, 3, 4, 5])  # the checkpoint was after two steps
    assert record(runner, experiment)["steps"] == 6


def test_other_data_of_the_same_name_are_refused(scripts, finished, monkeypatch):
    train, test = scripts["run"].read("digits", "digits", None)
    monkeypatch.setattr(scripts["run"], "read", lambda *args: (test, train))
    with pytest.raises(ValueError, match=r"digits as read from digits is not the data that .*json is about"):
        finished.run(named(scripts, "k-center"))


@pytest.mark.parametrize("kind", ["train", "judge"])
def test_results_of_other_settings_are_refused(scripts, finished, small, monkeypatch, kind):
    sizes, load = scripts["experiments"].SIZES, scripts["results"].load
    changes = {"train": {"training": small.training | {"width": 8}}, "judge": {"n": 3}}
    monkeypatch.setitem(sizes, "small", replace(small, **changes[kind]))
    with pytest.raises(ValueError, match=r"was run with .*, but size small has .*: delete its JSON"):
        load(finished.results, "small")


def test_settings_of_earlier_versions_are_accepted(scripts, finished):
    experiment = named(scripts, "cgan-seed0-train")
    old = record(finished, experiment)
    config = old["run"]["config"]
    del config["channels_last"]
    config["mixed_precision"] = "auto"
    scripts["results"].require_size(experiment, old)
    config["width"] = 5
    with pytest.raises(ValueError, match="was run with width 5, but size small has 4"):
        scripts["results"].require_size(experiment, old)


def test_a_generator_that_is_not_the_trained_one_is_refused(scripts, finished, tmp_path):
    train, judge = named(scripts, "cgan-seed0-train"), named(scripts, "cgan-seed0-judge")
    here = scripts["run"].Runner(tmp_path, finished.results)
    with pytest.raises(ValueError, match=r"does not hold the generator of .*cgan-seed0-train.json: delete .* to train"):
        here.run(judge)  # trained elsewhere
    other = finished.runs / named(scripts, "dim-seed0-train").name / "half"
    AutoGenerator.from_pretrained(other).save_pretrained(tmp_path / train.name / "half")
    with pytest.raises(ValueError, match=r"does not hold the generator of .*cgan-seed0-train.json"):
        here.run(judge)


def test_cards_are_saved_with_the_baselines(scripts, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts["run"], "CARDS", tmp_path)
    monkeypatch.setattr(scripts["run"], "RESULTS", finished.results)
    scripts["run"].main(size="small", runs=finished.runs, save_cards=True)
    folder = tmp_path / "digits-global-local-small"
    assert [*tmp_path.iterdir()] == [folder]
    generator = AutoGenerator.from_pretrained(folder)
    assert generator.dtype == torch.float16
    assert {row.name for row in generator.report.results} == {"global-local", "random-real", "full data"}
    assert (folder / "grid.png").is_file()


def evaluated(scripts, variant, seed, accuracies):
    """An evaluation of one row, and its record."""
    row = Result(
        name=variant,
        protocol="fixed",
        network="convnet3",
        ipc=1,
        accuracies=accuracies,
        seeds=tuple(range(len(accuracies))),
        generator_seed=seed,
        steps=1,
        distinct_images=10,
        stored_bytes=1,
        seconds=60.0,
    )
    recipe = asdict(scripts["experiments"].SIZES["paper"].recipe_for("mnist")) | {"epochs_up_to": []}
    report = Report((row,), "real", "test", recipe, "real", "CPU")
    facts = {"commit": "0123456789-dirty", "device": "CPU", "versions": {"torch": "2"}, "caveats": ["A copy."]}
    return scripts["experiments"].Experiment("paper", "mnist", "judge", variant, seed), facts | {"report": report}


def cells(table):
    """Cells of a table by the names of its rows and columns."""
    header, _, *rows = (line[2:-2].split(" | ") for line in table.splitlines())
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_tables_separate_generators_from_networks_and_pair_seeds(scripts):
    tables = scripts["tables"]
    records = [
        evaluated(scripts, "dim", 0, (0.5, 0.7)),
        evaluated(scripts, "dim", 1, (0.7, 0.9)),
        evaluated(scripts, "cgan-continued", 0, (0.5, 0.5)),
        evaluated(scripts, "cgan-continued", 2, (0.1, 0.1)),  # of a seed that the other was not run with
    ]
    results = scripts["results"].Results("paper", dict(records))
    fixed, dynamic = (cells(tables.table_1(results, "mnist", protocol)) for protocol in ("fixed", "dynamic"))
    assert fixed["dim"]["paper, IPC 1"] == "70.0 ± 14.1 (14.1)"
    assert fixed["dim"]["generators"] == "2"
    assert fixed["dim"]["paper, IPC 10"] == dynamic["dim"]["paper, IPC 1"] == "not run"
    # Published numbers of generators were measured on fresh images.
    assert (fixed["dim"]["published, IPC 1"], dynamic["dim"]["published, IPC 1"]) == ("-", "96.5 (0.6)")
    assert fixed["random-real"]["published, IPC 1"] == dynamic["random-real, `fixed`"]["published, IPC 1"]
    assert dynamic["cgan-continued"]["published, IPC 1"] == "-"
    assert "| dim - cgan-continued | fixed | 1 | +10.0 (14.1) | not run | not run |" in tables.gains(results, "mnist")
    facts = tables.circumstances(results)
    assert facts["evaluation_minutes"] == 4
    assert (facts["commits"], list(facts["notes"])) == ("0123456-dirty", ["A copy."])


def test_real_images_win_where_their_mean_is_higher(scripts, monkeypatch):
    tables, Results = scripts["tables"], scripts["results"].Results
    monkeypatch.setattr(tables, "IPCS", (1,))
    monkeypatch.setattr(tables, "PROTOCOLS", ("fixed",))
    records = [evaluated(scripts, name, 0, (0.6, 0.8)) for name in tables.TABLE_1]
    assert tables.real_wins(Results("paper", dict(records)), "mnist") == {}  # there is nothing to compare with
    for accuracy, wins in ((0.69, []), (0.71, [1])):
        real = evaluated(scripts, "random-real", 0, (accuracy, accuracy))
        assert tables.real_wins(Results("paper", dict([*records, real])), "mnist") == {"fixed": wins}


def test_other_variants_stand_beside_what_was_published_of_them(scripts):
    experiment, facts = evaluated(scripts, "dim, two in pool", 0, (0.5, 0.7))
    experiment = replace(experiment, data="cifar10")
    table = scripts["tables"].other_variants(scripts["results"].Results("paper", {experiment: facts}))
    assert "| cifar10 | dim, two in pool | fixed | 1 | convnet3 | 60.0 (14.1) | 66.2 (0.5) |" in table


def test_the_page_of_a_whole_size_is_drawn(scripts, finished, monkeypatch, tmp_path):
    tables = scripts["tables"]
    monkeypatch.setitem(tables.TITLES, "digits", "Digits")
    monkeypatch.setitem(tables.PUBLISHED["all_data"], "digits", [99.0, 0.1])
    results = scripts["results"].load(finished.results, "small")
    page = tables.page([results], tmp_path)
    assert "### Digits" in page
    assert "| Digits, `dynamic-best5-test` |" in page
    assert "All experiments of this size were run." in page
    tables.accuracy_figure(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_the_committed_page_is_what_the_json_gives(scripts):
    results = [scripts["results"].load(scripts["results"].RESULTS, size) for size in ("paper", "lite")]
    assert (ROOT / "docs" / "results.md").read_text() == scripts["tables"].page(results, ROOT / "model_cards")


def test_all_stored_experiments_of_a_data_set_used_the_same_images(scripts):
    images = {}
    for path in scripts["results"].RESULTS.glob("*/*/*.json"):
        data = json.loads(path.read_text())["data"]
        images.setdefault(path.parent.name, set()).add((data["train"], data["test"]))
    assert images
    assert all(len(each) == 1 for each in images.values())


def test_stored_generators_report_the_same_results(scripts):
    experiments, compared = scripts["experiments"], 0
    for judge in experiments.card_experiments("lite"):
        if not (folder := ROOT / "model_cards" / judge.card).is_dir():
            continue
        real = replace(judge, kind="real", variant=None, seed=0)
        records = [json.loads((PAPER / "results" / f"{e.name}.json").read_text()) for e in (real, judge, *judge.needs)]
        rows = [row for each in records[:2] for row in each["report"]["results"]]
        assert json.loads((folder / "report.json").read_text())["results"] == rows
        assert AutoGenerator.from_pretrained(folder).fingerprint == records[2]["fingerprint"]
        compared += 1
    assert compared == 2
