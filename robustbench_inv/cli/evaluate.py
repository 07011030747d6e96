"""``invbench evaluate``: attacks models and prints what holds."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_inv.cli.options import DataRoot, Device, Existing, ExistingOption, Json, option
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
    option(help="NORM=EPS[,EPS…], none, or a name.", show_default="the suite's, or the usual one"),
]
Samples = Annotated[
    str | None,
    option(metavar="N|first:N", help="A fixed balanced draw, or the first.", show_default="all"),
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
    seed: Annotated[int, option(help="Of all random numbers.")] = 0,
    out: Annotated[
        Path | None, option(help="Folder of the results.", show_default="runs/PLAN")
    ] = None,
    existing: ExistingOption = Existing.resume,
    dry_run: Annotated[
        bool, option("--dry-run", help="Print the cells and what they will cost.")
    ] = False,
    keep_images: Annotated[
        bool, option("--keep-images", help="Store the images that are shown.")
    ] = False,
    batch_size: Annotated[int | None, option(min=1, help="Samples of a block.")] = None,
    device: Device = "cpu",
    workers: Annotated[str, option(help="Number of processes, or ray.")] = "1",
    data_root: DataRoot = None,
    checks: Annotated[bool, option(help="Run the validity checks.")] = True,
    json: Json = False,
) -> None:
    """Attack models and write a record for each sample; what is there already is not done again.

    A name may carry parameters, as in pgd:steps=100,loss=dlr. Exit code 1 if a cell failed.
    """
    from robustbench_inv.cli.progress import reporting
    from robustbench_inv.cli.summary import print_run
    from robustbench_inv.evaluation import run as evaluation

    asked: dict[str, Any] = {"suite": suite, "threat": threat, "dataset": dataset, "seed": seed}
    asked |= {"samples": samples and _number(samples), "device": device, "data_root": data_root}
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
            workers=_number(workers),
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


def _number(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _print_plan(question: dict[str, Any], json: bool) -> None:
    from robustbench_inv.cli.summary import print_estimates
    from robustbench_inv.evaluation.run import make_plan
    from robustbench_inv.evaluation.sources import Question

    root = question["data_root"]
    plan = make_plan(Question(**{**question, "data_root": str(root) if root else None}))
    complain(plan.warnings)
    estimates = plan.estimate()
    if not json:
        return print_estimates(plan, estimates)
    pairs = zip(plan.jobs, estimates, strict=True)
    return print_json([{**job.to_json(), **estimate.to_json()} for job, estimate in pairs])
