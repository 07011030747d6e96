"""Turns a trained network into a folder of the catalogue: card, recipe, weights, golden logits."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robustbench_inv.identity import digest_file
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.training.recipe import Recipe

__all__ = ["export_model", "round_weights", "stored_weights", "toml_text"]


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
        "implementation": recipe.model,
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


def stored_weights(model: nn.Module, storage: str) -> dict[str, Tensor]:
    """Return a network's weights as they are stored: on the CPU, numbers as ``storage`` (float16 or float32)."""
    dtype = {"float16": torch.float16, "float32": torch.float32}[storage]
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


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
