"""``invbench reproduce``: runs the attacks or the experiment behind a paper's table or figure, and compares with the published numbers."""

import sys
from collections.abc import Mapping, Sequence
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

if TYPE_CHECKING:
    from robustbench_inv.api import Run
    from robustbench_inv.catalogue.reproduction import Reproduction
    from robustbench_inv.evaluation.plan import Plan
    from robustbench_inv.reporting.reproduction.paper_report import SamplesByCell

__all__ = ["reproduce", "reproduce_experiment"]


def reproduce_experiment(
    item: "Reproduction",
    page: Path,
    runs: Sequence[Path],
    folder: Path,
    options: Mapping[str, Any],
    *,
    json: bool,
) -> None:
    """Measure what an item says unless results are named, write the report, and print its tables.

    Args:
        item: with a measurement.
        page: the HTML file.
        runs: folders of what was measured; empty to measure now.
        folder: gets what is measured, ``measured-DATASET.json.gz``.
        options: the options ``dataset``, ``samples``, ``seed``, ``device``, ``data_root``, and ``dry_run`` to
            print what would be measured.
        json: print JSON.
    """
    from robustbench_inv.reporting.reproduction.experiment_report import (
        build_experiment_report,
        find_results,
    )

    if options["dry_run"]:
        return _print_experiment_plan(item, options, json)
    files = find_results(runs) if runs else _run_experiments(item, folder, options)
    report = build_experiment_report(item, files)
    report.write(page)
    if json:
        return print_json({**report.to_json(), "report": str(page)})
    for text in report.texts:
        typer.echo(text)
    return typer.echo(page)


def _print_experiment_plan(item: "Reproduction", options: Mapping[str, Any], json: bool) -> None:
    assert item.measurement is not None
    plans: list[dict[str, Any]] = [
        {
            "dataset": place,
            "samples": _sample_count(item, options),
            "by": item.measurement.by,
            "models": _model_columns(item, data),
            "parameters": item.measurement.filled(data),
        }
        for data, place in item.places(options["dataset"]).items()
    ]
    if json:
        return print_json(plans)
    for plan in plans:
        models = ", ".join(plan["models"].values()) or "the models of its parameters"
        typer.echo(
            f"{plan['by']} on {plan['samples'] or 'all'} samples of {plan['dataset']}: {models}"
        )
    return None


def _run_experiments(item: "Reproduction", folder: Path, options: Mapping[str, Any]) -> list[Path]:
    from robustbench_inv.experiments.protocol import ExperimentRequest, run_experiment
    from robustbench_inv.reporting.table_formats import slug
    from robustbench_inv.results.experiment_result import result_to_gzip
    from robustbench_inv.results.files import explain_write_errors, write_atomically

    assert item.measurement is not None
    own = {key: options[key] for key in ("seed", "device", "data_root")}
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = []
    for data, place in item.places(options["dataset"]).items():
        question = ExperimentRequest(
            place,
            _model_columns(item, data),
            _sample_count(item, options),
            **own,
            report=print_message,
        )
        measured = run_experiment(item.measurement.by, question, item.measurement.filled(data))
        files.append(folder / f"measured-{slug(data)}.json.gz")
        write_atomically(files[-1], result_to_gzip(measured))
    return files


def _model_columns(item: "Reproduction", data: str) -> dict[str, str]:
    """Return the names of the models by column; columns of published numbers alone have none."""
    named = (column for column in item.columns if column.published)
    return {column.name: column.model("published", data) for column in named}


def _sample_count(item: "Reproduction", options: Mapping[str, Any]) -> int | str | None:
    return int_or_text(options["samples"]) if options["samples"] else item.samples


def reproduce(  # noqa: PLR0913, PLR0917 - one parameter is one option
    name: Annotated[
        str | None, typer.Argument(help="PAPER/ITEM, or a TOML file.", show_default="list them")
    ] = None,
    only: Annotated[
        str | None, option(help="A pattern of rows, as 'PGD w*'.", show_default="all")
    ] = None,
    dataset: Annotated[
        str | None,
        option(help="What stands in for the paper's data.", show_default="the paper's"),
    ] = None,
    samples: SamplesOption = None,
    seed: Seed = 0,
    runs: Annotated[
        list[Path] | None,
        option("--from", help="Run nothing, draw from these results; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, option(help="Folder of the results.", show_default="runs/PAPER-ITEM")
    ] = None,
    report: Annotated[
        Path | None, option(help="The HTML file to write.", show_default="ITEM.html in the folder")
    ] = None,
    existing: ExistingOption = Existing.resume,
    dry_run: DryRun = False,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    workers: Workers = "1",
    data_root: DataRoot = None,
    checks: Checks = True,
    json: Json = False,
) -> None:
    """Reproduce a table or figure of a paper: published numbers, ours as published, ours adaptive.

    Without a name, list what there is. EntryKind was evaluated is not evaluated again. Exit code 1 if a cell failed.
    """
    if name is None:
        return list_catalogue(EntryKind.reproductions, json=json)
    item, asked = _load_item(name, only), {"dataset": dataset, "samples": samples, "seed": seed}
    page = (
        report
        or (out or (runs or [_default_folder(item)])[0]) / f"{item.name.rpartition('/')[2]}.html"
    )
    if item.measurement:
        more = {"device": device, "data_root": data_root, "dry_run": dry_run}
        folder = out or _default_folder(item)
        return reproduce_experiment(item, page, runs or (), folder, {**asked, **more}, json=json)
    if runs:
        return _write_report(item, runs, page, json, dataset=dataset)
    plan = _make_plan(item, {**asked, "device": device, "data_root": data_root})
    if dry_run:
        return _print_plan(plan, json)
    folder, options = out or _default_folder(item), (batch_size, device, False, existing.value)
    run = _run(plan, folder, options, int_or_text(workers), checks=checks)
    samples_of = {job.spec.digest: job.samples for job in plan.jobs}
    _write_report(item, [folder], page, json, dataset=dataset, asked=samples_of)
    for failure in run.failures:
        print_message(f"failed: {failure}")
    raise typer.Exit(1 if run.failures else 0)


def _load_item(name: str, only: str | None) -> "Reproduction":
    from robustbench_inv.catalogue.reproduction_file import load_reproduction

    item = load_reproduction(name)
    return item.only(only) if only else item


def _default_folder(item: "Reproduction") -> Path:
    return Path("runs") / item.name.replace("/", "-")


def _make_plan(item: "Reproduction", options: dict[str, Any]) -> "Plan":
    from robustbench_inv.evaluation.jobs import EvaluationRequest
    from robustbench_inv.evaluation.plan import plan_reproduction

    root, samples = options["data_root"], options["samples"]
    options |= {"data_root": root and str(root), "samples": samples and int_or_text(samples)}
    return plan_reproduction(item, EvaluationRequest((), **options), ["invbench", *sys.argv[1:]])


def _print_plan(plan: "Plan", json: bool) -> None:
    from robustbench_inv.cli.run_tables import print_plan

    print_warnings(plan.warnings)
    print_plan(plan, json)


def _run(
    plan: "Plan", folder: Path, options: tuple[Any, ...], workers: int | str, *, checks: bool
) -> "Run":
    from robustbench_inv.api import check_run, run_plan
    from robustbench_inv.cli.output import show_progress
    from robustbench_inv.evaluation.engine import RunOptions

    chosen = RunOptions(*options)
    with show_progress() as progress:
        run = run_plan(plan, folder, chosen, progress, workers)
    if checks:
        check_run(run, chosen.device)
    print_warnings(run.notes)
    return run


def _write_report(
    item: "Reproduction",
    runs: Sequence[Path],
    page: Path,
    json: bool,
    *,
    dataset: str | None,
    asked: "SamplesByCell | None" = None,
) -> None:
    """Write the report and print what it says."""
    from robustbench_inv.cli.run_tables import print_reproduction
    from robustbench_inv.reporting.reproduction.paper_report import build_paper_report

    found = build_paper_report(item, runs, dataset=dataset, asked=asked)
    found.write(page)
    if json:
        return print_json({**found.to_json(), "report": str(page)})
    print_reproduction(found)
    return typer.echo(page)
