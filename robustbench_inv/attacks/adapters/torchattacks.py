"""Every attack of torchattacks, as ``torchattacks:NAME`` with its own parameters."""

import inspect
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.attacks.adapters.adapted_model import (
    AdaptedModel,
    AttackCall,
    GreyFromRGB,
    InputScaling,
    check_decision_goal,
    check_images,
    collect_candidates,
    suppressed_output,
    targeting_unsupported,
    valid_proposals,
)
from robustbench_inv.attacks.adapters.adapted_randomness import adapted_randomness, adapted_seed
from robustbench_inv.attacks.parameters import check_parameters, find_attack
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadParameter, CapabilityMismatch, MissingExtra
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.goals import Target
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["TorchattacksAttack"]


RESERVED = {
    "model": "use --model",
    "eps": "use --threat",
    "max_epsilon": "use --threat for eps",
    "norm": "use --threat",
    "n_classes": "the model declares its number of classes",
    "seed": "use --seed",
    "verbose": "see the records instead",
}
"""Parameters that the adapter sets."""

UNUSABLE = {
    "LGV": "it trains copies of the model on a training set; train them yourself and name them as substitutes"
}
"""Attacks that need more than a model and a batch, and what to do instead."""

MINIMUM_NORM: dict[str, frozenset[str]] = {
    "CW": frozenset({"l2"}),
    "DeepFool": frozenset({"l2"}),
    "EADEN": frozenset({"l1"}),
    "EADL1": frozenset({"l1"}),
    "GN": frozenset(NORMS),
    "JSMA": frozenset({"l0"}),
    "OnePixel": frozenset({"l0"}),
    "Pixle": frozenset({"l0"}),
    "SparseFool": frozenset({"l0", "l1"}),
    "VANILA": frozenset(NORMS),
}
"""Attacks without eps and the norms that they minimize; all norms for the two that minimize none."""

LIBRARY_NORMS = {"l2": "L2", "linf": "Linf"}
"""Names of the norms in the library, for attacks that support several."""

ONE_SAMPLE_AT_A_TIME = frozenset({"OnePixel", "Pixle"})
"""Attacks that the library runs sample after sample; each sample is attacked separately, with its own draws."""

SINGLE_PRECISION = frozenset({"EADEN", "EADL1", "PIFGSM", "PIFGSMPP", "TIFGSM"})
"""Attacks that do not support float64."""

THREE_CHANNELS = frozenset({"PIFGSM", "PIFGSMPP", "TIFGSM"})
"""Attacks that smooth gradients of exactly three channels. A grey image is passed to them as three equal channels, and
the model gets their mean; these attacks change all channels alike."""

TARGETED_ONLY = frozenset({"JSMA"})
"""Attacks without an untargeted mode; for an untargeted goal the target is each sample's runner-up class. The library
would use the label plus one, modulo ten."""


IMAGES_ONLY = frozenset({"AutoAttack", "DIFGSM", "OnePixel", "Pixle", "Square", *THREE_CHANNELS})
"""Attacks that need inputs of shape (channels, height, width)."""


@dataclass(frozen=True)
class TorchattacksAttack:
    """An attack of torchattacks, run on inputs mapped to [0, 1].

    Eps comes from the threat. A step size ``alpha`` that is not set keeps the library's ratio to eps, since its default
    of 2/255 would never cross a budget of 0.3.

    Args:
        attack: its name in ``torchattacks``.
        parameters: pairs of name and value for its constructor; those of ``MultiAttack`` are ``attacks``,
            names joined by ``+``.

    Raises:
        MissingExtra: if torchattacks is not installed.
        UnknownName: if there is no such attack.
        CapabilityMismatch: for an attack that needs more than a model and a batch.
        BadParameter: for an unknown parameter or an unusable value.

    References:
        Kim, Torchattacks: a PyTorch repository for adversarial attacks, arXiv 2010.01950.
    """

    attack: str
    parameters: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        if self.attack in UNUSABLE:
            raise CapabilityMismatch(
                f"{self._title} needs more than a model and a batch", remedy=UNUSABLE[self.attack]
            )
        found = find_attack("torchattacks", _classes(), self.attack)
        given = check_parameters(self._title, found, dict(self.parameters), RESERVED)
        object.__setattr__(self, "parameters", tuple(sorted(given.items())))
        self._build(_placeholder(), {})

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all supported attacks.

        Raises:
            MissingExtra: if torchattacks is not installed.
        """
        return sorted(_classes())

    @property
    def kind(self) -> Kind:
        """``fixed-budget`` if the attack takes an eps, else ``minimum-norm``."""
        return "minimum-norm" if self.attack in MINIMUM_NORM else "fixed-budget"

    @property
    def norms(self) -> frozenset[str]:
        """The norms that the attack supports; for a ``MultiAttack``, those that all its parts support."""
        if self.attack in MINIMUM_NORM:
            return MINIMUM_NORM[self.attack]
        if self.attack == "MultiAttack":
            return frozenset.intersection(*(part.norms for part in self._parts))
        if "norm" in self._defaults:  # FAB accepts l1 as well, and raises an error
            return frozenset({"l2", "linf"})
        return frozenset({"l2" if self.attack.endswith("L2") else "linf"})

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a target class without a targeted mode, and for inputs that must be images."""
        if isinstance(threat.goal, Target):
            attack = self._build(_placeholder(), {})
            if "targeted" not in attack.supported_mode:
                raise targeting_unsupported(self._title)
        if self.attack in IMAGES_ONLY:
            check_images(data.shape)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        check_decision_goal(self._title, threat.goal)
        rows = torch.arange(len(batch), device=batch.labels.device)
        call = partial(self._call, AttackCall(model, batch, threat, rng))
        images = collect_candidates(
            self._title, call, rows, model, batch, one_by_one=self._one_by_one
        )
        return valid_proposals(images, model, batch, threat, bounded=self.kind == "fixed-budget")

    @property
    def _class(self) -> type[Any]:
        return _classes()[self.attack]

    @property
    def _title(self) -> str:
        return f"torchattacks:{self.attack}"

    @property
    def _one_by_one(self) -> bool:
        return self.attack in ONE_SAMPLE_AT_A_TIME

    @property
    def _defaults(self) -> dict[str, Any]:
        """The constructor's parameters with their default values."""
        found = inspect.signature(self._class).parameters
        return {name: parameter.default for name, parameter in found.items()}

    @property
    def _parts(self) -> "list[TorchattacksAttack]":
        """The attacks of a ``MultiAttack``."""
        names = str(dict(self.parameters).get("attacks", "")).split("+")
        parts = [TorchattacksAttack(name) for name in names if name]
        if len(parts) < 2 or any(part.kind != "fixed-budget" for part in parts):
            raise BadParameter(
                f"{self._title}: attacks does not fit",
                got=dict(self.parameters).get("attacks"),
                expected="two or more names of fixed-budget attacks, such as FGSM+PGD",
            )
        return parts

    def _call(self, task: AttackCall, rows: Tensor) -> Tensor:
        """Return the candidates (m, …) for some samples."""
        scale, rng = InputScaling(task.model.bounds), task.rng.rows(rows)
        clean = self._prepared(scale.to_library(task.batch.images[rows]))
        grey = clean.shape[1:] != task.batch.images.shape[1:]
        given = self._own_arguments(task, scale) | {
            "seed": adapted_seed(rng, one_by_one=self._one_by_one)
        }
        with adapted_randomness(rng, one_by_one=self._one_by_one):
            shim = AdaptedModel(task.model, rows, scale, clean)
            attack = self._build(GreyFromRGB(shim) if grey else shim, given)
            aim = self._targets(task, rows, can="targeted" in attack.supported_mode)
            if aim is not None:
                attack.set_mode_targeted_by_label(quiet=True)
            found: Tensor = attack(clean, task.batch.labels[rows] if aim is None else aim).detach()
        return scale.to_model(found.mean(1, keepdim=True) if grey else found)

    def _prepared(self, images: Tensor) -> Tensor:
        """Return images in the dtype and with the channels that the attack supports."""
        if self.attack in SINGLE_PRECISION:
            images = images.float()
        if self.attack not in THREE_CHANNELS:
            return images
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise CapabilityMismatch(
                f"{self._title} works on images of one or three channels",
                got=tuple(images.shape[1:]),
            )
        return images.expand(-1, 3, -1, -1).contiguous()

    def _own_arguments(self, task: AttackCall, scale: InputScaling) -> dict[str, Any]:
        """Return the constructor's arguments from model and threat."""
        given: dict[str, Any] = {"n_classes": task.model.num_classes}
        if self.kind == "fixed-budget":
            eps = task.eps(scale)
            given |= {"eps": eps, "max_epsilon": eps, "norm": LIBRARY_NORMS[task.threat.norm]}
        return given

    def _build(self, model: Any, given: dict[str, Any]) -> Any:  # noqa: ANN401 - not typed
        if self.attack == "MultiAttack":
            return self._class([part._build(model, given) for part in self._parts])
        defaults = self._defaults
        options = {key: value for key, value in given.items() if key in defaults}
        if "alpha" in defaults and "eps" in options:
            options["alpha"] = defaults["alpha"] / defaults["eps"] * options["eps"]
        options |= dict(self.parameters)
        try:
            with suppressed_output():
                return self._class(model, **options)
        except Exception as error:
            problem = f"{self._title} raised {type(error).__name__}: {error}"
            raise BadParameter(problem, got=dict(self.parameters)) from error

    def _targets(self, task: AttackCall, rows: Tensor, *, can: bool) -> Tensor | None:
        """Return the target classes (m,), None for an untargeted attack."""
        goal = task.threat.goal
        if not isinstance(goal, Target) and self.attack not in TARGETED_ONLY:
            return None
        if not can:
            raise targeting_unsupported(self._title)
        if isinstance(goal, Target):
            return goal.classes(task.batch.labels[rows], task.model.num_classes)
        return task.runner_up(rows)


@cache
def _classes() -> dict[str, type[Any]]:
    try:
        with suppressed_output():
            import torchattacks
            from torchattacks.attack import Attack
    except ImportError as error:
        raise MissingExtra(
            "torchattacks is not installed",
            remedy='pip install "robustbench-inv[torchattacks]"',
        ) from error
    return {
        name: value
        for name, value in vars(torchattacks).items()
        if inspect.isclass(value) and issubclass(value, Attack) and name not in UNUSABLE
    }


def _placeholder() -> torch.nn.Module:
    """Return a dummy model for constructing an attack to check its parameters."""
    return torch.nn.ParameterList([torch.zeros(1)])
