"""What every kind of generator promises: stable pixels, exact sets, exact resume, safe folders, push and pull."""

import itertools
import re
from collections import Counter

import pytest
import torch
from kinds import KINDS, MADE, NAMES, OTHER_SAMPLING

from hf_gdd import AutoGenerator, DistilledStream, ImageTensors, load_distilled_dataset
from hf_gdd.hub.files import CODES
from hf_gdd.hub.loading import LoadError
from hf_gdd.report import Report, Result

kinds = pytest.mark.parametrize("kind", KINDS)
made = pytest.mark.parametrize("kind", MADE)


def requests(per_class, start=0):
    return torch.arange(3).repeat_interleave(per_class), torch.arange(start, start + per_class).repeat(3)


def pixels(data):
    return ImageTensors.from_dataset(data, device="cpu", progress=False).images


def weights(folder):
    """Every file of weights."""
    return sorted(folder.rglob("*.safetensors"))


@kinds
@pytest.mark.parametrize("size", [1, 7, 33])
def test_batches_change_no_pixel(kind, size):
    generator, (labels, indices) = KINDS[kind](), requests(12)
    whole = generator.sample(labels, indices, seed=3)
    parts = [generator.sample(*part, seed=3) for part in zip(labels.split(size), indices.split(size), strict=True)]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.flatten(1).unique(dim=0)) == 36
    assert whole.float().std() > 10


@made
def test_label_index_seed_and_sampling_each_change_the_image(kind):
    generator, zero, one = KINDS[kind](), torch.tensor([0]), torch.tensor([1])
    asked = [(zero, zero), (one, zero), (zero, one), (zero, zero, 1), (zero, zero, 0, OTHER_SAMPLING[kind])]
    assert len(torch.cat([generator.sample(*each) for each in asked]).flatten(1).unique(dim=0)) == 5


def test_label_and_index_each_change_the_image_of_a_bank_and_the_seed_does_not():
    bank, zero, one = KINDS["bank"](), torch.tensor([0]), torch.tensor([1])
    assert len(torch.cat([bank.sample(*each) for each in ((zero, zero), (one, zero), (zero, one))]).unique(dim=0)) == 3
    assert torch.equal(bank.sample(zero, one, seed=5), bank.sample(zero, one))


def test_a_bank_may_have_hard_labels_alone(tmp_path):
    KINDS["bank"](teacher=None).save_pretrained(tmp_path)
    bank = AutoGenerator.from_pretrained(tmp_path)
    assert bank.soft_labels(*requests(1)) is None
    assert load_distilled_dataset(bank, ipc=2, cache_dir=tmp_path).column_names == ["image", "label"]
    with pytest.raises(ValueError, match="no teacher comes with it"):
        bank.label_images(bank.images[0], None)


@kinds
@pytest.mark.parametrize(
    ("words", "labels", "indices"),
    [("0..2", [3], [0]), ("0..2", [-1], [0]), ("not be negative", [0], [-1]), ("one length", [0, 1], [0])],
)
def test_impossible_requests_are_refused(kind, words, labels, indices):
    with pytest.raises(ValueError, match=words):
        KINDS[kind]().sample(torch.tensor(labels), torch.tensor(indices))


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (kind, other)
        for kind, other in itertools.permutations(KINDS, 2)
        if type(OTHER_SAMPLING[kind]) is not type(OTHER_SAMPLING[other])
    ],
)
def test_another_kinds_sampling_is_refused(kind, other):
    with pytest.raises(ValueError, match="stored" if kind == "bank" else type(OTHER_SAMPLING[kind]).__name__):
        KINDS[kind]().sample(*requests(1), sampling=OTHER_SAMPLING[other])


@kinds
@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_small_set_begins_a_large_one(kind, num_proc, tmp_path, request):
    request.addfinalizer(lambda: torch.set_num_threads(1))
    torch.set_num_threads(num_proc or 1)
    generator, options = KINDS[kind](), {"cache_dir": tmp_path, "num_proc": num_proc, "batch_size": 7, "seed": 5}
    small, large = (load_distilled_dataset(generator, ipc=ipc, **options) for ipc in (3, 12))
    assert Counter(large["label"]) == {0: 12, 1: 12, 2: 12}
    assert torch.equal(pixels(large), generator.sample(*requests(12), seed=5))
    assert torch.equal(pixels(small), pixels(large).unflatten(0, (3, 12))[:, :3].flatten(0, 1))


@made
def test_sampling_makes_another_set(kind, tmp_path):
    generator, other = KINDS[kind](), OTHER_SAMPLING[kind]
    made = pixels(load_distilled_dataset(generator, ipc=2, cache_dir=tmp_path, sampling=other))
    assert torch.equal(made, generator.sample(*requests(2), sampling=other))
    assert not torch.equal(made, pixels(load_distilled_dataset(generator, ipc=2, cache_dir=tmp_path)))


@made
def test_a_stream_begins_with_the_set_and_resumes(kind):
    generator = KINDS[kind]()
    whole, first = (DistilledStream(generator, 4, batch_size=5) for _ in range(2))
    taken = [tuple(x.clone() for x in batch) for batch in whole.batches(7)]
    epoch = torch.cat([images for images, _ in taken[:3]])
    expected = generator.sample(*requests(4))
    assert sorted(x.flatten().tolist() for x in epoch) == sorted(x.flatten().tolist() for x in expected)
    list(first.batches(4))
    second = DistilledStream(generator, 4, batch_size=5)
    second.load_state_dict(first.state_dict())
    rest = list(second.batches(3))
    assert all(
        torch.equal(a, b) for mine, other in zip(taken[4:], rest, strict=True) for a, b in zip(mine, other, strict=True)
    )


@kinds
def test_a_folder_keeps_pixels_record_and_report(kind, tmp_path):
    generator = KINDS[kind](mean=(0.25,), std=(0.5,), training={"method": "test", "seed": 4, "license": "mit"})
    row = {"name": "test", "protocol": "fixed", "network": "n", "ipc": 1, "accuracies": (0.5,), "seeds": (0,)}
    row |= {"generator_seed": 4, "steps": 1, "distinct_images": 3, "stored_bytes": 1, "seconds": 1.0}
    results = (Result(**row, generator=generator.fingerprint),)
    generator.report = Report(results, "train", "test", {}, "real", "cpu")
    generator.save_pretrained(tmp_path)
    loaded = AutoGenerator.from_pretrained(tmp_path)
    assert type(loaded) is type(generator)
    assert torch.equal(loaded.sample(*requests(4)), generator.sample(*requests(4)))
    for name in ("class_names", "image_shape", "mean", "std", "sampling", "method", "seed", "license", "report"):
        assert getattr(loaded, name) == getattr(generator, name), name
    assert loaded.fingerprint == generator.fingerprint
    assert {"README.md", "config.json", "grid.png", "report.json"} <= {path.name for path in tmp_path.iterdir()}


@kinds
def test_a_dtype_is_taken_over(kind, tmp_path):
    KINDS[kind]().save_pretrained(tmp_path)
    loaded = AutoGenerator.from_pretrained(tmp_path, dtype="bfloat16")
    assert {tensor.dtype for tensor in loaded.weights.values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert loaded.sample(*requests(1)).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(KINDS, 2)))
def test_a_save_leaves_nothing_of_another_kind(first, second, tmp_path):
    KINDS[first]().save_pretrained(tmp_path / "a")
    KINDS[second]().save_pretrained(tmp_path / "b")
    KINDS[first]().save_pretrained(tmp_path / "b")
    names = [
        {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert names[0] == names[1]
    assert isinstance(AutoGenerator.from_pretrained(tmp_path / "b"), type(KINDS[first]()))


@kinds
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "pickle"])
def test_damaged_weights_are_refused(kind, damage, tmp_path):
    KINDS[kind]().save_pretrained(tmp_path)
    for path in weights(tmp_path):
        content = path.read_bytes()
        if damage == "flip":
            path.write_bytes(content[:-2] + bytes([content[-2] ^ 0x01, content[-1]]))
        elif damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
            if damage == "pickle":
                path.with_suffix(".bin").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
        with pytest.raises(LoadError, match="pickle" if damage == "pickle" and path.name != CODES else None):
            AutoGenerator.from_pretrained(tmp_path)
        path.write_bytes(content)
        AutoGenerator.from_pretrained(tmp_path)


def visit(repo, **options):
    """In a process of its own: what a stranger gets."""
    generator = AutoGenerator.from_pretrained(repo, **options)
    made = load_distilled_dataset(repo, ipc=2, **options)
    return generator.sample(*requests(2)).tolist(), pixels(made).tolist(), generator.origin, generator.class_names


def publish(kind, seed, repo):
    return KINDS[kind](seed).push_to_hub(repo).oid


@pytest.fixture(scope="module")
def owner(shared_hub, shared_client):
    return shared_client(shared_hub.add_user("me"))


@pytest.fixture(scope="module")
def visitor(shared_client):
    return shared_client()


@kinds
def test_push_and_pull(kind, owner, visitor):
    repo = f"me/{kind}"
    first, second = (owner.run(publish, kind, seed, repo) for seed in (0, 1))
    assert first != second
    for seed, commit in enumerate((first, second)):
        images, made, origin, names = visitor.run(visit, repo, revision=commit)
        assert images == made == KINDS[kind](seed).sample(*requests(2)).tolist()
        assert (origin, names) == (f"{repo}@{commit}", NAMES)


def run_snippets(card):
    """Every block of code of a card, in order; how many there were, and the images of the last."""
    namespace, blocks = {}, re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    for block in blocks:
        exec(block, namespace)
    return len(blocks), len(namespace.get("images", ())), len(namespace["train"])


@pytest.mark.parametrize(("kind", "expected"), [("gan", (1, 0, 30)), ("diffusion", (2, 1, 30)), ("bank", (1, 0, 36))])
def test_the_snippets_of_the_card_run(kind, expected, shared_hub, owner, visitor):
    owner.run(publish, kind, 0, f"me/card-{kind}")
    card = shared_hub.files(f"me/card-{kind}")["README.md"].decode()
    assert visitor.run(run_snippets, card) == expected


def stock(repo):
    from diffusers import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(repo)
    return pipeline(pipeline.get_label_ids(["ant"]), num_inference_steps=2).images[0].size, pipeline.labels


@pytest.mark.parametrize("kind", ["diffusion", "chosen"])
def test_any_diffusers_user_can_load_what_was_pushed(kind, owner, visitor):
    owner.run(publish, kind, 0, f"me/stock-{kind}")
    assert visitor.run(stock, f"me/stock-{kind}") == ((8, 8), {"zebra": 0, "ant": 1, "mole": 2})
