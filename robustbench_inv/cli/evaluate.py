"""``invbench evaluate``: attacks models and prints their accuracy under attack."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from robustbench_inv.cli.options import (
    AfterRun,
    BatchSize,
    Checks,
    DataRoot,
    Device,
    DryRun,
    EntryKind,
    EvaluationOptions,
    Existing,
    ExistingOption,
    FailOnOption,
    FailUnder,
    Json,
    LoggerOption,
    SamplesOption,
    Seed,
    Timeout,
    UntilDecided,
    Workers,
    complete,
    folder_option,
    option,
)
from robustbench_inv.cli.output import print_json, print_line, print_warnings, show_progress
from robustbench_inv.foreign import time_limit

if TYPE_CHECKING:
    from robustbench_inv.evaluation.plan import Plan

__all__ = ["carry_out", "evaluate", "planned"]

Models = Annotated[
    list[str],
    option(
        "--model",
        autocompletion=complete(EntryKind.models),
        metavar="M…",
        help="Attack these models: catalogue names or patterns such as 'mnist-*', module:factory or file.py:factory (one or more). LABEL=M sets the name in "
        "tables and reports.",
    ),
]
Attacks = Annotated[
    list[str] | None,
    option(
        "--attack",
        autocompletion=complete(EntryKind.attacks),
        metavar="A…",
        help="Run these attacks: presets, foolbox:NAME, torchattacks:NAME, adv-lib:NAME, module:Class or file.py:Class (one or more).",
        show_default="those of --suite, else standard",
    ),
]
Threat = Annotated[
    str | None,
    option(
        metavar="THREAT",
        autocompletion=complete(EntryKind.threats),
        help="Set the threat model: NORM=EPS[,EPS…], none (no budget), customary (that of the data set), or a catalogue name. Append :oracle=NAME for the oracle that "
        "decides the true class of a changed input, :substitute=MODEL for a transfer attack crafted on MODEL.",
        show_default="the suite's, or the usual one of attack and data set",
    ),
]
DatasetName = Annotated[
    str | None,
    option(
        metavar="NAME",
        autocompletion=complete(EntryKind.datasets),
        help="Use this data set: a name, folder:PATH, npz:FILE, npy:FILE,labels=FILE or file.py:function.",
        show_default="each model's own",
    ),
]
Certify = Annotated[
    bool,
    option(
        "--certify",
        help="Certify the samples after the attacks, and print the robust accuracy as an interval (linf and l2).",
    ),
]


def evaluate(  # noqa: PLR0913, PLR0917 - one parameter is one option
    model: Models,
    attack: Attacks = None,
    suite: Annotated[
        str | None,
        option(
            metavar="NAME",
            autocompletion=complete(EntryKind.suites),
            help="Run a predefined list of attacks and threat models.",
        ),
    ] = None,
    threat: Threat = None,
    dataset: DatasetName = None,
    samples: SamplesOption = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        folder_option("Write results to this folder.", "runs/PLAN"),
    ] = None,
    existing: ExistingOption = Existing.resume,
    dry_run: DryRun = False,
    keep_images: Annotated[
        bool,
        option(
            "--keep-images", help="Store the adversarial images, which label and rescore require."
        ),
    ] = False,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    workers: Workers = "1",
    data_root: DataRoot = None,
    checks: Checks = True,
    timeout: Timeout = None,
    certify: Certify = False,
    fail_on: FailOnOption = None,
    fail_under: FailUnder = None,
    until_decided: UntilDecided = False,
    logger: LoggerOption = None,
    json: Json = False,
) -> None:
    """Attack models and write one record per sample. Completed cells are not repeated (see --existing).

    A name may carry parameters, as in pgd:steps=100,loss=dlr. The exit code is 1 if a cell fails, and 3 if
    the verdict is one of --fail-on, or a robust accuracy may be below --fail-under.
    """
    from robustbench_inv.results.certificates import CertificateOptions

    options = EvaluationOptions(
        dataset,
        samples,
        seed,
        existing,
        batch_size,
        device,
        workers,
        data_root,
        checks,
        timeout,
        keep_images,
        until_decided,
        CertificateOptions() if certify else None,
    )
    after = AfterRun.of(fail_on, fail_under, logger)
    plan = planned(options, out, model, attacks=attack or (), suite=suite, threat=threat)
    return carry_out(plan, options, out, dry_run=dry_run, after=after, json=json)


def planned(
    options: EvaluationOptions,
    out: Path | None,
    models: Sequence[str],
    **parts: Any,  # noqa: ANN401 - fields of EvaluationRequest, which declares their types
) -> "Plan":
    """Check the options and return the plan of an evaluation."""
    from robustbench_inv.api import check_target
    from robustbench_inv.catalogue.listing import models_like
    from robustbench_inv.evaluation.loading import NamedModel
    from robustbench_inv.evaluation.plan import make_plan

    named = [name for text in models for name in models_like(text, options.dataset)]
    found = list(map(NamedModel.parse, named))
    request = replace(options.request(), models=found, **parts)
    options.run_options()  # checked before anything is loaded
    check_target(out, options.worker_count, may_wait=True)
    with time_limit(options.timeout):
        return make_plan(request, ["invbench", *sys.argv[1:]])


def carry_out(
    plan: "Plan",
    options: EvaluationOptions,
    out: Path | None,
    *,
    dry_run: bool,
    after: AfterRun,
    json: bool,
) -> None:
    """Run a plan, print its results and exit; or print its estimated cost."""
    from robustbench_inv.api import run_plan
    from robustbench_inv.cli.run_tables import print_plan, print_run
    from robustbench_inv.deciding import StopRule

    if dry_run:
        return print_plan(plan, json)
    how, workers = options.run_options(), options.worker_count
    rule = StopRule(after.fail_under) if options.until_decided else None
    with time_limit(options.timeout), show_progress() as progress:
        run = run_plan(plan, out, how, progress, workers, checks=options.checks, rule=rule)
    print_warnings(run.notes)
    if workers == 0:
        return print_json([]) if json else print_line(f"records: {run.path}")
    print_json(run.to_json()) if json else print_run(run)
    return after.finish(run)
