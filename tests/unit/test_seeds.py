"""Seeds: the same for ever, different for every task."""

from __future__ import annotations

import itertools

import pytest

from rose_hpc.seeds import SEED_LIMIT, choose_seed, derive_seed


@pytest.mark.parametrize(
    ("place", "seed"),
    [
        ((0, 0, 0, "collect", "env_1"), 1998300293),
        ((0, 0, 0, "update", ""), 252482319),
        ((7, 0, 3, "check", ""), 1687057314),
        ((2**40, 2, 10**6, "collect", "A.b-c"), 790997465),
    ],
)
def test_derived_seeds_never_change(place, seed):
    """A run started with an older version, or elsewhere, is repeated with the same seeds: these are fixed values."""
    assert derive_seed(*place) == seed


def test_derived_seeds_differ():
    """Tasks of one run do not share a seed, whichever of run, learner, iteration, stage or environment differs."""
    places = itertools.product((0, 1), (0, 1), range(50), ("collect", "check"), ("", "1", "11", "env_1"))
    seeds = [derive_seed(*place) for place in places]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < SEED_LIMIT for seed in seeds)


def test_chosen_seeds_are_in_range_and_differ():
    """A run without a seed gets one in the range every library takes, not the same one each time."""
    seeds = [choose_seed() for _ in range(20)]
    assert all(0 <= seed < SEED_LIMIT for seed in seeds)
    assert len(set(seeds)) > 1
