"""``invbench run``: evaluates what a benchmark file lists."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.evaluate import carry_out
from robustbench_inv.cli.options import (
    AfterRun,
    BatchSize,
    Checks,
    DataRoot,
    Device,
    DryRun,
    EvaluationOptions,
    Existing,
    ExistingOption,
    FailOnOption,
    FailUnder,
    Json,
    LoggerOption,
    SamplesOption,
    Timeout,
    Workers,
    folder_option,
    option,
)
from robustbench_inv.foreign import time_limit

__all__ = ["run"]


def run(  # noqa: PLR0913, PLR0917 - one parameter is one option
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Benchmark file, such as benchmark.toml.")
    ],
    out: Annotated[Path | None, folder_option("Write results to this folder.", "runs/PLAN")] = None,
    json: Json = False,
    fail_on: FailOnOption = None,
    fail_under: FailUnder = None,
    logger: LoggerOption = None,
    dry_run: DryRun = False,
    samples: SamplesOption = None,
    existing: ExistingOption = Existing.resume,
    keep_images: Annotated[
        bool, option("--keep-images", help="Store the adversarial images.")
    ] = False,
    workers: Workers = "1",
    device: Device = "cpu",
    batch_size: BatchSize = None,
    timeout: Timeout = None,
    data_root: DataRoot = None,
    checks: Checks = True,
) -> None:
    """Run the benchmark of a file: its models, data sets, suites, budgets and seeds.

    Completed cells are not repeated (see --existing). The exit code is 1 if a cell fails.
    """
    from robustbench_inv.api import check_target
    from robustbench_inv.evaluation.plan import plan_benchmark

    how = (existing, batch_size, device, workers, data_root, checks, timeout, keep_images)
    options = EvaluationOptions(None, samples, 0, *how)
    options.run_options()  # checked before anything is loaded
    after = AfterRun.of(fail_on, fail_under, logger)
    check_target(out, options.worker_count, may_wait=True)
    with time_limit(timeout):
        plan = plan_benchmark(file, options.request(), ["invbench", *sys.argv[1:]])
    return carry_out(plan, options, out, dry_run=dry_run, after=after, json=json)
