"""The small Q-network that environment.py, update.py and check.py share, and its file in the policy folder.

A network is a list of float32 arrays: weight matrix, bias, weight matrix, bias, ... Hidden layers are rectified.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

LAYERS = (4, 64, 64, 2)  # CartPole: four numbers observed, two actions
SCALE = np.array([2.4, 3.0, 0.21, 3.0], dtype=np.float32)  # brings the four observed numbers to about -1 ... 1
FILE = "network.npz"

Network = list[np.ndarray]


def new_network(rng: np.random.Generator) -> Network:
    """Random weights (He initialisation), zero biases."""
    network: Network = []
    for inputs, outputs in zip(LAYERS, LAYERS[1:], strict=False):
        network.append(rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, outputs)).astype(np.float32))
        network.append(np.zeros(outputs, dtype=np.float32))
    return network


def activations(network: Network, observations: np.ndarray) -> list[np.ndarray]:
    """The input and output of every layer, for observations of shape (..., 4); the last are the values of the actions."""
    values = [observations / SCALE]
    for weight, bias in zip(network[0:-2:2], network[1:-2:2], strict=True):
        values.append(np.maximum(values[-1] @ weight + bias, 0.0))
    values.append(values[-1] @ network[-2] + network[-1])
    return values


def greedy_action(network: Network, observation: np.ndarray) -> int:
    """The action of the highest value for one observation of shape (4,)."""
    return int(activations(network, observation)[-1].argmax())


def save(folder: Path, network: Network, name: str = FILE) -> None:
    """Write the arrays, numbered in their order, to one file of `folder`."""
    np.savez(folder / name, **{f"{number:02d}": array for number, array in enumerate(network)})


def load(folder: Path, name: str = FILE) -> Network:
    """Read what `save` wrote. Pickles are refused."""
    with np.load(folder / name, allow_pickle=False) as file:
        return [file[key] for key in sorted(file.files)]
