"""The one error tree of rose_hpc.

::

    RoseHpcError                     every error we raise; exit code 1
    ├── UsageError                   what was asked for cannot be done; exit code 2 (also ValueError)
    │   └── ConfigError              names file, line and key
    ├── RunError                     a run directory: missing, foreign, damaged
    │   ├── JournalError             names the line
    │   └── OwnedError               another driver holds the run
    ├── ExperienceError              shards and banks (also ValueError)
    │   ├── FormatError              not one of ours, or not of this version
    │   ├── SchemaError              columns, dtypes or shapes that do not fit each other
    │   └── DamagedError             bytes that are not the ones that were written; names the files
    ├── TaskError                    a rank or stage failed; names it, its log and its last lines
    │   ├── TaskTimeoutError         it ran longer than its timeout_s (also TimeoutError)
    │   └── CallError                a function that cannot be called, or whose value cannot be kept
    └── EngineError                  the execution backend failed, ended, or never started

Interrupted (a SystemExit)           the driver was told to stop; exit code 130
"""

from __future__ import annotations

from collections.abc import Sequence


class RoseHpcError(Exception):
    """Base of all errors here: one line that names the cause, and the next step.

    Args:
        message: what is wrong, and where (file, key, environment).
        hint: what to do next; shown after the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(RoseHpcError, ValueError):
    """What was asked for cannot be done as it was asked."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration that cannot be used; the message names file, line and key."""


class RunError(RoseHpcError):
    """A run directory that is missing, foreign or damaged."""


class JournalError(RunError):
    """A journal with a damaged line inside; the message names the line."""


class OwnedError(RunError):
    """Another driver holds the run."""


class ExperienceError(RoseHpcError, ValueError):
    """A shard or bank that cannot be used."""


class FormatError(ExperienceError):
    """A file that is not a shard or bank, or not one of this version."""


class SchemaError(ExperienceError):
    """Columns, dtypes or shapes that do not fit each other."""


class DamagedError(ExperienceError):
    """Files whose bytes are not the ones that were written.

    Attributes:
        paths: the damaged files.
    """

    def __init__(self, message: str, *, paths: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.paths = tuple(paths)


class TaskError(RoseHpcError):
    """A rank or stage that failed; the message names it, its log and its last lines."""


class TaskTimeoutError(TaskError, TimeoutError):
    """A rank or stage that ran longer than its ``timeout_s``."""


class CallError(TaskError):
    """A function that cannot be called, or whose value cannot be kept; the message goes on from "it"."""


class EngineError(RoseHpcError):
    """The execution backend failed, ended, or never started."""


class Interrupted(SystemExit):
    """The driver was told to stop (Ctrl-C, SIGTERM); the run can be resumed. Exit code 130."""

    def __init__(self, message: str) -> None:
        super().__init__(130)
        self.message = message

    def __str__(self) -> str:
        return self.message
