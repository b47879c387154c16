"""The list of stored generators is complete and true."""

import re
from pathlib import Path

from hf_gdd import AutoGenerator

CARDS = Path(__file__).parents[2] / "model_cards"
LIST = (CARDS / "README.md").read_text()


def test_every_generator_is_listed_with_its_bytes():
    assert len(LIST.splitlines()) <= 60
    row = r"^\| \[(.+?)\]\((.+?)/README.md\) \|.*?\| ([\d,]+) \| `load_distilled_dataset\(\"(.+?)\""
    listed = re.findall(row, LIST, re.MULTILINE)
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        for folder in CARDS.iterdir()
        if folder.is_dir()
    }
    assert {name: int(size.replace(",", "")) for name, _, size, _ in listed} == sizes
    assert all((folder, place) == (name, f"model_cards/{name}") for name, folder, _, place in listed)


def test_every_generator_has_weights_card_report_and_samples():
    for folder in (path for path in CARDS.iterdir() if path.is_dir()):
        assert {"README.md", "config.json", "report.json", "grid.png"} <= {path.name for path in folder.iterdir()}
        generator = AutoGenerator.from_pretrained(folder)
        assert generator.fingerprint in {row.generator for row in generator.report.results}, folder
