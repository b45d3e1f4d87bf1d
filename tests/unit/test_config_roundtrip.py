"""Properties: any configuration survives being written and read; any key's line is found."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from rose_hpc.config import Config, dump_config, load_config
from rose_hpc.toml_lines import locate

NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
WORDS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,9}", fullmatch=True).filter(lambda word: word != "python")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | FLOATS | TEXT
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
COMMANDS = st.sampled_from(["{python} a.py", "./b 'c d' {{}}", 'say "\u00e9\\\\"'])
POSITIVE = st.floats(1e-3, 1e9)
COUNTS = st.integers(1, 10**9)
RESOURCES = {"ranks": COUNTS, "cores_per_rank": COUNTS, "gpus_per_rank": POSITIVE, "mem_gb_per_rank": POSITIVE}
STAGE = {"timeout_s": POSITIVE, **RESOURCES}
GRIDS = st.dictionaries(WORDS, st.lists(SCALARS, min_size=1, max_size=3), min_size=1, max_size=3)
LISTS = st.lists(
    st.fixed_dictionaries({"name": NAMES}, optional={"parameters": st.dictionaries(WORDS, JSON, max_size=3), **STAGE}),
    min_size=1,
    max_size=4,
    unique_by=lambda entry: entry["name"].casefold(),
)
ENVIRONMENTS = st.one_of(
    st.fixed_dictionaries({"command": COMMANDS, **extra}, optional={"shard": st.booleans(), **STAGE})
    for extra in ({}, {"grid": GRIDS}, {"list": LISTS})
)
CONFIGS = st.fixed_dictionaries(
    {
        "environments": ENVIRONMENTS,
        "update": st.fixed_dictionaries({"command": COMMANDS}, optional=STAGE),
        "loop": st.fixed_dictionaries({"max_iterations": COUNTS}, optional={"max_concurrent": COUNTS}),
    },
    optional={
        "name": NAMES,
        "seed": st.integers(0, 2**63 - 1),
        "check": st.fixed_dictionaries(
            {"command": COMMANDS, "threshold": FLOATS},
            optional={"operator": st.sampled_from([">", ">=", "<", "<=", "==", "="]), **STAGE},
        ),
        "merge": st.fixed_dictionaries(
            {},
            optional={
                "window": COUNTS,
                "workers": COUNTS,
                "verify": st.booleans(),
                "way": st.sampled_from(["auto", "mpio"]),
            },
        ),
        "retention": st.fixed_dictionaries(
            {},
            optional={
                "policies": st.just("all") | COUNTS,
                "banks": st.just("window") | COUNTS,
                "shards": st.booleans(),
            },
        ),
        "slurm": st.fixed_dictionaries(
            {},
            optional={"nodes": COUNTS, "walltime_min": POSITIVE, "extra": st.just(["--a=b"]), "requeue": st.booleans()},
        ),
    },
)


@given(raw=CONFIGS)
def test_dump_and_load_give_the_same_configuration(raw):
    """What is dumped, defaults and base folder included, is read back as an equal configuration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.toml"
        path.write_text(tomli_w.dumps(raw), newline="")
        config = load_config(path)
        copy = Path(folder) / "b.toml"
        copy.write_text(dump_config(config), newline="")
        again = load_config(copy)
    assert isinstance(config, Config)
    assert again == config
    assert dump_config(again) == dump_config(config)
    before, after = config.environments.resolve(), again.environments.resolve()
    assert [list(e.parameters.items()) for e in after] == [list(e.parameters.items()) for e in before]


def _paths(table, above=()):
    """Every key that is written on its own in what tomli_w makes: inline tables and plain arrays are not."""
    for key, value in table.items():
        path = (*above, key)
        yield path
        if isinstance(value, dict):
            yield from _paths(value, path)


TABLES = st.recursive(SCALARS | st.lists(SCALARS, max_size=3), lambda inner: st.dictionaries(TEXT, inner, max_size=3))


@given(raw=st.dictionaries(TEXT, TABLES, max_size=4), multiline=st.booleans())
def test_every_key_is_located_where_it_stands(raw, multiline):
    """For any table, each key's line is one on which that key's own text stands, multi-line strings or not."""
    text = tomli_w.dumps(raw, multiline_strings=multiline)
    lines = text.split("\n")
    found = locate(text)
    assert found.duplicate is None
    for path in _paths(tomllib.loads(text)):
        assert path in found.lines
        written = tomli_w.dumps({path[-1]: 0}).removesuffix(" = 0\n")
        assert written in lines[found.lines[path] - 1]


@given(text=st.text(st.sampled_from("ab[]{}=.,\"'\\#\n 1")))
def test_locating_ends_on_any_text(text):
    """Any text, TOML or not, is scanned without an error, and the lines told exist."""
    found = locate(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in found.lines.values())
