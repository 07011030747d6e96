"""Reads reproductions from ``reports/definitions/PAPER/ITEM.toml``, and holds their parts against one another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from robustbench_inv.catalogue.cards import read_toml
from robustbench_inv.catalogue.datasets import refuse_code
from robustbench_inv.catalogue.fields import Mismatch, check_fields, explain_mismatch
from robustbench_inv.catalogue.locate import entries, find
from robustbench_inv.catalogue.references import locate_code, locate_threat
from robustbench_inv.catalogue.reproduction import (
    Claim,
    Column,
    CurvePanel,
    Expectation,
    Measurement,
    Remark,
    Reproduction,
    Row,
    Side,
    Trial,
)
from robustbench_inv.errors import BadCatalogue, suggest

__all__ = ["load_reproduction", "read_reproduction"]

REPRODUCTION_VERSION = 1


def load_reproduction(name: str) -> Reproduction:
    """Return a reproduction by its name ``PAPER/ITEM``, by a table or figure that its page shows as well, or by its file.

    Raises:
        UnknownName: for an unknown name.
        BadCatalogue: if the file cannot be read, or has an invalid or inconsistent value.
    """
    if name.endswith(".toml"):
        return read_reproduction(Path(name))
    known = entries("reproductions")
    if name not in known:
        for path in known.values():
            if name in {f"{path.parent.name}/{also}" for also in read_toml(path).get("also", ())}:
                return read_reproduction(path)
    return read_reproduction(find("reproductions", name))


def read_reproduction(path: Path) -> Reproduction:
    """Read and check one file; missing keys are read from the file that it names as ``protocol``.

    Raises:
        BadCatalogue: if a file cannot be read, or has an invalid or inconsistent value.
    """
    own = read_toml(path)
    with explain_mismatch(BadCatalogue, str(path)):
        return _reproduction(path, _with_protocol(own, path), chosen="rows" not in own)


def _with_protocol(own: Mapping[str, Any], path: Path, *readers: Path) -> dict[str, Any]:
    """Return the values of a file, of the protocol that it names, of that one's protocol, and so on."""
    values = dict(own)
    protocol = values.pop("protocol", None)
    if not isinstance(protocol, str):
        return values
    shared = path.parent / protocol
    if shared in (path, *readers):
        raise Mismatch("a protocol reads itself", got=protocol, expected="another file")
    return _merged(_with_protocol(read_toml(shared), shared, path, *readers), values)


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of both files; the item's own override the shared ones, sweep by sweep."""
    sweeps = {**shared.get("sweeps", {}), **own.get("sweeps", {})}
    return {**shared, **own, "sweeps": sweeps}


_PARTS: dict[str, type[Any]] = {
    "columns": Column,
    "trials": Trial,
    "rows": Row,
    "panels": CurvePanel,
    "expectations": Expectation,
    "claims": Claim,
    "remarks": Remark,
}
"""The lists of tables in a file, and the class of each table."""


def _reproduction(path: Path, values: dict[str, Any], *, chosen: bool) -> Reproduction:
    """Return the item; if it has chosen rows of a protocol, those for which it has published numbers."""
    if (version := values.pop("version", None)) != REPRODUCTION_VERSION:
        expected = str(REPRODUCTION_VERSION)
        raise Mismatch("version does not fit", got=version or "none", expected=expected)
    parts = {key: _part(key, values.get(key, ())) for key in _PARTS}
    numbers = {
        key: {name: _numbers(name, each) for name, each in _table(key, values).items()}
        for key in ("sweeps", "published")
    }
    place = {"name": f"{path.parent.name}/{path.stem}", "folder": str(path.parent)}
    measured = values.get("measurement")
    if isinstance(measured, Mapping):
        values = {**values, "measurement": Measurement(**check_fields(Measurement, measured))}
    item = Reproduction(**check_fields(Reproduction, {**values, **parts, **numbers, **place}))
    item = _with_located_code(item)
    _check(item)
    _check_filled_names(item)
    rows = tuple(row for row in item.rows if row.label in item.published)
    dropped = [row.label for row in item.rows if row not in rows]
    if dropped and not chosen:
        remedy = "list it under [published], with nan where the paper has no number"
        raise Mismatch("a row has no published numbers", got=dropped[0], remedy=remedy)
    return replace(item, rows=rows)


def _part(key: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(v, Mapping) for v in value):
        raise Mismatch(f"{key} does not fit", got=value, expected="a list of tables")
    return tuple(_PARTS[key](**check_fields(_PARTS[key], each)) for each in value)


def _table(key: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    value = values.get(key, {})
    if not isinstance(value, Mapping):
        raise Mismatch(f"{key} does not fit", got=value, expected="a table")
    return value


def _numbers(name: str, value: object) -> tuple[float, ...]:
    fits = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not fits:
        raise Mismatch(f"{name} does not fit", got=value, expected="a list of numbers")
    return tuple(map(float, value))  # type: ignore[call-overload]


def _with_located_code(item: Reproduction) -> Reproduction:
    """Return an item with absolute paths of code; raise BadCatalogue for code that its file may not name."""
    folder = Path(item.folder)
    columns = [
        replace(
            each,
            published=_located(each.published, folder),
            adaptive=_located(each.adaptive, folder),
        )
        for each in item.columns
    ]
    trials = [
        replace(
            each,
            attack=_located(each.attack, folder),
            threat=locate_threat(each.threat, folder),
        )
        for each in item.trials
    ]
    measured = item.measurement
    if measured is not None:
        measured = replace(
            measured,
            by=_located(measured.by, folder),
            parameters=_located(measured.parameters, folder),
        )
    return replace(item, columns=tuple(columns), trials=tuple(trials), measurement=measured)


def _located(value: Any, folder: Path) -> Any:  # noqa: ANN401 - values of a TOML file
    """Return a value with absolute paths of the code that any text in it names."""
    if isinstance(value, str):
        return locate_threat(locate_code(value, folder), folder) if ":" in value else value
    if isinstance(value, Mapping):
        return {key: _located(each, folder) for key, each in value.items()}
    return [_located(each, folder) for each in value] if isinstance(value, list) else value


def _check_filled_names(item: Reproduction) -> None:
    """Check the names as they are loaded, with the data set in place of ``{data}``."""
    folder, measured = Path(item.folder), item.measurement
    columns = [column for column in item.columns if column.published]
    for data in item.datasets:
        refuse_code(data)
        for column in columns:
            _check_located(_models_of(column, data), folder)
        for trial in item.trials:
            for threat in item.threats(trial, data):
                _check_located(threat, folder)
        if measured is not None:
            _check_located(measured.filled(data), folder)


def _models_of(column: Column, data: str) -> list[str]:
    try:
        return [column.model(side, data) for side in get_args(Side)]
    except (AttributeError, LookupError, ValueError) as error:
        raise Mismatch("braces do not fit", got=column.published, expected="{data}") from error


def _check_located(value: object, folder: Path) -> None:
    if (located := _located(value, folder)) != value:
        raise Mismatch("code is named in parts", got=value, expected=str(located))


def _check(item: Reproduction) -> None:
    """Check that the parts of an item are consistent."""
    runs = item.columns and item.trials and (item.published or item.panels)
    if bool(runs) == bool(item.measurement):
        expected = "trials with published numbers or panels, or a measurement"
        raise Mismatch("an item needs either trials or a measurement", expected=expected)
    if item.published and len(item.datasets) != 1:
        raise Mismatch("a table has one data set", got=list(item.datasets))
    columns = _distinct("column", [column.name for column in item.columns])
    for label, values in item.published.items():
        if len(values) != len(columns):
            raise Mismatch(f"{label} needs a number for each column", got=list(values))
    for expectation in item.expectations:
        _check_expectation(expectation, columns)
    if item.measurement is None:
        _check_trials(item, columns)


def _check_trials(item: Reproduction, columns: Sequence[str]) -> None:
    labels = _distinct("row", [row.label for row in item.rows])
    _distinct("trial", [trial.name for trial in item.trials])
    for label in item.published:
        _known("row", label, labels)
    for column in item.columns:
        if not column.published:
            raise Mismatch(f"column {column.name} has no model")
    for trial in item.trials:
        _check_patterns(item, trial)
    for line in item.lines:
        _check_worst(item, line)
    for claim in item.claims:
        _check_claim(claim, columns, labels)


def _check_expectation(expectation: Expectation, columns: Sequence[str]) -> None:
    for name in (*expectation.columns, *filter(None, [expectation.minus])):
        _known("column", name, columns)
    if expectation.at_least is None and expectation.at_most is None:
        raise Mismatch("an expectation needs a limit", expected="at_least or at_most")


def _distinct(kind: str, names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if names.count(name) > 1:
            raise Mismatch(f"two {kind}s have one name", got=name)
    return names


def _known(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in (names := list(known)):
        raise Mismatch(f"unknown {kind}", got=name, remedy=suggest(name, names))


def _check_patterns(item: Reproduction, trial: Trial) -> None:
    try:
        item.threats(trial, "data")
    except (KeyError, IndexError, ValueError) as error:
        names = ("data", *(["target"] if trial.targets else []), *item.sweeps)
        known = ", ".join(f"{{{name}}}" for name in names)
        raise Mismatch("braces do not fit", got=trial.threat, expected=known) from error
    if len(set(item.threats(trial, "data"))) != max(len(trial.targets), 1):
        raise Mismatch(f"the cells of {trial.name} are the same", expected="{target} in the threat")
    if not item.attacked(trial):
        raise Mismatch(f"{trial.name} attacks no column", got=list(trial.columns))


def _check_worst(item: Reproduction, line: Row | CurvePanel) -> None:
    """Check that a worst case includes the attack as published."""
    _known("trial", line.trial, [trial.name for trial in item.trials])
    for group in line.worst_of:
        _known("group", group, {trial.group for trial in item.trials})
    own = item.trial(line.trial)
    for trial in item.worst_case_trials(line):
        if trial.targets != own.targets:
            raise Mismatch(f"{trial.name} has other cells than {own.name}", got=list(trial.targets))
    if isinstance(line, Row) and line.eps and line.metric != "robust":
        raise Mismatch(f"{line.label} has no single eps", got=line.eps, expected="0")
    if line.worst_of and own.group not in line.worst_of:
        raise Mismatch("worst_of does not include the published attack", expected=own.group)
    sweep = item.sweep(own)
    if isinstance(line, Row) and line.eps and sweep and line.eps not in sweep:
        raise Mismatch(f"{line.label} is not in the sweep of its trial", expected=str(sweep))


def _check_claim(claim: Claim, columns: Sequence[str], labels: Sequence[str]) -> None:
    for name in (*claim.left, *claim.right):
        _known("column", name, columns)
    if len(claim.right) not in (0, 1, len(claim.left)):
        raise Mismatch("left and right are not paired", got=list(claim.right))
    for pattern in claim.rows:
        if not any(fnmatchcase(label, pattern) for label in labels):
            raise Mismatch("no row matches", got=pattern, remedy=suggest(pattern, labels))
