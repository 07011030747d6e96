"""Decisions on planes through adversarial spheres, as the figure wants them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Plane", "Planes"]


@dataclass(frozen=True)
class Plane:
    """A plane through the centre of the spheres, on which several classifiers decide.

    Args:
        name: ``data`` or ``metamer``.
        points: marked points (x, y) by name.
        extent: the decisions reach from −extent to extent both ways.
        decisions: classes (k, k) by classifier, rows from the lowest y on.
        right: by classifier, which share of each circle, from the inner one on, it judges rightly.
    """

    name: str
    points: dict[str, tuple[float, float]]
    extent: float
    decisions: dict[str, NDArray[np.int64]]
    right: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Planes:
    """The planes of one network.

    Args:
        dataset: the spheres.
        model: the network's name.
        radii: of the spheres, which are circles in every plane.
        planes: in the order in which they are shown.
    """

    dataset: str
    model: str
    radii: tuple[float, ...]
    planes: tuple[Plane, ...]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Planes":
        """Read what was measured: the fields of ``Planes``, grids as strings with a digit for each point."""
        planes = tuple(map(_plane, found["planes"]))
        return cls(str(found["dataset"]), str(found["model"]), tuple(found["radii"]), planes)


def _plane(found: Mapping[str, Any]) -> Plane:
    return Plane(
        name=found["name"],
        points={name: (float(x), float(y)) for name, (x, y) in found["points"].items()},
        extent=float(found["extent"]),
        decisions={
            name: np.array([[int(digit) for digit in row] for row in rows])
            for name, rows in found["decisions"].items()
        },
        right={name: tuple(shares) for name, shares in found["right"].items()},
    )
