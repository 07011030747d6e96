"""``invbench reproduce``: runs the attacks or the experiment behind a paper's table or figure, and compares the numbers."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_inv.cli.entries import list_catalogue
from robustbench_inv.cli.options import (
    BatchSize,
    Checks,
    DataRoot,
    Device,
    DryRun,
    EntryKind,
    EvaluationOptions,
    Existing,
    ExistingOption,
    Json,
    SamplesOption,
    Seed,
    Timeout,
    Workers,
    exit_with_failures,
    folder_option,
    int_or_text,
    option,
)
from robustbench_inv.cli.output import (
    print_json,
    print_line,
    print_message,
    print_warnings,
    show_progress,
)
from robustbench_inv.foreign import time_limit

if TYPE_CHECKING:
    from robustbench_inv.catalogue.reproduction import Reproduction
    from robustbench_inv.reporting.reproduction.reproduction_report import ReproductionReport

__all__ = ["reproduce"]


@dataclass(frozen=True)
class _Task:
    """What to reproduce, how, and where.

    Args:
        item: the table or figure.
        options: of its evaluation.
        runs: folders to build the report from; empty to run the item.
        folder: folder for new results.
        page: the HTML file.
        dry_run: print the plan and run nothing.
        json: print JSON.
    """

    item: "Reproduction"
    options: EvaluationOptions
    runs: Sequence[Path]
    folder: Path
    page: Path
    dry_run: bool
    json: bool


def reproduce(  # noqa: PLR0913, PLR0917 - one parameter is one option
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Table or figure to reproduce: PAPER/ITEM or a TOML file.",
            show_default="list all",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        option(
            metavar="PATTERN",
            help="Run only the rows and panels that match this pattern, as in 'PGD w*'.",
            show_default="all",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        option(
            metavar="NAME",
            help="Use this data set in place of the paper's.",
            show_default="the paper's",
        ),
    ] = None,
    samples: SamplesOption = None,
    seed: Seed = 0,
    runs: Annotated[
        list[Path] | None,
        option(
            "--from",
            metavar="FOLDER…",
            help="Build the report from these result folders; run nothing (one or more).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        folder_option("Write results to this folder.", "runs/PAPER-ITEM"),
    ] = None,
    report: Annotated[
        Path | None,
        option(
            metavar="FILE",
            help="Write the report to this HTML file.",
            show_default="ITEM.html in the results folder",
        ),
    ] = None,
    existing: ExistingOption = Existing.resume,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    workers: Workers = "1",
    dry_run: DryRun = False,
    data_root: DataRoot = None,
    checks: Checks = True,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Reproduce a table or figure of a paper.

    The report compares the published numbers, our run of the paper's attacks, and our adaptive attacks. Without a
    name, list all reproductions. Completed cells are not repeated. The exit code is 1 if a cell fails.
    """
    if name is None:
        return list_catalogue(EntryKind.reproductions, json=json)
    item = _load_item(name, rows)
    options = EvaluationOptions(
        dataset, samples, seed, existing, batch_size, device, workers, data_root, checks, timeout
    )
    folder = out or Path("runs") / item.name.replace("/", "-")
    results = out or (runs or [folder])[0]
    page = report or results / f"{item.name.rpartition('/')[2]}.html"
    task = _Task(item, options, runs or (), folder, page, dry_run, json)
    _check_task(task)
    with time_limit(timeout):
        return _reproduce_experiment(task) if item.measurement else _reproduce_attacks(task)


def _check_task(task: _Task) -> None:
    """Check the options before anything runs; nothing is written."""
    from robustbench_inv.api import check_target
    from robustbench_inv.arguments import check_file, check_root, check_seed
    from robustbench_inv.data.sampling import check_selection
    from robustbench_inv.tensors import check_device

    options = task.options
    options.run_options()
    check_seed(options.seed)
    check_device(options.device)
    check_selection(_sample_count(task.item, options))
    check_root(options.data_root)
    if not task.runs:
        check_target(task.folder, options.worker_count)
    check_file(task.page, "report")


def _load_item(name: str, rows: str | None) -> "Reproduction":
    from robustbench_inv.catalogue.reproduction_file import load_reproduction

    item = load_reproduction(name)
    return item.only(rows) if rows else item


def _write_report(report: "ReproductionReport", page: Path, *, json: bool) -> None:
    """Write the report and print its tables and the path of its page."""
    from robustbench_inv.cli.run_tables import print_reproduction

    report.write(page)
    if json:
        return print_json({**report.to_json(), "report": str(page)})
    print_reproduction(report)
    return print_line(page)


def _reproduce_attacks(task: _Task) -> None:
    """Run the attacks of an item unless there are runs to report on, and write the report."""
    from robustbench_inv.api import run_plan
    from robustbench_inv.cli.run_tables import print_plan
    from robustbench_inv.evaluation.plan import plan_reproduction
    from robustbench_inv.reporting.reproduction.reproduction_report import report_from_runs
    from robustbench_inv.results.certificates import CertificateOptions

    item, options = task.item, task.options
    if task.runs:
        report = report_from_runs(item, task.runs, dataset=options.dataset)
        return _write_report(report, task.page, json=task.json)
    plan = plan_reproduction(item, options.request(), ["invbench", *sys.argv[1:]])
    if task.dry_run:
        return print_plan(plan, task.json)
    certify = CertificateOptions(optimise=0) if item.certify else None
    with show_progress() as progress:
        how = replace(options, certify=certify).run_options()
        run = run_plan(
            plan, task.folder, how, progress, options.worker_count, checks=options.checks
        )
    print_warnings(run.notes)
    requested = {job.spec.digest: job.samples for job in plan.jobs}
    report = report_from_runs(item, [task.folder], dataset=options.dataset, requested=requested)
    _write_report(report, task.page, json=task.json)
    return exit_with_failures(run.failures)


def _reproduce_experiment(task: _Task) -> None:
    """Run the experiment of an item unless there are results to report on, and write the report."""
    from robustbench_inv.reporting.reproduction.reproduction_report import (
        find_results,
        report_from_results,
    )

    item, options = task.item, task.options
    if task.dry_run:
        return _print_experiment_plan(item, options, json=task.json)
    results = find_results(task.runs) if task.runs else _run_experiments(item, task.folder, options)
    return _write_report(report_from_results(item, results), task.page, json=task.json)


def _print_experiment_plan(item: "Reproduction", options: EvaluationOptions, *, json: bool) -> None:
    assert item.measurement is not None
    plans: list[dict[str, Any]] = [
        {
            "dataset": dataset,
            "samples": _sample_count(item, options),
            "by": item.measurement.by,
            "models": _model_columns(item, data),
            "parameters": item.measurement.filled(data),
        }
        for data, dataset in item.places(options.dataset).items()
    ]
    if json:
        return print_json(plans)
    for plan in plans:
        named = plan["models"] or plan["parameters"].get("models", {})
        models = (
            ", ".join(named.values() if isinstance(named, dict) else named) or "no shipped models"
        )
        count = plan["samples"] or "all"
        print_line(f"{plan['by']} on {count} samples of {plan['dataset']}: {models}")
    print_line("its time was not estimated; nothing was run")
    return None


def _run_experiments(item: "Reproduction", folder: Path, options: EvaluationOptions) -> list[Path]:
    """Run the experiment on every data set, and return the files with the results."""
    from robustbench_inv.catalogue.datasets import split_missing
    from robustbench_inv.experiments.protocol import ExperimentRequest, run_experiment
    from robustbench_inv.reporting.table_formats import slug
    from robustbench_inv.results.experiment_result import result_to_gzip
    from robustbench_inv.results.files import explain_write_errors, write_atomically

    assert item.measurement is not None
    measurement, places = item.measurement, item.places(options.dataset)
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)

    def measure(data: str) -> Path:
        request = ExperimentRequest(
            places[data],
            _model_columns(item, data),
            _sample_count(item, options),
            seed=options.seed,
            device=options.device,
            data_root=options.data_root,
            report=print_message,
        )
        result = run_experiment(measurement.by, request, measurement.filled(data))
        file = folder / f"measured-{slug(data)}.json.gz"
        write_atomically(file, result_to_gzip(result))
        return file

    found, missing = split_missing(places, measure)
    for data, error in missing:
        print_message(f"{data} is left out: {error}")
    return [file for _, file in found]


def _model_columns(item: "Reproduction", data: str) -> dict[str, str]:
    """Return the model of each column; columns of published numbers alone have none."""
    columns = (column for column in item.columns if column.published)
    return {column.name: column.model("published", data) for column in columns}


def _sample_count(item: "Reproduction", options: EvaluationOptions) -> int | str | None:
    return int_or_text(options.samples) if options.samples else item.samples
