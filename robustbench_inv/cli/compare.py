"""``invbench compare``: paired differences of models that were evaluated, or are until they are decided."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.evaluate import Threat, planned
from robustbench_inv.cli.options import (
    BatchSize,
    Checks,
    DataRoot,
    Device,
    EvaluationOptions,
    Existing,
    Json,
    SamplesOption,
    Seed,
    Timeout,
    UntilDecided,
    Workers,
    option,
)
from robustbench_inv.cli.output import print_json, print_line, print_warnings, show_progress
from robustbench_inv.foreign import time_limit

__all__ = ["compare"]

EVALUATE = "Evaluate the models of --model with these attacks first, into RUN (default runs/PLAN)."


def compare(  # noqa: PLR0913, PLR0917 - one parameter is one option
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Folder of results: the baseline's.")
    ] = None,
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="OTHER",
            help="Folder of results to compare.",
            show_default="the other models in RUN",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        option(
            "--model",
            "--models",
            metavar="M…",
            help="Compare these models, the baseline first.",
            show_default="models of one name; in one folder all of them with the first",
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        option(metavar="A…", help=EVALUATE, show_default="compare existing results"),
    ] = None,
    threat: Threat = None,
    dataset: Annotated[
        str | None,
        option(metavar="NAME", help="Use this data set.", show_default="each model's own"),
    ] = None,
    samples: SamplesOption = None,
    until_decided: UntilDecided = False,
    checks: Checks = True,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = None,
    workers: Workers = "1",
    timeout: Timeout = None,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        option(
            metavar="FILE",
            help="Write the page to this HTML file.",
            show_default="OTHER/compare.html",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare models sample by sample: before and after a defence, or the models of one run.

    Without --attack it reads records and evaluates nothing. Differences are paired, have a 95 % interval, and their p
    values are adjusted for the number of comparisons. With --until-decided, --attack evaluates only as many samples as
    show which model is better.
    """
    from robustbench_inv.errors import BadParameter
    from robustbench_inv.reporting.compare import compare as compare_runs

    if attack and (other or not model):
        problem = "--attack evaluates the models of --model"
        raise BadParameter(problem, got=str(other) if other else None, expected="--model A B")
    if attack:
        how = (seed, Existing.resume, batch_size, device, workers, data_root, checks, timeout)
        options = EvaluationOptions(dataset, samples, *how)
        run = _evaluate(options, model or [], attack, threat, run, stops=until_decided)
        model = None
    elif until_decided or run is None:
        problem = "nothing to evaluate" if until_decided else "nothing to compare"
        raise BadParameter(problem, expected="--attack, or a folder of results")
    found = compare_runs(run, other, model or ())
    path = found.write(out or (other or run) / "compare.html")
    print_warnings(found.notes)
    if json:
        return print_json({**found.to_json(), "page": str(path)})
    print_line(found)
    return print_line(f"page: {path}")


def _evaluate(
    options: EvaluationOptions,
    models: list[str],
    attacks: list[str],
    threat: str | None,
    out: Path | None,
    *,
    stops: bool,
) -> Path:
    """Evaluate the models, and return the folder of the results."""
    from robustbench_inv.api import run_plan
    from robustbench_inv.deciding import StopRule
    from robustbench_inv.errors import BadResults

    plan = planned(options, out, models, attacks=attacks, threat=threat)
    with time_limit(options.timeout), show_progress() as progress:
        run = run_plan(
            plan,
            out,
            options.run_options(),
            progress,
            options.worker_count,
            checks=options.checks,
            rule=StopRule() if stops else None,
        )
    print_warnings(run.notes)
    if run.failures:
        raise BadResults(f"a cell failed: {run.failures[0]}")
    return run.path
