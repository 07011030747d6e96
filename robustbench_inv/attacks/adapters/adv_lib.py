"""Every Lp attack of adversarial-library, as ``adv-lib:NAME`` with its own parameters."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from math import inf
from types import ModuleType
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
from robustbench_inv.attacks.adapters.adapted_randomness import adapted_randomness
from robustbench_inv.attacks.parameters import check_parameters, find_attack
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import CapabilityMismatch, MissingExtra
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.goals import Target
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["AdvLibAttack"]

RESERVED = {
    **dict.fromkeys(("model", "inputs", "labels"), "use --model and --dataset"),
    **dict.fromkeys(("norm", "p", "distance"), "use --threat"),
    "targeted": "use --threat with a goal",
    "callback": "see the records instead",
    "starting_points": "the attack starts at the clean input",
}
"""Parameters that the adapter sets."""

BUDGETS = {"apgd": "eps", "apgd_targeted": "eps", "pgd_linf": "ε"}
"""The fixed-budget attacks, and their parameter for eps."""

MINIMISED: Mapping[str, frozenset[str]] = {
    "alma": frozenset({"l1", "l2"}),
    "apgd": frozenset({"l1", "l2", "linf"}),
    "apgd_targeted": frozenset({"l1", "l2", "linf"}),
    "carlini_wagner_l2": frozenset({"l2"}),
    "carlini_wagner_linf": frozenset({"linf"}),
    "ddn": frozenset({"l2"}),
    "df": frozenset({"l2", "linf"}),
    "fab": frozenset({"l1", "l2", "linf"}),
    "fga": frozenset({"l0"}),
    "fmn": frozenset(NORMS),
    "pdgd": frozenset({"l2"}),
    "pdpgd": frozenset(NORMS),
    "pgd_linf": frozenset({"linf"}),
    "sdf": frozenset({"l2"}),
    "sigma_zero": frozenset({"l0"}),
    "str_attack": frozenset({"l2"}),
    "tr": frozenset({"l2", "linf"}),
    "vfga": frozenset({"l0"}),
}
"""The attacks, and the norms that they minimise or that their budget has."""

UNUSABLE = {"perc_al": "it minimises a distance of colours; choose one of an Lp norm"}
"""Attacks that minimise no Lp norm, and what to do instead."""

UNTARGETED = frozenset({"apgd_targeted", "df", "sdf", "sigma_zero", "tr"})
"""Attacks that accept no target class: they return the input, or choose their targets themselves."""

IMAGES_ONLY = frozenset({"str_attack"})
"""Attacks that need inputs of shape (channels, height, width)."""

ORDERS = {"l0": 0.0, "l1": 1.0, "l2": 2.0, "linf": inf}


@dataclass(frozen=True)
class AdvLibAttack:
    """An attack of adversarial-library, run on inputs mapped to [0, 1]; eps and norm come from the threat.

    Args:
        attack: name of its function in ``adv_lib.attacks``.
        parameters: pairs of name and value for this function.

    Raises:
        MissingExtra: if adversarial-library is not installed.
        UnknownName: if there is no such attack.
        CapabilityMismatch: for an attack without an Lp norm.
        BadParameter: for an unknown parameter or an unusable value.

    References:
        Rony and Ben Ayed, Adversarial Library, Zenodo 2021, doi 10.5281/zenodo.5815063.
    """

    attack: str
    parameters: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        if self.attack in UNUSABLE:
            raise CapabilityMismatch(f"{self._title} has no norm", remedy=UNUSABLE[self.attack])
        found = find_attack("adv-lib", _functions(), self.attack)
        reserved = {**RESERVED, **dict.fromkeys(filter(None, [self._budget]), "use --threat")}
        given = check_parameters(self._title, found, dict(self.parameters), reserved)
        object.__setattr__(self, "parameters", tuple(sorted(given.items())))

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all supported attacks.

        Raises:
            MissingExtra: if adversarial-library is not installed.
        """
        return sorted(_functions())

    @property
    def kind(self) -> Kind:
        """``fixed-budget`` if the attack takes an eps, else ``minimum-norm``."""
        return "fixed-budget" if self._budget else "minimum-norm"

    @property
    def norms(self) -> frozenset[str]:
        """The norms that the attack supports."""
        return MINIMISED[self.attack]

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a target class without a targeted mode, and for inputs that must be images."""
        if self.attack in IMAGES_ONLY:
            check_images(data.shape)
        if isinstance(threat.goal, Target) and self.attack in UNTARGETED:
            raise targeting_unsupported(self._title)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        check_decision_goal(self._title, threat.goal)
        task = AttackCall(model, batch, threat, rng)
        places = torch.arange(len(batch), device=batch.labels.device)
        found = collect_candidates(
            self._title, partial(self._call, task), places, model, batch, one_by_one=False
        )
        return valid_proposals(found, model, batch, threat, bounded=self._budget is not None)

    @property
    def _title(self) -> str:
        return f"adv-lib:{self.attack}"

    @property
    def _budget(self) -> str | None:
        return BUDGETS.get(self.attack)

    def _call(self, task: AttackCall, rows: Tensor) -> Tensor:
        """Return the candidates (m, …) for some samples."""
        scale, goal = InputScaling(task.model.bounds), task.threat.goal
        # several attacks mix single precision with that of the images
        clean, labels = scale.to_library(task.batch.images[rows]).float(), task.batch.labels[rows]
        targeted = isinstance(goal, Target)
        if isinstance(goal, Target):
            labels = goal.classes(labels, task.model.num_classes)
        options = {"targeted": targeted, **self._norm_argument(task.threat.norm)}
        if self._budget:
            options[self._budget] = task.eps(scale)
        function = _functions()[self.attack]
        accepted = inspect.signature(function).parameters
        known = {key: value for key, value in options.items() if key in accepted}
        with adapted_randomness(task.rng.rows(rows), one_by_one=False):
            network = AdaptedModel(task.model, rows, scale, clean)
            found: Tensor = function(network, clean, labels, **known, **dict(self.parameters))
        return scale.to_model(found.detach())

    @staticmethod
    def _norm_argument(norm: str) -> dict[str, Any]:
        """Return the norm under each name by which the library's functions take it."""
        return {"norm": ORDERS[norm], "p": ORDERS[norm], "distance": norm}


PLOTS_AND_PICTURES = ("torchvision", "visdom")
"""Packages that the library imports for perceptual distances and for plots, which no Lp attack uses."""


@cache
def _functions() -> dict[str, Callable[..., Tensor]]:
    """Return the supported attacks by name; empty modules take the place of packages that no Lp attack uses."""
    absent = [name for name in PLOTS_AND_PICTURES if not _can_import(name)]
    sys.modules.update({name: _Empty(name) for name in absent})
    try:
        with suppressed_output():
            library = import_module("adv_lib.attacks")
    except (ImportError, RuntimeError) as error:
        raise MissingExtra(
            "adv-lib is not installed, or cannot be imported",
            got=str(error).splitlines()[0],
            remedy='pip install "robustbench-inv[adv-lib]"',
        ) from error
    finally:
        for name in absent:
            del sys.modules[name]
    return {name: getattr(library, name) for name in MINIMISED if hasattr(library, name)}


def _can_import(name: str) -> bool:
    try:
        with suppressed_output():
            import_module(name)
    except (ImportError, RuntimeError):  # a torchvision that was built for another torch
        return False
    return True


class _Empty(ModuleType):
    """A module all of whose names are None."""

    def __getattr__(self, name: str) -> None:
        return None
