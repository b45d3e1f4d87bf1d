"""The command line: one file for each command, each a thin layer over the library.

Commands are imported when they are used, so that ``rose-hpc --help`` and ``status`` answer at once on a login node.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

from rose_hpc import __version__
from rose_hpc.errors import Interrupted, RoseHpcError
from rose_hpc.refusals import cause_of, next_step

#: command -> what it is for; each is the object ``command`` of the module of that name
_COMMANDS = {
    "init": "Write a small project that runs as it is.",
    "plan": "Show exactly what a run of CONFIG would do.",
    "run": "Run CONFIG here, until its reward converges.",
    "submit": "Submit a job that runs CONFIG, or a Python program.",
    "status": "Show where a run stands, or all runs.",
    "watch": "Follow a run until it ends, wherever it runs.",
    "logs": "Show what ranks and stages printed.",
    "cancel": "End a run's jobs and driver, and nothing else.",
    "resume": "Go on with a run that stopped, or extend one.",
    "drill": "Kill a short training in every way, and compare.",
    "gc": "Remove what a run need not keep.",
    "report": "Write a page about a run: rewards, timeline, speed, failures.",
    "doctor": "Check what this machine and its Slurm have.",
    "inspect": "Show what a shard, a bank or a run holds.",
    "merge": "Merge shards into a bank, outside a run.",
    "export": "Write a run's experience for others: Minari.",
    "import": "Make a shard of an HDF5 file or Minari dataset.",
}
#: where a command cannot be the name of a module
_MODULES = {"import": "import_"}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"rose_hpc.cli.{_MODULES.get(cmd_name, cmd_name)}").command
        assert isinstance(command, click.Command)  # noqa: S101 - ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in _COMMANDS:
            from rose_hpc.commands import suggest

            hint = suggest(args[0], _COMMANDS) or "`rose-hpc --help` lists the commands"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="rose-hpc")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Reinforcement learning over expensive simulators, on a laptop or in a Slurm allocation.

    Example: rose-hpc init project && rose-hpc run project/config.toml
    """
    ctx.obj = {"debug": debug}


def main(arguments: list[str] | None = None) -> None:
    """The console script: every error is one line on stderr and a non-zero exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    try:
        code = cli.main(arguments, prog_name="rose-hpc", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as error:
        code = _fail(_click_message(error), error, debug, error.exit_code)
    except RoseHpcError as error:
        code = _fail(str(error), error, debug, error.exit_code)
    except Interrupted:
        code = 130
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", None, False, 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        code = 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(f"{where}{cause_of(error)}; {next_step(error)}", error, debug, 1)
    sys.exit(code if isinstance(code, int) else 0)


def _click_message(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if context and "--help`" not in message else message


def _fail(message: str, error: BaseException | None, debug: bool, code: int) -> int:
    if debug and error is not None:
        traceback.print_exception(error)
    for note in getattr(error, "__notes__", ()):
        print("\n".join(f"    {line}" for line in note.splitlines()), file=sys.stderr)
    print(f"rose-hpc: error: {' '.join(message.split())}", file=sys.stderr)
    return code
