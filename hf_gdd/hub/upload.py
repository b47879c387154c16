"""A folder to the Hub as one commit, or not at all."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gdd.hub.loading import OWN_FILE

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class PushError(RuntimeError):
    """A push failed, and the repo holds all of the old or all of the new; the message names cause and remedy."""


def push(
    write: Callable[[Path], None],
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> "CommitInfo":
    """Make a folder and commit its files at once; weights or a report of a former push are replaced, the rest stays.

    Args:
        write: fills the folder it is given.
        repo: id of the model repo; made if absent.
        private: of a repo made here; the account's default if None.
        revision: the branch; made if absent, `main` if None.
        create_pr: open a pull request rather than commit to `main`.
        token: with write access; the logged-in one if None.
        commit_message: of the commit.

    Raises:
        ValueError: `create_pr` with `revision`.
        PushError: no file was changed, or all were and the answer was lost; repo and branch may have been made.

    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

    if create_pr and revision is not None:
        raise ValueError("A pull request goes to the main branch: leave revision out, or create_pr.")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        files = {p.relative_to(folder).as_posix(): p for p in sorted(Path(folder).rglob("*")) if p.is_file()}
        try:
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            there = api.model_info(repo, revision=revision)
            stale = {s.rfilename for s in there.siblings if OWN_FILE.fullmatch(s.rfilename)} - files.keys()
            return api.create_commit(
                repo,
                [
                    *(CommitOperationAdd(name, file) for name, file in files.items()),
                    *(CommitOperationDelete(name) for name in sorted(stale)),
                ],
                commit_message=commit_message or "Push generator with hf_gdd",
                revision=revision,
                create_pr=create_pr,
                parent_commit=there.sha,
            )
        except errors.HFValidationError as error:
            raise PushError(f"{repo!r} is no repo id: pass one such as 'me/generator'.") from error
        except Exception as error:  # of the Hub, of the disk, or whatever the HTTP client of the day raises
            raise PushError(
                f"The push to {repo} failed: {error} The repo holds what it held before, or all of the new if only the "
                "answer was lost. Log in with `hf auth login` or pass a token that may write there, check the name "
                "and the network, and push again."
            ) from error
