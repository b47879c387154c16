"""Cards say what a generator or a data set is, from its own record and the table of protocols."""

import re

import pytest
from huggingface_hub import ModelCard

from hf_gdd.hub.cards import PAPERS, dataset_card, generator_card
from hf_gdd.report import FULL_DATA, PROTOCOLS, RANDOM_REAL, Report, Result

CONFIG = {"class_names": ("ant", "bee"), "image_shape": (3, 16, 16), "fingerprint": "ours"}
SUMMARY = "Match class means of every prefix."


def card(report=None, config=None, **training):
    return generator_card("me/ours", CONFIG | {"training": training} | (config or {}), report)


def report(*protocols, **fields):
    row = {"network": "convnet3", "ipc": 10, "accuracies": (0.5, 0.7), "seeds": (0, 1), "steps": 10, "seconds": 1.0}
    row |= {"distinct_images": 20, "stored_bytes": 10, "generator_seed": 0, "generator": "ours"}
    results = [Result(name="mine", protocol=protocol, **row) for protocol in protocols]
    results += [Result(name=RANDOM_REAL, protocol="fixed", **row | {"generator": None, "generator_seed": None})]
    return Report(tuple(results), "me/images@abc:train (1)", "me/images@abc:test (2)", {}, "real", "CPU", **fields)


def settings(text):
    table = text[text.index("| setting |") :].split("\n\n")[0]
    return dict(re.split(r"(?<!\\)\|", line)[1:3] for line in table.splitlines()[2:])


def test_paper_and_summary_come_from_the_generators_own_record():
    text = card(method="mine", paper="2501.01234", summary=SUMMARY, seed=3)
    line = "by the method `mine` ([paper](https://arxiv.org/abs/2501.01234)): match class means of every prefix."
    assert line in text
    assert settings(text) == {" method ": " mine ", " seed ": " 3 "}


@pytest.mark.parametrize("method", PAPERS)
def test_records_of_earlier_versions_have_the_papers_of_then(method):
    assert f"by the method `{method}` ([paper](https://arxiv.org/abs/{PAPERS[method]}))." in card(method=method)
    assert "https://arxiv.org/abs/1" in card(method=method, paper="1")


def test_a_method_without_paper_and_summary_is_named_alone():
    assert "by the method `mine`.\n" in card(method="mine")
    assert "by the method `untrained`.\n" in card()


def test_a_record_cannot_add_lines_links_or_cells():
    text = card(method="mine", paper="1) [x](evil", summary="One\n\n# Two", note="a | b\n| c", lists=[1, 2], unset=None)
    assert "evil" not in text
    assert "mine`: one # Two\n" in text
    assert settings(text) == {" method ": " mine ", " note ": r" a \| b \| c ", " lists ": " 1, 2 "}


def test_the_protocols_of_the_report_are_explained_by_their_records_and_no_others():
    asked = ["fixed", "dynamic", "dynamic-pool-5", "of a later version"]
    text = card(report(*asked), method="mine")
    explained = re.findall(r"^- `(.*)`: (.*)\.$", text, re.MULTILINE)
    assert [name for name, _ in explained] == asked[:3]
    assert explained[:2] == [(name, PROTOCOLS[name].summary) for name in asked[:2]]
    assert all(part in text for part in report(*asked).markdown().split("\n\n"))


def test_a_generator_that_was_not_evaluated_says_so():
    text = card(method="mine")
    assert "Not evaluated yet. Run `hf-gdd evaluate`" in text
    assert not ModelCard(text).data.eval_results


def test_the_model_index_has_the_generators_own_rows_of_valid_reports_alone():
    (result,) = ModelCard(card(report("fixed"), method="mine")).data.eval_results
    assert (result.dataset_name, result.dataset_revision, result.dataset_split) == ("me/images", "abc", "test")
    assert (result.metric_value, result.metric_args["protocol"]) == (0.6, "fixed")
    weak = report("fixed").results[0].__dict__ | {"name": FULL_DATA, "generator": None, "accuracies": (0.1,)}
    invalid = Report.from_dict(report("fixed").__dict__ | {"results": [weak], "recipe": {"floor": 0.9}})
    assert not ModelCard(card(invalid)).data.eval_results
    assert not ModelCard(card(report("fixed"), {"fingerprint": "other"})).data.eval_results


def test_licence_and_source_of_the_data_are_handed_on():
    data = ModelCard(card(source="me/images@abc:train", license=["mit", "cc0-1.0"])).data
    assert (data.license, data.datasets, data.library_name) == (["mit", "cc0-1.0"], ["me/images"], "hf_gdd")
    assert "`mit`, `cc0-1.0`, the license of the source" in card(license=["mit", "cc0-1.0"])
    assert "The source named no license" in card(source="images:train")
    assert ModelCard(card(source="images:train")).data.datasets is None


def test_a_bank_explains_its_soft_labels():
    bank = {"ipc": 10, "teacher": {"network": "convnet3", "accuracy": None, "zca": True}}
    text = card(config=bank, method="mine", start="real")
    for part in (
        "A bank of images",
        "10 of each class",
        "a `convnet3` trained",
        "zca=True",
        "label_images(images, input",
    ):
        assert part in text
    assert "Every image started as a real training image" in text
    assert "correctly" not in text
    hard = card(config=bank | {"teacher": None}, method="mine")
    assert "soft_label" not in hard
    assert "Images may closely resemble" in hard


def test_a_generator_explains_its_codes_and_its_teacher():
    parts = {"distilled_ipc": 7, "teacher": {"network": "convnet3", "accuracy": 0.98765, "zca": False}}
    text = " ".join(card(config=parts, method="mine").split())
    for part in (
        "The first 7 images of each class are distilled",
        "a `convnet3` trained on the real data, which classifies 98.8 % of the real training images correctly",
        "a stream has them too",
        "`generator.label_images(images)`",
        "`sampling=Sampling(distilled=False)`",
    ):
        assert part in text
    assert "ZCA" not in text
    plain = card(config={"distilled_ipc": 0, "teacher": None}, method="mine")
    assert plain == card(method="mine")
    assert "istilled images" not in plain
    assert "soft_label" not in plain


def test_the_card_of_a_data_set_says_how_many_images_are_distilled():
    record = {"generator": None, "fingerprint": "0", "method": "mine", "seed": 0, "sampling": {}, "images": 60}
    records = {"ipc10": record | {"ipc": 10, "distilled": 5}, "ipc3": record | {"ipc": 3}}
    text = dataset_card("me/sets", records)
    assert "| configuration | IPC | distilled | images |" in text
    assert "| `ipc10` | 10 | 5 | 60 |" in text
    assert "| `ipc3` | 3 | 0 | 60 |" in text
    assert "as many as `distilled` says, are distilled" in text
    assert "distilled |" not in dataset_card("me/sets", {"ipc3": record | {"ipc": 3, "distilled": 0}})


def test_the_card_of_a_data_set_lists_its_configurations():
    record = {"generator": "me/gan@abc", "fingerprint": "0123", "method": "mine", "seed": 0, "ipc": 2, "images": 2000}
    record["sampling"] = {"truncation": 1.0, "other": 2}
    text = dataset_card("me/sets", {"ipc2": record, "ipc5-seed3": record | {"generator": None, "ipc": 5, "seed": 3}})
    assert text.startswith("# sets\n")
    assert 'load_dataset("me/sets", "ipc2", split="train")' in text
    assert "| `ipc2` | 2 | 2,000 | 0 | truncation=1.0, other=2 | me/gan@abc (mine, 0123) |" in text
    assert "| `ipc5-seed3` | 5 | 2,000 | 3 | truncation=1.0, other=2 | unpublished (mine, 0123) |" in text
    for name in ("fixed", "soft"):
        assert PROTOCOLS[name].summary in text
