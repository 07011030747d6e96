"""Every attack of Foolbox 3, as ``foolbox:NAME`` with its own parameters."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.attacks.adapters.adapted_model import (
    AdaptedModel,
    AttackCall,
    InputScaling,
    check_decision_goal,
    check_images,
    collect_candidates,
    suppressed_output,
    targeting_unsupported,
    valid_proposals,
)
from robustbench_inv.attacks.adapters.adapted_randomness import (
    PerSampleDraws,
    adapted_randomness,
)
from robustbench_inv.attacks.decision_based import find_starting_points
from robustbench_inv.attacks.parameters import check_parameters, find_attack
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadParameter, MissingExtra
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, flatten
from robustbench_inv.threat.goals import Target
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["FoolboxAttack"]


RESERVED = {
    "distance": "distances are in the norm of --threat",
    "init_attack": "the adapter supplies a starting point for every sample",
    "tensorboard": "see the records instead",
}
"""Parameters that the adapter sets."""

DEFAULTS: dict[str, dict[str, object]] = {"VirtualAdversarialAttack": {"steps": 10}}
"""Values of required parameters without a default in Foolbox."""

ONE_SAMPLE_AT_A_TIME = frozenset(
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
"""Attacks that a batch weakens, or that the library runs sample after sample; each sample is attacked separately."""

SINGLE_PRECISION = frozenset({"SpatialAttack"})
"""Attacks that do not support float64."""

TARGETED_ONLY = frozenset({"GenAttack"})
"""Attacks without an untargeted mode; for an untargeted goal the target is each sample's runner-up class."""

OWN_START = frozenset({"L0FMNAttack", "L1FMNAttack", "L2FMNAttack", "LInfFMNAttack"})
"""Attacks that accept a starting point but work better without."""


IMAGES_ONLY = frozenset({"GaussianBlurAttack", "SpatialAttack"})
"""Attacks that need inputs of shape (channels, height, width)."""


@dataclass(frozen=True)
class FoolboxAttack:
    """An attack of Foolbox 3.

    Inputs are mapped to a box of 0 to 1 and back, since some attacks clip to it or have constants that are meant for it.
    Parameters that are lengths are in its units. A fixed-budget attack gets eps from the threat. An attack that starts at an adversarial example gets one for each
    sample; samples without one are reported and not attacked.

    Args:
        attack: its name in ``foolbox.attacks``.
        parameters: pairs of name and value for its constructor.

    Raises:
        UnknownName: if there is no such attack.
        BadParameter: for an unknown parameter or an unusable value.

    Example:
        >>> FoolboxAttack("LinfPGD", (("steps", 20),)).kind
        'fixed-budget'

    References:
        Rauber, Zimmermann, Bethge and Brendel, Foolbox Native, JOSS 5(53), 2020.
    """

    attack: str
    parameters: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        found = find_attack("foolbox", _classes(), self.attack)
        given = check_parameters(self._title, found, dict(self.parameters), RESERVED)
        object.__setattr__(self, "parameters", tuple(sorted(given.items())))
        self._build("l2")

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all attacks, aliases included."""
        return sorted(_classes())

    @property
    def kind(self) -> Kind:
        """``fixed-budget`` if the attack takes an eps, else ``minimum-norm``."""
        from foolbox.attacks.base import FixedEpsilonAttack

        return "fixed-budget" if issubclass(self._class, FixedEpsilonAttack) else "minimum-norm"

    @property
    def norms(self) -> frozenset[str]:
        """The norm that the attack minimizes, or those of its parameter; all norms if it minimizes none."""
        from foolbox.attacks.base import AttackWithDistance, FlexibleDistanceMinimizationAttack

        if "constraint" in self._accepts and "constraint" not in dict(self.parameters):
            return frozenset({"l2", "linf"})
        free = issubclass(self._class, FlexibleDistanceMinimizationAttack)
        if free or not issubclass(self._class, AttackWithDistance):
            return frozenset(NORMS)
        return frozenset({_name_of(self._build("l2").distance.p)})

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a target class without a targeted mode, and for inputs that must be images."""
        if isinstance(threat.goal, Target) and not _has_targeted_mode(self._class):
            raise targeting_unsupported(self._title)
        if self.attack in IMAGES_ONLY:
            check_images(data.shape)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        check_decision_goal(self._title, threat.goal)
        starts, rows = None, torch.arange(len(batch), device=batch.labels.device)
        if self._needs_start:
            starts, found = find_starting_points(model, batch, threat.goal, rng)
            model.report_failure((~found).nonzero()[:, 0], "no_start")
            rows = rows[found]
        call = partial(self._call, AttackCall(model, batch, threat, rng, starts))
        images = collect_candidates(
            self._title, call, rows, model, batch, one_by_one=self._one_by_one
        )
        return valid_proposals(images, model, batch, threat, bounded=self.kind == "fixed-budget")

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
    def _one_by_one(self) -> bool:
        return self._class.__name__ in ONE_SAMPLE_AT_A_TIME

    @property
    def _needs_start(self) -> bool:
        takes = inspect.signature(self._class.run).parameters
        return "starting_points" in takes and self.attack not in OWN_START

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

    def _call(self, task: AttackCall, rows: Tensor) -> Tensor:
        """Return the candidates (m, …) for some samples."""
        from foolbox.attacks.dataset_attack import DatasetAttack
        from foolbox.models.pytorch import PyTorchModel

        scale = InputScaling(task.model.bounds)
        clean = scale.to_library(task.batch.images[rows])
        clean = clean.float() if self.attack in SINGLE_PRECISION else clean
        shim = AdaptedModel(task.model, rows, scale, clean)
        model = PyTorchModel(shim, bounds=scale.bounds, device=clean.device)
        criterion = _criterion(task, rows, targeted_only=self.attack in TARGETED_ONLY)
        options: dict[str, Any] = {"epsilons": None}
        if self.kind == "fixed-budget":
            options["epsilons"] = task.eps(scale)
        if task.starts is not None:
            options["starting_points"] = scale.to_library(task.starts[rows])
        with (
            adapted_randomness(task.rng.rows(rows), one_by_one=self._one_by_one) as draws,
            _noise_for_zero_gradients(draws),
        ):
            attack = self._build(task.threat.norm)
            if isinstance(attack, DatasetAttack):
                attack.feed(model, clean)
            with _explain_errors(self._title):
                _, found, _ = attack(model, clean, criterion, **options)
        return scale.to_model(found.detach())


@contextmanager
def _noise_for_zero_gradients(draws: PerSampleDraws) -> Iterator[None]:
    """Leave out the noise that DDN draws in each step unless a gradient is zero: a tenth of its time."""
    from foolbox.attacks import ddn

    normalise: Callable[[Any], Any] = ddn.normalize_gradient_l2_norms

    def spare(gradients: Any) -> Any:  # noqa: ANN401 - tensors of eagerpy
        if (flatten(gradients.raw).square().sum(1) == 0).any():
            return normalise(gradients)
        with draws.unused():
            return normalise(gradients)

    vars(ddn).update(normalize_gradient_l2_norms=spare)
    try:
        yield
    finally:
        vars(ddn).update(normalize_gradient_l2_norms=normalise)


def _criterion(task: AttackCall, rows: Tensor, *, targeted_only: bool) -> Any:  # noqa: ANN401
    """Return the Foolbox criterion: misclassification, or misclassification as a target class."""
    from foolbox.criteria import Misclassification, TargetedMisclassification

    labels = task.batch.labels[rows]
    if isinstance(task.threat.goal, Target):
        classes = task.threat.goal.classes(labels, task.model.num_classes)
        return TargetedMisclassification(classes)
    if not targeted_only:
        return Misclassification(labels)
    return TargetedMisclassification(task.runner_up(rows))


@contextmanager
def _explain_errors(title: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if str(error) != "unsupported criterion":
            raise
        raise targeting_unsupported(title) from error


def _has_targeted_mode(attack: type[Any]) -> bool:
    """Return whether an attack accepts a target class; Foolbox states it only in the code that would refuse one."""
    bases = [base for base in attack.__mro__ if base.__module__.startswith("foolbox.")]
    code = "".join(map(inspect.getsource, bases))
    return "unsupported criterion" not in code or "TargetedMisclassification" in code


@cache
def _classes() -> dict[str, type[Any]]:
    with suppressed_output():  # it warns if numba is not installed
        import foolbox
        from foolbox.attacks.base import Attack

    return {
        name: value
        for name, value in vars(foolbox.attacks).items()
        if inspect.isclass(value) and issubclass(value, Attack) and not inspect.isabstract(value)
    }


def _name_of(order: float) -> str:
    return "linf" if order == float("inf") else f"l{order:g}"
