"""Compares models that were evaluated: before and after a defence, in words, as a table and as a page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_inv.arguments import check_file, check_path
from robustbench_inv.checks.audit_verdict import Conclusion
from robustbench_inv.errors import BadParameter, BadResults, UnknownName, suggest
from robustbench_inv.reporting.answers import Answer, answer_questions
from robustbench_inv.reporting.canvas import (
    COLOURS,
    MUTED,
    ReportFigure,
    render,
    shorten,
    styled,
)
from robustbench_inv.reporting.exports import conclusions_of
from robustbench_inv.reporting.facts import adjusted
from robustbench_inv.reporting.gallery import Change, Gallery, collect_changes
from robustbench_inv.reporting.glance import Glance, draw_both_failures, take_glance
from robustbench_inv.reporting.headlines import Headline, build_headlines
from robustbench_inv.reporting.html import export_files, render_page, write_page
from robustbench_inv.reporting.model_comparison import (
    PairedResult,
    compare_models,
)
from robustbench_inv.reporting.run_results import RunResult, read_runs
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.reporting.table_formats import Table, TableCell, dataset_title
from robustbench_inv.reporting.tables import comparison_table
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.labels import label_attacks
from robustbench_inv.results.rate import Decision

__all__ = ["RunComparison", "compare"]

Cells = tuple[FinishedCell, ...]


@dataclass(frozen=True)
class RunComparison:
    """What ``compare`` found.

    Args:
        results: every quantity of each pair of models; p values are adjusted for their number.
        conclusions: whether the numbers of each model can be published.
        notes: what limits the comparison.
        sources: the folders that were read.
        cells: of the compared models.
        decisions: when and by which test the evaluation stopped, if it stopped before its last sample.
    """

    results: tuple[PairedResult, ...]
    conclusions: tuple[Conclusion, ...]
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    cells: Cells = field(default=(), repr=False)
    decisions: tuple[str, ...] = ()

    def __str__(self) -> str:
        doubtful = (each for each in self.conclusions if each.mark)
        verdicts = (f"verdict on {c.model}, {c.dataset}: {c.text}" for c in doubtful)
        return "\n".join([*self.decisions, *(each.sentence for each in self.results), *verdicts])

    @property
    def models(self) -> list[str]:
        """The models, the baseline first."""
        return list(dict.fromkeys(model for each in self.results for model in each.models))

    @property
    def table(self) -> Table:
        """All results; shares under attack have the sign of their model's verdict."""
        table = comparison_table("comparison", "Every comparison", self.results)
        signs = {(each.model, each.dataset): each.mark for each in self.conclusions}
        pairs = zip(self.results, table.rows, strict=True)
        return replace(table, rows=tuple(_signed(result, row, signs) for result, row in pairs))

    @cached_property
    def headlines(self) -> list[Headline]:
        """The main result of each model."""
        return build_headlines(self.cells, wilson)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Which model is best, whether the numbers can be trusted, and what broke the models."""
        return answer_questions(self.headlines, self.conclusions)

    @property
    def glance(self) -> Glance:
        """The headlines by model, with the verdicts."""
        return take_glance(self.headlines, self.conclusions)

    @property
    def both_failures(self) -> ReportFigure | None:
        """A picture of the headlines; None unless a model was attacked in both ways."""
        return draw_both_failures(self.glance, self.colours)

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each model."""
        return {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(self.models)}

    @cached_property
    def gallery(self) -> Gallery:
        """The samples that differ, with their images where images were kept."""
        return collect_changes(self.cells, self._changes)

    @property
    def _changes(self) -> dict[tuple[str, int], Change]:
        """The samples that differ, and in what."""
        keys = {cell.dataset.name: cell.info.dataset_key for cell in self.cells}
        found: dict[tuple[str, int], dict[str, list[str]]] = {}
        for each in self.results:
            model = f"{each.models[1]}: " if len(self.models) > 2 else ""
            for kind, samples in (("gained", each.gained), ("lost", each.lost)):
                for sample in samples:
                    places = found.setdefault((keys[each.group.dataset], sample), {})
                    places.setdefault(f"{model}{kind}", []).append(each.name + _budget(each))
        return {
            sample: Change(
                " and ".join(places),
                "; ".join(f"{kind} in {', '.join(where)}" for kind, where in places.items()),
            )
            for sample, places in found.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "decisions": list(self.decisions),
            "results": [each.to_json() for each in self.results],
            "verdicts": [each.to_json() for each in self.conclusions],
            "notes": list(self.notes),
        }

    def write(self, out: str | Path) -> Path:
        """Write the page, with table and figure beside it, and return its path.

        Raises:
            BadResults: if it cannot be written.
        """
        path = check_path(out, "page")
        path = path if path.suffix in {".html", ".htm"} else path / "compare.html"
        check_file(path, "page")
        picture, table = _draw(self.results), self.table
        files = export_files([table], [picture, *filter(None, [self.both_failures])])
        html = render_page("compare.html", files, page=self, table=table, picture=picture)
        write_page(path, html, files)
        return path


def compare(
    first: str | Path, second: str | Path | None = None, models: Sequence[str] = ()
) -> RunComparison:
    """Compare models on the samples and attacks that they have in common; nothing is evaluated.

    Args:
        first: folder of results, the baseline's.
        second: folder of results; None to compare the models in ``first``, with its first model as the baseline.
        models: names of models, the baseline first; of two folders one name, or one for each. By default models of one
            name are compared, or those of folders with one model each.

    Raises:
        BadResults: if a folder cannot be read, or nothing is in common.
        UnknownName: for a model without results.
    """
    folders = [check_path(each, "run") for each in (first, second) if each is not None]
    apart = [_merge(read_runs([folder])) for folder in folders]
    rename = label_attacks([cell for run in apart for cell in run.cells])
    runs = [replace(run, cells=tuple(map(rename, run.cells))) for run in apart]
    pairs = list(_pairs(runs, list(models)))
    decisions = Decision.all_of(runs[0].plan) if len(runs) == 1 else []
    results = adjusted(
        replace(each, decided=stopped, looked=each.looked or bool(decisions))
        for pair in pairs
        for each in compare_models(*pair)
        for stopped in [_is_decided(each, decisions)]
    )
    if not results:
        raise BadResults(
            "the models have nothing in common",
            got=" and ".join(cells[0].model_label for cells in pairs[0]),
            expected="results on the same samples of the same data set",
        )
    compared = {(c.model_label, c.digest): c for pair in pairs for cells in pair for c in cells}
    cells = tuple(compared.values())
    return RunComparison(
        tuple(results),
        tuple(conclusions_of(*runs, cells=[*cells, *(c for run in runs for c in run.empty)])),
        tuple(_notes(pairs, runs, results)),
        tuple(map(str, folders)),
        cells,
        tuple(each.sentence for each in decisions if len(each.models) > 1),
    )


def _signed(
    result: PairedResult, row: tuple[TableCell, ...], signs: Mapping[tuple[str, str], str]
) -> tuple[TableCell, ...]:
    """Return a row whose shares under attack have the signs of their models."""
    if result.quantity == "clean":
        return row
    found = (signs.get((model, result.group.dataset), "") for model in result.models)
    return tuple(cell if cell.share is None else cell.signed(next(found)) for cell in row)


def _is_decided(result: PairedResult, decisions: Sequence[Decision]) -> bool:
    """Did the evaluation stop at a result?"""
    eps = None if result.eps == inf else result.eps
    return result.is_primary and (result.models, eps) in {(d.models, d.eps) for d in decisions}


def _budget(result: PairedResult) -> str:
    """Return the budget of a result as words; empty without one."""
    return result.place.removeprefix(dataset_title(result.group.dataset))


def _merge(runs: Sequence[RunResult]) -> RunResult:
    """Return the runs of one folder as one."""
    return RunResult(
        runs[0].name,
        runs[0].plan,
        tuple(cell for run in runs for cell in run.cells),
        tuple(verdict for run in runs for verdict in run.checks),
        dict(pair for run in runs for pair in run.pending.items()),
        empty=tuple(cell for run in runs for cell in run.empty),
    )


def _pairs(runs: Sequence[RunResult], models: list[str]) -> Iterator[tuple[Cells, Cells]]:
    """Yield the cells of the two models of each comparison."""
    ours, theirs = _by_model(runs[0]), _by_model(runs[-1])
    if len(runs) == 1:
        names = models or list(ours)
        if len(names) < 2:
            problem = "one model cannot be compared"
            raise BadParameter(problem, got=names, expected="two models, or two folders")
        chosen = [_cells_of(name, ours) for name in names]
        yield from ((chosen[0], each) for each in chosen[1:])
        return
    for name, other in _matches(list(ours), list(theirs), models):
        yield _distinct(_cells_of(name, ours), _cells_of(other, theirs), runs)


def _matches(ours: list[str], theirs: list[str], models: list[str]) -> list[tuple[str, str]]:
    """Return the names of the models to compare, of two folders."""
    if len(models) > 2:
        raise BadParameter("too many models", got=models, expected="one for each folder")
    if models:
        return [(models[0], models[-1])]
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    if common := [(name, name) for name in ours if name in theirs]:
        return common
    raise BadParameter(
        "no model is in both folders",
        got=[*ours, *theirs],
        remedy="name one of each: --model BASELINE OTHER",
    )


def _by_model(run: RunResult) -> dict[str, Cells]:
    found: dict[str, Cells] = {}
    for cell in run.cells:
        found[cell.model_label] = (*found.get(cell.model_label, ()), cell)
    return found


def _cells_of(name: str, known: dict[str, Cells]) -> Cells:
    if name not in known:
        remedy = suggest(name, known) or f"one of {', '.join(known)}"
        raise UnknownName(f"there are no results of {name!r}", remedy=remedy)
    return known[name]


def _distinct(first: Cells, second: Cells, runs: Sequence[RunResult]) -> tuple[Cells, Cells]:
    """Return the cells with labels that name the folder where the models' names are equal."""
    if first[0].model_label != second[0].model_label:
        return first, second
    names = [run.name for run in runs]
    if names[0] == names[1]:
        names = ["first", "second"]
    a, b = (
        tuple(replace(cell, model_label=f"{cell.model_label} ({name})") for cell in cells)
        for cells, name in zip((first, second), names, strict=True)
    )
    return a, b


def _notes(
    pairs: Sequence[tuple[Cells, Cells]],
    runs: Sequence[RunResult],
    results: Sequence[PairedResult],
) -> Iterator[str]:
    for first, second in pairs:
        a, b = first[0], second[0]
        if a.model.key == b.model.key:
            yield f"{a.model_label} and {b.model_label} are the same network"
        keys = [{(c.dataset.name, c.info.dataset_key) for c in cells} for cells in (first, second)]
        same = {name for name, _ in keys[0]} & {name for name, _ in keys[1]}
        for name in sorted(same - {name for name, _ in keys[0] & keys[1]}):
            yield f"{name} are other data in each folder, which were not compared"
    if any(not each.same_attacks for each in results):
        yield "some models were attacked by other attacks, so that a difference may be that of the attacks"
    if any(each.looked for each in results):
        yield LOOKED
    for what, done, planned in (each for run in runs for each in run.pending.values()):
        yield f"{what} is not finished: {done} of {planned} samples"


LOOKED = (
    "the run was looked at before its end: p values are valid at any time, intervals of differences in the table and the "
    "figure are those of a fixed number of samples"
)

SHOWN = 40
"""Rows of the figure; the table has all."""


def _draw(results: Sequence[PairedResult]) -> ReportFigure:
    """Draw each difference with its interval."""
    from matplotlib.figure import Figure

    shown = list(results)[:SHOWN]
    with styled():
        figure = Figure(figsize=(7.2, 0.75 + 0.34 * len(shown)), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(len(shown))[::-1]
        axes.axvline(0, color=MUTED, linewidth=1)
        for row, each in zip(rows, shown, strict=True):
            colour = _colour(each)
            axes.plot([100 * each.interval.low, 100 * each.interval.high], [row, row], color=colour)
            axes.plot([100 * each.difference], [row], "o", color=colour)
        several = len({each.models for each in shown}) > 1
        axes.set_yticks(rows, [_row_name(each, several) for each in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("difference in points: right of zero the compared model is better")
        axes.grid(visible=False, axis="y")
        svg = render(figure)
    facts = " ".join(each.sentence for each in shown)
    caption = (
        "Share of the second model minus that of the first, with 95 % interval. Coloured: a difference after "
        f"adjustment. {_cut(len(results))}"
    )
    return ReportFigure("differences", "Differences", caption.strip(), facts, svg)


def _cut(number: int) -> str:
    return f"The first {SHOWN} of {number} comparisons." if number > SHOWN else ""


def _colour(result: PairedResult) -> str:
    if not result.differs:
        return COLOURS[7]
    return COLOURS[2] if result.difference > 0 else COLOURS[1]


def _row_name(result: PairedResult, several: bool) -> str:
    pair = f"{shorten(result.models[1], 18)}: " if several else ""
    return f"{pair}{result.name}, {result.place}"
