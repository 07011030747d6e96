"""Evaluates models, with validity checks: the entry point for the command line and for Python."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from torch import nn

from robustbench_inv.arguments import check_flag, check_folder, check_path
from robustbench_inv.attacks.protocol import Attack
from robustbench_inv.catalogue.attacks import LoadedAttack
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.checks.model_checks import TimeLimit, probe_model
from robustbench_inv.checks.suite import check_records
from robustbench_inv.checks.verdict import IMPOSSIBLE, NOT_MADE, Verdict
from robustbench_inv.data.arrays import Array
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.deciding import StopRule, first_stage, run_until_decided
from robustbench_inv.errors import BadParameter, UsageError
from robustbench_inv.evaluation.engine import (
    Existing,
    ProgressCallback,
    RunOptions,
    ignore_progress,
)
from robustbench_inv.evaluation.jobs import EvaluationRequest, Job
from robustbench_inv.evaluation.joining import write_jobs
from robustbench_inv.evaluation.loading import as_list, as_models, as_oracle, load_arrays
from robustbench_inv.evaluation.plan import Plan, make_plan
from robustbench_inv.evaluation.provenance import digest_subject
from robustbench_inv.evaluation.schedule import (
    CellOutcome,
    Workers,
    check_locks,
    check_workers,
    run_jobs,
    shared_searches,
)
from robustbench_inv.evaluation.stored_answers import refuse_changed_cells
from robustbench_inv.foreign import foreign, time_limit
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.progress import is_interactive, show_progress
from robustbench_inv.results.certificates import CertificateOptions
from robustbench_inv.results.rates import attack_seconds
from robustbench_inv.results.run_files import CellFolder, RunFolder
from robustbench_inv.results.run_writing import (
    checked_subject,
    read_old_verdicts,
    write_checks,
    write_plan,
)
from robustbench_inv.run import CellFailure, Run, warn_of_failures
from robustbench_inv.threat.threat_model import ThreatModel
from robustbench_inv.torch_state import kept_modules

__all__ = [
    "AttackSource",
    "Inputs",
    "Labelling",
    "ModelSource",
    "Models",
    "check_run",
    "check_target",
    "evaluate",
    "progress_callback",
    "run_plan",
]

ModelSource = str | nn.Module | Classifier | LoadedModel
"""A name, a network that declares ``bounds``, an object with the protocol, or what ``load_model`` returned."""

Models = ModelSource | Sequence[ModelSource] | Mapping[str, ModelSource]
"""One model, several, or a mapping from your labels to models."""

AttackSource = str | Attack | LoadedAttack
"""A name, an attack, or what ``load_attack`` returned."""

Inputs = Array | Sequence[object]
"""(N, …) numbers: a tensor, an array, or nested lists."""

Labelling = Array | Sequence[int] | Sequence[str]
"""(N,) labels: whole numbers, or names of classes."""


DEFAULT_FOLDER = Path("runs")
"""Where results go if no folder is named, relative to the current directory."""


def evaluate(  # noqa: PLR0913 - the command line's options, each of which a user may leave out
    model: Models,
    *,
    attack: AttackSource | Sequence[AttackSource] | None = None,
    suite: str | None = None,
    threat: str | ThreatModel | None = None,
    oracle: str | Models | None = None,
    dataset: str | Dataset | None = None,
    x: Inputs | None = None,
    y: Labelling | None = None,
    samples: int | str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    existing: Existing = "resume",
    batch_size: int | None = None,
    device: str = "cpu",
    workers: Workers = 1,
    keep_images: bool = False,
    data_root: str | Path | None = None,
    progress: ProgressCallback | bool = True,
    checks: bool = True,
    timeout: float | None = None,
    fail_under: float | None = None,
    until_decided: bool = False,
    certify: bool | CertificateOptions = False,
    command: Sequence[str] = (),
) -> Run:
    """Attack models, write a record for each sample, and return the results; your models are unchanged.

    ``Run.verdict`` is the verdict on the numbers: can they be published? If they must not, or if a cell fails, an
    ``EvaluationWarning`` gives the reason.

    Args:
        model: a name, an ``nn.Module`` that declares bounds, a ``Classifier``, a list of these, or a mapping from your
            labels to these.
        attack: a name, an attack, or a list of these; None for those of the suite, else for ``standard``.
        suite: name of a list of attacks and threats.
        threat: ``NORM=EPS[,EPS…]``, ``none``, ``customary``, a name, or a threat; None for the default of attack and
            data set.
        oracle: gives the true class of a changed input to attacks that need it: ``FILE.csv``, the name of a panel, or
            models that vote, as ``model`` takes several; None for that of the threat, else of the data set.
        dataset: a name or a data set; None for x and y, else the data set of each model's card.
        x: (N, …) inputs, tensor or array, instead of a data set; images of grey levels 0 to 255 and channels in the last
            dimension are recognised, and ``Run.notes`` names them.
        y: (N,) labels of x.
        samples: N for a class-balanced subset, ``first:N`` for the first N, None for all.
        seed: random seed.
        out: folder of the results; None for ``runs/<plan>``.
        existing: resume, skip or redo existing results.
        batch_size: samples of a block.
        device: where models compute, as torch names it.
        workers: number of local processes, or ``ray``.
        keep_images: store the clean and the adversarial images.
        data_root: folder of data files.
        progress: True for a bar if standard error is a terminal, and in notebooks; False for none; or a function,
            called with a ``Progress`` after each block, and about every second within one.
        checks: run the validity checks and write checks.json.
        timeout: seconds that one call of a model, attack or other code outside this package may take; None for no
            limit. It holds in the main thread.
        fail_under: with ``until_decided``, the share that each robust accuracy shall reach.
        until_decided: evaluate samples in random order, and stop when it is decided which of the models is better, the
            first or each other, or on which side of ``fail_under`` each is; see ``Run.decisions``.
        certify: certify the samples after the attacks, in linf or l2; ``certify`` has the options.
        command: the user's command, for plan.json.

    Raises:
        UsageError: for an impossible request, before anything runs.

    Example:
        >>> run = evaluate("mnist-cnn", threat="linf=0.1", samples=100)  # doctest: +SKIP
        >>> run.verdict, run.summary()[0].robust_accuracy[0].value  # doctest: +SKIP
        ('publishable', 0.04)
    """
    wanted = (CertificateOptions() if certify else None) if isinstance(certify, bool) else certify
    options = RunOptions(batch_size, device, keep_images, existing, timeout, certify=wanted)
    _check_extras(progress, checks, command)
    if isinstance(attack, list | tuple) and not attack:
        raise BadParameter("no attack", got=attack, expected="one or more, or None for standard")
    check_target(out, workers, may_wait=True)
    with (
        foreign("the evaluation"),
        time_limit(timeout),
        kept_modules([*_objects(model), *_objects(oracle)]),
    ):
        voters, panel = as_oracle(oracle)
        plan = make_plan(
            EvaluationRequest(
                models=as_models(model),
                attacks=[] if attack is None else as_list(attack),
                suite=suite,
                threat=threat,
                oracle=voters,
                panel=panel,
                dataset=_dataset(dataset, x, y, model),
                samples=samples,
                seed=seed,
                device=device,
                data_root=None if data_root is None else str(check_path(data_root, "data root")),
            ),
            command,
        )
        with progress_callback(progress) as report:
            rule = StopRule.of(fail_under, until_decided=until_decided)
            run = run_plan(plan, out, options, report, workers, checks=checks, rule=rule)
    warn_of_failures(run, checked=checks)
    return run


def progress_callback(
    progress: ProgressCallback | bool,
) -> AbstractContextManager[ProgressCallback]:
    """Return a context that shows the progress as ``evaluate`` does, and gives the function to call."""
    if not isinstance(progress, bool):
        return nullcontext(progress)
    return show_progress() if progress and is_interactive() else nullcontext(ignore_progress)


def _dataset(dataset: object, x: object, y: object, model: object) -> object:
    """Return the data set of a request, of x and y if they are given."""
    if x is None and y is None:
        return dataset
    if dataset is not None:
        raise BadParameter("both a data set and x, y", got=dataset, expected="one of them")
    return load_arrays(x, y, model)


def _check_extras(progress: object, checks: object, command: Sequence[object]) -> None:
    check_flag(checks, "value of checks")
    if isinstance(command, str) or not all(isinstance(word, str) for word in command):
        raise BadParameter("unusable command", got=command, expected="a list of words")
    if not isinstance(progress, bool) and not callable(progress):
        expected = "True, False or a function"
        raise BadParameter("unusable progress", got=progress, expected=expected)


def run_plan(  # noqa: PLR0913 - what to run, where, how, and when to stop
    plan: Plan,
    out: str | Path | None = None,
    options: RunOptions | None = None,
    progress: ProgressCallback = ignore_progress,
    workers: Workers = 1,
    *,
    checks: bool = False,
    rule: StopRule | None = None,
) -> Run:
    """Run a plan's cells, optionally with the validity checks.

    Args:
        plan: the cells.
        out: folder of the results; None for ``runs/<plan>``.
        options: how to run.
        progress: called with a ``Progress`` after each block, and about every second within one.
        workers: number of local processes, or ``ray``.
        checks: run the validity checks and write checks.json.
        rule: stop when it is decided; None to evaluate all samples.

    Raises:
        BadResults: if the results cannot be written.
    """
    check_target(out, workers, may_wait=True)
    options, whole = options or RunOptions(), plan
    if rule:
        rule.check(plan, options, workers)
        plan = first_stage(plan)
    path = Path(out) if out is not None else DEFAULT_FOLDER / plan.name
    check_locks(plan.jobs, path, options)
    if options.existing != "redo":
        repair = options.existing == "repair"
        refuse_changed_cells(plan.jobs, path, options.device, repair=repair)
    remarks = RunFolder(path).remarks if RunFolder(path).exists else ()
    folder = write_plan(path, plan.to_json())
    if workers == 0 and not write_jobs(path, plan.jobs, shared_searches(plan.jobs), options):
        raise UsageError(
            "no other process can load these objects",
            remedy="name model, attack and data, as file.py:factory, or use --workers 2",
        )
    if checks:
        read_old_verdicts(folder, repair=options.existing == "repair")
    if workers == 0:
        return Run(path, plan, (), (*plan.warnings, *remarks, WAITS.format(path)))
    if rule:
        outcomes, plan = run_until_decided(whole, path, options, progress, workers, rule)
    else:
        outcomes = run_jobs(plan.jobs, path, options, progress, workers)
    failures = [
        CellFailure(outcome.title, reason)
        for outcome in outcomes
        for reason in _reasons(outcome, CellFolder(path / outcome.digest))
    ]
    notes = [note for outcome in outcomes for note in outcome.notes]
    if options.certify:
        from robustbench_inv.certification.verify import certify_jobs

        notes += certify_jobs(plan.jobs, path, options.certify)
    run = Run(path, plan, tuple(failures), (*plan.warnings, *remarks, *notes))
    if checks:
        check_run(run, options.device)
    return run


WAITS = (
    "the run waits for processes: invbench work {}; afterwards run this command with --workers 1"
)


def check_target(out: str | Path | None, workers: Workers, *, may_wait: bool = False) -> None:
    """Check where an evaluation writes and runs, before anything is loaded; nothing is written.

    Args:
        out: folder of the results; None for the default.
        workers: number of local processes, or ``ray``.
        may_wait: are 0 workers allowed, so that the run waits for other processes?

    Raises:
        BadParameter: for an unusable number of workers, or no path.
        BadResults: if the folder cannot be written.
        MissingExtra: if Ray is requested and not installed.
    """
    check_workers(workers, may_wait=may_wait)
    folder = check_path(DEFAULT_FOLDER if out is None else out, "folder of results")
    if not RunFolder(folder).exists:  # a finished run can be read on a read-only disk
        check_folder(folder)


CHECK_SECONDS = 20.0
"""Seconds that the checks of a model may take, more if its attacks took longer."""


def check_run(run: Run, device: str, seconds: float | None = None) -> None:
    """Check the models and the records of all cells in the folder, and write checks.json.

    Verdicts that were written of the same cells by the same code are kept.

    Args:
        run: the evaluated run.
        device: where the models compute.
        seconds: time for the checks of all models; None for that of the attacks, at least CHECK_SECONDS each.
    """
    began, folder, jobs = time.perf_counter(), RunFolder(run.path), _models(run.plan)
    cells, probes = run.folder_cells, list[Verdict]()
    subject_digest = digest_subject(run.path, run.plan.jobs, cells, device, deep=run.plan.deep)
    if checked_subject(folder) == subject_digest:
        return
    labels = {cell.model.key: cell.model.name for cell in cells}
    for job in jobs:
        attacks = sum(attack_seconds(cell) for cell in cells if cell.model.key == job.model.digest)
        limit = TimeLimit(max(attacks, CHECK_SECONDS))
        limit = TimeLimit(seconds / len(jobs), by_the_clock=True) if seconds else limit
        subject = labels.get(job.model.digest, job.model.name)
        mine = [cell for cell in cells if cell.model.key == job.model.digest]
        searches = any(c.kind != "fixed-input" or c.uses_gradients for c in mine)
        here = (c.sample_ids for c in mine if c.info.dataset_key == job.spec.dataset)
        samples = sorted(frozenset(job.samples).union(*here))  # an earlier job may have had more
        verdicts = _probe(job, samples, device, limit, deep=run.plan.deep, searches=searches)
        probes += [replace(verdict, subject=subject) for verdict in verdicts]
    asked = {job.spec.digest: job.samples for job in run.plan.jobs}
    verdicts = check_records(cells, asked, probes)
    complete = not any(verdict.evidence.startswith((NOT_MADE, IMPOSSIBLE)) for verdict in verdicts)
    checked = [verdict.to_json() for verdict in verdicts]
    taken = round(time.perf_counter() - began, 1)
    write_checks(folder, checked, taken, subject_digest if complete else None)


def _objects(model: object) -> list[object]:
    """Return the models of a request that are objects, not names."""
    models = model.values() if isinstance(model, Mapping) else as_list(model)
    return [each for each in models if not isinstance(each, str)]


def _reasons(outcome: CellOutcome, folder: CellFolder) -> Iterator[str]:
    if outcome.failure is not None:
        yield outcome.failure
    events = folder.events() if folder.started else []
    for kind, problem in FAILED_SAMPLES.items():
        found = [event for event in events if event.get("event") == kind]
        if found:
            samples = sorted({sample for event in found for sample in event.get("samples", ())})
            named = ", ".join(map(str, samples[:NAMED_SAMPLES]))
            more = ", …" if len(samples) > NAMED_SAMPLES else ""
            count = f"{len(samples)} sample{'' if len(samples) == 1 else 's'} ({named}{more})"
            yield problem.format(count=count, reason=found[-1].get("reason"))


FAILED_SAMPLES = {
    "crash": "the attack crashed on {count}: {reason}",
    "model_failure": "the model failed on {count}, which count as misclassified: {reason}",
}
"""Failures of single samples by their event."""

NAMED_SAMPLES = 5
"""Number of samples that a failure names."""


def _models(plan: Plan) -> list[Job]:
    """Return one job for each pair of model and data set, the one with the most samples."""
    ascending = sorted(plan.jobs, key=lambda job: len(job.samples))
    return list({(job.model.digest, job.spec.dataset): job for job in ascending}.values())


def _probe(
    job: Job, samples: list[int], device: str, limit: TimeLimit, *, deep: bool, searches: bool
) -> list[Verdict]:
    about = (job.model.digest, job.spec.dataset)
    settings = (job.model, job.dataset, samples, job.seed, device)
    verdicts = probe_model(*settings, deep=deep, searches=searches, limit=limit)
    return [replace(verdict, about=about, samples=len(samples)) for verdict in verdicts]
