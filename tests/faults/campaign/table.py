"""The table of what the campaign has found, between two marks of a page; a part not run again keeps its row."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from pathlib import Path

from cells import Outcome, Part, read_results

BEGIN, END = "<!-- campaign table: begin -->", "<!-- campaign table: end -->"


def write(page: Path, results: Path, parts: Iterable[Part]) -> None:
    """Put the table into the page, in place of the one before."""
    outcomes = read_results(results)
    before, _, rest = page.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    rows = {match[1]: line for line in old.splitlines() if (match := re.search(r"`make torture PARTS=(\w+)`", line))}
    for part in parts:
        if ours := [outcome for outcome in outcomes if outcome.part == part.name]:
            rows[part.name] = _row(part, ours)
    head = ["| fault | command | trials | violations | commit |", "|---|---|---:|---:|---|"]
    page.write_text(before + "\n".join([BEGIN, *head, *rows.values(), END]) + after)


def _row(part: Part, outcomes: list[Outcome]) -> str:
    bad = sum(bool(o.violations) for o in outcomes)
    commits = ", ".join(sorted({o.commit for o in outcomes}))
    day = datetime.datetime.fromtimestamp(max(o.time for o in outcomes), datetime.UTC).strftime("%Y-%m-%d")
    return f"| {part.fault} | `make torture PARTS={part.name}` | {len(outcomes)} | {bad} | {commits}, {day} |"
