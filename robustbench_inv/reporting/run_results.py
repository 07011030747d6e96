"""The cells of a report: read from run folders, grouped by threat, combined to the worst case over attacks."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.definitions import Selection
from robustbench_inv.results.cell import attack_label, substitute_name
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import PLAN, CellFolder, RunFolder
from robustbench_inv.results.summary import CellSummary, Rate, summarise

__all__ = [
    "CellGroup",
    "ReportCell",
    "RunResult",
    "WorstCase",
    "group_cells",
    "read_runs",
    "worst_cases",
]


@dataclass(frozen=True)
class CellGroup:
    """What makes cells comparable: the data set, the norm of distances, the attacker's goal.

    Where the goal asks for the class of a changed input, so does it matter whom the threat names to say it.
    """

    dataset: str
    norm: str
    goal: str
    oracle: str = ""

    @property
    def keeps(self) -> bool:
        """Does the attacker want the decision to stay (invariance) rather than to change?"""
        return self.goal.startswith("keep")

    @property
    def no_class(self) -> bool:
        """Is what is shown of no class that the model knows, so that no answer to it is right?"""
        return self.goal == "accept"

    @property
    def rank(self) -> tuple[str, bool, bool, int, str, str, str]:
        """Where it stands in a report: sensitivity before invariance, linf before l2 before the others."""
        norms = ("linf", "l2", "l1", "l0")
        order = norms.index(self.norm) if self.norm in norms else len(norms)
        return self.dataset, self.no_class, self.keeps, order, self.norm, self.goal, self.oracle

    @property
    def title(self) -> str:
        """How a reader is told."""
        if self.no_class:
            return f"{self.data} · inputs of no class"
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
        """The data set with its parameters, as words.

        Example:
            >>> CellGroup("spheres:d=500,n=10", "l2", "misclassify").data
            'spheres d=500 n=10'
        """
        return self.dataset.replace(":", " ").replace(",", " ")


@dataclass(frozen=True)
class ReportCell:
    """One attack on one model: what was asked for and what came out.

    Args:
        model: its name, made distinct where two digests share it.
        attack: its name, likewise, and the substitute's (``fgsm via mnist-lenet5``).
        panel: data set, norm and goal.
        epsilons: the sweep, ascending; empty without a budget.
        records: by ascending sample id.
        planned: how many samples were asked for.
        info: what cell.json says.
        folder: where it was read, for the images.
    """

    model: str
    attack: str
    panel: CellGroup
    epsilons: tuple[float, ...]
    records: tuple[Record, ...]
    planned: int
    info: Mapping[str, Any] = field(compare=False)
    folder: CellFolder = field(compare=False)

    @property
    def kind(self) -> str:
        """``budget``, ``minimal`` or ``invariance``."""
        return str(self.info["attack"].get("kind", "fixed-budget"))

    @property
    def threat(self) -> str:
        """The threat as the user wrote it."""
        return str(self.info["threat"].get("text", self.panel.norm))

    @property
    def access(self) -> str:
        """What the attacker sees of the model: ``white-box``, ``score``, ``prediction`` or ``transfer``."""
        return str(self.info["threat"].get("access", "white-box"))

    @property
    def substitute(self) -> str | None:
        """Name of the model that answered (transfer) or led (score) the search, None if there is none."""
        return substitute_name(self.info)

    @property
    def finished(self) -> bool:
        """Has every planned sample a record?"""
        return len(self.records) >= self.planned

    def matches(self, select: Selection) -> bool:
        """Say whether a selection admits this cell."""
        return select.matches(
            model=self.model,
            attack=self.attack,
            dataset=self.panel.dataset,
            norm=self.panel.norm,
            goal=self.panel.goal,
        )

    @cached_property
    def ids(self) -> frozenset[int]:
        """The samples that have a record."""
        return frozenset(r.sample for r in self.records)

    @cached_property
    def broken_at(self) -> NDArray[np.float64]:
        """(n,) smallest eps, or without a budget distance, at which each sample fell; inf where it held."""
        return np.array([inf if r.broken_at is None else r.broken_at for r in self.records])

    @cached_property
    def failure_distance(self) -> NDArray[np.float64]:
        """(n,) distance of the success that was found for each sample; 0 if it was wrong before, inf if none."""
        norm = self.panel.norm
        found = [getattr(r.distance, norm) if r.goal_reached else inf for r in self.records]
        wrong = [r.status == "already_wrong" for r in self.records]
        return np.where(wrong, 0.0, np.array(found, dtype=float))

    @cached_property
    def summary(self) -> CellSummary:
        """What the records add up to."""
        return summarise(self.records, self.epsilons, self.panel.norm)

    def covers(self, eps: float) -> bool:
        """Say whether the records tell which samples fall within ``eps``."""
        return not self.epsilons or eps in self.epsilons

    def held(self, eps: float, ids: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """Return which samples held at ``eps`` (inf: at any distance), of ``ids`` or of all, in order."""
        held: NDArray[np.bool_] = self.broken_at > min(eps, sys.float_info.max)
        return held if ids is None else held[self.rows(ids)]

    def rows(self, ids: Sequence[int]) -> list[int]:
        """Return the positions of samples among the records."""
        return [self._position[i] for i in ids]

    @cached_property
    def _position(self) -> dict[int, int]:
        return {r.sample: i for i, r in enumerate(self.records)}


@dataclass(frozen=True)
class RunResult:
    """One run folder: its name, plan, cells that have records, and verdicts of the checks."""

    name: str
    plan: Mapping[str, Any]
    cells: tuple[ReportCell, ...]
    checks: tuple[Mapping[str, Any], ...]
    pending: tuple[tuple[str, int, int], ...]
    """Unfinished cells: what, samples done, samples planned."""


@dataclass(frozen=True)
class WorstCase:
    """The strongest of several attacks on each sample of one model, at one eps.

    Args:
        model: its name.
        panel: data set, norm and goal.
        eps: inf for any distance.
        ids: the samples that all the attacks saw, ascending.
        cells: the attacks that were run at this eps.
    """

    model: str
    panel: CellGroup
    eps: float
    ids: tuple[int, ...]
    cells: tuple[ReportCell, ...]

    @cached_property
    def held(self) -> NDArray[np.bool_]:
        """(n,) did the sample hold against every one of the attacks?"""
        each = [cell.held(self.eps, self.ids) for cell in self.cells]
        return np.asarray(np.all(each, axis=0))

    @cached_property
    def broken_at(self) -> NDArray[np.float64]:
        """(n,) the smallest eps or distance at which any of the attacks broke the sample; inf if none."""
        each = [cell.broken_at[cell.rows(self.ids)] for cell in self.cells]
        return np.asarray(np.min(each, axis=0))

    @property
    def clean(self) -> Rate:
        """The share of these samples that was right before any attack."""
        records = [self.cells[0].records[i] for i in self.cells[0].rows(self.ids)]
        return Rate(sum(r.clean.prediction == r.label for r in records), len(records))

    @property
    def rate(self) -> Rate:
        """The share that held."""
        return Rate(int(self.held.sum()), len(self.ids))

    @property
    def strongest(self) -> tuple[str, Rate]:
        """The single attack that breaks most of these samples, and what it leaves."""
        rates = {
            cell.attack: Rate(int(cell.held(self.eps, self.ids).sum()), len(self.ids))
            for cell in self.cells
        }
        name = min(rates, key=lambda attack: (rates[attack].successes, attack))
        return name, rates[name]


def norm_symbol(norm: str) -> str:
    """Return the mathematical sign of a norm.

    Example:
        >>> norm_symbol("linf")
        'ℓ∞'
    """
    return {"l0": "ℓ0", "l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞"}.get(norm, norm)


def read_runs(runs: Sequence[Path], select: Selection | None = None) -> tuple[RunResult, ...]:
    """Read run folders, or folders of run folders; a cell that lies in several of them is taken once.

    Raises:
        BadResults: if a folder is missing or damaged, or if nothing at all was selected.
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


def group_cells(cells: Iterable[ReportCell]) -> dict[CellGroup, list[ReportCell]]:
    """Return the cells of each panel, sensitivity before invariance, each model's cells together.

    Models and attacks keep the order in which they were asked for.
    """
    cells = list(cells)
    models = list(dict.fromkeys(c.model for c in cells))
    ordered = sorted(cells, key=lambda c: (*c.panel.rank, models.index(c.model)))
    return {panel: list(group) for panel, group in groupby(ordered, key=lambda c: c.panel)}


def worst_cases(cells: Sequence[ReportCell]) -> list[WorstCase]:
    """Return the pointwise worst case over all attacks of a panel, for each model and eps.

    Attacks are combined on the samples that all of them saw. Where an attack saw fewer samples than the
    others, a second row combines all of them on those.

    Args:
        cells: of one panel.
    """
    found = []
    for model, group in groupby(cells, key=lambda c: c.model):
        mine = list(group)
        for ids in sorted({c.ids for c in mine}, key=lambda ids: (-len(ids), min(ids, default=0))):
            covering = [c for c in mine if c.ids >= ids]
            for eps in _eps_levels(covering):
                covers = tuple(c for c in covering if c.covers(eps))
                if any(c.ids == ids for c in covers):
                    found.append(WorstCase(model, cells[0].panel, eps, tuple(sorted(ids)), covers))
    return found


def _eps_levels(cells: Iterable[ReportCell]) -> list[float]:
    return sorted({eps for cell in cells for eps in cell.epsilons}) or [inf]


def _run_folders(path: Path) -> list[Path]:
    """Return the folder itself, or the runs in it if it is a folder of runs."""
    inner = sorted(plan.parent for plan in path.glob(f"*/{PLAN}"))
    return inner if inner and not RunFolder(path).exists else [path]


def _read_run(path: Path, select: Selection) -> RunResult:
    folder = RunFolder(path)
    plan = folder.plan
    cells = [_read_cell(cell) for cell in folder.cells()]
    chosen = [cell for cell in cells if cell.matches(select)]
    pending = [_unfinished(cell) for cell in chosen if not cell.finished]
    here = {cell.folder.digest for cell in cells}
    for entry in plan["cells"]:
        named = {key: str(entry[key]) for key in ("model", "attack", "dataset")}
        if entry["digest"] not in here and select.matches(**named):
            asked = int(entry.get("samples", len(plan["samples"])))
            pending.append((f"{named['attack']} on {named['model']}", 0, asked))
    started = tuple(cell for cell in chosen if cell.records)
    return RunResult(path.resolve().name, plan, started, tuple(folder.checks()), tuple(pending))


def _read_cell(folder: CellFolder) -> ReportCell:
    info = folder.cell
    threat = info["threat"]
    try:
        return ReportCell(
            model=info["model"]["name"],
            attack=attack_label(info),
            panel=_group(info["dataset"]["name"], threat),
            epsilons=tuple(map(float, threat["epsilons"])),
            records=tuple(sorted(folder.records(), key=lambda r: r.sample)),
            planned=len(folder.samples),
            info=info,
            folder=folder,
        )
    except (KeyError, TypeError) as error:
        raise BadResults(f"{folder.path} has an unusable cell.json", remedy=repr(error)) from error


def _group(dataset: str, threat: Mapping[str, Any]) -> CellGroup:
    judged = threat["goal"].startswith("keep") or threat["goal"].endswith("same-class")
    oracle = (threat.get("oracle") or {}).get("source", "") if judged else ""
    return CellGroup(dataset, threat["norm"], threat["goal"], oracle)


def _unfinished(cell: ReportCell) -> tuple[str, int, int]:
    return f"{cell.attack} on {cell.model}", len(cell.records), cell.planned


def _deduplicated(results: Sequence[RunResult]) -> list[RunResult]:
    """Keep of each cell the copy with the most records."""
    best: dict[str, ReportCell] = {}
    for cell in (cell for result in results for cell in result.cells):
        name = cell.folder.digest
        if name not in best or len(cell.records) > len(best[name].records):
            best[name] = cell
    kept = {id(cell) for cell in best.values()}
    return [replace(r, cells=tuple(c for c in r.cells if id(c) in kept)) for r in results]


def _with_distinct_labels(results: Sequence[RunResult]) -> tuple[RunResult, ...]:
    """Tell models and attacks apart that share a name, by the start of their digest or by their seed."""
    cells = [cell for result in results for cell in result.cells]
    models = _digests_by_name((c.model, c.info["model"]["digest"]) for c in cells)
    attacks = _digests_by_name((c.attack, c.info["attack"]["digest"]) for c in cells)
    helpers = _digests_by_name((c.attack, _substitute_digest(c)) for c in cells)
    several = len({c.info["seed"] for c in cells}) > 1

    def rename(cell: ReportCell) -> ReportCell:
        model = cell.model + _digest_suffix(models[cell.model], cell.info["model"]["digest"])
        attack = cell.attack + _digest_suffix(attacks[cell.attack], cell.info["attack"]["digest"])
        attack += _digest_suffix(helpers[cell.attack], _substitute_digest(cell))
        seed = f" seed {cell.info['seed']}" if several else ""
        return replace(cell, model=model, attack=attack + seed)

    return tuple(replace(r, cells=tuple(map(rename, r.cells))) for r in results)


def _substitute_digest(cell: ReportCell) -> str:
    return str((cell.info["threat"].get("substitute") or {}).get("digest", ""))


def _digests_by_name(named: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, digest in named:
        found.setdefault(name, set()).add(digest)
    return found


def _digest_suffix(digests: set[str], digest: str) -> str:
    return f" #{digest[:4]}" if len(digests) > 1 else ""
