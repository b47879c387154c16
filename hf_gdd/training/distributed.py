"""Train with several processes as one.

Each process makes the same random draws for the whole batch, then takes its part.
"""

import signal
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_gdd.utils.device import at_least_float32, launched

_ASK_EVERY = 5  # seconds


class Processes:
    """The processes of a run; with a single one all of this costs nothing.

    Raises:
        ValueError: a launcher started several processes, but they did not form a group.

    """

    def __init__(self, accelerator: Accelerator) -> None:
        world_size = launched()[1]
        if world_size != accelerator.num_processes:
            raise ValueError(
                f"WORLD_SIZE says {world_size} processes, but {accelerator.num_processes} formed a group: set "
                "ACCELERATE_USE_CPU=true to train on CPUs; without a launcher unset WORLD_SIZE."
            )
        self.accelerator = accelerator
        self.count, self.is_main = accelerator.num_processes, accelerator.is_main_process
        self.index = accelerator.process_index
        self._steps, self._enough, self._asked = 0, 1, time.perf_counter()  # steps since ranks synchronized

    def local_part(self, whole: Tensor) -> Tensor:
        """Return this process's rows of a tensor that all processes have."""
        return whole.tensor_split(self.count)[self.index]

    def gather(self, part: Tensor) -> Tensor:
        """Return the rows of all processes, differentiable.

        Losses that are not means over rows need them.
        """
        return part if self.count == 1 else _Gathered.apply(part)

    def joint_moments(self) -> AbstractContextManager:
        """Return a context in which BatchNorm uses the moments of the whole batch."""
        return nullcontext() if self.count == 1 else _JointMoments(self.count)

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over processes."""
        return tensor if self.count == 1 else self.accelerator.reduce(tensor, reduction="mean")

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their means over processes, in one exchange."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, means.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def gather_objects(self, mine: list[Any]) -> list[Any]:
        """Return the items of all processes, in the order of processes.

        Tensors among them must be in host memory.
        """
        return mine if self.count == 1 else gather_object(mine)

    def agreed_stop(self, received: list[int], ask: bool = False) -> int | None:
        """Return the signal on which all ranks stop together, or None.

        Call it after every step. Ranks synchronize every five seconds: a launcher kills processes that do not end soon.

        Args:
            received: signals of this process so far.
            ask: synchronize now; must be equal on all ranks.

        """
        if self.count == 1:
            return received[0] if received else None
        self._steps += 1
        if not ask and self._steps < self._enough:
            return None
        now = time.perf_counter()
        mine = torch.tensor([float(bool(received)), (now - self._asked) / self._steps], device=self.accelerator.device)
        stopping, pace = self.mean(mine).tolist()
        self._steps, self._asked, self._enough = 0, now, max(1, int(_ASK_EVERY / max(pace, 1e-9)))
        return (received[0] if received else signal.SIGTERM) if stopping else None

    def on_main(self, action: Callable[[], None]) -> None:
        """Run an action on the main process while the others wait.

        Raises:
            ValueError: the action raised one; it is raised on all processes.

        """
        problem = None
        try:
            if self.is_main:
                action()
        except ValueError as error:
            problem = error
        for text in self.gather_objects([problem and str(problem)]):
            if text:
                raise ValueError(text) from problem

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.accelerator.wait_for_everyone()


class _Summed(torch.autograd.Function):
    """Sum over processes whose gradient flows back to every process."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Summed.apply(gradient)


class _Gathered(torch.autograd.Function):
    """Concatenate the equal parts of all processes, differentiable."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Summed.apply(gradient).tensor_split(dist.get_world_size())[dist.get_rank()]


class _JointMoments(TorchFunctionMode):
    """Replace `F.batch_norm` in train mode by one over all processes.

    torch's own SyncBatchNorm takes no tensors in host memory.

    Args:
        count: number of processes, with equal parts of the batch.

    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.batch_norm if func is F.batch_norm else func)(*args, **kwargs or {})

    def batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Normalize [B, C, ...] with moments over the images of all processes."""
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
        values = x.numel() // x.shape[1] * self.count
        whole = at_least_float32(x)
        mean = _Summed.apply(whole.sum(dims)) / values
        centered = whole - mean.view(shape)
        variance = _Summed.apply(centered.square().sum(dims)) / values
        if running_mean is not None:
            running_mean.lerp_(mean.detach().to(running_mean), momentum)
            running_var.lerp_((variance.detach() * values / (values - 1)).to(running_var), momentum)
        scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
        normed = centered * scale.view(shape)
        return (normed if bias is None else normed + bias.view(shape)).to(x.dtype)
