"""A stand-in for your simulator: a cart that a controller is to bring to position 1, and keep there.

Replace it. All that environment.py and check.py need is a number that says how good a trial was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

STEPS = 100
STEP_S = 0.05
STRONGEST = 10.0


def simulate(gains: Sequence[float], rng: np.random.Generator) -> float:
    """One trial of the controller ``force = gains[0] * (1 - position) - gains[1] * velocity``, pushed about by noise.

    Returns:
        The reward, 0 to 100: the mean closeness to position 1.
    """
    position = velocity = closeness = 0.0
    for push in rng.normal(scale=2.0, size=STEPS):
        force = gains[0] * (1.0 - position) - gains[1] * velocity
        velocity += STEP_S * (max(-STRONGEST, min(STRONGEST, force)) + push)
        position += STEP_S * velocity
        closeness += math.exp(-abs(1.0 - position))
    return 100.0 * closeness / STEPS
