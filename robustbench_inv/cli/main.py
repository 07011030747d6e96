"""The command ``invbench``: its commands, process settings, and one line and an exit code for every error."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from robustbench_inv.arguments import printable
from robustbench_inv.cli import data, envelope
from robustbench_inv.cli.analyse import analyse
from robustbench_inv.cli.audit import audit
from robustbench_inv.cli.benchmark import run
from robustbench_inv.cli.calibrate import calibrate
from robustbench_inv.cli.certify import certify
from robustbench_inv.cli.check import check
from robustbench_inv.cli.compare import compare
from robustbench_inv.cli.doctor import doctor
from robustbench_inv.cli.entries import list_catalogue, show
from robustbench_inv.cli.evaluate import evaluate
from robustbench_inv.cli.export import export
from robustbench_inv.cli.label import label
from robustbench_inv.cli.leaderboard import leaderboard
from robustbench_inv.cli.new import new
from robustbench_inv.cli.options import HELP_OPTIONS, convert_plain_values, option
from robustbench_inv.cli.output import print_warnings, reserved_stdout, start_clock
from robustbench_inv.cli.queue import queue
from robustbench_inv.cli.report import report
from robustbench_inv.cli.reproduce import reproduce
from robustbench_inv.cli.rescore import rescore
from robustbench_inv.cli.train import train
from robustbench_inv.cli.work import status, work
from robustbench_inv.errors import TRACEBACK, InvbenchError
from robustbench_inv.foreign import foreign

__all__ = ["app", "configure_process", "main"]


MALLOC_SETTINGS = {
    # name in the environment, for worker processes: (number for mallopt, from malloc.h; bytes)
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 << 20),
}
"""The GNU allocator hands every larger buffer back to the system, and the next pass faults its pages in again. With
these, a forward pass of 250 digits through the Guess First CNN takes 15 ms instead of 22 on one core, with
backward pass 39 instead of 41 (docs/benchmarks.md). What is kept is no more than what was in use before."""


def configure_process() -> None:
    """Set the environment of this process and its workers; variables that the user has set stay.

    By default, torch's threads spin while they wait for each other. Beside one other process on two cores, PGD on
    250 digits took 13 to 21 s with spinning threads, and 4 s with sleeping ones.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name, (number, size) in MALLOC_SETTINGS.items():
        if name not in os.environ:
            os.environ[name] = str(size)
            _set_malloc_option(number, size)


def _set_malloc_option(number: int, size: int) -> None:
    """Set a parameter of the allocator of the GNU C library; do nothing with another C library."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(number, size)


INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""

MULTI_VALUE_OPTIONS = ("--model", "--models", "--attack", "--from", "--cells")
"""Options that take one or several values."""

TELL_THEMSELVES = ("list", "evaluate", "audit", "certify", "run", "reproduce")
"""Commands that report entries of a catalogue which another entry of the same name hides."""

app = typer.Typer(
    name="invbench",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the time of --help
    pretty_exceptions_enable=False,
    epilog="Every option can be set by an environment variable: INVBENCH_EVALUATE_SEED=3 means evaluate --seed 3.",
    context_settings={"auto_envvar_prefix": "INVBENCH", "help_option_names": HELP_OPTIONS},
)
app.command("list")(list_catalogue)
app.command()(show)
app.command()(evaluate)
app.command()(run)
app.command()(work)
app.command()(status)
app.command()(audit)
app.command()(certify)
app.command()(report)
app.command()(compare)
app.command()(export)
app.command()(leaderboard)
app.command()(label)
app.command()(rescore)
app.command()(reproduce)
app.command()(train)
app.command()(queue)
app.command()(analyse)
app.command()(calibrate)
app.command()(new)
app.command()(check)
app.command()(doctor)
app.add_typer(data.app)
app.add_typer(envelope.app)


INTERRUPTED_TEXT = "interrupted; saved samples are kept (--batch-size is how many are saved at once): run the same command again to resume"


def main() -> None:
    """Run the command line and exit: 0 success, 1 failure, 2 wrong usage."""
    start_clock()
    configure_process()
    try:
        _run(repeat_options(sys.argv[1:]))
    except TyperException as error:
        _exit_with_line(_usage_error_line(error.format_message()), error.exit_code)
    except KeyboardInterrupt:
        _exit_with_line(INTERRUPTED_TEXT, INTERRUPTED)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        _exit_with_line(
            _error_line(error), error.exit_code if isinstance(error, InvbenchError) else 1
        )


def repeat_options(arguments: list[str]) -> list[str]:
    """Return the arguments with each option that takes several values repeated before every value.

    Example:
        >>> repeat_options(["evaluate", "--model", "a", "b", "--seed", "3"])
        ['evaluate', '--model', 'a', '--model', 'b', '--seed', '3']
    """
    repeated, option, values = [], "", 0
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            option, values = argument if argument in MULTI_VALUE_OPTIONS else "", 0
        elif option:
            repeated += [option] if values else []
            values += 1
        repeated.append(argument)
    return repeated


def _run(arguments: list[str]) -> None:
    # in standalone mode typer prints usage errors on several lines
    command = typer.main.get_command(app)
    convert_plain_values(command)
    for param in command.params:  # those of completion are typer's own
        param.show_envvar = False  # type: ignore[attr-defined]
    _guard_commands(command)
    code = command(arguments, prog_name="invbench", standalone_mode=False)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    raise SystemExit(code or 0)


def _guard_commands(command: Any) -> None:  # noqa: ANN401 - a command of typer
    """Reserve standard output for the results of each command, which no code that it runs can end."""
    for subcommand in getattr(command, "commands", {}).values():
        _guard_commands(subcommand)
    if not hasattr(command, "commands"):
        command.callback = _guarded(command.callback)


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def guarded(*arguments: Any, **options: Any) -> None:  # noqa: ANN401 - of any command
        with reserved_stdout(), foreign("the command"):
            function(*arguments, **options)

    return guarded


def _print_version(wanted: bool) -> None:
    if wanted:
        from robustbench_inv import __version__

        typer.echo(f"invbench {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    catalogue: Annotated[
        list[Path] | None,
        option(
            metavar="FOLDER",
            help="Add a catalogue folder (repeatable).",
            show_default="the shipped catalogue alone",
        ),
    ] = None,
    trust: Annotated[
        list[Path] | None,
        option(
            metavar="MODULE",
            help="Let catalogue files and recipes name code of this module or FILE.py (repeatable).",
            show_default="the package, plugins and the catalogue's own files",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool,
        option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Measure adversarial robustness and excessive invariance of image classifiers.

    Robustness: small perturbations must not change the prediction. Invariance: the prediction must follow when the
    true class changes.
    """
    if catalogue:
        from robustbench_inv.catalogue.locate import CATALOGUE_VARIABLE

        # in the environment, so that worker processes use the same catalogue
        os.environ[CATALOGUE_VARIABLE] = os.pathsep.join(str(each.resolve()) for each in catalogue)
    if trust:
        from robustbench_inv.catalogue.trust import TRUST_VARIABLE, trusted_name

        os.environ[TRUST_VARIABLE] = os.pathsep.join(trusted_name(str(each)) for each in trust)
    if catalogue and context.invoked_subcommand not in TELL_THEMSELVES:
        from robustbench_inv.catalogue.locate import shadowed, unread

        print_warnings((*shadowed(), *unread()))


def _error_line(error: Exception) -> str:
    if isinstance(error, InvbenchError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" at {error.filename}" if error.filename else ""
        return f"error: the disk is full{where}; free some space and run the same command again to resume"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"error: unexpected {text}; set {TRACEBACK}=1 for the traceback"


_REWORDED = {
    "Value error, ": "",
    "Got unexpected extra arguments": "Too many arguments",
    "Got unexpected extra argument(s)": "Too many arguments",
    "Got unexpected extra argument": "Too many arguments",
}
"""Parts of typer's messages, and what is printed instead: only an error of this program is called unexpected."""


def _usage_error_line(message: str) -> str:
    """Return a usage error as one line; the help of a command without arguments is not changed."""
    if message.startswith("Usage:"):
        return message
    for words, plain in _REWORDED.items():
        message = message.replace(words, plain)
    line = " ".join(message.split()).rstrip(".")
    return f"error: {line[0].lower()}{line[1:]}; run with --help for the options"


def _exit_with_line(line: str, code: int) -> None:
    sys.stderr.write(printable(line) + "\n")
    raise SystemExit(code) from None
