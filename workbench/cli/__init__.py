"""The `workbench` command: arguments in, calls into the package, tables or JSON out. It knows no formula.

`main` is the entry point and the only place where an error becomes a sentence and an exit code: 0 done, 1 a check
failed, 2 bad input, 130 interrupted. Commands import what they need when they run, so that `--help` and the commands
that only read the store start without torch, pandas or TransformerLens.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from workbench.cli import browse, care, certify, draw, export, launch, models, publish, remote, report, runs
from workbench.errors import WorkbenchError

# Typer carries its own copy of click from some version on; its exceptions are reached through what Typer exports.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="workbench",
    help="Attention-head analyses of language models, kept as versioned artifacts.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    if version:
        from workbench import __version__

        sys.stdout.write(f"workbench {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
        raise typer.Exit


for _group in (models, runs, launch, certify, browse, export, publish, draw, report, remote, care):
    _group.register(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name, default `sys.argv[1:]`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (| head) has seen enough
        _silence_stdout()
        return 0
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail("interrupted; finished runs are kept, the unfinished one left nothing behind", error, debug, 130)
    except _UsageError as error:
        return _fail(_usage(error), error, debug)
    except (WorkbenchError, _ClickException) as error:
        return _fail(str(error), error, debug)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", error, debug)


def _invoke(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("workbench", arguments) as context:
            result: Any = command.invoke(context)
    except typer.Exit as done:
        return int(done.exit_code)
    return int(result) if isinstance(result, int) else 0


def _usage(error: Any) -> str:
    """A usage error as a sentence that says where help is."""
    text = error.format_message().rstrip(".")
    if getattr(error, "possibilities", None):
        text = f"No such option {error.option_name!r}. Did you mean {error.possibilities[0]!r}?"
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "workbench"
    return f"{text}{'' if text.endswith(('?', ')')) else '.'} See `{command} --help`."


def _fail(sentence: str, error: BaseException, debug: bool, code: int = 2) -> int:
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__)
    sys.stderr.write(f"error: {' '.join(sentence.split())}\n")
    return code


def _warn(message: Warning | str, category: type[Warning], *_place: Any) -> None:
    """A warning in a line, without the source line Python would add; libraries' notes to developers are left out."""
    if category is UserWarning:
        sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's flush at exit does not complain about the closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # stdout is not a file (a test's capture)
        return
