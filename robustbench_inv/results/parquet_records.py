"""The records of a finished cell as a Parquet file, from which records.jsonl can be restored to the byte."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import read_whole
from robustbench_inv.results.record import STATUSES
from robustbench_inv.results.record_columns import (
    NO_ORACLE_LABEL,
    NORMS,
    OutputColumns,
    RecordColumns,
    Records,
)

__all__ = ["COMPACTED", "compact", "compacted_digest", "records_of", "restore_lines"]

COMPACTED = "records.parquet"

ROWS = 20_000
"""Rows of a row group: damage to one leaves those before it readable."""

_KINDS = {
    "sample": "int64",
    "label": "int64",
    "clean.prediction": "int64",
    "clean.score": "float64",
    "clean.accepted": "bool_",
    "adversarial.prediction": "int64",
    "adversarial.score": "float64",
    "adversarial.accepted": "bool_",
    "oracle_label": "int64",
    "oracle_source": "string",
    "distance.l0": "int64",
    "distance.l1": "float64",
    "distance.l2": "float64",
    "distance.linf": "float64",
    "broken_at": "float64",
    "within_budget": "bool_",
    "goal_reached": "bool_",
    "forward_passes": "int64",
    "backward_passes": "int64",
    "zero_gradient": "bool_",
    "replayed": "bool_",
    "status": "string",
}
"""The columns of the file, and their types."""

_NESTED = ("clean", "adversarial", "distance")


def compact(lines: Sequence[bytes]) -> bytes | None:
    """Return the lines of records.jsonl as a Parquet file; None if they could not be restored from it to the byte.

    The same lines give the same file, with one version of pyarrow.
    """
    arrow, parquet = _arrow()
    rows = [_flat(json.loads(line)) for line in lines]
    extras = list(dict.fromkeys(key for row in rows for key in row if key not in _KINDS))
    kinds = {**_KINDS, **dict.fromkeys(extras, "string")}
    schema = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in kinds.items()])
    try:
        arrays = {name: [row.get(name) for row in rows] for name in kinds}
        table = arrow.table(arrays, schema=schema)
    except (arrow.ArrowException, OverflowError, TypeError):
        return None  # values of other types, which nobody has written so far
    out = BytesIO()
    parquet.write_table(
        table,
        out,
        compression="zstd",
        row_group_size=ROWS,
        store_schema=False,
        write_page_checksum=True,
        use_dictionary=["label", "oracle_source", "status", "clean.prediction"],
    )
    data = out.getvalue()
    return data if restore_lines(data) == tuple(lines) else None


def read_compacted(path: Path, salt: str, digest: str) -> RecordColumns:
    """Read a file that ``compact`` made.

    Args:
        path: the file.
        salt: of the digest.
        digest: of the file.

    Raises:
        BadResults: if it is missing or was changed.
    """
    try:
        data = read_whole(path)
    except OSError as error:
        raise BadResults(f"cannot read {path}: {error.strerror or error}") from error
    if compacted_digest(salt, data) != digest:
        raise BadResults(f"{path} was changed after it was written")
    return _columns(data)


def compacted_digest(salt: str, data: bytes) -> str:
    """Return the SHA-256 of the salt and a file."""
    return hashlib.sha256(salt.encode() + data).hexdigest()


def restore_lines(data: bytes) -> tuple[bytes, ...]:
    """Return the lines of records.jsonl, those of damaged row groups and of the ones after them left out."""
    found: list[bytes] = []
    _, parquet = _arrow()
    try:
        file = parquet.ParquetFile(BytesIO(data), page_checksum_verification=True)
        for group in range(file.num_row_groups):
            records = _to_columns(file.read_row_group(group, use_threads=False)).records()
            found += [record.to_json_line().encode() for record in records]
    except Exception:  # whatever a library raises for damage
        return tuple(found)
    return tuple(found)


def _columns(data: bytes) -> RecordColumns:
    _, parquet = _arrow()
    file = parquet.ParquetFile(BytesIO(data), read_dictionary=["oracle_source", "status"])
    return _to_columns(file.read(use_threads=False))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a record with dotted keys; the values of optional keys as JSON."""
    found = {f"{key}.{name}": value for key in _NESTED for name, value in row[key].items()}
    for key, value in row.items():
        if key not in _NESTED:
            found[key] = value if key in _KINDS else json.dumps(value)
    return found


def _to_columns(table: Any) -> RecordColumns:  # noqa: ANN401 - pyarrow has no types
    def column(name: str, empty: float | None = None) -> Any:  # noqa: ANN401
        return _values(table.column(name), empty)

    def flags(name: str) -> Any:  # noqa: ANN401
        return _values(table.column(name).cast("int8"), -1)

    def outputs(part: str) -> OutputColumns:
        scores = column(f"{part}.score", np.nan)
        return OutputColumns(column(f"{part}.prediction"), scores, flags(f"{part}.accepted"))

    statuses, names = _codes(table.column("status"))
    order = np.array([STATUSES.index(name) for name in names], np.int8)
    sources, source_names = _codes(table.column("oracle_source"))
    return RecordColumns(
        sample=column("sample"),
        label=column("label"),
        clean=outputs("clean"),
        adversarial=outputs("adversarial"),
        oracle_label=column("oracle_label", NO_ORACLE_LABEL),
        oracle_source=sources,
        distance={norm: column(f"distance.{norm}") for norm in NORMS},
        broken_at=column("broken_at", np.inf),
        within_budget=column("within_budget"),
        goal_reached=column("goal_reached"),
        forward_passes=column("forward_passes"),
        backward_passes=column("backward_passes"),
        zero_gradient=column("zero_gradient"),
        replayed=column("replayed"),
        status=order[statuses],
        sources=tuple(source_names),
        extras={
            name: table.column(name).to_pylist()
            for name in table.column_names
            if name not in _KINDS
        },
    )


def _codes(column: Any) -> tuple[Any, list[str]]:  # noqa: ANN401
    """Return the values of a column of strings as numbers of its different strings, −1 for null."""
    if column.type == "string":
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    chunk = whole.chunk(0) if hasattr(whole, "num_chunks") else whole
    return _values(chunk.indices, -1).astype(np.int8), chunk.dictionary.to_pylist()


def _values(column: Any, null: float | None = None) -> Any:  # noqa: ANN401
    """Return a column of numbers or truth values as an array, nulls replaced; ``to_numpy`` and ``fill_null`` import pandas.

    Raises:
        BadResults: for a null without a replacement.
    """
    if column.type == "bool":
        return _values(column.cast("int8"), null).astype(bool)
    whole = column.combine_chunks() if hasattr(column, "num_chunks") else column
    name, memory = str(whole.type), whole.buffers()[1]
    kind = np.dtype("float32" if name == "float" else name)
    values = np.frombuffer(memory or b"", kind, len(whole), whole.offset * kind.itemsize)
    if not whole.null_count:
        return values
    if null is None:
        raise BadResults("compacted records lack a value")
    return np.where(_values(whole.is_null()), null, values).astype(kind)


def records_of(path: Path, salt: str, digest: str, samples: Sequence[int]) -> Records:
    """Return the records of a file that ``compact`` made, to be read when they are needed.

    Args:
        path: the file.
        salt: of the digest.
        digest: of the file.
        samples: of the records, in their order.
    """

    def load() -> RecordColumns:
        found = read_compacted(path, salt, digest)
        if not np.array_equal(found.sample, samples):
            raise BadResults(f"{path} does not fit the samples of the cell")
        return found

    return Records(len(samples), load)


@cache
def _arrow() -> tuple[ModuleType, ModuleType]:
    """Return pyarrow and its module for Parquet, which take a tenth of a second to import."""
    import pyarrow
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet
