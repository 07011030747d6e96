"""The parts of cell.json: model, attack, threat, oracle and data set of an evaluation, as typed values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from math import prod, sqrt
from typing import Any

from robustbench_inv.results.record import ModelOutput

__all__ = [
    "AttackInfo",
    "CellRequest",
    "DatasetInfo",
    "ModelInfo",
    "NamedDigest",
    "OracleInfo",
    "Segment",
    "ThreatInfo",
    "ThresholdInfo",
]

JSON = Mapping[str, Any]


@dataclass(frozen=True)
class NamedDigest:
    """A name and the digest of what it names: a substitute, or a member of a panel oracle."""

    name: str
    digest: str


@dataclass(frozen=True)
class ThresholdInfo:
    """The rejection thresholds of a model.

    Args:
        values: one threshold for each predicted class; an input that scores below it is rejected.
        digest: of the thresholds.
        fitted: data set, its digest, and the sample ids ``first`` to ``last`` (excluded) of the fit.
        about: the entries of cell.json, such as the score and the percentile.
    """

    values: tuple[float, ...]
    digest: str
    fitted: JSON
    about: JSON = field(repr=False)

    @classmethod
    def from_json(cls, value: JSON) -> "ThresholdInfo":
        """Read ``model.rejection`` of cell.json, or the rejection entry of a model's card."""
        values = value.get("thresholds", value.get("values")) or ()
        fitted = value.get("fitted") or {}
        return cls(tuple(values), value.get("digest", ""), fitted, value)

    def to_json(self) -> dict[str, Any]:
        """Return ``model.rejection`` of cell.json."""
        return {("thresholds" if k == "values" else k): v for k, v in self.about.items()}

    def above(self, output: ModelOutput) -> float | None:
        """Return the score minus the threshold of the predicted class; None without a score."""
        if output.score is None or not self.values:
            return output.score
        return output.score - self.values[output.prediction]

    def was_fitted_on(self, dataset_digest: str, sample: int) -> bool:
        """Was this sample of a data set used to fit the thresholds?"""
        if not self.fitted or self.fitted.get("dataset_digest") != dataset_digest:
            return False
        return int(self.fitted["first"]) <= sample < int(self.fitted["last"])


@dataclass(frozen=True)
class ModelInfo:
    """The attacked model.

    Args:
        name: as the user typed it.
        digest: identifies everything that its outputs depend on.
        weights_digest: of its weights; None without weights.
        rejection: None for a model without fitted thresholds.
        card: its catalogue card.
    """

    name: str
    digest: str = ""
    weights_digest: str | None = None
    rejection: ThresholdInfo | None = None
    card: JSON = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, value: JSON) -> "ModelInfo":
        """Read ``model`` of cell.json."""
        rejection = value.get("rejection")
        return cls(
            name=value["name"],
            digest=value.get("digest", ""),
            weights_digest=value.get("weights_digest"),
            rejection=ThresholdInfo.from_json(rejection) if rejection else None,
            card=value.get("card") or {},
        )

    def to_json(self) -> dict[str, Any]:
        """Return ``model`` of cell.json."""
        rejection = self.rejection and self.rejection.to_json()
        return {**vars(self), "rejection": rejection}

    @property
    def key(self) -> str:
        """What distinguishes the model: its digest, its name if a file has none."""
        return self.digest or self.name

    @property
    def thresholds_digest(self) -> str:
        """The digest of the thresholds, or of the model if the thresholds are part of it."""
        return (self.rejection.digest if self.rejection else "") or self.digest or "unknown"

    def score_above_threshold(self, output: ModelOutput) -> float | None:
        """Return the score minus the threshold of the predicted class; None without a score.

        A model with its own thresholds gives its score unchanged.
        """
        return self.rejection.above(output) if self.rejection else output.score


@dataclass(frozen=True)
class AttackInfo:
    """The attack.

    Args:
        name: as the user typed it.
        digest: identifies its algorithm and parameters.
        kind: ``fixed-budget``, ``minimum-norm``, ``invariance`` or ``fixed-input``.
        implementation: where its code is, ``module:class``.
        parameters: of the implementation.
        goal: the goal that the attack has unless a threat names another.
        card: its catalogue card.
    """

    name: str
    digest: str = ""
    kind: str = "fixed-budget"
    implementation: str = ""
    parameters: JSON = field(default_factory=dict)
    goal: str = "misclassify"
    card: JSON = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, value: JSON) -> "AttackInfo":
        """Read ``attack`` of cell.json."""
        known = {key: value[key] for key in cls.__dataclass_fields__ if value.get(key) is not None}
        return cls(**known)

    @property
    def key(self) -> str:
        """What distinguishes the attack: its digest, its name if a file has none."""
        return self.digest or self.name

    @property
    def own_parameters(self) -> dict[str, Any]:
        """The parameters; those of an external library's attack are not nested."""
        parameters = dict(self.parameters)
        return {**parameters, **dict(parameters.pop("parameters", ()))}

    @property
    def algorithm(self) -> str:
        """The attack's class, or the external library's name of the attack, in lower case."""
        name = (self.implementation or self.name).rpartition(":")[2]
        return str(self.own_parameters.get("attack", name)).lower()

    @property
    def members(self) -> tuple[JSON, ...]:
        """The members of an ensemble attack; none for any other attack."""
        return tuple(self.parameters.get("members", ()))


@dataclass(frozen=True)
class OracleInfo:
    """The oracle that a threat names for the true class of a changed input.

    Args:
        source: its name in records.
        digest: identifies it.
        members: the models of a panel; none for human labels.
        about: the entries of cell.json.
    """

    source: str
    digest: str
    members: tuple[NamedDigest, ...]
    about: JSON = field(repr=False)

    @classmethod
    def from_json(cls, value: JSON) -> "OracleInfo":
        """Read ``threat.oracle`` of cell.json."""
        members = (
            NamedDigest(each.get("name", ""), each["digest"]) for each in value.get("members", ())
        )
        return cls(value["source"], value["digest"], tuple(members), value)

    @property
    def description(self) -> list[str]:
        """The rule and the members of a panel or the file of labels, and members that were excluded."""
        names = ", ".join(member.name for member in self.members)
        rule = f"{self.about.get('rule')} of {names}" if names else str(self.about.get("file", ""))
        return [rule, *self.about.get("excluded", ())]


@dataclass(frozen=True)
class ThreatInfo:
    """The threat model: budget, goal and access.

    Args:
        norm: in which distances are measured: ``linf``, ``l2``, ``l1`` or ``l0``.
        epsilons: the sweep, ascending; empty without a budget.
        goal: name of the attacker's goal.
        goal_parameters: such as the target class.
        access: ``white-box``, ``score``, ``decision`` or ``transfer``.
        substitute: the model that the search queries (transfer) or takes gradients of (score).
        oracle: None if the data set itself gives the true classes.
        budget: the budget as plain values.
        text: the threat as ``--threat`` takes it.
    """

    norm: str
    epsilons: tuple[float, ...] = ()
    goal: str = "misclassify"
    goal_parameters: JSON = field(default_factory=dict)
    access: str = "white-box"
    substitute: NamedDigest | None = None
    oracle: OracleInfo | None = None
    budget: JSON = field(default_factory=dict)
    text: str = ""

    @classmethod
    def from_json(cls, value: JSON) -> "ThreatInfo":
        """Read ``threat`` of cell.json."""
        helper, oracle = value.get("substitute"), value.get("oracle")
        return cls(
            norm=value["norm"],
            epsilons=tuple(value.get("epsilons") or ()),
            goal=value.get("goal") or "misclassify",
            goal_parameters=value.get("goal_parameters") or {},
            access=value.get("access") or "white-box",
            substitute=NamedDigest(helper["name"], helper["digest"]) if helper else None,
            oracle=OracleInfo.from_json(oracle) if oracle else None,
            budget=value.get("budget") or {},
            text=value.get("text") or "",
        )

    def to_json(self) -> dict[str, Any]:
        """Return ``threat`` of cell.json."""
        return {
            **vars(self),
            "epsilons": list(self.epsilons),
            "substitute": self.substitute and asdict(self.substitute),
            "oracle": self.oracle and dict(self.oracle.about),
        }

    @property
    def wants_same_prediction(self) -> bool:
        """Is it an invariance goal: the prediction stays although the true class changes?"""
        return self.goal.startswith("keep")

    @property
    def no_class(self) -> bool:
        """Does the attack use inputs of no class, such as noise, so that no prediction is correct?"""
        return self.goal == "accept"

    @property
    def is_targeted(self) -> bool:
        """Does the attacker want one class?"""
        return self.goal.startswith("target")

    @property
    def target_label(self) -> str:
        """The target class as text after the attack's name; empty without a target."""
        about = self.goal_parameters
        if not self.is_targeted or not about:
            return ""
        to = f"{about['label']}" if about.get("offset") is None else f"y+{about['offset']}"
        by = about.get("confidence") or 0.0
        return f" → {to} by {by:g}" if by else f" → {to}"


@dataclass(frozen=True)
class DatasetInfo:
    """The data set: its name, digest, number of samples and of classes, and the shape and bounds of an input."""

    name: str
    digest: str = ""
    size: int = 0
    num_classes: int = 0
    bounds: tuple[float, float] = (0.0, 1.0)
    shape: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, value: JSON) -> "DatasetInfo":
        """Read ``dataset`` of cell.json."""
        low, high = value["bounds"]
        return cls(
            name=value["name"],
            digest=value.get("digest", ""),
            size=value.get("size", 0),
            num_classes=value.get("num_classes", 0),
            bounds=(low, high),
            shape=tuple(value["shape"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return ``dataset`` of cell.json."""
        return {**vars(self), "bounds": list(self.bounds), "shape": list(self.shape)}

    @property
    def dimension(self) -> int:
        """Number of elements of an input."""
        return prod(self.shape)

    def box_diameter(self, norm: str) -> float:
        """Return the largest distance between two inputs inside the bounds."""
        (low, high), d = self.bounds, self.dimension
        return {"linf": 1.0, "l2": sqrt(d), "l1": float(d)}.get(norm, 0.0) * (high - low) or d


@dataclass(frozen=True)
class Segment:
    """The samples that one request added to a cell, ascending, evaluated in blocks of ``batch_size``.

    A cell has one segment. A request for more samples, or a batch size that was lowered because memory ran
    out, adds another.
    """

    batch_size: int
    samples: tuple[int, ...]

    @classmethod
    def from_json(cls, value: JSON) -> "Segment":
        """Read one entry of cell.json's ``segments``."""
        return cls(value["batch_size"], _shared(tuple(value["samples"])))

    def to_json(self) -> dict[str, object]:
        """Return the entry of cell.json's ``segments``."""
        return {"batch_size": self.batch_size, "samples": list(self.samples)}


@lru_cache(maxsize=8)
def _shared(samples: tuple[int, ...]) -> tuple[int, ...]:
    """Return the same tuple for cells of the same samples, which saves memory."""
    return samples


@dataclass(frozen=True)
class CellRequest:
    """The samples that an evaluation adds to a cell.

    Args:
        description: the content of cell.json without version, batch size and segments.
        samples: sample ids, in any order.
        batch_size: of the blocks, if the cell has none yet.
        redo: delete the existing records first.
        repair: delete damaged blocks and those after them, instead of refusing the cell.
        after_look: could the results of the samples so far have been seen, if they are complete?
        trusted: were the kept images compared with the records before, by the same process?
        shared: do other processes compute samples of the cell, which keep their places?
    """

    description: Mapping[str, Any]
    samples: tuple[int, ...]
    batch_size: int
    redo: bool = False
    repair: bool = False
    after_look: bool = False
    trusted: bool = False
    shared: bool = False


KINDS_V1 = {"budget": "fixed-budget", "minimal": "minimum-norm", "given": "fixed-input"}


def upgrade_cell_v1(value: JSON) -> dict[str, Any]:
    """Return the content of a cell.json of version 1 with the keys of version 2."""
    spec = dict(value.get("spec") or {})
    card = dict(value["model"].get("card") or {})
    model = {**value["model"], "weights_digest": value.get("weights_digest")}
    attack, threat = dict(value["attack"]), dict(value["threat"])
    oracle = dict(threat.get("oracle") or {})
    if "left_out" in oracle:
        oracle["excluded"] = oracle.pop("left_out")
    return {
        **{key: part for key, part in value.items() if key not in ("spec", "weights_digest")},
        "identity": {"version": spec.pop("identity_version", 1), **spec},
        "model": {**model, "rejection": card.pop("rejection", None), "card": card},
        "attack": {**attack, "kind": KINDS_V1.get(attack.get("kind", ""), attack.get("kind"))},
        "threat": {**threat, "oracle": oracle or None},
        "rejudged_from": value.get("judged_from"),
    }
