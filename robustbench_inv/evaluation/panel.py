"""Panels of classifiers that vote on the class of a changed input, as a proxy for human labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.catalogue.cards import OracleCard, read_oracle
from robustbench_inv.catalogue.locate import find
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.catalogue.references import parse_panel, parse_reference
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.identity import digest_value
from robustbench_inv.models.protocol import classify, device_of
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.rate import ChangeDetection
from robustbench_inv.tensors import Output
from robustbench_inv.threat.goals import UNKNOWN

__all__ = ["AttackedModel", "PanelOracle", "Pooling", "load_panel"]

MIN_MEMBERS = 2
"""Smallest number of members: a single network is not a panel."""

RULES = ("majority", "unanimous")
"""Rules of a panel: the class of more than half of the members, or of all of them."""

PANEL_BATCH_SIZE = 250
"""Clean inputs in a batch that a panel classifies."""


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
class Pooling:
    """The linear opinion pool of a panel: the weighted mean of its members' probabilities.

    Args:
        weights: one for each member.
        temperatures: one for each member; its logits are divided by it.
        threshold: smallest mean probability of the class; below it the class is unknown.

    References:
        Stone, The opinion pool, Annals of Mathematical Statistics 1961.
    """

    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    threshold: float

    def rows(self, kept: Sequence[int]) -> "Pooling":
        """Return the pool of the members at some positions."""
        weights = tuple(self.weights[row] for row in kept)
        return replace(
            self, weights=weights, temperatures=tuple(self.temperatures[row] for row in kept)
        )


@dataclass(frozen=True)
class PanelOracle:
    """Classifiers that vote, as a proxy for human labels.

    If the panel misclassifies a sample's clean input, its class of the changed input is unknown.

    Args:
        name: name in the catalogue, with parameters.
        rule: ``majority``: more than half of the members; ``unanimous``: all of them; ``pool``: see ``pooling``.
        members: at least two models, none of them the attacked model or of its architecture.
        dataset: the clean inputs and their labels.
        notes: excluded members, and the reasons.
        pooling: weights and temperatures of the members, for the rule ``pool``.
        detection: changes of class that these members report; None if that was not measured.
    """

    name: str
    rule: str
    members: tuple[LoadedModel, ...]
    dataset: Dataset
    notes: tuple[str, ...] = ()
    pooling: Pooling | None = None
    detection: ChangeDetection | None = None
    _clean: dict[int, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def source(self) -> str:
        return f"panel {self.name}"

    @property
    def digest(self) -> str:
        digests = [member.digest for member in self.members]
        about = {"kind": "panel", "rule": self.rule}
        if self.pooling:  # weights belong to members in order
            return digest_value({**about, "members": digests, "pooling": asdict(self.pooling)})
        return digest_value({**about, "members": sorted(digests)})

    def classify(self, images: Tensor, ids: Tensor) -> Tensor:
        clean = self._classify_clean(ids.tolist()).to(images.device)
        trusted = clean == self.dataset.labels[ids.cpu()].to(images.device)
        return torch.where(trusted, self.vote(images, ids), UNKNOWN)

    def vote(self, images: Tensor, ids: Tensor) -> Tensor:
        """Return the classes (n,) of (n, …) images by the rule alone; a member that rejects an input does not vote."""
        if self.pooling:
            most, classes = self.pool(images, ids, self.pooling).max(1)
            return torch.where(most >= self.pooling.threshold, classes, UNKNOWN).to(images.device)
        n = len(self.members)
        ballots = torch.zeros(len(images), self.dataset.num_classes, device=self._place)
        for member in self.members:
            output, valid = self._answer(member, images, ids)
            ballots.scatter_add_(1, output.decision[:, None], valid[:, None].to(ballots))
        most, classes = ballots.max(1)
        needed = n if self.rule == "unanimous" else n // 2 + 1
        return torch.where(most >= needed, classes, UNKNOWN).to(images.device)

    def pool(self, images: Tensor, ids: Tensor, pooling: Pooling) -> Tensor:
        """Return the weighted mean (n, C) of the members' probabilities; a rejection counts as probability 0."""
        total = torch.zeros(len(images), self.dataset.num_classes, device=self._place)
        voters = zip(self.members, pooling.weights, pooling.temperatures, strict=True)
        for member, weight, temperature in voters:
            output, valid = self._answer(member, images, ids)
            probabilities = (output.logits.float() / temperature).softmax(1)
            total += weight / sum(pooling.weights) * probabilities.where(valid[:, None], 0)
        return total

    @property
    def _place(self) -> torch.device:
        return device_of(self.members[0].classifier)

    def _answer(self, member: LoadedModel, images: Tensor, ids: Tensor) -> tuple[Output, Tensor]:
        """Return a member's output for images (n, …), and where (n,) it is valid and accepted."""
        rng = SampleRNG(0, ids.to(self._place), "oracle")
        output = classify(member.classifier, images.to(self._place, member.classifier.dtype), rng)
        accepted = output.valid if output.accepted is None else output.valid & output.accepted
        return output, accepted

    def error(self, ids: Sequence[int]) -> OracleError | None:
        found, labels = self._classify_clean(ids), self.dataset.labels[list(ids)]
        unknown = int((found == UNKNOWN).sum())
        wrong = int((found != labels).sum()) - unknown
        return OracleError(self.source, "clean inputs", len(found), wrong, unknown, self.detection)

    def describe(self) -> dict[str, Any]:
        members = [{"name": each.name, "digest": each.digest} for each in self.members]
        return {
            "source": self.source,
            "rule": self.rule,
            "members": members,
            "excluded": list(self.notes),
            **({"pooling": asdict(self.pooling)} if self.pooling else {}),
        }

    def _classify_clean(self, ids: Sequence[int]) -> Tensor:
        """Return the panel's classes of clean inputs (n,), on the CPU; each input is classified once."""
        new = [sample for sample in dict.fromkeys(ids) if sample not in self._clean]
        for first in range(0, len(new), PANEL_BATCH_SIZE):
            block = torch.tensor(new[first : first + PANEL_BATCH_SIZE])
            images = self.dataset.batch(block)[0]
            self._clean.update(zip(block.tolist(), self.vote(images, block).tolist(), strict=True))
        return torch.tensor([self._clean[sample] for sample in ids], dtype=torch.int64)


def load_panel(
    text: str,
    dataset: Dataset,
    attacked: Sequence[AttackedModel],
    load: Callable[[str], LoadedModel],
) -> PanelOracle:
    """Return a panel of the catalogue or of the user's models; arguments and errors as of ``load_oracle``."""
    if (own := parse_panel(text)) is not None:
        return _own_panel(*own, dataset, attacked, load)
    reference = parse_reference(text)
    card = read_oracle(find("oracles", reference.name), reference.parameters)
    members = _distinct(str(reference), card.members, load)
    reasons = [(each, _first(m.exclusion_reason(each) for m in attacked)) for each in members]
    name = str(reference)
    notes = tuple(f"{each.name} is excluded from {name}: {why}" for each, why in reasons if why)
    rows = [row for row, (_, why) in enumerate(reasons) if not why]
    voting = tuple(members[row] for row in rows)
    _check_members(name, voting, notes, card.members)
    pooling = _pooling(card, rows)
    left_out = [each for row, each in enumerate(card.members) if row not in rows]
    detection = card.detection.get("".join(left_out)) if len(left_out) < 2 else None
    return PanelOracle(name, card.rule, voting, dataset, notes, pooling, detection)


def _pooling(card: OracleCard, rows: Sequence[int]) -> Pooling | None:
    """Return the pool of the members at some positions; None for another rule."""
    if card.rule != "pool":
        return None
    return Pooling(card.weights, card.temperatures, card.threshold).rows(rows)


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
        f"{each.name} votes on {model.name}, which has the same architecture: shared mistakes hide failures"
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
            remedy="name another panel, as panel:MODEL,MODEL, or a CSV of human labels",
        )


def _first(reasons: Iterable[str]) -> str:
    return next(filter(None, reasons), "")
