"""``invbench analyse``: singular values of a network's linearisation by layer, and preimages of its ReLU layers."""

from typing import Annotated

import typer

from robustbench_inv.cli.options import DataRoot, Device, Json, Timeout, int_or_text, option
from robustbench_inv.cli.output import print_json, print_line, print_message
from robustbench_inv.foreign import time_limit

__all__ = ["analyse"]


def analyse(  # noqa: PLR0913, PLR0917 - one parameter is one option
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model to analyse: catalogue name, module:factory or file.py:factory.",
        ),
    ],
    dataset: Annotated[
        str | None,
        option(metavar="NAME", help="Use inputs of this data set.", show_default="the model's own"),
    ] = None,
    samples: Annotated[
        str,
        option(
            metavar="N|first:N",
            help="Linearise at these inputs. N: class-balanced; first:N: the first N.",
        ),
    ] = "10",
    layers: Annotated[
        str,
        option(
            metavar="PATTERN",
            help="Measure only layers whose name matches this pattern, as in 'conv*'.",
        ),
    ] = "*",
    device: Device = "cpu",
    data_root: DataRoot = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Measure how stable and how invariant the layers of a network are.

    For each layer: singular values of the network's linearisation up to this layer, the number that is not zero, and
    the condition number (medians over the samples). For each ReLU layer that is small enough: whether the set of
    inputs with the same output is one point, bounded or unbounded.
    """
    from robustbench_inv.arguments import check_root
    from robustbench_inv.catalogue.models import load_model
    from robustbench_inv.experiments.stability import analyse_model

    check_root(data_root)
    with time_limit(timeout):
        loaded = load_model(model, dataset=dataset, device=device)
        found = analyse_model(
            loaded,
            dataset,
            int_or_text(samples),
            data_root,
            report=print_message,
            pattern=layers,
        )
    if json:
        return print_json(found.to_json())
    return print_line(found.to_text())
