"""Differences of two samples, their error and the words for them."""

import statistics

import pytest

from hf_gdd.utils.comparison import Difference, deviation, verdicts


def test_the_error_is_that_of_independent_samples():
    first, second = [0.6, 0.7, 0.65, 0.75], [0.5, 0.56]
    difference = Difference.between(first, second)
    assert difference.value == pytest.approx(statistics.fmean(first) - statistics.fmean(second))
    expected = statistics.stdev(first) ** 2 / 4 + statistics.stdev(second) ** 2 / 2
    assert difference.error == pytest.approx(expected**0.5)
    assert str(Difference(0.0123, 0.0046)) == "+1.2 ± 0.5"
    assert str(Difference(-0.0123)) == "-1.2"


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (1, 1)])
def test_one_value_has_no_error(sizes):
    difference = Difference.between(*([0.5, 0.6, 0.7][:size] for size in sizes))
    assert difference.error is None
    assert difference.verdict == "unknown"


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.021, "beats"), (0.02, "no difference"), (-0.02, "no difference"), (-0.021, "loses")],
)
def test_a_difference_counts_beyond_two_errors(value, verdict):
    assert Difference(value, 0.01).verdict == verdict


def test_equal_samples_without_deviation_do_not_differ():
    assert Difference.between([0.5, 0.5], [0.5, 0.5]).verdict == "no difference"
    assert Difference.between([0.6, 0.6], [0.5, 0.5]).verdict == "beats"


def test_verdicts_in_words():
    wins, same, unknown = Difference(0.1, 0.01), Difference(0.0, 0.01), Difference(0.1)
    assert verdicts({10: same, 1: wins, 2: wins, 5: wins}, "IPC") == (
        "beats them at IPC 1, 2 and 5 and shows no difference at IPC 10"
    )
    assert verdicts({1: Difference(-0.1, 0.01)}, "IPC") == "loses to them at IPC 1"
    assert verdicts({1: unknown}, "IPC") == "cannot be compared at IPC 1 (one network only, no error known)"


def test_deviation_of_a_sample():
    assert deviation([0.4, 0.6]) == pytest.approx(statistics.stdev([0.4, 0.6]))
    assert deviation([0.4]) == 0
