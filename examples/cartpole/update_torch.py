"""The same update in PyTorch, on the same files: swap it for update.py, even between two iterations of a run."""

from __future__ import annotations

import network
import torch
from torch import Tensor
from update import ADAM_FILE, BATCH, DISCOUNT, FOLLOW, REWARD_SCALE, STEP_SIZE, UPDATES

import rose_hpc

SCALE = torch.from_numpy(network.SCALE)


def values(parameters: list[Tensor], observations: Tensor) -> Tensor:
    """The value of every action: (rows, 2) for observations (rows, 4)."""
    signal = observations / SCALE
    for weights, biases in zip(parameters[0:-2:2], parameters[1:-2:2], strict=True):
        signal = torch.relu(signal @ weights + biases)
    return signal @ parameters[-2] + parameters[-1]


def loss(online: list[Tensor], target: list[Tensor], batch: dict[str, Tensor]) -> Tensor:
    """The mean Huber loss of the values of the actions taken (double Q-learning; see update.py)."""
    with torch.no_grad():
        choice = values(online, batch["next_observations"]).argmax(dim=1, keepdim=True)
        expected = values(target, batch["next_observations"]).gather(1, choice)[:, 0]
        goal = REWARD_SCALE * batch["rewards"].float() + DISCOUNT * expected * ~batch["terminations"]
    taken = values(online, batch["observations"]).gather(1, batch["actions"].long()[:, None])[:, 0]
    return torch.nn.functional.huber_loss(taken, goal)


def new_adam(online: list[Tensor], memory: network.Arrays | None) -> torch.optim.Adam:
    """PyTorch's Adam, with the memory that update.py keeps: step, first moments, second moments."""
    adam = torch.optim.Adam(online, lr=STEP_SIZE)
    if memory:
        step, *moments = (torch.tensor(each) for each in memory)
        for number, parameter in enumerate(online):
            first, second = moments[number], moments[number + len(online)]
            adam.state[parameter] = {"step": step.float(), "exp_avg": first, "exp_avg_sq": second}
    return adam


def memory_of(adam: torch.optim.Adam, online: list[Tensor]) -> network.Arrays:
    """What `new_adam` takes."""
    states = [adam.state[parameter] for parameter in online]
    moments = [state[key].numpy() for key in ("exp_avg", "exp_avg_sq") for state in states]
    return [states[0]["step"].double().numpy(), *moments]


def main() -> None:
    task = rose_hpc.current_task()
    torch.use_deterministic_algorithms(True)
    policy_file, adam_file = task.policy / network.FILE, task.state / ADAM_FILE
    arrays = network.load(policy_file) if policy_file.exists() else network.new_network(task.rng)
    online = [torch.tensor(array, requires_grad=True) for array in arrays]
    target = [array.detach().clone() for array in online]
    adam = new_adam(online, network.load(adam_file) if adam_file.exists() else None)
    bank = task.bank()
    for _ in range(UPDATES):
        batch = {name: torch.from_numpy(column) for name, column in bank.sample(BATCH, rng=task.rng).items()}
        adam.zero_grad()
        loss(online, target, batch).backward()
        adam.step()
        with torch.no_grad():
            for mine, theirs in zip(target, online, strict=True):
                mine.lerp_(theirs, FOLLOW)
    network.save(policy_file, [array.detach().numpy() for array in online])
    network.save(adam_file, memory_of(adam, online))
    print(f"{UPDATES} updates from {len(bank)} rows")


if __name__ == "__main__":
    main()
