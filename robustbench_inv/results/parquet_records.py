"""The records of a finished cell as a Parquet file, from which records.jsonl can be restored to the byte."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from itertools import islice, zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import file_digest, read_whole, replaced
from robustbench_inv.results.record import STATUSES
from robustbench_inv.results.record_columns import (
    NO_ORACLE_LABEL,
    NORMS,
    OutputColumns,
    RecordColumns,
    Records,
)

__all__ = [
    "COMPACTED",
    "compact",
    "compact_file",
    "compacted_digest",
    "records_of",
    "restore_lines",
]

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

PARSED_ROWS = 1000
"""Rows that are parsed, or made, at once: a divisor of ROWS."""


def compact(lines: Iterable[bytes], out: BinaryIO) -> None:
    """Write the lines of records.jsonl to a Parquet file, of which only a part is in memory.

    The same lines give the same file, with one version of pyarrow.

    Raises:
        BadResults: for keys or values of other types than those of ``Record``, which nobody has written so far.
    """
    arrow, parquet = _arrow()
    rest, schema = iter(lines), _schema(_KINDS)
    try:
        with parquet.ParquetWriter(
            out,
            schema,
            compression="zstd",
            store_schema=False,
            write_page_checksum=True,
            use_dictionary=["label", "oracle_source", "status", "clean.prediction"],
        ) as file:
            while group := list(islice(_tables(rest), ROWS // PARSED_ROWS)):
                table = arrow.concat_tables(group).combine_chunks()
                file.write_table(table, row_group_size=ROWS)
    except arrow.ArrowException as error:
        raise BadResults(f"records that cannot be compacted: {error}") from error


def _schema(kinds: Mapping[str, str]) -> Any:  # noqa: ANN401 - pyarrow has no types
    arrow, _ = _arrow()
    return arrow.schema([(name, getattr(arrow, kind)()) for name, kind in kinds.items()])


def _tables(lines: Iterator[bytes]) -> Iterator[Any]:
    """Yield tables of PARSED_ROWS lines, parsed by pyarrow, which imports pandas for lists of Python objects."""
    arrow, _ = _arrow()
    import pyarrow.json

    schema = arrow.schema(
        [
            (
                name,
                arrow.struct(_schema(kind)) if isinstance(kind, dict) else getattr(arrow, kind)(),
            )
            for name, kind in _nested(_KINDS).items()
        ]
    )
    parsing = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    while found := b"".join(islice(lines, PARSED_ROWS)):
        reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(found) + 1)
        table = pyarrow.json.read_json(BytesIO(found), reading, parsing)
        yield table.flatten()


def compact_file(lines: Path, file: Path, salt: str) -> str:
    """Write records.parquet for a records.jsonl, which can be restored from it to the byte; return its digest.

    Args:
        lines: records.jsonl.
        file: records.parquet, which appears whole.
        salt: of the digest.

    Raises:
        BadResults: if the lines could not be restored, or the file cannot be written.
    """
    with lines.open("rb") as source, replaced(file) as temporary:
        with temporary.open("wb") as out:
            compact(source, out)
            out.flush()
            os.fsync(out.fileno())
        source.seek(0)
        if any(one != other for one, other in zip_longest(_lines(temporary), source)):
            raise BadResults(f"{lines} cannot be restored from {file.name}")
        return file_digest(salt, temporary)


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
    with suppress(Exception):  # whatever a library raises for damage
        found.extend(_lines(BytesIO(data)))
    return tuple(found)


def _lines(source: Path | BytesIO) -> Iterator[bytes]:
    """Yield the lines of records.jsonl that a file restores."""
    _, parquet = _arrow()
    with parquet.ParquetFile(source, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            if table.column_names != list(_KINDS):  # optional keys
                yield from (each.to_json_line().encode() for each in _to_columns(table).records())
                continue
            for start in range(0, len(table), PARSED_ROWS):
                part = table.slice(start, PARSED_ROWS)
                texts = (_texts(part.column(name), kind) for name, kind in _KINDS.items())
                yield from ((_LINE % row).encode() for row in zip(*texts, strict=True))


def _texts(column: Any, kind: str) -> list[str]:  # noqa: ANN401
    """Return the values of a column as JSON; the numbers are finite."""
    if kind == "string":
        codes, names = _codes(column)
        named = {-1: "null", **{code: json.dumps(name) for code, name in enumerate(names)}}
        return [named[code] for code in codes.tolist()]
    if kind == "bool_":
        return [_FLAGS[flag] for flag in _values(column.cast("int8"), -1).tolist()]
    texts = list(map(repr, _values(column, 0).tolist()))
    if column.null_count:
        nulls = _values(column.is_null()).tolist()
        return ["null" if null else text for null, text in zip(nulls, texts, strict=True)]
    return texts


_FLAGS = {-1: "null", 0: "false", 1: "true"}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with dotted keys as ``Record`` nests them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        part, _, key = name.rpartition(".")
        (found.setdefault(part, {}) if part else found)[key] = value
    return found


_LINE = json.dumps(_nested(dict.fromkeys(_KINDS, "%s"))).replace('"%s"', "%s") + "\n"
"""A line of records.jsonl, with a place for the JSON of each value."""


def _columns(data: bytes) -> RecordColumns:
    _, parquet = _arrow()
    file = parquet.ParquetFile(BytesIO(data), read_dictionary=["oracle_source", "status"])
    return _to_columns(file.read(use_threads=False))


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
