"""Training recipes: the settings that determine a trained model, read from ``recipe.toml``."""

from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from robustbench_inv.catalogue.cards import check_table, read_toml
from robustbench_inv.catalogue.locate import catalogue_roots, find
from robustbench_inv.errors import BadCatalogue, UnknownName, suggest
from robustbench_inv.identity import digest_value

__all__ = ["ARCHITECTURES", "OBJECTIVES", "Recipe", "find_recipe", "read_recipe"]

ARCHITECTURES = {
    "firevnet": "robustbench_inv.models.firevnet:convolutional",
    "firevnet-fully-connected": "robustbench_inv.models.firevnet:fully_connected",
    "firevnet-one-coupling": "robustbench_inv.models.firevnet:one_coupling",
    "gbz": "robustbench_inv.models.deep_bayes:GBZ",
    "glow": "robustbench_inv.models.conditional_flow:glow",
    "guess-first-cnn": "robustbench_inv.models.plain_networks:GuessFirstCNN",
    "iresnet": "robustbench_inv.models.iresnet:classifier",
    "iresnet-bijective": "robustbench_inv.models.iresnet:bijective",
    "iresnet-flow": "robustbench_inv.models.iresnet:residual_flow",
    "isotope-net": "robustbench_inv.models.spectra:IsotopeNet",
    "label-hypothesis": "robustbench_inv.models.label_hypothesis:LabelHypothesisNet",
    "lenet5": "robustbench_inv.models.plain_networks:LeNet5",
    "mlp": "robustbench_inv.models.plain_networks:MLP",
    "prototypes": "robustbench_inv.models.plain_networks:PrototypeClassifier",
    "resnet": "robustbench_inv.models.resnet:ResNetClassifier",
    "residual-net-1d": "robustbench_inv.models.spectra:ResidualNet",
    "sdim": "robustbench_inv.models.sdim:SDIM",
    "strided-cnn": "robustbench_inv.models.plain_networks:StridedCNN",
    "stroke-cnn": "robustbench_inv.models.plain_networks:StrokeCNN",
    "vib": "robustbench_inv.models.vib:BottleneckCNN",
}
"""Architecture names and their code, as ``module:factory``. A name never changes: recipe digests contain it."""

OBJECTIVES = {
    "adversarial": "robustbench_inv.training.objectives:AdversarialCrossEntropy",
    "augmented": "robustbench_inv.training.objectives:AugmentedCrossEntropy",
    "class-likelihood": "robustbench_inv.training.objectives:ClassLikelihood",
    "convex-conjugate": "robustbench_inv.training.objectives:ConvexConjugate",
    "cross-entropy": "robustbench_inv.training.objectives:CrossEntropy",
    "donsker-varadhan": "robustbench_inv.training.objectives:DonskerVaradhan",
    "elbo": "robustbench_inv.training.objectives:EvidenceLowerBound",
    "energy-based": "robustbench_inv.training.objectives:EnergyBased",
    "independence": "robustbench_inv.training.independence:IndependenceCrossEntropy",
    "infomax": "robustbench_inv.training.infomax:SupervisedInfoMax",
    "information-bottleneck": "robustbench_inv.training.objectives:InformationBottleneck",
    "information-elimination": "robustbench_inv.training.information_elimination:InformationElimination",
}
"""Objective names and their code, as ``module:Class``. A name never changes: recipe digests contain it."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Args:
        name: folder name of the recipe, which is also the model's name.
        model: a name of ARCHITECTURES, or ``module:factory`` for your own code.
        objective: a name of OBJECTIVES, or ``module:Class`` for your own code.
        dataset: reference of the training data.
        first: id of the first training sample.
        last: end of the id range (exclusive).
        epochs: passes over the data.
        batch_size: samples per batch; the last incomplete batch is dropped.
        learning_rate: initial learning rate of the schedule.
        seed: seed of initialisation, batch order and noise.
        storage: dtype of the stored weights: float16 or float32.
        precision: dtype of matrix products in training: float32 or bfloat16; weights stay in float32.
        flip: mirror a random half of the images left to right, another half in each epoch.
        shift: largest random translation in pixels, drawn again in each epoch; borders are filled with zeros.
        levels: number of grey levels in [0, 1] for dequantisation: uniform noise as wide as the distance between
            two levels is added in each epoch. 0 disables it.
        optimiser: adam, adamax or sgd.
        weight_decay: l2 penalty on all parameters, added to the gradient.
        start: catalogue model whose weights initialise the network; parameters missing there keep their initial values.
        schedule: cosine (half a cosine from the learning rate to 0), constant or step.
        milestones: epochs after which a step schedule multiplies the learning rate by ``rate_factor``.
        rate_factor: factor of a step schedule, in (0, 1).
        warm_up: epochs of linear learning-rate warm-up.
        momentum: momentum of sgd.
        nesterov: use Nesterov momentum (sgd only).
        weight_decays: weight decay by parameter name, a shell pattern such as ``"*.bias"``. The first matching
            pattern applies; ``weight_decay`` applies where none matches.
        clip_norm: largest l2 norm of the whole gradient; a larger gradient is scaled down. 0 disables clipping.
        keep: ``last`` exports the weights of the last epoch, ``least-loss`` those after the epoch of least mean training loss.
        held_out: data sets whose accuracy is measured once, after training.
        model_parameters: keyword arguments of the factory.
        objective_parameters: fields of the objective.
        card: entries of the model's card that the recipe does not determine.
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
    storage: Literal["float16", "float32"] = "float16"
    precision: Literal["float32", "bfloat16"] = "float32"
    flip: bool = False
    shift: int = 0
    levels: int = 0
    optimiser: Literal["adam", "adamax", "sgd"] = "adam"
    weight_decay: float = 0.0
    start: str = ""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    rate_factor: float = 0.1
    warm_up: int = 0
    momentum: float = 0.0
    nesterov: bool = False
    weight_decays: dict[str, float] = field(default_factory=dict)
    clip_norm: float = 0.0
    keep: Literal["last", "least-loss"] = "last"
    held_out: tuple[str, ...] = ()
    model_parameters: dict[str, Any] = field(default_factory=dict)
    objective_parameters: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of all settings that determine the weights.

        It contains names of ARCHITECTURES and OBJECTIVES, not paths of code, and no key that has its default.
        """
        kept = {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) != _default(f) or f.name in _ALWAYS_DIGESTED
        }
        for name in _NEVER_DIGESTED:
            kept.pop(name, None)
        kept["model"] = _name_of(self.model, ARCHITECTURES)
        kept["objective"] = _name_of(self.objective, OBJECTIVES)
        return digest_value(kept)

    @property
    def model_path(self) -> str:
        """Code of the architecture, ``module:factory``."""
        return ARCHITECTURES.get(self.model, self.model)

    @property
    def objective_path(self) -> str:
        """Code of the objective, ``module:Class``."""
        return OBJECTIVES.get(self.objective, self.objective)

    def with_seed(self, seed: int) -> "Recipe":
        """Return the recipe with another seed, whose model is called ``NAME-seedN``."""
        return (
            self if seed == self.seed else replace(self, seed=seed, name=f"{self.name}-seed{seed}")
        )


def find_recipe(source: str) -> Path:
    """Return the recipe file of a catalogue model, of a folder below its models, or the file named by ``source``.

    Raises:
        UnknownName: if neither exists.
        BadCatalogue: if the model has no recipe, because it needs no training.
    """
    if source.endswith(".toml") or Path(source).is_file():
        return Path(source)
    if not {".", ".."} & set(source.split("/")):
        for root in catalogue_roots():
            if (path := root / "models" / source / "recipe.toml").is_file():
                return path
    if "/" in source or source in (".", ".."):
        raise UnknownName("no such recipe", got=source, expected="a model's name, or a .toml file")
    path = find("models", source).parent / "recipe.toml"
    if not path.is_file():
        raise BadCatalogue(f"{source} has no recipe", expected="a trained model")
    return path


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Args:
        path: a ``recipe.toml``.

    Raises:
        BadCatalogue: if the file is not TOML, or a key is missing, unknown, of the wrong type or out of range.
    """
    values = {**read_toml(path), "name": path.resolve().parent.name}
    return _validate(Recipe(**check_table(Recipe, values, path)), path)


_NEVER_DIGESTED = ("card", "held_out", "storage")
_ALWAYS_DIGESTED = ("model_parameters", "objective_parameters")
"""Keys that recipes had from the start; digests leave out the defaults of keys that were added later."""


def _name_of(reference: str, known: dict[str, str]) -> str:
    """Return the stable name of an architecture or objective; a path of other code is returned unchanged."""
    return next((name for name, path in known.items() if path == reference), reference)


def _default(entry: Field[Any]) -> object:
    factory = entry.default_factory
    return entry.default if factory is MISSING else factory()


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
    for name, table in (("model", ARCHITECTURES), ("objective", OBJECTIVES)):
        value = getattr(recipe, name)
        if ":" not in value and value not in table:
            expected = suggest(value, table) or "a known name"
            _raise_bad_recipe(
                path, f"unknown {name} {value!r}", f"module:Name, or a name; {expected}"
            )
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
    inside = all(0 < epoch < recipe.epochs for epoch in milestones)
    if not inside or list(milestones) != sorted(set(milestones)):
        _raise_bad_recipe(path, f"milestones {milestones}", "increasing epochs inside the training")
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
