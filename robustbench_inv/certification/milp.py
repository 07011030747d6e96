"""Exact verification of small ReLU networks by mixed-integer linear programs, solved by HiGHS."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds as VariableBounds
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array, vstack
from torch import Tensor

from robustbench_inv.certification.bounds import Bounds
from robustbench_inv.certification.operations import Activation, Add, AffineMap, Reshape
from robustbench_inv.errors import BadModel

__all__ = ["MILP_UNITS", "Program", "SolverAnswer", "refuse_unsuited"]

MILP_UNITS = 20_000
"""Largest number of elements of all steps for which a program is made."""

SAFETY = 1e-4
"""A target is excluded only if no input has a margin below this; HiGHS keeps constraints up to 1e-6."""

Array = NDArray[np.float64]


class SolverAnswer(NamedTuple):
    """What the solver found for one sample.

    Args:
        status: ``robust``: no input of the region reaches another class; ``candidate``: an input does by the program's
            arithmetic; ``open``: the time was too short.
        image: (…) the candidate, float64; None without one.
    """

    status: Literal["robust", "candidate", "open"]
    image: Tensor | None


def refuse_unsuited(bounds: Bounds) -> None:
    """Raise BadModel unless a network is piecewise linear and small, and the ball one of linf."""
    size = sum(low[0].numel() for low, _ in bounds.steps)
    if bounds.region.norm != "linf":
        raise BadModel("no MILP for this norm", got=bounds.region.norm, expected="linf")
    if size > MILP_UNITS:
        raise BadModel(
            "the network is too large for MILP", got=size, expected=f"<= {MILP_UNITS} units"
        )
    for step in bounds.network.steps[1:]:
        operation = step.operation
        smooth = isinstance(operation, Activation) and operation.stationary is not None
        if smooth or not isinstance(operation, Activation | Add | AffineMap):
            name = getattr(operation, "name", type(operation).__name__)
            raise BadModel(
                f"no MILP for the operation {name}", expected="ReLU and affine operations"
            )


@dataclass
class Program:
    """The constraints of one sample: every input of its region, and every value that rounding allows.

    Each unit of each step is a variable inside its bounds. An affine step holds up to its rounding error. A ReLU whose
    argument changes its sign has a binary variable (equations 8 to 11).

    Args:
        bounds: of all steps.
        sample: position of the sample.

    References:
        Tjeng, Xiao and Tedrake, Evaluating robustness of neural networks with mixed integer programming, ICLR 2019.
    """

    bounds: Bounds
    sample: int
    lows: list[Array] = field(init=False, default_factory=list)
    highs: list[Array] = field(init=False, default_factory=list)
    binary: list[int] = field(init=False, default_factory=list)
    rows: list[tuple[dict[int, Array], Array, Array]] = field(init=False, default_factory=list)
    parts: list[csr_array] = field(init=False, default_factory=list)
    limits: list[tuple[Array, Array]] = field(init=False, default_factory=list)
    count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        refuse_unsuited(self.bounds)
        self._variables = [self._box(0)]
        for number, step in enumerate(self.bounds.network.steps[1:], 1):
            arguments = [self._variables[i] for i in step.arguments]
            self._variables.append(self._encode(number, arguments))

    def minimum(self, weights: Tensor, seconds: float) -> float | None:
        """Return the smallest value of a linear function (C,) of the logits; None if the time was too short."""
        found = self._solve(weights.numpy(), seconds, self.parts, self.limits)
        return float(found.fun) if found.status == 0 else None

    def search(self, weights: Tensor, seconds: float) -> SolverAnswer:
        """Look for an input at which a linear function (C,) of the logits is negative, for some seconds."""
        row = csr_array(
            (weights.numpy(), (np.zeros(len(weights), int), self._variables[-1])), (1, self.count)
        )
        limits = [*self.limits, (np.array([-np.inf]), np.array([SAFETY]))]
        found = self._solve(weights.numpy(), seconds, [*self.parts, row], limits, gap=1e9)
        if found.status == 2:
            return SolverAnswer("robust", None)
        if found.x is None:
            return SolverAnswer("open", None)
        image = torch.from_numpy(found.x[self._variables[0]])
        return SolverAnswer("candidate", image.reshape(self.bounds.region.clean.shape[1:]))

    def _solve(
        self,
        weights: Array,
        seconds: float,
        parts: list[csr_array],
        limits: list[tuple[Array, Array]],
        gap: float = 0.0,
    ) -> Any:  # noqa: ANN401 - a result of scipy
        cost = np.zeros(self.count)
        cost[self._variables[-1]] = weights
        integrality = np.zeros(self.count)
        integrality[self.binary] = 1
        wide = [csr_array((p.data, p.indices, p.indptr), (p.shape[0], self.count)) for p in parts]
        low, high = (np.concatenate([each[i] for each in limits]) for i in (0, 1))
        return milp(
            cost,
            integrality=integrality,
            bounds=VariableBounds(np.concatenate(self.lows), np.concatenate(self.highs)),
            constraints=LinearConstraint(vstack(wide), low, high),
            options={"time_limit": max(seconds, 0.01), "mip_rel_gap": gap},
        )

    def _interval(self, number: int) -> tuple[Array, Array]:
        low, high = self.bounds.steps[number]
        return low[self.sample].flatten().numpy(), high[self.sample].flatten().numpy()

    def _box(self, number: int) -> NDArray[np.int64]:
        return self._new(*self._interval(number))

    def _new(self, low: Array, high: Array) -> NDArray[np.int64]:
        """Return the numbers of new variables."""
        self.lows.append(low)
        self.highs.append(high)
        first, self.count = self.count, self.count + len(low)
        return np.arange(first, self.count)

    def _require(
        self,
        terms: Iterator[tuple[csr_array, NDArray[np.int64]]]
        | list[tuple[csr_array, NDArray[np.int64]]],
        low: Array,
        high: Array,
    ) -> None:
        """Add the constraint low ≤ Σ W x ≤ high."""
        total = None
        for weights, variables in terms:
            found = weights.tocoo()
            part = csr_array(
                (found.data, (found.row, variables[found.col])), (len(low), self.count)
            )
            total = part if total is None else total + part
        assert total is not None
        self.parts.append(csr_array(total))
        self.limits.append((low, high))

    def _encode(self, number: int, arguments: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        step = self.bounds.network.steps[number]
        operation = step.operation
        if isinstance(operation, Reshape):
            return arguments[0]
        if isinstance(operation, Activation):
            return self._rectified(number, step.arguments[0], arguments[0], operation.leak)
        size = len(self._interval(number)[0])
        if isinstance(operation, Add):
            terms = [(-_unit(size), arguments[0]), (-operation.sign * _unit(size), arguments[1])]
            bias = np.zeros(size)
        else:
            assert isinstance(operation, AffineMap)
            terms = [(-_matrix(operation), arguments[0])]
            zero = operation.value(torch.zeros((1, *operation.inputs), dtype=torch.float64))
            bias = zero.flatten().numpy()
        variables = self._box(number)
        error = self.bounds.errors[number]
        slack = 0.0 if error is None else error[self.sample].flatten().numpy()
        kept = self._needed(number).nonzero()[0]
        rows = [(each[kept], names) for each, names in [*terms, (_unit(size), variables)]]
        self._require(rows, (bias - slack)[kept], (bias + slack)[kept])
        return variables

    def _needed(self, number: int) -> NDArray[np.bool_]:
        """Return the units of a step whose value matters: not those that a ReLU alone takes, and sets to 0."""
        users = [s.operation for s in self.bounds.network.steps if number in s.arguments]
        off = all(isinstance(each, Activation) and not each.leak for each in users) and users
        high = self._interval(number)[1]
        return high > 0 if off else np.ones(len(high), bool)

    def _rectified(
        self, number: int, before: int, x: NDArray[np.int64], leak: float
    ) -> NDArray[np.int64]:
        """Encode z = max(x, leak · x): as x where x > 0, by inequalities elsewhere."""
        low, high = self._interval(before)
        z = np.array(x)
        off = high <= 0
        if off.any():
            z[off] = self._new(*(each[off] for each in self._interval(number)))
            count = int(off.sum())
            none = np.zeros(count)
            self._require([(_unit(count), z[off]), (-leak * _unit(count), x[off])], none, none)
        open_ = (low < 0) & (high > 0)
        if open_.any():
            z[open_] = self._switched(number, x[open_], (low[open_], high[open_]), open_, leak)
        return z

    def _switched(
        self,
        number: int,
        x: NDArray[np.int64],
        limits: tuple[Array, Array],
        open_: NDArray[np.bool_],
        leak: float,
    ) -> NDArray[np.int64]:
        (low, high), count = limits, len(x)
        below, above = self._interval(number)
        z = self._new(below[open_], above[open_])
        a = self._new(np.zeros(count), np.ones(count))
        self.binary += a.tolist()
        unit, none, far = _unit(count), np.zeros(count), np.full(count, np.inf)
        rest = 1 - leak
        self._require([(unit, z), (-unit, x)], none, far)
        self._require([(unit, z), (-leak * unit, x)], none, far)
        self._require([(unit, z), (-unit, x), (_diagonal(-rest * low), a)], -far, -rest * low)
        self._require([(unit, z), (-leak * unit, x), (_diagonal(-rest * high), a)], -far, none)
        return z


def _unit(size: int) -> csr_array:
    return _diagonal(np.ones(size))


def _diagonal(values: Array) -> csr_array:
    places = np.arange(len(values))
    return csr_array((values, (places, places)), (len(values), len(values)))


def _matrix(operation: AffineMap) -> csr_array:
    """Return the matrix of an affine map, (out, in)."""
    size = int(np.prod(operation.inputs))
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *operation.inputs)
    return csr_array(operation.linear(unit).flatten(1).T.numpy())
