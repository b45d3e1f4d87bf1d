"""A run as it happens: plain lines for logs and pipes, a live table for terminals. Both are observers of a session."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from rose_hpc.progress import STAGES, Progress
from rose_hpc.report.lines import LearnerLines, Lines, criterion_text, learner_label, rate_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table


class PlainView:
    """Lines on a stream."""

    def __init__(self, stream: TextIO, lines: Lines | None = None) -> None:
        self._stream = stream
        self._lines = lines or Lines()

    def started(self, iteration: int, stage: str, environment: str) -> None:
        """Worth no line."""

    def recorded(self, record: Mapping[str, Any], progress: Progress) -> None:
        """A record was written."""
        if (line := self._lines.line(record, progress)) is not None:
            self._say(line)

    def warned(self, text: str) -> None:
        """Something people should know."""
        self._say(f"{self._lines.prefix}warning: {text}")

    def learner(self, label: str) -> PlainView:
        """The same for one of the run's learners."""
        return PlainView(self._stream, LearnerLines(label))

    def _say(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        with suppress(OSError, ValueError):  # whoever read it is gone, or its disk is full; the run goes on
            print(text, file=self._stream, flush=True)


class LearnerRow:
    """A learner's row in the live view of its run."""

    def __init__(self, label: str, rows: dict[str, Progress], say: Callable[..., None]) -> None:
        self._label = label
        self._rows = rows
        self._say = say
        self._lines = LearnerLines(label)
        rows[label] = Progress()

    def started(self, iteration: int, stage: str, environment: str) -> None:
        """Shown by its stage."""

    def recorded(self, record: Mapping[str, Any], progress: Progress) -> None:
        """A record was written."""
        self._rows[self._label] = progress
        if (line := self._lines.line(record, progress)) is not None:
            self._say(line)

    def warned(self, text: str) -> None:
        """Something people should know."""
        self._say(f"{self._lines.prefix}warning: {text}", style="yellow")

    def learner(self, label: str) -> LearnerRow:
        """The same row: a learner has no learners of its own."""
        del label
        return self


class LiveView:
    """Iteration, stage, a bar for each environment, the reward against its threshold, rows and MB/s; in place."""

    _MOST_BARS = 16
    _MOST_ROWS = 40

    def __init__(self, console: Console, lines: Lines | None = None) -> None:
        from rich.live import Live

        self._progress = Progress()
        self._begun: dict[str, float] = {}
        self._seconds: dict[str, float] = {}  # how long each environment took the last time
        self._lines = lines or Lines()
        self._learners: dict[str, Progress] = {}
        # last, because it asks for what to show at once
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, iteration: int, stage: str, environment: str) -> None:
        """A rank or stage began."""
        self._begun[environment or stage] = time.monotonic()

    def recorded(self, record: Mapping[str, Any], progress: Progress) -> None:
        """A record was written."""
        self._progress = progress
        if record["kind"] == "rank":
            self._seconds[record["environment"]] = record["seconds"]
        elif record["kind"] == "checkpoint":
            self._begun.clear()
        if (line := self._lines.line(record, progress)) is not None:
            self._print(line)

    def warned(self, text: str) -> None:
        """Something people should know."""
        self._print(f"warning: {text}", style="yellow")

    def learner(self, label: str) -> LearnerRow:
        """What watches one of the run's learners."""
        return LearnerRow(label, self._learners, self._print)

    def _print(self, text: str, style: str | None = None) -> None:
        # as it is, and in one piece: a command that was cut in two by the terminal's width cannot be pasted
        self._live.console.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """What the terminal shows now."""
        from rich.console import Group
        from rich.text import Text

        progress = self._progress
        if not progress.run:
            return Text("starting")
        if self._learners:
            return self._population(progress)
        stage = next((s for s in STAGES if s not in progress.stages), "")
        reward = "no reward yet" if progress.reward is None else f"{progress.run['metric']} {progress.reward:g}"
        best = progress.best()
        if best is not None:
            reward += f", best {best[1]:g} (iteration {best[0]})"
        head = Text.assemble(
            ("iteration ", "dim"),
            (str(progress.iteration), "bold"),
            ("  stage ", "dim"),
            (stage, "bold cyan"),
            f"  {reward}  ",
        )
        head.append(f"until {criterion_text(progress.run)}", "dim")
        parts: list[RenderableType] = [head, self._bars(progress)]
        if progress.merges:
            last = max(progress.merges)
            parts.append(Text(f"last merge: {rate_text(progress.merges[last])}; {progress.rows:,} rows in all", "dim"))
        return Group(*parts)

    def _population(self, progress: Progress) -> Table:
        from rich.table import Table

        table = Table(
            box=None, padding=(0, 2, 0, 0), header_style="dim", caption=f"until {criterion_text(progress.run)}"
        )
        for head in ("learner", "iteration", "stage", "reward", "best", "rows"):
            table.add_column(head, justify="left" if head in ("learner", "stage") else "right")
        numbers = {str(each["name"]): number for number, each in enumerate(progress.run.get("learners", ()))}
        for label, each in list(self._learners.items())[: self._MOST_ROWS]:
            best = each.best()
            reward, most = ("-" if value is None else f"{value:g}" for value in (each.reward, best and best[1]))
            stage = str(each.end["state"]) if each.end else each.stage or ""
            number = numbers.get(label)
            called = label if number is None else learner_label(progress.run, number)
            table.add_row(called, str(each.iteration), stage, reward, most, f"{each.rows:,}")
        if (hidden := len(self._learners) - self._MOST_ROWS) > 0:
            table.add_row(f"and {hidden} more")
        return table

    def _bars(self, progress: Progress) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 1))
        names = progress.run["environments"]
        for name in names[: self._MOST_BARS]:
            record = progress.ranks.get(name)
            if record is not None:
                table.add_row(
                    name,
                    ProgressBar(total=1, completed=1, width=30),
                    f"{record['rows']:,} rows, {record['seconds']:.1f} s",
                )
            elif (begun := self._begun.get(name)) is not None:  # once: the loop's thread clears it
                ran = time.monotonic() - begun
                usual = self._seconds.get(name)
                bar = (
                    ProgressBar(total=1, completed=min(ran / usual, 0.99), width=30)
                    if usual
                    else ProgressBar(total=None, width=30)
                )
                table.add_row(name, bar, f"{ran:.1f} s")
            else:
                late = progress.late.get(name)
                waits = "waits" if late is None else f"late, since iteration {late}"
                table.add_row(name, ProgressBar(total=1, completed=0, width=30), waits)
        if len(names) > self._MOST_BARS:
            done = len(progress.ranks)
            table.add_row(f"and {len(names) - self._MOST_BARS} more", "", f"{done} of {len(names)} done")
        return table
