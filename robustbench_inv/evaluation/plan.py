"""The plan of an evaluation: its cells, checked before anything runs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from robustbench_inv.arguments import check_root, check_seed, check_text
from robustbench_inv.catalogue.benchmark_file import read_benchmark
from robustbench_inv.catalogue.cards import SuiteEntry
from robustbench_inv.catalogue.datasets import split_missing
from robustbench_inv.catalogue.listing import models_like
from robustbench_inv.catalogue.locate import shadowed, unread
from robustbench_inv.catalogue.references import locate_code
from robustbench_inv.catalogue.reproduction import Reproduction
from robustbench_inv.data.protocol import Dataset, HasClassNames
from robustbench_inv.data.sampling import smallest_selection
from robustbench_inv.errors import BadCatalogue, CapabilityMismatch
from robustbench_inv.evaluation.compatibility import check_compatible, warnings
from robustbench_inv.evaluation.jobs import EvaluationRequest, Job, build_jobs
from robustbench_inv.evaluation.loading import LoadCache, NamedModel, load_suite
from robustbench_inv.evaluation.provenance import versions
from robustbench_inv.identity import digest_value
from robustbench_inv.results.labels import distinct_labels
from robustbench_inv.tensors import check_device

__all__ = ["Plan", "make_plan", "plan_benchmark", "plan_jobs", "plan_reproduction"]


@dataclass(frozen=True)
class Plan:
    """The distinct cells of one evaluation.

    Args:
        name: default name of its folder, the same for the same cells.
        jobs: the cells, in the order in which they run.
        warnings: likely mistakes, one line each.
        command: the user's command, for plan.json.
        deep: run the expensive checks of the models as well.
    """

    name: str
    jobs: tuple[Job, ...]
    warnings: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    deep: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the content of plan.json except its version."""
        return {
            "name": self.name,
            "created_by": versions(),
            "commands": [list(self.command)] if self.command else [],
            "samples": sorted({sample for job in self.jobs for sample in job.samples}),
            "cells": [{**job.to_json(), **_class_names(job.dataset)} for job in self.jobs],
        }


def _class_names(data: Dataset) -> dict[str, list[str]]:
    """Return the names of the classes of the user's own data, for the page on which people label images."""
    names = data.classes if isinstance(data, HasClassNames) else ()
    return {"classes": list(names)} if names else {}


def make_plan(request: EvaluationRequest, command: Sequence[str] = ()) -> Plan:
    """Return the plan of a request, checked; nothing is written.

    Raises:
        UsageError: for an unknown name, an unusable value, or incompatible parts.
    """
    _check_request(request)
    deep = request.suite is not None and load_suite(request.suite).probes == "deep"
    skipped: list[CapabilityMismatch] = []
    jobs = list(build_jobs(request, skipped))
    return plan_jobs(jobs, label=request.suite, command=command, deep=deep, skipped=skipped)


def plan_jobs(
    jobs: Iterable[Job],
    *,
    label: str | None = None,
    command: Iterable[str] = (),
    deep: bool = False,
    skipped: Iterable[CapabilityMismatch] = (),
) -> Plan:
    """Return the plan of some jobs, checked.

    Args:
        jobs: the cells; cells with the same digest are run once.
        label: first part of the plan's name; None for the name of the first model.
        command: the user's command.
        deep: run the expensive checks of the models as well.
        skipped: why optional cells were not built, for the warnings.

    Raises:
        CapabilityMismatch: if model, attack, threat and data set of a cell are incompatible.
    """
    jobs = list(jobs)
    chosen, excluded = _compatible({job.spec.digest: job for job in jobs}.values(), skipped)
    chosen = _with_distinct_titles(chosen)
    doubts = [line for job in chosen for line in warnings(job)]
    lines = dict.fromkeys([*shadowed(), *unread(), *excluded, *_repeated_models(jobs), *doubts])
    return Plan(_name(chosen, label), chosen, tuple(lines), tuple(command), deep)


def plan_benchmark(path: Path, request: EvaluationRequest, command: Iterable[str] = ()) -> Plan:
    """Return the plan of a benchmark file, checked; nothing is written.

    Args:
        path: the file.
        request: samples that replace those of the file, device and data root; all else is the file's.
        command: the user's command.

    Raises:
        UsageError: for an invalid file, an unknown name, or incompatible parts.
    """
    card = read_benchmark(path)
    samples = card.samples if request.samples is None else request.samples
    named = [name for text in card.models for name in models_like(text)]
    models = [_located_model(each, path.resolve().parent) for each in named]
    whole = replace(request, models=models, samples=samples)
    cache = LoadCache(request.device, request.data_root)
    skipped: list[CapabilityMismatch] = []
    jobs: list[Job] = []
    for seed, dataset in product(card.seeds, card.datasets or (None,)):
        each = replace(whole, seed=seed, dataset=dataset)
        parts = [replace(each, runs=card.runs)] if card.runs else []
        listed = product(card.suites, card.threats or (None,))
        parts += [replace(each, suite=suite, threat=threat) for suite, threat in listed]
        for part in parts:
            _check_request(part)
            jobs += build_jobs(part, skipped, cache)
    deep = "deep" in (card.probes, *(load_suite(name).probes for name in card.suites))
    return plan_jobs(jobs, label=path.stem, command=command, deep=deep, skipped=skipped)


def _located_model(text: str, folder: Path) -> NamedModel | str:
    """Return a model with the absolute path of its code; its label is the name in the file, or the user's."""
    model = NamedModel.parse(text)
    label, source = (model.label, model.source) if isinstance(model, NamedModel) else ("", model)
    found = locate_code(source, folder)
    return NamedModel(label or source, found) if label or found != source else found


def plan_reproduction(
    item: Reproduction, request: EvaluationRequest, command: Iterable[str] = ()
) -> Plan:
    """Return the plan of a reproduction, checked; nothing is written.

    Args:
        item: the paper's table or figure.
        request: samples, seed, device, data root, and a data set that replaces the item's own; models and attacks
            of the request are ignored.
        command: the user's command.

    Raises:
        UsageError: for an unknown name, or incompatible parts.
        MissingData: if no data set is at hand; a warning names each that is not.
    """
    _check_request(request)
    cache = LoadCache(request.device, request.data_root)
    places = item.places(request.dataset)
    present, missing = split_missing(places, lambda data: cache.dataset(places[data]))
    ranked = [each for data, _ in present for each in _jobs(item, data, request, cache)]
    # trial by trial, so that an interrupted run has complete rows
    jobs = [job for _, job in sorted(ranked, key=lambda each: each[0])]
    _check_distinct(jobs)
    lines = [f"{data} is left out: {error}" for data, error in missing]
    plan = plan_jobs(jobs, label=item.name, command=command)
    return replace(plan, warnings=(*lines, *plan.warnings))


def _check_request(request: EvaluationRequest) -> None:
    """Check the single values of a request.

    Raises:
        BadParameter: for a blank text, or a value of another type or out of range.
        BadData: for a data root that does not exist.
    """
    texts = [(model, "model") for model in request.models if not _is_object(model)]
    texts += [(attack, "attack") for attack in request.attacks if not _is_object(attack)]
    texts += [(getattr(request, key), key) for key in ("suite", "threat", "dataset")]
    for value, name in texts:
        if value is not None and not (name in ("threat", "dataset") and _is_object(value)):
            check_text(value, name)
    check_seed(request.seed)
    check_device(request.device)
    check_root(request.data_root)


def _is_object(value: object) -> bool:
    """Return whether a value is an object to evaluate, rather than a name, a number or nothing."""
    return not isinstance(value, str | bytes | int | float | list | tuple | dict | None)


def _compatible(
    jobs: Iterable[Job], skipped: Iterable[CapabilityMismatch]
) -> tuple[tuple[Job, ...], list[str]]:
    """Return the compatible jobs, and one line about each optional job that is skipped.

    Raises:
        CapabilityMismatch: if a job that is not optional is incompatible, or if every job is.
    """
    fitting, errors = [], list(skipped)
    for job in jobs:
        try:
            check_compatible(job)
        except CapabilityMismatch as error:
            if not job.optional:
                raise
            errors.append(error)
        else:
            fitting.append(job)
    if errors and not fitting:
        raise errors[0]
    return tuple(fitting), [f"skipped: {error}" for error in errors]


def _repeated_models(jobs: Iterable[Job]) -> Iterator[str]:
    """Yield a line for each model that has several labels: it is evaluated once."""
    labels: dict[str, dict[str, None]] = {}
    for job in jobs:
        labels.setdefault(job.model.digest, {})[job.label] = None
    for found in labels.values():
        if len(found) > 1:
            names = " and ".join(label or "a model without label" for label in found)
            yield f"{names} are the same model, which is evaluated once"


def _with_distinct_titles(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Return the jobs with models and attacks of one name distinguished by their digests."""
    models = distinct_labels((job.model.digest, job.label or job.model.name) for job in jobs)
    attacks = distinct_labels((job.attack.digest, job.attack.name) for job in jobs)
    return tuple(
        replace(job, shown=(models[job.model.digest], attacks[job.attack.digest])) for job in jobs
    )


def _name(jobs: tuple[Job, ...], label: str | None) -> str:
    """Return ``<model or suite>-<data set>-<8 hex>``; samples do not count, so that more can be added later."""
    digest = digest_value({"cells": sorted(job.spec.digest for job in jobs)})[:8]
    parts = (label or jobs[0].model.name, jobs[0].dataset.name) if jobs else ("empty",)
    return "-".join([*(_file_name(part) for part in parts), digest])


def _file_name(text: str) -> str:
    short = text.partition("=")[0].rpartition("/")[2].replace(".py", "")
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in short)
    return kept.strip("-")[:40] or "run"


def _check_distinct(jobs: Iterable[Job]) -> None:
    """Raise BadCatalogue if two names denote one cell: its records could be found by one name only."""
    titles: dict[str, str] = {}
    for job in jobs:
        known = titles.setdefault(job.spec.digest, job.title)
        if known != job.title:
            raise BadCatalogue("two trials are the same", got=[known, job.title], expected="one")


def _jobs(
    item: Reproduction, data: str, request: EvaluationRequest, cache: LoadCache
) -> Iterator[tuple[int, Job]]:
    """Yield the jobs of one data set, each with the position of its trial; each model is loaded once."""
    dataset = item.places(request.dataset)[data]
    for model, trials in _models(item, data).items():
        ranked = [(rank, run) for rank in sorted(trials) for run in _runs(item, rank, data)]
        runs = tuple(run for _, run in ranked)
        part = replace(request, models=[model], runs=runs, dataset=dataset)
        jobs = build_jobs(part, cache=cache)
        yield from ((rank, job) for (rank, _), job in zip(ranked, jobs, strict=True))


def _models(item: Reproduction, data: str) -> dict[str, set[int]]:
    """Return every model of the columns, and the positions of the trials that attack it."""
    found: dict[str, set[int]] = {}
    for column in item.columns:
        for rank, trial in enumerate(item.trials):
            if trial.attacks(column):
                found.setdefault(column.model(trial.side, data), set()).add(rank)
    return found


EVERY_FIRST = f"first:{10**9}"
"""All samples, in their own order: a smaller number selects the first ones."""


def _runs(item: Reproduction, rank: int, data: str) -> Iterator[SuiteEntry]:
    trial = item.trials[rank]
    selections = [item.samples, *(each.samples for each in item.trials)]
    # the first samples of one trial are those of all, or attacks that compete have few in common
    first = [EVERY_FIRST] if any(str(each).startswith("first:") for each in selections) else []
    samples = smallest_selection(item.samples, trial.samples, *first)
    for threat in item.threats(trial, data):
        yield SuiteEntry(trial.attack, threat, samples)
