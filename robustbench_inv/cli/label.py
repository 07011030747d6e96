"""``invbench label``: writes the page on which people label the images of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, option, print_path
from robustbench_inv.cli.output import print_message

__all__ = ["label"]


def label(  # noqa: PLR0913, PLR0917 - one parameter is one option
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Folders of results with stored images (evaluate --keep-images)."
        ),
    ],
    out: Annotated[Path, option(metavar="FILE", help="Write the page to this HTML file.")],
    cells: Annotated[
        list[str] | None,
        option(
            metavar="PATTERN…",
            help="Label only cells whose attack, model or digest matches a pattern (one or more).",
            show_default="all",
        ),
    ] = None,
    max_images: Annotated[
        int | None,
        option(
            min=1,
            metavar="N",
            help="Draw at most N adversarial images at random.",
            show_default="all",
        ),
    ] = None,
    catch_trials: Annotated[
        int,
        option(
            min=0,
            metavar="N",
            help="Mix in N clean images of known class, to measure labelling errors.",
        ),
    ] = 20,
    seed: Annotated[int, option(metavar="N", help="Random seed for the draw and the order.")] = 0,
    json: Json = False,
) -> None:
    """Write an HTML page on which people label images.

    Pass the CSV file that the page exports to rescore.
    """
    from robustbench_inv.arguments import check_file, check_seed
    from robustbench_inv.reporting.labelling import LabelSelection, choose_tasks, write_label_page

    check_file(out, "labelling page")
    check_seed(seed)
    selection = LabelSelection(tuple(cells or ()), max_images, catch_trials, seed)
    tasks, classes = choose_tasks(runs, selection)
    write_label_page(out, tasks, _class_names(runs, classes), "Which class does this image show?")
    catch = sum(task.known is not None for task in tasks)
    adversarial = len(tasks) - catch
    if not json:
        print_message(f"{adversarial} adversarial images, {catch} catch trials")
    return print_path(out, json=json, key="page", images=adversarial, catch_trials=catch)


def _class_names(runs: Sequence[Path], classes: int) -> tuple[str, ...]:
    """Return the class names of the runs' data set, or numbers if it has no names."""
    from robustbench_inv.data.registry import DATASETS
    from robustbench_inv.results.run_files import RunFolder

    cells = [cell for r in runs for cell in RunFolder(r).plan["cells"]]
    own = [cell["classes"] for cell in cells if isinstance(cell.get("classes"), list)]
    known = {tuple(map(str, names)) for names in own}
    datasets = {cell["dataset"].partition(":")[0] for cell in cells}
    known |= {DATASETS[name].classes for name in datasets if name in DATASETS}
    numbers = tuple(map(str, range(classes)))
    return next((names for names in known if len(names) == classes), numbers)
