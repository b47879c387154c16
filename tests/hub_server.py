"""A Hugging Face Hub for tests: the HTTP API that unmodified clients speak, served by threads of this process.

The contents of files lie on disk, a folder for each repo; users, refs and commits are kept in memory. A request changes
nothing before it has arrived whole, and then under one lock, so a commit is seen whole or not at all. A client must be
a process of its own, with HF_ENDPOINT and HF_HUB_DISABLE_XET=1 in its environment before it imports huggingface_hub.
"""

import base64
import contextlib
import hashlib
import json
import re
import secrets
import shutil
import threading
import time
import traceback
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = 10 * 1024 * 1024
LFS_SUFFIXES = (".arrow", ".bin", ".ckpt", ".npz", ".onnx", ".parquet", ".pkl", ".pt", ".pth", ".safetensors", ".zip")
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
# some of those that the Hub knows
LICENSES = {"apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "gpl-3.0", "mit", "other", "unknown"}


@dataclass
class Answer:
    """What goes back; `length` is the body's where none is sent, as to HEAD."""

    status: int
    body: bytes
    headers: dict = field(default_factory=dict)
    length: int | None = None


class Refusal(Exception):
    """An answer that is an error, with the code from which clients choose the class of their exception."""

    def __init__(self, status, message, code=None, **headers):
        super().__init__(message)
        line = " ".join(message.split()).encode("ascii", "replace").decode()
        headers |= {"X-Error-Message": line, **({"X-Error-Code": code} if code else {})}
        self.answer = Answer(status, json.dumps({"error": message}).encode(), headers)


@dataclass
class Fault:
    """What will go wrong with some requests; `times` counts down to 0 as it does."""

    kind: int | str
    method: str | None
    path: str
    times: float
    seconds: float


@dataclass
class File:
    """A file of a commit: git's oid (of the pointer, if LFS), and the size of its LFS pointer, 0 if it has none."""

    oid: str
    sha256: str
    size: int
    pointer: int

    @property
    def etag(self):
        return self.sha256 if self.pointer else self.oid


@dataclass
class Repo:
    """One repository, which begins with a .gitattributes as on the Hub.

    A test may set `private`, `gated` ("auto", "manual" or False) and `granted`, the users to whom a gated one is open.
    """

    folder: Path
    kind: str
    id: str
    private: bool = False
    gated: str | bool = False
    granted: tuple = ()
    refs: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)

    def __post_init__(self):
        self.folder.mkdir(parents=True)
        self.owner, self.url = self.id.split("/")[0], "datasets/" * (self.kind == "dataset") + self.id
        self.commit("refs/heads/main", None, {".gitattributes": self.store(ATTRIBUTES)}, "initial commit", self.owner)

    def store(self, data, lfs=False):
        sha256 = hashlib.sha256(data).hexdigest()
        (self.folder / sha256).write_bytes(data)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        blob = pointer if lfs else data
        oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
        return File(oid, sha256, len(data), len(pointer) if lfs else 0)

    def read(self, file):
        return (self.folder / file.sha256).read_bytes()

    def commit(self, ref, parent, files, title, author, message=""):
        date = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        commit = {"parent": parent, "title": title, "message": message, "date": date, "author": author, "files": files}
        sha = hashlib.sha1(repr(commit).encode()).hexdigest()
        self.commits[sha] = commit | {"id": sha}
        self.refs[ref] = sha
        return sha

    def find(self, revision):
        """The commit that a branch, a tag, a refs/... name or a sha (at least seven digits of it) stands for."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        for sha, commit in self.commits.items():
            if len(revision) >= 7 and sha.startswith(revision):
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def entries(self, commit, paths):
        """Those of the paths that exist in a commit, as the tree and paths-info endpoints describe them."""
        for path in paths:
            file = commit["files"].get(path)
            inside = sorted(file.oid for name, file in commit["files"].items() if name.startswith(f"{path}/"))
            if file:
                lfs = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer} if file.pointer else None
                yield {"type": "file", "path": path, "oid": file.oid, "size": file.size, "lfs": lfs}
            elif inside:
                oid = hashlib.sha1(repr(inside).encode()).hexdigest()
                yield {"type": "directory", "path": path, "oid": oid, "size": 0}

    def describe(self, commit, blobs):
        """The repo at a commit, as the info endpoint tells it."""
        card, siblings = {}, []
        for path, file in sorted(commit["files"].items()):
            lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer} if file.pointer else None
            details = {"size": file.size, "blobId": file.oid, "lfs": lfs} if blobs else {}
            siblings.append({"rfilename": path, **details})
            if path == "README.md":
                card, _ = read_card(self.read(file))
        tags = [*listed(card.get("library_name")), *listed(card.get("tags"))]
        prefixes = {"license": "license", "datasets": "dataset", "base_model": "base_model"}
        tags += [f"{prefix}:{item}" for key, prefix in prefixes.items() for item in listed(card.get(key))]
        answer = {"id": self.id, "author": self.owner, "sha": commit["id"], "lastModified": commit["date"]}
        answer |= {"private": self.private, "gated": self.gated, "disabled": False, "downloads": 0, "likes": 0}
        answer |= {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        return answer | {"tags": tags, "siblings": siblings, "cardData": card or None}


def listed(value):
    return value if isinstance(value, list) else [] if value is None else [value]


def read_card(data):
    """The metadata of a README, and what is wrong with it."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", data.decode(errors="replace"), re.DOTALL | re.MULTILINE)
    try:
        card = yaml.safe_load(match[1]) or {} if match else {}
        errors = [
            f'"{key}" must be a string or an array of strings'
            for key in ("license", "tags", "datasets", "language", "base_model", "task_categories", "size_categories")
            if not all(isinstance(item, str) for item in listed(card.get(key)))
        ]
        if not {str(item) for item in listed(card.get("license"))} <= LICENSES:
            errors.append(f'"license" must be one of {sorted(LICENSES)}')
        for model in card.get("model-index") or []:
            _ = model["name"]
            for result in model["results"]:
                _ = result["task"]["type"], result["dataset"]["name"], result["dataset"]["type"]
                _ = [(metric["type"], metric["value"]) for metric in result["metrics"]]
    except yaml.YAMLError as error:
        return {}, [f"Invalid YAML: {error}"]
    except KeyError as error:
        return card, [*errors, f'"model-index" lacks {error}']
    except (TypeError, AttributeError):
        return {}, ["The metadata must be a mapping, and its model-index an array of mappings"]
    return card, errors


PARTS = {"kind": r"(?P<kind>model|dataset)s", "prefix": r"(?:(?P<kind>dataset)s/)?", "path": r"(?P<path>.+)"}
PARTS |= {"repo": r"(?P<repo>[^/]+/[^/]+?)", **{name: rf"(?P<{name}>[^/]+)" for name in ("rev", "key")}}
ROUTES = []


def route(methods, pattern):
    """Serve paths like this; parts in braces become arguments, and a repo is checked to be one the user may read."""
    regex = re.compile(re.sub(r"\{(\w+)\}", lambda part: PARTS[part[1]], pattern))
    return lambda function: ROUTES.append((methods.split("|"), regex, function)) or function


class HubServer:
    """The Hub, which runs inside `with HubServer(root) as hub`, and what a test does to it from within.

    `requests` lists (method, path, whether an Authorization header was sent), paths unquoted and without a query.
    `errors` lists the tracebacks of what the server itself got wrong, each of which was answered with a 500.
    """

    def __init__(self, root):
        self.root, self.lock = Path(root), threading.RLock()
        self.requests, self.errors, self.faults = [], [], []
        self.tokens, self.repos, self.uploads = {}, {}, {}

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.block_on_close = False
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop()

    # ---- what a test does

    def stop(self):
        """Be down from here on; to stop once more does nothing."""
        self.server.shutdown()
        self.server.server_close()

    def add_user(self, name, role="write"):
        """A new token for a user; with role "read" it may not write even what is the user's own."""
        token = f"hf_{name}_{secrets.token_hex(8)}"
        self.tokens[token] = (name, role == "write")
        return token

    def fault(self, kind, *, method=None, path="", times=1, seconds=1.0):
        """Let the next `times` (math.inf: all) requests of this method whose path matches the regex go wrong.

        Kinds: a status such as 500 or 503; "cut", the connection closes half way through the request's body, or the
        answer's if the request has none; "lost", the request is done but not answered; "slow", the answer's body
        trickles in over so many seconds. `hub.faults.clear()` ends them all.
        """
        if kind not in ("cut", "lost", "slow") and not isinstance(kind, int):
            raise ValueError(f"no fault {kind!r}")
        self.faults.append(Fault(kind, method, path, times, seconds))
        return self.faults[-1]

    def repo(self, repo_id, repo_type="model"):
        return self.repos[repo_type, repo_id]

    def files(self, repo_id, revision="main", repo_type="model"):
        """Every file of a revision, by path."""
        with self.lock:
            repo = self.repo(repo_id, repo_type)
            return {path: repo.read(file) for path, file in repo.find(revision)["files"].items()}

    def head(self, repo_id, revision="main", repo_type="model"):
        """The sha that a revision stands for."""
        with self.lock:
            return self.repo(repo_id, repo_type).find(revision)["id"]

    def put(self, repo_id, files, repo_type="model"):
        """Commit files to main past every check, in a new repo if there is none; None deletes one. The commit's sha."""
        with self.lock:
            repo = self.repos.get((repo_type, repo_id)) or self.new_repo(repo_type, repo_id)
            main = repo.find("main")
            kept = {path: file for path, file in main["files"].items() if path not in files}
            for path, data in files.items():
                if data is not None:
                    kept[path] = repo.store(data, path.endswith(LFS_SUFFIXES))
            return repo.commit("refs/heads/main", main["id"], kept, "put", repo.owner)

    # ---- from a request to its answer

    def answer(self, request, path):
        """The answer to a request for a path, which is still quoted, since a revision may hold a slash."""
        for methods, regex, function in ROUTES:
            match = regex.fullmatch(path)
            if match and request.command in methods:
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                kind = parts.pop("kind", "model")
                with self.lock:
                    if "repo" in parts:
                        parts["repo"] = self.readable(request, kind, parts["repo"])
                    answer = function(self, request, **parts)
                return answer if isinstance(answer, Answer) else Answer(200, json.dumps(answer, default=str).encode())
        raise self.not_found(request) if re.match("/api/(model|dataset)s/|.*/resolve/", path) else Refusal(404, "No")

    def not_found(self, request):
        """Real clients take a 401 for this too, but by a pattern of https addresses: hence the code here."""
        if request.user is None:
            return Refusal(401, "Invalid username or password.", "RepoNotFound")
        return Refusal(404, "Repository not found", "RepoNotFound")

    def readable(self, request, kind, repo_id):
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and repo.owner != request.user):
            raise self.not_found(request)
        return repo

    def check_write(self, request, repo, author=None):
        if request.user is None:
            raise self.not_found(request)
        if not request.writer or request.user not in (repo.owner, author):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request.")

    # ---- users and repos

    @route("GET", "/api/whoami-v2")
    def whoami(self, request):
        if request.user is None:
            raise Refusal(401, "Invalid username or password.")
        access = {"displayName": "test", "role": "write" if request.writer else "read"}
        user = {"type": "user", "id": request.user, "name": request.user, "fullname": request.user}
        return user | {"isPro": False, "orgs": [], "auth": {"type": "access_token", "accessToken": access}}

    def named(self, request):
        """The kind and the id of the repo that a request to create or delete one names in its body."""
        kind, user, asked = request.json().get("type") or "model", request.user, request.json()
        owner = asked.get("organization") or user
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if owner != user or not request.writer:
            raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        return kind, f"{owner}/{asked['name']}"

    def new_repo(self, kind, repo_id):
        self.repos[kind, repo_id] = Repo(self.root / f"{kind}s" / repo_id, kind, repo_id)
        return self.repos[kind, repo_id]

    @route("POST", "/api/repos/create")
    def create_repo(self, request):
        key, asked = self.named(request), request.json()
        known = key in self.repos
        repo = self.repos[key] if known else self.new_repo(*key)
        answer = {"url": f"{self.endpoint}/{repo.url}", "name": repo.id, "id": repo.id}
        if known:
            return Answer(409, json.dumps(answer | {"error": f"You already created this {repo.kind} repo"}).encode())
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return answer

    @route("DELETE", "/api/repos/delete")
    def delete_repo(self, request):
        key = self.named(request)
        shutil.rmtree(self.readable(request, *key).folder)
        del self.repos[key]
        return {}

    @route("PUT", "/api/{kind}/{repo}/settings")
    def settings(self, request, repo):
        self.check_write(request, repo)
        asked = request.json()
        repo.gated = asked.get("gated", repo.gated)
        repo.private = asked["visibility"] == "private" if "visibility" in asked else asked.get("private", repo.private)
        return {}

    @route("POST", "/api/validate-yaml")
    def validate(self, request):
        card, errors = read_card(request.json()["content"].encode())
        warnings = [] if card or errors else [{"message": "empty or missing yaml metadata in repo card"}]
        answer = {"errors": [{"message": error} for error in errors], "warnings": warnings}
        return Answer(400 if errors else 200, json.dumps(answer).encode())

    # ---- writing

    def target(self, request, repo, rev):
        """Check that the user may commit, or propose to; the parent commit, and the ref that is to move."""
        proposal, ref = "create_pr" in request.query, rev if rev.startswith("refs/") else f"refs/heads/{rev}"
        author = repo.find(ref)["author"] if ref.startswith("refs/pr/") else request.user if proposal else None
        self.check_write(request, repo, author)
        parent = repo.find(rev)
        if proposal:
            return parent, f"refs/pr/{sum(name.startswith('refs/pr/') for name in repo.refs) + 1}"
        if ref not in repo.refs:
            raise Refusal(400, f"{rev} is not a branch")
        return parent, ref

    @route("POST", "/api/{kind}/{repo}/preupload/{rev}")
    def preupload(self, request, repo, rev):
        """Whether each file is for LFS; its present oid lets a client leave out what has not changed."""
        known, answers = self.target(request, repo, rev)[0]["files"], []
        for file in request.json()["files"]:
            path, sample = file["path"], base64.b64decode(file.get("sample", ""))
            large = path.endswith(LFS_SUFFIXES) or file["size"] > LARGE or b"\0" in sample
            oid = known[path].etag if path in known else None
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "oid": oid})
            answers[-1]["shouldIgnore"] = False
        return {"files": answers}

    @route("POST", "/{prefix}{repo}.git/info/lfs/objects/batch")
    def lfs_batch(self, request, repo):
        if request.user is None:  # anyone else may upload: what is not committed is nowhere to be seen
            raise self.not_found(request)
        answers, url = [], f"{self.endpoint}/{repo.url}.git/info/lfs/objects/verify"
        for item in request.json()["objects"]:
            answers.append({"oid": item["oid"], "size": item["size"]})
            if not (repo.folder / item["oid"]).is_file():
                key = secrets.token_hex(16)
                self.uploads[key] = (repo, item["oid"])
                upload = {"href": f"{self.endpoint}/lfs-upload/{key}", "header": {}}
                answers[-1]["actions"] = {"upload": upload, "verify": {"href": url, "header": {}}}
        return {"transfer": "basic", "objects": answers}

    @route("PUT", "/lfs-upload/{key}")
    def lfs_upload(self, request, key):
        repo, oid = self.uploads[key]
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "The content is not what its sha256 says")
        repo.store(request.body)
        return {}

    @route("POST", "/{prefix}{repo}.git/info/lfs/objects/verify")
    def lfs_verify(self, request, repo):
        path = repo.folder / request.json()["oid"]
        if not path.is_file() or path.stat().st_size != request.json()["size"]:
            raise Refusal(400, "The object has not arrived")
        return {}

    @route("POST", "/api/{kind}/{repo}/commit/{rev}")
    def commit(self, request, repo, rev):
        parent, ref = self.target(request, repo, rev)
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        title, message = header["value"]["summary"], header["value"].get("description", "")
        if header["value"].get("parentCommit", parent["id"]) != parent["id"]:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent["files"])
        for operation in operations:
            self.change(repo, files, operation["key"], **operation["value"])
        if errors := read_card(repo.read(files["README.md"]))[1] if "README.md" in files else []:
            raise Refusal(400, "Invalid metadata in README.md.\n" + "\n".join(f"- {error}" for error in errors))
        sha, url = repo.commit(ref, parent["id"], files, title, request.user, message), f"{self.endpoint}/{repo.url}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}", "hookOutput": ""}
        return answer | {"pullRequestUrl": f"{url}/discussions/{ref.split('/')[-1]}"}

    def change(self, repo, files, key, path, content="", oid=None, **_):
        """Apply one operation of a commit to its files."""
        if key == "file":
            files[path] = repo.store(base64.b64decode(content))
        elif key == "lfsFile":
            if not (repo.folder / oid).is_file():
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
            files[path] = repo.store((repo.folder / oid).read_bytes(), lfs=True)
        else:
            inside = f"{path.rstrip('/')}/"
            gone = [name for name in files if (name == path if key == "deletedFile" else name.startswith(inside))]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]

    @route("POST|DELETE", "/api/{kind}/{repo}/tag/{rev}")
    def tag(self, request, repo, rev):
        return self.point(request, repo, f"refs/tags/{request.json().get('tag', rev)}", rev)

    @route("POST|DELETE", "/api/{kind}/{repo}/branch/{rev}")
    def branch(self, request, repo, rev):
        return self.point(request, repo, f"refs/heads/{rev}", request.json().get("startingPoint", "main"))

    def point(self, request, repo, ref, start):
        """Make a branch or a tag, or remove it."""
        self.check_write(request, repo)
        if request.command == "POST":
            if ref in repo.refs:
                raise Refusal(409, f"Reference already exists: {ref}")
            repo.refs[ref] = repo.find(start)["id"]
        elif ref == "refs/heads/main" or ref not in repo.refs:
            raise Refusal(404, f"Cannot delete {ref}", "RevisionNotFound")
        else:
            del repo.refs[ref]
        return {}

    # ---- reading

    @route("GET", "/api/{kind}/{repo}(?:/revision/{rev})?")
    def info(self, request, repo, rev="main"):
        return repo.describe(repo.find(rev), "blobs" in request.query)

    @route("GET", "/api/{kind}/{repo}/refs")
    def refs(self, request, repo):
        prefixes = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
        answer = {key: [] for key in (*prefixes, "converts")}
        for key, prefix in prefixes.items():
            for ref, sha in repo.refs.items():
                if ref.startswith(prefix):
                    answer[key].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha})
        return answer

    @route("GET", "/api/{kind}/{repo}/commits/{rev}")
    def commits(self, request, repo, rev):
        found, sha = [], repo.find(rev)["id"]
        while sha:
            commit = repo.commits[sha]
            found.append({key: commit[key] for key in ("id", "title", "message", "date")})
            found[-1]["authors"], sha = [{"user": commit["author"]}], commit["parent"]
        return found

    @route("GET", "/api/{kind}/{repo}/tree/{rev}(?:/{path})?")
    def tree(self, request, repo, rev, path=""):
        commit, prefix = repo.find(rev), f"{path}/" if path else ""
        inside = [name.removeprefix(prefix).split("/") for name in commit["files"] if name.startswith(prefix)]
        if path and not inside:
            raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound", **{"X-Repo-Commit": commit["id"]})
        depth = None if request.query.get("recursive", ["false"])[0].lower() in ("true", "1") else 1
        paths = {prefix + "/".join(parts[: end + 1]) for parts in inside for end in range(len(parts[:depth]))}
        return list(repo.entries(commit, sorted(paths)))

    @route("POST", "/api/{kind}/{repo}/paths-info/{rev}")
    def paths_info(self, request, repo, rev):
        return list(repo.entries(repo.find(rev), parse_qs(request.body.decode()).get("paths", [])))

    @route("GET|HEAD", "/{prefix}{repo}/resolve/{rev}/{path}")
    def resolve(self, request, repo, rev, path):
        commit = repo.find(rev)
        if repo.gated and request.user not in (repo.owner, *repo.granted):
            raise Refusal(403 if request.user else 401, f"Access to {repo.id} is restricted.", "GatedRepo")
        headers = {"X-Repo-Commit": commit["id"], "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if path not in commit["files"]:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit["id"]})
        file = commit["files"][path]
        headers["ETag"] = f'"{file.etag}"'
        if file.pointer:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(file.size)}
        if request.command == "HEAD":
            return Answer(200, b"", headers, length=file.size)
        data = repo.read(file)
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
        if not asked:
            return Answer(200, data, headers)
        start = int(asked[1]) if asked[1] else max(0, file.size - int(asked[2]))
        stop = min(file.size, int(asked[2]) + 1) if asked[1] and asked[2] else file.size
        if start >= file.size:
            raise Refusal(416, "Range not satisfiable", **{"Content-Range": f"bytes */{file.size}"})
        return Answer(206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{file.size}"})


class _HungUp(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    """One request, on a connection of its own: with none kept open, a server that has stopped serves nobody."""

    def log_message(self, *_):
        pass

    def handle_one(self):
        url, token = urlsplit(self.path), self.headers.get("Authorization")
        fault = self.take_fault(unquote(url.path))
        self.query = parse_qs(url.query)
        self.user, self.writer = self.hub.tokens.get((token or "").removeprefix("Bearer "), (None, False))
        try:
            self.read_body(fault)
            if isinstance(fault.kind, int):
                raise Refusal(fault.kind, "A fault that the test asked for")
            if token is not None and self.user is None:
                raise Refusal(401, "Invalid credentials in Authorization header")
            answer = self.hub.answer(self, url.path)
        except Refusal as refusal:
            answer = refusal.answer
        except (_HungUp, ConnectionError):
            return
        except Exception:
            self.hub.errors.append(traceback.format_exc())
            answer = Refusal(500, self.hub.errors[-1]).answer
        if fault.kind != "lost":
            with contextlib.suppress(ConnectionError):  # a client may leave whenever it likes
                self.send(answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def json(self):
        return json.loads(self.body or b"{}")

    def take_fault(self, path):
        """Log the request, and count down the first fault that waits for it."""
        with self.hub.lock:
            self.hub.requests.append((self.command, path, "Authorization" in self.headers))
            for fault in self.hub.faults:
                if fault.times > 0 and fault.method in (None, self.command) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return Fault(None, None, "", 0, 0)

    def read_body(self, fault):
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length // 2 if fault.kind == "cut" else length)
        if len(self.body) < length:
            raise _HungUp

    def send(self, answer, fault):
        body, slow = b"" if self.command == "HEAD" else answer.body, fault.kind == "slow"
        if fault.kind == "cut":
            body = body[: len(body) // 2]
            if not body:
                return
        length = len(answer.body) if answer.length is None else answer.length
        self.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": length} | answer.headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        step = len(body) // (8 if slow else 1) + 1
        for start in range(0, len(body), step):
            time.sleep(fault.seconds / 8 if slow else 0)
            self.wfile.write(body[start : start + step])
