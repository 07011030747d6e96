"""A recipe: everything that determines a trained model, read from ``recipe.toml``."""

import tomllib
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from robustbench_inv.errors import BadCatalogue
from robustbench_inv.identity import digest_value

__all__ = ["Recipe", "read_recipe"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Args:
        name: the folder's name, which is the model's.
        model: ``module:factory`` of the network.
        objective: ``module:Class`` of the objective.
        dataset: reference of the training data.
        first: id of the first training image.
        last: id after the last one.
        epochs: passes over the data.
        batch_size: samples in a batch; an incomplete last batch is left out.
        learning_rate: of the optimiser, which the schedule starts from.
        seed: of initialisation, order and noise.
        storage: dtype of the weights on disk: float16 or float32.
        precision: dtype of the products in training: float32 or bfloat16; weights are kept in float32.
        flip: mirror every other image left to right, another half in each epoch.
        shift: move each image by up to so many pixels either way, anew in each epoch; zeros come in.
        levels: dequantise values that are one of so many grey levels from 0 to 1: add uniform noise as wide as
            the distance of two levels, anew in each epoch. 0 leaves the values as they are.
        optimiser: adam, adamax or sgd.
        weight_decay: of all parameters, as an l2 term in the gradient.
        start: a model of the catalogue to start from; parameters that it does not have stay as initialised.
        schedule: cosine (the learning rate falls to 0 by half a cosine over all updates), constant or step.
        milestones: epochs after which a step schedule multiplies the learning rate by ``rate_factor``.
        rate_factor: of a step schedule.
        warm_up: epochs over which the learning rate rises linearly to that of the schedule.
        momentum: of sgd.
        nesterov: use Nesterov's momentum (sgd only).
        weight_decays: weight decay by parameter name, a shell pattern such as ``"*.bias"``; the first pattern that
            matches counts, and ``weight_decay`` where none does.
        clip_norm: largest l2 norm of the whole gradient; a longer one is scaled down. 0 does not clip.
        held_out: data sets whose accuracy is measured once, at the end.
        model_parameters: keyword arguments of the factory.
        objective_parameters: fields of the objective.
        card: what the model's card says besides.
    """

    name: str
    model: str
    objective: str
    dataset: str
    first: int
    last: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    storage: str = "float16"
    precision: str = "float32"
    flip: bool = False
    shift: int = 0
    levels: int = 0
    optimiser: str = "adam"
    weight_decay: float = 0.0
    start: str = ""
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    rate_factor: float = 0.1
    warm_up: int = 0
    momentum: float = 0.0
    nesterov: bool = False
    weight_decays: dict[str, float] = field(default_factory=dict)
    clip_norm: float = 0.0
    held_out: tuple[str, ...] = ()
    model_parameters: dict[str, Any] = field(default_factory=dict)
    objective_parameters: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of all that determines the weights."""
        kept = {k: v for k, v in vars(self).items() if k not in ("card", "held_out", "storage")}
        for name, default in _OMITTED_IF_DEFAULT.items():
            if kept[name] == default:  # as if it had never been invented
                del kept[name]
        return digest_value(kept)

    def with_seed(self, seed: int) -> "Recipe":
        """Return the recipe with another seed, whose model is called ``NAME-seedN``."""
        return (
            self if seed == self.seed else replace(self, seed=seed, name=f"{self.name}-seed{seed}")
        )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Args:
        path: a ``recipe.toml``.

    Raises:
        BadCatalogue: if it is not TOML, or a key is missing, unknown or of the wrong type.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = f"cannot read the recipe {path}"
        raise BadCatalogue(problem, expected="a TOML file", remedy=str(error)) from error
    known = {f.name: f for f in fields(Recipe) if f.name != "name"}
    if unknown := sorted(value.keys() - known.keys()):
        _raise_bad_recipe(path, f"unknown key {unknown[0]}", ", ".join(known))
    needed = [name for name in known if name in _TYPES and name not in _OPTIONAL]
    if missing := [name for name in needed if name not in value]:
        _raise_bad_recipe(path, f"missing key {missing[0]}", ", ".join(needed))
    for name, entry in value.items():
        if type(entry) is not _TYPES[name]:
            _raise_bad_recipe(path, f"{name} = {entry!r}", str(_TYPES[name]))
    for name in ("held_out", "milestones"):
        value[name] = tuple(value.get(name, ()))
    return _validate(Recipe(name=path.resolve().parent.name, **value), path)


_TYPES: dict[str, Any] = {
    "model": str,
    "objective": str,
    "dataset": str,
    "first": int,
    "last": int,
    "epochs": int,
    "batch_size": int,
    "learning_rate": float,
    "seed": int,
    "storage": str,
    "precision": str,
    "flip": bool,
    "shift": int,
    "levels": int,
    "optimiser": str,
    "weight_decay": float,
    "start": str,
    "schedule": str,
    "milestones": list,
    "rate_factor": float,
    "warm_up": int,
    "momentum": float,
    "nesterov": bool,
    "weight_decays": dict,
    "clip_norm": float,
    "held_out": list,
    "model_parameters": dict,
    "objective_parameters": dict,
    "card": dict,
}
_OMITTED_IF_DEFAULT: dict[str, object] = {
    "precision": "float32",
    "flip": False,
    "shift": 0,
    "levels": 0,
    "optimiser": "adam",
    "weight_decay": 0.0,
    "start": "",
    "schedule": "cosine",
    "milestones": (),
    "rate_factor": 0.1,
    "warm_up": 0,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decays": {},
    "clip_norm": 0.0,
}
"""Keys that a digest leaves out while they have their defaults, because recipes existed before them."""

_OPTIONAL = tuple(
    f.name for f in fields(Recipe) if f.default is not MISSING or f.default_factory is not MISSING
)


def _validate(recipe: Recipe, path: Path) -> Recipe:
    if recipe.epochs < 1 or recipe.learning_rate <= 0 or recipe.shift < 0:
        _raise_bad_recipe(path, "epochs, learning_rate or shift", "positive numbers")
    if recipe.weight_decay < 0 or recipe.levels < 0 or recipe.levels == 1:
        _raise_bad_recipe(path, "weight_decay or levels", "weight_decay >= 0, levels 0 or >= 2")
    if (
        not 0 <= recipe.first < recipe.last
        or not 0 < recipe.batch_size <= recipe.last - recipe.first
    ):
        _raise_bad_recipe(
            path, "first, last or batch_size", "0 <= first < last, a batch inside that range"
        )
    for name, known in (
        ("storage", ("float16", "float32")),
        ("precision", ("float32", "bfloat16")),
        ("optimiser", ("adam", "adamax", "sgd")),
        ("schedule", ("cosine", "constant", "step")),
    ):
        if (value := getattr(recipe, name)) not in known:
            _raise_bad_recipe(path, f"{name} = {value!r}", " or ".join(known))
    _check_schedule(recipe, path)
    _check_optimiser(recipe, path)
    return recipe


def _check_schedule(recipe: Recipe, path: Path) -> None:
    milestones = recipe.milestones
    if (recipe.schedule == "step") != bool(milestones):
        _raise_bad_recipe(
            path,
            f"schedule {recipe.schedule}, milestones {milestones}",
            "milestones with step alone",
        )
    if not all(type(each) is int and 0 < each < recipe.epochs for each in milestones) or list(
        milestones
    ) != sorted(set(milestones)):
        _raise_bad_recipe(
            path, f"milestones {milestones}", "whole epochs inside the training, increasing"
        )
    if not 0 < recipe.rate_factor < 1 or not 0 <= recipe.warm_up <= recipe.epochs:
        _raise_bad_recipe(
            path, "rate_factor or warm_up", "rate_factor in (0, 1), warm_up in 0 … epochs"
        )


def _check_optimiser(recipe: Recipe, path: Path) -> None:
    if recipe.optimiser != "sgd" and (recipe.momentum or recipe.nesterov):
        _raise_bad_recipe(path, f"momentum with {recipe.optimiser}", 'optimiser = "sgd"')
    if not 0 <= recipe.momentum < 1 or (recipe.nesterov and not recipe.momentum):
        _raise_bad_recipe(
            path, f"momentum = {recipe.momentum!r}", "0 <= momentum < 1, > 0 with nesterov"
        )
    decays = recipe.weight_decays
    if not all(type(each) is float and each >= 0 for each in decays.values()):
        _raise_bad_recipe(path, f"weight_decays = {decays!r}", "numbers >= 0 with a decimal point")
    if recipe.clip_norm < 0:
        _raise_bad_recipe(path, f"clip_norm = {recipe.clip_norm!r}", "clip_norm >= 0")


def _raise_bad_recipe(path: Path, problem: str, expected: str) -> None:
    raise BadCatalogue(f"{path}: {problem}", expected=expected)
