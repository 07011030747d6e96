"""Trains the model of a recipe and exports it to a catalogue folder: card, recipe, weights, golden logits."""

import fcntl
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustbench_inv.arguments import check_root, check_seed
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.locate import find
from robustbench_inv.catalogue.references import import_object, source_file
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadCatalogue, BadParameter, BadResults, InvbenchError
from robustbench_inv.foreign import foreign, limited
from robustbench_inv.identity import digest_file
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.tensors import blocks, check_device
from robustbench_inv.torch_state import stated_torch
from robustbench_inv.training.loop import TrainingData, TrainingOptions, stored_weights, train
from robustbench_inv.training.recipe import Recipe, read_recipe

__all__ = [
    "LOCK",
    "NUM_GOLDEN",
    "build_network",
    "clean_accuracy",
    "export_model",
    "lock_now",
    "round_weights",
    "toml_text",
    "train_recipe",
    "try_lock",
]


def export_model(
    recipe: Recipe,
    source: Path,
    model: nn.Module,
    golden_images: Tensor,
    measured: Mapping[str, object],
    folder: Path,
) -> Path:
    """Write weights, golden logits, ``recipe.toml`` and ``card.toml`` of a trained network.

    Golden logits are reference outputs of the stored weights, so round the weights first (``round_weights``).

    Args:
        recipe: the recipe of the network.
        source: the recipe's file, which may have another seed.
        model: the trained network, its weights rounded to the storage type.
        golden_images: (n, …) inputs.
        measured: entries of the card's ``[training]`` table.
        folder: output folder.
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
        "implementation": _copy_code(recipe.model_path, source.parent, folder),
        "num_classes": int(golden["logits"].shape[1]),
        "shape": list(golden_images.shape[1:]),
        "bounds": list(cast("Classifier", model).bounds),
        "weights_sha256": digest_file(weights),
    }
    tables = {"parameters": recipe.model_parameters, "training": measured}
    (folder / "card.toml").write_text(toml_text(card, tables), encoding="utf-8")
    return folder


def _copy_code(reference: str, recipe: Path, folder: Path) -> str:
    """Copy the file of a recipe's own network beside its card, and return the reference for the card."""
    path = source_file(reference, recipe)
    if path is None:
        return reference
    (folder / path.name).write_bytes(path.read_bytes())
    return f"{path.name}:{reference.rpartition(':')[2]}"


def round_weights(model: nn.Module, storage: str) -> nn.Module:
    """Round a network's weights in place to the type ``storage`` (float16 or float32)."""
    model.load_state_dict(stored_weights(model, storage))
    return model


def toml_text(flat: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a TOML text of plain values (strings, numbers, booleans, lists and mappings of them) and one level of tables.

    Example:
        >>> print(toml_text({"a": [1, 2]}, {"t": {"b": "c"}}), end="")
        a = [1, 2]
        <BLANKLINE>
        [t]
        b = "c"
    """
    lines = [f"{_key(key)} = {_value(value)}" for key, value in flat.items()]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *toml_text(table, {}).splitlines()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """Return a value; a mapping is an inline table."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    """Quote a key where TOML requires it, such as the name of a data set with parameters."""
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)


NUM_GOLDEN = 16
"""Number of held-out inputs whose logits are stored beside the weights."""


def train_recipe(
    path: Path,
    out: Path,
    *,
    device: str = "cpu",
    data_root: Path | None = None,
    seed: int | None = None,
    options: TrainingOptions | None = None,
) -> Path:
    """Train a recipe, or resume its training, and return the folder of the finished model.

    Args:
        path: a ``recipe.toml``.
        out: output folder of checkpoint and metrics. The model is exported to ``models/NAME`` in it, so that the
            folder can be used as a catalogue.
        device: ``cpu``, ``cuda`` …, or ``auto`` for CUDA if it is available.
        data_root: folder of the data, if they were not fetched.
        seed: replaces the recipe's seed; the model is then called ``NAME-seedN``.
        options: last epoch, snapshots and progress callback. A training that stops before the last epoch of the
            recipe exports no model and returns ``out``.

    Raises:
        BadCatalogue: if the recipe cannot be read, or has no valid network, objective or held-out data, or names code
            that is not trusted.
        UnknownName: if a module or file does not define the network or the objective.
        BadParameter: if the device is not available, or the data set has no samples of these ids.
        ForeignCodeError, TimeLimitExceeded: if network or objective try to end the program, or exceed ``time_limit``.
        BadData, BadResults: for damaged data, a checkpoint of another recipe, a folder that cannot be written, or one
            in which another process is training.
    """
    recipe = read_recipe(path)
    place = check_training(recipe, seed, device, data_root)
    recipe = recipe if seed is None else recipe.with_seed(seed)
    with nullcontext(True) if options and options.locked else try_lock(out) as acquired:
        if not acquired:
            raise BadResults(
                f"another process is training in {out}",
                remedy="wait for it, or train into another folder with --out",
            )
        with foreign(f"the training of {recipe.name}"), stated_torch():
            return _train_recipe(recipe, path, out, place, data_root, options)


def _train_recipe(
    recipe: Recipe,
    path: Path,
    out: Path,
    place: torch.device,
    data_root: Path | None,
    options: TrainingOptions | None,
) -> Path:
    held_out = {
        name: load_dataset(name, data_root=data_root, code=False) for name in recipe.held_out
    }
    torch.manual_seed(recipe.seed)
    model = build_network(recipe, path.parent).to(place)
    if recipe.start:
        _load_initial_weights(model, recipe.start)
    objective = _build(recipe.objective_path, recipe.objective_parameters, path.parent)
    data = _training_data(recipe, load_dataset(recipe.dataset, data_root=data_root, code=False))
    model = train(recipe, model, objective, data, out, options).cpu()
    if options and options.until and options.until < recipe.epochs:
        return out
    return _export(recipe, path, model, held_out, out / "models" / recipe.name)


def check_training(
    recipe: Recipe, seed: int | None, device: str, data_root: Path | None
) -> torch.device:
    """Check the options of a training before it starts, and return its device.

    Raises:
        BadCatalogue: if the recipe names no held-out data.
        BadParameter: for a seed out of range, or a device that is not available.
        BadData: for a data root that does not exist.
    """
    if not recipe.held_out:
        raise BadCatalogue(f"{recipe.name}: held_out is empty", expected="at least one data set")
    if seed is not None:
        check_seed(seed)
    check_root(data_root)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return check_device(automatic if device == "auto" else device)


LOCK = ".lock"
"""File in a model's folder that the training process locks; the operating system unlocks it when the process ends."""


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Lock a model's folder while the block runs; yield False if another process holds the lock.

    Raises:
        BadResults: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise BadResults(
            f"cannot write {folder}: {error.strerror or error}",
            remedy="give another folder with --out",
        ) from error
    with file:
        if acquired := _is_free(file):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield acquired


def _is_free(file: TextIO, tries: int = 10) -> bool:
    """Lock a file if no training has it; wait up to a second for readers of its state (``job_status``)."""
    for _ in range(tries):
        if lock_now(file, fcntl.LOCK_EX):
            return True
        if not lock_now(file, fcntl.LOCK_SH):
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(0.1)
    return False


def lock_now(file: TextIO, kind: int) -> bool:
    """Lock a file without waiting, as ``fcntl.flock`` does with this kind; return whether that was possible."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def clean_accuracy(model: nn.Module, dataset: Dataset, batch_size: int = 500) -> float:
    """Return the accuracy of a network in evaluation mode on a whole data set."""
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
    """Copy the weights of a catalogue model to the parameters of the same name.

    Raises:
        BadCatalogue: if the network lacks a parameter of that model, or its shape differs.
    """
    weights = load_file(find("models", name).parent / "weights.safetensors")
    ours = model.state_dict()
    if strange := [k for k, v in weights.items() if k not in ours or ours[k].shape != v.shape]:
        remedy = f"the network has no parameter {strange[0]} of that shape"
        raise BadCatalogue("cannot initialise the network from this model", got=name, remedy=remedy)
    model.load_state_dict(ours | weights)


def _training_data(recipe: Recipe, dataset: Dataset) -> TrainingData:
    if recipe.last > len(dataset):
        problem = f"{dataset.name} has no sample {recipe.last - 1}"
        raise BadParameter(problem, got=recipe.last, expected=f"last <= {len(dataset)}")
    ids: Tensor = torch.arange(recipe.first, recipe.last)
    images, labels = dataset.batch(ids)
    return TrainingData(ids, images.float(), labels)


def build_network(recipe: Recipe, folder: Path) -> nn.Module:
    """Return the untrained network of a recipe.

    Args:
        recipe: with the network's parameters.
        folder: of the recipe, where files of its own code lie.

    Raises:
        BadCatalogue: if it cannot be built, or is no ``nn.Module``.
    """
    built = _build(recipe.model_path, recipe.model_parameters, folder)
    if not isinstance(built, nn.Module):
        got = type(built).__name__
        raise BadCatalogue(f"{recipe.model} is no network", got=got, expected="a torch.nn.Module")
    return built


def _build(reference: str, parameters: dict[str, object], folder: Path) -> Any:  # noqa: ANN401
    try:
        with limited(reference):
            return import_object(reference, folder)(**parameters)  # type: ignore[operator]
    except InvbenchError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadCatalogue("cannot build", got=reference, remedy=reason) from error
