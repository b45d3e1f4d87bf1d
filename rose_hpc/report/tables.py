"""The tables of a report: the same facts as its pictures, to read and to copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rose_hpc.report.figures import Page
from rose_hpc.report.history import LATELY
from rose_hpc.report.words import count, duration, moment, number, parameters, word

#: rows of a table; of more, the last are shown (of environments the first)
_MOST_ROWS = {
    "learners": 1000,
    "environments": 500,
    "iterations": 2000,
    "failures": 500,
    "drivers": 500,
    "scripts": 200,
    "changes": 200,
}


@dataclass(frozen=True)
class Table:
    """A table of plain text.

    Attributes:
        heads: of the columns; those of figures end in ``#``, which is not shown.
        note: what is not in it.
    """

    name: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def all_tables(page: Page, learners: Sequence[tuple[str, ...]] = ()) -> dict[str, Table]:
    """Every table by name; some may have no rows.

    Args:
        page: what they are made from.
        learners: the rows of the learners' table.
    """
    heads = "learner | parameters | state | iterations # | reward # | best # | rows #"
    made = (_environments(page), _iterations(page), _failures(page), _drivers(page), _changes(page), _versions(page))
    all_ = (_table("learners", "Learners", heads, learners, first=True), *made, _scripts(page))
    return {table.name: table for table in all_}


def _table(name: str, caption: str, heads: str, rows: Sequence[tuple[str, ...]], *, first: bool = False) -> Table:
    most = _MOST_ROWS.get(name, len(rows))
    shown = rows[:most] if first or len(rows) <= most else rows[-most:]
    which = "first" if first else "last"
    note = f"The {which} {len(shown):,} of {len(rows):,}; the journal has all." if len(shown) < len(rows) else ""
    return Table(name, caption, tuple(head.strip() for head in heads.split("|")), tuple(shown), note)


def _environments(page: Page) -> Table:
    with_returns = any(each.returns for each in page.history.environments)
    with_missing = any(each.missed or each.late for each in page.history.environments)
    rows = []
    for each in page.history.environments:
        slowest = max(each.seconds.values(), default=None)
        nodes = sorted(each.nodes)
        where = ", ".join(nodes[:4]) + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")
        memory = "" if each.memory_mb is None else f"{each.memory_mb:,.0f} MB"
        lately = (number(each.lately), f"{each.episodes:,}") if with_returns else ()
        times = (duration(each.median_s), duration(slowest), number(each.straggled), number(each.failed))
        missing = (number(each.missed), number(each.late)) if with_missing else ()
        rows.append(
            (each.name, parameters(each.parameters), *lately, f"{each.rows:,}", *times, *missing, memory, where)
        )
    returns = f"return (last {LATELY}) # | episodes # |" if with_returns else ""
    heads = f"environment | parameters | {returns} rows # | median # | slowest # | straggler # | failed #"
    heads += (" | missing # | late #" if with_missing else "") + " | memory # | nodes"
    return _table("environments", "Environments", heads, rows, first=True)


def _iterations(page: Page) -> Table:
    rows = []
    for each in page.history.iterations:
        stages = [each.seconds.get(stage) for stage in ("collect", "merge", "update", "check", "other")]
        figures = (f"{each.rows:,}", number(each.mb_s), *map(duration, stages))
        rows.append((str(each.number), number(each.reward), number(each.threshold), *figures))
    heads = (
        "iteration # | reward # | threshold # | rows # | MB/s # | collect # | merge # | update # | check # | other #"
    )
    return _table("iterations", "Iterations", heads, rows)


def _failures(page: Page) -> Table:
    rows = []
    for each in page.history.failures:
        iteration = "" if each.iteration is None else str(each.iteration)
        place = (each.attempt, each.node, each.log)
        rows.append((moment(each.time), iteration, each.who, each.what, each.message, *place))
    heads = "when | iteration # | who | what | message | attempt # | node | log"
    return _table("failures", "What went wrong, or was done again", heads, rows)


def _drivers(page: Page) -> Table:
    rows = []
    for each in page.timeline.drivers:
        waited = duration(each.began - each.submitted) if each.submitted is not None else ""
        host, engine = word(each.record, "host"), word(each.record, "engine")
        spent = (duration(each.ended - each.began), str(each.nodes), number(round(each.node_hours, 3)))
        ended = each.end + (f": {each.reason}" if each.reason else "") or "no end on record"
        rows.append((each.job or "none", host, engine, waited, moment(each.began), *spent, ended))
    heads = "job | host | engine | waited # | began | at work # | nodes # | node-hours # | how it ended"
    return _table("drivers", "Jobs and drivers", heads, rows)


def _changes(page: Page) -> Table:
    rows = []
    for record in page.sight.records:
        if record["kind"] == "extend":
            skipped = ("seq", "time", "kind", "changes")
            keys = [f"{key} = {value}" for key, value in record.items() if key not in skipped]
            rows.append((moment(record.get("time")), ", ".join([*map(str, record.get("changes") or ()), *keys])))
    return _table("changes", "Changes since the run was made", "when | what", rows)


def _versions(page: Page) -> Table:
    run = page.sight.progress.run
    jobs = page.sight.progress.jobs
    rows = [
        ("run", str(page.sight.run.path)),
        ("seed", word(run, "seed")),
        ("made from", word(run, "source")),
        ("started with", " ".join([word(run, "interpreter"), *map(str, _listed(run.get("argv")))])),
        ("in", word(run, "cwd")),
        ("rose-hpc", ", ".join(dict.fromkeys(word(job, "version") for job in jobs))),
        ("Python", ", ".join(dict.fromkeys(word(job, "python") for job in jobs))),
        ("engine", ", ".join(dict.fromkeys(word(job, "engine") for job in jobs if job.get("engine")))),
        ("journal", count(len(page.sight.records), "record")),
    ]
    return _table("versions", "Versions and origin", "what | value", [row for row in rows if row[1].strip()])


def _scripts(page: Page) -> Table:
    rows = sorted((str(path), str(digest)) for path, digest in page.sight.progress.scripts.items())
    return _table("scripts", "Scripts as last used (xxh3-128)", "script | digest", rows)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
