"""Every attack of Foolbox 3, as ``foolbox:NAME`` with its own parameters."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.attacks.foreign_model import (
    ForeignModel,
    Scale,
    Task,
    cannot_aim,
    demand_decision_goal,
    presentable,
    propose,
    quietly,
)
from robustbench_inv.attacks.foreign_parameters import checked_parameters, find_named
from robustbench_inv.attacks.foreign_randomness import foreign_randomness
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.attacks.starting_points import find_starts
from robustbench_inv.errors import BadParameter, MissingExtra
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.goals import Target
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["FoolboxAttack"]

RESERVED = {
    "distance": "distances are measured in the norm of --threat",
    "init_attack": "every sample gets a starting point of its own",
    "tensorboard": "the records say what happened",
}
"""Parameters that the adapter gives itself."""

DEFAULTS: dict[str, dict[str, object]] = {"VirtualAdversarialAttack": {"steps": 10}}
"""Values of the parameters for which Foolbox has none."""

ALONE = frozenset(
    {
        "GenAttack",  # draws mutations sample after sample
        "HopSkipJumpAttack",  # divides by the norm of the gradients of the whole batch
        "L0BrendelBethgeAttack",  # trust region proportional to the size of the batch
        "L1BrendelBethgeAttack",
        "L2BrendelBethgeAttack",
        "LinfinityBrendelBethgeAttack",
        "PointwiseAttack",  # draws permutations sample after sample
        "SparseL1DescentAttack",  # takes a quantile over the whole batch
    }
)
"""Attacks in which samples influence each other: each sample is attacked by itself."""

STOPS_EARLY = frozenset({"L2CarliniWagnerAttack", "EADAttack"})
"""Attacks that, with ``abort_early``, end for the whole batch when its summed loss stagnates."""

SINGLE_PRECISION = frozenset({"SpatialAttack"})
"""Attacks that cannot compute in float64."""

UNIT_BOX = frozenset({"HopSkipJumpAttack"})
"""Attacks that clip to [0, 1] whatever the bounds."""

TARGETED_ONLY = frozenset({"GenAttack"})
"""Attacks that must be given a class to reach: for any other goal, each sample's runner-up."""

FREE_START = frozenset({"L0FMNAttack", "L1FMNAttack", "L2FMNAttack", "LInfFMNAttack"})
"""Attacks that take a starting point and do better without."""


@dataclass(frozen=True)
class FoolboxAttack:
    """An attack of Foolbox 3.

    An attack with a fixed budget gets eps from the threat. One that begins at an adversarial input gets one
    for each sample; a sample without one is left out, and the others go on.

    Args:
        attack: its name in ``foolbox.attacks``.
        parameters: pairs of name and value for its constructor.

    Raises:
        UnknownName: if there is no such attack.
        BadParameter: for a parameter that it does not have or cannot use.

    Example:
        >>> FoolboxAttack("LinfPGD", (("steps", 20),)).kind
        'budget'

    References:
        Rauber, Zimmermann, Bethge and Brendel, Foolbox Native, JOSS 5(53), 2020.
    """

    attack: str
    parameters: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        found = find_named("foolbox", _classes(), self.attack)
        given = checked_parameters(self._title, found, dict(self.parameters), RESERVED)
        object.__setattr__(self, "parameters", tuple(sorted(given.items())))
        self._build("l2")

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all attacks, aliases included."""
        return sorted(_classes())

    @property
    def kind(self) -> Kind:
        """``budget`` if the attack takes an eps, else ``minimal``."""
        from foolbox.attacks.base import FixedEpsilonAttack

        return "budget" if issubclass(self._class, FixedEpsilonAttack) else "minimal"

    @property
    def norms(self) -> frozenset[str]:
        """The norm that the attack looks at, or those it can be told to; all if it looks at none."""
        from foolbox.attacks.base import AttackWithDistance, FlexibleDistanceMinimizationAttack

        if "constraint" in self._accepts and "constraint" not in dict(self.parameters):
            return frozenset({"l2", "linf"})
        free = issubclass(self._class, FlexibleDistanceMinimizationAttack)
        if free or not issubclass(self._class, AttackWithDistance):
            return frozenset(NORMS)
        return frozenset({_name_of(self._build("l2").distance.p)})

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        demand_decision_goal(self._title, threat.goal)
        images, starts = batch.images.clone(), None
        rows = torch.arange(len(batch), device=batch.labels.device)
        if self._needs_start:
            starts, found = find_starts(model, batch, threat.goal, noise)
            model.mark((~found).nonzero()[:, 0], "no_start")
            rows = rows[found]
        call = partial(self._call, Task(model, batch, threat, noise, starts))
        for done, proposals in propose(self._title, call, rows, model, alone=self._alone):
            images[done] = proposals.to(images.dtype)
        return presentable(images, model, batch, threat, bounded=self.kind == "budget")

    @property
    def _title(self) -> str:
        return f"foolbox:{self.attack}"

    @property
    def _class(self) -> type[Any]:
        return _classes()[self.attack]

    @property
    def _accepts(self) -> frozenset[str]:
        return frozenset(inspect.signature(self._class).parameters)

    @property
    def _alone(self) -> bool:
        aborts = self._class.__name__ in STOPS_EARLY
        return self._class.__name__ in ALONE or (
            aborts and bool(dict(self.parameters).get("abort_early", True))
        )

    @property
    def _needs_start(self) -> bool:
        takes = inspect.signature(self._class.run).parameters
        return "starting_points" in takes and self.attack not in FREE_START

    def _build(self, norm: str) -> Any:  # noqa: ANN401 - Foolbox's classes share no typed interface
        options = DEFAULTS.get(self.attack, {}) | dict(self.parameters)
        if "constraint" in self._accepts:
            options.setdefault("constraint", norm)
        try:
            return self._class(**options)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"{self._title} needs {error.name}", remedy=f"pip install {error.name}"
            ) from error
        except Exception as error:
            problem = f"{self._title} raised {type(error).__name__}: {error}"
            raise BadParameter(problem, got=dict(self.parameters)) from error

    def _call(self, task: Task, rows: Tensor) -> Tensor:
        """Return the proposals (m, …) for some samples."""
        from foolbox.attacks.dataset_attack import DatasetAttack
        from foolbox.models.pytorch import PyTorchModel

        scale = Scale(task.model.bounds, unit=self.attack in UNIT_BOX)
        clean = scale.to_library(task.batch.images[rows])
        clean = clean.float() if self.attack in SINGLE_PRECISION else clean
        shim = ForeignModel(task.model, rows, scale, clean)
        model = PyTorchModel(shim, bounds=scale.bounds, device=clean.device)
        criterion = _criterion(task, rows, targeted_only=self.attack in TARGETED_ONLY)
        options: dict[str, Any] = {"epsilons": None}
        if self.kind == "budget":
            options["epsilons"] = task.eps(scale)
        if task.starts is not None:
            options["starting_points"] = scale.to_library(task.starts[rows])
        with foreign_randomness(task.noise.rows(rows), alone=self._alone):
            attack = self._build(task.threat.norm)
            if isinstance(attack, DatasetAttack):
                attack.feed(model, clean)
            with _explained(self._title):
                _, found, _ = attack(model, clean, criterion, **options)
        return scale.to_model(found.detach())


def _criterion(task: Task, rows: Tensor, *, targeted_only: bool) -> Any:  # noqa: ANN401
    """Return what Foolbox calls a criterion: a class to leave or a class to reach."""
    from foolbox.criteria import Misclassification, TargetedMisclassification

    labels = task.batch.labels[rows]
    if isinstance(task.threat.goal, Target):
        classes = task.threat.goal.classes(labels, task.model.num_classes)
        return TargetedMisclassification(classes)
    if not targeted_only:
        return Misclassification(labels)
    return TargetedMisclassification(task.runner_up(rows))


@contextmanager
def _explained(title: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if str(error) != "unsupported criterion":
            raise
        raise cannot_aim(title) from error


@cache
def _classes() -> dict[str, type[Any]]:
    with quietly():  # it warns when numba is not there to compile an attack
        import foolbox
        from foolbox.attacks.base import Attack

    return {
        name: value
        for name, value in vars(foolbox.attacks).items()
        if inspect.isclass(value) and issubclass(value, Attack) and not inspect.isabstract(value)
    }


def _name_of(order: float) -> str:
    return "linf" if order == float("inf") else f"l{order:g}"
