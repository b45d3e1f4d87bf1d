"""The table of what the campaign has found, between two marks of a page."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path

from cells import Outcome, Part, read_results

BEGIN, END = "<!-- campaign table: begin -->", "<!-- campaign table: end -->"


def write(page: Path, results: Path, parts: Iterable[Part]) -> None:
    """Put the table into the page, in place of the one before."""
    outcomes = read_results(results)
    rows = [row for part in parts if (row := _row(part, [o for o in outcomes if o.part == part.name]))]
    commits = sorted({o.commit for o in outcomes})
    days = sorted({datetime.datetime.fromtimestamp(o.time, datetime.UTC).strftime("%Y-%m-%d") for o in outcomes})
    head = ["| fault | command | trials | violations |", "|---|---|---:|---:|"]
    foot = ["", f"Commits {', '.join(commits)}; {' to '.join(dict.fromkeys((days[0], days[-1])))}."] if days else []
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + "\n".join([BEGIN, *head, *rows, *foot, END]) + after)


def _row(part: Part, outcomes: list[Outcome]) -> str:
    if not outcomes:
        return ""
    bad = sum(bool(o.violations) for o in outcomes)
    command = f"`make torture PARTS={part.name}`"
    return f"| {part.fault} | {command} | {len(outcomes)} | {bad} |"
