"""Several processes that train as one: each draws the same for the whole batch, then takes its part."""

import signal
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class Processes:
    """The processes of a run, or its only one, for which all of this costs nothing."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count, self.main = accelerator.num_processes, accelerator.is_main_process
        self.index = accelerator.process_index

    def part(self, whole: Tensor) -> Tensor:
        """The rows of this process."""
        return whole.tensor_split(self.count)[self.index]

    def gathered(self, part: Tensor) -> Tensor:
        """The rows of all processes, differentiable: for losses that are no means over rows."""
        if self.count == 1:
            return part
        return torch.cat(torch.distributed.nn.functional.all_gather(part))

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes."""
        return tensor if self.count == 1 else self.accelerator.reduce(tensor, reduction="mean")

    def collected(self, mine: list[Any]) -> list[Any]:
        """The items of all processes, in the order of processes; tensors must be in host memory."""
        return mine if self.count == 1 else gather_object(mine)

    def agreed_stop(self, received: list[int], ask: bool) -> int | None:
        """The signal that all stop for, so that none waits for one that left.

        Args:
            received: by this process so far.
            ask: the others; true in the same steps everywhere, and seldom, since each waits for all.

        """
        if self.count == 1:
            return received[0] if received else None
        if received:
            self.accelerator.set_trigger()
        if ask and self.accelerator.check_trigger():
            return received[0] if received else signal.SIGTERM
        return None

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()
