"""Improve the policy from the merged experience of all environments: double Q-learning, in numpy.

What is in the folder `task.policy` when this ends well is the next policy; `task.state` keeps the optimiser's memory.
The method is that of van Hasselt et al. (2016), with a target network that follows smoothly.
"""

from __future__ import annotations

import network
import numpy as np
from network import Arrays

import rose_hpc

UPDATES = 1000  # gradient steps per iteration
BATCH = 128
DISCOUNT = 0.99
REWARD_SCALE = 0.1  # values of about 10, not 100: reached sooner, at the same step size
FOLLOW = 0.01  # how fast the target network follows
STEP_SIZE = 1e-3
ADAM_FILE = "adam.npz"

Batch = dict[str, np.ndarray]


class Adam:
    """The optimiser of Kingma & Ba (2015); its memory is a list of arrays: step, first moments, second moments."""

    def __init__(self, parameters: Arrays, memory: Arrays | None = None) -> None:
        self.memory = memory or [np.zeros(()), *(np.zeros_like(each) for each in [*parameters, *parameters])]

    def step(self, parameters: Arrays, gradients: Arrays) -> None:
        """Change the parameters in place."""
        self.memory[0] = steps = self.memory[0] + 1
        moments = self.memory[1:]
        size = float(STEP_SIZE * np.sqrt(1 - 0.999**steps) / (1 - 0.9**steps))
        for parameter, gradient, first, second in zip(
            parameters, gradients, moments[: len(parameters)], moments[len(parameters) :], strict=True
        ):
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient * gradient - second)
            parameter -= size * first / (np.sqrt(second) + 1e-8)


def wanted(online: Arrays, target: Arrays, batch: Batch) -> np.ndarray:
    """The value each action taken should have: reward now, and what the target network expects of the next state.

    The online network chooses the next action. A truncated episode would have gone on; only a fallen pole ends it.
    """
    choice = network.values(online, batch["next_observations"]).argmax(axis=1, keepdims=True)
    expected = np.take_along_axis(network.values(target, batch["next_observations"]), choice, axis=1)[:, 0]
    return REWARD_SCALE * batch["rewards"] + DISCOUNT * expected * ~batch["terminations"]


def gradients(online: Arrays, batch: Batch, goal: np.ndarray) -> Arrays:
    """Of the mean Huber loss between the values of the actions taken and `goal`, for every array of the network."""
    *inputs, output = network.layers(online, batch["observations"])
    taken = (np.arange(len(goal)), batch["actions"])
    error = np.zeros_like(output)
    error[taken] = np.clip(output[taken] - goal, -1.0, 1.0) / len(goal)
    found: Arrays = []
    for signal, weights in zip(reversed(inputs), online[-2::-2], strict=True):
        found = [signal.T @ error, error.sum(axis=0), *found]
        error = (error @ weights.T) * (signal > 0.0)
    return found


def improve(online: Arrays, adam: Adam, bank: rose_hpc.ExperienceBank, rng: np.random.Generator) -> None:
    """UPDATES gradient steps on batches of the bank; changes the network and the optimiser in place."""
    target = [array.copy() for array in online]
    for _ in range(UPDATES):
        batch = bank.sample(BATCH, rng=rng)
        adam.step(online, gradients(online, batch, wanted(online, target, batch)))
        for mine, theirs in zip(target, online, strict=True):
            mine += FOLLOW * (theirs - mine)


def main() -> None:
    task = rose_hpc.current_task()
    policy_file, adam_file = task.policy / network.FILE, task.state / ADAM_FILE
    online = network.load(policy_file) if policy_file.exists() else network.new_network(task.rng)
    adam = Adam(online, network.load(adam_file) if adam_file.exists() else None)
    bank = task.bank()
    improve(online, adam, bank, task.rng)
    network.save(policy_file, online)
    network.save(adam_file, adam.memory)
    print(f"{UPDATES} updates from {len(bank)} rows")


if __name__ == "__main__":
    main()
