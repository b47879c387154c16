"""Materialized sets as data sets of the Hub, which stock `load_dataset` reads."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import DatasetCard
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from hf_gdd.data.loading import merge_licenses
from hf_gdd.distilled.builder import load_distilled_dataset
from hf_gdd.generators.base import Generator
from hf_gdd.generators.checks import check_image_seed
from hf_gdd.hub.cards import dataset_card_text
from hf_gdd.hub.upload import PushError

RECORD = "hf_gdd"  # the key of the card's metadata that tells what made each configuration
BEGIN, END = "<!-- hf_gdd -->", "<!-- /hf_gdd -->"  # around our part of the card's text


def config_name(ipc: int, seed: int) -> str:
    """`ipc10`, or `ipc10-seed3` for another seed than 0."""
    return f"ipc{ipc}" if seed == 0 else f"ipc{ipc}-seed{seed}"


def push_distilled_dataset(
    generator: Generator,
    repo_id: str,
    *,
    ipc: int | Sequence[int],
    seed: int = 0,
    sampling: Any = None,
    private: bool | None = None,
    token: str | None = None,
    num_proc: int | None = None,
    overwrite: bool = False,
) -> str:
    """Materialise sets and push them to one repo, a configuration for each (ipc, seed), with a card on what made them.

    Configurations that are there stay; to push the same again changes nothing.

    Args:
        generator: makes the images.
        repo_id: of a data set repo; made if absent.
        ipc: images per class, one or several.
        seed: another one gives other images, in configurations of their own; not of a bank.
        sampling: overrides the generator's own.
        private: of a repo made here; the account's default if None.
        token: with write access; the logged-in one if None.
        num_proc: processes that make each set.
        overwrite: replace a configuration of other images.

    Returns:
        The repo's id.

    Raises:
        ValueError: ipc or seed do not fit, or a configuration of that name is there with images of another generator
            or sampling.
        PushError: configurations before the one named are complete; the message says what to do.

    """
    check_image_seed(generator, seed)
    sampling = sampling or generator.sampling
    sizes = (ipc,) if isinstance(ipc, int) else tuple(ipc)
    sets = {
        config_name(size, seed): load_distilled_dataset(
            generator, ipc=size, seed=seed, sampling=sampling, num_proc=num_proc
        )
        for size in sizes
    }
    made = {"generator": generator.origin, "fingerprint": generator.fingerprint[:16], "method": generator.method}
    made |= {"seed": seed, "sampling": sampling.identity()}
    try:
        there = _record(repo_id, token)
    except Exception as error:
        raise _failed(f"reading {repo_id}", error) from error
    for name in sets if not overwrite else ():
        if name in there and any(there[name].get(key) != made[key] for key in ("fingerprint", "sampling")):
            raise ValueError(
                f"{repo_id} already holds {name}, of other images ({there[name]}): choose another repo or seed, or "
                "overwrite=True."
            )
    for size, (name, data) in zip(sizes, sets.items(), strict=True):
        try:
            data.push_to_hub(repo_id, name, split="train", private=private, token=token, commit_message=f"Push {name}")
            _describe(repo_id, name, made | {"ipc": size, "images": len(data)}, generator, token)
        except Exception as error:  # of the Hub, of datasets, or whatever the HTTP client of the day raises
            raise _failed(f"the push of {name} to {repo_id}", error) from error
    return repo_id


def _failed(what: str, error: Exception) -> PushError:
    return PushError(
        f"Failed at {what}: {error} Log in with `hf auth login` or pass a token that may write there, check the name "
        "and the network, and push again: what is complete is not sent twice."
    )


def _record(repo_id: str, token: str | None) -> dict[str, Any]:
    """What made each configuration that is there, by its card."""
    try:
        return dict(DatasetCard.load(repo_id, token=token).data.get(RECORD) or {})
    except (EntryNotFoundError, RepositoryNotFoundError):
        return {}


def _describe(repo_id: str, name: str, made: dict[str, Any], generator: Generator, token: str | None) -> None:
    """Put what made this configuration into the card, beside what is there of others and by the owner's own hand."""
    card = DatasetCard.load(repo_id, token=token)  # datasets has just written one
    data = card.data
    data[RECORD] = dict(sorted((dict(data.get(RECORD) or {}) | {name: made}).items()))
    licenses = merge_licenses(data.get("license"), generator.license)
    data["license"] = licenses if len(licenses) > 1 else next(iter(licenses), None)
    data["task_categories"] = merge_licenses(data.get("task_categories"), "image-classification")
    data["annotations_creators"] = merge_licenses(data.get("annotations_creators"), "machine-generated")
    data["tags"] = merge_licenses(
        data.get("tags"), ["dataset-distillation", "generative-dataset-distillation", "synthetic"]
    )
    ours = f"{BEGIN}\n{dataset_card_text(repo_id, data[RECORD])}{END}"
    before, _, rest = card.text.partition(BEGIN)
    text = f"{before.strip()}\n\n{ours}{rest.partition(END)[2]}".lstrip()
    card = DatasetCard(f"---\n{data}\n---\n\n{text.rstrip()}\n")
    card.push_to_hub(repo_id, token=token, commit_message=f"Describe {name}")
