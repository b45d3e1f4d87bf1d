"""The disk of a run fails: in every process of it, call N on the run directory gets an error; then the run goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import failing_calls
from cells import Cell, Part
from failing_calls import FAILURES
from tiny import Tiny
from torture import ENDED, Torture

_TRAINING = Tiny("config", iterations=2)
#: processes of such a run make up to about so many calls on its directory
_CALLS = 600
_SHORT, _LONG = 6, 200


def cell(shared: Torture, seed: int) -> list[str]:
    """One call of each process fails, or all from then on; whoever goes on with the run ends as if nothing had been."""
    rng = random.Random(seed)
    fault, at = rng.choice(FAILURES), round(_CALLS ** rng.random())
    shared.undisturbed(_TRAINING)
    with shared.trial(_TRAINING) as trial:
        code = trial.settle(trial.start(**failing_calls.variable(trial.run, at, fault)))
        if code in ENDED:
            trial.compare(tidy=False)
        else:
            trial.finish()
        return [f"{fault} at call {at}: {violation}" for violation in trial.violations]


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """As many as there are seeds."""
    with Torture(folder, LD_PRELOAD=str(failing_calls.build(folder))) as shared:
        yield ((f"seed {seed}", lambda seed=seed: cell(shared, seed)) for seed in range(_LONG if long else _SHORT))


PART = Part("disk", "the same in all processes of a run, at a random call; then the run is resumed", cells)
