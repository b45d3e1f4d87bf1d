"""The report in a real browser: what is drawn where, that it is quiet and alone, and that hostile text is text."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from projects import rose_hpc, write_project

from rose_hpc.journal import encode

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
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
EVIL = "\"'><script>document.title='caught'</script><img src=http://127.0.0.1:9/x onerror=alert(1)><b>"
#: pairs of labels of one picture that cover each other
OVERLAPS = """
[...document.querySelectorAll("svg")].flatMap(svg => {
  const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([a, p], k) => boxes.slice(k + 1)
    .filter(([b, q]) => p.left + 1 < q.right && q.left + 1 < p.right && p.top + 4 < q.bottom && q.top + 4 < p.bottom)
    .map(([b]) => `${svg.id}: ${a} / ${b}`));
})
"""


class Browser:
    """A headless Chromium, told what to do through a pipe; every event is kept."""

    def __init__(self, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
        move = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'  # where Chromium expects them
        command = ["bash", "-c", move, "bash", *map(str, theirs), str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, pass_fds=theirs, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        for fd in (theirs_in, theirs_out, *theirs):
            os.close(fd)
        self._in, self._out, self._rest, self._count = ours_in, ours_out, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """One command, and its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self, seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self._in, 2**20)
            if not chunk:
                raise RuntimeError("the browser ended")
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def show(self, page: Path, width: int = 1200, scheme: str = "light") -> None:
        """Load a page; until it is loaded. What happened before is forgotten."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        while not self.heard("Page.loadEventFired"):
            self.events.append(self._read())

    def heard(self, *methods: str) -> list[dict[str, Any]]:
        """The events of these kinds since the page was asked for."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[Any]:
        """Console messages, exceptions, dialogs and anything that was refused."""
        kinds = (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
        )
        return self.heard(*kinds)

    def requests(self) -> list[str]:
        """Every address the page asked for."""
        return [event["request"]["url"] for event in self.heard("Network.requestWillBeSent")]

    def close(self) -> None:
        """End it, and all it started."""
        try:
            self._session = None
            self.call("Browser.close")
            self.process.wait(20)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, 9)
            self.process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real run of the toy project."""
    folder = tmp_path_factory.mktemp("real")
    config = write_project(folder / "project")
    done = rose_hpc("run", config, "--run-dir", folder / "run 'x' #1 100%", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = rose_hpc("report", folder / "run 'x' #1 100%")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of journals written by hand: two jobs with days between them, the same with hostile words, a long one."""
    pages = {}
    for name, evil, iterations in (("jobs", "", 14), ("hostile", EVIL, 6), ("long", "", 300)):
        run = tmp_path_factory.mktemp(name) / "run"
        (run / "slurm").mkdir(parents=True)
        records = _journal(run, evil, iterations)
        lines = [encode({"seq": seq, **record}) for seq, record in enumerate(records)]
        (run / "journal.jsonl").write_bytes(b"".join(lines))
        done = rose_hpc("report", run)
        assert done.returncode == 0, done.stderr
        pages[name] = Path(done.stdout.strip())
    return pages


def _journal(run: Path, evil: str, iterations: int) -> list[dict[str, Any]]:
    names = [f"env_{k}{evil}" for k in range(1, 13)]
    facts = {"name": "made" + evil, "metric": "R" + evil, "operator": ">", "threshold": 150.0, "seed": 1}
    records: list[dict[str, Any]] = [{"kind": "run", "time": 1e9, "environments": names, **facts}]
    now = 1e9
    for number in range(iterations):
        if number % (iterations // 2) == 0:
            submitted = {
                "job": str(number + 1),
                "token": "t",
                "time": now,
                "user": "me",
                "uid": 1,
                "argv": [],
                "nodes": 3,
            }
            (run / "slurm" / f"{number + 1}.json").write_text(json.dumps(submitted))
            now += 900
            records.append({"kind": "job", "time": now, "job": str(number + 1), "host": "h" + evil, "engine": "pilot"})
            now += 25
        for k, name in enumerate(names):
            seconds = (30 + k) * (2.5 if (number, k) == (2, 11) else 1)
            rank = {"iteration": number, "stage": "collect", "environment": name, "node": f"n{k // 4 + 8}{evil}"}
            records.append({"kind": "rank", "time": now + seconds, "rows": 10, "seconds": seconds, **rank})
        now += 42 if number != 2 else 103
        if number == 1:
            failed = {"stage": "collect", "environment": names[0], "reason": "exit", "message": evil, "iteration": 1}
            records.append({"kind": "attempt", "time": now, "seconds": 3.0, "node": "n8" + evil, **failed})
        returns = {name: {"mean": k + number, "parameters": {"k" + evil: k % 3}} for k, name in enumerate(names)}
        merge = {"rows": 120, "bytes": 5000, "seconds": 0.1, "returns": returns}
        for stage, more in (("collect", {}), ("merge", merge), ("update", {}), ("check", {"reward": 12.0 * number})):
            now += {"collect": 0, "merge": 1, "update": 5, "check": 3}[stage]
            records.append({"kind": "stage", "time": now, "iteration": number, "stage": stage, **more})
        records.append({"kind": "checkpoint", "time": now, "iteration": number})
        if number == iterations // 2 - 1:
            records.append({"kind": "end", "time": now, "state": "stopped", "reason": "walltime" + evil})
            now += 3 * 86400
            records.append({"kind": "extend", "time": now, "threshold": 160.0, "changes": ["x=" + evil]})
    return records


def test_a_real_run_is_shown_whole_and_quietly(browser, real):
    """Every section is visible, nothing complains, and nothing but the file itself is asked for."""
    browser.show(real)
    heights = browser.js("[...document.querySelectorAll('section')].map(s => [s.id, s.offsetHeight])")
    assert [name for name, _ in heights] == list(SECTIONS)
    assert all(height > 40 for _, height in heights)
    pictures = browser.js("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)")
    assert len(pictures) >= 6
    assert min(pictures) > 60
    assert browser.complaints() == []
    assert browser.requests() == [real.as_uri()]


def test_the_threshold_is_where_it_should_be(browser, real):
    """On screen, threshold and rewards are at the height that the labels beside the axis give them."""
    browser.show(real)
    places = browser.js("""(() => {
      const middle = e => { const r = e.getBoundingClientRect(); return (r.top + r.bottom) / 2; };
      const of = name => [...document.querySelectorAll('#reward-chart ' + name)]
        .map(e => [Number(e.dataset.value), middle(e)]);
      return { ticks: of('.tick-y'), threshold: of('.threshold'), rewards: of('circle') };
    })()""")
    (low, bottom), (high, top) = places["ticks"][0], places["ticks"][-1]

    def height(value: float) -> float:
        return bottom + (value - low) / (high - low) * (top - bottom)

    assert [value for value, _ in places["threshold"]] == [25.0]
    assert [value for value, _ in places["rewards"]] == [10.0, 20.0, 30.0]
    for value, place in (*places["threshold"], *places["rewards"]):
        assert place == pytest.approx(height(value), abs=3)


def test_hostile_words_are_shown_as_words(browser, made):
    """Markup in a run's names and messages is text on the screen: no element, script, dialog or request comes of it."""
    browser.show(made["hostile"])
    assert browser.js("document.scripts.length") == 1
    assert browser.js("document.querySelectorAll('img, b, iframe').length") == 0
    assert browser.js("document.title").startswith("made\"'><script>")
    assert browser.js("document.querySelector('h1').innerText").startswith("made" + EVIL)
    assert browser.js("document.body.innerText.split('<img src=http').length") > 10
    assert browser.complaints() == []
    assert browser.requests() == [made["hostile"].as_uri()]


@pytest.mark.parametrize("name", ["jobs", "long"])
def test_words_do_not_cover_each_other(browser, made, name):
    """No label of a picture lies on another one, in a run of two jobs with days between, and in a long one."""
    browser.show(made[name])
    assert browser.js(OVERLAPS) == []
    assert browser.js("document.querySelectorAll('.gap').length") >= 1


@pytest.mark.parametrize("width", [1200, 380])
def test_the_page_is_as_wide_as_the_window(browser, made, width):
    """On a desk and on a telephone, what is wide scrolls by itself and not the page."""
    for page in made.values():
        browser.show(page, width)
        assert browser.js("document.scrollingElement.scrollWidth") <= width


def test_bars_are_in_order(browser, made):
    """In the timeline the queue ends where the driver begins, and stages of an iteration follow each other."""
    browser.show(made["jobs"])
    box = "e => { const r = e.getBoundingClientRect(); return [r.left, r.right]; }"
    queue, drivers = (
        browser.js(f"[...document.querySelectorAll('#timeline-chart .{k}')].map({box})") for k in ("queue", "driver")
    )
    assert all(abs(right - left) < 1 for (_, right), (left, _) in zip(queue, drivers, strict=True))
    assert len(drivers) == 2
    kinds = "'#timeline-chart :is(.collect, .merge, .update, .check)'"
    same_lane = "e => e.getAttribute('y') == document.querySelector('#timeline-chart .update').getAttribute('y')"
    stages = browser.js(f"[...document.querySelectorAll({kinds})].filter({same_lane}).map({box})")
    assert len(stages) == 14 * 4
    assert all(right <= left + 1 for (_, right), (left, _) in pairwise(stages))


def test_pointing_at_a_mark_says_what_it_is(browser, made):
    """The words of a mark appear beside the pointer, and the mark keeps them when the pointer has left."""
    browser.show(made["jobs"])
    mark = "document.querySelector('#reward-chart circle:nth-of-type(4)')"
    browser.js(f"{mark}.scrollIntoView({{block: 'center'}})")
    x, y = browser.js(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({mark}.getBoundingClientRect())")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.js("[tip.hidden, tip.textContent]") == [False, "iteration 3: 36"]
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert browser.js("tip.hidden")
    assert browser.js(f"{mark}.querySelector('title').textContent") == "iteration 3: 36"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_both_schemes(browser, made, scheme, tmp_path):
    """Text has a contrast of 4.5 and more to the page (WCAG AA) on light and on dark paper, and the page is drawn."""
    browser.show(made["jobs"], scheme=scheme)
    colours = browser.js("""(() => {
      const numbers = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
      const of = (name, key) => numbers(getComputedStyle(document.querySelector(name))[key]);
      const words = ['h1', '.note', 'nav a', 'figcaption', '.state', 'th'].map(name => of(name, 'color'));
      const drawn = ['.tick-y', '.threshold-label', '.reward-label', '.series-label, .small'];
      return [of('body', 'backgroundColor'), ...words, ...drawn.map(name => of('svg ' + name, 'fill'))];
    })()""")

    def luminance(rgb: list[float]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    paper, *words = map(luminance, colours)
    assert (paper > 0.5) == (scheme == "light")
    assert min((max(paper, w) + 0.05) / (min(paper, w) + 0.05) for w in words) >= 4.5
    picture = base64.b64decode(browser.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_the_page_is_read_without_scripts(browser, real):
    """With scripts switched off, sections, pictures and their words are all there."""
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.show(real)
        document = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
        for selector, least in (("section", len(SECTIONS)), ("svg", 6), ("circle > title", 3), ("table", 4)):
            found = browser.call("DOM.querySelectorAll", nodeId=document, selector=selector)["nodeIds"]
            assert len(found) >= least, selector
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
