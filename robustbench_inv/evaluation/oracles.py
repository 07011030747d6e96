"""Oracles: data sets, panels of models and human labels that give the true class of a changed input."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_inv.catalogue.cards import read_oracle
from robustbench_inv.catalogue.locate import find
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.catalogue.references import parse_panel, parse_reference
from robustbench_inv.data.protocol import Dataset, LabelOracle
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.identity import digest_value
from robustbench_inv.models.protocol import classify, device_of
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.human_labels import HumanLabels, read_labels
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.pixels import is_image_shape, pixel_digest, to_pixels
from robustbench_inv.threat.goals import UNKNOWN, Goal, KeepDecision, KeepLogits, Misclassify

__all__ = [
    "AttackedModel",
    "DatasetOracle",
    "HumanOracle",
    "Oracle",
    "PanelOracle",
    "dataset_oracle",
    "describe_oracle",
    "is_label_file",
    "load_oracle",
    "needs_oracle",
]

MIN_MEMBERS = 2
"""Smallest number of members: a single network is not a panel."""

RULES = ("majority", "unanimous")
"""Rules of a panel: the class of more than half of the members, or of all of them."""

PANEL_BATCH_SIZE = 250
"""Clean inputs in a batch that a panel classifies."""


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
class AttackedModel:
    """The attacked model, which must not be a member of the oracle.

    Args:
        name: the model's name, with parameters.
        digest: the model's digest.
        weights: digest of its weights, None for a model without weights.
        implementation: code of its network.
        parameters: those of its network.
    """

    name: str
    digest: str
    weights: str | None
    implementation: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: LoadedModel) -> "AttackedModel":
        """Return the description of a loaded model."""
        return cls.of_card(model.name, model.digest, model.weights_digest, model.card)

    @classmethod
    def of_card(
        cls, name: str, digest: str, weights: str | None, card: Mapping[str, Any]
    ) -> "AttackedModel":
        """Return the description of a model by its card."""
        code, parameters = str(card.get("implementation", "")), card.get("parameters", {})
        return cls(name, digest, weights, code, parameters)

    def is_same(self, member: LoadedModel) -> bool:
        """Is a member the attacked model, by its digest or its weights?"""
        same_weights = self.weights is not None and self.weights == member.weights_digest
        return self.digest == member.digest or same_weights

    def exclusion_reason(self, member: LoadedModel) -> str:
        """Return why a member is excluded; empty if it is not."""
        if self.is_same(member):
            return "it is the attacked model"
        if self.implementation == member.card.get("implementation"):
            return f"{self.name} has the same architecture"
        return ""


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
class PanelOracle:
    """Classifiers that vote, as a proxy for human labels.

    If the panel misclassifies a sample's clean input, its class of the changed input is unknown.

    Args:
        name: name in the catalogue, with parameters.
        rule: ``majority``: more than half of the members; ``unanimous``: all of them.
        members: at least two models, none of them the attacked model or of its architecture.
        dataset: the clean inputs and their labels.
        notes: excluded members, and the reasons.
    """

    name: str
    rule: str
    members: tuple[LoadedModel, ...]
    dataset: Dataset
    notes: tuple[str, ...] = ()
    _clean: dict[int, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def source(self) -> str:
        return f"panel {self.name}"

    @property
    def digest(self) -> str:
        digests = sorted(member.digest for member in self.members)
        return digest_value({"kind": "panel", "rule": self.rule, "members": digests})

    def classify(self, images: Tensor, ids: Tensor) -> Tensor:
        clean = self._classify_clean(ids.tolist()).to(images.device)
        trusted = clean == self.dataset.labels[ids.cpu()].to(images.device)
        return torch.where(trusted, self.vote(images, ids), UNKNOWN)

    def vote(self, images: Tensor, ids: Tensor) -> Tensor:
        """Return the classes (n,) of (n, …) images by the rule alone; a member that rejects an input does not vote."""
        place, n = device_of(self.members[0].classifier), len(self.members)
        rng = SampleRNG(0, ids.to(place), "oracle")
        ballots = torch.zeros(len(images), self.dataset.num_classes, device=place)
        for member in self.members:
            output = classify(member.classifier, images.to(place, member.classifier.dtype), rng)
            valid = output.valid if output.accepted is None else output.valid & output.accepted
            ballots.scatter_add_(1, output.decision[:, None], valid[:, None].to(ballots))
        most, classes = ballots.max(1)
        needed = n if self.rule == "unanimous" else n // 2 + 1
        return torch.where(most >= needed, classes, UNKNOWN).to(images.device)

    def error(self, ids: Sequence[int]) -> OracleError | None:
        found, labels = self._classify_clean(ids), self.dataset.labels[list(ids)]
        unknown = int((found == UNKNOWN).sum())
        wrong = int((found != labels).sum()) - unknown
        return OracleError(self.source, "clean inputs", len(found), wrong, unknown)

    def describe(self) -> dict[str, Any]:
        members = [{"name": each.name, "digest": each.digest} for each in self.members]
        return {
            "source": self.source,
            "rule": self.rule,
            "members": members,
            "excluded": list(self.notes),
        }

    def _classify_clean(self, ids: Sequence[int]) -> Tensor:
        """Return the panel's classes of clean inputs (n,), on the CPU; each input is classified once."""
        new = [sample for sample in dict.fromkeys(ids) if sample not in self._clean]
        for first in range(0, len(new), PANEL_BATCH_SIZE):
            block = torch.tensor(new[first : first + PANEL_BATCH_SIZE])
            images = self.dataset.batch(block)[0]
            self._clean.update(zip(block.tolist(), self.vote(images, block).tolist(), strict=True))
        return torch.tensor([self._clean[sample] for sample in ids], dtype=torch.int64)


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
    if (own := parse_panel(text)) is not None:
        return _own_panel(*own, dataset, attacked, load)
    reference = parse_reference(text)
    card = read_oracle(find("oracles", reference.name), reference.parameters)
    members = _distinct(str(reference), card.members, load)
    reasons = [(each, _first(m.exclusion_reason(each) for m in attacked)) for each in members]
    name = str(reference)
    notes = tuple(f"{each.name} is excluded from {name}: {why}" for each, why in reasons if why)
    voting = tuple(each for each, why in reasons if not why)
    _check_members(name, voting, notes, card.members)
    return PanelOracle(name, card.rule, voting, dataset, notes)


def _own_panel(
    named: Sequence[str],
    rule: str,
    dataset: Dataset,
    attacked: Sequence[AttackedModel],
    load: Callable[[str], LoadedModel],
) -> PanelOracle:
    """Return a panel of the user's models."""
    if rule not in RULES:
        raise BadParameter("unknown rule of a panel", got=rule, expected=" or ".join(RULES))
    members = _distinct("the panel", named, load)
    itself = [each for each in members if any(m.is_same(each) for m in attacked)]
    voting = tuple(each for each in members if each not in itself)
    related = [
        f"{each.name} votes on {model.name}, which has the same architecture: they may share mistakes"
        for each in voting
        for model in attacked
        if model.exclusion_reason(each) and model.parameters == each.card.get("parameters")
    ]
    notes = [f"{each.name} is excluded from the panel: it is the attacked model" for each in itself]
    _check_members("the panel", voting, notes, named)
    tag = digest_value({"members": sorted(each.digest for each in voting)})[:4]
    name = f"of {len(voting)} models #{tag}"
    return PanelOracle(name, rule, voting, dataset, (*notes, *related))


def _distinct(
    panel: str, named: Sequence[str], load: Callable[[str], LoadedModel]
) -> list[LoadedModel]:
    """Return the members of a panel, which must differ."""
    members = [load(name) for name in named]
    if len({each.weights_digest or each.digest for each in members}) < len(members):
        raise BadParameter(f"{panel} names a member twice", got=", ".join(named))
    return members


def _check_members(
    panel: str, voting: Sequence[LoadedModel], notes: Sequence[str], named: Sequence[str]
) -> None:
    if len(voting) < MIN_MEMBERS:
        raise CapabilityMismatch(
            f"{panel} has too few eligible members",
            got="; ".join(notes) or ", ".join(named) or "none",
            expected=f"at least {MIN_MEMBERS} other than the attacked model",
            remedy="name another panel, or a CSV of human labels",
        )


def _first(reasons: Iterable[str]) -> str:
    return next(filter(None, reasons), "")


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
