"""The part of ``invbench reproduce`` that measures something instead of running attacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from robustbench_inv.cli.options import number_of
from robustbench_inv.cli.output import print_json, say

if TYPE_CHECKING:
    from robustbench_inv.catalogue.reproduction import Reproduction

__all__ = ["show_measured"]


def show_measured(
    item: "Reproduction",
    page: Path,
    runs: Sequence[Path],
    folder: Path,
    asked: Mapping[str, Any],
    *,
    json: bool,
) -> None:
    """Measure what an item says unless results are named, write the report, and print its tables.

    Args:
        item: with a measurement.
        page: the HTML file.
        runs: folders of what was measured; empty to measure now.
        folder: gets what is measured, ``measured-DATASET.json.gz``.
        asked: the options ``dataset``, ``samples``, ``seed``, ``device``, ``data_root``, and ``dry_run`` to
            print what would be measured.
        json: print JSON.
    """
    from robustbench_inv.reporting.measurements.report import find_measured, report_measured

    if asked["dry_run"]:
        return _print_plan(item, asked, json)
    files = find_measured(runs) if runs else _measure(item, folder, asked)
    found = report_measured(item, files)
    found.write(page)
    if json:
        return print_json({**found.to_json(), "report": str(page)})
    for text in found.texts:
        typer.echo(text)
    return typer.echo(page)


def _print_plan(item: "Reproduction", asked: Mapping[str, Any], json: bool) -> None:
    assert item.measurement is not None
    plans: list[dict[str, Any]] = [
        {
            "dataset": place,
            "samples": _count(item, asked),
            "by": item.measurement.by,
            "models": _models(item, data),
            "parameters": item.measurement.filled(data),
        }
        for data, place in item.places(asked["dataset"]).items()
    ]
    if json:
        return print_json(plans)
    for plan in plans:
        models = ", ".join(plan["models"].values()) or "the models of its parameters"
        typer.echo(
            f"{plan['by']} on {plan['samples'] or 'all'} samples of {plan['dataset']}: {models}"
        )
    return None


def _measure(item: "Reproduction", folder: Path, asked: Mapping[str, Any]) -> list[Path]:
    from robustbench_inv.measurements.protocol import Asked, carry_out
    from robustbench_inv.reporting.exports import slug
    from robustbench_inv.results.files import explain_failures, write_atomically
    from robustbench_inv.results.measurement import to_gzip

    assert item.measurement is not None
    own = {key: asked[key] for key in ("seed", "device", "data_root")}
    with explain_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = []
    for data, place in item.places(asked["dataset"]).items():
        question = Asked(place, _models(item, data), _count(item, asked), **own, report=say)
        measured = carry_out(item.measurement.by, question, item.measurement.filled(data))
        files.append(folder / f"measured-{slug(data)}.json.gz")
        write_atomically(files[-1], to_gzip(measured))
    return files


def _models(item: "Reproduction", data: str) -> dict[str, str]:
    """Return the names of the models by column; columns of published numbers alone have none."""
    named = (column for column in item.columns if column.published)
    return {column.name: column.model("published", data) for column in named}


def _count(item: "Reproduction", asked: Mapping[str, Any]) -> int | str | None:
    return number_of(asked["samples"]) if asked["samples"] else item.samples
