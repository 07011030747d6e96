"""Compacted cells: every value comes back, the journal to the byte, and neither kills nor damage lose a record."""

import json
import os
from io import BytesIO

import numpy as np
import pyarrow
import pytest

from robustbench_inv.errors import BadResults
from robustbench_inv.results import cell_writing, parquet_records
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.parquet_records import COMPACTED, compact, compact_file, restore_lines
from robustbench_inv.results.record import STATUSES, Distances, ModelOutput
from robustbench_inv.results.record_columns import RecordColumns, Records
from robustbench_inv.results.run_files import CellFolder

FLOATS = (0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1 / 3, 0.0, -0.0, 2.0)


@pytest.fixture
def compacting(monkeypatch):
    monkeypatch.setattr(cell_writing, "COMPACTED_FROM", 8)


def varied(make, n=60):
    """Return records that have every kind of value in every field."""
    draw = np.random.default_rng(0)
    score = [None, *FLOATS]
    return [
        make.record(
            3 * n - 2 * i,
            label=int(draw.integers(0, 1000)),
            clean=ModelOutput(i - 1, score[i % 8], (None, True, False)[i % 3]),
            adversarial=ModelOutput(2**40 + i, score[(i + 3) % 8], (False, None, True)[i % 3]),
            oracle_label=(None, -1, 7, 2**60)[i % 4],
            oracle_source=(None, "exact", 'ünïcode, "quoted"')[i % 3],
            distance=Distances(i, FLOATS[i % 7], FLOATS[(i + 1) % 7], float(draw.random())),
            broken_at=[None, *FLOATS][i % 8],
            goal_reached=i % 2 == 0,
            forward_passes=2**50 + i,
            zero_gradient=i % 3 == 0,
            status=STATUSES[i % len(STATUSES)],
        )
        for i in range(n)
    ]


def packed(lines):
    """Return the bytes of a compacted file."""
    out = BytesIO()
    compact(lines, out)
    return out.getvalue()


def lines_of(records):
    return tuple(record.to_json_line().encode() for record in records)


def test_every_value_and_every_byte_comes_back(make):
    records = varied(make)
    data = packed(lines_of(records))
    assert restore_lines(data) == lines_of(records)
    assert packed(lines_of(records)) == data


@pytest.mark.parametrize("change", [{"l1": 1}, {"l1": "x"}, {"l0": 1.5}])
def test_lines_that_would_not_come_back_are_not_compacted(make, tmp_path, change):
    value = json.loads(make.record(1).to_json_line())
    value["distance"] |= change
    (tmp_path / "lines").write_text(json.dumps(value) + "\n")
    with pytest.raises(BadResults, match="cannot be"):
        compact_file(tmp_path / "lines", tmp_path / "file", "")
    assert [path.name for path in tmp_path.iterdir()] == ["lines"]


def test_columns_have_the_values_and_the_answers_of_the_records(make):
    records = sorted(varied(make), key=lambda record: record.sample)
    stored = Records(len(records), lambda: RecordColumns.of(records))
    assert stored == Records.of(records)
    assert stored[-1] == records[-1]
    assert stored[3:5] == tuple(records[3:5])
    found = stored.columns
    for name in ("was_attacked", "is_broken", "is_clean_correct", "is_correct", "keeps_prediction"):
        assert getattr(found, name).tolist() == [getattr(record, name) for record in records]
    odd = np.arange(len(records)) % 2 == 1
    assert list(stored.where(odd)) == records[1::2]


def test_a_finished_cell_is_compacted_and_restored_to_the_byte_when_it_grows(
    make, tmp_path, monkeypatch
):
    paths = tmp_path / "journal", tmp_path / "grown", tmp_path / "whole"
    for path, first in zip(paths, (20, 10, 20), strict=True):
        monkeypatch.setattr(cell_writing, "COMPACTED_FROM", 99 if path == paths[0] else 8)
        for samples in (first, 20):
            with CellWriter(path, make.request(range(samples))) as writer:
                make.fill(writer)
                writer.finish()
            assert (path / COMPACTED).exists() != (path / "records.jsonl").exists()
            assert CellFolder(path).finished
    journal = (paths[0] / "records.jsonl").read_bytes()
    assert b"".join(restore_lines((paths[2] / COMPACTED).read_bytes())) == journal
    assert CellFolder(paths[1]).read().records == CellFolder(paths[0]).read().records


@pytest.mark.usefixtures("compacting")
def test_small_and_unfinished_cells_stay_readable_by_eye(make, tmp_path):
    for count in (7, 20):
        with CellWriter(tmp_path / str(count), make.request(range(count))) as writer:
            make.fill(writer, blocks=2)
            if count == 7:
                writer.finish()
        assert not (tmp_path / str(count) / COMPACTED).exists()


@pytest.mark.usefixtures("compacting")
def test_damage_is_refused_and_repaired(make, tmp_path):
    path = tmp_path / "c"
    with CellWriter(path, make.request(range(10))) as writer:
        make.fill(writer)
        writer.finish()
    data, whole = (path / COMPACTED).read_bytes(), CellFolder(path).read().records
    for place in range(0, len(data), len(data) // 9):
        (path / COMPACTED).write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(BadResults, match="was changed after it was written"):
            CellFolder(path).read()
        with pytest.raises(BadResults, match="was changed after it was written"):
            CellWriter(path, make.request(range(10)))
        with CellWriter(path, make.request(range(10), repair=True)) as writer:
            make.fill(writer)
            writer.finish()
        assert (path / COMPACTED).read_bytes() == data
        assert CellFolder(path).read().records == whole
    (path / COMPACTED).unlink()
    with pytest.raises(BadResults, match=r"records\.jsonl is missing"):
        CellFolder(path).read()


class Death(BaseException):
    """The end of a process at an operation on files; none succeeds afterwards."""


@pytest.mark.usefixtures("compacting")
def test_no_death_between_two_operations_loses_a_record(make, tmp_path, monkeypatch):
    """The journal or the Parquet file is complete at every moment, and the next evaluation ends with the same files."""
    expected = None
    for number in range(200):
        path, count = tmp_path / str(number), 0
        with CellWriter(path, make.request(range(10))) as writer:
            make.fill(writer)
            writer.finish()

        def counted(operation, number=number):
            def run(*arguments, **named):
                nonlocal count
                count += 1
                if number and count >= number:
                    raise Death
                return operation(*arguments, **named)

            return run

        with monkeypatch.context() as patch:
            for name in ("write", "fsync", "ftruncate", "replace", "unlink"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                with CellWriter(path, make.request(range(14))) as writer:
                    make.fill(writer)
                    writer.finish()
                ended = True
            except Death:
                ended = False
        found = CellFolder(path).read().records
        assert list(found)[:10] == [make.record(sample) for sample in range(10)]
        with CellWriter(path, make.request(range(14))) as writer:
            make.fill(writer)
            writer.finish()
        files = {name: (path / name).read_bytes() for name in (COMPACTED, "cell.json")}
        assert files == (expected := expected or files)
        assert sorted(p.name for p in path.iterdir()) == ["cell.json", "events.jsonl", COMPACTED]
        if ended and number:
            return
    pytest.fail("it never ended")


def test_a_missing_value_is_refused_and_not_read_as_zero():
    """A prediction of 0 is a class."""
    column = pyarrow.chunked_array([pyarrow.array([3, None, 5])])
    assert parquet_records._values(column, -1).tolist() == [3, -1, 5]
    assert parquet_records._values(column[2:]).tolist() == [5]
    with pytest.raises(BadResults, match="lack a value"):
        parquet_records._values(column)
