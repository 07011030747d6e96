"""``invbench calibrate``: fits the thresholds by which a model rejects, on what it was trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_inv.cli.options import DataRoot, Device, Json, option
from robustbench_inv.cli.output import print_json, print_message
from robustbench_inv.errors import BadParameter
from robustbench_inv.results.files import write_atomically

if TYPE_CHECKING:
    from robustbench_inv.experiments.calibration import CalibrationData

__all__ = ["calibrate"]


def calibrate(  # noqa: PLR0913, PLR0917 - one parameter is one option
    model: Annotated[str, typer.Argument(help="A model, as evaluate takes it.")],
    out: Annotated[
        Path | None, option(help="File of the thresholds.", show_default="NAME.safetensors")
    ] = None,
    dataset: Annotated[
        str | None, option(help="Training data.", show_default="the recipe's")
    ] = None,
    ids: Annotated[
        str | None, option(metavar="FIRST:END", help="Which of them.", show_default="the recipe's")
    ] = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    json: Json = False,
) -> None:
    """Fit what MODEL:reject=SCORE,percentile=P rejects by: quantiles of each class's scores on training inputs.

    They are those of the inputs that the model gets right, for every score and the percentiles 0 to 20. What is
    left out is read off the recipe of a model of the catalogue.
    """
    from robustbench_inv.catalogue.models import load_model
    from robustbench_inv.experiments.calibration import calibrate as fit

    loaded = load_model(model, device=device)
    inputs = _calibration_data(model, dataset, ids, data_root)
    print_message(
        f"asking {loaded.name} about {inputs.last - inputs.first:,} inputs of {inputs.dataset.name}"
    )
    fitted = fit(loaded, inputs)
    path = out or Path(f"{Path(model.partition(':')[0]).stem}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, fitted.to_bytes())
    if json:
        return print_json({"thresholds": str(path), **fitted.facts})
    typer.echo(path)
    return None


def _calibration_data(
    model: str, dataset: str | None, ids: str | None, root: Path | None
) -> "CalibrationData":
    """Return the training inputs that are named, or those of the model's recipe."""
    from robustbench_inv.catalogue.datasets import load_dataset
    from robustbench_inv.experiments.calibration import CalibrationData
    from robustbench_inv.training.recipe import find_recipe, read_recipe

    if dataset is None:
        recipe = read_recipe(find_recipe(model.partition(":")[0]))
        dataset, ids = recipe.dataset, ids or f"{recipe.first}:{recipe.last}"
    data = load_dataset(dataset, data_root=root)
    first, last = _parse_id_range(ids or f"0:{len(data)}")
    return CalibrationData(data, first, last)


def _parse_id_range(ids: str) -> tuple[int, int]:
    try:
        first, last = map(int, ids.split(":"))
    except ValueError:
        raise BadParameter("unusable ids", got=ids, expected="FIRST:END, as 6000:60000") from None
    return first, last
