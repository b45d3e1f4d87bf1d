"""The page about a run: what it says, for every state a run can be in, and that hostile text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from projects import rose_hpc

from rose_hpc.errors import JournalError, RunError, UsageError
from rose_hpc.journal import encode
from rose_hpc.progress import Progress
from rose_hpc.report.html import render, write_report
from rose_hpc.rundir import RunDir
from rose_hpc.standing import Sight

SECTIONS = (
    "reward",
    "environments",
    "timeline",
    "speed",
    "failures",
    "jobs",
    "iterations",
    "configuration",
    "versions",
)
EVIL = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)></title></style>&amp;{{ 7 * 7 }}{% raw %}]]>--> "
    "\x1b[31m\udcff\u202e"
)
CONFIG = """
name = "toy"
seed = 1
[environments]
command = "true {eps} {size}"
[environments.grid]
eps = [0.1, 0.2]
size = [1, 2]
[update]
command = "true"
[check]
command = "true"
threshold = 5
"""


class Journal:
    """A run's records, written by hand."""

    def __init__(self, environments: list[str], evil: str = "", **run: Any) -> None:
        self.records: list[dict[str, Any]] = []
        self.time, self.evil, self.names = 1e9, evil, environments
        facts = {"name": "toy" + evil, "seed": 1, "source": "config" + evil, "metric": "MODEL_REWARD" + evil}
        facts |= {"operator": ">", "threshold": 5.0, "max_iterations": 9, "argv": ["run", evil], "cwd": "/" + evil}
        self.add("run", environments=environments, **facts | run)

    def add(self, kind: str, after_s: float = 0.0, /, **fields: Any) -> None:
        self.time += after_s
        self.records.append({"seq": len(self.records), "time": round(self.time, 3), "kind": kind, **fields})

    def driver(self, **fields: Any) -> None:
        facts = {"version": "0.1.0" + self.evil, "python": "3.11", "epoch": 0, "host": "n1" + self.evil, "job": None}
        self.add("job", 5.0, **facts | fields)

    def iteration(self, number: int, reward: float | None = 1.0, **merge: Any) -> None:
        for k, name in enumerate(self.names):
            where = {"environment": name, "node": f"n{k % 4}" + self.evil, "attempt": 1}
            self.add("rank", 0.01, iteration=number, stage="collect", rows=10, bytes=80, seconds=1.0 + k, **where)
        self.add("stage", iteration=number, stage="collect")
        returns = {name: {"mean": 1.5 * k + number, "episodes": 3} for k, name in enumerate(self.names)}
        facts = {"rows": 10 * len(self.names), "bytes": 900, "seconds": 0.1, "returns": returns}
        self.add("stage", 0.2, iteration=number, stage="merge", **facts | merge)
        self.add("stage", 1.0, iteration=number, stage="update", seconds=0.9, node="n1")
        if reward is not None:
            self.add("stage", 1.0, iteration=number, stage="check", seconds=0.9, reward=reward)
        self.add("checkpoint", 0.1, iteration=number)

    def page(self, path: Path, config: str = "") -> str:
        """The page of the run at ``path``."""
        run = RunDir(path / "run")
        run.path.mkdir()
        run.journal.write_bytes(b"".join(map(encode, self.records)))
        if config:
            run.config.write_text(config)
        return write_report(run).read_text()


class Elements(HTMLParser):
    """The elements of a page, their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self._inside = tag
        self.words.append(" ")
        self.attributes += [(key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        self.words.append(" ")

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def converged() -> Journal:
    journal = Journal(["env_1", "env_2", "env_3", "env_4"])
    journal.driver()
    for number, reward in enumerate([1.0, 3.25, 6.5]):
        journal.iteration(number, reward)
    journal.add("end", state="converged", reason="MODEL_REWARD 6.5 > 5", iteration=3)
    return journal


def test_a_finished_run(tmp_path):
    """Every section is there once, with the figures of the journal, and every id is unique."""
    page = Elements(converged().page(tmp_path, CONFIG))
    assert [name for name in SECTIONS if page.ids.count(name) != 1] == []
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    pictures = ("reward", "returns", "rank", "timeline", "time", "rows", "merge")
    assert {f"{name}-chart" for name in pictures} <= set(page.ids)
    for words in (
        *("MODEL_REWARD 6.5 > 5", "best 6.5 in iteration 2", "iterations 3 of at most 9", "120 rows"),
        *("threshold > 5", "eps=0.1, size=2", "Nothing went wrong that left a record", 'command = "true {eps} {size}"'),
    ):
        assert words in page.text
    assert {"parameter-chart-0", "parameter-chart-1"} <= set(page.ids)


def test_the_page_stands_alone(tmp_path):
    """Nothing is loaded from anywhere: no sources, no links but to its sections, one script, which its policy names."""
    text = converged().page(tmp_path, CONFIG)
    page = Elements(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & page.found.keys()
    assert all(key not in ("src", "srcset", "xlink:href", "action") for key, _ in page.attributes)
    assert all(value.removeprefix("#") in SECTIONS for key, value in page.attributes if key == "href")
    assert not re.search(r"url\(|@import|https?:", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in text
    assert "default-src 'none'" in text


def test_pictures_are_announced(tmp_path):
    """Every picture is an image with a title and a description that are there; every table has a caption."""
    page = Elements(converged().page(tmp_path, CONFIG))
    labels = [value for key, value in page.attributes if key == "aria-labelledby" and value.endswith("-desc")]
    assert len(labels) == page.found["svg"] == [value for key, value in page.attributes if key == "role"].count("img")
    assert all(set(label.split()) <= set(page.ids) for label in labels)
    assert page.found["table"] == page.found["caption"]
    assert page.found["h1"] == 1


def test_hostile_text_stays_text(tmp_path):
    """Markup in names, messages, parameters, nodes and paths is shown as it is; no element or attribute comes of it."""
    tame, wild = Journal(["env_1", "x"]), Journal(["env_1", EVIL], EVIL)
    for journal in (tame, wild):
        journal.driver(engine=journal.evil or "pilot")
        journal.iteration(
            0,
            1.0,
            returns={
                name: {"mean": 1, "parameters": {"k" + journal.evil: journal.evil + name}} for name in journal.names
            },
        )
        journal.add(
            "attempt",
            iteration=1,
            stage="collect",
            environment=journal.names[1],
            attempt=1,
            node=journal.evil,
            reason="exit" + journal.evil,
            message="m" + journal.evil,
            exit_code=1,
            seconds=1,
        )
        journal.add("extend", changes=["check.threshold=7" + journal.evil], threshold=7.0)
        journal.add("scripts", digests={"/a/b" + journal.evil: "00"})
        journal.add("end", state="failed", reason="r" + journal.evil, iteration=1)
    for folder in ("tame", "wild"):
        (tmp_path / folder).mkdir()
    plain = Elements(tame.page(tmp_path / "tame", CONFIG))
    text = wild.page(tmp_path / "wild", CONFIG + f"# {EVIL[:-8]}")
    page = Elements(text)
    assert page.found == plain.found
    assert Counter(key for key, _ in page.attributes) == Counter(key for key, _ in plain.attributes)
    assert page.text.count("<script>alert(1)</script>") >= 15
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\u202e]", text)


@pytest.mark.parametrize("config", ["", CONFIG, "not = [toml", "unknown = 1"])
def test_a_run_that_has_not_begun(tmp_path, config):
    """An empty journal has a page that says so in every section, whatever there is of a configuration."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.journal.touch()
    if config:
        run.config.write_text(config)
    page = Elements(write_report(run).read_text())
    for words in ("stopped", "No check has told a reward", "No environment has been heard of", "No driver has begun"):
        assert words in page.text
    expected = {"": "no config.toml", CONFIG: "true {eps} {size}"}.get(config, "config.toml cannot be read")
    assert expected in page.text
    assert page.found["svg"] == 0


def test_every_beginning_of_a_run_has_a_page():
    """However much of a journal there is, from nothing to all of it, a page can be made of it."""
    journal = converged()
    journal.add("damaged", iteration=2, environment="env_1", path=None, reason="digest")
    run = RunDir(Path("/no/such/run"))
    for end in range(len(journal.records) + 1):
        records = journal.records[:end]
        assert "<h1>" in render(Sight(run, records, Progress.of(records), []))


def test_records_with_fields_of_other_types():
    """Fields that are missing, or hold something else, cost their figure and not the page."""
    journal = converged()
    odd = ("seconds", "rows", "bytes", "node", "returns", "host", "job", "version", "exit_code", "max_rss_mb")
    for value in (None, "text", [1], {"a": {}}, -5, 1e300, True):
        records = [{**r, **dict.fromkeys(odd, value)} if r["kind"] != "run" else r for r in journal.records]
        records.append({"kind": "attempt", "iteration": value, "stage": "update", "environment": "", "time": 1.0})
        records.append({"kind": "redo", "reason": value, "time": 1.0})
        assert "<h1>" in render(Sight(RunDir(Path("/no/such/run")), records, Progress.of(journal.records), []))


def test_a_run_without_reward_or_shards(tmp_path):
    """Function tasks without shards and a run without a check: what there is is shown, what is not is said."""
    journal = Journal(["env_1"], metric=None, operator=None, threshold=None, source="program")
    journal.driver()
    journal.iteration(0, None, rows=0, bytes=0, skipped="no shards", returns=None)
    page = Elements(journal.page(tmp_path))
    assert "No check has told a reward" in page.text
    assert "hold no returns of environments" in page.text
    assert "a Python program says what it consists of" in page.text
    assert not {"reward-chart", "returns-chart", "rows-chart"} & set(page.ids)
    assert {"timeline-chart", "time-chart"} <= set(page.ids)


def test_jobs_and_their_waiting(tmp_path):
    """A job's wait, nodes and node-hours are in the table, and the timeline has a bar for the queue."""
    journal = converged()
    journal.records[1]["job"] = "12"
    folder = tmp_path / "run" / "slurm"
    folder.mkdir(parents=True)
    submitted = {"job": "12", "token": "t", "time": 1e9 - 115, "user": "me", "uid": 1, "argv": ["sbatch"], "nodes": 3}
    (folder / "12.json").write_text(json.dumps(submitted))
    run = RunDir(tmp_path / "run")
    run.journal.write_bytes(b"".join(map(encode, journal.records)))
    page = Elements(write_report(run).read_text())
    assert "job 12 waited 2 min 00 s" in page.text
    assert "driver job 12, 3 nodes" in page.text
    assert re.search(r"Jobs and drivers .* 12 n1 2 min 00 s", page.text)


def test_two_thousand_iterations_of_a_hundred_environments():
    """A long, wide run has a page of a few MB that says what was averaged, and extremes are still in it."""
    journal = Journal([f"env_{k}" for k in range(100)])
    journal.driver()
    for number in range(2000):
        journal.iteration(number, 777.0 if number == 1234 else float(number % 7))
    sight = Sight(RunDir(Path("/no/such/run")), journal.records, Progress.of(journal.records), [])
    text = render(sight)
    assert len(text) < 4e6
    page = Elements(text)
    for words in (
        *("2,000 iterations in 160 columns, each the mean", "2,000 iterations in 120 bars", "200,000 ranks"),
        *("Iterations in full", "of median length", "best 777 in iteration 1234", "Environments: 100 rows"),
    ):
        assert words in page.text
    (path,) = re.findall(r'class="reward" d="([^"]*)"', text)
    heights = [float(point.split()[1]) for point in path.lstrip("M").split("L")]
    assert heights.index(min(heights)) == pytest.approx(len(heights) * 1234 / 2000, rel=0.02)


def test_a_damaged_journal_is_an_error(tmp_path):
    """A journal with a damaged line has no page: one line names it, and no file is left."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    lines = [encode(record) for record in converged().records]
    run.journal.write_bytes(b"".join([lines[0], lines[1].replace(b"n1", b"n2"), *lines[2:]]))
    with pytest.raises(JournalError, match="line 2 is damaged"):
        write_report(run)
    assert [path.name for path in run.path.iterdir()] == ["journal.jsonl"]
    done = rose_hpc("report", run.path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "line 2 is damaged" in done.stderr


def test_a_report_overwrites_nothing_but_pages(tmp_path):
    """An output that is not a page's name, or that cannot be written, is refused by name."""
    converged().page(tmp_path)
    run = RunDir(tmp_path / "run")
    with pytest.raises(UsageError, match=r"journal\.jsonl is not named \*\.html"):
        write_report(run, run.journal)
    with pytest.raises(RunError, match=r"cannot write .*nowhere/page\.html: No such file"):
        write_report(run, tmp_path / "nowhere" / "page.html")
    assert write_report(run, tmp_path / "page.html").stat().st_size > 10_000


def test_the_command(folder):
    """`rose-hpc report` writes into the run and prints the file's name, whatever characters its path has."""
    converged().page(folder, CONFIG)
    done = rose_hpc("report", "run", cwd=folder)
    assert (done.returncode, done.stdout) == (0, f"{folder / 'run' / 'report.html'}\n")
    assert rose_hpc("report", "no-such-run", cwd=folder).returncode == 1
    assert rose_hpc("report", "run", "--output", "config.toml", cwd=folder).returncode == 2
