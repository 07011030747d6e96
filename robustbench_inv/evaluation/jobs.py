"""Turns what a user names into jobs: every model under every attack and threat, with defaults for what is left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from robustbench_inv.attacks.protocol import Attack, NeedsOODData
from robustbench_inv.catalogue.attacks import LoadedAttack, load_attack, with_ood_data
from robustbench_inv.catalogue.cards import SuiteCard, SuiteEntry, read_suite
from robustbench_inv.catalogue.datasets import default_ood_dataset, default_oracle, load_dataset
from robustbench_inv.catalogue.locate import entries, find
from robustbench_inv.catalogue.models import LoadedModel, load_model
from robustbench_inv.catalogue.threats import load_threat
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadData, BadResults, CapabilityMismatch, UsageError
from robustbench_inv.evaluation.oracles import (
    AttackedModel,
    Oracle,
    dataset_oracle,
    load_oracle,
    needs_oracle,
)
from robustbench_inv.evaluation.plan import Job
from robustbench_inv.models.protocol import device_of
from robustbench_inv.threat.goals import Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "EvaluationRequest",
    "JobSource",
    "as_list",
    "build_jobs",
    "load_ood_data",
    "rebuild_job",
]


def load_ood_data(
    source: str | Attack | LoadedAttack,
    loaded: LoadedAttack,
    dataset: Dataset,
    open_dataset: Callable[[str], Dataset],
    *,
    optional: bool = False,
) -> LoadedAttack:
    """Return an attack with the other data set at hand, if it shows inputs of one; any other as it is.

    Args:
        source: what the attack was loaded from; the usual data set is added to its name.
        loaded: the attack.
        dataset: the data that is evaluated.
        open_dataset: opens a data set by name.
        optional: leave the attack without its data set if that is not here; it then refuses to run.

    Raises:
        BadData: if the other data set is damaged, or is not here and cannot be fetched.
    """
    if not isinstance(loaded.attack, NeedsOODData):
        return loaded
    name = loaded.attack.dataset or default_ood_dataset(dataset.name)
    if not name:
        return loaded
    plain: Any = source.attack if isinstance(source, LoadedAttack) else source
    named = loaded if loaded.attack.dataset else load_attack(plain, dataset=name)
    assert isinstance(named.attack, NeedsOODData)
    try:
        return with_ood_data(named, named.attack, open_dataset(name))
    except BadData:
        if optional:
            return named
        raise


EVALUATION_DATASETS = {"mnist": "mnist5k"}
"""Data set that is evaluated on instead of the one of a model's card, because it needs no download."""

DEFAULT_BUDGETS = {"mnist-linf": "linf=0.3"}
"""Budgets that are customary, where the catalogue has no threat of this name."""

PREFERRED_NORMS = ("linf", "l2", "l1", "l0")


@dataclass(frozen=True)
class JobSource:
    """The names or objects that a job was made from, by which another process makes it again."""

    model: Any
    attack: Any
    dataset: Any
    device: str = "cpu"
    data_root: str | None = None


@dataclass(frozen=True)
class EvaluationRequest:
    """What a user asks for; a name stands for the thing it names, None for the default.

    Args:
        models: names or objects.
        attacks: names or objects.
        suite: name of a list of attacks and threats, taken besides ``attacks``.
        runs: attacks with their threats, as a suite has them, taken besides these.
        threat: budget or sweep; None for the suite's, or the usual one of attack and data set.
        dataset: name or object; None for the one of each model's card.
        samples: N, ``first:N``, or None for all.
        seed: of all random numbers.
        device: where the models compute.
        data_root: where data files are.
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


@dataclass(frozen=True)
class _AttackRun:
    """One attack of the question, and what a suite says of it."""

    attack: LoadedAttack
    source: Any
    threat: str | ThreatModel | None
    samples: int | str | None = None
    optional: bool = False


@dataclass(frozen=True)
class _LoadCache:
    """The models and oracles that threats name, each loaded once for a data set."""

    device: str
    models: dict[tuple[str, str], LoadedModel] = field(default_factory=dict)
    oracles: dict[tuple[str, ...], Oracle] = field(default_factory=dict)

    def substitute(self, threat: ThreatModel, dataset: Dataset) -> LoadedModel | None:
        return self._model(threat.substitute, dataset) if threat.substitute else None

    def oracle(self, threat: ThreatModel, dataset: Dataset, model: LoadedModel) -> Oracle | None:
        if threat.oracle is None:
            return None
        substitute = self.substitute(threat, dataset)
        attacked = [AttackedModel.of(each) for each in (model, substitute) if each]
        key = (threat.oracle, dataset.digest, *(each.digest for each in attacked))
        if key not in self.oracles:
            load = partial(self._model, dataset=dataset)
            self.oracles[key] = load_oracle(threat.oracle, dataset, attacked, load)
        return self.oracles[key]

    def _model(self, name: str, dataset: Dataset) -> LoadedModel:
        key = (name, dataset.digest)
        if key not in self.models:
            self.models[key] = _load_model(name, dataset, self.device)
        return self.models[key]


def as_list(value: Any) -> list[Any]:  # noqa: ANN401 - names or objects of any kind
    """Return one thing or several as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def load_suite(name: str) -> SuiteCard:
    """Return a suite by name; raises as ``find`` and ``read_suite`` do."""
    return read_suite(find("suites", name))


def build_jobs(request: EvaluationRequest) -> Iterator[Job]:
    """Yield the jobs of a question, model by model.

    Raises:
        UsageError: for a name that is unknown, or a default that there is none of.
    """
    if not request.models:
        raise UsageError("no model to evaluate", remedy="name one: invbench list models")
    runs, known = list(_runs(request)), _LoadCache(request.device)
    for source in request.models:
        model, dataset, origin = _model(source, request)
        for run in runs:
            threat = _threat(_aware_of_rejection(run, model, dataset), dataset)
            ids = _samples(dataset, request.samples, run.samples)
            named = replace(origin, attack=run.source)
            helpers = known.substitute(threat, dataset), known.oracle(threat, dataset, model)
            open_named, optional = partial(_open_dataset, root=request.data_root), run.optional
            attack = load_ood_data(run.source, run.attack, dataset, open_named, optional=optional)
            kept = _without_target_class(dataset, ids, threat)
            job = Job(model, attack, threat, dataset, request.seed, kept, named, *helpers)
            yield replace(job, optional=optional, excluded=len(ids) - len(kept))


def rebuild_job(
    origin: JobSource, digest: str, rest: tuple[ThreatModel, int, tuple[int, ...]]
) -> Job:
    """Make a job again from its origin.

    Args:
        origin: what it was made from.
        digest: of its cell, as it was.
        rest: threat, seed and samples.

    Raises:
        BadResults: if the names stand for other things than they did.
    """
    threat, seed, samples = rest
    dataset = _open_dataset(origin.dataset, origin.data_root)
    model = _load_model(origin.model, dataset, origin.device)
    attack, known = _load_attack(origin.attack), _LoadCache(origin.device)
    attack = load_ood_data(
        origin.attack, attack, dataset, partial(_open_dataset, root=origin.data_root)
    )
    helpers = known.substitute(threat, dataset), known.oracle(threat, dataset, model)
    job = Job(model, attack, threat, dataset, seed, samples, origin, *helpers)
    if job.spec.digest != digest:
        raise BadResults(
            f"{job.title} is another cell in another process",
            got=job.spec.digest,
            expected=digest,
            remedy="run it in one process",
        )
    return job


def _runs(request: EvaluationRequest) -> Iterator[_AttackRun]:
    if not request.attacks and request.suite is None and not request.runs:
        raise UsageError("nothing to attack with", remedy="name an attack or a suite")
    for source in request.attacks:
        yield _AttackRun(_load_attack(source), source, request.threat)
    suite = load_suite(request.suite).runs if request.suite else ()
    for run in (*suite, *request.runs):
        attack = _load_attack(run.attack)
        threat = request.threat if _supports_threat(request.threat, attack) else run.threat
        yield _AttackRun(attack, run.attack, threat, run.samples, run.optional)


def _supports_threat(threat: str | ThreatModel | None, attack: LoadedAttack) -> bool:
    """Can the attack of a suite be asked for the threat that the user wants, or does it keep its own?"""
    if threat is None:
        return False
    wanted = _load_threat(threat, attack)
    return wanted.norm in attack.attack.norms and (
        wanted.bounded or attack.attack.kind != "fixed-budget"
    )


def _model(source: Any, request: EvaluationRequest) -> tuple[LoadedModel, Dataset, JobSource]:  # noqa: ANN401
    """Load a model and the data set that it is evaluated on."""
    root, device = request.data_root, request.device
    given = request.dataset
    if given is not None:
        dataset = _open_dataset(given, root)
        model = _load_model(source, dataset, device)
        return model, dataset, JobSource(source, None, given, device, root)
    model = _load_model(source, None, device)
    card = str(model.card.get("dataset") or "")
    if not card:
        raise UsageError(
            f"{model.name} does not say which data it classifies", remedy="name a data set"
        )
    named = EVALUATION_DATASETS.get(card, card)
    return model, _open_dataset(named, root), JobSource(source, None, named, device, root)


def _load_model(source: Any, dataset: Dataset | None, device: str) -> LoadedModel:  # noqa: ANN401
    if isinstance(source, LoadedModel):
        return source
    return load_model(source, dataset=dataset, device=device)


def _load_attack(source: str | Attack | LoadedAttack) -> LoadedAttack:
    return source if isinstance(source, LoadedAttack) else load_attack(source)


def _open_dataset(source: Any, root: str | None) -> Dataset:  # noqa: ANN401
    return _open_by_name(source, root) if isinstance(source, str) else load_dataset(source)


@lru_cache(maxsize=4)
def _open_by_name(name: str, root: str | None) -> Dataset:
    return load_dataset(name, data_root=Path(root) if root else None)


def _aware_of_rejection(run: _AttackRun, model: LoadedModel, dataset: Dataset) -> _AttackRun:
    """Return a run whose attack knows that the model may reject: a wrong answer must be accepted to be a success.

    A threat that names its goal keeps it: ``linf=0.1:goal=misclassify`` is an attack that is oblivious of rejection.
    """
    if run.attack.goal != Misclassify() or not _rejects(model, dataset):
        return run
    return replace(run, attack=replace(run.attack, goal=MisclassifyAccepted()))


def _rejects(model: LoadedModel, dataset: Dataset) -> bool:
    """Ask a model about one input; what it cannot take is said when the plan is checked."""
    images, _ = dataset.batch([0])
    with torch.no_grad(), suppress(Exception):
        place = device_of(model.classifier), model.classifier.dtype
        return model.classifier(images.to(*place)).accepted is not None
    return False


def _threat(run: _AttackRun, dataset: Dataset) -> ThreatModel:
    threat = _load_threat(run.threat or _default_threat(run.attack, dataset), run.attack)
    answered = threat.oracle or dataset_oracle(dataset) or not needs_oracle(threat.goal)
    usual = None if answered else default_oracle(dataset.name)
    return replace(threat, oracle=usual) if usual else threat


def _load_threat(threat: str | ThreatModel, attack: LoadedAttack) -> ThreatModel:
    """Load a threat; distances of ``none`` are measured in a norm of the attack."""
    norms = [name for name in PREFERRED_NORMS if name in attack.attack.norms]
    norm = norms[0] if norms and "l2" not in norms else "l2"
    return load_threat(threat, attack.goal, norm)


def _default_threat(attack: LoadedAttack, dataset: Dataset) -> str:
    """Return ``none`` for an attack that seeks the nearest success, else the data set's usual budget."""
    norms = [name for name in PREFERRED_NORMS if name in attack.attack.norms]
    if attack.attack.kind != "fixed-budget":
        return "none"
    name = dataset.name.partition(":")[0]
    family = name.partition("-")[0]
    for norm in norms:
        for usual in (f"{name}-{norm}", f"{name.removesuffix('5k')}-{norm}", f"{family}-{norm}"):
            if usual in entries("threats"):
                return usual
            if usual in DEFAULT_BUDGETS:
                return DEFAULT_BUDGETS[usual]
    raise CapabilityMismatch(
        f"there is no usual budget for {attack.name} on {dataset.name}",
        remedy="name a threat, such as linf=0.1",
    )


def _samples(dataset: Dataset, asked: int | str | None, suite: int | str | None) -> tuple[int, ...]:
    """Return the ids of the samples: as many as asked for, and not more than the suite gives the attack."""
    ids = select_samples(dataset.labels, asked)
    if suite is None or (isinstance(suite, int) and suite >= len(ids)):
        return ids
    return min(ids, select_samples(dataset.labels, suite), key=len)


def _without_target_class(
    dataset: Dataset, ids: tuple[int, ...], threat: ThreatModel
) -> tuple[int, ...]:
    """Return the samples but for those that are of the class aimed at already."""
    if not isinstance(threat.goal, Target):
        return ids
    labels = dataset.labels[list(ids)]
    other = threat.goal.classes(labels, dataset.num_classes) != labels
    return tuple(sample for sample, kept in zip(ids, other.tolist(), strict=True) if kept)
