"""``invbench train``: trains the model of a recipe, or goes on with it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_inv.cli.options import DataRoot, Device, Json, option
from robustbench_inv.cli.output import print_json, print_message

if TYPE_CHECKING:
    from robustbench_inv.training.loop import EpochMetrics

__all__ = ["report_progress", "train"]


def train(
    recipe: Annotated[str, typer.Argument(help="A model of the catalogue, or a recipe.toml.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the training.", show_default="checkpoints/NAME"),
    ] = None,
    seed: Annotated[
        int | None,
        option(help="Random seed; the model is called NAME-seedN.", show_default="the recipe's"),
    ] = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    json: Json = False,
) -> None:
    """Train a recipe; a checkpoint every epoch, and the same command goes on where it stopped.

    In the end OUT is a catalogue with the model: weights, card, recipe and golden logits.
    """
    from robustbench_inv.training.loop import TrainingOptions
    from robustbench_inv.training.recipe import find_recipe, read_recipe
    from robustbench_inv.training.training_run import train_recipe

    path = find_recipe(recipe)
    plain = read_recipe(path)
    name = plain.name if seed is None else plain.with_seed(seed).name
    folder = out or Path("checkpoints") / name
    print_message(f"training {name} in {folder}")
    options = TrainingOptions(report=report_progress())
    model = train_recipe(
        path, folder, device=device, data_root=data_root, seed=seed, options=options
    )
    if json:
        return print_json({"model": str(model), "catalogue": str(folder)})
    typer.echo(model)
    return None


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
            f"ends in {int(left) // 60}:{int(left) % 60:02d}"
        )

    return report
