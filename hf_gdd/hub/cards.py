"""Write the README.md of a generator's repo, and of a data set that it made."""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template

from hf_gdd.report import FIXED, PROTOCOLS, SOFT, Protocol, Report, find_protocol, markdown_table

# Papers on arXiv, for records of versions that did not name them.
PAPERS = {"global-local": "2404.17732", "dim": "2303.04707"}
PAPERS |= {"self-adaptive": "2505.19469", "minimax": "2311.15529", "dit": "2212.09748"}
PAPERS |= {"prediction-matching": "2312.08912"}
_PAPER = re.compile(r"[\w./-]+")
_SOURCE = re.compile(r"(?P<name>.+?)(@(?P<revision>\w+))?(:(?P<split>[^: ]+))?( \(\w+\))?")


def generator_card(repo: str, config: Mapping[str, Any], report: Report | None = None) -> str:
    """Return the card of a generator, with a model-index of its results.

    Args:
        repo: argument of `load_distilled_dataset`: a repo id or a folder.
        config: of the generator: class_names, image_shape, training and, if it has them, distilled_ipc and teacher; of
            a bank also ipc.
        report: results, if it was evaluated.

    """
    training = dict(config.get("training") or {})
    source, license = training.pop("source", "an unnamed data set"), training.pop("license", None)
    method = training.get("method", "untrained")
    paper, summary = training.pop("paper", PAPERS.get(method)), training.pop("summary", None)
    origin = _parse(source)
    data = ModelCardData(
        library_name="hf_gdd",
        pipeline_tag="unconditional-image-generation",
        tags=["dataset-distillation", "generative-dataset-distillation", method],
        license=license,
        datasets=[origin["name"]] if origin["revision"] else None,  # only data sets of the Hub have a commit
        model_name=repo.split("/")[-1],
        eval_results=(list(_results(report, config.get("fingerprint"))) if report else []) or None,
    )
    channels, height, width = config["image_shape"]
    return ModelCard.from_template(
        data,
        template_str=_template("model_card"),
        repo=repo,
        name=data.model_name,
        source=source,
        license=license,
        method=method,
        paper=paper if _PAPER.fullmatch(str(paper or "")) else None,
        summary=" ".join(summary.split()) if isinstance(summary, str) else None,
        pipeline_class=_pipeline_class(config),
        ipc=config.get("ipc"),
        distilled_ipc=config.get("distilled_ipc"),
        teacher=config.get("teacher"),
        class_names=config["class_names"],
        size=f"{width}x{height} pixels, {'gray' if channels == 1 else 'color'}",
        results=report.markdown() if report else None,
        protocols=list(_protocols(report)) if report else [],
        shared_draws=report is not None and report.shared_draws,
        start=training.get("start"),
        settings=markdown_table(["setting", "value"], _settings(training)),
        versions={name: version(name) for name in ("hf_gdd", "torch", "diffusers")},
    ).content


def dataset_card(repo: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text under the metadata of a materialized data set's card.

    Args:
        repo: id of the data set.
        records: for each configuration its generator, fingerprint, method, seed, sampling, ipc, images and number of
            distilled images per class.

    """
    distilled = {name: row.get("distilled", 0) for name, row in records.items()}
    rows = [
        [
            f"`{name}`",
            str(row["ipc"]),
            *([str(distilled[name])] if any(distilled.values()) else []),
            f"{row['images']:,}",
            str(row["seed"]),
            ", ".join(f"{key}={value}" for key, value in row["sampling"].items()),
            f"{row['generator'] or 'unpublished'} ({row['method']}, {row['fingerprint']})",
        ]
        for name, row in records.items()
    ]
    header = ["configuration", "IPC", *(["distilled"] if any(distilled.values()) else []), "images", "seed"]
    header += ["sampling", "generator"]
    return Template(_template("dataset_card"), keep_trailing_newline=True).render(
        repo=repo,
        name=repo.split("/")[-1],
        first=next(iter(records)),
        table=markdown_table(header, rows),
        distilled=any(distilled.values()),
        fixed=PROTOCOLS[FIXED],
        soft=PROTOCOLS[SOFT],
    )


def merge_licenses(*licenses: str | list[str] | None) -> str | list[str] | None:
    """Return all licenses as a card names them: none, one, or a list of several."""
    merged = merge_values(*licenses)
    return merged if len(merged) > 1 else next(iter(merged), None)


def merge_values(*values: str | list[str] | None) -> list[str]:
    """Return all values of a card's field, each once, in order."""
    lists = [[value] if isinstance(value, str) else value or [] for value in values]
    return list(dict.fromkeys(item for items in lists for item in items))


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / f"{name}.md.jinja").read_text(encoding="utf-8")


def _pipeline_class(config: Mapping[str, Any]) -> str | None:
    """Return the first class as its pipeline names it; None if there is no pipeline."""
    if "class_rows" not in config:
        return None
    known = config.get("known_classes") or {}
    return known.get(str(config["class_rows"][0]), config["class_names"][0]).split(",")[0].strip()


def _parse(source: str) -> dict[str, str | None]:
    """Split a source such as "me/images@<sha>:train" into name, revision and split."""
    match = _SOURCE.fullmatch(source)
    return match.groupdict() if match else {"name": source, "revision": None, "split": None}


def _protocols(report: Report) -> Iterator[Protocol]:
    """Yield the protocols of a report, except those that this version does not know."""
    for name in dict.fromkeys(result.protocol for result in report.results):
        try:
            yield find_protocol(name)
        except ValueError:
            continue


def _settings(training: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of the table of settings, without those that are not set."""
    for name, value in training.items():
        if value not in (None, [], ()):
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield [name, " ".join(text.split()).replace("|", "\\|")]


def _results(report: Report, fingerprint: str | None) -> Iterator[EvalResult]:
    """Yield the generator's own rows, unless the recipe is invalid."""
    test = _parse(report.test)
    for result in report.results if report.valid is not False else ():
        if result.generator is None or result.generator != fingerprint:
            continue  # baselines, or another generator
        yield EvalResult(
            task_type="image-classification",
            dataset_type=test["name"],
            dataset_name=test["name"],
            dataset_split=test["split"],
            dataset_revision=test["revision"],
            metric_type="accuracy",
            metric_value=round(result.mean, 4),
            metric_name=f"accuracy of {result.network} on {result.ipc} images per class, {result.protocol}",
            metric_args={
                "protocol": result.protocol,
                "ipc": result.ipc,
                "sampling": result.sampling,
                "network": result.network,
                "networks_trained": len(result.accuracies),
                "std": round(result.std, 4),
                "seeds": list(result.seeds),
            },
        )
