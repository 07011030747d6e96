"""Checkpoints of a training: network, optimisers and position in one safetensors file, no pickle."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustbench_inv.errors import BadResults
from robustbench_inv.training.objectives import Adapts

__all__ = [
    "Position",
    "load_checkpoint",
    "optimiser_state",
    "read_position",
    "restore_optimiser",
    "save_checkpoint",
]


@dataclass(frozen=True)
class Position:
    """Where a training stands: the recipe it follows and the epochs it has finished."""

    recipe: str
    epoch: int


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    position: Position,
    objective: Adapts | None = None,
) -> None:
    """Write a checkpoint; a reader sees the old one or the new one, never a part."""
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
    objective: Adapts | None = None,
) -> int:
    """Restore network, optimiser and objective, and return the number of finished epochs.

    Raises:
        BadResults: if the file is damaged, or was written by another recipe.
    """
    remedy = f"delete {path} or train into another folder"
    try:
        with safe_open(path, "pt") as file:
            position = Position(**json.loads(file.metadata()["position"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadResults(f"damaged checkpoint {path}", remedy=f"{remedy} ({error})") from error
    if position.recipe != recipe:
        expected = recipe[:12]
        problem = "the checkpoint belongs to another recipe"
        raise BadResults(problem, got=position.recipe[:12], expected=expected, remedy=remedy)
    model.load_state_dict(_under("model/", tensors))
    restore_optimiser(optimiser, _under("optimiser/", tensors))
    if objective:
        objective.load(_under("objective/", tensors))
    return position.epoch


def read_position(path: Path) -> Position | None:
    """Return the position of a checkpoint without its weights; None if the file is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return Position(**json.loads(file.metadata()["position"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser remembers of each parameter, named ``index/quantity``."""
    entries = optimiser.state_dict()["state"].items()
    return {
        f"{i}/{k}": torch.as_tensor(v).contiguous()
        for i, entry in entries
        for k, v in entry.items()
        if v is not None  # sgd without momentum
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser back what ``optimiser_state`` returned."""
    state = optimiser.state_dict()
    state["state"] = _by_parameter(tensors)
    optimiser.load_state_dict(state)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _by_parameter(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    return state
