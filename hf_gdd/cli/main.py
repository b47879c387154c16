"""Entry point of `hf-gdd`: run a command, and turn errors into exit statuses."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import tyro
from tyro.conf import subcommand

from hf_gdd.classifiers.learner import NonFiniteLossError
from hf_gdd.cli import distill, evaluate
from hf_gdd.cli.env import Env
from hf_gdd.cli.materialize import Materialize
from hf_gdd.cli.push import Push
from hf_gdd.cli.show import Show
from hf_gdd.hub.upload import PushError
from hf_gdd.training.errors import RunError
from hf_gdd.training.signals import Interrupted

ABOUT = """Distill an image data set into a generator, and a generator into a training set of any size.

  hf-gdd distill --dataset digits --preset tiny --output-dir runs/digits
  hf-gdd materialize runs/digits/generator --ipc 10 --output-dir distilled
  hf-gdd evaluate runs/digits/generator --dataset digits --ipc 10 --networks convnet2 --recipe tiny
  hf-gdd push runs/digits/generator me/digits-gdd
  hf-gdd show me/digits-gdd
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 1 if the run failed, 2 for bad input, 128 + n after signal n.

    """
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_gdd").setLevel(logging.INFO)
    try:
        _parse(argv)()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except (NonFiniteLossError, PushError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(argv: list[str]) -> Callable[[], None]:
    config_class, defaults = distill.distill_defaults(argv[1:] if argv[:1] == ["distill"] else [])
    commands = (
        Annotated[
            distill.Distill[config_class],
            subcommand("distill", default=defaults, prefix_name=False, description=distill.describe()),
        ]
        | Annotated[Materialize, subcommand("materialize", prefix_name=False)]
        | Annotated[evaluate.Evaluate, subcommand("evaluate", prefix_name=False, description=evaluate.describe())]
        | Annotated[Push, subcommand("push", prefix_name=False)]
        | Annotated[Show, subcommand("show", prefix_name=False)]
        | Annotated[Env, subcommand("env", prefix_name=False)]
    )
    return tyro.cli(commands, prog="hf-gdd", args=argv, description=ABOUT)
