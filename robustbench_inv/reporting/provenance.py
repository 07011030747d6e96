"""Provenance of a report: failures, verdicts of the checks, versions, digests, seeds, commands."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_inv.checks.verdict import GRADES, topic_of
from robustbench_inv.reporting.run_results import RunResult
from robustbench_inv.reporting.table_formats import format_number
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.rates import attack_seconds
from robustbench_inv.results.record import FAILURES, NOT_ATTACKED

__all__ = [
    "FailedSamples",
    "ProvenanceFacts",
    "collect_provenance",
    "collect_verdicts",
    "list_failures",
]


@dataclass(frozen=True)
class FailedSamples:
    """Samples of one cell on which the model failed, or without a valid adversarial input, by status."""

    cell: FinishedCell
    status: str
    count: int
    reason: str


@dataclass(frozen=True)
class ProvenanceFacts:
    """A titled list of names and values."""

    title: str
    rows: tuple[tuple[str, str], ...]


def list_failures(cells: Iterable[FinishedCell]) -> list[FailedSamples]:
    """Return the samples of each cell on which model or attack failed, with the first reason."""
    return [
        FailedSamples(
            cell, status.replace("_", " "), cell.summary.statuses[status], _reason(cell, status)
        )
        for cell in cells
        for status in (*NOT_ATTACKED[1:], *FAILURES)
        if cell.summary.statuses.get(status)
    ]


def collect_verdicts(runs: Sequence[RunResult]) -> dict[str, list[dict[str, Any]]]:
    """Return the verdicts by grade, the worst first, each once, those of the selected cells only."""
    cells = [cell for run in runs for cell in run.cells]
    seen = {
        json.dumps(dict(verdict), sort_keys=True): {
            **verdict,
            "subject": _subject(verdict, cells),
            "value_text": _value_text(verdict.get("value")),
            "topic": topic_of(verdict["id"]),
        }
        for run in runs
        for verdict in run.checks
        if _is_selected(verdict, cells)
    }
    ordered = sorted(seen.values(), key=lambda v: (_check_number(v["id"]), v["subject"]))
    return {grade: [v for v in ordered if v["verdict"] == grade] for grade in GRADES}


def collect_provenance(runs: Sequence[RunResult]) -> list[ProvenanceFacts]:
    """Return everything that is needed to repeat the runs: commands, models, attacks, data, machine."""
    cells = [cell for run in runs for cell in run.cells]
    return [
        ProvenanceFacts(
            "Runs", _unique_rows((run.name, line) for run in runs for line in _commands(run))
        ),
        *_times(runs),
        ProvenanceFacts("Models", _unique_rows((cell.model_label, _model(cell)) for cell in cells)),
        ProvenanceFacts(
            "Attacks", _unique_rows((cell.attack_label, _attack(cell)) for cell in cells)
        ),
        *_oracles(cells),
        ProvenanceFacts("Data", _unique_rows((cell.dataset.name, _data(cell)) for cell in cells)),
        ProvenanceFacts("Made with", _made_with(cells)),
        *_files(runs),
        ProvenanceFacts("Cells", _unique_rows((_name(cell), cell.digest) for cell in cells)),
    ]


def _reason(cell: FinishedCell, status: str) -> str:
    notes = (event for event in cell.events if event.get("event") == status)
    first = next(notes, {})
    return str(first.get("error") or first.get("message") or first.get("reason") or "")


def _subject(verdict: Mapping[str, Any], cells: Sequence[FinishedCell]) -> str:
    """Return a verdict's subject by the labels of the report, which distinguish two models of one name."""
    about = tuple(verdict.get("about") or ())
    known = {cell.digest: cell.subject for cell in cells}
    known |= {cell.model.key: cell.model_label for cell in cells}
    return known.get(about[0], str(verdict["subject"])) if about else str(verdict["subject"])


def _is_selected(verdict: Mapping[str, Any], cells: Sequence[FinishedCell]) -> bool:
    """Is a verdict about the run as a whole, about a selected model, or about a cell of one?"""
    if verdict["scope"] == "run":
        return True
    digests = {key for c in cells for key in (c.digest, c.model.key, c.info.dataset_key)}
    if about := verdict.get("about"):
        return digests >= set(about)
    names, subject = {cell.model.name for cell in cells}, str(verdict["subject"])
    if verdict["scope"] == "model":
        return subject in names
    return any(f" on {name}," in f"{subject}," for name in names)


def _value_text(value: object) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return format_number(float(value))
    return "—" if value is None else str(value)


def _check_number(check: str) -> tuple[int, str]:
    digits = "".join(sign for sign in check if sign.isdigit())
    return int(digits or 0), check


def _unique_rows(rows: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys(rows))


def _commands(run: RunResult) -> list[str]:
    lines = [shlex.join(map(str, command)) for command in run.plan.get("commands", ())]
    return lines or ["called from Python"]


def _times(runs: Sequence[RunResult]) -> list[ProvenanceFacts]:
    """Return the seconds of attacks and checks, of the runs whose checks were timed."""
    rows = [
        (run.name, f"{seconds:.1f} s for the attacks, {run.check_seconds:.1f} s for the checks")
        for run in runs
        if run.check_seconds is not None
        for seconds in [sum(map(attack_seconds, run.cells))]
    ]
    return [ProvenanceFacts("Time", _unique_rows(rows))] if rows else []


def _files(runs: Sequence[RunResult]) -> list[ProvenanceFacts]:
    """Return remarks on the files, such as cells whose damage cannot be detected."""
    rows = [(run.name, remark) for run in runs for remark in run.remarks]
    rows += [(_name(cell), remark) for run in runs for cell in run.cells for remark in cell.remarks]
    return [ProvenanceFacts("Files", _unique_rows(rows))] if rows else []


def _model(cell: FinishedCell) -> str:
    weights = cell.model.weights_digest
    details = f", weights {weights}" if weights else ", no weights"
    reference = str(cell.model.card.get("name") or cell.model_label)
    named = "" if cell.model_label.startswith(reference) else f"{reference}, "
    return f"{named}digest {cell.model.digest}{details}"


def _attack(cell: FinishedCell) -> str:
    attack, helper = cell.attack, cell.threat.substitute
    parameters = ", ".join(f"{k}={v}" for k, v in attack.parameters.items())
    details = f" ({parameters})" if parameters else ""
    helped = f", on {helper.name} of digest {helper.digest}" if helper else ""
    return f"{attack.implementation}{details}, digest {attack.digest}{helped}"


def _oracles(cells: Sequence[FinishedCell]) -> list[ProvenanceFacts]:
    rows = _unique_rows(row for cell in cells for row in _oracle(cell))
    return [ProvenanceFacts("Oracles", rows)] if rows else []


def _oracle(cell: FinishedCell) -> list[tuple[str, str]]:
    """Return the oracle that a threat names, with its error rate."""
    oracle, error = cell.threat.oracle, cell.oracle_error
    if oracle is None:
        return []
    details = list(oracle.description)
    if error:
        details.append(
            f"wrong on {error.errors}, undecided on {error.undecided} of {error.trials} {error.measured_on}"
        )
    if error and error.detection:
        details.append(error.detection.text)
    return [(oracle.source, "; ".join([*details, f"digest {oracle.digest}"]))]


def _data(cell: FinishedCell) -> str:
    data = cell.dataset
    low, high = data.bounds
    return (
        f"{data.size:,} samples of shape {data.shape} in [{low:g}, {high:g}], "
        f"{data.num_classes} classes, digest {data.digest}"
    )


def _made_with(cells: Sequence[FinishedCell]) -> tuple[tuple[str, str], ...]:
    rows: list[tuple[str, str]] = []
    for info in (cell.info for cell in cells):
        used = info.software
        rows += [(name, str(version)) for name, version in used.get("versions", {}).items()]
        rows += [(key, str(used[key])) for key in ("device", "dtype") if key in used]
        rows += [("seed", str(info.seed)), ("batch size", str(info.batch_size))]
        rows.append(("git", _git(used.get("git"))))
    merged: dict[str, list[str]] = {}
    for name, value in dict.fromkeys(rows):
        merged.setdefault(name, []).append(value)
    return tuple((name, ", ".join(values)) for name, values in merged.items())


def _git(state: Mapping[str, Any] | None) -> str:
    if not state:
        return "not run from a checkout"
    return str(state.get("commit")) + (" with uncommitted changes" if state.get("dirty") else "")


def _name(cell: FinishedCell) -> str:
    return f"{cell.attack_label} on {cell.model_label}, {cell.threat.text}, {cell.dataset.name}"
