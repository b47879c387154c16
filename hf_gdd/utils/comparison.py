"""Compare two samples: their difference, its standard error, and a verdict."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CERTAIN = 2.0  # standard errors beyond which a difference counts
_PREDICATES = {
    "beats": "beats them at {}",
    "loses": "loses to them at {}",
    "no difference": "shows no difference at {}",
    "unknown": "cannot be compared at {} (one network only, no error known)",
}


@dataclass(frozen=True)
class Difference:
    """Difference of the means of two samples.

    Attributes:
        value: mean of the first sample minus that of the second.
        error: its standard error; None if a sample has one value only, and so no deviation.

    Example:
        gain = Difference.between([0.61, 0.63, 0.62], [0.55, 0.52, 0.56])
        print(gain, gain.verdict)  # +7.7 ± 1.3 beats

    """

    value: float
    error: float | None = None

    @classmethod
    def between(cls, first: Sequence[float], second: Sequence[float]) -> "Difference":
        """Compare samples of independent values; the error is sqrt(s1^2/n1 + s2^2/n2)."""
        value = statistics.fmean(first) - statistics.fmean(second)
        if min(len(first), len(second)) < 2:
            return cls(value)
        return cls(value, math.sqrt(sum(statistics.variance(each) / len(each) for each in (first, second))))

    @property
    def verdict(self) -> str:
        """One of `beats`, `loses`, `no difference` and, without an error, `unknown`."""
        if self.error is None:
            return "unknown"
        if abs(self.value) <= CERTAIN * self.error:
            return "no difference"
        return "beats" if self.value > 0 else "loses"

    def __str__(self) -> str:
        """Return hundredths, such as percentage points of an accuracy."""
        return f"{100 * self.value:+.1f}" + ("" if self.error is None else f" ± {100 * self.error:.1f}")


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def verdicts(differences: Mapping[int, Difference], unit: str) -> str:
    """Return in words at which sizes the first samples beat the second ones.

    Example:
        verdicts({1: Difference(0.1, 0.01), 10: Difference(0.0, 0.01)}, "IPC")
        # "beats them at IPC 1 and shows no difference at IPC 10"

    """
    sizes: dict[str, list[str]] = {}
    for size, difference in sorted(differences.items()):
        sizes.setdefault(difference.verdict, []).append(str(size))
    return _listed([_PREDICATES[verdict].format(f"{unit} {_listed(each)}") for verdict, each in sizes.items()])


def _listed(words: Sequence[str]) -> str:
    """Join words as in "1, 10 and 50"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
