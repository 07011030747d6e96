"""The cells of a report: read from run folders, grouped by threat, combined to the worst case over attacks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.definitions import Selection
from robustbench_inv.reporting.table_formats import dataset_title, norm_symbol
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.run_files import PLAN, RunFolder
from robustbench_inv.results.summary import Rate

__all__ = [
    "CellGroup",
    "RunResult",
    "WorstCase",
    "group_cells",
    "read_runs",
    "worst_cases",
]


@dataclass(frozen=True)
class CellGroup:
    """Cells that are comparable: they share the data set, the norm of distances and the attacker's goal.

    Where the goal depends on the true class of a changed input, they share the oracle as well.
    """

    dataset: str
    norm: str
    goal: str
    oracle: str = ""
    keeps: bool = False
    no_class: bool = False

    @classmethod
    def of(cls, cell: FinishedCell) -> "CellGroup":
        """Return the group of a cell."""
        threat = cell.threat
        needs_oracle = threat.wants_same_prediction or cell.goal.endswith("same-class")
        oracle = threat.oracle.source if threat.oracle and needs_oracle else ""
        flags = threat.wants_same_prediction, threat.no_class
        return cls(cell.dataset.name, cell.norm, cell.goal, oracle, *flags)

    @property
    def rank(self) -> tuple[str, bool, bool, int, str, str, str]:
        """The order in a report: sensitivity before invariance, linf before l2 before the others."""
        norms = ("linf", "l2", "l1", "l0")
        order = norms.index(self.norm) if self.norm in norms else len(norms)
        return self.dataset, self.no_class, self.keeps, order, self.norm, self.goal, self.oracle

    @property
    def title(self) -> str:
        """The heading of its tables and figures."""
        if self.no_class:
            return f"{self.data} · out-of-distribution inputs"
        wanted = "invariance" if self.keeps else "sensitivity"
        usual = {
            "misclassify": "",
            "misclassify-same-class": " (same class)",
            "keep-decision": "",
        }
        plain = usual.get(self.goal, f" ({self.goal})")
        judged = f" · oracle: {self.oracle}" if self.oracle else ""
        return f"{self.data} · {norm_symbol(self.norm)} · {wanted}{plain}{judged}"

    @property
    def data(self) -> str:
        """The data set with its parameters, as words."""
        return dataset_title(self.dataset)


@dataclass(frozen=True)
class RunResult:
    """One run folder: its name, plan, cells that have records, and verdicts of the checks."""

    name: str
    plan: Mapping[str, Any]
    cells: tuple[FinishedCell, ...]
    checks: tuple[Mapping[str, Any], ...]
    pending: tuple[tuple[str, int, int], ...]
    """Unfinished cells: what, samples done, samples planned."""


@dataclass(frozen=True)
class WorstCase:
    """The strongest of several attacks on each sample of one model, at one eps.

    Args:
        model: its name.
        group: data set, norm, goal and oracle.
        eps: inf for any distance.
        ids: the samples that all attacks have records of, ascending.
        cells: the attacks that were run at this eps.
    """

    model: str
    group: CellGroup
    eps: float
    ids: tuple[int, ...]
    cells: tuple[FinishedCell, ...]

    @cached_property
    def robust(self) -> NDArray[np.bool_]:
        """(n,) is the sample robust against all attacks?"""
        each = [cell.robust_mask(self.eps, self.ids) for cell in self.cells]
        return np.asarray(np.all(each, axis=0))

    @cached_property
    def broken_at(self) -> NDArray[np.float64]:
        """(n,) the smallest eps or distance at which any of the attacks broke the sample; inf if none."""
        each = [cell.broken_at[cell.positions(self.ids)] for cell in self.cells]
        return np.asarray(np.min(each, axis=0))

    @property
    def clean(self) -> Rate:
        """The accuracy on these samples before any attack."""
        records = [self.cells[0].records[i] for i in self.cells[0].positions(self.ids)]
        return Rate(sum(r.clean.prediction == r.label for r in records), len(records))

    @property
    def rate(self) -> Rate:
        """The worst-case robust accuracy."""
        return Rate(int(self.robust.sum()), len(self.ids))

    @property
    def strongest(self) -> tuple[str, Rate]:
        """The single attack that breaks most of these samples, and the robust accuracy under it."""
        rates = {cell.attack_label: cell.robust_rate(self.eps, self.ids) for cell in self.cells}
        name = min(rates, key=lambda attack: (rates[attack].successes, attack))
        return name, rates[name]


def read_runs(runs: Sequence[Path], select: Selection | None = None) -> tuple[RunResult, ...]:
    """Read run folders, or folders of run folders; a cell that is in several of them is used once.

    Raises:
        BadResults: if a folder is missing or damaged, or if no cell is selected.
    """
    folders = [folder for run in runs for folder in _run_folders(Path(run))]
    results = [_read_run(folder, select or Selection()) for folder in folders]
    if not any(result.cells or result.pending for result in results):
        raise BadResults(
            "there are no records to report",
            got=[str(run) for run in runs],
            expected="run folders of invbench evaluate",
        )
    return _with_distinct_labels(_deduplicated(results))


def group_cells(cells: Iterable[FinishedCell]) -> dict[CellGroup, list[FinishedCell]]:
    """Return the cells of each group, sensitivity before invariance, each model's cells together.

    Models and attacks keep the order of the plan.
    """
    cells = list(cells)
    models = list(dict.fromkeys(c.model_label for c in cells))
    ordered = sorted(cells, key=lambda c: (*CellGroup.of(c).rank, models.index(c.model_label)))
    return {key: list(group) for key, group in groupby(ordered, key=CellGroup.of)}


def worst_cases(cells: Sequence[FinishedCell]) -> list[WorstCase]:
    """Return the worst case over all attacks of a group, for each model and eps.

    Attacks are combined on the samples that all of them have records of. If an attack has fewer samples than the
    others, a second row combines all attacks on those.

    Args:
        cells: of one group.
    """
    found = []
    for model, group in groupby(cells, key=lambda c: c.model_label):
        mine = list(group)
        for ids in sorted(
            {c.sample_ids for c in mine}, key=lambda ids: (-len(ids), min(ids, default=0))
        ):
            covering = [c for c in mine if c.sample_ids >= ids]
            for eps in _eps_levels(covering):
                covers = tuple(c for c in covering if c.covers(eps))
                if any(c.sample_ids == ids for c in covers):
                    found.append(
                        WorstCase(model, CellGroup.of(cells[0]), eps, tuple(sorted(ids)), covers)
                    )
    return found


def _eps_levels(cells: Iterable[FinishedCell]) -> list[float]:
    return sorted({eps for cell in cells for eps in cell.epsilons}) or [inf]


def _run_folders(path: Path) -> list[Path]:
    """Return the folder itself, or the runs in it if it is a folder of runs."""
    inner = sorted(plan.parent for plan in path.glob(f"*/{PLAN}"))
    return inner if inner and not RunFolder(path).exists else [path]


def _read_run(path: Path, select: Selection) -> RunResult:
    folder = RunFolder(path)
    plan = folder.plan
    cells = [cell.read() for cell in folder.cells()]
    chosen = [cell for cell in cells if select.matches_cell(cell)]
    pending = [_unfinished(cell) for cell in chosen if not cell.finished]
    here = {cell.digest for cell in cells}
    for entry in plan["cells"]:
        named = {key: str(entry[key]) for key in ("model", "attack", "dataset")}
        if entry["digest"] not in here and select.matches(**named):
            count = int(entry.get("samples", len(plan["samples"])))
            pending.append((f"{named['attack']} on {named['model']}", 0, count))
    started = tuple(cell for cell in chosen if cell.records)
    return RunResult(path.resolve().name, plan, started, tuple(folder.checks()), tuple(pending))


def _unfinished(cell: FinishedCell) -> tuple[str, int, int]:
    return f"{cell.attack_label} on {cell.model_label}", len(cell.records), len(cell.requested)


def _deduplicated(results: Sequence[RunResult]) -> list[RunResult]:
    """Keep the copy of each cell with the most records."""
    best: dict[str, FinishedCell] = {}
    for cell in (cell for result in results for cell in result.cells):
        name = cell.digest
        if name not in best or len(cell.records) > len(best[name].records):
            best[name] = cell
    kept = {id(cell) for cell in best.values()}
    return [replace(r, cells=tuple(c for c in r.cells if id(c) in kept)) for r in results]


def _with_distinct_labels(results: Sequence[RunResult]) -> tuple[RunResult, ...]:
    """Make labels of models and attacks with the same name distinct, by the start of their digest or their seed."""
    cells = [cell for result in results for cell in result.cells]
    models = _digests_by_name((c.model_label, c.model.digest) for c in cells)
    attacks = _digests_by_name((c.attack_label, c.attack.digest) for c in cells)
    substitutes = _digests_by_name((c.attack_label, _substitute_digest(c)) for c in cells)
    several = len({c.info.seed for c in cells}) > 1

    def rename(cell: FinishedCell) -> FinishedCell:
        model, attack = cell.model_label, cell.attack_label
        model += _digest_suffix(models[model], cell.model.digest)
        suffix = _digest_suffix(attacks[attack], cell.attack.digest)
        suffix += _digest_suffix(substitutes[attack], _substitute_digest(cell))
        suffix += f" seed {cell.info.seed}" if several else ""
        return replace(cell, model_label=model, attack_label=attack + suffix)

    return tuple(replace(r, cells=tuple(map(rename, r.cells))) for r in results)


def _substitute_digest(cell: FinishedCell) -> str:
    return cell.threat.substitute.digest if cell.threat.substitute else ""


def _digests_by_name(named: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, digest in named:
        found.setdefault(name, set()).add(digest)
    return found


def _digest_suffix(digests: set[str], digest: str) -> str:
    return f" #{digest[:4]}" if len(digests) > 1 else ""
