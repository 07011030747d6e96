"""The report of a reproduction that runs attacks: read records, compare, evaluate claims, draw, write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

from robustbench_inv.catalogue.reproduction import CellAddress, Reproduction
from robustbench_inv.reporting.canvas import COLOURS, ReportFigure
from robustbench_inv.reporting.definitions import Definition, Section
from robustbench_inv.reporting.html import export_files, files_of, render_page, write_page
from robustbench_inv.reporting.page import ReportPage, build_page
from robustbench_inv.reporting.provenance import collect_verdicts
from robustbench_inv.reporting.reproduction.claims import ClaimFinding, evaluate_claims
from robustbench_inv.reporting.reproduction.comparison import (
    ComparedAccuracy,
    compare_accuracies,
    find_datasets,
)
from robustbench_inv.reporting.reproduction.comparison_tables import (
    AccuracyBand,
    accuracy_bands,
    claims_table,
    comparison_table,
    contrasts_table,
)
from robustbench_inv.reporting.reproduction.curve_panels import (
    AccuracyCurve,
    accuracy_curves,
    curves_frame,
    curves_table,
    draw_panels,
)
from robustbench_inv.reporting.reproduction.outcomes import (
    ReproductionOutcomes,
    outcomes_frame,
    outcomes_to_gzip,
)
from robustbench_inv.reporting.run_results import RunResult, read_runs
from robustbench_inv.reporting.table_formats import Table
from robustbench_inv.results.cell import FinishedCell

__all__ = ["PaperReport", "SamplesByCell", "build_paper_report"]


SamplesByCell = Mapping[str, Sequence[int]]
"""The samples that were asked of each cell, by its digest."""

OUTCOMES = "outcomes.csv.gz"

DETAILS = (
    Section("Each attack", tables=("accuracy", "distances", "rejection"), folded=True),
    Section("Cost and state of every cell", tables=("cells",), folded=True),
)
"""What the report shows besides, of the cells themselves."""


@dataclass(frozen=True)
class PaperReport:
    """What a reproduction found.

    Args:
        evidence: what was measured, and of which item.
        results: the runs, restricted to the item's cells.
    """

    evidence: ReproductionOutcomes
    results: tuple[RunResult, ...]

    @property
    def item(self) -> Reproduction:
        """What was reproduced."""
        return self.evidence.item

    @cached_property
    def entries(self) -> list[ComparedAccuracy]:
        """Every number of the paper's table with ours."""
        return compare_accuracies(self.evidence)

    @cached_property
    def findings(self) -> list[ClaimFinding]:
        """What became of each claim."""
        return evaluate_claims(self.evidence)

    @cached_property
    def lines(self) -> list[AccuracyCurve]:
        """The lines of the figure."""
        return accuracy_curves(self.evidence)

    @cached_property
    def pictures(self) -> list[ReportFigure]:
        """The figure, one picture for each data set."""
        names = (column.name for column in self.item.columns)
        colours = dict(zip(names, cycle(COLOURS), strict=False))
        return draw_panels(self.evidence, self.lines, colours)

    @cached_property
    def page(self) -> ReportPage:
        """The parts of a report that are not about the paper."""
        return _detail_page(self.item, self.results)

    @property
    def bands(self) -> list[AccuracyBand]:
        """The rows of the comparison as a reader sees them."""
        return accuracy_bands(self.entries)

    @property
    def unexplained(self) -> list[ComparedAccuracy]:
        """The numbers that differ from the published ones by more than 10 points without a remark."""
        return [entry for entry in self.entries if entry.unexplained]

    @property
    def by_remark(self) -> dict[str, list[ComparedAccuracy]]:
        """The numbers that differ by more than 10 points, by remark; those without one last."""
        found: dict[str, list[ComparedAccuracy]] = {}
        for entry in sorted(filter(lambda e: e.far, self.entries), key=lambda e: not e.remark):
            found.setdefault(entry.remark, []).append(entry)
        return found

    @property
    def failed_checks(self) -> list[dict[str, Any]]:
        """The checks that do not pass, the worst first."""
        verdicts = collect_verdicts(self.results)
        return verdicts["FAIL"] + verdicts["WARN"]

    @cached_property
    def comparison(self) -> Table:
        """The paper's table with ours beside it."""
        return comparison_table(self.entries)

    @cached_property
    def claims(self) -> Table:
        """What became of each claim."""
        return claims_table(self.findings)

    @cached_property
    def contrasts(self) -> Table:
        """Every comparison behind the claims."""
        return contrasts_table(self.findings)

    @cached_property
    def curves(self) -> Table:
        """Where each line of the figure falls below one half."""
        return curves_table(self.evidence, self.lines)

    def write(self, path: Path) -> None:
        """Write the report as one HTML file, and tables, figures and outcomes beside it.

        Raises:
            BadResults: if they cannot be written.
        """
        own = [self.comparison] if self.entries else []
        own += [self.claims, self.contrasts] if self.findings else []
        own += [self.curves] if self.lines else []
        tables, pictures = [*own, *self.page.tables], [*self.pictures, *self.page.pictures]
        files = {
            **export_files(tables, pictures),
            OUTCOMES: outcomes_to_gzip(self.evidence.outcomes),
        }
        names = {"page": self.page, "files": files_of(path).name, "found": self}
        write_page(path, render_page("reproduction.html", **names), files)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        return {
            "item": self.item.name,
            "rows": [entry.to_json() for entry in self.entries],
            "curves": curves_frame(self.evidence, self.lines).to_dict("records"),
            "claims": [finding.to_json() for finding in self.findings],
            "unexplained": [entry.place for entry in self.unexplained],
            "missing": [str(address) for address in self.evidence.missing],
            "checks": [
                {k: v for k, v in verdict.items() if k != "value_text"}
                for verdict in self.failed_checks
            ],
        }


def build_paper_report(
    item: Reproduction,
    runs: Sequence[Path],
    *,
    dataset: str | None = None,
    asked: SamplesByCell | None = None,
) -> PaperReport:
    """Return what the records of some runs say of an item; nothing is run.

    Args:
        item: what is reproduced.
        runs: folders that ``evaluate`` or ``build_paper_report`` wrote.
        dataset: which one is meant, if there are records on several.
        asked: cells and samples to be looked at; None for all records of the item's cells.

    Raises:
        BadResults: if there are no records, or two cells have the same names.
    """
    results = tuple(_cells_of_item(result, item, asked) for result in read_runs(runs))
    outcomes = outcomes_frame(
        (names[cell.digest], cell)
        for result in results
        for names in [_addresses(result)]
        for cell in result.cells
    )
    return PaperReport(
        ReproductionOutcomes(item, outcomes, find_datasets(item, outcomes, dataset)), results
    )


def _detail_page(item: Reproduction, results: Sequence[RunResult]) -> ReportPage:
    page = build_page(Definition(item.name, item.title, DETAILS, item.text), results)
    told = dict(page.overview)  # which models and attacks: the tables say it
    sizes = sorted({len(cell.records) for result in results for cell in result.cells})
    measured = (
        ("paper", item.paper),
        ("data sets", told["data sets"]),
        ("samples of a cell", " to ".join(f"{n:,}" for n in dict.fromkeys(sizes[:1] + sizes[-1:]))),
        ("measured", told["measured"]),
    )
    return replace(page, overview=measured, headlines=())


def _cells_of_item(result: RunResult, item: Reproduction, asked: SamplesByCell | None) -> RunResult:
    """Keep the cells of the item, of those that were asked for, and of these the samples asked for."""
    wanted = {
        address
        for data in item.datasets
        for trial in item.trials
        for column in item.attacked(trial)
        for address in item.addresses(trial, column, data)
    }
    names = _addresses(result)
    cells = (cell for cell in result.cells if names[cell.digest] in wanted)
    return replace(result, cells=tuple(_with_requested_samples(cells, asked)))


def _addresses(result: RunResult) -> dict[str, CellAddress]:
    """Return what each cell goes by: as the latest plan has it, for a cell may have begun under another name."""
    return {
        entry["digest"]: CellAddress(entry["model"], entry["attack"], entry["threat"])
        for entry in result.plan["cells"]
    }


def _with_requested_samples(
    cells: Iterable[FinishedCell], asked: SamplesByCell | None
) -> Iterable[FinishedCell]:
    if asked is None:
        return cells
    chosen = [(cell, frozenset(asked.get(cell.digest, ()))) for cell in cells]
    return [
        replace(
            cell,
            records=tuple(r for r in cell.records if r.sample in ids),
            requested=tuple(sorted(ids)),
        )
        for cell, ids in chosen
        if ids
    ]
