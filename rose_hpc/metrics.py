"""Metrics, operators and the question "is the criterion met".

The names and the default operators are those of ROSE (``rose/metrics.py``, radical-cybertools/ROSE, MIT), and
``MODEL_REWARD``, which ROSE's reinforcement learning examples use. A metric of any other name is compared with ``>``.
"""

from __future__ import annotations

import math
import operator as _operator
from collections.abc import Callable

from rose_hpc.errors import UsageError

# Rewards
MODEL_REWARD = "MODEL_REWARD"

# Uncertainty
CUSTOM_UQ = "custom_uq"
PREDICTIVE_ENTROPY = "predictive_entropy"
MUTUAL_INFORMATION = "mutual_information"
VARIATION_RATIO = "variation_ratio"
MARGIN = "margin"
PREDICTIVE_VARIANCE = "predictive_variance"
PREDICTIVE_INTERVAL_WIDTH = "predictive_interval_width"
NEGATIVE_LOG_LIKELIHOOD = "negative_log_likelihood"

# Learning
MODEL_ACCURACY = "model_accuracy"
QUERY_EFFICIENCY = "query_efficiency"
LABELING_COST = "labeling_cost"
DIVERSITY_OF_SELECTED_SAMPLES = "diversity_of_selected_samples"
UNCERTAINTY = "uncertainty"
QUERY_REDUCTION = "query_reduction"
AREA_UNDER_LEARNING_CURVE_AUC = "area_under_learning_curve_auc"
EXPECTED_MODEL_IMPROVEMENT_EMI = "expected_model_improvement_emi"
SAMPLING_BIAS = "sampling_bias"
PREDICTION_CONFIDENCE = "prediction_confidence"
CLASS_DISTRIBUTION_SHIFT = "class_distribution_shift"
CUMULATIVE_ERROR_REDUCTION = "cumulative_error_reduction"
QUERY_SELECTION_STRATEGY_PERFORMANCE = "query_selection_strategy_performance"
NUMBER_OF_ITERATIONS = "number_of_iterations"
F1_SCORE = "f1_score"
PRECISION = "precision"
RECALL = "recall"
INFORMATION_GAIN = "information_gain"
TIME_TO_CONVERGENCE = "time_to_convergence"
MODEL_COMPLEXITY = "model_complexity"
DATA_LABELING_REDUNDANCY = "data_labeling_redundancy"
GENERALIZATION_ERROR = "generalization_error"
LEARNING_RATE = "learning_rate"
TRAINING_TIME = "training_time"
CONFIDENCE_INTERVAL_WIDTH = "confidence_interval_width"
OVERFITTING = "overfitting"
ACTIVE_LEARNING_EFFICIENCY = "active_learning_efficiency"
EXPLORATION_VS_EXPLOITATION = "exploration_vs_exploitation"
MEAN_SQUARED_ERROR_MSE = "mean_squared_error_mse"

# Operators
LESS_THAN_THRESHOLD = "<"
GREATER_THAN_THRESHOLD = ">"
EQUAL_TO_THRESHOLD = "="
LESS_THAN_OR_EQUAL_TO_THRESHOLD = "<="
GREATER_THAN_OR_EQUAL_TO_THRESHOLD = ">="

#: What each operator does; ROSE's "=" means "==".
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": _operator.gt,
    ">=": _operator.ge,
    "<": _operator.lt,
    "<=": _operator.le,
    "==": _operator.eq,
    "=": _operator.eq,
}

_GREATER = (
    MODEL_REWARD,
    QUERY_EFFICIENCY,
    DIVERSITY_OF_SELECTED_SAMPLES,
    QUERY_REDUCTION,
    AREA_UNDER_LEARNING_CURVE_AUC,
    EXPECTED_MODEL_IMPROVEMENT_EMI,
    PREDICTION_CONFIDENCE,
    CUMULATIVE_ERROR_REDUCTION,
    QUERY_SELECTION_STRATEGY_PERFORMANCE,
    F1_SCORE,
    PRECISION,
    RECALL,
    INFORMATION_GAIN,
    ACTIVE_LEARNING_EFFICIENCY,
    EXPLORATION_VS_EXPLOITATION,
)  # fmt: skip - one name a line would hide the table
_LESS = (
    CUSTOM_UQ,
    PREDICTIVE_ENTROPY,
    MUTUAL_INFORMATION,
    VARIATION_RATIO,
    MARGIN,
    PREDICTIVE_VARIANCE,
    PREDICTIVE_INTERVAL_WIDTH,
    NEGATIVE_LOG_LIKELIHOOD,
    LABELING_COST,
    UNCERTAINTY,
    SAMPLING_BIAS,
    CLASS_DISTRIBUTION_SHIFT,
    NUMBER_OF_ITERATIONS,
    TIME_TO_CONVERGENCE,
    MODEL_COMPLEXITY,
    DATA_LABELING_REDUNDANCY,
    GENERALIZATION_ERROR,
    LEARNING_RATE,
    TRAINING_TIME,
    CONFIDENCE_INTERVAL_WIDTH,
    OVERFITTING,
    MEAN_SQUARED_ERROR_MSE,
)  # fmt: skip - one name a line would hide the table

#: metric -> the operator ROSE compares it with
DEFAULT_OPERATORS: dict[str, str] = {
    **dict.fromkeys(_GREATER, GREATER_THAN_THRESHOLD),
    **dict.fromkeys(_LESS, LESS_THAN_THRESHOLD),
    MODEL_ACCURACY: GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
}


def operator_for(metric: str) -> str:
    """The operator a metric is compared with when none is given: ROSE's for its metrics, ``>`` for any other.

    An operator that *is* given is used as it says, also for a metric of this table (ROSE lets its table win).
    """
    return DEFAULT_OPERATORS.get(metric, GREATER_THAN_THRESHOLD)


def compare(value: float, operator: str, threshold: float) -> bool:
    """Whether ``value operator threshold`` holds, e.g. ``compare(201.0, ">", 200.0)``; NaN meets no criterion.

    Raises:
        UsageError: an operator other than ``> >= < <= ==`` (or ROSE's ``=``).
    """
    try:
        holds = OPERATORS[operator]
    except KeyError:
        known = " ".join(OPERATORS)
        raise UsageError(f"unknown operator {operator!r}", hint=f"use one of {known}") from None
    return not (math.isnan(value) or math.isnan(threshold)) and holds(value, threshold)
