"""The command ``invbench``: its commands, process settings, and one line and an exit code for every error."""

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from robustbench_inv.catalogue.locate import CATALOGUE_VARIABLE
from robustbench_inv.cli import data
from robustbench_inv.cli.calibrate import calibrate
from robustbench_inv.cli.entries import list_catalogue, show
from robustbench_inv.cli.evaluate import evaluate
from robustbench_inv.cli.label import label
from robustbench_inv.cli.options import option
from robustbench_inv.cli.queue import queue
from robustbench_inv.cli.report import report
from robustbench_inv.cli.reproduce import reproduce
from robustbench_inv.cli.rescore import rescore
from robustbench_inv.cli.train import train
from robustbench_inv.errors import InvbenchError

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
    """Set what this process and its workers go by; what the user has set stays.

    Torch's threads spin while they wait for each other. With one other process on two cores, 250 digits under
    PGD took 13 to 21 s so, and 4 s with threads that sleep.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name, (number, size) in MALLOC_SETTINGS.items():
        if name not in os.environ:
            os.environ[name] = str(size)
            _set_malloc_option(number, size)


def _set_malloc_option(number: int, size: int) -> None:
    """Set a parameter of the GNU C library's allocator; another library has none."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(number, size)


TRACEBACK = "INVBENCH_TRACEBACK"
"""Environment variable: if set, an error shows where it came from."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

MULTI_VALUE_OPTIONS = ("--model", "--attack", "--from", "--cells")
"""Options that take one value or several."""

app = typer.Typer(
    name="invbench",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich would take a third of the time that --help may take
    pretty_exceptions_enable=False,
    epilog="In the environment, INVBENCH_EVALUATE_SEED=3 is evaluate --seed 3, and so on.",
    context_settings={"auto_envvar_prefix": "INVBENCH", "help_option_names": ["-h", "--help"]},
)
app.command("list")(list_catalogue)
app.command()(show)
app.command()(evaluate)
app.command()(report)
app.command()(label)
app.command()(rescore)
app.command()(reproduce)
app.command()(train)
app.command()(queue)
app.command()(calibrate)
app.add_typer(data.app)


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 something failed, 2 usage."""
    configure_process()
    try:
        _run(repeat_options(sys.argv[1:]))
    except TyperException as error:
        _exit_with_line(_usage_error_line(error.format_message()), error.exit_code)
    except KeyboardInterrupt:
        _exit_with_line("interrupted; the same command goes on where it stopped", INTERRUPTED)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        _exit_with_line(
            _error_line(error), error.exit_code if isinstance(error, InvbenchError) else 1
        )


def repeat_options(arguments: list[str]) -> list[str]:
    """Return the arguments with the option repeated before each value of those that take many.

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
    # standalone, typer would print a usage error its own way, on several lines
    code = app(arguments, prog_name="invbench", standalone_mode=False)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    raise SystemExit(code or 0)


def _print_version(wanted: bool) -> None:
    if wanted:
        from robustbench_inv import __version__

        typer.echo(f"invbench {__version__}")
        raise typer.Exit


@app.callback()
def root(
    catalogue: Annotated[
        list[Path] | None,
        option(help="A further catalogue folder; may be given several times."),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool,
        option("--version", help="Print the version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Measure both ways a classifier fails: too sensitive to perturbations, too invariant to content."""
    if catalogue:
        # by the environment, so that worker processes find the same catalogue
        os.environ[CATALOGUE_VARIABLE] = os.pathsep.join(str(each.resolve()) for each in catalogue)


def _error_line(error: Exception) -> str:
    if isinstance(error, InvbenchError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" at {error.filename}" if error.filename else ""
        return f"error: the disk is full{where}; make room, and the same command goes on"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"error: unexpected {text}; set {TRACEBACK}=1 to see where"


def _usage_error_line(message: str) -> str:
    """Return what is wrong with the arguments as one line; the help of a command without any stays as it is."""
    if message.startswith("Usage:"):
        return message
    line = " ".join(message.replace("Value error, ", "").split()).rstrip(".")
    return f"error: {line[0].lower()}{line[1:]}; --help says what there is"


def _exit_with_line(line: str, code: int) -> None:
    sys.stderr.write(line + "\n")
    raise SystemExit(code) from None
