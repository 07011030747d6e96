"""A reproduction: a paper's published numbers, the attacks or experiments behind them, and the paper's claims."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from string import Formatter
from typing import Any, Literal

from robustbench_inv.catalogue.references import parse_reference
from robustbench_inv.errors import UnknownName, UsageError, suggest

__all__ = [
    "CellAddress",
    "Claim",
    "Column",
    "CurvePanel",
    "Expectation",
    "Measurement",
    "Remark",
    "Reproduction",
    "Row",
    "RowMetric",
    "Side",
    "Trial",
]


@dataclass(frozen=True)
class Measurement:
    """An experiment and its parameters.

    Args:
        by: a name of ``experiments.protocol.EXPERIMENTS``, or ``module:function`` for your own code.
        parameters: by name; ``{data}`` in a text is replaced by the data set.
    """

    by: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def filled(self, data: str) -> dict[str, Any]:
        """Return the parameters for a data set.

        Example:
            >>> Measurement("m:f", {"pairs": {"DV": ["{data}-c-dv"]}, "n": 2}).filled("mnist")
            {'pairs': {'DV': ['mnist-c-dv']}, 'n': 2}
        """
        return {key: _filled(value, data) for key, value in self.parameters.items()}


@dataclass(frozen=True)
class Expectation:
    """An expected range of a number, or of the difference of two numbers.

    Args:
        text: one sentence.
        rows: labels of rows; all must be in the range.
        columns: names of columns; all must be in the range.
        minus: a column whose number in the same row is subtracted; empty to take the number itself.
        at_least: in per cent or points, or the amount itself; None for no limit.
        at_most: likewise.
    """

    text: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    minus: str = ""
    at_least: float | None = None
    at_most: float | None = None


def _filled(value: object, data: str) -> object:
    if isinstance(value, str):
        return value.replace("{data}", data)
    if isinstance(value, Mapping):
        return {key: _filled(each, data) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, data) for each in value]
    return value


Side = Literal["published", "adaptive"]
"""``published``: the model as the paper attacked it. ``adaptive``: the same network without what hides its
gradients."""

RowMetric = Literal["robust", "success", "detected", "undetected"]
"""What a row counts, as a share. ``robust``: of all samples, those that no counted attack broke. ``success``: of the
attacked samples, those on which the attack reached its goal. ``undetected``: of the attacked samples, those with an
adversarial example that the model accepts. ``detected``: of the samples on which the published attack succeeded, those
whose example the model rejects; adaptive, those for which every attack's example is rejected."""

OBLIVIOUS_GOAL = re.compile(r":goal=misclassify(?=:|$)")
"""The default goal, which the threats of records leave out."""


@dataclass(frozen=True)
class Column:
    """One model of the paper's table.

    Args:
        name: the paper's name for it.
        published: the model that the paper attacked; ``{data}`` is replaced by the data set. Empty for a column of
            published numbers alone.
        adaptive: the same network in the form for the strongest attack; empty if it is the same.
    """

    name: str
    published: str = ""
    adaptive: str = ""

    def model(self, side: Side, data: str) -> str:
        """Return the name of the model as records write it."""
        pattern = self.adaptive if side == "adaptive" and self.adaptive else self.published
        return str(parse_reference(pattern.format(data=data)))


@dataclass(frozen=True)
class Trial:
    """One attack under one threat, run on every column.

    Args:
        name: name of the trial, which rows and panels refer to.
        attack: the attack in the syntax of ``--attack``.
        threat: the threat in the syntax of ``--threat``; ``{data}`` is replaced by the data set, and the name of a
            sweep in braces by its eps.
        group: group of the trial; the worst case of groups is the adaptive number.
        side: the attacked model of a column.
        samples: largest number of samples; None for all.
        targets: values that replace ``{target}`` in the threat; one cell is run for each, and all cells are counted
            together. Empty for a single cell.
        columns: patterns of the attacked columns.
    """

    name: str
    attack: str
    threat: str
    group: str
    side: Side = "published"
    samples: int | str | None = None
    targets: tuple[int, ...] = ()
    columns: tuple[str, ...] = ("*",)

    def attacks(self, column: Column) -> bool:
        """Return whether the trial attacks a column."""
        return any(fnmatchcase(column.name, pattern) for pattern in self.columns)


@dataclass(frozen=True)
class Row:
    """One line of the paper's table.

    Args:
        name: the paper's name for it.
        eps: the budget; 0 for clean inputs, and for metrics other than ``robust``.
        trial: the attack as published.
        worst_of: groups whose trials define the adaptive number; empty for a row without one.
        metric: the reported share.
    """

    name: str
    eps: float
    trial: str
    worst_of: tuple[str, ...] = ()
    metric: RowMetric = "robust"

    @property
    def label(self) -> str:
        """Label of the row in numbers, claims and remarks.

        Example:
            >>> Row("FGSM b", 0.15, "FGSM b").label, Row("Clean", 0, "FGSM b").label
            ('FGSM b 0.15', 'Clean')
            >>> Row("C&W", 0, "C&W", metric="detected").label
            'C&W, detected'
        """
        if self.metric != "robust":
            return f"{self.name}, {self.metric}"
        return f"{self.name} {self.eps:g}" if self.eps else self.name


@dataclass(frozen=True)
class CurvePanel:
    """One plot of accuracy against eps: the attack as published, and the worst of groups.

    Args:
        title: title of the plot.
        trial: the attack as published.
        worst_of: groups whose trials define the adaptive number.
        label: class of the counted samples; None for all classes.
    """

    title: str
    trial: str
    worst_of: tuple[str, ...] = ()
    label: int | None = None


@dataclass(frozen=True)
class Claim:
    """A claim of the paper about its numbers: left is more than ``min_difference`` points above right.

    Args:
        text: one sentence.
        left: columns.
        right: one column, or as many as left, compared in order; empty to compare with the published numbers.
        rows: patterns of row labels.
        min_difference: points; negative for "not worse than".
        needs: must ``every`` comparison be true, or ``most`` of them (more than half)?
    """

    text: str
    left: tuple[str, ...]
    rows: tuple[str, ...]
    right: tuple[str, ...] = ()
    min_difference: float = 0.0
    needs: Literal["every", "most"] = "every"

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of columns; the second is empty for the published number."""
        right = self.right or ("",)
        return tuple(zip(self.left, right * (len(self.left) // len(right)), strict=True))


@dataclass(frozen=True)
class Remark:
    """An explanation of numbers that differ from the published ones; ``rows`` and ``columns`` are patterns."""

    rows: str
    columns: str
    text: str


@dataclass(frozen=True)
class CellAddress:
    """Names of a cell's model, attack and threat, as cell.json writes them."""

    model: str
    attack: str
    threat: str

    def __str__(self) -> str:
        return f"{self.model} | {self.attack} | {self.threat}"


@dataclass(frozen=True)
class Reproduction:
    """One table or figure of a paper: ``reports/definitions/PAPER/ITEM.toml``.

    Args:
        name: ``PAPER/ITEM``.
        folder: folder of the file.
        title: title of the report.
        summary: one sentence, for listings.
        paper: the publication.
        datasets: data sets of the columns; a table has one.
        columns: the models.
        trials: the attacks to run.
        sweeps: ascending eps by name, for the threats of trials.
        rows: rows of the table.
        published: per cent for each column, by the label of a row.
        panels: plots of the figure.
        measurement: the experiment, in place of trials; its numbers are the rows.
        expectations: expected ranges of measured numbers.
        claims: the paper's claims about its numbers.
        remarks: explanations of differences.
        text: description of the reproduction, a few sentences.
        samples: largest number of samples of a trial; None for all.
        certify: certify the samples after the attacks; panels then show the certified accuracy as well.
        also: other tables or figures that its page shows; ``invbench reproduce PAPER/NAME`` finds it by them too.
    """

    name: str
    folder: str
    title: str
    summary: str
    paper: str
    datasets: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    trials: tuple[Trial, ...] = ()
    sweeps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    panels: tuple[CurvePanel, ...] = ()
    measurement: Measurement | None = None
    expectations: tuple[Expectation, ...] = ()
    claims: tuple[Claim, ...] = ()
    remarks: tuple[Remark, ...] = ()
    text: str = ""
    samples: int | str | None = None
    certify: bool = False
    also: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[Row | CurvePanel, ...]:
        """The rows and the panels."""
        return (*self.rows, *self.panels)

    def only(self, pattern: str) -> "Reproduction":
        """Return the reproduction restricted to rows and panels whose label matches a pattern.

        Raises:
            UnknownName: if no label matches.
        """
        rows = tuple(row for row in self.rows if fnmatchcase(row.label, pattern))
        panels = tuple(panel for panel in self.panels if fnmatchcase(panel.title, pattern))
        if not rows and not panels:
            known = [row.label for row in self.rows] + [panel.title for panel in self.panels]
            raise UnknownName("no row matches", got=pattern, remedy=suggest(pattern, known))
        chosen = replace(self, rows=rows, panels=panels)
        wanted = {trial for line in chosen.lines for trial in self.worst_case_trials(line)}
        return replace(chosen, trials=tuple(trial for trial in self.trials if trial in wanted))

    def places(self, dataset: str | None = None) -> dict[str, str]:
        """Return the evaluated data set for each of the item's own.

        Args:
            dataset: a variant that replaces its original, as mnist5k replaces mnist; None for the originals.

        Raises:
            UsageError: if it is a variant of none: models of one data set cannot be evaluated on another.
        """
        if dataset is None:
            return {name: name for name in self.datasets}
        places = {name: dataset for name in self.datasets if dataset.startswith(name)}
        if not places:
            expected = " or ".join(f"{name}…" for name in self.datasets)
            raise UsageError(f"{self.name} needs another data set", got=dataset, expected=expected)
        return places

    def worst_case_trials(self, line: Row | CurvePanel) -> tuple[Trial, ...]:
        """Return the trials whose worst case is the adaptive number, the one as published first."""
        first = self.trial(line.trial)
        others = (trial for trial in self.trials if trial.group in line.worst_of)
        return (first, *(trial for trial in others if trial != first))

    def trial(self, name: str) -> Trial:
        """Return the trial of a name."""
        return next(trial for trial in self.trials if trial.name == name)

    def attacked(self, trial: Trial) -> tuple[Column, ...]:
        """Return the columns that a trial attacks."""
        return tuple(column for column in self.columns if trial.attacks(column))

    def addresses(self, trial: Trial, column: Column, data: str) -> tuple[CellAddress, ...]:
        """Return the address of each cell of a trial on a column's model."""
        model, attack = column.model(trial.side, data), str(parse_reference(trial.attack))
        threats = (OBLIVIOUS_GOAL.sub("", threat) for threat in self.threats(trial, data))
        return tuple(CellAddress(model, attack, threat) for threat in threats)

    def sweep(self, trial: Trial) -> tuple[float, ...]:
        """Return the eps of a trial's sweep; empty for a trial without a budget."""
        named = [name or "" for _, name, _, _ in Formatter().parse(trial.threat)]
        return next((self.sweeps[name] for name in named if name in self.sweeps), ())

    def threats(self, trial: Trial, data: str) -> tuple[str, ...]:
        """Return the threats of a trial's cells, with eps and data set filled in."""
        sweeps = {name: ",".join(f"{e:.10g}" for e in eps) for name, eps in self.sweeps.items()}
        if not trial.targets:
            return (trial.threat.format(data=data, **sweeps),)
        return tuple(
            trial.threat.format(data=data, target=target, **sweeps) for target in trial.targets
        )

    def remark(self, row: str, column: str) -> str:
        """Return the remarks on one number, given the label of its row and the name of its column; else an empty text."""
        fitting = [
            remark.text
            for remark in self.remarks
            if fnmatchcase(row, remark.rows) and fnmatchcase(column, remark.columns)
        ]
        return " ".join(fitting)
