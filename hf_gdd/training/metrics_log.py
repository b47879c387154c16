"""Metrics of a run: fetched rarely, checked for finiteness, logged and plotted."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_gdd.classifiers.learner import NonFiniteLossError
from hf_gdd.training.run_folder import RunFolder
from hf_gdd.utils.plotting import plot_losses


class MetricsLog:
    """Collect scalars on the device; `flush` fetches them in one transfer.

    Args:
        run: folder that lines and curves are written to.
        write: True in the one process that writes.
        forward: called with (means, step), for trackers.
        reduce: averages a tensor over the processes, so that all of them see the same losses.

    """

    def __init__(
        self,
        run: RunFolder,
        write: bool,
        forward: Callable[[dict[str, float], int], None],
        reduce: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self.run, self.write, self.forward, self.reduce = run, write, forward, reduce
        self.pending: list[tuple[int, str, Tensor]] = []
        self.fetched: list[tuple[int, str, float]] = []
        self.images, self.since = 0, 0.0

    def add(self, step: int, images: int, metrics: dict[str, Tensor]) -> None:
        """Add a step's scalars without waiting for the device."""
        self.pending += [(step, name, value) for name, value in metrics.items()]
        self.images += images

    def fetch(self) -> None:
        """Wait for the device and fetch what is pending."""
        if self.pending:
            values = self.reduce(torch.stack([value.float() for _, _, value in self.pending])).tolist()
            self.fetched += [(step, name, value) for (step, name, _), value in zip(self.pending, values, strict=True)]
            self.pending = []

    def flush(self, stage: str, seconds: float) -> dict[str, Any]:
        """Log the means since the last flush.

        Args:
            stage: name of the stage.
            seconds: training time of the run so far.

        Returns:
            The record that was logged; empty if there was nothing.

        Raises:
            NonFiniteLossError: naming the first step and term that are not finite.

        """
        self.fetch()
        if not self.fetched:
            return {}
        series: dict[str, list[float]] = {}
        for step, name, value in self.fetched:
            if not math.isfinite(value):
                raise NonFiniteLossError(f"{name} became {value} in step {step} (stage {stage}).")
            series.setdefault(name, []).append(value)
        means = {name: sum(parts) / len(parts) for name, parts in series.items()}
        step, rate = self.fetched[-1][0], self.images / max(seconds - self.since, 1e-9)
        record = {"step": step, "stage": stage, **means, "seconds": seconds, "images_per_second": rate}
        self.fetched, self.images, self.since = [], 0, seconds
        if self.write:
            self.run.log(record)
            self.forward(means, step)
        return record

    def resume(self, step: int, seconds: float) -> None:
        """Delete what a killed run logged after its last checkpoint."""
        self.since = seconds
        if self.write:
            self.run.records(until=step)

    def rates(self) -> dict[str, float]:
        """Return images per second in each stage."""
        totals: dict[str, tuple[float, float]] = {}
        before = 0.0
        for record in self.run.records():
            images, seconds = totals.get(record["stage"], (0.0, 0.0))
            spent, before = record["seconds"] - before, record["seconds"]
            totals[record["stage"]] = (images + record["images_per_second"] * spent, seconds + spent)
        return {stage: images / max(seconds, 1e-9) for stage, (images, seconds) in totals.items()}

    def draw(self) -> None:
        """Draw the curves of everything logged so far."""
        if self.write and (records := self.run.records()):
            plot_losses(records, self.run.path / "losses.png", title=self.run.path.name)


def gradient_shares(terms: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Return each term's share, in [0, 1], of the summed gradient norms at `images`.

    The graph of `terms` is kept for the backward pass to come.
    """
    norms = {
        name: torch.autograd.grad(term, images, retain_graph=True)[0].float().norm() for name, term in terms.items()
    }
    total = sum(norms.values()).clamp_min(torch.finfo(torch.float32).tiny)
    return {name: norm / total for name, norm in norms.items()}


def non_finite_part(parts: Mapping[str, Any], reduce: Callable[[Tensor], Tensor]) -> str | None:
    """Return the name of the first module with a non-finite weight, or None.

    Weights of all processes count. The gradient of a finite loss can spoil weights, so losses alone do not tell.

    Args:
        parts: what a run tracks, by name; only modules are looked at.
        reduce: averages a tensor over the processes.

    """
    for name, module in parts.items():
        if isinstance(module, nn.Module):
            weights = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
            finite = torch.stack([tensor.isfinite().all() for tensor in weights]).all()
            if reduce(finite.float()) < 1:
                return name
    return None
