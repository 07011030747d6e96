"""The results of an evaluation in Python: records, rates, tables, images, verdicts."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from html import escape
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.arguments import printable, python_call
from robustbench_inv.checks.audit_verdict import (
    CONCLUSIONS,
    Conclusion,
    ConclusionName,
    conclude,
)
from robustbench_inv.checks.suite import verdicts_about
from robustbench_inv.checks.verdict import GRADES, Verdict, is_checked, mark_of_cells
from robustbench_inv.errors import BadParameter, BadResults, EvaluationWarning, InvbenchError
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.plan import Plan
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.labels import Labels, names_and_digests
from robustbench_inv.results.rate import Decision
from robustbench_inv.results.rates import attack_seconds, cell_to_json
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import CELL, RunFolder
from robustbench_inv.results.run_writing import check_seconds
from robustbench_inv.results.summary import CellSummary

if TYPE_CHECKING:
    import pandas as pd

    from robustbench_inv.reporting.run_plot import RunPlot

__all__ = ["AdversarialExamples", "CellFailure", "Run", "warn_of_failures"]


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


class AdversarialExamples(NamedTuple):
    """The images of one cell, as tensors in memory.

    Args:
        x: (n, …) what the attack returned: an adversarial example where ``broken``, of a sweep that of the smallest eps
            that breaks the sample; else its last attempt, or the clean input.
        y: (n,) true classes of the clean inputs.
        broken: (n,) did the attack reach its goal?
        predictions: (n,) predicted classes of ``x``; −1 without a valid output.
        clean: (n, …) the clean inputs.
        samples: (n,) sample ids, ascending.
    """

    x: Tensor
    y: Tensor
    broken: Tensor
    predictions: Tensor
    clean: Tensor
    samples: Tensor

    def __repr__(self) -> str:
        shape = tuple(self.x.shape)
        return f"AdversarialExamples(x: {shape}, broken: {int(self.broken.sum())} of {len(self.y)})"


TABLE = {
    "model": "model",
    "attack": "attack",
    "norm": "norm",
    "eps": "eps",
    "clean_accuracy": "clean",
    "robust_accuracy": "robust",
    "robust_accuracy_low": "low",
    "robust_accuracy_high": "high",
    "samples": "n",
    "checks": "checks",
}
"""Columns of ``Run.table``: their names in the detailed table, and in the short one."""

DISTINGUISHING = ("dataset", "goal", "oracle", "seed")
"""Columns that the short table has as well if they differ between its rows."""

REJECTION = ("accuracy_with_rejection", "false_rejection")
"""Columns that it has as well if a model can reject inputs; ``robust`` counts a rejection as robust."""


@dataclass(frozen=True, repr=False)
class Run:
    """The results of an evaluation, restricted to its samples.

    ``print(run)`` prints the table and the verdicts; a notebook shows the same.

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
        return [_restrict(self._reader(job.spec.digest), job.samples) for job in self._jobs]

    @property
    def folder_cells(self) -> list[FinishedCell]:
        """Every cell in the folder with all its samples, also those of earlier runs."""
        return [self._reader(cell.digest) for cell in RunFolder(self.path).cells()]

    @cached_property
    def _reader(self) -> Callable[[str], FinishedCell]:
        """Reads a cell by its digest, once."""
        found = RunFolder(self.path).cells()
        folders = {cell.digest: cell for cell in found}
        labels = Labels.of((cell.info, cell.label) for cell in found)
        return cache(lambda digest: labels.apply(folders[digest].read()))

    @property
    def _jobs(self) -> list[Job]:
        return [job for job in self.plan.jobs if (self.path / job.spec.digest / CELL).exists()]

    @property
    def verdict(self) -> ConclusionName:
        """Can the numbers be published? The worst of ``conclusions``; *do not publish* if there are no numbers."""
        found = {conclusion.verdict for conclusion in self.conclusions}
        return next((name for name in reversed(CONCLUSIONS) if name in found), CONCLUSIONS[-1])

    @cached_property
    def conclusions(self) -> list[Conclusion]:
        """Whether the numbers of each model on each data set can be published, why not, and the next command."""
        return conclude(self.cells, self._verdicts)

    @property
    def decisions(self) -> list[Decision]:
        """What evaluations into this folder decided with as few samples as needed."""
        return Decision.all_of(RunFolder(self.path).plan)

    @property
    def checks(self) -> list[Verdict]:
        """The verdicts of the validity checks on these cells and their models, FAIL first; empty without checks."""
        about = (v for v in self._verdicts if any(v.concerns(cell) for cell in self.cells))
        return sorted(about, key=lambda verdict: GRADES.index(verdict.verdict))

    @cached_property
    def _verdicts(self) -> list[Verdict]:
        return [Verdict.from_json(value) for value in RunFolder(self.path).checks()]

    @cached_property
    def _check_seconds(self) -> float | None:
        return check_seconds(RunFolder(self.path))

    def records(self) -> list[Record]:
        """Return the records of all cells, cell by cell, in ascending order of sample id."""
        return [record for cell in self.cells for record in cell.records]

    def __fspath__(self) -> str:
        return str(self.path)

    def summary(self) -> list[CellSummary]:
        """Return the rates and counts of each cell."""
        return [cell.summary for cell in self.cells]

    def table(self, *, details: bool = False) -> "pd.DataFrame":
        """Return one row for each model, attack and eps.

        The columns are model, attack, norm, eps (nan without a budget), clean and robust accuracy (without a budget: at
        any distance), low and high (the 95 % interval of the robust accuracy), n (samples), and checks: FAIL, WARN or PASS, the worst that a check
        gives; empty without checks. Dataset, goal, oracle and seed follow if they differ between rows, and for a model
        with a reject option the accuracy under attack that counts a rejection as an error, and the rejected clean inputs.

        Args:
            details: return all columns: goal, seed, attack success rate, median distance, passes, statuses and others,
                with long names.
        """
        from robustbench_inv.reporting.facts import summary_frame

        frame = summary_frame(self.cells)
        grades = [self._grade(cell) for cell in self.cells for _ in cell.summary.robust_accuracy]
        frame["checks"] = grades
        further = [name for name in DISTINGUISHING if self.cells and len(set(frame[name])) > 1]
        further += [name for name in REJECTION if name in frame]
        return frame if details else frame.reindex(columns=[*TABLE, *further]).rename(columns=TABLE)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each record; nested fields are joined by a dot (``adversarial.prediction``).

        Digests distinguish cells, models, attacks and data sets; names are labels.
        """
        import pandas as pd

        rows = []
        for job, cell in zip(self._jobs, self.cells, strict=True):
            about = {**job.to_json(), **names_and_digests(cell)}
            rows += [{**about, **json.loads(record.to_json_line())} for record in cell.records]
        return pd.json_normalize(rows)

    def to_json(self) -> list[dict[str, Any]]:
        """Return one object for each cell, as ``evaluate --json`` prints them."""
        return [_cell_json(cell, self) for cell in self.cells]

    def adversarial(
        self, model: str | None = None, attack: str | None = None, threat: str | None = None
    ) -> AdversarialExamples:
        """Return the images of one cell, which an evaluation with ``keep_images=True`` stores.

        Args:
            model: its name or label, as in ``table``; None if the run has one model.
            attack: its name; None if the run has one attack.
            threat: its text, such as ``linf=0.1``; None if the attack was run under one threat.

        Raises:
            BadParameter: if no cell, or more than one, has these names.
            BadResults: if no images are stored, or not those of all samples.
        """
        cell = self._find(model=model, attack=attack, threat=threat)
        images, ids = cell.read_images(), [record.sample for record in cell.records]
        rows = {} if images is None else {int(s): i for i, s in enumerate(images["samples"])}
        if images is None or not rows.keys() >= set(ids):
            raise BadResults(
                f"no images are stored for {cell.subject}",
                got=f"images of {len(rows.keys() & set(ids))} of {len(ids)} samples",
                remedy='evaluate with keep_images=True, existing="redo"',
            )
        chosen = [rows[sample] for sample in ids]
        return AdversarialExamples(
            x=torch.from_numpy(images["adversarial"][chosen]),
            y=torch.tensor([record.label for record in cell.records]),
            broken=torch.tensor([record.is_broken for record in cell.records]),
            predictions=torch.tensor([r.adversarial.prediction for r in cell.records]),
            clean=torch.from_numpy(images["clean"][chosen]),
            samples=torch.tensor(ids),
        )

    def plot(self) -> "RunPlot":
        """Return a figure of matplotlib: accuracy against eps, one panel for each data set, norm and goal.

        Invariance attacks get the share of failures within each distance. Save it by ``run.plot().savefig("a.pdf")``.

        Raises:
            BadResults: if no attack of the run searches inputs.
        """
        from robustbench_inv.reporting.run_plot import plot_cells

        return plot_cells(self.cells)

    def _find(self, **names: str | None) -> FinishedCell:
        """Return the only cell with some names.

        Raises:
            BadParameter: if there is none, or more than one.
        """
        wanted = {key: name for key, name in names.items() if name is not None}
        known = [(_names_of(cell), cell) for cell in self.cells]
        found = [c for n, c in known if all(name in n[key] for key, name in wanted.items())]
        if len(found) == 1:
            return found[0]
        raise BadParameter(
            "several cells have these names" if found else "no cell has these names",
            got=wanted or None,
            expected=f"one of {', '.join(cell.subject for cell in found or self.cells) or 'none'}",
            remedy="name model, attack and threat as run.table() does",
        )

    def _grade(self, cell: FinishedCell) -> str:
        """Return FAIL, WARN or PASS, the worst of the checks of a cell; empty without checks."""
        found = {verdict.verdict for verdict in verdicts_about(self._verdicts, cell)}
        known = ("FAIL", "WARN", "PASS")[: 3 if is_checked(cell, self._verdicts) else 2]
        return next((each for each in known if each in found), "")

    def __repr__(self) -> str:
        try:
            about = f", cells={len(self.cells)}, verdict={self.verdict!r}"
        except InvbenchError as error:  # the folder was changed
            about = f", unreadable: {error}"
        return f"Run({str(self.path)!r}{about})"

    def __str__(self) -> str:
        table = self._display.to_string(index=False) if self.cells else "no results"
        return printable("\n".join([table, "", *self._lines()]))

    def _repr_html_(self) -> str:
        table = self._display.to_html(index=False, border=0)
        return printable(table + "".join(f"<p>{escape(line)}</p>" for line in self._lines()))

    @property
    def _display(self) -> "pd.DataFrame":
        """The table as texts for people."""
        import pandas as pd

        from robustbench_inv.reporting.facts import result_texts

        rows = [
            row
            for cell in self.cells
            for row in result_texts(cell, mark_of_cells([cell], self._verdicts))
        ]
        return pd.DataFrame(rows, dtype=str).fillna("")

    def _lines(self) -> Iterator[str]:
        """Yield the failures, the decisions, then the verdict on each model, its further reasons, and the next command."""
        from robustbench_inv.results.sequences import early_texts

        yield from (f"failed: {failure}" for failure in self.failures)
        yield from early_texts(self.decisions, self.cells)
        for each in self.conclusions:
            yield f"verdict on {each.model}, {each.dataset}: {each.text}"
            yield from (f"also: {reason.text}" for reason in each.reasons[1:])
            if each.command:
                yield f"next: {python_call(each.command, each.dataset)}"


def warn_of_failures(run: Run, *, checked: bool) -> None:
    """Warn, once for a run, of cells that failed and of numbers that must not be published.

    The warning names the line outside of this package that started the evaluation.

    Args:
        run: the results.
        checked: were the checks run? Their verdicts of an earlier evaluation are not repeated.
    """
    found = [f"{len(run.failures)} failures: {run.failures[0]}"] if run.failures else []
    conclusions = run.conclusions if checked else []
    if failed := [each for each in conclusions if each.verdict == "do not publish"]:
        more = f" (and {len(failed) - 1} more models)" if len(failed) > 1 else ""
        found.append(f"{failed[0].model}{more}: {failed[0].text}")
    if found:
        text = printable(" ".join([*found, "See run.checks."]))
        warnings.warn(text, EvaluationWarning, stacklevel=_levels_to_caller())


def _levels_to_caller() -> int:
    """Return the level, for ``warn_of_failures``, of the first function that is not of this package."""
    level, frame = 0, sys._getframe(1)
    here: FrameType | None = frame
    while here and here.f_globals.get("__name__", "").partition(".")[0] == "robustbench_inv":
        level, here = level + 1, here.f_back
    return level + 1


def _names_of(cell: FinishedCell) -> dict[str, tuple[str, ...]]:
    """Return the names by which the user may call the parts of a cell."""
    return {
        "model": (cell.model_label, cell.model.name),
        "attack": (cell.attack_label, cell.attack.name),
        "threat": (cell.threat.text, cell.norm),
    }


def _restrict(cell: FinishedCell, samples: Sequence[int]) -> FinishedCell:
    """Return a cell of which some samples alone are requested, with their records."""
    kept, requested = np.isin(cell.ids, samples), tuple(sorted(samples))
    if kept.all():
        return replace(cell, requested=requested)
    records = cell.records.where(kept)
    return replace(cell, records=records, requested=requested, whole=cell.records)


def _cell_json(cell: FinishedCell, run: Run) -> dict[str, Any]:
    checks = [verdict.to_json() for verdict in verdicts_about(run._verdicts, cell)]
    verdict = next((c.to_json() for c in run.conclusions if c.concerns(cell)), None)
    place = str(run.path / cell.digest)
    seconds = {"attack_seconds": attack_seconds(cell), "check_seconds": run._check_seconds}
    return {**cell_to_json(cell), **seconds, "checks": checks, "verdict": verdict, "path": place}
