"""Metrics: ROSE's names and operators, compared as they say."""

from __future__ import annotations

import math

import pytest

from rose_hpc import metrics
from rose_hpc.errors import UsageError


@pytest.mark.parametrize(
    ("operator", "below", "at", "above"),
    [
        (metrics.GREATER_THAN_THRESHOLD, False, False, True),
        (metrics.GREATER_THAN_OR_EQUAL_TO_THRESHOLD, False, True, True),
        (metrics.LESS_THAN_THRESHOLD, True, False, False),
        (metrics.LESS_THAN_OR_EQUAL_TO_THRESHOLD, True, True, False),
        (metrics.EQUAL_TO_THRESHOLD, False, True, False),
        ("==", False, True, False),
    ],
)
def test_operators_compare_as_they_say(operator, below, at, above):
    """Each operator holds on exactly the sides of the threshold that its sign names."""
    assert [metrics.compare(value, operator, 200.0) for value in (199.0, 200.0, 201.0)] == [below, at, above]


@pytest.mark.parametrize("operator", metrics.OPERATORS)
def test_nan_meets_no_criterion(operator):
    """A reward, or a threshold, that is not a number never ends a run as converged."""
    assert not metrics.compare(math.nan, operator, 0.0)
    assert not metrics.compare(0.0, operator, math.nan)
    assert not metrics.compare(math.nan, operator, math.nan)


def test_unknown_operator_is_refused():
    """An operator that is none of the five is an error that lists them, not a criterion that never holds."""
    with pytest.raises(UsageError, match="unknown operator '=>'; use one of > >= < <= =="):
        metrics.compare(1.0, "=>", 0.0)


@pytest.mark.parametrize(
    ("metric", "operator"),
    [
        (metrics.MODEL_REWARD, ">"),
        (metrics.MODEL_ACCURACY, ">="),
        (metrics.MEAN_SQUARED_ERROR_MSE, "<"),
        (metrics.PREDICTIVE_ENTROPY, "<"),
        (metrics.F1_SCORE, ">"),
        ("something of mine", ">"),
    ],
)
def test_default_operators_are_those_of_rose(metric, operator):
    """ROSE's metrics bring their own operator; any other metric is one to make larger."""
    assert metrics.operator_for(metric) == operator


def test_every_metric_of_the_module_has_an_operator():
    """No metric constant is missing from the table of default operators."""
    names = {
        value
        for name, value in vars(metrics).items()
        if name.isupper() and isinstance(value, str) and value not in metrics.OPERATORS
    }
    assert names == set(metrics.DEFAULT_OPERATORS)
