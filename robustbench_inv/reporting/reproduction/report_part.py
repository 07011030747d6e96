"""The content of a reproduction's report on one data set: numbers, claims, tables and figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any

from robustbench_inv.catalogue.reproduction import Reproduction
from robustbench_inv.reporting.canvas import COLOURS, ReportFigure
from robustbench_inv.reporting.experiment_figures import (
    DecisionPlanes,
    draw_decision_planes,
    draw_histograms,
    draw_lines,
    logit_table,
)
from robustbench_inv.reporting.image_figures import draw_image_grid
from robustbench_inv.reporting.layer_figures import RegularizationEffect, draw_layers, layer_table
from robustbench_inv.reporting.reproduction.claims import (
    ClaimFinding,
    evaluate_claims,
    evaluate_expectations,
)
from robustbench_inv.reporting.reproduction.comparison import (
    ComparedNumber,
    compare_outcomes,
    compare_result,
    numbers_by_remark,
)
from robustbench_inv.reporting.reproduction.comparison_tables import (
    ATTACK_FORMAT,
    EXPERIMENT_FORMAT,
    NumberBand,
    NumberFormat,
    claims_table,
    comparisons_table,
    number_bands,
    numbers_table,
)
from robustbench_inv.reporting.reproduction.curve_panels import (
    accuracy_curves,
    curves_frame,
    curves_table,
    draw_panels,
)
from robustbench_inv.reporting.reproduction.outcomes import (
    ReproductionOutcomes,
    outcomes_to_gzip,
)
from robustbench_inv.reporting.table_formats import Table
from robustbench_inv.results.experiment_result import ExperimentResult

__all__ = ["ReportPart", "part_from_outcomes", "part_from_result"]

OUTCOMES = "outcomes.csv.gz"


@dataclass(frozen=True)
class ReportPart:
    """The numbers, claims, tables and figures of one data set, or of an item that runs attacks.

    Args:
        dataset: name of the data set.
        style: how tables show numbers.
        numbers: the published numbers and ours, row by row.
        findings: the verdicts on the claims.
        figures: all figures.
        details: further tables.
        files: files to store beside the page, by name, with their content.
        facts: further entries of the JSON, by key.
        suffix: suffix of table names, if the report has several parts.
    """

    dataset: str
    style: NumberFormat
    numbers: Sequence[ComparedNumber]
    findings: Sequence[ClaimFinding]
    figures: Sequence[ReportFigure] = ()
    details: Sequence[Table] = ()
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    suffix: str = ""

    @property
    def bands(self) -> list[NumberBand]:
        """The rows of the table of numbers."""
        return number_bands(self.numbers, self.style)

    @property
    def by_remark(self) -> dict[str, list[ComparedNumber]]:
        """The numbers that have or need a remark, by remark."""
        return numbers_by_remark(self.numbers)

    @cached_property
    def numbers_table(self) -> Table:
        """Published numbers beside ours."""
        return numbers_table(self.numbers, self.style, self.suffix)

    @cached_property
    def claims_table(self) -> Table:
        """The verdicts on the claims."""
        return claims_table(self.findings, self.style, self.suffix)

    @cached_property
    def comparisons_table(self) -> Table:
        """Every comparison behind the claims."""
        return comparisons_table(self.findings, self.style, self.suffix)

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        claims = [self.claims_table, self.comparisons_table] if self.findings else []
        numbers = [self.numbers_table] if self.numbers else []
        return [*claims, *numbers, *self.details]

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        return {
            "dataset": self.dataset,
            "numbers": [number.to_json() for number in self.numbers],
            "claims": [finding.to_json() for finding in self.findings],
            "without_remark": [each.label for each in self.numbers if each.lacks_remark],
            **self.facts,
        }


def part_from_outcomes(outcomes: ReproductionOutcomes) -> ReportPart:
    """Return the content of a report on an item that runs attacks."""
    curves = accuracy_curves(outcomes)
    names = (column.name for column in outcomes.item.columns)
    colours = dict(zip(names, cycle(COLOURS), strict=False))
    return ReportPart(
        dataset=", ".join(outcomes.dataset_names.values()),
        style=ATTACK_FORMAT,
        numbers=compare_outcomes(outcomes),
        findings=evaluate_claims(outcomes),
        figures=draw_panels(outcomes, curves, colours),
        details=[curves_table(outcomes, curves)] if curves else [],
        files={OUTCOMES: outcomes_to_gzip(outcomes.outcomes)},
        facts={"curves": curves_frame(outcomes, curves).to_dict("records")},
    )


def part_from_result(item: Reproduction, result: ExperimentResult, suffix: str = "") -> ReportPart:
    """Return the content of a report on one data set of an experiment.

    Args:
        item: what is reproduced.
        result: of the experiment.
        suffix: of the names of tables and figures.
    """
    numbers = compare_result(item, result) if result.numbers else []
    layers = None if result.layers is None else RegularizationEffect.from_json(result.layers)
    layer_tables = [layer_table(layers)] if layers else []
    return ReportPart(
        dataset=result.dataset,
        style=EXPERIMENT_FORMAT,
        numbers=numbers,
        findings=evaluate_expectations(item.expectations, numbers),
        figures=list(_draw_result(result, layers, suffix)),
        details=[*(logit_table(sheet, suffix) for sheet in result.logit_sheets), *layer_tables],
        facts={
            "samples": result.samples,
            "layers": [fact for table in layer_tables for fact in table.frame.to_dict("records")],
        },
        suffix=suffix,
    )


def _draw_result(
    result: ExperimentResult, layers: RegularizationEffect | None, suffix: str
) -> Iterator[ReportFigure]:
    for grid in result.image_grids:
        yield draw_image_grid(grid, suffix)
    for panels in result.histograms:
        yield draw_histograms(panels, suffix)
    for lines in result.lines:
        yield draw_lines(lines, suffix)
    if result.planes is not None:
        yield draw_decision_planes(DecisionPlanes.from_json(result.planes))
    if layers:
        yield from draw_layers(layers)
