"""The options that several commands share, and the evaluation that they describe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_inv.cli.output import print_json, print_line, print_message

if TYPE_CHECKING:
    from robustbench_inv.checks.audit_verdict import Conclusion
    from robustbench_inv.evaluation.engine import RunOptions
    from robustbench_inv.evaluation.jobs import EvaluationRequest
    from robustbench_inv.reporting.exports import MetricLogger
    from robustbench_inv.results.cell import FinishedCell
    from robustbench_inv.results.certificates import CertificateOptions
    from robustbench_inv.run import Run

__all__ = [
    "HELP_OPTIONS",
    "AfterRun",
    "BatchSize",
    "Checks",
    "DataRoot",
    "Device",
    "DryRun",
    "EntryKind",
    "EvaluationOptions",
    "Existing",
    "ExistingOption",
    "FailOn",
    "FailOnOption",
    "FailUnder",
    "Json",
    "LoggerOption",
    "SamplesOption",
    "Seed",
    "Timeout",
    "TrainingDevice",
    "UntilDecided",
    "Workers",
    "complete",
    "convert_plain_values",
    "exit_with_failures",
    "folder_option",
    "int_or_text",
    "load_logger",
    "option",
    "print_path",
]


HELP_OPTIONS = ["-h", "--help"]

option = partial(typer.Option, show_envvar=False)
"""An option; the help does not repeat its environment variable INVBENCH_<COMMAND>_<OPTION>."""


def folder_option(text: str, default: str) -> Any:  # noqa: ANN401 - typer.Option
    """Return the option of a folder for results, with its help text and the default that the help shows."""
    return option(metavar="FOLDER", help=text, show_default=default)


class EntryKind(StrEnum):
    """The kinds of catalogue entries."""

    models = "models"
    attacks = "attacks"
    datasets = "datasets"
    suites = "suites"
    threats = "threats"
    oracles = "oracles"
    reproductions = "reproductions"


class Existing(StrEnum):
    """What to do with cells that have results."""

    resume = "resume"
    skip = "skip"
    redo = "redo"
    repair = "repair"


def complete(*kinds: EntryKind) -> Callable[[str], list[str]]:
    """Return the completion of an option whose value names an entry of these kinds."""

    def names(incomplete: str) -> list[str]:
        from robustbench_inv.catalogue.listing import list_entries

        found = [str(entry["name"]) for kind in kinds for entry in list_entries(kind.value).entries]
        return sorted(name for name in found if name.startswith(incomplete))

    return names


class FailOn(StrEnum):
    """The verdicts on which a command exits with 3."""

    reservations = "reservations"
    do_not_publish = "do-not-publish"


Json = Annotated[bool, option("--json", help="Print JSON on standard output.")]

DataRoot = Annotated[
    Path | None,
    typer.Option(
        envvar="INVBENCH_DATA",
        metavar="FOLDER",
        help="Read data sets from this folder, one subfolder each.",
        show_default="the user's cache",
    ),
]

Device = Annotated[
    str, option(metavar="DEVICE", help="Run models on this device: cpu, cuda, cuda:1, mps.")
]

TrainingDevice = Annotated[
    str, option(metavar="DEVICE", help="Train on this device: cpu, cuda, cuda:1, mps or auto.")
]

ExistingOption = Annotated[
    Existing, option(help="Resume, skip, redo or repair cells with existing results.")
]

SamplesOption = Annotated[
    str | None,
    option(
        metavar="N|first:N",
        help="Use a subset. N: fixed and class-balanced; first:N: the first N samples.",
        show_default="all",
    ),
]

Seed = Annotated[int, option(metavar="N", help="Random seed.")]

DryRun = Annotated[
    bool, option("--dry-run", help="Print the planned cells and their estimated cost; run nothing.")
]

BatchSize = Annotated[
    int | None,
    option(min=1, metavar="N", help="Process and save N samples at once.", show_default="250"),
]

Workers = Annotated[
    str,
    option(
        metavar="N|ray",
        help="Number of worker processes, 0 to wait for invbench work, or ray, ray:ADDRESS (append ,gpus=F for a share of a GPU).",
    ),
]

Timeout = Annotated[
    float | None,
    option(
        metavar="SECONDS",
        help="Stop a call of a model, attack or plugin after this time.",
        show_default="no limit",
    ),
]

Checks = Annotated[bool, option(help="Run the validity checks after the attacks.")]


FailOnOption = Annotated[
    FailOn | None,
    option(
        "--fail-on",
        help="Exit with 3 if a verdict is do not publish, or also if it has reservations.",
        show_default="never",
    ),
]


FailUnder = Annotated[
    float | None,
    option(
        "--fail-under",
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Exit with 3 unless the lower end of every robust accuracy's 95 % interval reaches this share.",
        show_default="never",
    ),
]

UntilDecided = Annotated[
    bool,
    option(
        "--until-decided",
        help="Evaluate samples in random order, and stop when it is decided which model is better, or on which side of --fail-under each model is.",
    ),
]

LoggerOption = Annotated[
    str | None,
    option(
        "--logger",
        metavar="LOGGER",
        help="Send the numbers to this object with a method log, or to what this function returns: module:name or "
        "file.py:name.",
        show_default="none",
    ),
]


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of an evaluation, for ``evaluate`` and ``reproduce``."""

    dataset: str | None
    samples: str | None
    seed: int
    existing: Existing
    batch_size: int | None
    device: str
    workers: str
    data_root: Path | None
    checks: bool
    timeout: float | None
    keep_images: bool = False
    until_decided: bool = False
    certify: "CertificateOptions | None" = None

    def request(self) -> "EvaluationRequest":
        """Return the request that these options make, without models and attacks."""
        from robustbench_inv.evaluation.jobs import EvaluationRequest

        return EvaluationRequest(
            models=(),
            dataset=self.dataset,
            samples=self.samples and int_or_text(self.samples),
            seed=self.seed,
            device=self.device,
            data_root=None if self.data_root is None else str(self.data_root),
        )

    def run_options(self) -> "RunOptions":
        """Return how to run, which changes no result."""
        from robustbench_inv.evaluation.engine import RunOptions

        return RunOptions(
            self.batch_size,
            self.device,
            self.keep_images,
            self.existing.value,
            self.timeout,
            certify=self.certify,
        )

    @property
    def worker_count(self) -> int | str:
        """Number of local processes, or ``ray``."""
        return int_or_text(self.workers)


def int_or_text(text: str) -> int | str:
    """Return the number that a text contains, or the text itself (``first:100``, ``ray``)."""
    return int(text) if text.isascii() and text.removeprefix("-").isdecimal() else text


def exit_with_failures(failures: Sequence[object]) -> None:
    """Print the cells that failed, and exit with 1 if there are any, else 0."""
    for failure in failures:
        print_message(f"failed: {failure}")
    raise typer.Exit(1 if failures else 0)


@dataclass(frozen=True)
class AfterRun:
    """What follows a run: its numbers are logged, and decide on the exit code."""

    fail_on: FailOn | None
    fail_under: float | None
    logger: "MetricLogger | None" = None

    def __post_init__(self) -> None:
        if self.fail_under is not None and not 0 <= self.fail_under <= 1:  # nan passes a range
            raise typer.BadParameter(f"--fail-under {self.fail_under} is not between 0 and 1")

    @classmethod
    def of(cls, fail_on: FailOn | None, fail_under: float | None, logger: str | None) -> "AfterRun":
        """Load the logger, before anything is run."""
        return cls(fail_on, fail_under, None if logger is None else load_logger(logger))

    def finish(self, run: "Run") -> None:
        """Log the numbers; exit with 1 if a cell failed, with 3 if the run is as bad as an option names, else with 0."""
        if self.logger is not None:
            _log(run, self.logger)
        if not run.failures:
            self.judge(run.cells, run.conclusions)
        exit_with_failures(run.failures)

    def judge(self, cells: "Sequence[FinishedCell]", conclusions: "Sequence[Conclusion]") -> None:
        """Exit with 3 if a verdict is as bad as ``fail_on``, or a robust accuracy may be below ``fail_under``."""
        bad: tuple[str, ...] = ("do not publish",)
        if self.fail_on == FailOn.reservations:
            bad = ("publishable with reservations", *bad)
        if self.fail_on and any(each.verdict in bad for each in conclusions):
            raise typer.Exit(FAILED_VERDICT)
        if self.fail_under is not None:
            from robustbench_inv.reporting.exports import robustness_below

            found = robustness_below(cells, self.fail_under)
            for each in found:
                print_message(f"--fail-under: {each}")
            if found:
                raise typer.Exit(FAILED_VERDICT)


def load_logger(reference: str) -> "MetricLogger":
    """Return the logger of a reference: the object itself, or what the function or class returns.

    Raises:
        BadCatalogue, UnknownName: if it cannot be imported.
        BadParameter: if it has no method ``log``, or the function raises.
    """
    from robustbench_inv.catalogue.fields import call_factory
    from robustbench_inv.catalogue.references import import_object
    from robustbench_inv.errors import BadParameter

    found: Any = import_object(reference)
    if isinstance(found, type) or (not hasattr(found, "log") and callable(found)):
        found = call_factory(found, {}, f"logger {reference}")
    if not callable(getattr(found, "log", None)):
        raise BadParameter(
            f"{reference} cannot be used as a logger",
            got=type(found),
            expected="a method log(metrics)",
        )
    return found  # type: ignore[no-any-return]


def _log(run: "Run", logger: "MetricLogger") -> None:
    """Send the numbers; the results are on the disk, so a logger that fails is a warning."""
    from robustbench_inv.reporting.exports import log_metrics

    try:
        log_metrics(run, logger)
    except Exception as error:
        print_message(
            f"warning: the logger failed: {' '.join(f'{type(error).__name__}: {error}'.split())}"
        )


FAILED_VERDICT = 3
"""Exit code after a verdict that ``--fail-on`` names, and of ``--fail-under``."""


def print_path(path: Path, *, json: bool, key: str, **facts: object) -> None:
    """Print the path that a command wrote; as JSON, under a key and with further facts."""
    if json:
        return print_json({key: str(path), **facts})
    return print_line(path)


class _PlainValues:
    """Converts texts, names of enumeration members, defaults and absent values; typer converts all others.

    Typer imports pydantic for every value but booleans, which takes longer than all else that ``invbench list`` does.
    """

    def coerce(self, value: object, param: Any, ctx: object) -> object:  # noqa: ANN401 - typer's
        """Return the converted value; typer's own converter reports a value that does not fit."""
        annotation = param.type_descriptor.annotation
        if _is_blank(value):
            raise typer.BadParameter(f"{value!r} is empty", param=param)
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if isinstance(annotation, type) and isinstance(value, annotation):
            return value
        if isinstance(annotation, type) and issubclass(annotation, StrEnum):
            members = {str(member): member for member in annotation}
            if value in members:
                return members[str(value)]
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _is_blank(value: object) -> bool:
    """Return whether a value, or one of several values, is a blank text."""
    values = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(each, str) and not each.strip() for each in values)


def convert_plain_values(command: Any) -> None:  # noqa: ANN401 - a command of typer
    """Convert plain values of a command and its subcommands without pydantic, where typer has this hook."""
    context = typer.Context(command, help_option_names=HELP_OPTIONS)
    for param in command.get_params(context):
        param._runtime_param = _PlainValues()
    for subcommand in getattr(command, "commands", {}).values():
        convert_plain_values(subcommand)
