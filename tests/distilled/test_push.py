"""Generators and sets travel through the Hub: every client is a process of its own with an empty cache."""

import contextlib
import io
import os
import re
import shutil
import tempfile
import traceback
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from kinds import diffusion, labeled

from hf_gdd import AutoGenerator, ConditionalGANGenerator, Recipe, load_distilled_dataset, push_distilled_dataset
from hf_gdd.generators.sampling import changed_sampling
from hf_gdd.hub.loading import LoadError
from hf_gdd.hub.upload import PushError
from hf_gdd.report import RANDOM_REAL, Report, Result

NAMES = ("ant", "bee", "cat")
FILES = {"config.json", "diffusion_pytorch_model.safetensors", "grid.png", "README.md", "report.json"}


def made(seed=0):
    """A generator whose BatchNorm statistics fit its weights, with a report."""
    torch.manual_seed(seed)
    training = {"method": "dim", "seed": 4, "source": "someone/insects@abc:train", "license": "mit"}
    generator = ConditionalGANGenerator(NAMES, (1, 8, 8), width=8, training=training)
    with torch.no_grad():
        for _ in range(20):
            generator(generator.code(torch.randint(3, (64,)), torch.randn(64, 90)))
    row = {"protocol": "fixed", "network": "convnet2", "ipc": 10, "seeds": (0, 1), "steps": 5, "seconds": 1.0}
    row |= {"distinct_images": 30, "stored_bytes": 10}
    generator.eval()
    ours = {"generator": generator.fingerprint, "sampling": "truncation=1.0"}
    ours = Result(name="dim", accuracies=(0.75, 0.85), generator_seed=4, **row, **ours)
    other = Result(name="cgan", accuracies=(0.5, 0.6), generator_seed=4, generator="another", **row)
    real = Result(name=RANDOM_REAL, accuracies=(0.6, 0.7), generator_seed=None, **row)
    generator.report = Report((ours, other, real), "insects:train (1)", "insects:test (2)", {}, "real", "CPU")
    return generator


# ---- what runs in the clients


def push(seed, repo, **options):
    return made(seed).push_to_hub(repo, **options).oid


def push_again(repo, other, **options):
    return AutoGenerator.from_pretrained(repo).push_to_hub(other, **options).oid


def pull(repo, **options):
    generator = AutoGenerator.from_pretrained(repo, **options)
    return generator.fingerprint, generator.origin, generator.report


def rows(data):
    return [(row["image"].tobytes(), row["label"]) for row in data], data.features["label"].names


def materialize(repo, **options):
    return rows(load_distilled_dataset(repo, split="train", **options))


def cache_of(repo, **options):
    return load_distilled_dataset(repo, **options).cache_files[0]["filename"]


def stock(repo, config, **options):
    from datasets import load_dataset

    data = load_dataset(repo, config, split="train", **options)
    return rows(data) if not options.get("streaming") else len(list(data))


def licence_of(repo, config):
    from datasets import load_dataset

    from hf_gdd import ImageTensors

    data = ImageTensors.from_dataset(load_dataset(repo, config, split="train"), progress=False)
    return data.source, data.license


def command(*words):
    """The status of hf-gdd and what it printed; run where it can leave files."""
    from hf_gdd.cli.main import main

    said = io.StringIO()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main(words)
        os.chdir(home)
    return status, said.getvalue()


def distil_and_push(repo, folder):
    from hf_gdd import GlobalLocalTrainer, ImageTensors, evaluate

    generator = GlobalLocalTrainer("digits", preset="tiny", max_steps=3, codes_ipc=2, output_dir=folder).fit()
    test = ImageTensors.from_dataset("digits", "test")
    generator.report = evaluate(generator, test, ipc=1, networks="convnet1", n=1, recipe=Recipe(max_steps=3))
    generator.push_to_hub(repo)
    return materialize(repo, ipc=2), rows(load_distilled_dataset(generator, ipc=2))


def push_labeled(repo):
    return labeled().push_to_hub(repo).oid


def push_labeled_sets(repo, sets, ipc):
    return push_distilled_dataset(AutoGenerator.from_pretrained(repo), sets, ipc=ipc)


def soft_rows(data):
    return [(row["image"].tobytes(), row["label"], list(row["soft_label"])) for row in data]


def materialize_soft(repo, **options):
    return soft_rows(load_distilled_dataset(repo, **options))


def stock_soft(repo, config):
    from datasets import load_dataset

    data = load_dataset(repo, config, split="train")
    return soft_rows(data), str(data.features["soft_label"])


def loss_of(logits, soft_labels):
    return torch.nn.functional.kl_div(logits.log_softmax(1), soft_labels.float().softmax(1), reduction="batchmean")


def train_in_plain_pytorch(repo, config):
    """The loss in the first and the last epoch."""
    from datasets import load_dataset

    data = load_dataset(repo, config, split="train").with_format("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    optimizer, losses = torch.optim.SGD(network.parameters(), lr=0.05), []
    for _ in range(10):
        losses.append(0.0)
        for batch in torch.utils.data.DataLoader(data, batch_size=10, shuffle=True):
            loss = loss_of(network(batch["image"] / 255), batch["soft_label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item()
    return losses[0], losses[-1]


class Student(torch.nn.Module):
    """A classifier as a transformers Trainer takes it."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 3)

    def forward(self, image, labels, soft_label):
        logits = self.linear(image.flatten(1) / 255)
        return {"loss": loss_of(logits, soft_label), "logits": logits}


def train_in_transformers(repo, config, folder):
    """The loss in the first and the last epoch."""
    from datasets import load_dataset
    from transformers import Trainer, TrainingArguments

    data = load_dataset(repo, config, split="train").with_format("torch")
    options = {"num_train_epochs": 10, "per_device_train_batch_size": 10, "learning_rate": 0.01, "use_cpu": True}
    options |= {"remove_unused_columns": False, "report_to": [], "save_strategy": "no", "logging_strategy": "epoch"}
    trainer = Trainer(Student(), TrainingArguments(folder, **options), train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses[0], losses[-1]


# ---- the tests


@pytest.fixture(scope="module")
def token(shared_hub):
    return shared_hub.add_user("me")


@pytest.fixture(scope="module")
def owner(shared_client, token):
    return shared_client(token)


@pytest.fixture(scope="module")
def visitor(shared_client):
    return shared_client()


@pytest.fixture(scope="module")
def away(shared_client, visitor):
    """The visitor without a network."""
    return shared_client(home=visitor.home, offline=True)


def test_a_push_is_one_commit_of_all_that_was_saved(shared_hub, owner, tmp_path):
    sha = owner.run(push, 0, "me/one", commit_message="Here it is")
    assert shared_hub.head("me/one") == sha
    files = shared_hub.files("me/one")
    assert set(files) - {".gitattributes"} == FILES
    made().save_pretrained(tmp_path, repo_id="me/one")
    assert all((tmp_path / name).read_bytes() == files[name] for name in FILES)


def test_the_round_trip(shared_hub, owner, visitor, away):
    before = rows(load_distilled_dataset(made(), ipc=7))
    sha = owner.run(push, 0, "me/gen")
    fingerprint, origin, report = visitor.run(pull, "me/gen")
    assert (fingerprint, origin, report) == (made().fingerprint, f"me/gen@{sha}", made().report)
    assert visitor.run(materialize, "me/gen", ipc=7) == before

    assert owner.run(command, "materialize", "me/gen", "--ipc", "7", "2", "--push-to-hub", "me/sets")[0] == 0
    head = shared_hub.head("me/sets", repo_type="dataset")
    assert visitor.run(stock, "me/sets", "ipc7") == before
    assert visitor.run(stock, "me/sets", "ipc2", streaming=True) == 6
    card = shared_hub.files("me/sets", repo_type="dataset")["README.md"].decode()
    for part in (f"me/gen@{sha}", "truncation=1.0", "`ipc7`", "`ipc2`", "license: mit", 'load_dataset("me/sets"'):
        assert part in card
    assert owner.run(command, "materialize", "me/gen", "--ipc", "7", "2", "--push-to-hub", "me/sets")[0] == 0
    assert shared_hub.head("me/sets", repo_type="dataset") == head
    again = ("materialize", "me/gen", "--ipc", "2", "--push-to-hub", "me/sets")
    assert owner.run(command, *again, "--seed", "3")[0] == 0
    status, said = owner.run(command, *again, "--truncation", "0.1")
    assert status == 2
    assert "already holds ipc2, of other images" in said
    assert visitor.run(stock, "me/sets", "ipc2-seed3") != visitor.run(stock, "me/sets", "ipc2")

    sha = shared_hub.head("me/sets", repo_type="dataset")
    assert visitor.run(licence_of, "me/sets", "ipc7") == (f"me/sets@{sha}:train", "mit")
    assert away.run(materialize, "me/gen", ipc=7) == before
    assert away.run(pull, "me/gen")[0] == fingerprint
    assert away.run(stock, "me/sets", "ipc7") == before


def test_a_revision_pins_the_images(shared_hub, owner, visitor):
    first = owner.run(push, 0, "me/pinned")
    images, place = visitor.run(materialize, "me/pinned", ipc=3), visitor.run(cache_of, "me/pinned", ipc=3)
    second = owner.run(push, 1, "me/pinned")
    assert first != second
    assert visitor.run(materialize, "me/pinned", ipc=3) != images
    assert visitor.run(cache_of, "me/pinned", ipc=3) != place
    assert visitor.run(materialize, "me/pinned", ipc=3, revision=first) == images
    assert visitor.run(cache_of, "me/pinned", ipc=3, revision=first) == place


def test_a_generator_pushed_on_keeps_its_evidence(shared_hub, owner):
    owner.run(push, 0, "me/mine")
    owner.run(push_again, "me/mine", "me/copy")
    mine, copy = (shared_hub.files(repo) for repo in ("me/mine", "me/copy"))
    for name in FILES - {"README.md"}:
        assert mine[name] == copy[name]
    assert copy["README.md"] == mine["README.md"].replace(b"me/mine", b"me/copy").replace(b"mine", b"copy")


def test_branches_pull_requests_and_private_repos(shared_hub, owner, visitor):
    main = owner.run(push, 0, "me/kinds", private=True)
    branch = owner.run(push, 1, "me/kinds", revision="next")
    assert (shared_hub.head("me/kinds"), shared_hub.head("me/kinds", "next")) == (main, branch)
    owner.run(push, 2, "me/kinds", create_pr=True)
    assert shared_hub.head("me/kinds") == main
    assert shared_hub.head("me/kinds", "refs/pr/1") not in (main, branch)
    with pytest.raises(LoadError, match=r"no model repo of that name can be seen.*if it is private, pass a token"):
        visitor.run(pull, "me/kinds")
    assert owner.run(pull, "me/kinds", revision="next")[0] == made(1).fingerprint
    with pytest.raises(ValueError, match="leave out revision or create_pr"):
        owner.run(push, 0, "me/kinds", create_pr=True, revision="next")


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        (500, "POST", r"/commit/"),
        ("cut", "POST", r"/commit/"),
        (403, "POST", r"/commit/"),
        (500, "POST", r"/api/repos/create"),
    ],
)
def test_a_failed_push_leaves_the_former_one_whole(shared_hub, owner, kind, method, path):
    sha = owner.run(push, 0, "me/broken")
    before = shared_hub.files("me/broken")
    other = 1 + len(shared_hub.requests)  # an upload that is already there would not be sent
    shared_hub.fault(kind, method=method, path=path, times=100)
    try:
        with pytest.raises(PushError, match=r"(?s)The push to me/broken failed: .*push again") as failure:
            owner.run(push, other, "me/broken")
    finally:
        shared_hub.faults.clear()
    assert "hf_" not in str(failure.value)
    assert shared_hub.head("me/broken") == sha
    assert shared_hub.files("me/broken") == before


def test_no_repo_to_push_to(owner, visitor):
    with pytest.raises(PushError, match="is not a repo id: pass one such as"):
        owner.run(push, 0, "what ever")
    with pytest.raises(PushError, match=r"(?s)failed: .*hf auth login"):
        owner.run(push, 0, "someone/else")
    with pytest.raises(PushError, match=r"(?s)failed: .*hf auth login"):
        visitor.run(push, 0, "me/visit")


@pytest.mark.parametrize(
    ("repo", "options", "message"),
    [
        ("me/absent", {}, "no model repo of that name can be seen on the Hub: check the spelling"),
        ("me/there", {"revision": "v9"}, "me/there has no revision 'v9'"),
        ("me/gated", {}, "me/gated is gated: ask for access on its page"),
        ("me/there", {"token": "hf_wrong"}, "The Hub refused the token for me/there: `hf auth login` again"),
        ("me/pickled", {}, "No diffusion_pytorch_model.safetensors found in"),
        ("me/foreign", {}, "describes a 'UNet2DModel', not a ConditionalGANGenerator"),
        ("me/there", {"subfolder": "../x"}, "leads out of me/there"),
        ("me/there", {"subfolder": "x"}, "No x/config.json found in me/there; not an hf_gdd generator"),
        ("me/empty", {}, "No config.json found in me/empty"),
        ("../../nowhere", {}, "neither a local folder nor a repo id"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_cannot_be_loaded_says_why(shared_hub, owner, visitor, repo, options, message):
    for name in ("me/there", "me/gated"):
        owner.run(push, 0, name)
    shared_hub.repo("me/gated").gated = True
    shared_hub.put("me/empty", {"notes.txt": b"nothing"})
    weights = {"diffusion_pytorch_model.bin": b"\0", "model.safetensors": b"\0", "x.py": b"raise SystemExit"}
    for name in ("pickle", "other_library"):
        config = (Path(__file__).parents[1] / "hub" / "hostile" / name / "config.json").read_bytes()
        shared_hub.put({"pickle": "me/pickled"}.get(name, "me/foreign"), weights | {"config.json": config})
    with pytest.raises(LoadError, match=re.escape(message)) as refusal:
        visitor.run(pull, repo, **options)
    assert "hf_wrong" not in str(refusal.value)


@pytest.mark.parametrize("kind", [500, 503, "cut"])
def test_a_download_that_fails_says_so(shared_hub, owner, visitor, kind):
    repo = f"me/flaky-{kind}"
    owner.run(push, 0, repo)
    shared_hub.fault(kind, method="GET", path=r"/resolve/.*safetensors", times=100)
    try:
        with pytest.raises(LoadError, match=r"(?s)me(/|--)flaky.*Check the network"):
            visitor.run(pull, repo)
    finally:
        shared_hub.faults.clear()
    assert visitor.run(pull, repo)[0] == made(0).fingerprint


def test_a_slow_download_arrives(shared_hub, owner, visitor):
    owner.run(push, 0, "me/slow")
    shared_hub.fault("slow", path=r"/resolve/.*safetensors", seconds=1.0)
    assert visitor.run(pull, "me/slow")[0] == made(0).fingerprint


def test_no_network_and_nothing_cached(away):
    with pytest.raises(LoadError, match=r"the Hub cannot be reached, and nothing is cached: check the network"):
        away.run(pull, "me/nowhere")


def test_only_what_is_needed_is_fetched(shared_hub, owner, visitor):
    owner.run(push, 0, "me/more")
    shared_hub.put("me/more", {"setup.py": b"raise SystemExit", "model.bin": b"\0", "deep/x.safetensors": b"\0"})
    visitor.run(pull, "me/more")
    fetched = {path.rsplit("/", 1)[-1] for method, path, _ in shared_hub.requests if "/me/more/resolve/" in path}
    assert fetched == {"config.json", "report.json", "diffusion_pytorch_model.safetensors"}


def test_what_a_trainer_made_travels(shared_hub, owner, tmp_path):
    pushed, local = owner.run(distil_and_push, "me/digits", tmp_path / "run")
    assert pushed == local
    card = ModelCard(shared_hub.files("me/digits")["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert "fixed" in [result.metric_args["protocol"] for result in card.data.eval_results]


def test_a_repo_may_hold_other_generators(shared_hub, owner, visitor):
    owner.run(push, 0, "me/many")
    files = {name: data for name, data in shared_hub.files("me/many").items() if name in FILES}
    nested = {f"other/{name}": data for name, data in files.items()}
    shared_hub.put("me/many", nested | {"diffusion_pytorch_model.ema.safetensors": b"\0"})
    owner.run(push, 1, "me/many")
    there = shared_hub.files("me/many")
    assert set(nested) | {"diffusion_pytorch_model.ema.safetensors"} <= set(there)
    sha = shared_hub.head("me/many")
    fingerprint, origin, _ = visitor.run(pull, "me/many", subfolder="other")
    assert (fingerprint, origin) == (made(0).fingerprint, f"me/many@{sha}/other")
    assert visitor.run(pull, "me/many")[0] == made(1).fingerprint


def test_the_owners_words_on_a_data_set_stay(shared_hub, owner):
    owner.run(push, 0, "me/worded")
    materialize = ("materialize", "me/worded", "--push-to-hub", "me/word-sets", "--ipc")
    assert owner.run(command, *materialize, "2")[0] == 0
    card = shared_hub.files("me/word-sets", repo_type="dataset")["README.md"].decode()
    mine = card.replace("tags:\n", "tags:\n- insects\n").rstrip() + "\n\nMy own words.\n"
    shared_hub.put("me/word-sets", {"README.md": mine.encode()}, repo_type="dataset")
    assert owner.run(command, *materialize, "3")[0] == 0
    card = shared_hub.files("me/word-sets", repo_type="dataset")["README.md"].decode()
    for part in ("My own words.", "- insects", "`ipc2`", "`ipc3`"):
        assert card.count(part) == 1, part


def push_sets(repo, token=None, **sampling):
    generator = diffusion()
    sampling = changed_sampling(generator.sampling, **sampling)
    push_distilled_dataset(generator, repo, ipc=2, sampling=sampling, token=token)


def test_sets_pushed_by_an_earlier_version_are_the_same_sets(shared_hub, owner):
    """It named the sampling's fields otherwise; a push of equal images changes nothing but these names."""
    owner.run(push_sets, "me/former")
    card = shared_hub.files("me/former", repo_type="dataset")["README.md"].decode()
    former = card.replace("guidance_scale", "guidance").replace("num_inference_steps", "steps")
    assert former != card
    shared_hub.put("me/former", {"README.md": former.encode()}, repo_type="dataset")
    with pytest.raises(ValueError, match="already holds ipc2, of other images"):
        owner.run(push_sets, "me/former", guidance_scale=3.0)
    owner.run(push_sets, "me/former")
    assert shared_hub.files("me/former", repo_type="dataset")["README.md"].decode() == card


def test_weights_of_another_library_are_not_even_fetched(shared_hub, visitor):
    config = (Path(__file__).parents[1] / "hub" / "hostile" / "other_library" / "config.json").read_bytes()
    shared_hub.put("me/strange", {"config.json": config, "diffusion_pytorch_model.safetensors": b"\0"})
    with pytest.raises(LoadError, match="describes a 'UNet2DModel'"):
        visitor.run(pull, "me/strange")
    assert not [path for _, path, _ in shared_hub.requests if "/me/strange/" in path and "safetensors" in path]


def test_a_token_is_nowhere_to_be_read(shared_hub, owner, visitor, token):
    owner.run(push, 0, "me/quiet")
    status, said = owner.run(command, "push", "me/quiet", "someone/else")
    assert status == 1
    assert token not in said
    with pytest.raises(PushError) as failure:
        visitor.run(push, 0, "someone/else", token=token)
    assert token not in str(failure.value)
    with pytest.raises(PushError, match="Failed at reading someone/else") as failure:
        visitor.run(push_sets, "someone/else", token=f"{token}\n")  # which an HTTP client quotes when it refuses it
    assert token not in "".join(traceback.format_exception(failure.value))
    for name, content in shared_hub.files("me/quiet").items():
        assert token.encode() not in content, name
    leaks = [path for path in Path(owner.home).rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert not leaks


def test_the_card_validates_and_its_model_index_reads_back(shared_hub, owner):
    owner.run(push, 0, "me/card")
    card = ModelCard(shared_hub.files("me/card")["README.md"].decode())
    assert (card.data.library_name, card.data.license, card.data.datasets) == ("hf_gdd", "mit", ["someone/insects"])
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.8, "test")
    assert result.metric_args["protocol"] == "fixed"
    owner.run(validate, card.content)


def validate(content):
    ModelCard(content).validate()


def test_the_command_pushes(shared_hub, owner, visitor, tmp_path):
    made().save_pretrained(tmp_path / "generator")
    assert owner.run(command, "push", str(tmp_path / "generator"), "me/told", "--branch", "draft")[0] == 0
    assert visitor.run(pull, "me/told", revision="draft")[0] == made().fingerprint
    assert visitor.run(command, "push", str(tmp_path / "generator"), "me/told")[0] == 1
    shutil.rmtree(tmp_path / "generator")
    assert owner.run(command, "push", str(tmp_path / "generator"), "me/told")[0] == 2


def test_a_new_push_leaves_nothing_of_the_old(shared_hub, owner):
    owner.run(push, 0, "me/shrunk")
    old = "diffusion_pytorch_model-00001-of-00002.safetensors"
    shared_hub.put("me/shrunk", {old: b"\0", "notes.md": b"mine"})
    owner.run(push_bare, "me/shrunk")
    files = set(shared_hub.files("me/shrunk")) - {".gitattributes"}
    assert files == FILES - {"report.json"} | {"notes.md"}


def push_bare(repo):
    generator = made()
    generator.report = None
    generator.push_to_hub(repo)


def test_codes_and_soft_labels_travel(shared_hub, owner, visitor, away):
    """A stranger's small set begins the large one, as at home, and a stock client reads both with their logits."""
    sha = owner.run(push_labeled, "me/labeled")
    home = soft_rows(load_distilled_dataset(labeled(), ipc=50))
    assert visitor.run(materialize_soft, "me/labeled", ipc=50) == home
    small = [row for number, row in enumerate(home) if number % 50 < 3]
    assert visitor.run(materialize_soft, "me/labeled", ipc=3) == small
    assert away.run(materialize_soft, "me/labeled", ipc=3, seed=1) != small
    fetched = {
        path.split("/resolve/")[1].split("/", 1)[1] for _, path, _ in shared_hub.requests if "labeled/res" in path
    }
    weights = "diffusion_pytorch_model.safetensors"
    assert fetched == {"config.json", weights, "codes.safetensors", "teacher/config.json", f"teacher/{weights}"}

    owner.run(push_labeled_sets, "me/labeled", "me/labeled-sets", [3, 50])
    assert visitor.run(stock_soft, "me/labeled-sets", "ipc50")[0] == home
    rows, feature = visitor.run(stock_soft, "me/labeled-sets", "ipc3")
    assert rows == small
    assert "float16" in feature
    card = shared_hub.files("me/labeled-sets", repo_type="dataset")["README.md"].decode()
    for part in (f"me/labeled@{sha}", "| `ipc3` | 3 | 3 |", "| `ipc50` | 50 | 5 |", "are distilled", "distilled=True"):
        assert part in card

    first, last = visitor.run(train_in_plain_pytorch, "me/labeled-sets", "ipc3")
    assert last < first


def test_a_transformers_trainer_learns_from_a_pushed_set(owner, visitor, tmp_path):
    pytest.importorskip("transformers")
    owner.run(push_labeled, "me/trained")
    owner.run(push_labeled_sets, "me/trained", "me/trained-sets", 10)
    first, last = visitor.run(train_in_transformers, "me/trained-sets", "ipc10", str(tmp_path))
    assert last < first


def test_a_new_push_leaves_no_codes_and_no_teacher_of_the_old(shared_hub, owner):
    owner.run(push_labeled, "me/lighter")
    assert {"codes.safetensors", "teacher/config.json"} <= set(shared_hub.files("me/lighter"))
    owner.run(push, 0, "me/lighter")
    assert set(shared_hub.files("me/lighter")) - {".gitattributes"} == FILES
