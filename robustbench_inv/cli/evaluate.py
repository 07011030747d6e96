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
    Samples,
    Seed,
    Workers,
    number_of,
    option,
)
from robustbench_inv.cli.output import complain, print_json, say

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
    samples: Samples = None,
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
    from robustbench_inv.cli.progress import reporting
    from robustbench_inv.cli.summary import print_run
    from robustbench_inv.evaluation import run as evaluation

    asked: dict[str, Any] = {"suite": suite, "threat": threat, "dataset": dataset, "seed": seed}
    asked |= {"samples": samples and number_of(samples), "device": device, "data_root": data_root}
    if dry_run:
        return _print_plan({"models": model, "attacks": attack or [], **asked}, json)
    with reporting() as progress:
        run = evaluation.evaluate(
            model=model,
            attack=attack,
            **asked,
            out=out,
            existing=existing.value,
            batch_size=batch_size,
            workers=number_of(workers),
            keep_images=keep_images,
            progress=progress,
            checks=checks,
            command=["invbench", *sys.argv[1:]],
        )
    complain(run.notes)
    print_json(run.to_json()) if json else print_run(run)
    for failure in run.failures:
        say(f"failed: {failure}")
    raise typer.Exit(1 if run.failures else 0)


def _print_plan(question: dict[str, Any], json: bool) -> None:
    from robustbench_inv.cli.summary import print_plan
    from robustbench_inv.evaluation.run import make_plan
    from robustbench_inv.evaluation.sources import Question

    root = question["data_root"]
    plan = make_plan(Question(**{**question, "data_root": str(root) if root else None}))
    complain(plan.warnings)
    print_plan(plan, json)
