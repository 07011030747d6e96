"""Evaluates models, with validity checks: the entry point for the command line and for Python."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_inv.arguments import check_flag, check_folder, check_path
from robustbench_inv.catalogue.datasets import load_arrays
from robustbench_inv.checks.audit_verdict import Conclusion, conclude
from robustbench_inv.checks.model_checks import TimeLimit, probe_model
from robustbench_inv.checks.suite import check_records, verdicts_about
from robustbench_inv.checks.verdict import Verdict
from robustbench_inv.errors import BadParameter
from robustbench_inv.evaluation.engine import (
    Existing,
    ProgressCallback,
    RunOptions,
    ignore_progress,
)
from robustbench_inv.evaluation.jobs import EvaluationRequest, Job
from robustbench_inv.evaluation.loading import as_list, as_models
from robustbench_inv.evaluation.plan import Plan, make_plan
from robustbench_inv.evaluation.schedule import (
    CellOutcome,
    Workers,
    check_locks,
    check_workers,
    run_jobs,
)
from robustbench_inv.evaluation.stored_answers import refuse_changed_cells
from robustbench_inv.foreign import foreign, time_limit
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.labels import Labels
from robustbench_inv.results.rates import attack_seconds, cell_to_json
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import CELL, CellFolder, RunFolder
from robustbench_inv.results.run_writing import (
    check_seconds,
    read_old_verdicts,
    write_checks,
    write_plan,
)
from robustbench_inv.results.summary import CellSummary
from robustbench_inv.threat.threat_model import ThreatModel
from robustbench_inv.torch_state import kept_modules

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CellFailure", "Run", "check_run", "check_target", "evaluate", "run_plan"]


DEFAULT_FOLDER = Path("runs")
"""Where results go if no folder is named, relative to the current directory."""


@dataclass(frozen=True)
class CellFailure:
    """A cell that is incomplete, or on some samples of which the attack crashed or the model failed.

    Args:
        cell: the cell's title.
        reason: one line.
    """

    cell: str
    reason: str

    def __str__(self) -> str:
        return f"{self.cell}: {self.reason}"


@dataclass(frozen=True)
class Run:
    """The results of an evaluation, restricted to its samples.

    Args:
        path: folder of the results.
        plan: the evaluated cells.
        failures: cells that failed; the command line exits with 1 if there are any.
        notes: messages for the user.
    """

    path: Path
    plan: Plan
    failures: tuple[CellFailure, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def cells(self) -> list[FinishedCell]:
        """The cells that have results, in the order of the plan, with the requested samples only."""
        found = RunFolder(self.path).cells()
        folders = {cell.digest: cell for cell in found}
        labels = Labels.of((cell.info, cell.label) for cell in found)
        return [
            _restrict(labels.apply(folders[job.spec.digest].read()), job.samples)
            for job in self._jobs
        ]

    @property
    def _jobs(self) -> list[Job]:
        return [job for job in self.plan.jobs if (self.path / job.spec.digest / CELL).exists()]

    def records(self) -> list[Record]:
        """Return the records of all cells, cell by cell, in ascending order of sample id."""
        return [record for cell in self.cells for record in cell.records]

    def summary(self) -> list[CellSummary]:
        """Return the rates and counts of each cell."""
        return [cell.summary for cell in self.cells]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each record; nested fields are joined by a dot (``adversarial.prediction``).

        Digests distinguish cells, models, attacks and data sets; names are labels.
        """
        import pandas as pd

        rows = []
        for job, cell in zip(self._jobs, self.cells, strict=True):
            about = {**job.to_json(), **_labels_and_digests(cell)}
            rows += [{**about, **json.loads(record.to_json_line())} for record in cell.records]
        return pd.json_normalize(rows)

    def to_json(self) -> list[dict[str, Any]]:
        """Return one object for each cell, as ``evaluate --json`` prints them."""
        return [_cell_json(cell, self) for cell in self.cells]

    @cached_property
    def conclusions(self) -> list[Conclusion]:
        """Whether the numbers of each model on each data set can be published, why not, and the next command."""
        return conclude(self.cells, self._verdicts)

    @cached_property
    def _verdicts(self) -> list[Verdict]:
        return [Verdict.from_json(value) for value in RunFolder(self.path).checks()]


def evaluate(  # noqa: PLR0913 - the command line's options, each of which a user may leave out
    *,
    model: object,
    attack: object = None,
    suite: str | None = None,
    threat: str | ThreatModel | None = None,
    dataset: object = None,
    x: object = None,
    y: object = None,
    samples: int | str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    existing: Existing = "resume",
    batch_size: int | None = None,
    device: str = "cpu",
    workers: Workers = 1,
    keep_images: bool = False,
    data_root: str | Path | None = None,
    progress: ProgressCallback = ignore_progress,
    checks: bool = True,
    timeout: float | None = None,
    command: Sequence[str] = (),
) -> Run:
    """Attack models, write a record for each sample, and return the results; your models are unchanged.

    Args:
        model: a name, an ``nn.Module`` that declares bounds, a ``Classifier``, a list of these, or a mapping from your
            labels to these.
        attack: a name, an attack, or a list of these; optional if there is a suite.
        suite: name of a list of attacks and threats.
        threat: ``NORM=EPS[,EPS…]``, ``none``, ``customary``, a name, or a threat; None for the default of attack and
            data set.
        dataset: a name or a data set; None for x and y, else the data set of each model's card.
        x: (N, …) inputs, tensor or array, instead of a data set; grey levels 0 to 255 and channels in the last dimension
            are recognised, and ``Run.notes`` names them.
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
        progress: called with a ``Progress`` after each block, and about every second within one.
        checks: run the validity checks and write checks.json.
        timeout: seconds that one call of a model, attack or other code outside this package may take; None for no
            limit. It holds in the main thread.
        command: the user's command, for plan.json.

    Raises:
        UsageError: for an impossible request, before anything runs.

    Example:
        >>> run = evaluate(model="mnist-cnn", attack="pgd", threat="linf=0.1", samples=100)  # doctest: +SKIP
        >>> run.summary()[0].robust_accuracy[0].value  # doctest: +SKIP
        0.04
    """
    options = RunOptions(batch_size, device, keep_images, existing, timeout)
    _check_extras(progress, checks, command)
    check_target(out, workers)
    with foreign("the evaluation"), time_limit(timeout), kept_modules(_objects(model)):
        plan = make_plan(
            EvaluationRequest(
                models=as_models(model),
                attacks=[] if attack is None else as_list(attack),
                suite=suite,
                threat=threat,
                dataset=_dataset(dataset, x, y, model),
                samples=samples,
                seed=seed,
                device=device,
                data_root=None if data_root is None else str(check_path(data_root, "data root")),
            ),
            command,
        )
        return run_plan(plan, out, options, progress, workers, checks=checks)


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
    if not callable(progress):
        raise BadParameter("unusable progress", got=progress, expected="a function")


def run_plan(
    plan: Plan,
    out: str | Path | None = None,
    options: RunOptions | None = None,
    progress: ProgressCallback = ignore_progress,
    workers: Workers = 1,
    *,
    checks: bool = False,
) -> Run:
    """Run a plan's cells, optionally with the validity checks.

    Args:
        plan: the cells.
        out: folder of the results; None for ``runs/<plan>``.
        options: how to run.
        progress: called with a ``Progress`` after each block, and about every second within one.
        workers: number of local processes, or ``ray``.
        checks: run the validity checks and write checks.json.

    Raises:
        BadResults: if the results cannot be written.
    """
    check_target(out, workers)
    options = options or RunOptions()
    path = Path(out) if out is not None else DEFAULT_FOLDER / plan.name
    check_locks(plan.jobs, path, options)
    if options.existing != "redo":
        repair = options.existing == "repair"
        refuse_changed_cells(plan.jobs, path, options.device, repair=repair)
    remarks = RunFolder(path).remarks if RunFolder(path).exists else ()
    folder = write_plan(path, plan.to_json())
    if checks:
        read_old_verdicts(folder, repair=options.existing == "repair")
    outcomes = run_jobs(plan.jobs, path, options, progress, workers)
    failures = [
        CellFailure(outcome.title, reason)
        for outcome in outcomes
        for reason in _reasons(outcome, CellFolder(path / outcome.digest))
    ]
    notes = [note for outcome in outcomes for note in outcome.notes]
    run = Run(path, plan, tuple(failures), (*plan.warnings, *remarks, *notes))
    if checks:
        check_run(run, options.device)
    return run


def check_target(out: str | Path | None, workers: Workers) -> None:
    """Check where an evaluation writes and runs, before anything is loaded; nothing is written.

    Args:
        out: folder of the results; None for the default.
        workers: number of local processes, or ``ray``.

    Raises:
        BadParameter: for an unusable number of workers, or no path.
        BadResults: if the folder cannot be written.
        MissingExtra: if Ray is requested and not installed.
    """
    check_workers(workers)
    folder = check_path(DEFAULT_FOLDER if out is None else out, "folder of results")
    if not RunFolder(folder).exists:  # a finished run can be read on a read-only disk
        check_folder(folder)


CHECK_SECONDS = 20.0
"""Seconds that the checks of a model may take, more if its attacks took longer."""


def check_run(run: Run, device: str, seconds: float | None = None) -> None:
    """Check the models and the records of all cells in the folder, and write checks.json.

    Args:
        run: the evaluated run.
        device: where the models compute.
        seconds: time for the checks of all models; None for that of the attacks, at least CHECK_SECONDS each.
    """
    began, folder, jobs = time.perf_counter(), RunFolder(run.path), _models(run.plan)
    found = folder.cells()
    labels = Labels.of((cell.info, cell.label) for cell in found)
    cells, probes = [labels.apply(cell.read()) for cell in found], list[Verdict]()
    for job in jobs:
        attacks = sum(attack_seconds(cell) for cell in cells if cell.model.key == job.model.digest)
        limit = TimeLimit(max(attacks, CHECK_SECONDS))
        limit = TimeLimit(seconds / len(jobs), by_the_clock=True) if seconds else limit
        subject = labels.models.get(job.model.digest, job.model.name)
        verdicts = _probe(job, device, run.plan.deep, limit)
        probes += [replace(verdict, subject=subject) for verdict in verdicts]
    asked = {job.spec.digest: job.samples for job in run.plan.jobs}
    checked = [verdict.to_json() for verdict in check_records(cells, asked, probes)]
    write_checks(folder, checked, round(time.perf_counter() - began, 1))


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


def _probe(job: Job, device: str, deep: bool, limit: TimeLimit) -> list[Verdict]:
    about = (job.model.digest, job.spec.dataset)
    settings = (job.model, job.dataset, job.samples, job.seed, device)
    return [replace(v, about=about) for v in probe_model(*settings, deep=deep, limit=limit)]


def _labels_and_digests(cell: FinishedCell) -> dict[str, str]:
    named = {"model": cell.model.name, "attack": cell.attack.name, "dataset": cell.dataset.name}
    return {
        **named,
        "model_digest": cell.model.key,
        "attack_digest": cell.attack.key,
        "dataset_digest": cell.info.dataset_key,
    }


def _restrict(cell: FinishedCell, samples: Sequence[int]) -> FinishedCell:
    """Return a cell with the records of some samples alone."""
    wanted = frozenset(samples)
    return replace(cell, records=tuple(r for r in cell.records if r.sample in wanted))


def _cell_json(cell: FinishedCell, run: Run) -> dict[str, Any]:
    checks = [verdict.to_json() for verdict in verdicts_about(run._verdicts, cell)]
    verdict = next((c.to_json() for c in run.conclusions if c.concerns(cell)), None)
    place = str(run.path / cell.digest)
    seconds = {
        "attack_seconds": attack_seconds(cell),
        "check_seconds": check_seconds(RunFolder(run.path)),
    }
    return {**cell_to_json(cell), **seconds, "checks": checks, "verdict": verdict, "path": place}
