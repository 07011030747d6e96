"""Trains the model of a recipe and exports it as a catalogue folder: card, recipe, weights, golden logits."""

import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.locate import find
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadCatalogue, BadParameter
from robustbench_inv.identity import digest_file
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.tensors import blocks
from robustbench_inv.training.loop import TrainingData, TrainingOptions, stored_weights, train
from robustbench_inv.training.recipe import Recipe, read_recipe

__all__ = [
    "NUM_GOLDEN",
    "clean_accuracy",
    "export_model",
    "round_weights",
    "toml_text",
    "train_recipe",
]


def export_model(
    recipe: Recipe,
    source: Path,
    model: nn.Module,
    golden_images: Tensor,
    measured: Mapping[str, object],
    folder: Path,
) -> Path:
    """Write ``weights``, ``golden``, ``recipe.toml`` and ``card.toml`` of a trained network.

    The golden logits are those of the weights as stored: round them before (``round_weights``).

    Args:
        recipe: what the network was trained by.
        source: the recipe's file, whose seed may be another one.
        model: the trained network, its weights rounded as they will be stored.
        golden_images: (n, …) inputs.
        measured: what the card's ``[training]`` table says besides the recipe.
        folder: where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    weights.write_bytes(save(stored_weights(model, recipe.storage)))
    with torch.no_grad():
        golden = {"images": golden_images, "logits": model(golden_images).contiguous()}
    (folder / "golden.safetensors").write_bytes(save(golden))
    text = source.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^seed = .*$", f"seed = {recipe.seed}", text, count=1)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    card = {
        **recipe.card,
        "implementation": recipe.model_path,
        "num_classes": int(golden["logits"].shape[1]),
        "shape": list(golden_images.shape[1:]),
        "bounds": list(cast("Classifier", model).bounds),
        "weights_sha256": digest_file(weights),
    }
    tables = {"parameters": recipe.model_parameters, "training": measured}
    (folder / "card.toml").write_text(toml_text(card, tables), encoding="utf-8")
    return folder


def round_weights(model: nn.Module, storage: str) -> nn.Module:
    """Round a network's weights, in place, to what ``storage`` (float16 or float32) can hold."""
    model.load_state_dict(stored_weights(model, storage))
    return model


def toml_text(flat: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return TOML of plain values (strings, numbers, booleans, lists of them) and one level of tables.

    Example:
        >>> print(toml_text({"a": [1, 2]}, {"t": {"b": "c"}}), end="")
        a = [1, 2]
        <BLANKLINE>
        [t]
        b = "c"
    """
    lines = [
        f"{_key(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in flat.items()
    ]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *toml_text(table, {}).splitlines()]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """Quote a key that is not bare, such as the name of a data set with parameters."""
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)


NUM_GOLDEN = 16
"""Number of held-out inputs whose logits are stored with the weights."""


def train_recipe(
    path: Path,
    out: Path,
    *,
    device: str = "cpu",
    data_root: Path | None = None,
    seed: int | None = None,
    options: TrainingOptions | None = None,
) -> Path:
    """Train a recipe, or resume its training, and return the finished model's folder.

    Args:
        path: a ``recipe.toml``.
        out: gets the checkpoint and the metrics; in the end ``models/NAME``, so that it is a catalogue.
        device: ``cpu``, ``cuda`` …, or ``auto`` for an accelerator where there is one.
        data_root: where the data lie, if not fetched.
        seed: another seed than the recipe's; the model is then called ``NAME-seedN``.
        options: where to stop, which weights to keep, whom to report to. A training that stops before the recipe's
            last epoch exports no model, and ``out`` is returned.

    Raises:
        BadCatalogue: for a recipe that cannot be read or names no network, objective or held-out data.
        BadParameter: for a device that is not there, or ids that the data set does not have.
        BadData, BadResults: for damaged data or a checkpoint of another recipe.
    """
    recipe = read_recipe(path)
    recipe = recipe if seed is None else recipe.with_seed(seed)
    if not recipe.held_out:
        raise BadCatalogue(f"{path}: held_out is empty", expected="a data set for golden logits")
    held_out = {name: load_dataset(name, data_root=data_root) for name in recipe.held_out}
    place = _device(device)
    torch.manual_seed(recipe.seed)
    model: nn.Module = _build(recipe.model_path, recipe.model_parameters).to(place)
    if recipe.start:
        _load_initial_weights(model, recipe.start)
    objective = _build(recipe.objective_path, recipe.objective_parameters)
    data = _training_data(recipe, load_dataset(recipe.dataset, data_root=data_root))
    model = train(recipe, model, objective, data, out, options).cpu()
    if options and options.until and options.until < recipe.epochs:
        return out
    return _export(recipe, path, model, held_out, out / "models" / recipe.name)


def clean_accuracy(model: nn.Module, dataset: Dataset, batch_size: int = 500) -> float:
    """Return the share of a data set that a network in evaluation mode gets right."""
    correct = 0
    with torch.no_grad():
        for ids in blocks(torch.arange(len(dataset)), batch_size):
            images, labels = dataset.batch(ids)
            correct += int((model(images.float()).argmax(1) == labels).sum())
    return correct / len(dataset)


def _export(
    recipe: Recipe, source: Path, model: nn.Module, held_out: dict[str, Dataset], folder: Path
) -> Path:
    first = next(iter(held_out.values()))
    images, _ = first.batch(torch.arange(0, len(first), len(first) // NUM_GOLDEN)[:NUM_GOLDEN])
    measured: dict[str, object] = {
        "recipe": recipe.digest,
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    round_weights(model, recipe.storage)
    measured |= {f"accuracy_{name}": clean_accuracy(model, data) for name, data in held_out.items()}
    return export_model(recipe, source, model, images.float(), measured, folder)


def _load_initial_weights(model: nn.Module, name: str) -> None:
    """Give a network the weights of a model of the catalogue where the names agree.

    Raises:
        BadCatalogue: if that model has weights that the network has no place for.
    """
    weights = load_file(find("models", name).parent / "weights.safetensors")
    ours = model.state_dict()
    if strange := [k for k, v in weights.items() if k not in ours or ours[k].shape != v.shape]:
        remedy = f"no place for {strange[0]}"
        raise BadCatalogue("cannot start from this model", got=name, remedy=remedy)
    model.load_state_dict(ours | weights)


def _training_data(recipe: Recipe, dataset: Dataset) -> TrainingData:
    if recipe.last > len(dataset):
        problem = f"{dataset.name} has no image {recipe.last - 1}"
        raise BadParameter(problem, got=recipe.last, expected=f"last <= {len(dataset)}")
    ids: Tensor = torch.arange(recipe.first, recipe.last)
    images, labels = dataset.batch(ids)
    return TrainingData(ids, images.float(), labels)


def _build(reference: str, parameters: dict[str, object]) -> nn.Module:
    try:
        built: nn.Module = resolve_name(reference)(**parameters)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise BadCatalogue("cannot build", got=reference, remedy=str(error)) from error
    return built


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BadParameter(
            "unusable device", got=name, remedy=str(error).splitlines()[0]
        ) from error
