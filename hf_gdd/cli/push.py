"""`hf-gdd push`: publish a generator on the Hub."""

from dataclasses import dataclass

from tyro.conf import Positional

from hf_gdd.cli.options import load_generator


@dataclass(frozen=True)
class Push:
    """Publish a generator on the Hub as one commit.

    The commit holds weights, config, card, report and samples. Log in first with `hf auth login`. What the folder holds
    is pushed; the card is written anew.
    """

    generator: Positional[str]
    """folder of a generator, or the repo id of another"""
    repo: Positional[str]
    """id of the model repo, such as me/cifar10-gdd; created if absent"""
    private: bool = False
    """make the repo private, if it is created now"""
    branch: str | None = None
    """branch to push to, created if absent; main if not given"""
    create_pr: bool = False
    """open a pull request instead of committing"""
    commit_message: str | None = None
    """commit message"""

    def __call__(self) -> None:
        """Push, and print how to load it."""
        commit = load_generator(self.generator).push_to_hub(
            self.repo,
            private=self.private or None,
            revision=self.branch,
            create_pr=self.create_pr,
            commit_message=self.commit_message,
        )
        print(f'{commit}\nAutoGenerator.from_pretrained("{self.repo}", revision="{commit.oid}")')
