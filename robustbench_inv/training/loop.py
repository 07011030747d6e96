"""The training loop: a checkpoint every epoch, the same weights after a resume."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import where_rows
from robustbench_inv.training.checkpoint import Position, load_checkpoint, save_checkpoint
from robustbench_inv.training.export import stored_weights
from robustbench_inv.training.objectives import Adapts, Learns, Objective, TrainingData
from robustbench_inv.training.optimisation import clip_gradient, learning_rate, make_optimiser
from robustbench_inv.training.recipe import Recipe

__all__ = [
    "Epoch",
    "TrainingData",
    "TrainingOptions",
    "dequantise",
    "mirror_half",
    "shift_each",
    "train",
]


@dataclass(frozen=True)
class Epoch:
    """What one epoch reports, and a line of ``metrics.jsonl``."""

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
        until: epoch to stop after, where a training is split into stages; None for the recipe's last.
        snapshots: epochs after which the weights are kept, as float16, in ``snapshots/epoch-N.safetensors``.
        report: called after each epoch.
    """

    until: int | None = None
    snapshots: frozenset[int] = frozenset()
    report: Callable[[Epoch], None] | None = None


@dataclass
class _State:
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
    """Train a network, from the folder's checkpoint if it has one.

    A resumed training gives the same weights as an uninterrupted one (same machine, CPU): order and
    noise depend on seed and epoch alone.

    Args:
        recipe: what to do.
        model: the network, freshly initialised from the recipe's seed, on its device.
        objective: what to minimise.
        data: the training samples.
        folder: gets ``checkpoint.safetensors``, ``metrics.jsonl`` and ``snapshots``.
        options: where to stop, which weights to keep, whom to report to.

    Returns:
        The network after the last epoch, in evaluation mode.
    """
    options = options or TrainingOptions()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.safetensors"
    adapts = objective if isinstance(objective, Adapts) else None
    if adapts:
        adapts.begin(model, data, fresh=not path.exists())
    besides = objective.parameters() if isinstance(objective, Learns) else ()
    optimiser = make_optimiser(recipe, model, besides)
    state = _State(model, optimiser, objective, next(model.parameters()).device)
    done = load_checkpoint(path, model, optimiser, recipe.digest, adapts) if path.exists() else 0
    _trim_metrics(folder / "metrics.jsonl", done)
    for epoch in range(done, min(options.until or recipe.epochs, recipe.epochs)):
        result = _run_epoch(state, recipe, data, epoch)
        if epoch + 1 in options.snapshots:  # before the checkpoint: a resumed training has both
            _save_snapshot(model, folder / "snapshots" / f"epoch-{epoch + 1}.safetensors")
        save_checkpoint(path, model, optimiser, Position(recipe.digest, epoch + 1), adapts)
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(result)) + "\n")
        if options.report is not None:
            options.report(result)
    return model.eval()


def mirror_half(images: Tensor, noise: Noise) -> Tensor:
    """Mirror images (n, c, h, w) left to right where the sample's coin falls on heads."""
    heads = noise.named(f"{noise.stream}/flip").integers(2) == 1
    return where_rows(heads, images.flip(-1), images)


def shift_each(images: Tensor, noise: Noise, most: int) -> Tensor:
    """Move images (n, c, h, w), each by its own -most … most pixels down and to the right; zeros come in."""
    n, channels, height, width = images.shape
    down, right = noise.named(f"{noise.stream}/shift").integers(2 * most + 1, (2,)).T
    rows = (torch.arange(height, device=images.device) + down[:, None])[:, None, :, None]
    columns = (torch.arange(width, device=images.device) + right[:, None])[:, None, None]
    which = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return pad(images, [most] * 4)[which, channel, rows, columns]


def dequantise(images: Tensor, noise: Noise, levels: int) -> Tensor:
    """Add noise (u − ½)/(levels − 1) to images (n, …) of grey levels 0, 1/(levels − 1), … 1; u uniform on (0, 1)."""
    drawn = noise.named(f"{noise.stream}/level").uniform(
        tuple(images.shape[1:]), dtype=images.dtype
    )
    return images + (drawn - 0.5) / (levels - 1)


def _run_epoch(state: _State, recipe: Recipe, data: TrainingData, epoch: int) -> Epoch:
    start, losses, correct = time.perf_counter(), 0.0, 0
    state.model.train()
    batches = _order(recipe, len(data.ids), epoch)
    for step, rows in enumerate(batches):
        updates = epoch * len(batches) + step
        progress = updates / (recipe.epochs * len(batches))
        rate = learning_rate(recipe, updates, len(batches))
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        images = data.images[rows].to(state.device)
        labels = data.labels[rows].to(state.device)
        noise = Noise(recipe.seed, data.ids[rows].to(state.device), f"train/{epoch}")
        images = _augmented(images, noise, recipe)
        with torch.autocast(state.device.type, torch.bfloat16, recipe.precision == "bfloat16"):
            loss, logits = state.objective(state.model, images, labels, noise, progress)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradient(state.optimiser, recipe.clip_norm)
        state.optimiser.step()
        losses += loss.item()
        correct += int((logits.detach().argmax(1) == labels).sum())
    seen = len(batches) * recipe.batch_size
    seconds = time.perf_counter() - start
    mean, accuracy = losses / len(batches), correct / seen
    return Epoch(epoch + 1, recipe.epochs, mean, accuracy, rate, seconds)


def _augmented(images: Tensor, noise: Noise, recipe: Recipe) -> Tensor:
    if recipe.flip:
        images = mirror_half(images, noise)
    if recipe.shift:
        images = shift_each(images, noise, recipe.shift)
    return dequantise(images, noise, recipe.levels) if recipe.levels else images


def _order(recipe: Recipe, size: int, epoch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    whole = size // recipe.batch_size * recipe.batch_size
    return list(torch.randperm(size, generator=generator)[:whole].reshape(-1, recipe.batch_size))


def _save_snapshot(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    save_file(stored_weights(model, "float16"), part)
    part.replace(path)


def _trim_metrics(path: Path, epochs: int) -> None:
    """Drop the lines of epochs that the checkpoint does not hold (killed between the two writes)."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:epochs]
        path.write_text("".join(lines), encoding="utf-8")
