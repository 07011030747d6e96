"""``invbench check``: runs the rules for models, attacks, oracles and data sets on one of them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_inv.cli.options import DataRoot, Json, Timeout, option
from robustbench_inv.cli.output import print_json, print_line
from robustbench_inv.foreign import time_limit

if TYPE_CHECKING:
    from robustbench_inv.catalogue.models import LoadedModel

__all__ = ["check"]


def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Model, attack, oracle or data set, as evaluate accepts it: a name, FILE.py:NAME, …",
        ),
    ],
    kind: Annotated[
        str | None,
        option(
            metavar="KIND",
            help="model, attack, oracle or dataset: choose one if the name fits several.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        option(
            help="Query a model or an oracle on this data set.",
            metavar="NAME",
            show_default="the model's own; mnist5k",
        ),
    ] = None,
    data_root: DataRoot = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Check that a model, attack, oracle or data set keeps the rules. The exit code is 1 if it does not."""
    from robustbench_inv.errors import BadParameter, InvbenchError, describe_error, print_trace

    if kind is not None and kind not in RULES:
        raise BadParameter("unknown kind", got=kind, expected="one of " + ", ".join(RULES))
    chosen = kind or _kind_of(name)
    problem = ""
    with time_limit(timeout):
        try:
            RULES[chosen](name, dataset, data_root)
        except AssertionError as error:
            problem = describe_error(error).removeprefix("AssertionError: ")
        except InvbenchError:
            raise
        except Exception as error:
            print_trace(error)
            problem = f"it raises {describe_error(error)}"
    if json:
        print_json({"name": name, "kind": chosen, "ok": not problem, "problem": problem or None})
    else:
        print_line(f"{chosen} {name}: {problem or 'keeps the rules'}")
    raise typer.Exit(1 if problem else 0)


def _kind_of(name: str) -> str:
    """Return what a name refers to; code is loaded to find out."""
    from robustbench_inv.catalogue.listing import show_entry
    from robustbench_inv.catalogue.references import (
        MODEL_LIBRARIES,
        import_object,
        parse_reference,
        parse_source,
    )

    plain = parse_reference(name).name
    first = plain.partition(":")[0]
    if ":" not in plain:
        return show_entry(name)[0].removesuffix("s")
    if first in ("foolbox", "torchattacks", "adv-lib"):
        return "attack"
    if first in MODEL_LIBRARIES:
        return "model"
    source = parse_source(name)
    if source and source[0] != "code":
        return "dataset"
    found = import_object(plain)
    if isinstance(found, type) and hasattr(found, "run"):
        return "attack"
    return _kind_of_factory(found)


def _kind_of_factory(found: object) -> str:
    from torch import nn

    made = found() if callable(found) else found
    return "model" if isinstance(made, nn.Module) else "dataset"


def _check_attack(name: str, *_: object) -> None:
    from robustbench_inv.catalogue.attacks import load_attack
    from robustbench_inv.testing.harness import check_attack

    check_attack(load_attack(name).attack)


def _check_model(name: str, dataset: str | None, root: Path | None) -> None:
    import torch

    from robustbench_inv.catalogue.datasets import load_dataset
    from robustbench_inv.testing.harness import check_model

    model = _load_model(name, dataset)
    data = load_dataset(dataset or model.card["dataset"], data_root=root)
    images, _ = data.batch(torch.arange(min(8, len(data))))
    check_model(model.classifier, images)


def _load_model(name: str, dataset: str | None) -> "LoadedModel":
    from robustbench_inv.catalogue.models import load_model
    from robustbench_inv.errors import UsageError

    model = load_model(name, dataset=dataset)
    if dataset is None and not model.card.get("dataset"):
        raise UsageError(f"the data set of {name} is not known", remedy="add --dataset NAME")
    return model


def _check_dataset(name: str, _: object, root: Path | None) -> None:
    from robustbench_inv.catalogue.datasets import load_dataset
    from robustbench_inv.data.protocol import check_dataset

    check_dataset(load_dataset(name, data_root=root))


def _check_oracle(name: str, dataset: str | None, root: Path | None) -> None:
    from robustbench_inv.catalogue.datasets import load_dataset
    from robustbench_inv.testing.harness import check_oracle

    check_oracle(name, load_dataset(dataset or "mnist5k", data_root=root))


RULES: dict[str, Callable[[str, str | None, Path | None], None]] = {
    "attack": _check_attack,
    "model": _check_model,
    "dataset": _check_dataset,
    "oracle": _check_oracle,
}
