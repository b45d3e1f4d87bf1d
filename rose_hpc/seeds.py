"""Seeds: one for the run, and from it one for every task, the same whenever and wherever the task is done again."""

from __future__ import annotations

import hashlib
import json
import secrets

#: Seeds are below this: what every library takes as a seed, in a signed 32-bit integer.
SEED_LIMIT = 2**31
_as_json = json.JSONEncoder(check_circular=False).encode


def derive_seed(run_seed: int, learner: int, iteration: int, stage: str, environment: str) -> int:
    """The seed of one task, 0 <= seed < 2**31.

    It is a hash (BLAKE2b) of where the task stands, so that it depends neither on the order of tasks nor on the
    number of environments nor on the version of Python. ``environment`` is "" for stages that have none.
    """
    # JSON keeps the fields apart: no two different places have the same text.
    place = _as_json([run_seed, learner, iteration, stage, environment])
    digest = hashlib.blake2b(place.encode("ascii"), digest_size=8, person=b"rose_hpc-seed").digest()
    return int.from_bytes(digest, "big") % SEED_LIMIT


def choose_seed() -> int:
    """A fresh run seed, 0 <= seed < 2**31, for a run whose configuration gives none."""
    return secrets.randbelow(SEED_LIMIT)
