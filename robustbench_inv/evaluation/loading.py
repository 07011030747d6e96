"""Loads what an evaluation needs: models and data sets once, a first look at each model, the samples of each block."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustbench_inv.arguments import check_text
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.catalogue.attacks import LoadedAttack, load_attack
from robustbench_inv.catalogue.cards import SuiteCard, read_suite
from robustbench_inv.catalogue.datasets import load_dataset, read_arrays
from robustbench_inv.catalogue.fingerprint import digest_tensors
from robustbench_inv.catalogue.locate import find
from robustbench_inv.catalogue.models import LoadedModel, declared_bounds, load_model
from robustbench_inv.data.protocol import AdaptsClasses, Dataset, HasCounterparts
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import (
    BadModel,
    BadParameter,
    CapabilityMismatch,
    InvbenchError,
    describe_error,
)
from robustbench_inv.evaluation.oracles import Oracle, load_oracle
from robustbench_inv.evaluation.panel import AttackedModel
from robustbench_inv.foreign import foreign_call
from robustbench_inv.models.protocol import device_of
from robustbench_inv.threat.budgets import inside_box
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "POOL_SIZE",
    "LoadCache",
    "Loader",
    "ModelInspection",
    "NamedModel",
    "as_list",
    "as_models",
    "as_oracle",
    "inspect_model",
    "load_arrays",
    "load_suite",
]

POOL_SIZE = 1000
"""Largest number of other inputs: a balanced draw of 100 of each of ten classes, 3 MB of digits."""


T = TypeVar("T")


@dataclass(frozen=True)
class NamedModel:
    """A model, by name or itself, and the label that the user chose for it."""

    label: str
    source: Any

    @classmethod
    def parse(cls, text: str) -> "NamedModel | str":
        """Return the model of ``LABEL=REFERENCE``, or the reference itself without a label.

        The first ``=`` ends a label if no ``:`` is before it, since parameters follow a colon. The path of an
        existing file has no label.

        Raises:
            BadParameter: for an empty label.

        Example:
            >>> NamedModel.parse("A=mnist-cnn:dtype=float64")
            NamedModel(label='A', source='mnist-cnn:dtype=float64')
            >>> NamedModel.parse("mnist-cnn:dtype=float64")
            'mnist-cnn:dtype=float64'
        """
        label, sign, reference = text.partition("=")
        if not sign or ":" in label or Path(text.rpartition(":")[0]).is_file():
            return text
        found: list[NamedModel] = as_models({label: reference})
        return found[0]


def as_list(value: Any) -> list[Any]:  # noqa: ANN401 - names or objects of any kind
    """Return one thing or several as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def as_models(value: Any) -> list[Any]:  # noqa: ANN401 - names or objects of any kind
    """Return one model or several as a list; of a mapping from labels to models, each with its label.

    Raises:
        BadParameter: for a label that is empty or no text.
    """
    if not isinstance(value, Mapping):
        return as_list(value)
    for label in value:
        if not isinstance(label, str) or not label.strip():
            raise BadParameter("unusable label of a model", got=label, expected="a text")
    return [NamedModel(label.strip(), source) for label, source in value.items()]


def load_arrays(x: object, y: object, model: object = None) -> Dataset:
    """Return your arrays as a data set for a model.

    Args:
        x: (N, …) images, signals or rows of a table.
        y: (N,) labels.
        model: a model, or several, whose bounds the data set takes; (0, 1) if they declare none.

    Raises:
        BadParameter: if one of the arrays is missing, or the models have different bounds.
        BadData: for arrays that are no data set.
    """
    if x is None or y is None:
        missing, given = ("labels y", "x") if y is None else ("inputs x", "y")
        raise BadParameter(f"no {missing}", got=f"{given} alone", expected="both x and y")
    return read_arrays(x, y, _common_bounds(model))


def _common_bounds(model: object) -> tuple[float, float] | None:
    """Return the bounds of a model, or of several; None if they declare none."""
    several = list(model.values()) if isinstance(model, Mapping) else as_list(model)
    found = {bounds: each for each in several if (bounds := declared_bounds(each))}
    if len(found) > 1:
        shown = (
            f"[{low:g}, {high:g}] of {each if isinstance(each, str) else type(each).__name__}"
            for (low, high), each in found.items()
        )
        raise BadParameter(
            "x belongs to models of different bounds",
            got=", ".join(shown),
            expected="one range",
            remedy="evaluate the models in one command each, or let all of them take one range",
        )
    return next(iter(found), None)


def as_oracle(value: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401 - a text, or names and objects
    """Return an oracle as a threat names it, and its members that are objects, by their names in it.

    Args:
        value: an oracle as in a threat; models that vote, or a mapping from labels to these; None for the default.

    Raises:
        BadParameter: for a text or a label that names nothing, or a model that is neither name nor object.

    Example:
        >>> as_oracle({"small": small, "large": "mnist-cnn"})  # doctest: +SKIP
        ('panel:small,mnist-cnn', {'small': Sequential(...)})
    """
    if value is None:
        return "", {}
    if isinstance(value, str):
        return check_text(value, "oracle"), {}
    members: dict[str, Any] = {}
    names = list[str]()
    for number, given in enumerate(as_models(value), 1):
        known = isinstance(given, NamedModel)
        source, label = (given.source, given.label) if known else (given, f"member-{number}")
        if isinstance(source, str):
            names.append(source)
            continue
        if not re.fullmatch(r"[\w.-]+", label) or label in members:
            expected = "letters, digits, _, . and -"
            raise BadParameter("unusable label of a panel's member", got=label, expected=expected)
        members[label] = source
        names.append(label)
    return f"panel:{','.join(names)}", members


@dataclass(frozen=True)
class LoadCache:
    """Models, attacks, data sets and oracles, each loaded once.

    Args:
        device: where the models compute.
        data_root: folder of data files.

    ``shared`` keeps values that the jobs of an evaluation compute once.
    """

    device: str = "cpu"
    data_root: str | None = None
    shared: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, repr=False)
    _loaded: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, repr=False)

    def attack(self, source: Any) -> LoadedAttack:  # noqa: ANN401
        """Return an attack, given its name, the attack itself, or a loaded one."""
        if isinstance(source, LoadedAttack):
            return source
        return self._once(source, (), lambda: load_attack(source))

    def dataset(self, source: Any) -> Dataset:  # noqa: ANN401
        """Return a data set, given its name or the data set itself."""
        root = Path(self.data_root) if self.data_root else None
        return self._once(source, ("data",), lambda: load_dataset(source, data_root=root))

    def dataset_for(self, model: LoadedModel, source: Any) -> Dataset:  # noqa: ANN401
        """Return a data set as ``dataset`` does; one that may lack classes of the model, with all of them."""
        found = self.dataset(source)
        if not isinstance(found, AdaptsClasses):
            return found
        return found.with_classes(model.classifier.num_classes)

    def model(self, source: Any, dataset: Dataset | None) -> LoadedModel:  # noqa: ANN401
        """Return a model, given its name, the model itself, or a loaded one."""
        if isinstance(source, LoadedModel):
            return _checked_tensors(source)
        key = ("model", dataset and dataset.digest)
        return self._once(
            source, key, lambda: load_model(source, dataset=dataset, device=self.device)
        )

    def substitute(self, threat: ThreatModel, dataset: Dataset) -> LoadedModel | None:
        """Return the substitute that a threat names, None if it names none."""
        return self.model(threat.substitute, dataset) if threat.substitute else None

    def oracle(
        self,
        threat: ThreatModel,
        dataset: Dataset,
        model: LoadedModel,
        panel: Mapping[str, Any],
    ) -> Oracle | None:
        """Return the oracle that a threat names for an attacked model, None if it names none.

        Args:
            threat: the threat.
            dataset: the data that is evaluated.
            model: the attacked model.
            panel: members that are objects, by their names in the threat.
        """
        if threat.oracle is None:
            return None
        named, substitute = threat.oracle, self.substitute(threat, dataset)
        attacked = [AttackedModel.of(each) for each in (model, substitute) if each]
        members = (id(each) for each in panel.values())
        key = ("oracle", dataset.digest, *(each.digest for each in attacked), *members)

        def load(name: str) -> LoadedModel:
            return self.model(panel.get(name, name), dataset)

        return self._once(named, key, lambda: load_oracle(named, dataset, attacked, load))

    def _once(self, source: object, key: tuple[object, ...], load: Callable[[], T]) -> T:
        """Return what ``load`` returned at its first call; objects are known by identity, and kept."""
        key = (source if isinstance(source, str) else id(source), *key)
        if key not in self._loaded:
            self._loaded[key] = (load(), source)
        found: T = self._loaded[key][0]
        return found


def _checked_tensors(model: LoadedModel) -> LoadedModel:
    """Return a loaded model whose tensors are those that it was loaded with.

    Raises:
        BadModel: if the user has changed them: its digest would file the results under the earlier model.
    """
    if model.sealed and digest_tensors(model.classifier) != model.sealed:
        raise BadModel(
            f"{model.name} was changed after it was loaded",
            expected="the weights and buffers that load_model returned",
            remedy="evaluate the changed network itself (its classifier), or load the model again",
        )
    return model


@dataclass(frozen=True)
class ModelInspection:
    """What one forward pass on the first sample of a data set shows about a model.

    Args:
        rejects: does the model have a reject option?
        problem: why the model cannot be evaluated on the data set; None if it can.
    """

    rejects: bool
    problem: InvbenchError | None


def load_suite(name: str) -> SuiteCard:
    """Return a suite by name; raises as ``find`` and ``read_suite`` do."""
    return read_suite(find("suites", name))


def inspect_model(model: LoadedModel, dataset: Dataset) -> ModelInspection:
    """Query a model on the first sample of a data set, once: later calls return the same inspection."""
    if dataset.digest not in model.inspections:
        model.inspections[dataset.digest] = _inspect(model, dataset)
    inspection: ModelInspection = model.inspections[dataset.digest]
    return inspection


def _inspect(model: LoadedModel, dataset: Dataset) -> ModelInspection:
    images, _ = dataset.batch([0])
    problem: InvbenchError | None = None
    if not inside_box(images, dataset.bounds).all():
        problem = CapabilityMismatch(
            f"{dataset.name} leaves its own bounds (check C17)",
            got=f"[{images.min():g}, {images.max():g}]",
            expected=str(tuple(dataset.bounds)),
        )
    size, errors = len(dataset), []
    for sample in dict.fromkeys((0, size // 2, size - 1)):  # it may fail on a single sample
        try:
            with foreign_call(model.name), torch.no_grad():
                place = device_of(model.classifier), model.classifier.dtype
                accepted = model.classifier(dataset.batch([sample])[0].to(*place)).accepted
        except Exception as error:
            errors.append(error)
        else:
            return ModelInspection(accepted is not None, problem)
    return ModelInspection(rejects=False, problem=problem or _mismatch(model, dataset, errors[0]))


def _mismatch(model: LoadedModel, dataset: Dataset, error: Exception) -> InvbenchError:
    """Return the error of a model that cannot take the samples of a data set."""
    if isinstance(error, BadModel):
        return error
    mismatch = CapabilityMismatch(
        f"{model.name} cannot take an input of {dataset.name}",
        got=f"shape {tuple(dataset.shape)}",
        remedy=describe_error(error) + _channels_last(dataset.shape),
    )
    mismatch.__cause__ = error
    return mismatch


def _channels_last(shape: Sequence[int]) -> str:
    """Return what to type if the channels of images may be their last dimension, which no rule recognises."""
    likely = len(shape) == 3 and shape[2] < min(shape[:2])
    return "; if the channels come last, add layout=nhwc to the data" if likely else ""


@dataclass(frozen=True)
class Loader:
    """Samples of a data set in the dtype and on the device of a model.

    Args:
        dataset: the data that is evaluated.
        device: the model's device.
        dtype: the model's dtype.
        oracle: classifies changed inputs; None if the threat has no oracle.
    """

    dataset: Dataset
    device: torch.device
    dtype: torch.dtype
    oracle: Oracle | None = None

    def batch(self, ids: Sequence[int]) -> Batch:
        """Return some samples, their counterparts where the data set has them, and the pool."""
        rows = torch.tensor(list(ids), dtype=torch.int64)
        images, labels = self._load(rows)
        given = (
            self.dataset.counterparts(rows) if isinstance(self.dataset, HasCounterparts) else None
        )
        return Batch(
            images=images,
            labels=labels,
            ids=rows.to(self.device),
            pool=self.pool,
            counterparts=None if given is None else self._placed(given),
            oracle=self.oracle.classify if self.oracle else None,
        )

    @cached_property
    def pool(self) -> InputPool:
        """Other inputs for attacks, the same for every block; loaded when an attack first uses them."""
        labels = self.dataset.labels
        ids = torch.tensor(select_samples(labels, min(POOL_SIZE, len(labels))), dtype=torch.int64)
        return InputPool(ids.to(self.device), self._load)

    def _load(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.dataset.batch(ids.cpu())
        return self._placed(images), labels.to(self.device)

    def _placed(self, images: Tensor) -> Tensor:
        images = images.to(dtype=self.dtype)
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()  # copied while the GPU computes
        return images.to(self.device, non_blocking=True)
