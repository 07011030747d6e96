"""Training loop and checkpoints: a resumed training ends with the same weights as an uninterrupted one."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from robustbench_inv.errors import BadResults
from robustbench_inv.foreign import limited
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import where_rows
from robustbench_inv.training.objectives import (
    Objective,
    StatefulObjective,
    TrainableObjective,
    TrainingBatch,
    TrainingData,
)
from robustbench_inv.training.optimisation import (
    clip_gradient,
    epoch_order,
    learning_rate,
    make_optimiser,
)
from robustbench_inv.training.recipe import Recipe

__all__ = [
    "EpochMetrics",
    "TrainingData",
    "TrainingOptions",
    "TrainingPosition",
    "dequantise",
    "load_checkpoint",
    "optimiser_state",
    "random_flip",
    "random_shift",
    "read_position",
    "restore_optimiser",
    "save_checkpoint",
    "stored_weights",
    "train",
]


@dataclass(frozen=True)
class TrainingPosition:
    """Progress of a training: digest of its recipe and number of completed epochs."""

    recipe: str
    epoch: int


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    position: TrainingPosition,
    objective: StatefulObjective | None = None,
) -> None:
    """Write a checkpoint atomically: a reader finds the old file or the new one, never a part."""
    tensors = {f"model/{k}": v.contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"optimiser/{k}": v for k, v in optimiser_state(optimiser).items()}
    if objective:
        tensors |= {f"objective/{k}": v.contiguous() for k, v in objective.state().items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"position": json.dumps(vars(position))})
    part.replace(path)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    recipe: str,
    objective: StatefulObjective | None = None,
) -> int:
    """Restore network, optimiser and objective, and return the number of completed epochs.

    Raises:
        BadResults: if the file is damaged, or belongs to another recipe.
    """
    remedy = f"delete {path} or train into another folder"
    try:
        with safe_open(path, "pt") as file:
            position = _position(file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except DAMAGED as error:
        raise BadResults(f"damaged checkpoint {path}", remedy=f"{remedy} ({error})") from error
    if position.recipe != recipe:
        expected = recipe[:12]
        problem = "the checkpoint belongs to another recipe"
        raise BadResults(problem, got=position.recipe[:12], expected=expected, remedy=remedy)
    try:
        model.load_state_dict(_with_prefix("model/", tensors))
        restore_optimiser(optimiser, _with_prefix("optimiser/", tensors))
        if objective:
            objective.load(_with_prefix("objective/", tensors))
    except (*DAMAGED, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BadResults(f"damaged checkpoint {path}", remedy=f"{remedy} ({reason})") from error
    return position.epoch


DAMAGED = (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError)
"""Errors for a damaged checkpoint."""


def _position(metadata: dict[str, str] | None) -> TrainingPosition:
    """Return the position in a checkpoint's metadata."""
    found = TrainingPosition(**json.loads((metadata or {})["position"]))
    if type(found.epoch) is not int or found.epoch < 0 or type(found.recipe) is not str:
        raise ValueError(f"its position is {found}")
    return found


def read_position(path: Path) -> TrainingPosition | None:
    """Return the position of a checkpoint without reading its weights; None if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return _position(file.metadata())
    except DAMAGED:
        return None


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state of each parameter, named ``index/quantity``."""
    entries = optimiser.state_dict()["state"].items()
    return {
        f"{i}/{k}": torch.as_tensor(v).contiguous()
        for i, entry in entries
        for k, v in entry.items()
        if v is not None  # sgd without momentum
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore an optimiser from what ``optimiser_state`` returned."""
    state = optimiser.state_dict()
    state["state"] = _by_parameter(tensors)
    optimiser.load_state_dict(state)
    for parameter, entry in optimiser.state.items():
        for name, value in entry.items():
            if value.ndim and value.shape == parameter.shape:
                # fused kernels read both in the order of memory
                entry[name] = torch.empty_like(parameter).copy_(value)


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _by_parameter(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    return state


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one epoch, a line of ``metrics.jsonl``."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainingOptions:
    """Options that do not change the weights.

    Args:
        until: epoch to stop after, for a training in stages; None for the last epoch of the recipe.
        snapshots: epochs after which float16 weights are saved to ``snapshots/epoch-N.safetensors``.
        report: called after each epoch.
        locked: does the caller hold the lock of the output folder (``training_run.try_lock``)?
    """

    until: int | None = None
    snapshots: frozenset[int] = frozenset()
    report: Callable[[EpochMetrics], None] | None = None
    locked: bool = False


LEAST_LOSS = "least-loss.safetensors"
"""Weights after the epoch of least loss, in the output folder."""


@dataclass
class _TrainingState:
    model: nn.Module
    optimiser: torch.optim.Optimizer
    objective: Objective
    device: torch.device


def train(
    recipe: Recipe,
    model: nn.Module,
    objective: Objective,
    data: TrainingData,
    folder: Path,
    options: TrainingOptions | None = None,
) -> nn.Module:
    """Train a network, starting from the folder's checkpoint if there is one.

    A resumed training gives the same weights as an uninterrupted one on the same CPU, because batch order and
    noise depend only on seed and epoch.

    Args:
        recipe: settings of the training.
        model: the network, initialised from the recipe's seed, on its device.
        objective: loss to minimise.
        data: the training samples.
        folder: output folder of ``checkpoint.safetensors``, ``metrics.jsonl``, ``snapshots`` and ``least-loss.safetensors``.
        options: last epoch, snapshots and progress callback.

    Returns:
        The network in evaluation mode, after the last epoch or, where the recipe keeps it, after that of least loss.
    """
    options = options or TrainingOptions()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.safetensors"
    stateful = objective if isinstance(objective, StatefulObjective) else None
    if stateful:
        stateful.begin(model, data)
    additional = objective.parameters() if isinstance(objective, TrainableObjective) else ()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
    optimiser = make_optimiser(recipe, model, additional)
    state = _TrainingState(model, optimiser, objective, next(model.parameters()).device)
    data = _on_device(data, state.device)
    done = load_checkpoint(path, model, optimiser, recipe.digest, stateful) if path.exists() else 0
    _trim_metrics(folder / "metrics.jsonl", done)
    for epoch in range(done, min(options.until or recipe.epochs, recipe.epochs)):
        result = _run_epoch(state, recipe, data, epoch)
        # before the checkpoint, so that a resumed training has all of them
        if epoch + 1 in options.snapshots:
            _save_weights(model, folder / "snapshots" / f"epoch-{epoch + 1}.safetensors", "float16")
        if recipe.keep == "least-loss" and result.loss < _least_loss(folder / LEAST_LOSS):
            _save_weights(model, folder / LEAST_LOSS, "float32", {"loss": repr(result.loss)})
        save_checkpoint(
            path, model, optimiser, TrainingPosition(recipe.digest, epoch + 1), stateful
        )
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(result)) + "\n")
        if options.report is not None:
            options.report(result)
    if recipe.keep == "least-loss":
        model.load_state_dict(_load_weights(folder / LEAST_LOSS))
    return model.eval()


def random_flip(images: Tensor, rng: SampleRNG) -> Tensor:
    """Mirror each image (n, c, h, w) left to right with probability ½."""
    mirrored = rng.named(f"{rng.stream}/flip").integers(2) == 1
    return where_rows(mirrored.to(images.device, non_blocking=True), images.flip(-1), images)


def random_shift(images: Tensor, rng: SampleRNG, most: int) -> Tensor:
    """Translate each image (n, c, h, w) by a random offset of -most … most pixels per axis, filled with zeros."""
    n, channels, height, width = images.shape
    drawn = rng.named(f"{rng.stream}/shift").integers(2 * most + 1, (2,))
    down, right = drawn.to(images.device, non_blocking=True).T
    rows = (torch.arange(height, device=images.device) + down[:, None])[:, None, :, None]
    columns = (torch.arange(width, device=images.device) + right[:, None])[:, None, None]
    which = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return pad(images, [most] * 4)[which, channel, rows, columns]


def dequantise(images: Tensor, rng: SampleRNG, levels: int) -> Tensor:
    """Add noise (u − ½)/(levels − 1), u uniform on (0, 1), to images (n, …) of grey levels 0, 1/(levels − 1), … 1."""
    drawn = rng.named(f"{rng.stream}/level").uniform(tuple(images.shape[1:]), dtype=images.dtype)
    return images + (drawn - 0.5) / (levels - 1)


def _run_epoch(
    state: _TrainingState, recipe: Recipe, data: TrainingData, epoch: int
) -> EpochMetrics:
    start = time.perf_counter()
    # on the device until the epoch's end, so that no step waits for the one before
    losses, correct = list[Tensor](), list[Tensor]()
    state.model.train()
    batches = _batch_order(recipe, len(data.ids), epoch)
    for updates, rows in enumerate(batches, epoch * len(batches)):
        rate = learning_rate(recipe, updates, len(batches))
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        progress = updates / (recipe.epochs * len(batches))
        batch = replace(_batch(recipe, data, rows, epoch, state.device), progress=progress)
        with limited(f"a step of {recipe.name}"):
            loss, logits = _step(state, recipe, batch)
        losses.append(loss.detach())
        correct.append((logits.detach().argmax(1) == batch.labels).sum())
    mean = float(torch.stack(losses).double().mean())
    accuracy = int(torch.stack(correct).sum()) / (len(batches) * recipe.batch_size)
    seconds = time.perf_counter() - start
    return EpochMetrics(epoch + 1, recipe.epochs, mean, accuracy, rate, seconds)


def _on_device(data: TrainingData, device: torch.device) -> TrainingData:
    """Return the data with images and labels on a GPU, if they take at most a quarter of its free memory."""
    if device.type == "cuda" and data.images.nbytes <= torch.cuda.mem_get_info(device)[0] / 4:
        return replace(data, images=data.images.to(device), labels=data.labels.to(device))
    return data


def _batch(
    recipe: Recipe, data: TrainingData, rows: Tensor, epoch: int, device: torch.device
) -> TrainingBatch:
    # a shift has few random numbers, which are drawn faster on the CPU
    rng = SampleRNG(recipe.seed, data.ids[rows], f"train/{epoch}")
    where = rows.to(data.images.device, non_blocking=True)
    images, labels = data.images[where].to(device), data.labels[where].to(device)
    if recipe.flip:
        images = random_flip(images, rng)
    if recipe.shift:
        images = random_shift(images, rng, recipe.shift)
    rng = replace(rng, ids=rng.ids.to(device, non_blocking=True))
    if recipe.levels:
        images = dequantise(images, rng, recipe.levels)
    return TrainingBatch(images, labels, rng)


def _step(state: _TrainingState, recipe: Recipe, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """Update the weights on one batch; return its loss and logits."""
    with torch.autocast(state.device.type, torch.bfloat16, recipe.precision == "bfloat16"):
        loss, logits = state.objective(state.model, batch)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    clip_gradient(state.optimiser, recipe.clip_norm)
    state.optimiser.step()
    return loss, logits


def _batch_order(recipe: Recipe, size: int, epoch: int) -> list[Tensor]:
    whole = size // recipe.batch_size * recipe.batch_size
    order = epoch_order(recipe.seed, epoch, size)[:whole]
    return list(order.reshape(-1, recipe.batch_size))


def _save_weights(
    model: nn.Module, path: Path, storage: str, metadata: dict[str, str] | None = None
) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    save_file(stored_weights(model, storage), part, metadata)
    part.replace(path)


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except DAMAGED as error:
        raise _damaged_weights(path, error) from error


def _least_loss(path: Path) -> float:
    """Return the loss of the weights that are kept, inf without any.

    It is stored with them: ``metrics.jsonl`` may lack the last epoch after a kill.
    """
    if not path.exists():
        return math.inf
    try:
        with safe_open(path, "pt") as file:
            return float((file.metadata() or {})["loss"])
    except DAMAGED as error:
        raise _damaged_weights(path, error) from error


def _damaged_weights(path: Path, error: Exception) -> BadResults:
    remedy = f"delete the folder {path.parent} and train again ({error})"
    return BadResults(f"damaged weights {path}", remedy=remedy)


def _trim_metrics(path: Path, epochs: int) -> None:
    """Drop epochs that are not in the checkpoint, after a kill between the two writes."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:epochs]
        path.write_text("".join(lines), encoding="utf-8")


def stored_weights(model: nn.Module, storage: str) -> dict[str, Tensor]:
    """Return a network's weights on the CPU, floating-point numbers as ``storage`` (float16 or float32)."""
    dtype = {"float16": torch.float16, "float32": torch.float32}[storage]
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
