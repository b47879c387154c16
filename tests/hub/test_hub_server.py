"""Unmodified Hub clients, in processes of their own, get from the test server what the Hub would give them."""

import math
import os

import huggingface_hub
import pytest
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
PUBLIC = {"README.md": b"---\nlicense: mit\n---\n# Hello\n", "a/b.txt": b"text", "a/c.bin": b"\0\1" * 5000, "e": b""}


# ---- what runs in the clients


def api(method, *arguments, **options):
    return getattr(HfApi(), method)(*arguments, **options)


def model(value=0.0):
    """A model of one weight; its class is made here since the test process need not import diffusers."""
    import torch
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config

    class Net(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, start: float = 0.0):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((3,), start))

    return Net(value)


def push_model(repo_id, value, **options):
    return model(value).push_to_hub(repo_id, **options).oid


def pull_model(repo_id, **options):
    return type(model()).from_pretrained(repo_id, use_safetensors=True, **options).weight[0].item()


def download(repo_id, **options):
    """Every file of a repo by path, read back from the cache; a hidden .gitattributes is left out."""
    folder = huggingface_hub.snapshot_download(repo_id, **options)
    paths = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names if name[0] != "."]
    contents = {}
    for path in paths:
        with open(path, "rb") as file:
            contents[os.path.relpath(path, folder)] = file.read()
    return contents


def read(repo_id, filename, **options):
    with open(huggingface_hub.hf_hub_download(repo_id, filename, **options), "rb") as file:
        return file.read()


def upload(repo_id, files, **options):
    operations = [huggingface_hub.CommitOperationAdd(path, data) for path, data in files.items()]
    return HfApi().create_commit(repo_id, operations, commit_message="upload", **options)


def push_dataset(repo_id, config, rows, **options):
    import datasets

    features = datasets.Features({"x": datasets.Value("int32"), "label": datasets.ClassLabel(names=["cat", "dog"])})
    data = datasets.Dataset.from_dict({"x": list(range(rows)), "label": [i % 2 for i in range(rows)]}, features)
    data.push_to_hub(repo_id, config, **options)


def pull_dataset(repo_id, config, **options):
    import datasets

    data = datasets.load_dataset(repo_id, config, split="train", **options)
    return [row["x"] for row in data], data.features["label"].names


def push_card(repo_id, score=None, **data):
    data |= {"eval_results": [EvalResult(**score)]} if score else {}
    card = ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n# Card\n")
    card.validate()
    return card.push_to_hub(repo_id)


def load_card(repo_id):
    card = ModelCard.load(repo_id)
    return card.data.to_dict(), card.text


def list_folder(path):
    return huggingface_hub.HfFileSystem().ls(path, detail=False)


def part(path, start, stop):
    return huggingface_hub.HfFileSystem().cat_file(path, start, stop)


# ---- the Hub and the clients of most tests


@pytest.fixture(scope="module")
def tokens(shared_hub):
    return {"me": shared_hub.add_user("me"), "you": shared_hub.add_user("you"), "wrong": "hf_wrong", "none": False}


@pytest.fixture(scope="module")
def owner(shared_client, tokens):
    return shared_client(tokens["me"])


@pytest.fixture(scope="module")
def visitor(shared_client, shared_hub):
    """Somebody without a token, whose cache was empty at first."""
    shared_hub.put("me/public", PUBLIC)
    return shared_client()


@pytest.fixture
def calm(shared_hub):
    """The shared Hub, with the faults of this test only."""
    shared_hub.faults.clear()
    yield shared_hub
    shared_hub.faults.clear()


# ---- models and files


def test_a_model_goes_up_and_comes_down(shared_hub, owner, visitor):
    sha = owner.run(push_model, "me/net", 1.5)
    assert shared_hub.head("me/net") == sha
    assert set(shared_hub.files("me/net")) == {".gitattributes", "README.md", "config.json", WEIGHTS}
    assert visitor.run(pull_model, "me/net") == 1.5
    assert {sent for _, path, sent in shared_hub.requests if "lfs-upload" in path} == {False}
    entries = {entry.path: entry for entry in visitor.run(api, "get_paths_info", "me/net", [WEIGHTS, "config.json"])}
    assert entries[WEIGHTS].lfs.size == len(shared_hub.files("me/net")[WEIGHTS])
    assert entries["config.json"].lfs is None


def test_every_name_of_a_revision(shared_hub, owner, visitor):
    first = owner.run(push_model, "me/versions", 1.0)
    owner.run(api, "create_tag", "me/versions", tag="v/1")
    assert visitor.run(pull_model, "me/versions") == 1
    second = owner.run(push_model, "me/versions", 2.0)
    owner.run(api, "create_branch", "me/versions", branch="old", revision=first)
    third = owner.run(push_model, "me/versions", 3.0)
    wanted = {first: 1, first[:8]: 1, "v/1": 1, "old": 1, second: 2, third: 3, "main": 3}
    assert {name: visitor.run(pull_model, "me/versions", revision=name) for name in wanted} == wanted

    on_branch = owner.run(upload, "me/versions", {"note.txt": b"old"}, revision="old").oid
    assert on_branch == shared_hub.head("me/versions", "old") != first
    assert "note.txt" not in shared_hub.files("me/versions")
    refs = visitor.run(api, "list_repo_refs", "me/versions")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": third, "old": on_branch}
    assert {ref.ref: ref.target_commit for ref in refs.tags} == {"refs/tags/v/1": first}
    commits = visitor.run(api, "list_repo_commits", "me/versions")
    assert [commit.commit_id for commit in commits[:3]] == [third, second, first]
    assert (commits[0].authors, commits[-1].title) == (["me"], "initial commit")

    with pytest.raises(HfHubHTTPError, match="409"):
        owner.run(api, "create_tag", "me/versions", tag="v/1")
    owner.run(api, "delete_tag", "me/versions", tag="v/1")
    owner.run(api, "delete_branch", "me/versions", branch="old")
    for gone in ("v/1", "old"):
        with pytest.raises(RevisionNotFoundError):
            visitor.run(api, "model_info", "me/versions", revision=gone)
    assert "note.txt" in visitor.run(api, "list_repo_files", "me/versions", revision=on_branch)


def test_a_folder_of_files(shared_hub, owner, visitor, tmp_path):
    for path, data in PUBLIC.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    owner.run(api, "create_repo", "me/files")
    first = owner.run(api, "upload_folder", repo_id="me/files", folder_path=tmp_path).oid
    assert visitor.run(download, "me/files") == PUBLIC
    assert visitor.run(list_folder, "me/files/a") == ["me/files/a/b.txt", "me/files/a/c.bin"]

    before = len(shared_hub.requests)
    # the preupload answers tell the client that nothing has changed
    assert owner.run(api, "upload_folder", repo_id="me/files", folder_path=tmp_path).oid == first
    assert not [path for _, path, _ in shared_hub.requests[before:] if "/commit/" in path]
    (tmp_path / "a/b.txt").rename(tmp_path / "b.txt")
    (tmp_path / "new.bin").write_bytes(PUBLIC["a/c.bin"])
    owner.run(api, "upload_folder", repo_id="me/files", folder_path=tmp_path, delete_patterns="a/*")
    assert not [path for _, path, _ in shared_hub.requests[before:] if "lfs-upload" in path]
    owner.run(api, "delete_file", "e", "me/files")
    now = visitor.run(download, "me/files")
    assert set(now) == {"README.md", "a/c.bin", "b.txt", "new.bin"}
    assert (now["b.txt"], now["new.bin"]) == (PUBLIC["a/b.txt"], PUBLIC["a/c.bin"])

    owner.run(api, "delete_folder", "a", "me/files")
    assert set(shared_hub.files("me/files")) == {".gitattributes", "README.md", "b.txt", "new.bin"}
    assert visitor.run(download, "me/files", revision=first) == PUBLIC
    with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
        owner.run(api, "delete_file", "gone", "me/files")


def test_a_stale_parent(shared_hub, owner):
    parent = shared_hub.put("me/race", {"a": b"1"})
    second = owner.run(upload, "me/race", {"a": b"2"}, parent_commit=parent).oid
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        owner.run(upload, "me/race", {"a": b"3"}, parent_commit=parent)
    assert caught.value.response.status_code == 412
    assert (shared_hub.head("me/race"), shared_hub.files("me/race")["a"]) == (second, b"2")


def test_proposals(shared_hub, owner, visitor, tokens):
    head = shared_hub.put("me/open", {"a": b"1"})
    with pytest.raises(HfHubHTTPError, match="create_pr=1"):
        owner.run(upload, "me/open", {"a": b"2"}, token=tokens["you"])
    pull = owner.run(upload, "me/open", {"a": b"2", "b.bin": b"\0"}, token=tokens["you"], create_pr=True)
    assert (pull.pr_revision, pull.pr_url) == ("refs/pr/1", f"{shared_hub.endpoint}/me/open/discussions/1")
    owner.run(upload, "me/open", {"c": b"3"}, token=tokens["you"], revision="refs/pr/1")
    assert owner.run(push_model, "me/open", 1.0, create_pr=True) == shared_hub.head("me/open", "refs/pr/2")
    assert shared_hub.head("me/open") == head
    assert visitor.run(download, "me/open", revision="refs/pr/1") == {"a": b"2", "b.bin": b"\0", "c": b"3"}
    refs = visitor.run(api, "list_repo_refs", "me/open", include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"]


# ---- who may do what


def test_a_private_repo(shared_hub, owner, visitor, tokens):
    owner.run(push_model, "me/secret", 4.0, private=True)
    refusals = [("you", RepositoryNotFoundError, 404), ("none", RepositoryNotFoundError, 401)]
    for who, error, status in [*refusals, ("wrong", HfHubHTTPError, 401)]:
        for request in [(api, "model_info", "me/secret"), (read, "me/secret", WEIGHTS)]:
            with pytest.raises(HfHubHTTPError) as caught:
                visitor.run(*request, token=tokens[who])
            assert (type(caught.value), caught.value.response.status_code) == (error, status)
        with pytest.raises(OSError, match="me/secret"):
            visitor.run(pull_model, "me/secret", token=tokens[who])
    assert visitor.run(pull_model, "me/secret", token=tokens["me"]) == 4
    owner.run(api, "update_repo_settings", "me/secret", private=False)
    assert visitor.run(api, "model_info", "me/secret").private is False


def test_a_gated_repo(shared_hub, owner, visitor, tokens):
    shared_hub.put("me/gated", {"a": b"1"})
    owner.run(api, "update_repo_settings", "me/gated", gated="manual")
    assert visitor.run(api, "model_info", "me/gated").gated == "manual"
    for who, status in {"none": 401, "you": 403}.items():
        with pytest.raises(GatedRepoError) as caught:
            visitor.run(read, "me/gated", "a", token=tokens[who])
        assert caught.value.response.status_code == status
    shared_hub.repo("me/gated").granted = ("you",)
    assert visitor.run(read, "me/gated", "a", token=tokens["you"]) == b"1"


def test_the_owner_only_may_write(shared_hub, owner, visitor):
    assert owner.run(api, "whoami")["name"] == "me"
    for options in ({"repo_id": "you/x"}, {"repo_id": "me/x", "token": shared_hub.add_user("me", role="read")}):
        with pytest.raises(HfHubHTTPError, match=r"(?s)403.*rights to create"):
            owner.run(api, "create_repo", **options)
    with pytest.raises(HfHubHTTPError, match="401"):
        visitor.run(api, "create_repo", "me/x")
    with pytest.raises(RepositoryNotFoundError):
        visitor.run(upload, "me/public", {"a": b"1"})
    assert (
        owner.run(api, "create_repo", "me/x", repo_type="dataset", private=True)
        == f"{shared_hub.endpoint}/datasets/me/x"
    )
    owner.run(api, "create_repo", "me/x", repo_type="dataset", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        owner.run(api, "create_repo", "me/x", repo_type="dataset")
    owner.run(api, "delete_repo", "me/x", repo_type="dataset")
    assert not owner.run(api, "repo_exists", "me/x", repo_type="dataset")


def test_what_does_not_exist(owner, visitor):
    for client in (owner, visitor):
        with pytest.raises(RepositoryNotFoundError):
            client.run(read, "me/nothing", "a")
        with pytest.raises(RevisionNotFoundError):
            client.run(read, "me/public", "README.md", revision="nothing")
        with pytest.raises(RemoteEntryNotFoundError):
            client.run(read, "me/public", "nothing")
        with pytest.raises(OSError, match="me/nothing"):
            client.run(pull_model, "me/nothing")
    assert visitor.run(api, "file_exists", "me/public", "README.md")


# ---- data sets and cards


def test_a_data_set_of_two_configs(shared_hub, owner, visitor, tokens):
    owner.run(push_dataset, "me/data", "small", 4, private=True)
    owner.run(push_dataset, "me/data", "large", 6)
    with pytest.raises(Exception, match="doesn't exist on the Hub or cannot be accessed") as caught:
        visitor.run(pull_dataset, "me/data", "small")
    assert type(caught.value).__name__ == "DatasetNotFoundError"
    for config, rows in {"small": 4, "large": 6}.items():
        for streaming in (False, True):
            found = visitor.run(pull_dataset, "me/data", config, token=tokens["me"], streaming=streaming)
            assert found == (list(range(rows)), ["cat", "dog"])
    with pytest.raises(ValueError, match=r"small.*large|large.*small"):
        visitor.run(pull_dataset, "me/data", "medium", token=tokens["me"])
    before = shared_hub.head("me/data", repo_type="dataset")
    owner.run(push_dataset, "me/data", "small", 5)
    assert visitor.run(pull_dataset, "me/data", "small", token=tokens["me"])[0] == [0, 1, 2, 3, 4]
    assert visitor.run(pull_dataset, "me/data", "small", token=tokens["me"], revision=before)[0] == [0, 1, 2, 3]
    owner.run(push_dataset, "me/data", "small", 7, create_pr=True)
    pulled = visitor.run(pull_dataset, "me/data", "small", token=tokens["me"], revision="refs/pr/1")
    assert pulled[0] == list(range(7))


def test_a_part_of_a_file(visitor):
    assert visitor.run(part, "me/public/a/b.txt", 1, 3) == b"ex"


def test_a_card(shared_hub, owner, visitor):
    owner.run(api, "create_repo", "me/card")
    score = {"task_type": "image-classification", "dataset_type": "digits", "dataset_name": "digits"}
    score |= {"metric_type": "accuracy", "metric_value": 0.5}
    owner.run(push_card, "me/card", license="mit", library_name="x", tags=["t"], model_name="m", score=score)
    data, text = visitor.run(load_card, "me/card")
    assert (data["license"], data["model-index"][0]["results"][0]["metrics"][0]["value"]) == ("mit", 0.5)
    assert text == "# Card\n"
    info = visitor.run(api, "model_info", "me/card")
    assert (info.library_name, info.card_data.license, info.tags) == ("x", "mit", ["x", "t", "license:mit"])
    with pytest.raises(ValueError, match=r"must be one of.*apache-2\.0"):
        owner.run(push_card, "me/card", license="mine")
    for wrong in (b"---\na: [\n---\n", b"---\nmodel-index:\n- name: m\n---\n", b"---\n- a\n---\n"):
        with pytest.raises(ValueError, match=r"Invalid metadata in README.md"):
            owner.run(upload, "me/card", {"README.md": wrong})


# ---- when things go wrong


@pytest.mark.parametrize("kind", [500, 503, "cut"])
def test_a_commit_that_fails_leaves_the_one_before_it(calm, owner, visitor, kind):
    repo = f"me/commit-{kind}"
    before = owner.run(push_model, repo, 1.0)
    fault = calm.fault(kind, method="POST", path="/commit/main")
    with pytest.raises(Exception, match=str(kind) if kind != "cut" else "disconnected|reset|Broken pipe") as caught:
        owner.run(push_model, repo, 2.0)
    assert isinstance(caught.value, HfHubHTTPError) == (kind != "cut")
    assert fault.times == 0
    assert calm.head(repo) == before
    assert visitor.run(pull_model, repo) == 1
    owner.run(push_model, repo, 2.0)
    assert visitor.run(pull_model, repo) == 2


def test_a_commit_whose_answer_is_lost(calm, owner, visitor):
    calm.put("me/lost", {})
    calm.fault("lost", path="/commit/main")
    with pytest.raises(Exception, match="disconnected"):
        owner.run(upload, "me/lost", {"a": b"1"})
    assert visitor.run(read, "me/lost", "a") == b"1"


def test_a_refused_upload_of_lfs(calm, owner):
    before = calm.put("me/refused", {"a.bin": b"1"})
    calm.fault(403, method="PUT", path="/lfs-upload/")
    with pytest.raises(
        RuntimeError, match=r"Error while uploading 'a\.bin'"
    ):  # no error of the Hub's, but of its cause
        owner.run(upload, "me/refused", {"a.bin": b"2"})
    assert (calm.head("me/refused"), calm.files("me/refused")["a.bin"]) == (before, b"1")


@pytest.mark.parametrize("kind", [500, "cut"])
def test_a_client_repeats_an_upload_of_lfs(calm, owner, kind):
    data = os.urandom(1_000_000)
    calm.put("me/lfs", {})
    fault = calm.fault(kind, method="PUT", path="/lfs-upload/")
    owner.run(upload, "me/lfs", {"a.bin": data})
    assert fault.times == 0
    assert calm.files("me/lfs")["a.bin"] == data


@pytest.mark.parametrize("kind", [500, 503])
def test_a_download_that_fails(calm, visitor, kind):
    repo = f"me/download-{kind}"
    calm.put(repo, {"a": b"1"})
    calm.fault(kind, method="GET", path=f"/api/models/{repo}", times=2)
    with pytest.raises(HfHubHTTPError, match=str(kind)):
        visitor.run(api, "model_info", repo)
    with pytest.raises(LocalEntryNotFoundError):
        visitor.run(download, repo)
    calm.fault(kind, method="GET", path=f"{repo}/resolve")
    with pytest.raises(HfHubHTTPError, match=str(kind)):
        visitor.run(read, repo, "a")
    again = calm.fault(kind, method="HEAD", path=f"{repo}/resolve")  # these requests a client repeats, for 23 s
    assert visitor.run(read, repo, "a") == b"1"
    assert again.times == 0


def test_a_client_resumes_a_download_that_was_cut(calm, visitor):
    data = os.urandom(1_000_000)
    calm.put("me/cut", {"a.bin": data})
    fault = calm.fault("cut", method="GET", path="a.bin")
    assert visitor.run(read, "me/cut", "a.bin") == data
    assert fault.times == 0
    assert [method for method, path, _ in calm.requests if path.startswith("/me/cut/")] == ["HEAD", "GET", "GET"]


def test_a_slow_server(calm, visitor):
    calm.fault("slow", method="GET", path="README.md", seconds=0.4)
    assert visitor.run(read, "me/public", "README.md", force_download=True) == PUBLIC["README.md"]
    calm.fault("slow", path="/api/models/me/public", seconds=2, times=math.inf)
    with pytest.raises(Exception, match="timed out"):
        visitor.run(api, "model_info", "me/public", timeout=0.1)
    calm.faults.clear()
    calm.fault("cut", path="/api/models/me/public")
    with pytest.raises(Exception, match="closed connection"):
        visitor.run(api, "model_info", "me/public")


def test_offline(shared_hub, shared_client, visitor):
    shared_hub.put("me/uncached", {"a": b"1"})
    visitor.run(download, "me/public")
    offline, before = shared_client(home=visitor.home, offline=True), len(shared_hub.requests)
    assert offline.run(download, "me/public") == PUBLIC
    with pytest.raises(LocalEntryNotFoundError):
        offline.run(read, "me/uncached", "a")
    assert len(shared_hub.requests) == before


# ---- the fixtures


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail(kind, *arguments):
    raise kind(*arguments)


def test_a_client_process(hub, client, monkeypatch):
    hub.put("me/x", {"a": b"1"})
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_the_client")
    mine = client(HF_HUB_ETAG_TIMEOUT="3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert mine.run(read, "me/x", "a") == b"1"
    assert hub.requests
    assert not any(sent for _, _, sent in hub.requests)
    assert mine.run(os.getenv, "HF_HUB_ETAG_TIMEOUT") == "3"
    assert mine.run(os.getpid) == mine.process.pid != os.getpid()
    for kind, arguments, text in [(KeyError, ("a",), "'a'"), (Unpicklable, (1, 2), "1 and 2")]:
        with pytest.raises(kind) as caught:
            mine.run(fail, kind, *arguments)
        assert str(caught.value) == text
        assert "in fail" in str(caught.value.__cause__)

    hub.stop()
    requests = len(hub.requests)
    assert mine.run(read, "me/x", "a") == b"1"
    assert len(hub.requests) == requests
    with pytest.raises(RuntimeError, match=r"the client is gone: .*exit code 3"):
        mine.run(os._exit, 3)
