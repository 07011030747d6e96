"""Loads models by name: a published model with its weights, or a user's own network, with an optional reject option."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_inv.arguments import check_text
from robustbench_inv.catalogue.cards import ModelCard, read_model, to_json
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.fields import check_signature
from robustbench_inv.catalogue.fingerprint import content, digest_tensors, digest_weights, plain
from robustbench_inv.catalogue.locate import find, shipped_root
from robustbench_inv.catalogue.references import (
    Reference,
    Scalar,
    import_object,
    parse_reference,
)
from robustbench_inv.catalogue.user_models import UserModel, finder_of, from_object
from robustbench_inv.errors import BadCatalogue, BadModel, BadParameter, CapabilityMismatch
from robustbench_inv.foreign import foreign_call
from robustbench_inv.identity import digest_file, digest_value

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustbench_inv.data.protocol import Dataset
    from robustbench_inv.models.outputs import SampleInputs
    from robustbench_inv.models.protocol import Classifier
    from robustbench_inv.tensors import Output

__all__ = [
    "THRESHOLDS_FILE",
    "LoadedModel",
    "Rejection",
    "add_rejection",
    "calibration_digest",
    "declared_bounds",
    "load_model",
    "split_rejection",
]


THRESHOLDS_FILE = "thresholds.safetensors"
"""Name of the file in a model's folder."""

RUN_TIME_PARAMETERS = ("dtype", "noise", "draws")
"""Parameters of a model that do not invalidate its rejection thresholds."""


@dataclass(frozen=True)
class Rejection:
    """The reject option that a user requests.

    Args:
        score: one of ``models.rejection.SCORES``.
        percentile: share of correctly classified training inputs that each class rejects, in per cent.
        thresholds: a file of ``invbench calibrate``; empty for the one in the model's folder.
    """

    score: str = "likelihood"
    percentile: float = 1.0
    thresholds: str = ""


def split_rejection(
    parameters: Mapping[str, Scalar],
) -> tuple[Rejection | None, dict[str, Scalar]]:
    """Return the reject option among parameters, None without one, and the other parameters.

    Raises:
        BadParameter: for a percentile that is not a number, or a score or file that is not a string.

    Example:
        >>> split_rejection({"reject": "margin", "width": 3})
        (Rejection(score='margin', percentile=1.0, thresholds=''), {'width': 3})
    """
    names = {"reject": "score", "percentile": "percentile", "thresholds": "thresholds"}
    given = {names[key]: value for key, value in parameters.items() if key in names}
    rest = {key: value for key, value in parameters.items() if key not in names}
    if not given:
        return None, rest
    percentile = given.get("percentile", 1.0)
    if isinstance(percentile, bool | str):
        raise BadParameter("unusable percentile", got=percentile, expected="a number, 0 to 20")
    words = {key: value for key, value in given.items() if key != "percentile"}
    if wrong := [value for value in words.values() if not isinstance(value, str)]:
        raise BadParameter("unusable rejection", got=wrong[0], expected="reject=SCORE")
    return Rejection(**words, percentile=float(percentile)), rest  # type: ignore[arg-type]


def add_rejection(loaded: "LoadedModel", wanted: Rejection, folder: Path | None) -> "LoadedModel":
    """Return a loaded model with a reject option.

    Args:
        loaded: the model.
        wanted: score, percentile and file.
        folder: folder of the model in the catalogue, None for a user's own.

    Raises:
        BadModel: if there are no thresholds, or they were fitted to another model.
        BadParameter: for a score or percentile without thresholds.
    """
    from robustbench_inv.models.reject_option import ScoreQuantiles, reject

    path = _thresholds_file(loaded, wanted, folder)
    fitted = ScoreQuantiles.load(path)
    if fitted.facts.get("model") != calibration_digest(loaded):
        raise BadModel(
            f"{path} was fitted to another model than {loaded.name}",
            got=str(fitted.facts.get("model"))[:12],
            expected=calibration_digest(loaded)[:12],
            remedy=_remedy(loaded),
        )
    limits = fitted.thresholds(wanted.score, wanted.percentile)
    frozen = {"score": wanted.score, "percentile": wanted.percentile, "values": limits.tolist()}
    digest = digest_value(frozen)
    about = {
        **frozen,
        "digest": digest,
        "file_sha256": digest_file(path),
        "fitted": dict(fitted.facts),
    }
    return replace(
        loaded,
        digest=digest_value({"model": loaded.digest, "rejection": digest}),
        card={**loaded.card, "rejection": about},
        classifier=reject(loaded.classifier, wanted.score, limits),
    )


def calibration_digest(loaded: "LoadedModel") -> str:
    """Return the digest of the model that thresholds are fitted to: its identity without RUN_TIME_PARAMETERS."""
    given: Mapping[str, Any] = loaded.identity.get("parameters", {})
    kept = {key: value for key, value in given.items() if key not in RUN_TIME_PARAMETERS}
    return digest_value({**loaded.identity, "parameters": kept})


def _thresholds_file(loaded: "LoadedModel", wanted: Rejection, folder: Path | None) -> Path:
    if wanted.thresholds:
        return Path(wanted.thresholds).expanduser()
    if folder is None or not (folder / THRESHOLDS_FILE).is_file():
        raise BadModel(f"{loaded.name} has no rejection thresholds", remedy=_remedy(loaded))
    return folder / THRESHOLDS_FILE


def _remedy(loaded: "LoadedModel") -> str:
    return f"fit them: invbench calibrate {loaded.name} --out FILE, and append thresholds=FILE"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to use: called on images, it returns the classifier's ``Output``.

    Args:
        name: as the user wrote it, parameters included.
        digest: SHA-256 of everything that its outputs depend on: card, parameters, weights and, for a model that is
            fitted to a data set, the data.
        card: its entry in the catalogue, with all parameters; plain values.
        classifier: the model.
        weights_digest: SHA-256 of its weights, None for a model without weights.
        identity: the plain values that the digest is computed from, but for rejection.

    ``sealed`` is the digest of all its tensors when it was loaded; ``inspections`` keeps what ``evaluation.loading.inspect_model`` returned, by digest of the data set.
    """

    name: str
    digest: str
    card: dict[str, Any]
    classifier: "Classifier"
    weights_digest: str | None
    identity: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sealed: str = field(default="", compare=False, repr=False)
    inspections: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)

    @property
    def is_foreign(self) -> bool:
        """Is its code the user's, or that of a plugin? Its identity then contains the code or the object."""
        return bool({"code", "content"} & self.identity.keys())

    def __call__(self, images: "Tensor") -> "Output":
        """Return the classifier's output for (n, …) images inside its bounds."""
        return self.classifier(images)


def load_model(
    source: "str | nn.Module | Classifier",
    *,
    dataset: "str | Dataset | None" = None,
    device: str = "cpu",
    **parameters: Scalar,
) -> LoadedModel:
    """Return a model that is ready to use.

    Args:
        source: a catalogue name, ``module:factory`` or ``file.py:factory``, each with optional
            ``:key=value,…``; or a model: an ``nn.Module`` that declares ``bounds``, or a ``Classifier``.
        dataset: data set of a model whose card has ``fits_dataset``; None for the card's own.
        device: where it computes, as torch names it.
        parameters: override those of the card or of the reference; ``dtype`` applies to every network, and
            ``reject``, ``percentile`` and ``thresholds`` to every model (see ``Rejection``).

    Raises:
        UnknownName: for an unknown name.
        BadParameter: for an unknown parameter, or a missing device.
        BadModel: if its weights are damaged, or it declares no bounds.
        ForeignCodeError: if its code tries to end the program, or exceeds the time limit.
    """
    what = source if isinstance(source, str) else type(source).__name__
    with foreign_call(what), _stated():
        loaded = _load(source, dataset, device, parameters)
        return replace(loaded, sealed=digest_tensors(loaded.classifier))


def declared_bounds(source: object) -> tuple[float, float] | None:
    """Return the bounds that a model declares, None if it declares none.

    Args:
        source: as in ``load_model``, or what it returned. A named model without a card is built for its bounds.

    Raises:
        UnknownName, BadParameter, BadModel: as ``load_model`` does.
    """
    from robustbench_inv.models.wrapping import read_bounds

    if not isinstance(source, str):
        model = source.classifier if isinstance(source, LoadedModel) else source
        return read_bounds(getattr(model, "bounds", None))
    reference = parse_reference(check_text(source, "model"))
    _, rest = split_rejection(reference.parameters)
    if not (find_user_model := finder_of(reference.name)):
        return read_bounds(read_model(find("models", reference.name)).bounds)
    with foreign_call(source), _stated():
        found = find_user_model(Reference(reference.name, rest))
        return read_bounds(found.bounds or getattr(found.model, "bounds", None))


@contextmanager
def _stated() -> Iterator[None]:
    """State torch's settings and seed the global generators: a random network is the same in every process."""
    from robustbench_inv.randomness import seeded_generators
    from robustbench_inv.torch_state import stated_torch

    with stated_torch(), seeded_generators(0, []):
        yield


def _load(
    source: "str | nn.Module | Classifier",
    dataset: "str | Dataset | None",
    device: str,
    parameters: Mapping[str, Scalar],
) -> LoadedModel:
    if not isinstance(source, str):
        if _is_value(source):
            raise BadModel("unusable model", got=source, expected="a name or a model")
        wanted, rest = split_rejection(parameters)
        loaded = _wrapped(from_object(source, rest), dataset)
        return _with_rejection_on_device(loaded, wanted, None, device)
    reference = parse_reference(check_text(source, "model"))
    reference = Reference(reference.name, {**reference.parameters, **parameters})
    wanted, rest = split_rejection(reference.parameters)
    plain_reference = Reference(reference.name, rest)
    if find_user_model := finder_of(reference.name):
        loaded, folder = _wrapped(find_user_model(plain_reference), dataset), None
    else:
        card = read_model(find("models", reference.name))
        loaded, folder = _from_card(card, plain_reference, dataset), Path(card.folder)
    finished = _with_rejection_on_device(loaded, wanted, folder, device)
    return _renamed(finished, str(reference)) if wanted else finished


def _with_rejection_on_device(
    loaded: LoadedModel, wanted: Rejection | None, folder: Path | None, device: str
) -> LoadedModel:
    """Return a model on its device, with a reject option if one is requested."""
    return _on_device(add_rejection(loaded, wanted, folder) if wanted else loaded, device)


def _renamed(loaded: LoadedModel, name: str) -> LoadedModel:
    return replace(loaded, name=name, card={**loaded.card, "name": name})


def _from_card(
    card: ModelCard, reference: Reference, dataset: "str | Dataset | None"
) -> LoadedModel:
    from robustbench_inv.models.wrapping import build_model

    data = _fitting_dataset(card, dataset) if card.fits_dataset else None
    folder = Path(card.folder)
    factory = import_object(card.implementation, folder)
    if not callable(factory):
        got = type(factory).__name__
        raise BadCatalogue(f"{card.implementation} is no factory", got=got, expected="a function")
    given = {**card.parameters, **reference.parameters}
    own = {key: value for key, value in given.items() if key not in RUN_TIME_PARAMETERS}
    checked = partial(factory, data) if card.fits_dataset else factory
    check_signature(checked, own, str(reference))
    classifier = build_model(factory, card, folder, reference.parameters, data)
    if not card.fits_dataset and not reference.parameters:
        _check_card(card, classifier)
    about = {**to_json(card), "name": str(reference)}
    about["parameters"] = {**card.parameters, **reference.parameters}
    identity = _card_identity(card, about["parameters"], classifier)
    identity["data"] = data.digest if data else None
    weights = card.weights_sha256 or digest_weights(classifier)
    digest = digest_value(identity)
    return LoadedModel(str(reference), digest, plain(about), classifier, weights, identity)


def _check_card(card: ModelCard, classifier: "Classifier") -> None:
    """Refuse a card that contradicts its network: results would quote it, and be those of the network."""
    pairs: dict[str, tuple[object, object]] = {
        "num_classes": (card.num_classes, classifier.num_classes),
        "bounds": (tuple(card.bounds), tuple(classifier.bounds)),
    }
    for name, (stated, own) in pairs.items():
        if stated != own:
            problem = f"the card of {card.name} contradicts its network in {name}"
            raise BadCatalogue(problem, got=stated, expected=str(own))


def _fitting_dataset(card: ModelCard, dataset: "str | Dataset | None") -> "Dataset":
    """Return the data set that a model is built for: the evaluated one, of the kind that its card names."""
    data = load_dataset(card.dataset, code=False) if dataset is None else load_dataset(dataset)
    kind = card.dataset.partition(":")[0]
    if data.name.partition(":")[0] != kind:
        raise CapabilityMismatch(
            f"{card.name} is built for the data that it classifies",
            got=data.name,
            expected=f"{kind}, with any parameters",
        )
    return data


def _card_identity(
    card: ModelCard, parameters: Mapping[str, Any], classifier: "Classifier"
) -> dict[str, Any]:
    """Return the identity of a model of the catalogue: name and revision; for a plugin's model, its code as well."""
    known = {"model": card.name, "revision": card.revision, "parameters": plain(parameters)}
    known |= {"num_classes": card.num_classes, "bounds": list(card.bounds)}
    known |= {"weights": card.weights_sha256}
    if Path(card.folder).resolve().is_relative_to(shipped_root().resolve()):
        return known
    known["code"] = content(import_object(card.implementation, Path(card.folder)))
    if card.weights_sha256 is None:  # its weights may differ each time
        known["content"] = content(classifier)
    return known


def _wrapped(given: UserModel, dataset: "str | Dataset | None") -> LoadedModel:
    """Return a user's model as a classifier, with the digest of all that it contains."""
    from robustbench_inv.models.wrapping import initialise_lazy, wrap_module

    data, name, model = dataset or None, given.name, given.model
    initialise_lazy(model, name, lambda: load_dataset(data).batch([0])[0] if data else None)
    classifier = wrap_module(model, name, given.bounds, lambda: _probe(data))
    told = {"num_classes": classifier.num_classes, "bounds": list(classifier.bounds)}
    parameters = given.about["parameters"]
    identity = {**given.code, "parameters": parameters, **told, "content": content(model)}
    card = {"name": name, "summary": "", "paper": "", **given.about, **told}
    digest, weights = digest_value(identity), digest_weights(model)
    return LoadedModel(name, digest, card, classifier, weights, identity)


def _probe(dataset: "str | Dataset | None") -> "SampleInputs | None":
    """Return a hundred inputs of a data set, spread over it."""
    from robustbench_inv.models.outputs import SampleInputs

    if not dataset:
        return None
    data = load_dataset(dataset)
    images, labels = data.batch(list(range(0, len(data), max(1, len(data) // 100)))[:100])
    return SampleInputs(images, labels, data.name, data.bounds)


def _is_value(source: object) -> bool:
    """Return whether a source is a plain value, which can be neither the name of a model nor a model."""
    return isinstance(source, bytes | int | float | list | tuple | dict | None)


def _on_device(loaded: LoadedModel, device: str) -> LoadedModel:
    from torch import nn

    from robustbench_inv.models.wrapping import move_to_device
    from robustbench_inv.tensors import check_device

    check_device(device)
    if device == "cpu" or not isinstance(loaded.classifier, nn.Module):
        return loaded
    moved: Any = move_to_device(loaded.classifier, device)
    return replace(loaded, classifier=moved)
