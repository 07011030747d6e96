"""The cells of a report: read from run folders, grouped by threat, combined to the worst case over attacks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from robustbench_inv.results.certificates import Sandwich, sandwich_of
from robustbench_inv.results.labels import join_copies, label_distinctly
from robustbench_inv.results.rates import closer_attacks, example_distances
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.results.run_writing import check_seconds
from robustbench_inv.results.summary import Rate, same_eps

__all__ = [
    "CellGroup",
    "RunResult",
    "WorstCase",
    "eps_levels",
    "group_cells",
    "main_cases",
    "most_attacked",
    "read_runs",
    "worst_cases",
]


Cells = Sequence[FinishedCell]

GOAL_LIMITS = ("confidence", "tolerance")
"""Parameters that make one goal easier to reach than another; target classes only name different goals."""


@dataclass(frozen=True)
class CellGroup:
    """Cells that are comparable: they share the data set, the norm of distances and the attacker's goal.

    Where the goal depends on the true class of a changed input, they share the oracle as well. Fixed inputs of a data
    set are not combined with attacks that search. ``limits`` are the goal's parameters but for the target class.
    """

    dataset: str
    norm: str
    goal: str
    oracle: str = ""
    keeps: bool = False
    no_class: bool = False
    fixed: bool = False
    limits: str = ""

    @classmethod
    def of(cls, cell: FinishedCell) -> "CellGroup":
        """Return the group of a cell."""
        threat = cell.threat
        needs_oracle = threat.wants_same_prediction or cell.goal.endswith("same-class")
        oracle = threat.oracle.source if threat.oracle and needs_oracle else ""
        fixed = cell.kind == "fixed-input" and not threat.no_class
        flags = threat.wants_same_prediction, threat.no_class, fixed
        parameters = sorted(threat.goal_parameters.items())
        limits = (f", {key} {v:g}" for key, v in parameters if key in GOAL_LIMITS and v)
        return cls(cell.dataset.name, cell.norm, cell.goal, oracle, *flags, "".join(limits))

    @property
    def rank(self) -> tuple[str, bool, bool, bool, int, str, str, str, str]:
        """The order in a report: sensitivity before invariance, linf before l2 before the others."""
        norms = ("linf", "l2", "l1", "l0")
        order = norms.index(self.norm) if self.norm in norms else len(norms)
        kinds = self.no_class, self.keeps, self.fixed
        return self.dataset, *kinds, order, self.norm, self.goal, self.limits, self.oracle

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
        plain = usual.get(self.goal, f" ({self.goal}{self.limits})")
        judged = f" · oracle: {self.oracle}" if self.oracle else ""
        given = " · fixed inputs" if self.fixed else ""
        return f"{self.data} · {norm_symbol(self.norm)} · {wanted}{plain}{given}{judged}"

    @property
    def data(self) -> str:
        """The data set with its parameters, as words."""
        return dataset_title(self.dataset)


@dataclass(frozen=True)
class RunResult:
    """One run folder: its name, plan, cells that have records and ``empty`` ones, and verdicts of the checks."""

    name: str
    plan: Mapping[str, Any]
    cells: tuple[FinishedCell, ...]
    checks: tuple[Mapping[str, Any], ...]
    pending: Mapping[str, tuple[str, int, int]]
    """Unfinished cells by digest: what, samples done, samples planned."""
    remarks: tuple[str, ...] = ()
    """Remarks on the files of the run, one clause each."""
    check_seconds: float | None = None
    """Seconds that the checks took, None if they were not timed."""
    empty: tuple[FinishedCell, ...] = ()


@dataclass(frozen=True)
class WorstCase:
    """The strongest of several attacks on each sample of one model, at one eps.

    Args:
        model: its name.
        group: data set, norm, goal and oracle.
        eps: inf for any distance.
        ids: the samples that all attacks have records of, ascending.
        cells: the attacks that were run at this eps or at a smaller one, whose successes count at this eps too.
        others: without a budget, attacks in other norms or within budgets that have closer adversarial examples.
    """

    model: str
    group: CellGroup
    eps: float
    ids: tuple[int, ...]
    cells: tuple[FinishedCell, ...]
    others: tuple[FinishedCell, ...] = ()

    @cached_property
    def robust(self) -> NDArray[np.bool_]:
        """(n,) is the sample robust against all attacks? Of shifted inputs: are they all classified correctly?"""
        if self.group.fixed and not self.group.keeps:
            return self._all(lambda cell: cell.records.columns.is_correct)
        each = [cell.robust_mask(self.eps, self.ids) for cell in self.cells]
        return np.asarray(np.all(each, axis=0) & (self._closest_of_others == inf))

    @cached_property
    def attacked(self) -> NDArray[np.bool_]:
        """(n,) was the sample attacked? One that is misclassified before the attack is not."""
        return self._all(lambda cell: cell.was_attacked)

    @cached_property
    def broken_at(self) -> NDArray[np.float64]:
        """(n,) the smallest eps or distance at which any of the attacks broke the sample; inf if none."""
        each = [cell.broken_at[cell.positions(self.ids)] for cell in self.cells]
        return np.asarray(np.min([*each, self._closest_of_others], axis=0))

    @cached_property
    def distances(self) -> NDArray[np.float64]:
        """The distance at which any of the attacks broke each attacked sample; inf for robust ones."""
        each = [cell.failure_distance[cell.positions(self.ids)] for cell in self.cells]
        return np.asarray(np.min([*each, self._closest_of_others], axis=0)[self.attacked])

    @cached_property
    def _closest_of_others(self) -> NDArray[np.float64]:
        """(n,) the distance of the closest adversarial example of the other attacks; inf for none."""
        return example_distances(self.others, self.group.norm, self.ids)

    @property
    def clean(self) -> Rate:
        """The accuracy on these samples before any attack."""
        cell = self.cells[0]
        if len(cell.records) == len(self.ids):
            return cell.summary.clean_accuracy
        right = cell.records.columns.is_clean_correct[cell.positions(self.ids)]
        return Rate(int(right.sum()), len(right))

    @property
    def rate(self) -> Rate:
        """The worst-case robust accuracy."""
        return Rate(int(self.robust.sum()), len(self.ids))

    @cached_property
    def sandwich(self) -> Sandwich | None:
        """The robust accuracy as an interval, certified below and attacked above; None without certificates."""
        return sandwich_of(self.cells, self.ids, self.robust, self.eps)

    @property
    def success_rate(self) -> Rate:
        """Samples on which any attack reached its goal, of the attacked ones."""
        return Rate(int((self.attacked & ~self.robust).sum()), int(self.attacked.sum()))

    @property
    def withstood_rate(self) -> Rate:
        """Samples on which no attack reached its goal, of the attacked ones."""
        failed = self.success_rate
        return Rate(failed.trials - failed.successes, failed.trials)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks that were run at this eps; those at smaller ones alone are not named."""
        here = (*(cell for cell in self.cells if cell.covers(self.eps)), *self.others)
        return tuple(dict.fromkeys(cell.attack_label for cell in here))

    @property
    def strongest(self) -> tuple[str, Rate]:
        """The single attack that breaks most of these samples, and the robust accuracy under it.

        Of attacks that break as many at any distance, it is the one with the smallest median distance.
        """
        alone = [(c.attack_label, replace(self, cells=(c,), others=())) for c in self.cells]
        name, worst = min(alone, key=lambda each: (each[1].rate.successes, each[1].reach, each[0]))
        return name, worst.rate

    @property
    def reach(self) -> float:
        """The median distance of the attacks without a budget; 0 for a budget, inf without an attacked sample."""
        if self.eps < inf:
            return 0.0
        return float(np.median(self.distances)) if len(self.distances) else inf

    def at(self, eps: float) -> "WorstCase":
        """Return the worst case of the same attacks on the same samples at another eps."""
        return replace(self, eps=eps)

    def _all(self, holds: Callable[[FinishedCell], NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Return for which samples the records of all attacks have a property, (n,)."""
        each = [holds(cell)[cell.positions(self.ids)] for cell in self.cells]
        return np.asarray(np.all(each, axis=0))


def read_runs(runs: Sequence[Path], select: Selection | None = None) -> tuple[RunResult, ...]:
    """Read run folders, or folders of run folders; the copies of a cell in several of them are joined.

    Raises:
        BadResults: if a folder is missing or damaged, if copies of a cell have different results of a sample, or if no
            cell is selected.
    """
    folders = [folder for run in runs for folder in _run_folders(Path(run))]
    results = [_read_run(folder, select or Selection()) for folder in folders]
    if not any(result.cells or result.pending for result in results):
        _refuse_selection([_read_run(folder, Selection()) for folder in folders], select)
        expected, got = "run folders of invbench evaluate", list(map(str, runs))
        raise BadResults("there are no records to report", got=got, expected=expected)
    found = list(_joined(folders, results))
    rename = label_distinctly([cell for result in found for cell in result.cells])
    return tuple(replace(result, cells=tuple(map(rename, result.cells))) for result in found)


def _refuse_selection(results: Sequence[RunResult], select: Selection | None) -> None:
    """Raise an error that names what can be selected, if there is anything."""
    cells = [cell for result in results for cell in result.cells]
    if select is not None and cells:
        names = [{cell.model_label for cell in cells}, {cell.dataset.name for cell in cells}]
        models, data = (", ".join(sorted(each)) for each in names)
        raise BadResults(
            "no results fit the selection",
            got="; ".join(", ".join(each) for each in (select.models, select.datasets) if each),
            expected=f"models {models}; data sets {data}",
        )


def group_cells(cells: Iterable[FinishedCell]) -> dict[CellGroup, list[FinishedCell]]:
    """Return the cells of each group, sensitivity before invariance, each model's cells together.

    Models and attacks keep the order of the plan.
    """
    cells = list(cells)
    models = list(dict.fromkeys(c.model_label for c in cells))
    ordered = sorted(cells, key=lambda c: (*CellGroup.of(c).rank, models.index(c.model_label)))
    return {key: list(group) for key, group in groupby(ordered, key=CellGroup.of)}


def worst_cases(cells: Cells, among: Cells = ()) -> list[WorstCase]:
    """Return the worst case over all attacks of a group, for each model and eps.

    Attacks are combined on the samples that all of them have records of. If an attack has fewer samples than the
    others, a second row combines all attacks on those. A success counts at every larger eps. Without a budget, so do
    the adversarial examples of attacks in other norms: a minimum-norm attack may miss what another one finds.

    Args:
        cells: of one group.
        among: cells of any group.
    """
    models: dict[str, list[FinishedCell]] = {}
    for cell in cells:
        models.setdefault(cell.model_label, []).append(cell)
    levels = eps_levels(cells)
    found = [
        worst for model, mine in models.items() for worst in _worst_cases_of(model, mine, levels)
    ]
    return [replace(worst, others=_closer(worst, among)) for worst in found]


def _closer(worst: WorstCase, among: Cells) -> tuple[FinishedCell, ...]:
    """Return the attacks outside the group that have the closest adversarial example of a sample."""
    group = worst.group
    if worst.eps < inf or group.keeps or group.no_class or group.fixed:
        return ()
    mine = (c for c in among if c.model_label == worst.model and c not in worst.cells)
    others = [c for c in mine if replace(CellGroup.of(c), norm=group.norm) == group]
    return closer_attacks(worst.broken_at, others, group.norm, worst.ids)


def _worst_cases_of(
    model: str, cells: Sequence[FinishedCell], levels: Sequence[float]
) -> list[WorstCase]:
    """Return the worst cases of one model at those levels of eps where it was attacked."""
    group, found = CellGroup.of(cells[0]), []
    for eps in levels:
        for ids, combined in _combinations([c for c in cells if c.bounds_accuracy(eps)]):
            if any(c.covers(eps) for c in combined):
                found.append(WorstCase(model, group, eps, tuple(sorted(ids)), combined))
    return sorted(found, key=lambda worst: (-len(worst.ids), worst.ids[0], worst.eps))


def most_attacked(found: Sequence[WorstCase]) -> list[WorstCase]:
    """Return the rows of one model that combine most attacks, of these on most samples; one for each eps."""
    ids = max(found, key=lambda worst: (len(worst.cells), len(worst.ids))).ids
    return [worst for worst in found if worst.ids == ids]


def main_cases(cells: Cells, among: Cells = ()) -> list[WorstCase]:
    """Return the rows of each model that ``most_attacked`` chooses, of the cells of one group."""
    models = groupby(worst_cases(cells, among), key=lambda worst: worst.model)
    return [worst for _, found in models for worst in most_attacked(list(found))]


def eps_levels(cells: Iterable[FinishedCell]) -> list[float]:
    """Return the ascending eps of some cells, those that differ by rounding once; inf if no cell has a budget."""
    levels: list[float] = []
    for eps in sorted({eps for cell in cells for eps in cell.epsilons}):
        levels += [] if levels and same_eps(levels[-1], eps) else [eps]
    return levels or [inf]


def _combinations(
    cells: Sequence[FinishedCell],
) -> Iterator[tuple[frozenset[int], tuple[FinishedCell, ...]]]:
    """Yield sets of samples, the largest first, with the cells that have records of them; no set of cells twice."""
    sets = {cell.sample_ids for cell in cells}
    candidates = {*sets, frozenset.intersection(*sets)} - {frozenset()} if sets else set()
    seen = set()
    for ids in sorted(candidates, key=lambda ids: (-len(ids), min(ids))):
        combined = tuple(cell for cell in cells if cell.sample_ids >= ids)
        if combined not in seen:
            seen.add(combined)
            yield ids, combined


def _run_folders(path: Path) -> list[Path]:
    """Return the folder itself, or the runs in it if it is a folder of runs."""
    if RunFolder(path).exists or not path.is_dir():
        return [path]
    return [inner for inner in sorted(path.iterdir()) if RunFolder(inner).exists] or [path]


def _read_run(path: Path, select: Selection) -> RunResult:
    folder = RunFolder(path)
    plan = folder.plan
    cells = [cell.read() for cell in folder.cells()]
    chosen = [cell for cell in cells if select.matches_cell(cell)]
    pending = {cell.digest: _unfinished(cell) for cell in chosen if not cell.finished}
    here = {cell.digest for cell in cells}
    for entry in plan["cells"]:
        named = {key: str(entry[key]) for key in ("model", "attack", "dataset")}
        if entry["digest"] not in here and select.matches(**named):
            count = int(entry.get("samples", len(plan["samples"])))
            pending[entry["digest"]] = f"{named['attack']} on {named['model']}", 0, count
    started, name = tuple(cell for cell in chosen if cell.records), path.resolve().name
    about = tuple(folder.checks()), pending, folder.remarks, check_seconds(folder)
    return RunResult(name, plan, started, *about, tuple(c for c in chosen if not c.records))


def _unfinished(cell: FinishedCell) -> tuple[str, int, int]:
    return f"{cell.attack_label} on {cell.model_label}", len(cell.records), len(cell.requested)


def _joined(folders: Sequence[Path], results: Sequence[RunResult]) -> Iterator[RunResult]:
    """Yield the results with the copies of each cell joined, in the run whose copy has most records."""
    copies: dict[str, list[tuple[int, FinishedCell]]] = {}
    for number, result in enumerate(results):
        for cell in (*result.cells, *result.empty):
            copies.setdefault(cell.digest, []).append((number, cell))
    home = {key: max(each, key=lambda c: len(c[1].records))[0] for key, each in copies.items()}
    joined = {key: join_copies([(folders[n], c) for n, c in each]) for key, each in copies.items()}
    for number, result in enumerate(results):
        mine = {key: cell for key, cell in joined.items() if home[key] == number}
        cells, empty = (
            tuple(mine[cell.digest] for cell in part if cell.digest in mine)
            for part in (result.cells, result.empty)
        )
        late = {key: _unfinished(cell) for key, cell in mine.items() if not cell.finished}
        pending = {
            key: late.get(key, each)
            for key, each in result.pending.items()
            if key in late or key not in joined or each[2] > len(joined[key].requested)
        }
        yield replace(result, cells=cells, empty=empty, pending={**pending, **late})
