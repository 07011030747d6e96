"""Damage to the records and events of a cell is told on every read, and a repair brings the records back."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.run_files import WITHOUT_DIGESTS, CellFolder

OLD_RUNS = Path(__file__).parent.parent / "data"


@pytest.fixture
def cell(make, tmp_path):
    """A finished cell of ten samples in blocks of four."""
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        writer.note("crash", block=0, samples=[1])
        make.fill(writer)
    return tmp_path / "c"


def change_digit(lines):
    lines[5] = lines[5].replace(b'"forward_passes": 12', b'"forward_passes": 13')


def change_label(lines):
    lines[9] = lines[9].replace(b'"label": 9', b'"label": 8')


def drop(lines):
    del lines[3]


def drop_last(lines):
    del lines[-1]


def double(lines):
    lines.insert(4, lines[4])


def swap(lines):
    lines[2], lines[3] = lines[3], lines[2]


def empty(lines):
    lines.clear()


def append(lines):
    lines.append(lines[-1])


def rewrite(lines):
    lines[0] = json.dumps(json.loads(lines[0]), separators=(",", ":")).encode() + b"\n"


DAMAGE = [change_digit, change_label, drop, drop_last, double, swap, empty, append, rewrite]


def damage_file(path, damage):
    lines = path.read_bytes().splitlines(keepends=True)
    damage(lines)
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records_are_refused_and_repaired(make, cell, damage):
    whole = (cell / "records.jsonl").read_bytes()
    damage_file(cell / "records.jsonl", damage)
    damaged = (cell / "records.jsonl").read_bytes()
    for read in (CellFolder(cell).read, CellFolder(cell).records, CellFolder(cell).events):
        with pytest.raises(BadResults, match="repair") as error:
            read()
        assert "\n" not in str(error.value)
    with pytest.raises(BadResults, match="repair"):
        CellWriter(cell, make.request(range(10)))
    assert (cell / "records.jsonl").read_bytes() == damaged
    with CellWriter(cell, make.request(range(10), repair=True)) as writer:
        make.fill(writer)
    assert (cell / "records.jsonl").read_bytes() == whole
    assert [r.sample for r in CellFolder(cell).read().records] == list(range(10))


def test_a_repair_keeps_the_blocks_before_the_damage(make, cell):
    damage_file(cell / "records.jsonl", change_digit)
    with CellWriter(cell, make.request(range(10), repair=True)) as writer:
        assert (writer.done, writer.repaired) == (4, 6)
        make.fill(writer)
    with CellWriter(cell, make.request(range(10), repair=True)) as writer:
        assert (writer.done, writer.repaired) == (10, 0)


@pytest.mark.parametrize("line", range(6))
@pytest.mark.parametrize("damage", ["drop", "digit", "double"])
def test_damaged_events_change_no_record(make, cell, line, damage):
    records = (cell / "records.jsonl").read_bytes()
    path = cell / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5  # a crash, three blocks, the end
    if line == 5:
        path.unlink()
    elif damage == "drop":
        path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    elif damage == "double":
        path.write_bytes(b"".join(lines[: line + 1] + lines[line:]))
    else:
        changed = lines[line].replace(b"1", b"2", 1)
        path.write_bytes(b"".join([*lines[:line], changed, *lines[line + 1 :]]))
    try:
        found = CellFolder(cell).read()
    except BadResults as error:
        assert "repair" in str(error)  # noqa: PT017 - both ends are right
    else:
        assert [r.sample for r in found.records] == list(range(10))
    with CellWriter(cell, make.request(range(10), repair=True)) as writer:
        make.fill(writer)
    assert (cell / "records.jsonl").read_bytes() == records


def test_records_of_another_cell_are_refused(make, cell, tmp_path):
    with CellWriter(tmp_path / "other", make.request(range(10), seed=1)) as writer:
        make.fill(writer)
    for name in ("records.jsonl", "events.jsonl"):
        shutil.copyfile(tmp_path / "other" / name, cell / name)
    with pytest.raises(BadResults, match="do not fit their digest"):
        CellFolder(cell).read()


def test_lost_records_are_told(make, cell):
    (cell / "records.jsonl").unlink()
    for read in (CellFolder(cell).read, lambda: CellWriter(cell, make.request(range(10)))):
        with pytest.raises(BadResults, match=r"records\.jsonl is missing"):
            read()
    assert not (cell / "records.jsonl").exists()


@pytest.mark.parametrize("name", ["records.jsonl", "events.jsonl"])
@pytest.mark.parametrize("what", ["removed", "changed", "replaced"])
def test_a_file_that_changes_under_a_running_evaluation_is_told(make, tmp_path, name, what):
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        make.fill(writer, blocks=1)
        path = tmp_path / "c" / name
        data = path.read_bytes()
        if what != "changed":
            path.unlink()
        if what == "replaced":
            path.write_bytes(data)
        if what == "changed":
            path.write_bytes(data + b"x")
        with pytest.raises(BadResults, match="while the evaluation ran"):
            make.fill(writer, blocks=1)
    with CellWriter(tmp_path / "c", make.request(range(10), repair=True)) as writer:
        make.fill(writer)
    assert [r.sample for r in CellFolder(tmp_path / "c").read().records] == list(range(10))


def test_an_unfinished_block_is_left_out_of_a_read(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        make.fill(writer, blocks=1)
        line = make.record(4).to_json_line().encode()
        with (tmp_path / "c" / "records.jsonl").open("ab") as file:
            file.write(line + line[:20])  # as another process sees it during a write
        assert [r.sample for r in CellFolder(tmp_path / "c").read().records] == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", [change_digit, drop, double, swap, empty])
def test_damage_to_an_unfinished_cell_is_told_on_resume(make, tmp_path, damage):
    with CellWriter(tmp_path / "c", make.request(range(30))) as writer:
        make.fill(writer, blocks=4)
    damage_file(tmp_path / "c" / "records.jsonl", damage)
    with pytest.raises(BadResults, match="repair"):
        CellWriter(tmp_path / "c", make.request(range(30)))


def test_cells_without_digests_load_and_say_so():
    for version in ("run-v1", "run-v2"):
        for path in (OLD_RUNS / version).glob("*/cell.json"):
            cell = CellFolder(path.parent).read()
            assert cell.remarks == (WITHOUT_DIGESTS,)
            assert len(cell.records) == 12


def test_a_cell_without_digests_gets_them_with_more_samples(make, cell):
    text = (cell / "cell.json").read_text()
    value = json.loads(text)
    del value["sha256"]
    (cell / "cell.json").write_text(json.dumps(value))
    (cell / "events.jsonl").write_text("")
    assert CellFolder(cell).read().remarks == (WITHOUT_DIGESTS,)
    with CellWriter(cell, make.request(range(10))) as writer:
        assert writer.unprotected
        make.fill(writer)
    assert json.loads((cell / "cell.json").read_text()) == value  # nothing to add, nothing written
    with CellWriter(cell, make.request(range(12))) as writer:
        make.fill(writer)
    assert CellFolder(cell).read().remarks == ()
    damage_file(cell / "records.jsonl", change_digit)
    with pytest.raises(BadResults, match="repair"):
        CellFolder(cell).read()


def test_a_finished_cell_on_a_read_only_disk_is_opened(make, cell, monkeypatch):
    real = os.open

    def read_only(path, flags, *mode):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with CellWriter(cell, make.request(range(10))) as writer:
        assert writer.next_block() is None
        writer.finish()
    with pytest.raises(BadResults, match="Read-only file system"):
        CellWriter(cell, make.request(range(12)))


def test_leftovers_of_a_killed_process_are_removed(make, cell):
    dead, alive = 2**22 + 1, os.getpid()  # above the largest process id of Linux
    (cell / f".cell.json.{dead}.tmp").write_text("x")
    (cell / f".adversarial.safetensors.{dead}.tmp").write_text("x")
    (cell / f".cell.json.{alive}.tmp").write_text("x")
    (cell / ".mine.7.txt").write_text("x")
    with CellWriter(cell, make.request(range(10))):
        hidden = sorted(path.name for path in cell.glob(".*"))
    assert hidden == sorted([f".cell.json.{alive}.tmp", ".mine.7.txt"])
