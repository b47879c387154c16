"""README and docs are true: their code runs, their tables are those of the library, their links lead somewhere."""

import importlib
import re
import shutil
from dataclasses import fields, is_dataclass

import pytest
from docs_pages import ROOT, blocks, commands, hf_gdd_arguments, run_page

import hf_gdd
from hf_gdd import AutoGenerator, Report
from hf_gdd.methods.registry import all_methods
from hf_gdd.report import PROTOCOLS
from hf_gdd.utils.comparison import verdicts

README = "README.md"
GENERATED = {"docs/results.md", "docs/benchmark.md"}  # by scripts
DOCS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
API = {page for page in DOCS if page.startswith("docs/api/")}
WRITTEN = sorted({README} | DOCS - GENERATED - API)
CARDS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "model_cards").rglob("README.md"))
WITH_CODE = [page for page in WRITTEN if any(block.language in ("python", "bash") for block in blocks(page))]

# Pages whose commands are run; those of the others are parsed.
COMMANDS_RUN = {"docs/quickstart.md", "docs/hub.md", "docs/adding.md", "docs/distributed.md"}
REPLACED = {"docs/diffusion.md": {"num_inference_steps=50": "num_inference_steps=2"}}
# What a page leaves in its scope, as it says in words or comments.
LEFT = {
    "docs/concepts.md": {"place": {"epoch": 2, "position": 0}},
}


@pytest.fixture(scope="module")
def token(shared_hub):
    return shared_hub.add_user("me")


@pytest.fixture(scope="module")
def processes():
    return []


@pytest.fixture
def reader(processes, shared_client, token):
    """A process with an empty cache and a Hub of its own: that of the page before, unless it is gone."""
    if not (processes and processes[-1].process.is_alive()):
        processes.append(shared_client(token))
    return processes[-1]


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs(page, reader, tmp_path):
    if page == "docs/hub.md":  # which goes on where the quickstart ends
        shutil.copytree(ROOT / "model_cards/digits", tmp_path / "runs/digits/generator")
    scope = reader.run(run_page, page, tmp_path, page in COMMANDS_RUN, REPLACED.get(page))
    assert LEFT.get(page, {}).items() <= scope.items()


def test_code_that_is_not_run_has_a_reason():
    notes = [(page, block.note) for page in WRITTEN for block in blocks(page) if block.note]
    assert all(re.fullmatch(r"not run: \w.{10,}|needs: \w+", note) for _, note in notes), notes
    assert ("docs/own-data.md", "needs: transformers") in notes


@pytest.mark.parametrize(
    ("page", "block"), [(page, block) for page in WRITTEN for block in blocks(page) if block.needs]
)
def test_code_that_needs_another_package(page, block, tmp_path, monkeypatch):
    pytest.importorskip(block.needs, reason=f"{block.needs} is not a dependency; install it to run this")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    exec(block.code, {})


def test_the_runner_sees_what_it_should():
    """A page that is not read would pass every test."""
    assert {README, "docs/quickstart.md", "docs/adding.md", "docs/own-data.md"} <= set(WITH_CODE)
    assert [block.title for block in blocks("docs/adding.md") if block.title] == ["my_method.py", "my_generator.py"]
    found = commands("A=1 torchrun --n 2 \\\n  hf-gdd distill --x 1  # two\ncd y && hf-gdd push a b\n")
    assert [hf_gdd_arguments(command) for command in found] == [["distill", "--x", "1"], None, ["push", "a", "b"]]


VERBS = ("distill", "materialize", "evaluate", "push", "show", "env")


def test_options_named_in_the_text_exist():
    verbs = [importlib.import_module(f"hf_gdd.cli.{name}") for name in VERBS]
    known = [value for verb in verbs for value in vars(verb).values() if isinstance(value, type)]
    known = [*filter(is_dataclass, known), *(method.config_class for method in all_methods().values())]
    known = {"--" + field.name.replace("_", "-") for kind in known for field in fields(kind)} | {"--help"}
    for page in WRITTEN:
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            options = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", code))
            if script := re.search(r"scripts/\S+\.py", code):
                source = (ROOT / script[0]).read_text()
                assert all(option[2:].replace("-", "_") in source for option in options), (page, code)
            else:
                assert options - {"--strict"} <= known, (page, code)


# ---- tables


def rows(page, header):
    """The rows of the table with this header, as lists of cells; of the first one."""
    lines = (ROOT / page).read_text().splitlines()
    start = lines.index(header) + 2
    end = next(i for i in range(start, len(lines) + 1) if i == len(lines) or not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


@pytest.mark.parametrize("page", [README, "docs/methods.md"])
def test_the_table_of_methods_is_the_registry(page):
    expected = {
        (
            f"`{method.name}`",
            method.summary,
            f"[arXiv {method.paper}](https://arxiv.org/abs/{method.paper})" * bool(method.paper) or "-",
        )
        for method in all_methods().values()
        if method.config_class.__module__.startswith("hf_gdd.")
    }
    assert {tuple(row) for row in rows(page, "| method | what it does | paper |")} == expected


def test_the_table_of_protocols_is_that_of_the_library():
    expected = [[f"`{x.name}`", x.summary, str(x.looks)] for x in PROTOCOLS.values()]
    assert rows("docs/evaluation.md", "| protocol | meaning | tests |") == expected


def test_every_recipe_and_preset_is_listed():
    from hf_gdd.classifiers.recipes import RECIPES
    from hf_gdd.methods.global_local.config import PRESETS

    assert [row[0] for row in rows("docs/evaluation.md", "| recipe | for |")] == [f"`{name}`" for name in RECIPES]
    table = rows("docs/quickstart.md", "| preset | width | for |")
    assert [row[:2] for row in table] == [[f"`{name}`", str(preset.width)] for name, preset in PRESETS.items()]


# Rows of tables: name in the report, and whether its images are distilled, if it can have such images.
ROWS = {
    "random real images": ("random-real", None),
    "all real images": ("full data", None),
    "herding of real images": ("herding", None),
    "global-local, distilled": ("global-local", True),
    "global-local, plain draws": ("global-local", False),
    "cgan, plain draws": ("cgan", None),
    "dim, plain draws": ("dim", None),
    "dit, the control": ("dit", None),
}


def find(report, row, protocol, ipc, network="convnet2"):
    """The result that a row of a table shows, of which there must be one."""
    name, distilled = ROWS.get(row, (row, None))
    found = report.find(name, protocol=protocol, ipc=ipc, network=network)
    (result,) = (x for x in found if distilled is None or f"distilled={distilled}" in x.sampling)
    return result


def accuracy(report, row, protocol, ipc, network="convnet2"):
    result = find(report, row, protocol, ipc, network)
    assert len(result.accuracies) == 3 or (result.name == "random-real" and ipc == 10)
    return f"{100 * result.mean:.1f} ± {100 * result.std:.1f}"


def check_cells(printed, report, row, protocol, ipcs):
    """Compare the cells of a row, one for each IPC, with a report; `-` is for what was not measured."""
    assert any(cell != "-" for cell in printed)
    for cell, ipc in zip(printed, ipcs, strict=True):
        assert cell == "-" or cell == accuracy(report, row, protocol, ipc)


def test_the_numbers_of_the_readme_are_those_of_the_report():
    report = Report.load(ROOT / "model_cards/digits/report.json")
    for name, labels, *printed in rows(README, "| trained on | labels | IPC 1 | IPC 10 | IPC 50 |"):
        protocol = {"hard": "fixed", "soft": "soft"}[labels]
        check_cells(printed, report, name, protocol, (1, 10, 50))
    check_what_the_digits_show(README, report)


def check_what_the_digits_show(page, report):
    """Full data, the verdict, and the number of networks of a page that shows the table of the digits."""
    text = " ".join((ROOT / page).read_text().split())
    assert f"images give {accuracy(report, 'full data', 'fixed', None)}. Against random" in text
    gains = {ipc: report.gain(find(report, "global-local, distilled", "fixed", ipc)) for ipc in (1, 10, 50)}
    assert f"Against random real images with hard labels, the distilled set {verdicts(gains, 'IPC')}." in text
    assert "n = 3 networks, 20 for random real images at IPC 10" in text
    counts = [len(find(report, "random real images", "fixed", ipc).accuracies) for ipc in (1, 10, 50)]
    assert counts == [3, 20, 3]


def test_what_the_methods_page_says_of_the_digits_is_so():
    report = Report.load(ROOT / "model_cards/digits/report.json")
    check_what_the_digits_show("docs/methods.md", report)
    text = " ".join((ROOT / "docs/methods.md").read_text().split())
    row = find(report, "global-local, plain draws", "dynamic", 10)
    printed = accuracy(report, "global-local, plain draws", "dynamic", 10)
    assert f"bring plain draws to {printed} at IPC 10" in text
    assert f"then sees {row.distinct_images:,} different images" in text


@pytest.mark.parametrize(
    ("card", "header"),
    [
        ("digits", "| trained on | protocol | IPC 1 | IPC 10 | IPC 50 |"),
        ("digits-memory", "| trained on | IPC 10 | IPC 50 |"),
        ("digits-matching", "| trained on | protocol | IPC 1 | IPC 7 | IPC 10 | IPC 14 |"),
    ],
)
def test_the_numbers_of_the_methods_page_are_those_of_the_reports(card, header):
    report = Report.load(ROOT / f"model_cards/{card}/report.json")
    columns = [int(cell.split()[1]) for cell in header.split("|") if "IPC" in cell]
    for name, *cells in rows("docs/methods.md", header):
        protocol, printed = (cells[0], cells[1:]) if "protocol" in header else ("fixed", cells)
        check_cells(printed, report, name, protocol, columns)


def test_the_numbers_of_the_image_bank_page_are_those_of_the_report():
    report = Report.load(ROOT / "model_cards/fashion_mnist-matching/report.json")
    for name, *printed in rows("docs/image-bank.md", "| trained on | soft | fixed |"):
        assert printed == [accuracy(report, name, protocol, 10, "convnet3") for protocol in ("soft", "fixed")]
    text = " ".join((ROOT / "docs/image-bank.md").read_text().split())
    one = [report.find(name, network="resnet10-dd", ipc=10) for name in ("prediction-matching", "random-real")]
    (hard, soft), (real_hard, real_soft) = ([f"{100 * row.mean:.1f}" for row in pair] for pair in one)
    assert f"{soft} on the bank and {real_soft} on random real images under `soft`, and {hard} and {real_hard}" in text


# ---- pages


def test_the_readme_is_short():
    assert len((ROOT / README).read_text().splitlines()) <= 150


def anchors(page):
    """The anchors that mkdocs gives the headings of a page."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", sorted({README, *DOCS, *CARDS}))
def test_every_link_of_a_page_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_every_page_is_in_the_navigation_and_can_be_reached_from_the_readme():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS:
        assert f": {page.removeprefix('docs/')}\n" in navigation, page
    for page in DOCS - API - {"docs/index.md", "docs/benchmark.md"}:
        assert f"({page})" in (ROOT / README).read_text(), page


def test_every_public_name_has_its_api_entry():
    entries = set(re.findall(r"^::: (\S+)$", "\n".join((ROOT / page).read_text() for page in API), re.MULTILINE))
    for entry in entries:
        module, _, name = entry.rpartition(".")
        assert entry in importlib.sys.modules or hasattr(importlib.import_module(module), name), entry
    public = {*hf_gdd._public_names(), *hf_gdd._method_classes()}
    assert public <= {entry.rpartition(".")[2] for entry in entries}
    overview = (ROOT / "docs/api/index.md").read_text()
    assert all(f"`{name}`" in overview for name in hf_gdd._public_names())


def test_nothing_is_left_to_fill_in():
    scripts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").rglob("*.py")}
    for page in {*WRITTEN, *DOCS, *scripts}:
        assert not re.search(r"HEADER|RESULT\b|TODO|XXX|FIXME", (ROOT / page).read_text()), page


def test_pages_speak_of_the_project_alone():
    for page in {*WRITTEN, *DOCS, *CARDS}:
        assert not re.search(r"/work\b|/tmp\b|/root\b", (ROOT / page).read_text()), page


# ---- generators that come with the repository


@pytest.mark.parametrize("card", [card for card in CARDS if card != "model_cards/README.md"])
def test_the_table_of_a_card_is_that_of_its_report(card):
    text, report = (ROOT / card).read_text(), Report.load((ROOT / card).parent / "report.json")
    tables = [part for part in report.markdown().split("\n\n") if part.startswith("|")]
    assert tables
    assert all(table in text for table in tables)


@pytest.mark.parametrize("name", ["digits", "digits-memory", "digits-matching"])
def test_the_code_of_a_card_runs(name, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.chdir(ROOT)
    generator = AutoGenerator.from_pretrained(f"model_cards/{name}")
    assert generator.report is not None
    scope = {}
    exec(blocks(f"model_cards/{name}/README.md")[0].code, scope)
    assert len(scope["train"]) == 100
