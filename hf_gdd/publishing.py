"""Materialised sets as data sets of the Hub, which stock `load_dataset` reads."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import DatasetCard

from hf_gdd.builder import load_distilled_dataset
from hf_gdd.card import dataset_text
from hf_gdd.generators.base import Generator
from hf_gdd.hub import PushError

RECORD = "hf_gdd"  # the key of the card's metadata that tells what made each configuration


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
) -> str:
    """Materialise sets and push them to one repo, a configuration for each (ipc, seed), with a card on what made them.

    Configurations that are there stay; to push the same again changes nothing.

    Args:
        generator: makes the images.
        repo_id: of a data set repo; made if absent.
        ipc: images per class, one or several.
        seed: another one gives other images, in configurations of their own.
        sampling: overrides the generator's own.
        private: of a repo made here; the account's default if None.
        token: with write access; the logged-in one if None.
        num_proc: processes that make each set.

    Returns:
        The repo's id.

    Raises:
        ValueError: ipc or seed do not fit.
        PushError: configurations before the one named are complete; the message says what to do.

    """
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
    for size, (name, data) in zip(sizes, sets.items(), strict=True):
        try:
            data.push_to_hub(repo_id, name, split="train", private=private, token=token, commit_message=f"Push {name}")
            _describe(repo_id, name, made | {"ipc": size, "images": len(data)}, generator, token)
        except Exception as error:  # of the Hub, of datasets, or whatever the HTTP client of the day raises
            raise PushError(
                f"The push of {name} to {repo_id} failed: {error} Log in with `hf auth login` or pass a token that may "
                "write there, check the name and the network, and push again: what is complete is not sent twice."
            ) from error
    return repo_id


def _describe(repo_id: str, name: str, made: dict[str, Any], generator: Generator, token: str | None) -> None:
    """Put what made this configuration into the card, beside what is there of others."""
    data = DatasetCard.load(repo_id, token=token).data  # datasets has just written one
    record = dict(data.get(RECORD) or {}) | {name: made}
    data[RECORD] = dict(sorted(record.items()))
    data["license"] = generator.license
    data["task_categories"] = ["image-classification"]
    data["annotations_creators"] = ["machine-generated"]
    data["tags"] = ["dataset-distillation", "generative-dataset-distillation", "synthetic"]
    card = DatasetCard(f"---\n{data}\n---\n\n{dataset_text(repo_id, data[RECORD])}")
    card.push_to_hub(repo_id, token=token, commit_message=f"Describe {name}")
