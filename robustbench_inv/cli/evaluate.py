"""``invbench evaluate``: attacks models and prints what holds."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_inv.cli.options import (
    BatchSize,
    Checks,
    DataRoot,
    Device,
    DryRun,
    Existing,
    ExistingOption,
    Json,
    SamplesOption,
    Seed,
    Workers,
    int_or_text,
    option,
)
from robustbench_inv.cli.output import print_json, print_message, print_warnings

__all__ = ["evaluate"]

Models = Annotated[
    list[str],
    option("--model", metavar="M…", help="Names, module:factory or file.py:factory."),
]
Attacks = Annotated[
    list[str] | None,
    option(
        "--attack",
        metavar="A…",
        help="Names, foolbox:NAME, torchattacks:NAME, module:Class or file.py:Class.",
    ),
]
Threat = Annotated[
    str | None,
    option(
        help="NORM=EPS[,EPS…], none, or a name; with :oracle=NAME, who says what class a changed input has; "
        "with :substitute=MODEL, transfer from that model.",
        show_default="the suite's, or the usual one",
    ),
]


def evaluate(  # noqa: PLR0913, PLR0917 - one parameter is one option
    model: Models,
    attack: Attacks = None,
    suite: Annotated[str | None, option(help="A list of attacks and threats.")] = None,
    threat: Threat = None,
    dataset: Annotated[
        str | None, option(help="What to attack on.", show_default="each model's own")
    ] = None,
    samples: SamplesOption = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, option(help="Folder of the results.", show_default="runs/PLAN")
    ] = None,
    existing: ExistingOption = Existing.resume,
    dry_run: DryRun = False,
    keep_images: Annotated[
        bool, option("--keep-images", help="Store the images that are shown.")
    ] = False,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    workers: Workers = "1",
    data_root: DataRoot = None,
    checks: Checks = True,
    json: Json = False,
) -> None:
    """Attack models and write a record for each sample; what is there already is not done again.

    A name may carry parameters, as in pgd:steps=100,loss=dlr. Exit code 1 if a cell failed.
    """
    from robustbench_inv import api as evaluation
    from robustbench_inv.cli.output import show_progress
    from robustbench_inv.cli.run_tables import print_run

    options: dict[str, Any] = {"suite": suite, "threat": threat, "dataset": dataset, "seed": seed}
    options |= {
        "samples": samples and int_or_text(samples),
        "device": device,
        "data_root": data_root,
    }
    if dry_run:
        return _print_plan({"models": model, "attacks": attack or [], **options}, json)
    with show_progress() as progress:
        run = evaluation.evaluate(
            model=model,
            attack=attack,
            **options,
            out=out,
            existing=existing.value,
            batch_size=batch_size,
            workers=int_or_text(workers),
            keep_images=keep_images,
            progress=progress,
            checks=checks,
            command=["invbench", *sys.argv[1:]],
        )
    print_warnings(run.notes)
    print_json(run.to_json()) if json else print_run(run)
    for failure in run.failures:
        print_message(f"failed: {failure}")
    raise typer.Exit(1 if run.failures else 0)


def _print_plan(options: dict[str, Any], json: bool) -> None:
    from robustbench_inv.cli.run_tables import print_plan
    from robustbench_inv.evaluation.jobs import EvaluationRequest
    from robustbench_inv.evaluation.plan import make_plan

    root = options["data_root"]
    plan = make_plan(EvaluationRequest(**{**options, "data_root": str(root) if root else None}))
    print_warnings(plan.warnings)
    print_plan(plan, json)
