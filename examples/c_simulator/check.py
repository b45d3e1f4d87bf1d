"""The check: the best mean return of all walkers."""

import json

import rose_hpc

task = rose_hpc.current_task()
print(max(json.loads((task.policy / "returns.json").read_text()).values()))
