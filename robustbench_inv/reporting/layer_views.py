"""Views of a hidden layer before and after it was regularised: as files hold them, and as figures want them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Effect", "LayerView", "Numbers"]

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

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Effect":
        """Read what ``training.elimination_effect`` measured, plain values."""
        pairs = {
            name: (_view(pair["before"]), _view(pair["after"]))
            for name, pair in found["pairs"].items()
        }
        return cls(found["dataset"], np.array(found["labels"]), pairs)


def _view(found: Mapping[str, Any]) -> LayerView:
    view = {field.name: found[field.name] for field in fields(LayerView)}
    for key in ("mmd2", "chance"):
        view[key] = {name: np.array(terms) for name, terms in view[key].items()}
    return LayerView(**{**view, **{key: np.array(view[key]) for key in ("plane", "explained")}})
