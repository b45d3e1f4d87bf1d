"""The small Q-network that all scripts of this example share, and its file in the policy folder.

A network is a list of float32 arrays: weights, biases, weights, biases, ... Hidden layers are rectified.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

LAYERS = (4, 64, 64, 2)  # CartPole: four numbers observed, two actions
SCALE = np.array([2.4, 3.0, 0.21, 3.0], dtype=np.float32)  # brings what is observed to about -1 ... 1
FILE = "network.npz"

Arrays = list[np.ndarray]


def new_network(rng: np.random.Generator) -> Arrays:
    """Random weights (He et al. 2015) and zero biases."""
    network: Arrays = []
    for inputs, outputs in pairwise(LAYERS):
        network.append(rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, outputs)).astype(np.float32))
        network.append(np.zeros(outputs, dtype=np.float32))
    return network


def layers(network: Arrays, observations: np.ndarray) -> Arrays:
    """What enters and leaves each layer, for observations (..., 4); the last are the values of the actions (..., 2)."""
    signals = [observations / SCALE]
    for weights, biases in zip(network[0:-2:2], network[1:-2:2], strict=True):
        signals.append(np.maximum(signals[-1] @ weights + biases, 0.0))
    signals.append(signals[-1] @ network[-2] + network[-1])
    return signals


def values(network: Arrays, observations: np.ndarray) -> np.ndarray:
    """The value of every action: (..., 2) for observations (..., 4)."""
    return layers(network, observations)[-1]


def save(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Write arrays to one .npz file, numbered in their order."""
    np.savez(path, **{f"{number:02d}": array for number, array in enumerate(arrays)})


def load(path: Path) -> Arrays:
    """Read what `save` wrote. A pickle in it would be refused."""
    with np.load(path, allow_pickle=False) as file:
        return [file[name] for name in sorted(file.files)]
