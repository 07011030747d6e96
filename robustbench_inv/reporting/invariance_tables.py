"""Tables of invariance attacks, of fixed inputs from a data set, and of metamers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any

import pandas as pd

from robustbench_inv.reporting.facts import (
    IntervalOf,
    budget_of,
    identity_facts,
    judges_text,
    rate_facts,
)
from robustbench_inv.reporting.run_results import group_cells
from robustbench_inv.reporting.table_formats import (
    BLANK,
    Table,
    TableCell,
    format_number,
    norm_symbol,
    rate_cell,
    slug,
)
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.rate import CorrectedRate
from robustbench_inv.results.rates import (
    AgreementRates,
    agreement_rates,
    corrected_rate,
    distances_by_norm,
    invariance_rates,
)
from robustbench_inv.results.summary import Rate, median_distance

__all__ = ["fixed_input_tables", "invariance_tables", "metamer_tables"]


INVARIANCE_CAPTION = (
    "Shares in % [95 % interval] of the attacked samples (without those misclassified before). Failure: the prediction "
    "is unchanged although the oracle names another class inside the budget. "
    "A rejected input keeps no prediction. "
    "Undecided: the oracle names no class. Agrees with oracle, with label: predictions on changed inputs that have an oracle class; agreement with "
    "the old label is no merit. Oracle error: its error rate on clean inputs or catch trials. Corrected: failures, corrected for the "
    "changes that the oracle misses and for those that it reports falsely on changed inputs that people labelled; the "
    "lower end of the interval assumes that it misses none, the upper end that it reports none falsely. A search by the "
    "oracle's decisions has no estimate, and its lower end is 0. Median distance: of the "
    "failures from the clean inputs over the attacked samples, ∞ where fewer than half fail."
)

INVARIANCE_COLUMNS = (
    *("Model", "Attack", "Budget", "Attacked"),
    *("Decision unchanged", "True class changed", "Failure (both)"),
    *("Undecided", "Median distance"),
)
ORACLE_COLUMNS = (
    "Agrees with oracle",
    "Agrees with label",
    "Oracle",
    "Oracle error",
    "Oracle undecided",
    "Corrected",
)


def invariance_tables(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    """Yield a table for each group of invariance attacks.

    Args:
        cells: of any kind; cells of other attacks are skipped.
        interval: of every share.
    """
    for panel, group in group_cells(c for c in cells if c.threat.wants_same_prediction).items():
        yield Table(
            slug(f"invariance-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"Blindness to class changes{_judged_by(group)}: {panel.title}",
            INVARIANCE_CAPTION,
            pd.DataFrame([_invariance_fact(cell, interval) for cell in group]),
            (*INVARIANCE_COLUMNS, *ORACLE_COLUMNS),
            tuple(_invariance_row(cell, interval) for cell in group),
        )


def _judged_by(group: Sequence[FinishedCell]) -> str:
    judges = judges_text(group)
    return f", judged by {judges}" if judges else ""


def _invariance_row(cell: FinishedCell, interval: IntervalOf) -> tuple[TableCell, ...]:
    found, errors = invariance_rates(cell.records), _oracle_error_rates(cell)

    def show(rate: Rate | None) -> TableCell:
        return rate_cell(rate, interval(rate)) if rate else BLANK

    return (
        TableCell(cell.model_label, tone="name"),
        TableCell(cell.attack_label, tone="name"),
        TableCell(budget_of(cell), tone="note"),
        TableCell(f"{found.success.trials:,}"),
        *map(
            show,
            (found.same_prediction, found.class_changed, found.success, found.oracle_undecided),
        ),
        TableCell(_medians_text(cell)),
        *map(show, (found.agrees_with_oracle, found.agrees_with_label)),
        TableCell(cell.oracle_source or "—", tone="note"),
        *map(show, errors.values()),
        _corrected_cell(cell),
    )


def _corrected_cell(cell: FinishedCell) -> TableCell:
    """Return the failure rate corrected for the oracle's error; blank if that was not measured."""
    found = corrected_rate(cell)
    if found is None:
        return BLANK
    detail = f"{100 * found.low:.1f}–{100 * found.high:.1f}"
    if isnan(found.value):  # no estimate
        return TableCell(detail)
    return TableCell(f"{100 * found.value:.1f}", detail, found.value)


def _invariance_fact(cell: FinishedCell, interval: IntervalOf) -> dict[str, Any]:
    found = vars(invariance_rates(cell.records))
    return {
        **identity_facts(cell),
        "oracle": cell.oracle_source,
        **rate_facts({**found, **_oracle_error_rates(cell)}, interval),
        **_corrected_facts(cell),
        **{f"median_{name}": value for name, value in _medians(cell).items()},
    }


def _corrected_facts(cell: FinishedCell) -> dict[str, float]:
    found = corrected_rate(cell) or CorrectedRate(nan, nan, nan)
    name = "corrected_success"
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _medians(cell: FinishedCell) -> dict[str, float]:
    found = distances_by_norm(cell)
    medians = {name: median_distance(each) for name, each in found.items()}
    return {name: nan if value is None else value for name, value in medians.items()}


def _medians_text(cell: FinishedCell) -> str:
    medians = _medians(cell).items()
    return ", ".join(f"{norm_symbol(name)} {format_number(value)}" for name, value in medians)


def _oracle_error_rates(cell: FinishedCell) -> dict[str, Rate | None]:
    """Return the error rates of a cell's oracle; None if they were not measured."""
    error = cell.oracle_error
    return {
        "oracle_error_rate": error.error_rate if error else None,
        "oracle_undecided_rate": error.undecided_rate if error else None,
    }


ALTERED_CAPTION = (
    "Predictions on altered inputs, in % [95 % interval] of those that have a class by the oracle, that agree with the "
    "oracle and with the original label. Agreement with the label where the oracle names another class is the failure. "
    "{truth}"
)
SHIFTED_CAPTION = (
    "Accuracy in % [95 % interval] on the clean inputs and on the shifted ones. {truth}"
)


def fixed_input_tables(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    """Yield a table for each family of data sets with fixed inputs: one row for each model.

    Args:
        cells: of any kind; cells of attacks that search, and of inputs without a class, are skipped.
        interval: of every share.
    """
    families: dict[tuple[str, str], list[_FixedInputCell]] = {}
    for cell in cells:
        if rates := agreement_rates(cell):
            key = _dataset_family(cell), cell.goal
            families.setdefault(key, []).append(_FixedInputCell(cell, rates))
    for (family, goal), group in families.items():
        altered = any(each.rates.agrees_with_oracle for each in group)
        title = "Agreement on altered inputs" if altered else "Accuracy on clean and shifted inputs"
        columns = list(dict.fromkeys(name for each in group for name in each.shares))
        yield Table(
            slug(f"agreement-{family}-{goal}"),
            f"{title}: {family}",
            (ALTERED_CAPTION if altered else SHIFTED_CAPTION)
            .format(truth=_oracle_changes_text(group))
            .strip(),
            pd.DataFrame([_agreement_fact(each, interval) for each in group]),
            ("Model", *columns),
            tuple(_agreement_rows(group, columns, interval)),
        )


@dataclass(frozen=True)
class _FixedInputCell:
    """A cell of fixed inputs with its rates."""

    cell: FinishedCell
    rates: AgreementRates

    @property
    def shares(self) -> dict[str, Rate]:
        """The two shares that readers see, by their headings."""
        rates, name = self.rates, _dataset_label(self.cell)
        if rates.agrees_with_oracle is None:
            return {
                f"{name}: clean": rates.clean_accuracy,
                f"{name}: adversarial": rates.agrees_with_label,
            }
        return {
            f"{name}: {self.cell.oracle_source}": rates.agrees_with_oracle,
            f"{name}: label": rates.agrees_with_label,
        }


def _agreement_rows(
    group: Sequence[_FixedInputCell], columns: Sequence[str], interval: IntervalOf
) -> Iterable[tuple[TableCell, ...]]:
    """Yield a row for each model, and another one for each further cell with the same columns."""
    rows: list[tuple[str, dict[str, Rate]]] = []
    for each in group:
        model, shares = each.cell.model_label, each.shares
        free = (row for name, row in rows if name == model and not row.keys() & shares.keys())
        if (row := next(free, None)) is None:
            rows.append((model, row := {}))
        row.update(shares)
    for model, row in rows:
        cells = (rate_cell(row[c], interval(row[c])) if c in row else BLANK for c in columns)
        yield TableCell(model, tone="name"), *cells


def _agreement_fact(each: _FixedInputCell, interval: IntervalOf) -> dict[str, Any]:
    about = {**identity_facts(each.cell), "oracle": each.cell.oracle_source}
    return {**about, **rate_facts(vars(each.rates), interval)}


def _oracle_changes_text(group: Sequence[_FixedInputCell]) -> str:
    """Return for each data set how often the oracle names another class than the label."""
    first = {each.cell.dataset.name: each for each in reversed(group) if each.rates.class_changed}
    counts = [
        f"{rate.successes} of {rate.trials} ({_dataset_label(each.cell)})"
        for each in reversed(first.values())
        if (rate := each.rates.class_changed)
    ]
    return (
        f"The oracle names another class than the label in {', '.join(counts)}." if counts else ""
    )


def _dataset_family(cell: FinishedCell) -> str:
    return cell.dataset.name.partition(":")[0]


def _dataset_label(cell: FinishedCell) -> str:
    """Return the label of a data set in its family: the value of its only parameter, or all parameters.

    For a data set without parameters it is the name.
    """
    parameters = cell.dataset.name.partition(":")[2]
    if not parameters:
        return cell.dataset.name
    return parameters.partition("=")[2] if "," not in parameters else parameters.replace(",", " ")


LOGIT_TOLERANCE = 1e-3
"""Largest difference of logits that count as equal, unless the goal gives another."""

STAGES = {"raw": "decoded", "clipped": "clipped", "rounded": "rounded"}


def metamer_tables(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    """Yield a table for each group that has metamers.

    Args:
        cells: of any kind; cells of other attacks are skipped.
        interval: of every share.
    """
    measured = [_MetamerCell(cell) for cell in cells]
    found = {m.cell.digest: m for m in measured if "reencoding_error" in m.columns}
    for panel, group in group_cells(m.cell for m in found.values()).items():
        metamers = [found[cell.digest] for cell in group]
        yield Table(
            slug(f"metamers-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"Metamers: {panel.title}",
            _metamer_caption(metamers),
            pd.DataFrame([_metamer_fact(each, interval) for each in metamers]),
            ("Model", "Attack", "Metamers", "Error", *metamers[0].rates),
            tuple(_metamer_row(each, interval) for each in metamers),
        )


@dataclass(frozen=True)
class _MetamerCell:
    """A cell of metamers."""

    cell: FinishedCell

    @property
    def columns(self) -> Mapping[str, Mapping[int, float | None]]:
        """What the attack measured of each sample: name → sample → number."""
        return self.cell.sample_values

    @property
    def ids(self) -> list[int]:
        """The samples that have a metamer."""
        return [r.sample for r in self.cell.records if r.status == "ok"]

    @property
    def tolerance(self) -> float:
        """Largest difference of logits that count as equal."""
        return float(self.cell.threat.goal_parameters.get("tolerance", LOGIT_TOLERANCE))

    @property
    def error(self) -> float:
        """The largest difference of re-encoded logits from those of the source."""
        errors = map(self.columns["reencoding_error"].get, self.ids)
        return max((inf if error is None else error for error in errors), default=0.0)

    @property
    def rates(self) -> dict[str, Rate]:
        """Every share, by its heading."""
        shares = {
            **{f"Prediction {word}": self._decided(stage) for stage, word in STAGES.items()},
            **{f"Logits {word}": self._near(stage) for stage, word in STAGES.items()},
            "Donor's class": self._seen(self._column("donor_label")),
            "Source's class": self._seen({r.sample: r.label for r in self.cell.records}),
        }
        return {name: Rate(count, len(self.ids)) for name, count in shares.items()}

    def _decided(self, stage: str) -> int:
        return sum(self._column(f"{stage}_same_prediction").get(i) == 1 for i in self.ids)

    def _near(self, stage: str) -> int:
        moved = map(self._column(f"{stage}_logit_distance").get, self.ids)
        return sum(far is not None and far <= self.tolerance for far in moved)

    def _seen(self, classes: Mapping[int, float | None]) -> int:
        judged = [r for r in self.cell.records if r.status == "ok" and r.oracle_label is not None]
        return sum(r.oracle_label == classes.get(r.sample) for r in judged)

    def _column(self, name: str) -> Mapping[int, float | None]:
        """Return the numbers of one name; a sample without one has none of the properties that are counted."""
        return self.columns.get(name, {})


def _metamer_caption(metamers: Sequence[_MetamerCell]) -> str:
    near = " or ".join(f"{t:g}" for t in sorted({each.tolerance for each in metamers}))
    return (
        "Shares in % [95 % interval] of the metamers. Error: largest difference between the logits of a re-encoded "
        "metamer and those of its source. Prediction, logits: equal to those of the source (logits to "
        f"{near}) after decoding, after clipping to the bounds, and after rounding to 256 grey levels. Donor's, "
        "source's: the oracle's class of the metamer."
    )


def _metamer_row(metamers: _MetamerCell, interval: IntervalOf) -> tuple[TableCell, ...]:
    return (
        TableCell(metamers.cell.model_label, tone="name"),
        TableCell(metamers.cell.attack_label, tone="name"),
        TableCell(f"{len(metamers.ids):,}"),
        TableCell(format_number(metamers.error)),
        *(rate_cell(rate, interval(rate)) for rate in metamers.rates.values()),
    )


def _metamer_fact(metamers: _MetamerCell, interval: IntervalOf) -> dict[str, Any]:
    rates = {
        name.replace("'", "").replace(" ", "_").lower(): r for name, r in metamers.rates.items()
    }
    return {
        **identity_facts(metamers.cell),
        "oracle": metamers.cell.oracle_source,
        "tolerance": metamers.tolerance,
        "largest_error": metamers.error,
        **rate_facts(rates, interval),
    }
