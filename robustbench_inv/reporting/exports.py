"""Results in formats of other tools: Parquet, evaluation results of model repositories, JUnit."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from itertools import chain
from math import isfinite, isinf, isnan, nan
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_inv.arguments import format_eps, printable
from robustbench_inv.checks.audit_verdict import CONCLUSIONS, Conclusion, Reason, conclude
from robustbench_inv.checks.verdict import Verdict
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.run_results import (
    CellGroup,
    RunResult,
    WorstCase,
    group_cells,
    main_cases,
)
from robustbench_inv.reporting.statistics import median_of
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.labels import names_and_digests
from robustbench_inv.results.record import STATUSES
from robustbench_inv.results.record_columns import OPTIONAL_FIELDS, OutputColumns
from robustbench_inv.results.sequences import confidence_sequence

if TYPE_CHECKING:
    from robustbench_inv.run import Run

__all__ = [
    "MetricLogger",
    "conclusions_of",
    "largest_budgets",
    "log_metrics",
    "metrics_of",
    "planned_cells",
    "records_frame",
    "robustness_below",
    "to_eval_results",
    "to_junit",
    "to_parquet",
]


def records_frame(cells: Sequence[FinishedCell]) -> pd.DataFrame:
    """Return one row for each record, with the columns of docs/records.md."""
    return pd.concat([_cell_frame(cell, OPTIONAL_FIELDS) for cell in cells], ignore_index=True)


def _cell_frame(cell: FinishedCell, extras: Sequence[str]) -> pd.DataFrame:
    found, n = cell.records.columns, len(cell.records)
    sources = np.array([*found.sources, None], object)
    columns: dict[str, Any] = {
        **{name: [value] * n for name, value in _about(cell).items()},
        "sample": found.sample,
        "label": found.label,
        **_output_columns("clean", found.clean),
        **_output_columns("adversarial", found.adversarial),
        "oracle_label": pd.arrays.IntegerArray(
            np.where(found.has_oracle_label, found.oracle_label, 0), ~found.has_oracle_label
        ),
        "oracle_source": pd.array(sources[found.oracle_source], "string"),
        **{f"distance.{norm}": column for norm, column in found.distance.items()},
        "broken_at": _numbers(found.broken_at),
        **{name: getattr(found, name) for name in PLAIN_FIELDS},
        "status": np.array(STATUSES, object)[found.status],
        **{name: pd.array(found.extras.get(name, [None] * n), "string") for name in extras},
    }
    return pd.DataFrame(columns).astype({"eps": "string"})


PLAIN_FIELDS = (
    "within_budget",
    "goal_reached",
    "forward_passes",
    "backward_passes",
    "zero_gradient",
    "replayed",
)


def _output_columns(part: str, outputs: OutputColumns) -> dict[str, Any]:
    accepted, unknown = outputs.accepted == 1, outputs.accepted < 0
    return {
        f"{part}.prediction": outputs.prediction,
        f"{part}.score": _numbers(outputs.score),
        f"{part}.accepted": pd.arrays.BooleanArray(accepted, unknown),
    }


def _numbers(values: NDArray[np.float64]) -> Any:  # noqa: ANN401 - an array of pandas
    """Return numbers of which those that are not finite are missing."""
    finite = np.isfinite(values)
    return pd.arrays.FloatingArray(np.where(finite, values, 0.0), ~finite)


def _about(cell: FinishedCell) -> dict[str, Any]:
    return {
        "cell": cell.digest,
        **names_and_digests(cell),
        "model": cell.model_label,
        "attack": cell.attack_label,
        "attack_kind": cell.kind,
        "norm": cell.norm,
        "eps": ",".join(f"{eps:.10g}" for eps in cell.epsilons),
        "goal": cell.goal,
        "access": cell.threat.access,
        "seed": cell.info.seed,
    }


def to_parquet(cells: Sequence[FinishedCell], out: BinaryIO) -> None:
    """Write the records to a Parquet file, cell by cell, so that one cell is in memory at a time.

    Args:
        cells: the cells.
        out: where to write.
    """
    import pyarrow
    import pyarrow.parquet

    names = [n for n in OPTIONAL_FIELDS if any(n in c.records.columns.extras for c in cells)]
    tables = (
        pyarrow.Table.from_pandas(_cell_frame(cell, names), preserve_index=False) for cell in cells
    )
    first = next(tables)
    with pyarrow.parquet.ParquetWriter(out, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table.cast(first.schema))


class MetricLogger(Protocol):
    """What numbers are sent to: a run of Weights & Biases, the module trackio, or an object of yours."""

    def log(self, metrics: dict[str, float], /) -> object:
        """Take numbers by name."""


def log_metrics(run: "Run", logger: MetricLogger) -> dict[str, float]:
    """Send clean accuracies, worst-case numbers and verdicts of a run to a logger, in one call.

    Args:
        run: what ``evaluate`` or ``audit`` returned.
        logger: any object with a method ``log`` that takes a dictionary.

    Returns:
        The numbers, those of ``metrics_of``.
    """
    metrics = metrics_of(run.cells, run.conclusions)
    logger.log(dict(metrics))
    return metrics


def robustness_below(cells: Sequence[FinishedCell], limit: float) -> list[str]:
    """Return a sentence for each robust accuracy that is not shown to reach a limit.

    It is shown if the lower end of the 95 % interval of the worst case reaches the limit; of a run that was looked at
    before its end that of the confidence sequence. Of a sweep the largest eps
    counts, since no robust accuracy is higher there. If no robust accuracy was measured, that is a sentence as well.

    Args:
        cells: of any kind; those of invariance attacks and without a budget are passed over.
        limit: a share, from 0 to 1.
    """
    largest = largest_budgets(cells)
    if not largest:
        return ["no robust accuracy was measured"]
    return [_short_of(worst, limit) for worst in largest if _low(worst) < limit]


def largest_budgets(cells: Sequence[FinishedCell]) -> list[WorstCase]:
    """Return the worst case of each model and group at its largest eps, where its robust accuracy is lowest."""
    largest: dict[tuple[str, CellGroup], WorstCase] = {}
    for worst in _worst(cells):
        key = worst.model, worst.group
        if _metric(worst) == "robust_accuracy" and (
            key not in largest or worst.eps > largest[key].eps
        ):
            largest[key] = worst
    return list(largest.values())


def _low(worst: WorstCase) -> float:
    """Return the lower end of the interval; of the confidence sequence if the cells were looked at before their end."""
    looked = any(cell.looks for cell in worst.cells)
    return confidence_sequence(worst.rate)[0] if looked else worst.rate.low


def _short_of(worst: WorstCase, limit: float) -> str:
    rate, place = worst.rate, f"{worst.model}, {worst.group.dataset}, {_budget(worst)}"
    reason = "" if rate.value < limit else "; more samples make the interval shorter"
    return f"{place}: robust accuracy {rate.percent}, lower end below {100 * limit:g} %{reason}"


def metrics_of(
    cells: Sequence[FinishedCell], conclusions: Sequence[Conclusion] = ()
) -> dict[str, float]:
    """Return clean and worst-case numbers of each model under short names, for loggers of experiments.

    The clean accuracy is that of the samples of the robust accuracy; of several, of that with the most samples.

    Args:
        cells: of any kind.
        conclusions: the verdicts; each gives ``publishable/MODEL/DATASET``, which is 1, with reservations 0.5, and 0
            for numbers that must not be published.

    Example:
        ``robust_accuracy/mnist-cnn/mnist5k/linf=0.1``: 0.04. Another goal than the usual one, and an oracle, follow
        the budget: ``robust_accuracy/mnist-cnn/mnist5k/linf=0.1:goal=target``.
    """
    found: dict[str, float] = {}
    sizes: dict[str, tuple[bool, int]] = {}
    for worst in _worst(cells):
        place = f"{worst.model}/{worst.group.dataset}"
        size = _metric(worst) == "robust_accuracy", len(worst.ids)
        if size > sizes.get(place, (False, 0)):
            sizes[place], found[f"clean_accuracy/{place}"] = size, worst.clean.value
        found[f"{_metric(worst)}/{place}/{_budget(worst)}{_goal(worst)}"] = _value(worst)
    grades = dict(zip(CONCLUSIONS, (1.0, 0.5, 0.0), strict=True))
    found |= {f"publishable/{c.model}/{c.dataset}": grades[c.verdict] for c in conclusions}
    return {name: value for name, value in found.items() if not isnan(value)}


def to_eval_results(
    cells: Sequence[FinishedCell],
    dataset_id: str,
    source: str = "",
    conclusions: Sequence[Conclusion] = (),
) -> str:
    """Return the worst case of one model as a file for ``.eval_results/`` of its model repository.

    Shares are in per cent; a median distance that is infinite is left out.

    Args:
        cells: of one model on one data set.
        dataset_id: the benchmark's data set on the hub, ``ORG/NAME``.
        source: URL of a report.
        conclusions: the verdicts on the cells; a reservation is written beside the numbers.

    Raises:
        BadResults: for several models or data sets, and for numbers that must not be published.

    References:
        Hub documentation, Evaluation Results.
    """
    models = {cell.model_label for cell in cells}
    datasets = {cell.dataset.name for cell in cells}
    if len(models) != 1 or len(datasets) != 1:
        raise BadResults(
            "a file of evaluation results is about one model on one data set",
            got=", ".join(sorted(models | datasets)),
            remedy="choose one: --model NAME --dataset NAME",
        )
    reservations = [reason.text for c in conclusions for reason in _publishable(c)]
    lines = []
    for worst in _worst(cells):
        value = _value(worst)
        if not isfinite(value):
            continue
        task = re.sub(r"[=/:, ]+", "_", f"{_metric(worst)}_{_budget(worst)}{_goal(worst)}")
        notes = f"{len(worst.ids)} samples, worst case over {', '.join(worst.attacks)}"
        notes = ". ".join([notes, *reservations[:1]])
        lines += [
            "- dataset:",
            f"    id: {_text(dataset_id)}",
            f"    task_id: {_text(task)}",
            f"  value: {value if _metric(worst) == 'median_distance' else 100 * value:.4g}",
            f"  date: {_text(date.today().isoformat())}",
            *(
                [f"  source:\n    url: {_text(source)}\n    name: robustbench-inv"]
                if source
                else []
            ),
            f"  notes: {_text(notes)}",
        ]
    return "\n".join(lines) + "\n"


def _publishable(conclusion: Conclusion) -> Sequence[Reason]:
    """Return the reservations about a number, and refuse one that must not be published."""
    if conclusion.verdict == "do not publish":
        raise BadResults(
            f"the numbers of {conclusion.model} must not be published",
            got=conclusion.reasons[0].text,
            remedy="the last lines of invbench evaluate name the next command",
        )
    return conclusion.reasons


def _text(value: str) -> str:
    """A JSON string is a YAML string."""
    return json.dumps(printable(value), ensure_ascii=False)


def _worst(cells: Sequence[FinishedCell]) -> Iterator[WorstCase]:
    """Yield the rows of each model that combine most attacks."""
    for group in group_cells(cells).values():
        yield from main_cases(group, cells)


def _metric(worst: WorstCase) -> str:
    if worst.group.no_class:
        return "rejected"
    if worst.group.keeps:
        return "invariance_failure"
    if worst.group.fixed:
        return "fixed_input_accuracy"
    return "median_distance" if isinf(worst.eps) else "robust_accuracy"


def _value(worst: WorstCase) -> float:
    if _metric(worst) == "median_distance":
        median = median_of(worst.distances)
        return median.value if median else nan
    if worst.group.no_class:
        return worst.withstood_rate.value
    return worst.success_rate.value if worst.group.keeps else worst.rate.value


def _budget(worst: WorstCase) -> str:
    norm = worst.group.norm
    return norm if isinf(worst.eps) else f"{norm}={format_eps(worst.eps)}"


def _goal(worst: WorstCase) -> str:
    """Return the goal, which is left out if it is the usual one of the model, and the oracle of changed inputs."""
    group, rejects = worst.group, worst.cells[0].can_reject
    usual = "misclassify-accepted" if rejects else "misclassify"
    plain = group.goal in (usual, "keep-decision") or group.no_class
    limits = group.limits.replace(", ", ",").replace(" ", "=")
    goal = "" if plain else f":goal={group.goal}{limits}"
    oracle = f":oracle={'-'.join(group.oracle.split())}" if group.oracle else ""
    return goal + oracle


def planned_cells(*runs: RunResult) -> list[FinishedCell]:
    """Return the cells of some runs, also planned ones without records."""
    return [cell for run in runs for cell in (*run.cells, *run.empty)]


def conclusions_of(
    *runs: RunResult, cells: Iterable[FinishedCell] | None = None
) -> list[Conclusion]:
    """Return whether the numbers of each model of some runs can be published.

    Args:
        runs: the results.
        cells: those of which to conclude, also planned ones without records; None for all of the runs.
    """
    verdicts = [Verdict.from_json(value) for run in runs for value in run.checks]
    known = planned_cells(*runs) if cells is None else list(cells)
    return conclude(known, verdicts)


def to_junit(runs: Sequence[RunResult]) -> str:
    """Return the checks and the verdicts on the models as JUnit XML: one test for each.

    A check that fails, and a model whose numbers must not be published, is a failure; a check that does not apply is
    skipped; warnings are output of a passed test.
    """
    root = ET.Element("testsuites", name="invbench")
    parts = [[Verdict.from_json(value) for value in run.checks] for run in runs]
    for run, verdicts in zip(runs, parts, strict=True):
        suite = ET.SubElement(root, "testsuite", name=printable(run.name))
        for conclusion in conclude(planned_cells(run), [*chain(*parts)]):
            case = _case(suite, "verdict", f"{conclusion.model}, {conclusion.dataset}")
            reasons = "\n".join(each.text for each in conclusion.reasons)
            bad = conclusion.verdict == "do not publish"
            _outcome(case, conclusion.verdict, reasons, failed=bad)
        for verdict in verdicts:
            case = _case(suite, verdict.subject, f"{verdict.id} {verdict.title}")
            if verdict.verdict == "NA":
                ET.SubElement(case, "skipped", message=printable(verdict.evidence))
            elif verdict.verdict != "PASS":
                failed = verdict.verdict == "FAIL"
                _outcome(case, verdict.verdict, verdict.evidence, failed=failed)
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
        suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ET.Element, about: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=printable(about), name=printable(name))


def _outcome(case: ET.Element, message: str, text: str, *, failed: bool) -> None:
    text = printable(text)
    if failed:
        ET.SubElement(case, "failure", message=message).text = text
    elif text:
        ET.SubElement(case, "system-out").text = f"{message}: {text}"
