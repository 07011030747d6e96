"""``invbench calibrate``: fits the rejection thresholds of a model on its training inputs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_inv.cli.options import DataRoot, Device, Json, Timeout, option, print_path
from robustbench_inv.cli.output import print_message, print_warnings
from robustbench_inv.foreign import time_limit

if TYPE_CHECKING:
    from robustbench_inv.experiments.calibration import CalibrationData

__all__ = ["calibrate"]


def calibrate(  # noqa: PLR0913, PLR0917 - one parameter is one option
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model to calibrate: catalogue name, module:factory or file.py:factory.",
        ),
    ],
    out: Annotated[
        Path | None,
        option(
            metavar="FILE",
            help="Write the thresholds to this file.",
            show_default="NAME.safetensors",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        option(metavar="NAME", help="Use this training data set.", show_default="the recipe's"),
    ] = None,
    ids: Annotated[
        str | None,
        option(
            metavar="FIRST:END",
            help="Use the training samples FIRST to END - 1.",
            show_default="the recipe's",
        ),
    ] = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Fit the rejection thresholds of a model on training inputs.

    MODEL:reject=SCORE,percentile=P uses them. Thresholds are quantiles, per class, of the scores of correctly classified training inputs, for every score and
    the percentiles 0 to 20. Data set and ids default to those of the model's recipe.
    """
    from robustbench_inv.arguments import check_file, check_root
    from robustbench_inv.catalogue.models import load_model
    from robustbench_inv.experiments.calibration import calibrate as fit
    from robustbench_inv.experiments.calibration import check_calibrated
    from robustbench_inv.results.files import write_atomically

    path = out or Path(f"{Path(model.partition(':')[0]).stem}.safetensors")
    check_file(path, "file of thresholds")
    check_root(data_root)
    inputs = _calibration_data(model, dataset, ids, data_root)
    with time_limit(timeout):
        loaded = load_model(model, dataset=inputs.dataset, device=device)
        check_calibrated(loaded, inputs.dataset)
    print_message(
        f"computing scores of {loaded.name} on {inputs.last - inputs.first:,} inputs of {inputs.dataset.name}"
    )
    with time_limit(timeout):
        fitted = fit(loaded, inputs)
    if invalid := fitted.facts.get("invalid"):
        print_warnings([f"{invalid} inputs are left out: the model has no valid output for them"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, fitted.to_bytes())
    return print_path(path, json=json, key="thresholds", **fitted.facts)


def _calibration_data(
    model: str, dataset: str | None, ids: str | None, root: Path | None
) -> "CalibrationData":
    """Return the training inputs that the options name, or those of the model's recipe."""
    from robustbench_inv.catalogue.datasets import load_dataset, refuse_code
    from robustbench_inv.experiments.calibration import CalibrationData
    from robustbench_inv.training.recipe import find_recipe, read_recipe

    if dataset is None:
        recipe = read_recipe(find_recipe(model.partition(":")[0]))
        refuse_code(recipe.dataset)
        dataset, ids = recipe.dataset, ids or f"{recipe.first}:{recipe.last}"
    data = load_dataset(dataset, data_root=root)
    first, last = _parse_id_range(f"0:{len(data)}" if ids is None else ids)
    return CalibrationData(data, first, last)


def _parse_id_range(ids: str) -> tuple[int, int]:
    from robustbench_inv.errors import BadParameter

    try:
        first, last = map(int, ids.split(":"))
    except ValueError:
        raise BadParameter(
            "ids are not a range", got=ids, expected="FIRST:END, as in 6000:60000"
        ) from None
    return first, last
