"""CartPole in plain Python: one episode of a policy drawn around the current one, as a shard. No package is needed.

The policy is four weights: push right where they and the observation multiply to more than 0. Each environment draws
its own, so that a thousand of them try a thousand policies (the cross-entropy method, update.py). The equations are
those of Gymnasium's CartPole-v1.
"""

from __future__ import annotations

import json
import os
import random
from array import array
from math import cos, pi, sin
from pathlib import Path

import plain_hdf5

GRAVITY, CART_KG, POLE_KG, HALF_POLE_M, FORCE_N, STEP_S = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
MOST_STEPS, MOST_M, MOST_RAD = 500, 2.4, 12 * pi / 180


def step(state: tuple[float, ...], push_right: bool) -> tuple[float, ...]:
    """What follows from position, speed, angle and its change per second, 0.02 s later."""
    x, speed, angle, turning = state
    mass = CART_KG + POLE_KG
    push = ((FORCE_N if push_right else -FORCE_N) + POLE_KG * HALF_POLE_M * turning**2 * sin(angle)) / mass
    turn = GRAVITY * sin(angle) - cos(angle) * push
    turn /= HALF_POLE_M * (4 / 3 - POLE_KG * cos(angle) ** 2 / mass)
    gain = push - POLE_KG * HALF_POLE_M * turn * cos(angle) / mass
    return x + STEP_S * speed, speed + STEP_S * gain, angle + STEP_S * turning, turning + STEP_S * turn


def episode(weights: list[float], draw: random.Random) -> tuple[list[tuple[float, ...]], list[bool], bool]:
    """Play one from a fresh start: observations (one more than steps), pushes to the right, whether the pole fell."""
    seen, pushes = [tuple(draw.uniform(-0.05, 0.05) for _ in range(4))], []
    while len(pushes) < MOST_STEPS:
        pushes.append(sum(w * value for w, value in zip(weights, seen[-1], strict=True)) > 0)
        seen.append(step(seen[-1], pushes[-1]))
        if abs(seen[-1][0]) > MOST_M or abs(seen[-1][2]) > MOST_RAD:
            return seen, pushes, True
    return seen, pushes, False


def play() -> None:
    """One environment's work; where it stands is in the variables that every task gets."""
    draw = random.Random(int(os.environ["ROSE_HPC_SEED"]))
    policy = {"mean": [0.0] * 4, "spread": [1.0] * 4}
    if "ROSE_HPC_POLICY" in os.environ:
        policy = json.loads(Path(os.environ["ROSE_HPC_POLICY"], "policy.json").read_text())
    weights = [draw.gauss(mean, spread) for mean, spread in zip(policy["mean"], policy["spread"], strict=True)]
    seen, pushes, fell = episode(weights, draw)
    steps = len(pushes)
    last = [0] * (steps - 1) + [1]
    columns = {
        "observations": (array("f", [value for state in seen[:-1] for value in state]), (4,)),
        "actions": (array("q", pushes), ()),
        "rewards": (array("d", [1.0] * steps), ()),
        "terminations": (array("B", last if fell else [0] * steps), ()),
        "truncations": (array("B", [0] * steps if fell else last), ()),
        "weights": (array("f", weights * steps), (4,)),
    }
    plain_hdf5.write(os.environ["ROSE_HPC_SHARD"], columns)


if __name__ == "__main__":
    play()
