"""The README.md of a generator's repo: what it is, how to use it, what it is worth. Facts in, text out."""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_gdd.report import Report

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
# On arXiv.
PAPERS = {"global-local": "2404.17732", "dim": "2303.04707"}
PAPERS |= {"self-adaptive": "2505.19469", "minimax": "2311.15529", "dit": "2212.09748"}
PAPERS |= {"prediction-matching": "2312.08912"}
_SOURCE = re.compile(r"(?P<name>.+?)(@(?P<revision>\w+))?(:(?P<split>[^: ]+))?( \(\w+\))?")


def generator_card(repo: str, config: Mapping[str, Any], report: Report | None = None) -> str:
    """The card, with a model-index of one result per protocol, IPC and network.

    Args:
        repo: what `load_distilled_dataset` is to be given, a repo id or a folder.
        config: of the generator: class_names, image_shape and training; of a bank also ipc, teacher and zca.
        report: what it is worth, if it was evaluated.

    """
    training = dict(config.get("training") or {})
    source, license = training.pop("source", "an unnamed data set"), training.pop("license", None)
    method = training.get("method", "untrained")
    origin = _parse(source)
    data = ModelCardData(
        library_name="hf_gdd",
        pipeline_tag="unconditional-image-generation",
        tags=["dataset-distillation", "generative-dataset-distillation", method],
        license=license,
        datasets=[origin["name"]] if origin["revision"] else None,  # only the Hub's have a commit
        model_name=repo.split("/")[-1],
        eval_results=(list(_results(report, config.get("fingerprint"))) if report else []) or None,
    )
    channels, height, width = config["image_shape"]
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo=repo,
        name=data.model_name,
        source=source,
        license=license,
        method=method,
        pipeline_class=_pipeline_class(config),
        paper=PAPERS.get(method),
        held=config.get("ipc"),
        soft=config.get("teacher"),
        zca=config.get("zca", False),
        class_names=config["class_names"],
        size=f"{width}x{height} pixels, {'gray' if channels == 1 else 'color'}",
        table=report.markdown() if report else None,
        shared_draws=report is not None and report.shared_draws,
        settings=training,
        versions={name: version(name) for name in ("hf_gdd", "torch", "diffusers")},
    ).content


def _pipeline_class(config: Mapping[str, Any]) -> str | None:
    """What a diffusers pipeline calls the first class, if the generator is one."""
    if "class_rows" not in config:
        return None
    known = config.get("known_classes") or {}
    return known.get(str(config["class_rows"][0]), config["class_names"][0]).split(",")[0].strip()


def _parse(source: str) -> dict[str, str | None]:
    """Name, revision and split of a source such as "uoft-cs/cifar10@<sha>:train"."""
    found = _SOURCE.fullmatch(source)
    return found.groupdict() if found else {"name": source, "revision": None, "split": None}


def _results(report: Report, fingerprint: str | None) -> Iterator[EvalResult]:
    """The generator's own rows, unless the recipe is invalid; a report may hold others beside them."""
    test = _parse(report.test)
    for result in report.results if report.valid is not False else ():
        if result.generator is None or result.generator != fingerprint:
            continue
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


def dataset_card_text(repo: str, made: Mapping[str, Mapping[str, Any]]) -> str:
    """The text under the metadata of a materialized data set's card.

    Args:
        repo: id of the data set.
        made: for each configuration its generator, fingerprint, method, seed, sampling, ipc and images.

    """
    first = next(iter(made))
    rows = [
        f"| `{name}` | {row['ipc']} | {row['images']:,} | {row['seed']} | "
        f"{', '.join(f'{key}={value}' for key, value in row['sampling'].items())} | "
        f"{row['generator'] or 'unpublished'} ({row['method']}, {row['fingerprint']}) |"
        for name, row in made.items()
    ]
    table = "\n".join(["| configuration | IPC | images | seed | sampling | generator |", "| --- " * 6 + "|", *rows])
    return f"""# {repo.split("/")[-1]}

Synthetic training images, made by a generator that was distilled from a real data set. `IPC` is images per class.
Image i of a class depends on generator, seed, class and i alone, so of two configurations with one generator, seed and
sampling the smaller is the beginning of the larger, class by class.

```python
from datasets import load_dataset

train = load_dataset("{repo}", "{first}", split="train")
```

{table}

To train on such a fixed set is the protocol `fixed` of hf_gdd, or `soft` where a column `soft_label` holds a teacher's
logits to be predicted instead of the label; a network is then tested on real images. The generator's card says what
accuracy to expect, beside random real images of the same number. The images are no anonymization of the real ones,
repeat their biases, and may show something else than their label says.
"""
