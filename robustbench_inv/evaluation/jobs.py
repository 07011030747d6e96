"""Builds the jobs of an evaluation: every model under every attack and threat, with defaults for what is omitted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from robustbench_inv.catalogue.attacks import LoadedAttack, with_ood_data
from robustbench_inv.catalogue.cards import SuiteEntry
from robustbench_inv.catalogue.datasets import (
    evaluation_dataset,
    identify_dataset,
    refuse_code,
)
from robustbench_inv.catalogue.fingerprint import content
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.catalogue.threats import (
    CUSTOMARY,
    is_customary,
    replace_budget,
    resolve_customary,
    threat_for_attack,
)
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import select_samples, smallest_selection
from robustbench_inv.errors import BadResults, CapabilityMismatch, UsageError
from robustbench_inv.evaluation.loading import LoadCache, NamedModel, inspect_model, load_suite
from robustbench_inv.evaluation.oracles import (
    Oracle,
    dataset_oracle,
    describe_oracle,
    with_oracle,
)
from robustbench_inv.identity import IDENTITY_VERSION, digest_value
from robustbench_inv.results.labels import cell_title
from robustbench_inv.threat.goals import Goal, Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel, describe_threat, digest_threat

__all__ = [
    "CellSpec",
    "EvaluationRequest",
    "Job",
    "build_jobs",
    "rebuild_job",
]


@dataclass(frozen=True)
class CellSpec:
    """What determines a record; batch size, device and workers are absent on purpose.

    Args:
        model: digest of name, revision, parameters and weights; of a user's model, of its code.
        attack: digest of preset, revision, parameters and goal; of a user's attack, of its code.
        threat: digest of norm, eps, goal and access.
        dataset: digest of the data's bytes, and of the code of a user's own data set.
        seed: the random seed.
    """

    model: str
    attack: str
    threat: str
    dataset: str
    seed: int

    @property
    def digest(self) -> str:
        """Name of the cell's folder: 32 hexadecimal digits."""
        return digest_value({"version": IDENTITY_VERSION, **vars(self)})[:32]


@dataclass(frozen=True)
class EvaluationRequest:
    """The user's request: names or objects to evaluate, None for a default.

    Args:
        models: names or objects, or these with a label (``loading.NamedModel``).
        attacks: names or objects; with neither suite nor runs, none means ``standard``.
        suite: name of a list of attacks and threats that is run in addition to ``attacks``.
        runs: attacks with their threats, as a suite lists them, in addition to these.
        threat: budget or sweep; None for the suite's, or the default of attack and data set.
        dataset: name or object; None for the data set of each model's card.
        samples: N, ``first:N``, or None for all.
        seed: random seed.
        device: where the models compute, as torch names it.
        data_root: folder of data files.
        sample_limit: largest number of samples for a suite's attack; None for no limit.
        optional: skip cells whose parts are incompatible, with a warning.
        oracle: the oracle of attacks that need one, as ``loading.as_oracle`` returns it; empty for that of the threat.
        panel: the oracle's members that are objects, by the names that the threat gives them.
    """

    models: Sequence[Any]
    attacks: Sequence[Any] = ()
    suite: str | None = None
    runs: Sequence[SuiteEntry] = ()
    threat: str | ThreatModel | None = None
    dataset: Any = None
    samples: int | str | None = None
    seed: int = 0
    device: str = "cpu"
    data_root: str | None = None
    sample_limit: int | str | None = None
    optional: bool = False
    oracle: str = ""
    panel: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One cell and the samples to evaluate.

    Args:
        model: the attacked model.
        attack: the attack.
        threat: budget or sweep, goal, access.
        dataset: the data.
        seed: random seed.
        samples: ascending sample ids.
        request: the request for this cell alone, from which another process builds the job; None if the
            objects themselves must be sent.
        substitute: the model that the threat names, None if it names none.
        oracle: the oracle that the threat names, None if it names none.
        optional: skip the cell with a warning if its parts are incompatible.
        excluded: number of requested samples that already belong to the target class.
        label: the user's label of the model; empty for its name.
        shown: model and attack as titles call them, distinct in a plan; empty for their names.
        shared: values that the jobs of an evaluation compute once.
    """

    model: LoadedModel
    attack: LoadedAttack
    threat: ThreatModel
    dataset: Dataset
    seed: int
    samples: tuple[int, ...]
    request: EvaluationRequest | None = field(default=None, compare=False, repr=False)
    substitute: LoadedModel | None = None
    oracle: Oracle | None = None
    optional: bool = field(default=False, compare=False)
    excluded: int = field(default=0, compare=False)
    label: str = field(default="", compare=False)
    shown: tuple[str, str] = field(default=("", ""), compare=False)
    shared: dict[tuple[object, ...], Any] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave ``shared`` to this process."""
        return {**vars(self), "spec": self.spec, "shared": {}}

    @cached_property
    def spec(self) -> CellSpec:
        """What determines the records."""
        return CellSpec(
            model=self.model.digest,
            attack=self.attack.digest,
            threat=digest_threat(self.threat_description),
            dataset=self._dataset_identity,
            seed=self.seed,
        )

    @cached_property
    def threat_description(self) -> dict[str, Any]:
        """The threat, its substitute and its oracle as plain values."""
        helper, oracle = self.substitute, self.oracle
        return describe_threat(
            self.threat,
            content,
            None if helper is None else {"name": helper.name, "digest": helper.digest},
            None if oracle is None else describe_oracle(str(self.threat.oracle), oracle),
        )

    @property
    def _dataset_identity(self) -> str:
        key = ("data set", id(self.dataset))
        if key not in self.shared:
            self.shared[key] = identify_dataset(self.dataset)
        identity: str = self.shared[key]
        return identity

    @property
    def search_key(self) -> tuple[object, ...]:
        """What a search on a substitute depends on: the whole cell but its model."""
        return self.spec.attack, self.spec.threat, self.spec.dataset, self.spec.seed

    @property
    def search_model(self) -> LoadedModel:
        """The model that the attack queries: the substitute in a transfer attack."""
        return self.substitute if self.substitute and self.threat.is_transfer else self.model

    @property
    def guide(self) -> LoadedModel | None:
        """The model whose gradients replace those of the queried model, if any."""
        return None if self.threat.is_transfer else self.substitute

    @property
    def effective_oracle(self) -> Oracle | None:
        """The threat's oracle, else the data set if it can classify changed inputs, else None."""
        return self.oracle or dataset_oracle(self.dataset)

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The ascending eps of the sweep; empty without a budget."""
        return self.threat.epsilons

    @property
    def title(self) -> str:
        """Name of the cell in messages and in the verdicts of checks."""
        return cell_title(
            model=self.shown[0] or self.label or self.model.name,
            attack=self.shown[1] or self.attack.name,
            threat=self.threat.text,
            dataset=self.dataset.name,
            seed=self.seed,
        )

    def to_json(self) -> dict[str, object]:
        """Return the cell's entry in plan.json."""
        return {
            "digest": self.spec.digest,
            "model": self.model.name,
            **({"label": self.label} if self.label else {}),
            "attack": self.attack.name,
            "threat": self.threat.text,
            "dataset": self.dataset.name,
            "seed": self.seed,
        }


def build_jobs(
    request: EvaluationRequest,
    skipped: list[CapabilityMismatch] | None = None,
    cache: LoadCache | None = None,
) -> Iterator[Job]:
    """Yield the jobs of a request, model by model.

    Args:
        request: what to evaluate.
        skipped: is given the reason for each optional job that has no threat; None to raise it.
        cache: loads what the request names; None for a new one.

    Raises:
        UsageError: for an unknown name, or an omitted value that has no default.
    """
    if not request.models:
        raise UsageError("no model to evaluate", remedy="name one: invbench list models")
    cache = cache or LoadCache(request.device, request.data_root)
    cells = list(_single_attacks(request, cache))
    for model in request.models:
        for cell in cells:
            try:
                yield _build_job(replace(cell, models=(model,)), cache)
            except CapabilityMismatch as error:
                if skipped is None or not cell.optional:
                    raise
                skipped.append(error)


def rebuild_job(
    request: EvaluationRequest, samples: tuple[int, ...], digest: str, cache: LoadCache
) -> Job:
    """Build a job again, in another process.

    Args:
        request: the job's ``request``.
        samples: the job's samples.
        digest: the cell's digest in the process that sent it.
        cache: loads what the request names.

    Raises:
        BadResults: if the names now denote other things.
    """
    job = replace(_build_job(request, cache), samples=samples)
    if job.spec.digest != digest:
        raise BadResults(
            f"{job.title} is another cell in another process",
            got=job.spec.digest,
            expected=digest,
            remedy="run it in one process",
        )
    return job


def _single_attacks(request: EvaluationRequest, cache: LoadCache) -> Iterator[EvaluationRequest]:
    """Yield a request for each attack of a request, with the threat of its suite where it applies."""
    plain = replace(request, suite=None, runs=())
    named = request.attacks or request.suite is not None or request.runs
    for source in request.attacks if named else ("standard",):
        cache.attack(source)  # an unknown name is reported before any model is loaded
        yield replace(plain, attacks=(source,))
    suite = load_suite(request.suite).runs if request.suite else ()
    for entry in (*suite, *request.runs):
        yield replace(
            plain,
            attacks=(entry.attack,),
            threat=_suite_threat(request.threat, entry.threat, cache.attack(entry.attack)),
            sample_limit=entry.samples,
            optional=entry.optional,
        )


def _suite_threat(
    requested: str | ThreatModel | None, usual: str, attack: LoadedAttack
) -> str | ThreatModel:
    """Return the requested threat with the suite's goal if the attack supports it, else the suite's own."""
    if requested is None or not _supports_threat(requested, attack):
        return usual
    return replace_budget(usual, requested)


def _supports_threat(threat: str | ThreatModel, attack: LoadedAttack) -> bool:
    """Return whether a suite's attack can run under the requested threat; else it keeps its own."""
    needs_budget = attack.attack.kind == "fixed-budget"
    if is_customary(threat):
        return needs_budget
    wanted = threat_for_attack(threat, attack.attack, attack.goal)
    return wanted.norm in attack.attack.norms and (wanted.bounded or not needs_budget)


def _build_job(request: EvaluationRequest, cache: LoadCache) -> Job:
    """Build the job of a request with one model and one attack."""
    (source,), (attack_source,) = request.models, request.attacks
    plain = source.source if isinstance(source, NamedModel) else source
    model, named = _model_and_dataset(plain, request, cache)
    dataset, attack = cache.dataset_for(model, named), cache.attack(attack_source)
    threat = _threat(request, attack, _goal(attack, model, dataset), dataset)
    ids = _samples(dataset, request)
    kept = _without_target_class(dataset, ids, threat)
    return Job(
        model=model,
        attack=with_ood_data(
            attack, attack_source, dataset, cache.dataset, optional=request.optional
        ),
        threat=threat,
        dataset=dataset,
        seed=request.seed,
        samples=kept,
        request=replace(request, threat=threat, dataset=named),
        substitute=cache.substitute(threat, dataset),
        oracle=cache.oracle(threat, dataset, model, request.panel),
        optional=request.optional,
        excluded=len(ids) - len(kept),
        label=source.label if isinstance(source, NamedModel) else "",
        shared=cache.shared,
    )


def _model_and_dataset(
    source: Any,  # noqa: ANN401
    request: EvaluationRequest,
    cache: LoadCache,
) -> tuple[LoadedModel, Any]:
    """Return a model, and the name or object of the data set that it is evaluated on."""
    if request.dataset is not None:
        return cache.model(source, cache.dataset(request.dataset)), request.dataset
    model = cache.model(source, None)
    name = evaluation_dataset(model.card)
    if not name:
        raise UsageError(
            f"the card of {model.name} names no data set", remedy="name one: --dataset NAME"
        )
    refuse_code(name)
    return model, name


def _goal(attack: LoadedAttack, model: LoadedModel, dataset: Dataset) -> Goal:
    """Return the attack's goal; of a model that rejects, a misclassified input must also be accepted.

    A threat that names its goal keeps it: ``linf=0.1:goal=misclassify`` is oblivious of rejection.
    """
    if attack.goal == Misclassify() and inspect_model(model, dataset).rejects:
        return MisclassifyAccepted()
    return attack.goal


def _threat(
    request: EvaluationRequest, attack: LoadedAttack, goal: Goal, dataset: Dataset
) -> ThreatModel:
    """Return the requested or the default threat, with the data set's default oracle if it needs one."""
    usual = CUSTOMARY if attack.attack.kind == "fixed-budget" else "none"
    text = resolve_customary(request.threat or usual, attack.name, attack.attack, dataset)
    return with_oracle(threat_for_attack(text, attack.attack, goal), dataset, request.oracle)


def _samples(dataset: Dataset, request: EvaluationRequest) -> tuple[int, ...]:
    """Return the ids of the requested samples, or of the suite's limit if that is smaller."""
    ids, limit = select_samples(dataset.labels, request.samples), request.sample_limit
    if limit is None:
        return ids
    return select_samples(dataset.labels, smallest_selection(len(ids), request.samples, limit))


def _without_target_class(
    dataset: Dataset, ids: tuple[int, ...], threat: ThreatModel
) -> tuple[int, ...]:
    """Return the samples that do not already belong to the target class."""
    if not isinstance(threat.goal, Target):
        return ids
    labels = dataset.labels[list(ids)]
    other = threat.goal.classes(labels, dataset.num_classes) != labels
    return tuple(sample for sample, kept in zip(ids, other.tolist(), strict=True) if kept)
