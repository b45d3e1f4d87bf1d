"""Digests and statistics as pure functions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rose_hpc.experience import digest
from rose_hpc.experience.digest import CHUNK, ChunkDigests, column_digest, content_digest
from rose_hpc.experience.stats import StatsStream, block_rows, combine, stats_of_block, stats_shape

VALUES = st.one_of(st.floats(-1e6, 1e6, width=32), st.just(np.nan))
BLOCKS = hnp.arrays(np.float32, st.tuples(st.integers(1, 300), st.integers(1, 4)), elements=VALUES)
PAIRS = hnp.arrays(np.float32, st.tuples(st.integers(1, 300), st.just(2)), elements=VALUES)


@settings(deadline=None)
@given(BLOCKS)
def test_statistics_are_numpys(block: np.ndarray) -> None:
    """Count, mean, M2, min, max and NaNs of a block are what NumPy says of its rows without NaNs, per element."""
    stats = stats_of_block(block)
    for element in range(block.shape[1]):
        values = block[:, element].astype(np.float64)
        seen = values[~np.isnan(values)]
        assert stats.count[element] == len(seen)
        assert stats.nans[element] == len(values) - len(seen)
        if len(seen):
            assert stats.mean[element] == pytest.approx(seen.mean(), rel=1e-9, abs=1e-9)
            assert stats.m2[element] == pytest.approx(((seen - seen.mean()) ** 2).sum(), rel=1e-6, abs=1e-3)
            assert (stats.min[element], stats.max[element]) == (seen.min(), seen.max())
        else:
            assert np.isnan([stats.mean[element], stats.min[element], stats.max[element]]).all()


@settings(deadline=None)
@given(st.lists(PAIRS, max_size=4))
def test_combined_statistics_are_those_of_all_rows(blocks: list[np.ndarray]) -> None:
    """Statistics of parts combine to those of the whole, blocks of nothing but NaNs among them."""
    whole = combine([stats_of_block(block) for block in blocks], (2,))
    if blocks:
        expected = stats_of_block(np.concatenate(blocks))
        assert np.array_equal(whole.count, expected.count)
        assert np.array_equal(whole.nans, expected.nans)
        for ours, theirs in zip(whole.values, expected.values, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-2)
    else:
        assert whole.count.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i8", "u8", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(), (3,), (64, 64), (100, 100)])
def test_every_dtype_and_shape_has_statistics(dtype: str, shape: tuple[int, ...]) -> None:
    """Statistics are per element up to 4,096 elements and over all beyond, and exact for small integers."""
    block = (np.random.default_rng(0).random((5, *shape)) * 2).astype(dtype)
    stats = stats_of_block(block)
    axis = 0 if shape != (100, 100) else None
    assert stats.mean.shape == stats_shape(shape) == (shape if axis == 0 else ())
    np.testing.assert_allclose(stats.mean, block.astype(np.float64).mean(axis=axis))
    assert np.array_equal(stats.max, block.max(axis=axis).astype(np.float64))
    assert (stats.count == (5 if axis == 0 else 5 * 10_000)).all()


def test_infinities_are_data() -> None:
    """Infinite values count, and show in min, max and mean, without a warning."""
    stats = stats_of_block(np.array([1.0, np.inf, -np.inf, np.nan]))
    assert (stats.count, stats.nans, stats.min, stats.max) == (3, 1, -np.inf, np.inf)
    assert np.isnan(stats.mean)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_no_bits_are_worth_a_warning(dtype: str) -> None:
    """Whatever bits a simulator leaves in a float column, signalling NaNs among them, it has statistics."""
    bits = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    bits[:8] = np.array([0x01, 0x7C, 0x01, 0x7C, 0x01, 0x00, 0xF0, 0x7F], np.uint8)
    block = bits.view(dtype)
    stats = stats_of_block(block)
    assert stats.nans + stats.count == len(block)
    assert stats.nans == np.isnan(block).sum()


def test_a_mean_far_from_zero_keeps_its_variance() -> None:
    """The variance of values around 1e9 is not lost to rounding."""
    values = 1e9 + np.tile([0.0, 1.0], 100_000)
    stream = StatsStream(())
    for start in range(0, len(values), block_rows(())):
        stream.add(values[start : start + block_rows(())])
    assert float(stream.stats.std) == pytest.approx(0.5, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=5))
def test_a_digest_does_not_depend_on_how_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    """The tree over chunks is the same for bytes fed at once, in any pieces, or in stretches that start at chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "CHUNK", 32)
        leaves = [xxhash.xxh3_128(data[at : at + 32]).digest() for at in range(0, len(data), 32)]
        tree = ChunkDigests()
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for start, stop in pairwise(edges):
            tree.update(memoryview(data)[start:stop])
        tree.finish()
        assert list(tree.digests.values()) == leaves
        stretch = ChunkDigests(start := min(40, len(data)))
        stretch.update(memoryview(data)[start:])
        stretch.finish()
        assert stretch.digests == {n: leaf for n, leaf in enumerate(leaves) if n >= 2}


def test_digests_are_part_of_the_format() -> None:
    """These digests are in files that exist: a change here is a new version of the format."""
    data = bytes(range(256)) * (CHUNK // 256 + 1)
    tree = ChunkDigests()
    tree.update(memoryview(data))
    tree.finish()
    assert column_digest(tree.digests.values()) == "72391e52dd1d9d668d5efe490e81a460"
    assert column_digest([]) == xxhash.xxh3_128(b"").hexdigest()
    assert (
        content_digest(3, {"rewards": ("float64", (), "00"), "actions": ("int64", (2,), "11")})
        == "b2f8d396d319ac13141086b81d43843c"
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nans_of_every_kind_are_counted_in_silence(dtype: str) -> None:
    """NaNs that the processor would signal, which any program's bytes may hold, are NaNs like others."""
    bits = {"float16": 0x7D00, "float32": 0x7FA00000, "float64": 0x7FF4000000000000}[dtype]
    column = np.array([bits, 0, bits], f"u{np.dtype(dtype).itemsize}").view(dtype)
    stats = stats_of_block(column)
    assert (stats.nans.item(), stats.count.item(), stats.mean.item()) == (2, 1, 0)
