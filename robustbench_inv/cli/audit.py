"""``invbench audit``: is this defence real, and can its number be published?"""

import sys
from pathlib import Path
from typing import Annotated
from warnings import catch_warnings, simplefilter

import typer

from robustbench_inv.cli.options import (
    FAILED_VERDICT,
    AfterRun,
    BatchSize,
    DataRoot,
    Device,
    EntryKind,
    Existing,
    ExistingOption,
    FailOnOption,
    FailUnder,
    Json,
    LoggerOption,
    Seed,
    Timeout,
    Workers,
    complete,
    folder_option,
    int_or_text,
    option,
)
from robustbench_inv.cli.output import print_json, print_message, print_warnings, show_progress
from robustbench_inv.errors import EvaluationWarning, RangeMismatch

__all__ = ["audit"]


def audit(  # noqa: PLR0913, PLR0917 - one parameter is one option
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Audit this model: catalogue name, module:factory or file.py:factory.",
            autocompletion=complete(EntryKind.models),
        ),
    ],
    dataset: Annotated[
        str | None,
        option(
            metavar="NAME",
            help="Use this data set: a name, folder:PATH, npz:FILE, npy:FILE,labels=FILE or file.py:function.",
            show_default="the model's own",
        ),
    ] = None,
    threat: Annotated[
        str | None,
        option(metavar="THREAT", help="Set the budget: NORM=EPS.", show_default="the data set's"),
    ] = None,
    minutes: Annotated[float, option(metavar="M", help="Aim at this time limit.")] = 10.0,
    samples: Annotated[
        int | None,
        option(metavar="N", help="Use at most N samples.", show_default="as many as fit"),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, folder_option("Write results to this folder.", "runs/PLAN")] = None,
    existing: ExistingOption = Existing.resume,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    workers: Workers = "1",
    data_root: DataRoot = None,
    timeout: Timeout = None,
    logger: LoggerOption = None,
    fail_under: FailUnder = None,
    fail_on: FailOnOption = None,
    json: Json = False,
) -> None:
    """Find out whether a model's robust accuracy can be published: suite audit and every check, within a time limit.

    The last lines are the verdict, its reasons and the next command. The exit code is 3 if the verdict is one of
    --fail-on or a robust accuracy may be below --fail-under, and 1 if a cell fails.
    """
    from robustbench_inv.auditing import audit as run_audit
    from robustbench_inv.cli.run_tables import print_run
    from robustbench_inv.evaluation.loading import NamedModel

    after = AfterRun.of(fail_on, fail_under, logger)
    named = NamedModel.parse(model)
    try:
        with show_progress() as progress, catch_warnings():
            simplefilter("ignore", EvaluationWarning)  # the verdict is printed
            run = run_audit(
                named if isinstance(named, str) else {named.label: named.source},
                minutes=minutes,
                samples=samples,
                existing=existing.value,
                dataset=dataset,
                threat=threat,
                seed=seed,
                out=out,
                batch_size=batch_size,
                device=device,
                workers=int_or_text(workers),
                data_root=data_root,
                timeout=timeout,
                progress=progress,
                command=["invbench", *sys.argv[1:]],
            )
    except RangeMismatch as error:
        print_message(f"verdict on {model}: do not publish. {error}")
        raise typer.Exit(FAILED_VERDICT if fail_on or fail_under is not None else 2) from None
    print_warnings(run.notes)
    print_json(run.to_json()) if json else print_run(run)
    return after.finish(run)
