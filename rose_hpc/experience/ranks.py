"""The ranks of an MPI program, which do things together: where one fails, all do, and nobody waits for ever."""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rose_hpc.errors import ExperienceError, RoseHpcError, UsageError

T = TypeVar("T")


class Ranks:
    """The ranks that make one bank.

    Args:
        bank: that they make.
        comm: mpi4py's communicator; None: all ranks of the program.
    """

    def __init__(self, bank: Path, comm: Any = None) -> None:
        self.comm = _mpi().COMM_WORLD if comm is None else comm
        self.is_first = self.comm.rank == 0
        self._bank = bank

    def first(self, step: Callable[[], T]) -> T | None:
        """Have the first rank take a step, while the others wait; what it has found, None in the others."""
        return self.all(step if self.is_first else lambda: None)

    def all(self, step: Callable[[], T]) -> T:
        """Take a step in all ranks at once.

        Raises:
            RoseHpcError: in all of them, the first that any has raised.
        """
        value, failure = None, None
        try:
            value = step()
        except RoseHpcError as error:
            failure = error
        except OSError as error:
            where = f"in rank {self.comm.rank} on {socket.gethostname()}"
            failure = ExperienceError(f"cannot write {self._bank}: {error.strerror or error}, {where}")
        failures = [error for error in self.comm.allgather(failure) if error is not None]
        if failures:
            raise failures[0]
        return value  # type: ignore[return-value]  # the step has not failed


def in_ranks(work: Callable[[], T]) -> T:
    """Do what all ranks of the program do.

    An error of ours ends them all, and the first rank alone goes on to tell; one that nobody expects may be a single
    rank's, for which the others wait: it ends the program.
    """
    try:
        return work()
    except RoseHpcError as error:
        if _mpi().COMM_WORLD.rank:
            sys.exit(error.exit_code)
        raise
    except Exception:
        if _mpi().COMM_WORLD.size > 1:
            traceback.print_exc()
            _mpi().COMM_WORLD.Abort(1)
        raise


def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UsageError(f"ranks need mpi4py, and {error}", hint="install it, or choose another way") from error
    return MPI
