"""Push a folder to the Hub as one commit."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gdd.hub.files import is_own_file
from hf_gdd.hub.redaction import printable_cause, redact

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class PushError(RuntimeError):
    """A push failed; the repo holds all of the old files or all of the new ones."""


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
    """Fill a temporary folder and commit its files at once.

    Weights and a report of a former push are replaced; other files in the repo stay.

    Args:
        write: fills the folder it is given.
        repo: id of the model repo; made if absent.
        private: visibility of a repo made here; the account's default if None.
        revision: branch; made if absent, `main` if None.
        create_pr: open a pull request instead of committing to `main`.
        token: access token that may write; the logged-in one if None.
        commit_message: title of the commit.

    Raises:
        ValueError: `create_pr` with `revision`.
        PushError: no file was changed, or all were and the answer was lost; repo and branch may have been made.

    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

    if create_pr and revision is not None:
        raise ValueError("A pull request goes to the main branch: leave out revision or create_pr.")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        files = {p.relative_to(folder).as_posix(): p for p in sorted(Path(folder).rglob("*")) if p.is_file()}
        try:
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            info = api.model_info(repo, revision=revision)
            stale = {file.rfilename for file in info.siblings if is_own_file(file.rfilename)} - files.keys()
            # `upload_folder` may split a slow upload into several commits.
            return api.create_commit(
                repo,
                [
                    *(CommitOperationAdd(name, path) for name, path in files.items()),
                    *(CommitOperationDelete(name) for name in sorted(stale)),
                ],
                commit_message=commit_message or "Push generator with hf_gdd",
                revision=revision,
                create_pr=create_pr,
                parent_commit=info.sha,
            )
        except errors.HFValidationError as error:
            raise PushError(f"{repo!r} is not a repo id: pass one such as 'me/generator'.") from error
        except Exception as error:  # of the Hub, of the disk, or whatever the HTTP client of the day raises
            reason = str(error).rstrip(".")
            message = (
                f"The push to {repo} failed: {reason}. The repo holds what it held before, or all of the new if only "
                "the answer was lost. Log in with `hf auth login` or pass a token that may write there, check the name "
                "and the network, and push again."
            )
            raise PushError(redact(message, token)) from printable_cause(error, token)
