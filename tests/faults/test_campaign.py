"""The short form of the fault campaign; ``make torture`` runs the long one, and docs/invariants.md has its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

CAMPAIGN = Path(__file__).with_name("campaign")
#: parts that run side by side, about as long as each other, and how many trials each has at least
SHARES = ({"failpoints": 14, "clock": 7}, {"kills": 20}, {"drivers": 20, "sbatch": 25})


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[subprocess.Popen[bytes], Path]]]:
    """All of them under way: process and results of each part."""
    running = {}
    for number, share in enumerate(SHARES):
        folder = tmp_path_factory.mktemp(f"share{number}")
        results = folder / "results.jsonl"
        command = [sys.executable, CAMPAIGN, *share, "--short", "--results", results, "--folder", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        running |= dict.fromkeys(share, (process, results))
    yield running
    for process, _ in running.values():
        process.terminate()  # it ends what it has started
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("part", "least"), [item for share in SHARES for item in share.items()])
def test_nothing_is_lost(shares, part: str, least: int):
    """Whatever happens to a run, it goes on and ends as if nothing had happened (I1 to I7)."""
    process, results = shares[part]
    assert process.wait() in (0, 1)
    outcomes: list[dict[str, Any]] = [json.loads(line) for line in results.read_text().splitlines()]
    ours = [outcome for outcome in outcomes if outcome["part"] == part]
    assert [outcome for outcome in ours if outcome["violations"]] == []
    assert len(ours) >= least


def test_a_part_of_nothing_is_an_error(tmp_path: Path) -> None:
    """Tests that the campaign names are there: a file that was renamed does not drop out of it unseen."""
    text = """
import parts, part_suites
from pathlib import Path
def told(files):
    try:
        return part_suites.collected(files)
    except RuntimeError as error:
        return str(error)
assert told(("tests/nowhere.py",)) == "there is no tests/nowhere.py"
assert told(("tests/support/small.py",)).startswith("no tests are found in tests/support/small.py")
assert len(told(("tests/unit/test_seeds.py",))) > 2
print(*{file for part in part_suites.PARTS for file in part_suites.FILES[part.name]})
"""
    support = CAMPAIGN.parents[1] / "support"
    env = {**os.environ, "PYTHONPATH": f"{CAMPAIGN}:{support}"}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert [file for file in done.stdout.split() if not (CAMPAIGN.parents[2] / file).is_file()] == []
