"""Measures who decides what on planes through the centre of the spheres: a network's logits and its nuisances."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from robustbench_inv.data.spheres import Spheres
from robustbench_inv.errors import BadModel
from robustbench_inv.models.module import CodeClassifier
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.tensors import norm

__all__ = ["Scores", "metamers_of", "moved_outwards", "plane_through", "planes_of"]

Scores = Callable[[Tensor], Tensor]
"""Maps points or nuisances (n, …) to scores (n, classes)."""

REACH, BEYOND = 1.2, 1.1
"""How far a plane is looked at, in radii of the outer sphere, and in distances of a metamer beyond that."""

CIRCLE = 3600
"""Points on which a circle is judged, a tenth of a degree apart."""

BLOCK = 10_000
"""Points that are decided at a time."""


@torch.no_grad()
def planes_of(
    model: Classifier,
    nuisance: Scores,
    spheres: Spheres,
    ids: tuple[int, int] = (0, 1),
    resolution: int = 241,
) -> list[dict[str, object]]:
    """Return the plane of two data points, and that of the first and its metamer with the second's nuisances.

    The latter is looked at twice if the metamer lies further out than the first look reaches: around the spheres,
    where the true classes are known, and as far as the metamer.

    Args:
        model: its logits decide, its code is split.
        nuisance: scores of nuisances z_n (n, d − C).
        spheres: where the points are from.
        ids: of two points, in the paper an inner and an outer one.
        resolution: points of the grid along each axis.

    Returns:
        One mapping of plain values for each look: its ``name`` and what ``plane_through`` returns.

    Raises:
        BadModel: for a model whose code has no two parts.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, figure 3.
    """
    network = _with_code(model)
    x, y = spheres.batch(list(ids))[0].to(model.dtype)
    metamer = metamers_of(network, x[None], y[None])[0]
    deciders: dict[str, Scores] = {
        "logits": lambda points: network(points).logits,
        "nuisances": lambda points: nuisance(network.split(network.encode(points))[1]),
    }
    extent, furthest = REACH * spheres.r2, BEYOND * norm(metamer[None], "l2").item()
    data, pair = {"x₁": x, "x₂": y}, {"x": x, "x_met": metamer}
    looks = [("data", data, extent), ("metamer", pair, extent)]
    looks += [("metamer from afar", pair, furthest)] if furthest > extent else []
    return [
        {"name": name, **plane_through(marked, deciders, spheres, (reach, resolution))}
        for name, marked, reach in looks
    ]


def metamers_of(model: Classifier, sources: Tensor, donors: Tensor) -> Tensor:
    """Return F⁻¹(z_s of the sources, z_n of the donors), (n, …).

    Raises:
        BadModel: for a model whose code has no two parts.
    """
    network = _with_code(model)
    semantic, _ = network.split(network.encode(sources))
    _, nuisance = network.split(network.encode(donors))
    return network.decode(network.join(semantic, nuisance))


def moved_outwards(model: Classifier, spheres: Spheres, pairs: int) -> Tensor:
    """Return points (pairs, d) of the outer sphere in the directions of metamers with logits of inner points.

    Logits are those of the first inner points, nuisances those of as many outer points. A metamer need not lie
    on a sphere itself; brought onto the outer one it has a true class, which the decision can be held against.

    Raises:
        BadModel: for a model whose code has no two parts.
    """
    inner, outer = ((spheres.labels == label).nonzero()[:pairs, 0] for label in (0, 1))
    sources, donors = (spheres.batch(ids)[0].to(model.dtype) for ids in (inner, outer))
    metamers = metamers_of(model, sources, donors)
    return metamers * (spheres.r2 / norm(metamers, "l2"))[:, None]


def plane_through(
    marked: Mapping[str, Tensor],
    deciders: Mapping[str, Scores],
    spheres: Spheres,
    look: tuple[float, int],
) -> dict[str, object]:
    """Return the decisions on the plane that two points (d,) span with the origin; the first is on its x axis.

    Args:
        marked: the points, by name.
        deciders: classifiers, by name.
        spheres: which are circles in the plane.
        look: how far to look in each direction, and at how many points of each axis.

    Returns:
        ``points``: the marked ones as [x, y]. ``extent``: the grid reaches from −extent to extent both ways.
        ``decisions``: by decider, the grid's rows from the lowest y on, each a string with a digit for each
        point. ``right``: by decider, which share of the inner and of the outer circle it judges rightly.
    """
    points = torch.stack([*marked.values()])
    axes = _axes(points.double())
    extent, resolution = look
    steps = torch.linspace(-extent, extent, resolution, dtype=axes.dtype)
    grid = torch.cartesian_prod(steps, steps).flip(1)  # x runs fastest
    decided = {name: _decide(f, (grid @ axes).to(points)) for name, f in deciders.items()}
    return {
        "points": dict(zip(marked, (points.double() @ axes.T).tolist(), strict=True)),
        "extent": extent,
        "decisions": {name: _rows(found, resolution) for name, found in decided.items()},
        "right": {name: _right(f, axes, spheres, points) for name, f in deciders.items()},
    }


def _with_code(model: Classifier) -> CodeClassifier:
    if not isinstance(model, CodeClassifier):
        raise BadModel(
            "metamers need a model that divides an invertible code",
            got=type(model).__name__,
            expected="encode, decode, split and join, such as spheres-firevnet",
        )
    return model


def _axes(points: Tensor) -> Tensor:
    """Gram and Schmidt's axes (2, d) of two points: both have no negative coordinate but the second's x."""
    axes: Tensor = torch.linalg.qr(points.T)[0].T
    return axes * (axes * points).sum(1, keepdim=True).sign()


def _decide(scores: Scores, points: Tensor) -> Tensor:
    return torch.cat([scores(block).argmax(1) for block in points.split(BLOCK)])  # type: ignore[no-untyped-call]


def _rows(decided: Tensor, resolution: int) -> list[str]:
    return ["".join(map(str, row)) for row in decided.reshape(-1, resolution).tolist()]


def _right(scores: Scores, axes: Tensor, spheres: Spheres, like: Tensor) -> list[float]:
    angles = torch.arange(CIRCLE, dtype=axes.dtype) * (2 * math.pi / CIRCLE)
    circle = torch.stack([angles.cos(), angles.sin()], 1) @ axes
    return [
        (_decide(scores, (radius * circle).to(like)) == label).double().mean().item()
        for label, radius in enumerate((spheres.r1, spheres.r2))
    ]
