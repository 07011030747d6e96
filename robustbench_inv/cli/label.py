"""``invbench label``: writes the page on which people say what class they see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, option
from robustbench_inv.cli.output import print_json, print_message

__all__ = ["label"]


def label(  # noqa: PLR0913, PLR0917 - one parameter is one option
    runs: Annotated[list[Path], typer.Argument(help="Folders of results with images.")],
    out: Annotated[Path, option(help="The HTML file to write.")],
    cells: Annotated[
        list[str] | None,
        option(metavar="PATTERN…", help="Attacks, models or digests.", show_default="all"),
    ] = None,
    images: Annotated[
        int | None, option(min=1, help="Draw so many changed images.", show_default="all")
    ] = None,
    catch: Annotated[int, option(min=0, help="Clean images of known class to mix in.")] = 20,
    seed: Annotated[int, option(help="Of the draw and the order.")] = 0,
    json: Json = False,
) -> None:
    """Write one page to label what a run shows, by keyboard; judge brings the CSV that it exports into the records."""
    from robustbench_inv.reporting.labelling import LabelSelection, choose_tasks, write_label_page

    choice = LabelSelection(tuple(cells or ()), images, catch, seed)
    trials, classes = choose_tasks(runs, choice)
    names = _class_names(runs, classes)
    write_label_page(out, trials, names, "What do you see?")
    caught = sum(trial.known is not None for trial in trials)
    if json:
        counts = {"images": len(trials) - caught, "catch": caught}
        return print_json({"page": str(out), **counts})
    print_message(f"{len(trials) - caught} changed images, {caught} clean ones mixed in")
    return typer.echo(out)


def _class_names(runs: Sequence[Path], classes: int) -> tuple[str, ...]:
    """Return what a person calls the classes: the names of the run's data set, else numbers."""
    from robustbench_inv.data.registry import DATASETS
    from robustbench_inv.results.run_files import RunFolder

    datasets = {
        cell["dataset"].partition(":")[0] for r in runs for cell in RunFolder(r).plan["cells"]
    }
    known = {DATASETS[name].classes for name in datasets if name in DATASETS}
    numbers = tuple(map(str, range(classes)))
    return next((names for names in known if len(names) == classes), numbers)
