import io
import json
import os
import signal
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from kinds import codes, gan, teacher_of
from PIL import Image

from hf_gdd.classifiers.ensemble import ClassifierEnsemble
from hf_gdd.classifiers.learner import NonFiniteLossError
from hf_gdd.classifiers.recipes import RECIPES, Recipe
from hf_gdd.cli.main import main
from hf_gdd.cli.options import SamplingOptions
from hf_gdd.evaluation import evaluator as judging
from hf_gdd.generators.auto import AutoGenerator
from hf_gdd.generators.sampling import Sampling
from hf_gdd.methods.global_local.trainer import GlobalLocalTrainer
from hf_gdd.report import FULL_DATA, RANDOM_REAL, TEACHER, Report
from hf_gdd.training.run_folder import read_run
from hf_gdd.training.trainer import Trainer

TINY = ["distill", "--dataset", "digits", "--preset", "tiny", "--max-steps", "2", "--width", "4", "--pool", "convnet1"]
TINY += ["--codes-ipc", "0", "--teacher-network", "None"]
DIGITS = [str(digit) for digit in range(10)]
CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(Trainer, "save_pictures", lambda self: None)
    monkeypatch.setitem(RECIPES, "tiny", Recipe(max_steps=5, lr=0.05))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run made by the command."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_pictures", lambda self: None)
        assert main([*TINY, "--output-dir", str(folder), "--seed", "3"]) == 0
    return folder


def fingerprint(folder):
    return AutoGenerator.from_pretrained(folder / "generator").fingerprint


def refused(capsys, arguments, *parts):
    """The command ends with status 2 and a message, and without a traceback."""
    try:
        status = main(arguments)
    except SystemExit as stop:  # what the parser does
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert "Traceback" not in captured.out + captured.err
    said = " ".join((captured.out + captured.err).replace("│", " ").split())
    for part in parts:
        assert part in said
    return said


def table(text):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_distill_leaves_a_generator_and_says_where(run, capsys, tmp_path):
    assert main([*TINY, "--output-dir", "again", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "Generator: again/generator" in said
    assert "gan" in said
    assert "match" in said
    assert "images/s" in said
    assert fingerprint(tmp_path / "again") == fingerprint(run)
    identity = read_run(run)
    assert identity["dataset"] == "digits"
    assert identity["config"]["seed"] == 3
    assert identity["config"]["width"] == 4
    assert identity["config"]["pool"] == ["convnet1"]
    assert identity["config"]["match_lr"] == 2e-4  # of the preset, as all that was not given


def test_one_process_of_a_launcher_says_where_the_generator_is(capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda self: setattr(self.processes, "is_main", False))
    assert main([*TINY, "--output-dir", "other"]) == 0
    assert capsys.readouterr().out == ""


def test_the_default_output_folder_names_data_method_and_preset(tmp_path):
    assert main([*TINY, "--method", "cgan"]) == 0
    assert (tmp_path / "runs" / "digits-cgan-tiny" / "generator" / "config.json").is_file()


def test_the_same_command_again_trains_nothing(run, monkeypatch):
    monkeypatch.setattr(GlobalLocalTrainer, "step", lambda self, indices: pytest.fail("trained"))
    assert main([*TINY, "--output-dir", str(run), "--seed", "3"]) == 0


@pytest.mark.parametrize("file", ["", "run.yaml"])
def test_config_repeats_a_run(run, tmp_path, file):
    assert main(["distill", "--config", str(run / file), "--output-dir", "again"]) == 0
    assert fingerprint(tmp_path / "again") == fingerprint(run)
    assert read_run(tmp_path / "again") == read_run(run)


def test_options_override_the_config(run, tmp_path):
    assert main(["distill", "--config", str(run), "--output-dir", "other", "--method", "dim"]) == 0
    before, after = (read_run(folder)["config"] for folder in (run, tmp_path / "other"))
    assert after == before | {"method": "dim"}
    assert fingerprint(tmp_path / "other") != fingerprint(run)


def test_materialize_makes_data_sets_that_load(run, tmp_path, capsys):
    assert main(["materialize", str(run / "generator"), "--ipc", "1", "2", "--output-dir", "sets", "--seed", "5"]) == 0
    said = capsys.readouterr().out
    sets = {}
    for ipc in (1, 2):
        assert f'{10 * ipc} images: load_dataset("sets/ipc{ipc}-seed5", split="train")' in said
        sets[ipc] = datasets.load_dataset(str(tmp_path / "sets" / f"ipc{ipc}-seed5"), split="train")
        assert sets[ipc].features["label"].names == DIGITS
        assert isinstance(sets[ipc].features["image"], datasets.Image)
        assert sets[ipc]["label"][:] == [label for label in range(10) for _ in range(ipc)]
    assert sets[1][7]["image"].size == (8, 8)
    assert sets[1][7]["image"].tobytes() == sets[2][14]["image"].tobytes() != sets[2][15]["image"].tobytes()


@contextmanager
def files_up_to(size):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_cannot_be_made_is_refused_by_name(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["materialize", str(run / "generator"), "--ipc", "1", "--output-dir", str(tmp_path / "file" / "sets")]
    refused(capsys, command, "train.parquet cannot be written (Not a directory)", "choose another folder")


def test_a_full_disk_leaves_no_half_set_and_the_command_goes_on(run, tmp_path, capsys):
    command = ["materialize", str(run / "generator"), "--ipc", "40", "--output-dir", "sets"]
    with files_up_to(10_000):
        refused(capsys, command, "File too large", "free some space")
    assert main(command) == 0
    made = tmp_path / "sets" / "ipc40-seed0" / "train.parquet"
    content = made.read_bytes()
    with files_up_to(10_000):
        refused(capsys, command, "ipc40-seed0/train.parquet cannot be written (File too large)", "and repeat")
    assert made.read_bytes() == content
    assert [path.name for path in made.parent.iterdir()] == ["train.parquet"]


def test_one_process_of_a_launcher_writes_what_all_have_made(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["materialize", str(run / "generator"), "--seed", "6", "--output-dir", "sets", "--push-to-hub", "me/none"]
    assert main(command) == 0
    assert not (tmp_path / "sets").exists()
    assert capsys.readouterr().out == ""


def test_evaluate_prints_and_writes_one_report(run, capsys, monkeypatch):
    monkeypatch.setattr(judging, "accuracy", lambda *args: 0.5)
    arguments = ["evaluate", str(run / "generator"), "--dataset", "digits", "--recipe", "tiny", "--n", "1"]
    arguments += ["--networks", "convnet1", "--ipc", "1", "2", "--protocol", "fixed", "dynamic", "--output", "r.json"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    expected = [("global-local", protocol, ipc) for ipc in ("1", "2") for protocol in ("fixed", "dynamic")]
    expected += [(RANDOM_REAL, "fixed", "1"), (RANDOM_REAL, "fixed", "2"), (FULL_DATA, "fixed", "all")]
    assert [(row["method"], row["protocol"], row["IPC"]) for row in table(said)] == expected
    assert "Report: r.json" in said
    report = Report.load("r.json")
    assert [(r.name, r.protocol, str(r.ipc or "all")) for r in report.results] == expected
    assert {r.generator_seed for r in report.find("global-local")} == {3}
    assert {r.steps for r in report.results} == {5}
    assert report.problems == ()


def test_the_report_of_a_local_generator_becomes_part_of_it(run, tmp_path):
    arguments = ["evaluate", str(run / "generator"), "--dataset", "digits", "--recipe", "tiny", "--n", "1"]
    assert main([*arguments, "--networks", "convnet1", "--ipc", "1"]) == 0
    report = AutoGenerator.from_pretrained(run / "generator").report
    assert [r.name for r in report.results] == ["global-local", RANDOM_REAL, FULL_DATA]
    (run / "generator" / "report.json").unlink()


def test_evaluate_takes_a_materialised_set(run, tmp_path, capsys):
    assert main(["materialize", str(run / "generator"), "--ipc", "2", "--output-dir", "sets"]) == 0
    arguments = ["evaluate", "sets/ipc2-seed0", "--dataset", "digits", "--recipe", "tiny", "--n", "1"]
    assert main([*arguments, "--networks", "convnet1"]) == 0
    rows = table(capsys.readouterr().out)
    assert [(row["method"], row["IPC"]) for row in rows] == [("dataset", "2"), (RANDOM_REAL, "2"), (FULL_DATA, "all")]


def two_images(folder):
    """A folder whose data set has two image columns."""
    pictures = [Image.new("L", (8, 8), value) for value in (0, 100, 200, 250)]
    names = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"left": datasets.Image(), "right": datasets.Image(), "label": names})
    rows = {"left": pictures, "right": pictures, "label": [0, 1, 0, 1]}
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def test_bad_input_to_distill(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(GlobalLocalTrainer, "step", lambda self, indices: pytest.fail("trained"))
    refused(capsys, ["distill", "--dataset", str(tmp_path / "nowhere"), "--preset", "tiny"], "nowhere")
    refused(capsys, ["distill", "--preset", "tiny"], "--dataset")
    refused(capsys, ["distill", "--dataset", "digits", "--preset", "huge"], "huge", "paper", "lite", "tiny")
    refused(capsys, [*TINY, "--widht", "8"], "--widht")
    refused(capsys, [*TINY, "--adversarial", "hinge"], "hinge", "minimax")
    refused(capsys, [*TINY, "--pool", "convnet33"], "error: Unknown network 'convnet33'")
    refused(capsys, [*TINY, "--max-steps", "0"], "max_steps is 0; it must be positive")
    refused(capsys, [*TINY, "--image-column", "picture"], "error: There is no column 'picture'", "'image'")
    data = two_images(tmp_path / "pairs")
    refused(
        capsys, ["distill", "--dataset", data, "--preset", "tiny"], "error: Several columns are Image", "image_column"
    )
    refused(capsys, ["distill", "--config", "nowhere.yaml"], "error: nowhere.yaml is not the file of a run")
    refused(capsys, ["distill", "--config", "a.yaml", "--preset", "tiny"], "error: Pass --config or --preset, not both")
    (tmp_path / "file").write_text("in the way")
    refused(capsys, [*TINY, "--output-dir", "file"], "error: Cannot write to the output folder file")
    assert not (tmp_path / "runs").exists()


def test_the_image_column_can_be_chosen(tmp_path):
    data = two_images(tmp_path / "pairs")
    options = ["--dataset", data, "--image-column", "right", "--output-dir", "run"]
    assert main([*TINY[:1], *TINY[3:], *options]) == 0
    assert (tmp_path / "run" / "generator").is_dir()


def test_another_run_in_the_folder_is_refused(run, capsys):
    refused(capsys, [*TINY, "--output-dir", str(run), "--seed", "4"], "error:", "config.seed (now 4, there 3)")


def test_the_config_of_another_trainer_is_refused(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(json.dumps({"trainer": "OtherTrainer", "config": {}, "dataset": "digits"}))
    refused(capsys, ["distill", "--config", "run.yaml"], "error: The config is of a OtherTrainer")


def test_bad_input_to_materialize_and_evaluate(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ClassifierEnsemble, "fit", lambda *args: pytest.fail("trained"))
    generator, empty = str(run / "generator"), tmp_path / "empty"
    empty.mkdir()
    refused(capsys, ["materialize", str(tmp_path / "nowhere")], "error:", "is neither a local folder")
    refused(capsys, ["materialize", str(empty)], "error:", "config.json found in")
    refused(capsys, ["materialize", str(run)], "its subfolder 'generator'")
    refused(capsys, ["materialize", generator, "--ipc", "0"], "error: ipc is 0; ask for a whole number")
    refused(capsys, ["materialize", generator, "--truncation", "5"], "error: truncation is 5.0")
    command = ["materialize", generator]
    refused(capsys, [*command, "--num-inference-steps", "5"], "This generator's sampling has no num_inference_steps")
    refused(capsys, [*command, "--classes", "1"], "error: Only a diffusion generator has classes to choose from")
    refused(capsys, ["distill", "--dataset", "digits", "--method", "magic"], "error: Unknown method 'magic'")
    evaluate = ["evaluate", generator, "--dataset", "digits", "--networks", "convnet1"]
    refused(capsys, ["evaluate", generator, "--dataset", str(tmp_path / "nowhere")], "error:", "nowhere")
    refused(capsys, [*evaluate, "--ipc", "-1"], "ipc is -1")
    refused(capsys, [*evaluate, "--n", "0"], "error: n is 0")
    refused(capsys, [*evaluate, "--networks", "convnet33"], "error: Unknown network 'convnet33'")
    refused(capsys, [*evaluate, "--protocol", "best"], "best", "dynamic-best5-test")
    refused(capsys, [*evaluate, "--test-split", "validation"], "error: There is no split 'validation'")
    refused(capsys, [*evaluate, "--label-column", "digit"], "error: There is no column 'digit'")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ([], ["distill", "materialize", "evaluate", "show", "env"]),
        (
            ["distill"],
            ["--dataset", "--output-dir", "--config", "--preset", "--method", "--max-steps", "--width", "--start-from"],
        ),
        (["distill", "--preset", "tiny"], ["--pool", "convnet2", "--image-size", "--seed", "--mixed-precision"]),
        (["materialize"], ["--ipc", "--output-dir", "--seed", "--truncation", "--num-proc", "--no-distilled"]),
        (["evaluate"], ["--dataset", "--ipc", "--protocol", "--networks", "--recipe", "--shared-draws", "--output"]),
        (["evaluate"], ["--image-seed", "--coresets", "--soft-loss", "--temperature", "--distilled", "--no-distilled"]),
        (["show"], ["--revision"]),
        (["env"], ["versions"]),
    ],
    ids=" ".join,
)
def test_help(capsys, command, options):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code in (0, None)
    said = capsys.readouterr().out
    assert [option for option in options if option not in said] == []


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(tmp_path, capsys, monkeypatch, run, signum, status):
    original, command = GlobalLocalTrainer.step, [*TINY, "--output-dir", "run", "--seed", "3"]

    def step(self, indices):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signum)
        return original(self, indices)

    monkeypatch.setattr(GlobalLocalTrainer, "step", step)
    assert main(command) == status
    said = capsys.readouterr().err
    assert f"{signum.name}: stopped after step 3, saved in run" in said
    assert "Traceback" not in said
    assert main(command) == 0
    assert fingerprint(tmp_path / "run") == fingerprint(run)


def test_ctrl_c_while_evaluating_ends_without_a_traceback(run, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassifierEnsemble, "fit", interrupted)
    arguments = ["evaluate", str(run / "generator"), "--dataset", "digits", "--recipe", "tiny", "--ipc", "1"]
    try:
        status = main(arguments)
    except KeyboardInterrupt:
        pytest.fail("the traceback reaches the user")
    assert status == 130


def test_a_run_that_fails_has_status_1(capsys, monkeypatch):
    def step(self, indices):
        raise NonFiniteLossError("class became nan in step 1.")

    monkeypatch.setattr(GlobalLocalTrainer, "step", step)
    assert main([*TINY, "--output-dir", "run"]) == 1
    assert "error: class became nan in step 1." in capsys.readouterr().err


def test_presets_are_the_defaults_of_the_command(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(GlobalLocalTrainer, "__init__", lambda self, data, **kw: made.append(kw["config"]))
    monkeypatch.setattr(GlobalLocalTrainer, "fit", lambda self: (_ for _ in ()).throw(ValueError("far enough")))
    for preset in ("paper", "fast", "lite", "tiny"):
        assert main(["distill", "--dataset", "digits", "--preset", preset, "--seed", "9"]) == 2
    assert made == [replace(GlobalLocalTrainer.presets[name], seed=9) for name in ("paper", "fast", "lite", "tiny")]


# ---- generators with distilled codes and a teacher


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """The folder of a generator of digits with four distilled images a class and a teacher."""
    folder, generator = tmp_path_factory.mktemp("labeled") / "generator", gan(names=tuple(DIGITS))
    generator.codes = codes(count=4, num_classes=10)
    generator.teacher = teacher_of(names=tuple(DIGITS))
    generator.save_pretrained(folder)
    return folder


def first_image(folder):
    return datasets.load_dataset(str(folder), split="train")[0]["image"].tobytes()


def test_materialize_says_how_many_images_are_distilled(labeled, capsys):
    command = ["materialize", str(labeled), "--output-dir"]
    for options, expected in (
        (
            ["--ipc", "2", "4", "6"],
            ["20 images, all distilled", "40 images, all distilled", "60 images, 40 of them distilled"],
        ),
        (["--ipc", "2", "--no-distilled"], ["20 images"]),
        (["--ipc", "2", "--distilled"], ["20 images, all distilled"]),
        (["--ipc", "2", "--seed", "3"], ["20 images"]),
    ):
        folder = "-".join(options).replace("--", "")
        assert main([*command, folder, *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(": load_dataset")[0] for line in lines] == expected
    distilled, plain, again = (
        first_image(f"ipc-2{name}/ipc2-seed0") for name in ("-4-6", "-no-distilled", "-distilled")
    )
    assert distilled == again != plain
    refused(capsys, [*command, "x", "--distilled", "--no-distilled"], "Pass --distilled or --no-distilled, not both")


def test_flags_override_what_a_generator_was_saved_with(labeled, tmp_path):
    generator = AutoGenerator.from_pretrained(labeled)
    assert SamplingOptions().apply_to(generator) is None
    for saved in (True, False):
        generator.sampling = Sampling(distilled=saved)
        assert SamplingOptions(distilled=True).apply_to(generator) == Sampling()
        assert SamplingOptions(no_distilled=True).apply_to(generator) == Sampling(distilled=False)
        assert SamplingOptions(truncation=0.5).apply_to(generator) == Sampling(0.5, distilled=saved)


def test_evaluate_passes_its_options_on(labeled, capsys):
    arguments = ["evaluate", str(labeled), "--dataset", "digits", "--recipe", "tiny", "--n", "1", "--output", "r.json"]
    arguments += ["--networks", "convnet1", "--ipc", "2", "--protocol", "soft", "dynamic", "--coresets", "herding"]
    arguments += ["--soft-loss", "kl", "--temperature", "3", "--seed", "5", "--image-seed", "4"]
    assert main(arguments) == 0
    report, names = Report.load("r.json"), {"untrained", RANDOM_REAL, "herding", FULL_DATA, TEACHER}
    assert {row.name for row in report.results} == names
    assert (report.recipe["soft_loss"], report.recipe["temperature"]) == ("kl", 3.0)
    (row,) = report.find("untrained", protocol="fixed")
    assert (row.sampling, row.seeds) == ("truncation=1.0, distilled=False, image_seed=4", (5,))
    assert "cannot be compared at IPC 2" in capsys.readouterr().out.splitlines()[0]
    for options, text in (([], "True"), (["--no-distilled"], "False")):
        assert main([*arguments, "--image-seed", "0", *options]) == 0
        assert f"distilled={text}" in Report.load("r.json").find("untrained", protocol="fixed")[0].sampling
    refused(capsys, [*arguments, "--temperature", "0"], "Recipe.temperature is 0.0; it must be positive")


# ---- show and env


def test_show_says_what_a_generator_is(labeled, capsys, monkeypatch):
    monkeypatch.setattr(AutoGenerator, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    assert main(["show", str(labeled)]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines() if ":" in line)
    assert {name: text.strip() for name, text in lines.items()} == {
        "Kind": "ConditionalGANGenerator",
        "Classes": "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        "Images": "as many as you ask for, 8x8 pixels, gray",
        "Distilled": "the first 4 of every class, at seed 0",
        "Labels": "hard, and soft ones by a convnet1 that classifies 75.0% of the real training images correctly",
        "From": str(labeled),
        "Not evaluated yet": "hf-gdd evaluate adds the report.",
    }


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("digits", ["trained by global-local, seed 0", "digits:train, license cc-by-4.0", "random-real"]),
        ("digits-matching", ["10 of every class, 8x8 pixels", "Distilled: all", "soft ones by a convnet2"]),
        ("digits-memory", ["DiffusionGenerator", "Distilled: none, every image is a plain draw", "| self-adaptive |"]),
    ],
)
def test_show_knows_every_kind_and_prints_the_report(card, expected, capsys):
    assert main(["show", str(CARDS / card)]) == 0
    said = capsys.readouterr().out
    assert [text for text in expected if text not in said] == []
    assert Report.load(CARDS / card / "report.json").markdown() in said


def test_show_lists_a_stock_pipeline(tmp_path, capsys):
    names = {str(row): f"class {row}" for row in range(12)}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", "id2label": names}))
    assert main(["show", str(tmp_path)]) == 0
    assert "Classes:   12: class 0, class 1," in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        {"class_names": 5},
        {"image_shape": [8, 8]},
        {"training": "none"},
        {"distilled_ipc": "many"},
        {"teacher": {"accuracy": 1}},
        {"teacher": 5},
        {"class_names": [1, 2]},
    ],
    ids=str,
)
def test_show_refuses_a_damaged_config(labeled, tmp_path, capsys, content):
    config = json.loads((labeled / "config.json").read_text()) | content
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(capsys, ["show", str(tmp_path)], "error: config.json in", "is damaged", "fetch or save it again")


def test_show_hides_what_a_terminal_would_obey(labeled, tmp_path, capsys):
    config = json.loads((labeled / "config.json").read_text()) | {"class_names": ["a\x1b[2J", "b\r"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["show", str(tmp_path)]) == 0
    assert "2: a?[2J, b?" in capsys.readouterr().out


def show(repo):
    """In a process of its own, what the command prints."""
    with redirect_stdout(io.StringIO()) as said:
        assert main(["show", repo]) == 0
    return said.getvalue()


def test_show_fetches_no_weights(hub, client):
    files = {path.name: path.read_bytes() for path in (CARDS / "digits").iterdir() if path.is_file()}
    hub.add_user("me")
    hub.put("me/digits", files)
    said = client().run(show, "me/digits")
    assert f"me/digits@{hub.head('me/digits')}" in said
    assert "random-real" in said
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {"config.json", "report.json"}


def test_env_prints_versions_and_device(capsys):
    assert main(["env"]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"].strip() == torch.__version__
    assert lines.keys() >= {"python", "platform", "hf_gdd", "datasets", "diffusers", "device"}
    assert lines["device"].strip()
