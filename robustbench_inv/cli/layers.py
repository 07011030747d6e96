"""The part of ``invbench reproduce`` that measures hidden layers instead of running attacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from robustbench_inv.cli.options import number_of
from robustbench_inv.cli.output import print_json, say

if TYPE_CHECKING:
    from robustbench_inv.catalogue.reproduction import Reproduction

__all__ = ["show_layers"]


def show_layers(
    item: "Reproduction",
    page: Path,
    runs: Sequence[Path],
    folder: Path,
    asked: Mapping[str, Any],
    *,
    json: bool,
) -> None:
    """Measure an item's layers unless results are named, write the report, and print its tables.

    Args:
        item: with ``layers``.
        page: the HTML file.
        runs: folders of what was measured; empty to measure now.
        folder: gets what is measured, ``layers-DATASET.json.gz``.
        asked: the options ``dataset``, ``samples``, ``device``, ``data_root``, and ``dry_run`` to print what
            would be measured.
        json: print JSON.
    """
    from robustbench_inv.reporting.layer_report import find_effects, report_layers

    if asked["dry_run"]:
        return _print_plan(item, asked["dataset"], json)
    found = report_layers(item, find_effects(runs) if runs else _measure(item, folder, asked))
    found.write(page)
    if json:
        return print_json({**found.to_json(), "report": str(page)})
    for text in found.texts:
        typer.echo(text)
    return typer.echo(page)


def _print_plan(item: "Reproduction", dataset: str | None, json: bool) -> None:
    pairs = [
        {"dataset": place, "before": before, "after": after}
        for data, place in item.places(dataset).items()
        for before, after in (pair.models(data) for pair in item.layers)
    ]
    if json:
        return print_json(pairs)
    for pair in pairs:
        typer.echo("{before} and {after} on {dataset}".format(**pair))
    return None


def _measure(item: "Reproduction", folder: Path, asked: Mapping[str, Any]) -> list[Path]:
    from robustbench_inv.reporting.layer_views import to_gzip
    from robustbench_inv.results.files import explain_failures, write_atomically
    from robustbench_inv.training.elimination_effect import draw_samples, measure_effect

    count = number_of(asked["samples"]) if asked["samples"] else item.samples
    files = []
    with explain_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for data, place in item.places(asked["dataset"]).items():
        drawn = draw_samples(place, count, asked["data_root"])
        say(f"{len(drawn.labels)} samples of {place}, {len(item.layers)} pairs of models")
        pairs = {pair.name: pair.models(data) for pair in item.layers}
        files.append(folder / f"layers-{data}.json.gz")
        effect = measure_effect(pairs, drawn, device=asked["device"])
        write_atomically(files[-1], to_gzip(effect))
    return files
