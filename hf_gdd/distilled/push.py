"""Push materialized sets to the Hub, where `datasets.load_dataset` reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCard
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from hf_gdd.distilled.builder import load_distilled_dataset
from hf_gdd.generators.base import Generator
from hf_gdd.generators.checks import check_image_seed
from hf_gdd.generators.sampling import present_names
from hf_gdd.hub.cards import dataset_card, merge_licenses, merge_values
from hf_gdd.hub.redaction import printable_cause, redact
from hf_gdd.hub.upload import PushError

RECORD = "hf_gdd"  # key of the card's metadata with the origin of each configuration
BEGIN, END = "<!-- hf_gdd -->", "<!-- /hf_gdd -->"  # around our part of the card's text


def config_name(ipc: int, seed: int) -> str:
    """Return a configuration's name: `ipc10`, or `ipc10-seed3` for seed 3."""
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
    """Materialize sets and push them to one data set repo with a card.

    Each (ipc, seed) is a configuration of the repo. Other configurations stay, and pushing the same again changes
    nothing.

    Example:
        push_distilled_dataset(generator, "me/cifar10-sets", ipc=[1, 10, 50])
        train = datasets.load_dataset("me/cifar10-sets", "ipc10", split="train")

    Args:
        generator: makes the images.
        repo_id: id of the data set repo; it is created if absent.
        ipc: images per class, one number or several.
        seed: another seed gives other images, in configurations of their own; a bank has only seed 0.
        sampling: overrides the generator's own.
        private: visibility of a repo created here; the account's default if None.
        token: access token with write permission; the logged-in one if None.
        num_proc: number of processes that make each set.
        overwrite: replace a configuration that has other images.

    Returns:
        The repo's id.

    Raises:
        ValueError: ipc or seed do not fit, or the repo has a configuration of that name with images of another
            generator or sampling.
        PushError: configurations before the one named are complete; the message says what to do.

    """
    check_image_seed(generator, seed)
    sampling = generator.choose_sampling(sampling)
    sizes = (ipc,) if isinstance(ipc, int) else tuple(ipc)
    sets = {
        config_name(size, seed): load_distilled_dataset(
            generator, ipc=size, seed=seed, sampling=sampling, num_proc=num_proc
        )
        for size in sizes
    }
    origin = {"generator": generator.origin, "fingerprint": generator.fingerprint[:16], "method": generator.method}
    origin |= {"seed": seed, "sampling": generator.sampling_identity(sampling)}
    plain = seed != 0 or origin["sampling"].get("distilled") is False
    distilled_ipc = 0 if plain else generator.distilled_ipc
    try:
        present = _read_records(repo_id, token)
    except Exception as error:
        raise _failed(f"reading {repo_id}", error, token) from printable_cause(error, token)
    for name in sets if not overwrite else ():
        if name in present and any(present[name].get(key) != origin[key] for key in ("fingerprint", "sampling")):
            raise ValueError(
                f"{repo_id} already holds {name}, of other images ({present[name]}): choose another repo or seed, or "
                "overwrite=True."
            )
    for size, (name, data) in zip(sizes, sets.items(), strict=True):
        try:
            data.push_to_hub(repo_id, name, split="train", private=private, token=token, commit_message=f"Push {name}")
            record = {"ipc": size, "images": len(data), "distilled": min(size, distilled_ipc)}
            _write_card(repo_id, name, origin | record, generator, token)
        except Exception as error:  # of the Hub, of datasets, or of whatever HTTP client they use
            raise _failed(f"the push of {name} to {repo_id}", error, token) from printable_cause(error, token)
    return repo_id


def _failed(action: str, error: Exception, token: str | None) -> PushError:
    message = f"Failed at {action}: {error} Log in with `hf auth login` or pass a token that may write there, check "
    message += "the name and the network, and push again: complete configurations are not sent twice."
    return PushError(redact(message, token))


def _read_records(repo_id: str, token: str | None) -> dict[str, Any]:
    """Read from a repo's card the origin of each of its configurations."""
    try:
        return _records(DatasetCard.load(repo_id, token=token))
    except (EntryNotFoundError, RepositoryNotFoundError):
        return {}


def _records(card: DatasetCard) -> dict[str, Any]:
    """Return the origin of each configuration, its sampling in today's names."""
    records: Mapping[str, Any] = card.data.get(RECORD) or {}
    return {
        name: {**record, "sampling": present_names(record.get("sampling") or {})} for name, record in records.items()
    }


def _write_card(repo_id: str, name: str, origin: dict[str, Any], generator: Generator, token: str | None) -> None:
    """Add a configuration to the card, and leave the owner's own words."""
    card = DatasetCard.load(repo_id, token=token)  # datasets has just written one
    data = card.data
    data[RECORD] = dict(sorted((_records(card) | {name: origin}).items()))
    data["license"] = merge_licenses(data.get("license"), generator.license)
    data["task_categories"] = merge_values(data.get("task_categories"), "image-classification")
    data["annotations_creators"] = merge_values(data.get("annotations_creators"), "machine-generated")
    tags = ["dataset-distillation", "generative-dataset-distillation", "synthetic"]
    data["tags"] = merge_values(data.get("tags"), tags)
    ours = f"{BEGIN}\n{dataset_card(repo_id, data[RECORD])}{END}"
    before, _, rest = card.text.partition(BEGIN)
    text = f"{before.strip()}\n\n{ours}{rest.partition(END)[2]}".lstrip()
    card = DatasetCard(f"---\n{data}\n---\n\n{text.rstrip()}\n")
    card.push_to_hub(repo_id, token=token, commit_message=f"Describe {name}")
