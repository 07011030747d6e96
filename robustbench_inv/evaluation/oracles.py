"""Oracles: data sets, panels of models and human labels that give the true class of a changed input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_inv.catalogue.datasets import default_oracle
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.catalogue.references import parse_panel
from robustbench_inv.data.protocol import Dataset, LabelOracle
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.evaluation.panel import AttackedModel, load_panel
from robustbench_inv.identity import digest_value
from robustbench_inv.results.human_labels import HumanLabels, read_labels
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.pixels import is_image_shape, pixel_digest, to_pixels
from robustbench_inv.threat.goals import UNKNOWN, Goal, KeepDecision, KeepLogits, Misclassify
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "DatasetOracle",
    "HumanOracle",
    "Oracle",
    "dataset_oracle",
    "describe_oracle",
    "is_label_file",
    "load_oracle",
    "needs_oracle",
    "with_oracle",
]


@runtime_checkable
class Oracle(Protocol):
    """Classifies inputs whose content may have changed.

    ``source`` is the oracle's name in records: ``exact``, ``human``, or a proxy's name. ``digest`` covers everything
    that determines its classes. ``notes`` are warnings for the user, one line each.
    """

    @property
    def source(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def classify(self, images: Tensor, ids: Tensor) -> Tensor:
        """Return the classes (n,) int64 of (n, …) versions of the samples ``ids`` (n,), −1 where unknown."""
        ...

    def error(self, ids: Sequence[int]) -> OracleError | None:
        """Return the oracle's own error rate on these samples; None if it cannot be measured."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the oracle as plain values for cell.json."""
        ...


@dataclass(frozen=True)
class DatasetOracle:
    """A data set that computes the true class of any input."""

    dataset: LabelOracle

    notes = ()

    @property
    def source(self) -> str:
        return self.dataset.oracle_source

    @property
    def digest(self) -> str:
        return digest_value(self.describe())

    def classify(self, images: Tensor, ids: Tensor) -> Tensor:
        return self.dataset.classify(images)

    def error(self, ids: Sequence[int]) -> OracleError | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"source": self.source}


@dataclass(frozen=True)
class HumanOracle:
    """Human labels of images.

    Args:
        labels: the labels.
        bounds: bounds of the data set.
        cell: digest of the labelled cell, for labels that name no image; empty without one.
    """

    labels: HumanLabels
    bounds: tuple[float, float]
    cell: str = ""

    source = "human"

    @property
    def digest(self) -> str:
        return self.labels.digest

    @property
    def notes(self) -> tuple[str, ...]:
        disputed, open_ = self.labels.disagreements()
        if not disputed:
            return ()
        count = f"{disputed} image{'' if disputed == 1 else 's'}"
        return (
            f"{self.labels.name}: raters disagree on {count}, {open_} of these without a majority",
        )

    def classify(self, images: Tensor, ids: Tensor) -> Tensor:
        seen = to_pixels(images.detach().cpu().double().numpy(), self.bounds)
        found = [
            self._of(pixel_digest(image), sample)
            for image, sample in zip(seen, ids.tolist(), strict=True)
        ]
        return torch.tensor(found, dtype=torch.int64, device=images.device)

    def error(self, ids: Sequence[int]) -> OracleError | None:
        return self.labels.error()

    def describe(self) -> dict[str, Any]:
        raters = [rater for rater in self.labels.raters if rater]
        return {"source": self.source, "file": self.labels.name, "raters": raters}

    def _of(self, image: str, sample: int) -> int:
        label = self.labels.of_image(image)
        if label is None and self.cell:
            label = self.labels.of_sample(self.cell, sample)
        return UNKNOWN if label is None else label


def describe_oracle(name: str, oracle: Oracle) -> dict[str, Any]:
    """Return the oracle that a threat names as plain values, as cell.json holds it."""
    return {"name": name, "digest": oracle.digest, **oracle.describe()}


def needs_oracle(goal: Goal) -> bool:
    """Return whether a goal depends on the true class of a changed input."""
    keeps = isinstance(goal, KeepDecision | KeepLogits)
    return keeps or (isinstance(goal, Misclassify) and goal.same_class)


def with_oracle(threat: ThreatModel, dataset: Dataset, requested: str) -> ThreatModel:
    """Return a threat with the requested oracle, or the default one of the data set, if it needs one and names none.

    Args:
        threat: the threat.
        dataset: the data that is evaluated.
        requested: the oracle as a threat names it; empty for the default.

    Raises:
        BadParameter: if the threat names another oracle than the requested one.
    """
    if threat.oracle and requested not in ("", threat.oracle):
        problem = "the threat names another oracle than the argument"
        raise BadParameter(problem, got=threat.oracle, expected=requested)
    if threat.oracle or not needs_oracle(threat.goal):
        return threat
    usual = "" if dataset_oracle(dataset) else default_oracle(dataset)
    return replace(threat, oracle=requested or usual or None)


def dataset_oracle(dataset: Dataset) -> Oracle | None:
    """Return a data set as an oracle; None if it cannot classify changed inputs."""
    return DatasetOracle(dataset) if isinstance(dataset, LabelOracle) else None


def is_label_file(text: str) -> bool:
    """Return whether a threat's oracle is a file of human labels."""
    return text.lower().endswith(".csv") and parse_panel(text) is None


def load_oracle(
    text: str,
    dataset: Dataset,
    attacked: Sequence[AttackedModel],
    load: Callable[[str], LoadedModel],
) -> Oracle:
    """Return the oracle that a threat names.

    Args:
        text: ``FILE.csv``; ``panel:MODEL,MODEL,…`` with the user's models; or the name of a panel of the catalogue. A
            panel takes a rule: ``mnist-panel:rule=unanimous``, ``panel:MODEL,MODEL,MODEL,rule=unanimous``.
        dataset: the data that is evaluated.
        attacked: the queried models, which are excluded from the panel. Models of their architecture are excluded from
            a panel of the catalogue; in the user's panel they vote, with a note.
        load: loads a member by its name.

    Raises:
        UnknownName: for a name that is not in the catalogue.
        BadData: for a CSV that cannot be read, or labels that are not classes of the data set.
        BadParameter: for a panel that names a member twice, or has an unknown rule.
        CapabilityMismatch: if fewer than two members remain, or the inputs are not images.
    """
    if is_label_file(text):
        return _load_human_oracle(text, dataset)
    return load_panel(text, dataset, attacked, load)


def _load_human_oracle(text: str, dataset: Dataset) -> HumanOracle:
    if not is_image_shape(tuple(dataset.shape)):
        raise CapabilityMismatch(
            "human labels need images",
            got=f"inputs of shape {tuple(dataset.shape)} of {dataset.name}",
        )
    labels = read_labels(Path(text))
    labels.check_classes(dataset.num_classes)
    if not labels.names_images:
        raise CapabilityMismatch(
            f"{labels.name} does not identify the labelled images",
            expected="a column image, as the labelling page writes it",
            remedy="re-score the labelled run with this file: invbench rescore RUN",
        )
    return HumanOracle(labels, dataset.bounds)
