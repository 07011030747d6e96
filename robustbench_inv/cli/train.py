"""``invbench train``: trains the model of a recipe, or resumes its training."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_inv.cli.options import (
    DataRoot,
    Json,
    Timeout,
    TrainingDevice,
    folder_option,
    option,
    print_path,
)
from robustbench_inv.cli.output import print_message

if TYPE_CHECKING:
    from robustbench_inv.training.loop import EpochMetrics

__all__ = ["report_progress", "train"]


def train(  # noqa: PLR0913, PLR0917 - one parameter is one option
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="Catalogue model with a recipe, or a recipe.toml file."
        ),
    ],
    out: Annotated[
        Path | None,
        folder_option(
            "Write checkpoints and the trained model to this folder.", "checkpoints/NAME"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        option(
            metavar="N",
            help="Random seed; another than the recipe's names the model NAME-seedN.",
            show_default="the recipe's",
        ),
    ] = None,
    device: TrainingDevice = "cpu",
    data_root: DataRoot = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Train the model of a recipe.

    A checkpoint is written every epoch; run the same command again to resume. OUT becomes a catalogue folder that contains the model: weights, card, recipe and golden logits.
    """
    from robustbench_inv.arguments import check_folder
    from robustbench_inv.foreign import time_limit
    from robustbench_inv.training.loop import TrainingOptions
    from robustbench_inv.training.recipe import find_recipe, read_recipe
    from robustbench_inv.training.training_run import check_training, train_recipe

    path = find_recipe(recipe)
    plain = read_recipe(path)
    name = plain.name if seed is None else plain.with_seed(seed).name
    folder = check_folder(out or Path("checkpoints") / name, "folder of the model")
    check_training(plain, seed, device, data_root)
    print_message(f"training {name} in {folder}")
    options = TrainingOptions(report=report_progress())
    with time_limit(timeout):
        model = train_recipe(
            path, folder, device=device, data_root=data_root, seed=seed, options=options
        )
    return print_path(model, json=json, key="model", catalogue=str(folder))


def report_progress(until: int | None = None) -> "Callable[[EpochMetrics], None]":
    """Return a function that prints one line for each epoch, with the estimated time left.

    Args:
        until: epoch that the training stops after; None for the recipe's last.
    """
    start, first = time.perf_counter(), 0

    def report(epoch: "EpochMetrics") -> None:
        nonlocal first
        first = first or epoch.epoch
        done = epoch.epoch - first + 1
        left = (time.perf_counter() - start) / done * ((until or epoch.epochs) - epoch.epoch)
        print_message(
            f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.4f}  "
            f"accuracy {epoch.accuracy:.4f}  {epoch.seconds:.1f} s  "
            f"{int(left) // 60}:{int(left) % 60:02d} remaining"
        )

    return report
