"""Stop a training cleanly on SIGINT and SIGTERM."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Raised after a stop signal, once a checkpoint is saved.

    Args:
        signum: the signal.
        step: steps taken so far.
        folder: the run's folder.

    """

    def __init__(self, signum: int, step: int, folder: Path) -> None:
        script = Path(sys.argv[0]).name
        command = shlex.join([script, *sys.argv[1:]] if script == "hf-gdd" else sys.orig_argv)
        again = "call fit() again" if "ipykernel" in sys.modules else f"run the same command again: {command}"
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            again += " (under the same launcher)"
        super().__init__(
            f"{signal.Signals(signum).name}: stopped after step {step}, saved in {folder}. To resume, {again}"
        )
        self.signum = signum


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; only the same signal again stops at once.

    Yields:
        The signals received so far.

    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {}

    def remember(signum: int, frame: Any) -> None:
        received.append(signum)
        signal.signal(signum, previous[signum])

    previous = {signum: signal.signal(signum, remember) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
