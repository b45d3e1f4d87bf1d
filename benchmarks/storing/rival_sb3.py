"""Stable-Baselines3's ReplayBuffer of a million transitions, in memory: `python THIS WIDTH`.

For each line it reads, it prints the median seconds of `sample(256)`, of 1,000.
"""

import statistics
import sys
import time

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

width = int(sys.argv[1])
rng = np.random.default_rng(0)
space = spaces.Box(-1, 1, (width,), np.float32)
buffer = ReplayBuffer(1_000_000, space, spaces.Discrete(2), device="cpu")
for array in (buffer.observations, buffer.next_observations, buffer.rewards):
    array[:] = rng.random(array.shape, np.float32)
buffer.full = True
print("ready", flush=True)
for _ in sys.stdin:
    times = []
    for _ in range(1000):
        start = time.perf_counter()
        buffer.sample(256)
        times.append(time.perf_counter() - start)
    print(statistics.median(times), flush=True)
