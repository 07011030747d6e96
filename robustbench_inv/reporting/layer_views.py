"""Views of a hidden layer before and after it was regularised: as files hold them, and as figures want them."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.errors import BadResults

__all__ = ["Effect", "LayerView", "Numbers", "read_effect", "to_gzip"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class LayerView:
    """One network's layer, seen under each of C hypotheses on n samples.

    Args:
        model: its name.
        digest: of everything that its answers depend on.
        accuracy: on the samples.
        widths: kernel widths σ by name; ``median`` is the median distance of the layer's outputs.
        mmd2: for each width the MMD² between right and wrong guesses, (C,).
        chance: the same, if right and wrong were drawn by lot, (C,).
        plane: (C, n, 2) outputs on their two principal axes.
        explained: (C, 2) share of the variance along these.
    """

    model: str
    digest: str
    accuracy: float
    widths: dict[str, float]
    mmd2: dict[str, Numbers]
    chance: dict[str, Numbers]
    plane: Numbers
    explained: Numbers


@dataclass(frozen=True)
class Effect:
    """What a regulariser did to pairs of networks.

    Args:
        dataset: what the samples are from.
        labels: (n,) their classes.
        pairs: the views before and after, by the pair's name.
    """

    dataset: str
    labels: NDArray[np.int64]
    pairs: dict[str, tuple[LayerView, LayerView]]


def to_gzip(effect: Mapping[str, object]) -> bytes:
    """Return plain values as ``.json.gz``: the same bytes for the same values."""
    text = json.dumps(effect, ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def read_effect(path: Path) -> Effect:
    """Read what ``to_gzip`` wrote.

    Raises:
        BadResults: if the file is missing, damaged, or something else.
    """
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        if found["version"] != 1:
            raise BadResults(f"{path} has another version", got=found["version"], expected="1")
        pairs = {
            name: (_view(pair["before"]), _view(pair["after"]))
            for name, pair in found["pairs"].items()
        }
        return Effect(found["dataset"], np.array(found["labels"]), pairs)
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadResults(f"cannot read the layers in {path}", remedy=str(error)) from error


def _view(found: Mapping[str, Any]) -> LayerView:
    view = {field.name: found[field.name] for field in fields(LayerView)}
    for key in ("mmd2", "chance"):
        view[key] = {name: np.array(terms) for name, terms in view[key].items()}
    return LayerView(**{**view, **{key: np.array(view[key]) for key in ("plane", "explained")}})
