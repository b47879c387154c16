"""Reports: what they hold, how they are read back, also from earlier versions, and the table of protocols."""

import ast
import json
import multiprocessing
import os
import re
import signal
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import hf_gdd
import hf_gdd.utils.io
from hf_gdd.hub.cards import generator_card
from hf_gdd.report import (
    FIXED,
    FULL_DATA,
    HERDING,
    PROTOCOLS,
    RANDOM_REAL,
    TEACHER,
    Quality,
    Report,
    Result,
    find_protocol,
    markdown_table,
)

SOURCES = sorted(Path(hf_gdd.__file__).parent.rglob("*.py"))


def result(name="ours", accuracies=(0.5, 0.7), **changes):
    values = {
        "name": name,
        "protocol": "fixed",
        "network": "convnet3",
        "ipc": 10,
        "accuracies": accuracies,
        "seeds": tuple(range(len(accuracies))),
        "generator_seed": None,
        "steps": 1000,
        "distinct_images": 12_345,
        "stored_bytes": 2048,
        "seconds": 1.5,
    }
    return Result(**values | changes)


def report(*results, **changes):
    values = {
        "train": "digits:train (abc)",
        "test": "digits:test (def)",
        "recipe": {"lr": 0.01, "floor": 0.9},
        "normalization": "the real training set",
        "device": "CPU",
        "versions": {"torch": "2"},
    }
    return Report(results=results, **values | changes)


def rows(markdown):
    """The cells of every line of the table under its header."""
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    header, ruler, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert set(ruler) == {"---"}
    assert {len(cells) for cells in body} == {len(header)}
    return [dict(zip(header, cells, strict=True)) for cells in body]


def test_a_saved_report_is_loaded_as_it_was(tmp_path):
    saved = report(result(generator_seed=3), result(FULL_DATA, ipc=None), result(RANDOM_REAL))
    saved.save(tmp_path / "report.json")
    loaded = Report.load(tmp_path / "report.json")
    assert loaded == saved
    assert asdict(loaded) == asdict(saved)
    assert isinstance(loaded.results[0].accuracies, tuple)
    assert isinstance(loaded.results[0].seeds, tuple)
    assert json.loads((tmp_path / "report.json").read_text())["results"][0]["accuracies"] == [0.5, 0.7]


def test_reports_from_before_draws_could_be_shared_had_them_apart(tmp_path):
    path = tmp_path / "report.json"
    for shared in (False, True):
        report(result(), shared_draws=shared).save(path)
        assert Report.load(path).shared_draws is shared
        assert ("All networks of a row saw the same draws" in Report.load(path).markdown()) is shared
        card = generator_card("me/ours", {"class_names": ["a", "b"], "image_shape": (1, 8, 8)}, Report.load(path))
        assert ("All networks of a row saw the same batches, augmented alike" in " ".join(card.split())) is shared
    content = json.loads(path.read_text())
    del content["shared_draws"]
    path.write_text(json.dumps(content))
    assert Report.load(path).shared_draws is False


def former(content):
    """A report as version 0.1.0 wrote it before fields were renamed."""
    content = {"normalisation" if name == "normalization" else name: value for name, value in content.items()}
    text = json.dumps(content)
    return text.replace("guidance_scale=", "guidance=").replace("num_inference_steps=", "steps=")


def test_a_report_of_an_earlier_version_is_read_in_todays_names(tmp_path):
    sampling = "guidance_scale=4.0, num_inference_steps=50, scheduler=ddim"
    quality = Quality("ours", 10, 100, "convnet3", (0,), {"diversity": (0.5,)}, 3, sampling, "f" * 64)
    rows = (result(sampling=sampling), result("gan", sampling="truncation=1.0"), result("bank", sampling=""))
    saved = report(*rows, result(RANDOM_REAL), quality=(quality,))
    path = tmp_path / "report.json"
    path.write_text(former(asdict(saved)))
    assert '"normalisation"' in path.read_text()
    assert "guidance=4.0, steps=50" in path.read_text()
    assert Report.load(path) == saved
    Report.load(path).save(path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(asdict(saved)))


def test_an_old_and_a_new_report_of_one_cell_merge_into_one_row():
    sampling = "guidance_scale=4.0, num_inference_steps=50, scheduler=ddim"
    one, other = (result(sampling=sampling, generator_seed=seed, generator=str(seed)) for seed in (0, 1))
    old = Report.from_dict(json.loads(former(asdict(report(one)))))
    (row,) = rows(Report.merge([old, report(other)]).markdown())
    assert row["generators"] == "2"


def killed(*args):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_report_is_saved_whole_or_not_at_all(tmp_path, monkeypatch, call):
    path = tmp_path / "report.json"
    report(result()).save(path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(hf_gdd.utils.io.os, call, killed)
        child = multiprocessing.get_context("fork").Process(target=report(result("other")).save, args=(path,))
        child.start()
        child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert path.read_bytes() == before
    with pytest.raises(TypeError):
        report(result(), recipe={"lr": object()}).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"{}",
        b'{"results": 5}',
        b'{"results": []}',
        b'{"results": [{"name": "ours"}]}',
        b'{"results": [], "depth": 3}',
    ],
    ids=str,
)
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"report\.json is not a report of this version of hf_gdd"):
        Report.load(tmp_path / "report.json")


def test_mean_and_sample_deviation():
    assert result(accuracies=(0.5, 0.6, 0.9)).mean == pytest.approx(2 / 3)
    assert result(accuracies=(0.5, 0.6, 0.9)).std == pytest.approx(statistics.stdev([0.5, 0.6, 0.9]))
    assert result(accuracies=(0.5,)).std == 0


def test_merging_joins_the_results_in_order():
    first, second, third = result("a"), result("b"), result("c")
    merged = Report.merge([report(first), report(second, third)])
    assert merged == report(first, second, third)


@pytest.mark.parametrize(
    "change",
    [
        {"train": "other"},
        {"test": "other"},
        {"recipe": {"lr": 0.02, "floor": 0.9}},
        {"normalization": "other"},
        {"device": "GPU"},
        {"versions": {"torch": "3"}},
        {"shared_draws": True},
    ],
    ids=str,
)
def test_reports_of_other_circumstances_do_not_merge(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"differ in '{name}' cannot be merged"):
        Report.merge([report(result("a")), report(result("b"), **change)])


def test_nothing_does_not_merge():
    with pytest.raises(ValueError, match="no reports to merge"):
        Report.merge([])


def test_deviations_over_networks_and_between_generators_are_kept_apart():
    """Generators of means 50, 60 and 70 %, their networks 2, 4 and 6 points apart."""
    results = [
        result(accuracies=(0.49, 0.51), generator_seed=0, seconds=1.0),
        result(accuracies=(0.58, 0.62), generator_seed=1, seconds=2.0),
        result(accuracies=(0.67, 0.73), generator_seed=2, seconds=4.0),
    ]
    (row,) = rows(report(*results).markdown())
    within = statistics.fmean(100 * d * 2**0.5 / 2 for d in (0.02, 0.04, 0.06))
    assert row["accuracy %"] == f"60.0 ± {within:.1f} (between 10.0)" == "60.0 ± 2.8 (between 10.0)"
    assert (row["nets"], row["generators"], row["seconds"]) == ("2", "3", "7")
    assert (row["distinct images"], row["stored"], row["steps"]) == ("12,345", "2 KiB", "1,000")


def test_one_generator_has_no_deviation_between():
    (row,) = rows(report(result(accuracies=(0.49, 0.51), generator_seed=0)).markdown())
    assert (row["accuracy %"], row["generators"]) == ("50.0 ± 1.4", "1")
    (row,) = rows(report(result(accuracies=(0.5,))).markdown())
    assert (row["accuracy %"], row["generators"], row["nets"]) == ("50.0", "-", "1")


def test_every_cell_has_a_row_of_its_own():
    base = result()
    others = [replace(base, **c) for c in ({"name": "b"}, {"protocol": "dynamic"}, {"network": "vgg11"}, {"ipc": 50})]
    table = rows(report(base, *others, result(FULL_DATA, ipc=None)).markdown())
    assert [(r["method"], r["protocol"], r["network"], r["IPC"]) for r in table] == [
        ("ours", "fixed", "convnet3", "10"),
        ("b", "fixed", "convnet3", "10"),
        ("ours", "dynamic", "convnet3", "10"),
        ("ours", "fixed", "vgg11", "10"),
        ("ours", "fixed", "convnet3", "50"),
        (FULL_DATA, "fixed", "convnet3", "all"),
    ]


def test_rows_stand_in_the_order_of_their_first_generators():
    first, second = (result(generator_seed=seed, generator=str(seed)) for seed in (0, 1))
    table = rows(report(first, result("b"), second).markdown())
    assert [(row["method"], row["generators"]) for row in table] == [("ours", "2"), ("b", "-")]


def test_the_circumstances_stand_under_the_table():
    text = report(result()).markdown()
    for part in ("digits:train (abc)", "digits:test (def)", "lr 0.01", "the real training set", "CPU", "torch 2"):
        assert part in text


def test_a_missing_baseline_is_named():
    problem = "no random-real baseline at the same IPC: pass real= to evaluate"
    for lacking in (
        report(result()),
        report(result(), result(RANDOM_REAL, ipc=50)),
        report(result(), result(RANDOM_REAL, network="vgg11")),
    ):
        assert lacking.problems == (problem,)
        assert lacking.valid is None
        assert f"**{problem}**" in lacking.markdown()
        assert problem.upper() in str(lacking)
    complete = report(result(), result(RANDOM_REAL))
    assert complete.problems == ()
    assert "**" not in complete.markdown()
    assert report(result(FULL_DATA, (0.95,), ipc=None)).problems == ()


def test_a_recipe_too_weak_makes_the_report_invalid():
    weak = report(result(), result(RANDOM_REAL), result(FULL_DATA, (0.8, 0.9), ipc=None))
    assert weak.problems == ("recipe invalid: convnet3 reaches 85.0% on full data, under its floor of 90.0%",)
    assert not weak.valid
    assert weak.problems[0] in weak.markdown()
    assert "RECIPE INVALID" in str(weak)
    assert report(result(), result(RANDOM_REAL), result(FULL_DATA, (0.9, 0.9), ipc=None)).valid


def test_results_are_found_by_name_and_fields():
    a, b, c = result(ipc=1), result(ipc=10), result("other", ipc=10)
    found = report(a, b, c)
    assert found.find("ours") == [a, b]
    assert found.find("ours", ipc=10) == [b]
    assert found.find("ours", ipc=10, network="vgg11") == []


def test_the_line_a_person_reads():
    line = str(report(result(accuracies=(0.49, 0.51)), result(RANDOM_REAL), result(FULL_DATA, (0.95,), ipc=None)))
    assert "ours IPC 10 fixed 50.0±1.4 (convnet3, n=2)" in line
    assert "full data fixed 95.0 (convnet3, n=1)" in line
    assert line.endswith("[CPU]")


def test_a_markdown_table():
    assert markdown_table(["a", "b"], [("1", "2"), ["3", "4"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"
    assert markdown_table(["a"], []) == "| a |\n| --- |"


# ---- gain over random real images


def test_the_gain_is_over_random_real_of_the_same_network_ipc_and_labels():
    ours = result(accuracies=(0.6, 0.7))
    others = [result("ours", (0.9, 0.9), **change) for change in ({"protocol": "soft"}, {"protocol": "dynamic-soft"})]
    fresh = result("ours", (0.8, 0.8), protocol="dynamic")
    real = [
        result(RANDOM_REAL, (0.5, 0.54)),
        result(RANDOM_REAL, (0.7, 0.72), protocol="soft"),
        result(RANDOM_REAL, (0.1, 0.1), ipc=50),
        result(RANDOM_REAL, (0.2, 0.2), network="vgg11"),
    ]
    measured = report(ours, *others, fresh, *real, result(FULL_DATA, ipc=None))
    gain = measured.gain(ours)
    assert gain.value == pytest.approx(0.65 - 0.52)
    assert gain.error == pytest.approx(((0.1**2 / 2) / 2 + (0.04**2 / 2) / 2) ** 0.5)
    assert [measured.gain(row).value for row in others] == [pytest.approx(0.9 - 0.71)] * 2
    assert measured.gain(fresh).value == pytest.approx(0.8 - 0.52)
    assert [measured.gain(row) for row in (*real, measured.results[-1])] == [None] * 5
    assert [row["gain"] for row in rows(measured.markdown())][:2] == [str(gain), "+19.0 ± 1.0"]
    assert report(ours).gain(ours) is None
    assert rows(report(ours).markdown())[0]["gain"] == "-"


def test_the_gain_of_several_generators_is_that_of_all_their_networks():
    ours = [result(accuracies=pair, generator_seed=seed) for seed, pair in enumerate([(0.6, 0.62), (0.7, 0.72)])]
    gain = report(*ours, result(RANDOM_REAL, (0.5, 0.5))).gain(ours[0])
    assert gain.value == pytest.approx(0.16)
    assert gain.error == pytest.approx(statistics.stdev([0.6, 0.62, 0.7, 0.72]) / 2)


def first_line(*results):
    return report(*results).markdown().splitlines()[0]


def test_the_first_line_says_whether_a_set_beats_random_real_images():
    values = {1: (0.8, 0.82), 10: (0.51, 0.55), 50: (0.3, 0.31), 100: (0.7, 0.71)}
    ours = [result(accuracies=accuracies, ipc=ipc) for ipc, accuracies in values.items()]
    real = [result(RANDOM_REAL, (0.5, 0.54), ipc=ipc) for ipc in values]
    assert first_line(*ours, *real) == (
        "Against random real images with hard labels: ours beats them at IPC 1 and 100, shows no difference at IPC 10 "
        "and loses to them at IPC 50."
    )
    assert first_line(result(accuracies=(0.9,)), *real) == (
        "Against random real images with hard labels: ours cannot be compared at IPC 10 (one network only, no error "
        "known)."
    )


def test_the_first_line_names_methods_labels_and_networks_apart():
    real = [result(RANDOM_REAL, (0.5, 0.51), protocol=protocol) for protocol in ("fixed", "soft")]
    good, bad = (0.8, 0.81), (0.2, 0.21)
    real.append(result(TEACHER, (0.9,), ipc=None, network="resnet18"))
    lines = first_line(result(accuracies=good), result("other", bad), result("other", good, protocol="soft"), *real)
    assert lines == (
        "Against random real images with hard labels: ours beats them at IPC 10; other loses to them at IPC 10. "
        "Against random real images with soft labels: other beats them at IPC 10."
    )
    real.append(result(RANDOM_REAL, (0.5, 0.51), network="vgg11"))
    assert "ours (convnet3) beats them at IPC 10; ours (vgg11) loses to them at IPC 10." in first_line(
        result(accuracies=good), result(accuracies=bad, network="vgg11"), *real
    )


def test_the_first_line_is_about_sets_alone():
    """Neither about real images nor about endless fresh ones."""
    real, table = result(RANDOM_REAL, (0.5, 0.51)), "| method | protocol |"
    assert first_line(result(HERDING, (0.9, 0.91)), real).startswith(table)
    assert first_line(result(accuracies=(0.9, 0.91), protocol="dynamic"), real).startswith(table)
    assert first_line(result()).startswith(table)
    assert [row["gain"] for row in rows(report(result(HERDING, (0.9, 0.91)), real).markdown())] == ["+40.0 ± 0.7", "-"]


def test_a_row_is_named_by_what_its_sampling_has_of_its_own():
    samplings = ("truncation=1.0, distilled=True", "truncation=1.0, distilled=False", None)
    named = [row["method"] for row in rows(report(*(result(sampling=each) for each in samplings)).markdown())]
    assert named == ["ours, distilled=True", "ours, distilled=False", "ours"]
    alone = rows(report(result(sampling=samplings[0]), result(RANDOM_REAL)).markdown())
    assert [row["method"] for row in alone] == ["ours", RANDOM_REAL]


# ---- bytes


def test_stored_names_the_parts_apart(tmp_path):
    parts = {"generator": 240 * 1024, "codes": 18 * 1024, "teacher": 90 * 1024}
    saved = report(
        result(stored_parts=parts, protocol="soft"),
        result(stored_parts={"generator": 240 * 1024}, stored_bytes=240 * 1024, protocol="dynamic"),
        result(RANDOM_REAL),
    )
    saved.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == saved
    assert [row["stored"] for row in rows(saved.markdown())] == [
        "2 KiB, or 18 KiB codes + 240 KiB generator + 90 KiB teacher",
        "240 KiB generator",
        "2 KiB",
    ]


def test_a_report_from_before_parts_were_named_is_read(tmp_path):
    path, saved = tmp_path / "report.json", report(result())
    content = asdict(saved)
    del content["results"][0]["stored_parts"]
    path.write_text(json.dumps(content))
    assert Report.load(path) == saved


def test_the_row_of_a_teacher_has_no_training_of_its_own():
    teacher = result(TEACHER, (0.98,), ipc=None, seeds=(), steps=0, distinct_images=0)
    row = rows(report(result(), result(RANDOM_REAL), teacher).markdown())[-1]
    assert (row["method"], row["IPC"], row["accuracy %"], row["nets"]) == (TEACHER, "all", "98.0", "1")
    assert (row["gain"], row["steps"], row["distinct images"]) == ("-", "-", "-")


def test_a_missing_baseline_with_soft_labels_is_named():
    for protocol in ("soft", "dynamic-soft"):
        row = result(protocol=protocol)
        (problem,) = report(row, result(RANDOM_REAL)).problems
        assert "soft labels of the same teacher" in problem
        assert not report(row, result(RANDOM_REAL, protocol="soft")).problems


# ---- protocols


def test_the_table_of_protocols():
    assert list(PROTOCOLS) == ["fixed", "soft", "dynamic", "dynamic-soft", "dynamic-best5-test", "dynamic-pool-m"]
    fresh = {"dynamic", "dynamic-soft", "dynamic-best5-test"}
    assert {name for name, protocol in PROTOCOLS.items() if protocol.fresh} == fresh
    assert {name for name, protocol in PROTOCOLS.items() if protocol.soft} == {"soft", "dynamic-soft"}
    assert {name for name, protocol in PROTOCOLS.items() if protocol.distilled} == {"fixed", "soft"}
    assert not find_protocol("dynamic-pool-1").distilled
    assert {name: protocol.looks for name, protocol in PROTOCOLS.items() if protocol.looks > 1} == {
        "dynamic-best5-test": 5
    }
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.summary
        assert "\n" not in protocol.summary
        assert len(protocol.summary) < 100


def test_protocols_are_found_by_name():
    for name in PROTOCOLS.keys() - {"dynamic-pool-m"}:
        assert find_protocol(name) is PROTOCOLS[name]
        assert find_protocol(name).sets == 1
    five = find_protocol("dynamic-pool-5")
    assert (five.name, five.sets, five.fresh, five.soft, five.looks) == ("dynamic-pool-5", 5, False, False, 1)
    assert find_protocol("dynamic-pool-99999").sets == 99_999


@pytest.mark.parametrize(
    "name", ["best", "", "Fixed", "dynamic-pool", "dynamic-pool-m", "dynamic-pool-0", "dynamic-pool-123456", "pool-3"]
)
def test_an_unknown_protocol_is_refused_with_those_there_are(name):
    known = "fixed, soft, dynamic, dynamic-soft, dynamic-best5-test, dynamic-pool-m"
    with pytest.raises(ValueError, match=f"Unknown protocol '{name}'; choose one of {known}.*dynamic-pool-5"):
        find_protocol(name)


def literals(tree):
    """Every string of a module but its docstrings, with its line."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.lineno, node.value


def test_no_other_module_spells_a_protocol():
    """They compare with the constants of `hf_gdd.report`, and read texts from its table."""
    name = re.compile(r"(?:^|['`\"])(?:fixed|soft|dynamic)(?:$|['`\"])|\bdynamic-(?:best|pool|soft)")
    assert name.search(FIXED)
    assert all(name.search(f"under `{each}`") for each in PROTOCOLS)
    found = {
        f"{path.name}:{line}"
        for path in SOURCES
        if path.name != "report.py"
        for line, text in literals(ast.parse(path.read_text()))
        if name.search(text)
    }
    assert not found
