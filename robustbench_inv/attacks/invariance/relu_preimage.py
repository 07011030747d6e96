"""Invariance attack on ReLU networks: another input with the same hidden activations, found by linear programming."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from robustbench_inv.attacks.invariance.donors import assign_donors, check_rule
from robustbench_inv.attacks.parameters import check_least
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.models.protocol import Classifier, all_units, device_of
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, norm
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["AffinePiece", "ReluPreimage", "pieces_at", "relu_inputs"]


RELU_FUNCTIONS = frozenset({torch.relu, torch.relu_, functional.relu, Tensor.relu, Tensor.relu_})
"""The functions that compute a ReLU."""

MAX_DERIVATIVES = 512
"""Number of derivatives computed at once."""


@dataclass(frozen=True)
class AffinePiece:
    """The pre-activations of a ReLU layer as an affine function of the flattened input.

    It is exact while no unit of an earlier layer changes sign.

    Args:
        jacobian: (units, d).
        offsets: (units,).
        inputs: (units,) pre-activations at the input that the piece belongs to.
    """

    jacobian: np.ndarray
    offsets: np.ndarray
    inputs: np.ndarray

    @property
    def active(self) -> np.ndarray:
        """(units,): whether the unit's pre-activation is positive."""
        return self.inputs > 0


def relu_inputs(model: Callable[[Tensor], object], images: Tensor, count: int) -> list[Tensor]:
    """Return the pre-activations of the first ReLUs, (n, units) each, in the order of their computation.

    Args:
        model: is called with one input at a time, since it may split a batch.
        images: (n, …), n >= 1.
        count: number of ReLUs; fewer are returned if the model has fewer.
    """
    recorders = [_ReLURecorder(count) for _ in images]
    for row, recorder in enumerate(recorders):
        with recorder, all_units():
            model(images[row : row + 1].clone())
    return [torch.cat(each) for each in zip(*(r.inputs for r in recorders), strict=True)]


def pieces_at(model: Callable[[Tensor], object], image: Tensor, count: int) -> list[AffinePiece]:
    """Return the affine pieces of the first ReLUs at one input (1, …)."""
    with torch.enable_grad():
        image = image.detach().requires_grad_(True)
        given = relu_inputs(model, image, count)
        return [_affine_piece(inputs[0], image) for inputs in given]


def _affine_piece(inputs: Tensor, image: Tensor) -> AffinePiece:
    units = torch.arange(len(inputs), device=inputs.device)
    rows = [
        torch.autograd.grad(
            inputs,
            image,
            (units == some[:, None]).to(inputs.dtype),
            retain_graph=True,
            is_grads_batched=True,
        )[0]
        for some in torch.split(units, MAX_DERIVATIVES)
    ]
    jacobian = torch.cat(rows).flatten(1).double()
    value = inputs.detach().double()
    offsets = value - jacobian @ image.detach().double().flatten()
    return AffinePiece(*(part.cpu().numpy() for part in (jacobian, offsets, value)))


class _ReLURecorder(TorchFunctionMode):
    """Records the inputs of the first ReLUs while it is active."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in RELU_FUNCTIONS and len(self.inputs) < self.count:
            given = args[0] if args else kwargs["input"]
            self.inputs.append(given.clone().flatten(1))  # an in-place ReLU overwrites its input
        return func(*args, **kwargs)


_Constraints = tuple[np.ndarray, np.ndarray]
"""A matrix (m, d) and a right side (m,)."""

ZERO_TOLERANCE = 1e-5
"""Pre-activations below this, relative to the layer's largest or to 1, count as zero."""

EIGENVALUE_TOLERANCE = 1e-10
"""Eigenvalues of A Aᵀ below this share of the largest count as 0."""


@dataclass(frozen=True)
class ReluPreimage:
    """Moves x toward an input of another class as far as the activations of a hidden layer stay the same.

    Active units keep their value, inactive units stay at or below 0, and units of earlier layers keep their sign. With
    the box, and an linf ball if the threat has one, these constraints define a polytope. Its point closest to the donor
    in l1 is the solution of a linear program. The layers above see the same activations, so the prediction stays,
    unless a connection skips the layer. In l1 and l2 the path to that point, which lies in the polytope, ends at eps.
    Samples whose input the layer determines, and samples on which the solver fails, are reported as failures.

    Logged for each sample (check C33): ``dimension`` of the null space of the active units; ``solver_status``, HiGHS's status,
    0 for an optimum; ``activation_error``, |h(x') − h(x)|_∞ of the layer, relative to its largest activation or to 1; ``changed_units``,
    the number of units that changed sign; ``distance_share``, the share of the l1 distance to the donor that x moved.
    Passes that record activations are not counted.

    Args:
        layer: number of the ReLU, from 1, in the order of their computation. The layers before it must be affine
            between ReLUs (no max pooling), or activations change.
        donor: rule for donors, one of ``donors.RULES``.

    References:
        Behrmann, Dittmer, Fernsel and Maass, Analysis of invariance and robustness via invertibility of ReLU-networks,
        2018; Behrmann, thesis, section 3.3, equations 3.1 and 3.2, remark 3.2 and theorem 3.3.
    """

    layer: int = 1
    donor: str = "other-class"

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset({"l1", "l2", "linf"})

    def __post_init__(self) -> None:
        check_least(self, layer=1)
        check_rule(self.donor)

    @torch.no_grad()
    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a model with fewer ReLUs."""
        classifier = cast("Classifier", model)
        image = data.batch([0])[0].to(device_of(classifier), classifier.dtype)
        found = len(relu_inputs(classifier, image, self.layer))
        if found < self.layer:
            raise CapabilityMismatch(
                f"the model has no ReLU number {self.layer}",
                got=f"{found} ReLUs",
                expected="torch.relu, or a module or function that calls it",
            )

    @torch.no_grad()
    def is_narrow(self, model: object, images: Tensor) -> bool:
        """Return whether the layer exists and has at most as many units as the input has elements.

        Wider layers as a rule determine the input, and a linear program with one constraint for each unit takes long.
        """
        found = relu_inputs(cast("Classifier", model), images[:1], self.layer)
        return len(found) == self.layer and found[-1].shape[1] <= images[0].numel()

    @torch.no_grad()
    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        network = cast("Classifier", model.model)
        donors, found = assign_donors(model, batch, self.donor, rng)
        low, high = _element_limits(batch.images, threat, model.bounds)
        results = batch.images.clone()
        dimensions, states = torch.zeros_like(batch.ids), torch.zeros_like(batch.ids)
        failed = torch.zeros_like(found)
        for row in found.nonzero()[:, 0].tolist():
            one = slice(row, row + 1)
            pieces = pieces_at(network, batch.images[one], self.layer)
            dimensions[row] = _nullspace_dimension(pieces[-1])
            if dimensions[row]:
                vectors = (t[row].double().flatten().cpu().numpy() for t in (donors, low, high))
                nearest, states[row] = _nearest_in_polytope(pieces, *vectors)
                failed[row] = nearest is None
                if nearest is not None:
                    results[row] = torch.from_numpy(nearest).reshape(results[row].shape).to(results)
        model.report_failure((found & (dimensions == 0)).nonzero()[:, 0], "no_start")
        model.report_failure(failed.nonzero()[:, 0], "numerics")
        results = _shorten_to_budget(batch.images, results, threat).clamp(*model.bounds)
        model.log("dimension", dimensions)
        model.log("solver_status", states)
        self._measure(model, batch.images, results, donors)
        model(results)
        return results

    def _measure(self, model: Queries, images: Tensor, results: Tensor, donors: Tensor) -> None:
        network = cast("Classifier", model.model)
        pairs = zip(
            relu_inputs(network, images, self.layer),
            relu_inputs(network, results, self.layer),
            strict=True,
        )
        changed = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        for before, after in pairs:
            size = before.clamp_min(0).amax(1).clamp_min(1)
            beyond = ZERO_TOLERANCE * size[:, None]
            apart = (before > beyond) & (after < -beyond) | (before < -beyond) & (after > beyond)
            changed += apart.sum(1)
            moved = (after.clamp_min(0) - before.clamp_min(0)).abs().amax(1) / size
        model.log("activation_error", moved)
        model.log("changed_units", changed)
        whole, remaining = norm(donors - images, "l1"), norm(donors - results, "l1")
        model.log("distance_share", 1 - remaining / whole.clamp_min(torch.finfo(whole.dtype).tiny))


def _element_limits(
    images: Tensor, threat: ThreatModel, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest allowed value of each element, (n, …) each."""
    eps = torch.inf
    if isinstance(threat.budget, LpBall) and threat.norm == "linf":
        eps = threat.budget.eps
    return (images - eps).clamp_min(bounds[0]), (images + eps).clamp_max(bounds[1])


def _shorten_to_budget(images: Tensor, results: Tensor, threat: ThreatModel) -> Tensor:
    """Return the last points (n, …) inside the budget on the lines from ``images`` to ``results``."""
    if not isinstance(threat.budget, LpBall) or threat.norm == "linf":
        return results
    length = norm(results - images, threat.norm)
    share = (threat.budget.eps / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)
    return images + broadcast(share, images) * (results - images)


def _nullspace_dimension(piece: AffinePiece) -> int:
    """Return the dimension of the null space of the active units."""
    seen = piece.jacobian[piece.active]
    # A Aᵀ or AᵀA, whichever is smaller: their eigenvalues are the same but for zeros
    found = np.linalg.eigvalsh(seen @ seen.T if len(seen) < seen.shape[1] else seen.T @ seen)
    rank = (found > EIGENVALUE_TOLERANCE * found.max(initial=0)).sum()
    return int(seen.shape[1] - rank)


def _nearest_in_polytope(
    pieces: list[AffinePiece], target: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray | None, int]:
    """Return the point (d,) of the polytope closest to the target in l1, or None, and the solver's status.

    With the target t clipped to the limits, x' = t + p − q minimizes Σ(p + q) over p, q >= 0.
    """
    start = np.clip(target, low, high)
    last, kept = pieces[-1], pieces[-1].active
    equal, value = last.jacobian[kept], last.inputs[kept] - last.offsets[kept]
    sides = [(last.jacobian[~kept], last.offsets[~kept])]
    for piece in pieces[:-1]:
        away = np.where(piece.active, -1.0, 1.0)
        sides.append((away[:, None] * piece.jacobian, away * piece.offsets))
    below, offset = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    widths = np.concatenate([high - start, start - low])
    free = widths > 0  # the donor's elements at their limits cannot move further
    status, steps = _least_sum(
        widths[free],
        (np.hstack([below, -below])[:, free], -offset - below @ start),
        (np.hstack([equal, -equal])[:, free], value - equal @ start),
    )
    if steps is None:
        return None, status
    moved = np.zeros(len(widths))
    moved[free] = steps
    up, down = np.split(moved, 2)
    return start + up - down, status


def _least_sum(
    widths: np.ndarray, below: _Constraints, equal: _Constraints
) -> tuple[int, np.ndarray | None]:
    """Minimize Σp over 0 <= p <= widths with A p <= b for ``below`` and A p = b for ``equal``.

    The presolver costs more than it saves on so few constraints; it is used if the solver fails without it.

    Returns:
        HiGHS's status, and p or None.
    """
    from scipy.optimize import linprog  # takes half a second

    bounds = np.stack([np.zeros(len(widths)), widths], 1)
    for presolve in (False, True):
        found = linprog(
            np.ones(len(widths)),
            *below,
            *equal,
            bounds,
            method="highs-ds",
            options={"presolve": presolve},
        )
        if found.status == 0:
            break
    return int(found.status), found.x
