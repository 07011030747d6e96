"""Cells and runs on disk: what a crash, another process, a full disk or a stranger's file leaves intact."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_inv.errors import BadResults
from robustbench_inv.results.block_board import BlockBoard, StoredBlock
from robustbench_inv.results.cell_content import (
    block_samples,
    count_complete,
    extend_segments,
    sample_order,
)
from robustbench_inv.results.cell_events import GrowingFile
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.run_files import CellFolder, RunFolder
from robustbench_inv.results.run_writing import write_checks, write_plan

PLAN = {
    "name": "p",
    "created_by": {},
    "commands": [],
    "samples": [1, 2],
    "cells": [{"digest": "a", "model": "m", "attack": "pgd", "dataset": "d"}],
}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_records_come_back(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request([5, 3, 9, 1, 7])) as writer:
        make.fill(writer)
    cell = CellFolder(tmp_path / "c")
    assert cell.records() == [make.record(s) for s in (1, 3, 5, 7, 9)]
    assert cell.finished
    assert cell.samples == (1, 3, 5, 7, 9)
    assert cell.info.version == 2


def test_an_unfinished_cell_goes_on_with_the_next_block(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        make.fill(writer, blocks=1)
    assert not CellFolder(tmp_path / "c").finished
    with CellWriter(tmp_path / "c", make.request(range(10), batch_size=3)) as writer:
        assert writer.batch_size == 4
        assert writer.next_block() == (1, (4, 5, 6, 7))
        make.fill(writer)
    assert [r.sample for r in CellFolder(tmp_path / "c").records()] == list(range(10))


@pytest.mark.parametrize("file", ["events", "records", None])
def test_a_cell_that_starts_again_is_empty_at_every_moment(make, tmp_path, monkeypatch, file):
    """A process that is killed between two files of a cell leaves no damage."""
    path = tmp_path / "c"
    with CellWriter(path, make.request(range(10))) as writer:
        make.fill(writer)
    keep, calls = GrowingFile.keep, []

    def killed(self, data):
        calls.append(self)
        if len(calls) > {"events": 0, "records": 1, None: 2}[file]:
            raise KeyboardInterrupt
        return keep(self, data)

    monkeypatch.setattr(GrowingFile, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        CellWriter(path, make.request(range(10), redo=True))
    monkeypatch.undo()
    assert CellFolder(path).read().records == ()
    with CellWriter(path, make.request(range(10))) as writer:
        make.fill(writer)
    assert [r.sample for r in CellFolder(path).records()] == list(range(10))


def test_a_description_of_another_cell_is_repaired(make, tmp_path):
    for name, seed in (("c", 0), ("other", 1)):
        with CellWriter(tmp_path / name, make.request(range(10), seed=seed)) as writer:
            make.fill(writer)
    (tmp_path / "other" / "cell.json").replace(tmp_path / "c" / "cell.json")
    with pytest.raises(BadResults, match="belongs to another cell"):
        CellWriter(tmp_path / "c", make.request(range(10)))
    with CellWriter(tmp_path / "c", make.request(range(10), repair=True)) as writer:
        make.fill(writer)
    cell = CellFolder(tmp_path / "c").read()
    assert (cell.info.identity["seed"], len(cell.records)) == (0, 10)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    asked=st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 40), min_size=4, max_size=4),
)
def test_any_history_of_requests_ends_with_each_sample_once(sizes, asked, cuts):
    segments, done = (), 0
    for number, samples in enumerate(asked):
        size = sizes[number % len(sizes)]
        before = sample_order(segments)[:done]
        segments = extend_segments(segments, done, samples, size)
        assert sample_order(segments)[:done] == before  # what has records keeps its place
        assert set(sample_order(segments)) == {*before, *samples}
        assert len(set(sample_order(segments))) == len(sample_order(segments))
        assert [s for block in block_samples(segments) for s in block] == sample_order(segments)
        done = max(done, count_complete(segments, cuts[number]))
        assert done in {
            sum(map(len, block_samples(segments)[:k]))
            for k in range(len(sample_order(segments)) + 1)
        }
        assert extend_segments(segments, done, samples, 99) == segments  # a resume changes nothing
        shared = extend_segments(segments, done, asked[0], size, shared=True)
        assert shared[: len(segments)] == segments  # others compute what has no records
        assert set(sample_order(shared)) == {*sample_order(segments), *asked[0]}


def test_a_damaged_line_is_named_and_nothing_is_lost(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(8))) as writer:
        make.fill(writer)
    path = tmp_path / "c" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"oops\n", *lines[3:]]))
    damaged = path.read_bytes()
    with pytest.raises(BadResults, match="line 3") as error:
        CellFolder(tmp_path / "c").records()
    one_line(error)
    with pytest.raises(BadResults, match="line 3"):
        CellWriter(tmp_path / "c", make.request(range(8)))
    assert path.read_bytes() == damaged


def test_records_of_other_samples_are_refused(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(8))) as writer:
        make.fill(writer)
    path = tmp_path / "c" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(reversed(lines)))
    with pytest.raises(BadResults, match="does not fit"):
        CellWriter(tmp_path / "c", make.request(range(8)))


def test_two_writers_of_one_cell(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(8))):
        with pytest.raises(BadResults, match="another process") as error:
            CellWriter(tmp_path / "c", make.request(range(8)))
        one_line(error)
    with CellWriter(tmp_path / "c", make.request(range(8))) as writer:
        make.fill(writer)
    assert CellFolder(tmp_path / "c").finished


@pytest.mark.parametrize("announced", [True, False])
def test_a_kill_between_the_records_and_the_digests_of_several_blocks(
    make, tmp_path, monkeypatch, announced
):
    """Records that were announced are moved again; so many without an announcement are damage."""
    with CellWriter(tmp_path / "c", make.request(range(10))):
        board = BlockBoard(tmp_path / "c", "e/0")
    for number, samples in enumerate([range(4), range(4, 8), range(8, 10)]):
        lines = "".join(make.record(sample).to_json_line() for sample in samples).encode()
        board.store(number, StoredBlock(tuple(samples), lines, b"", images=False, worker="e/0"))
    append = GrowingFile.append

    def killed(self, data, *, flush):
        if self.path.name == "events.jsonl" and (b"moving" not in data or not announced):
            raise KeyboardInterrupt
        return append(self, data, flush=flush)

    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        monkeypatch.setattr(GrowingFile, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.absorb(board)
    monkeypatch.undo()
    path = tmp_path / "c" / "records.jsonl"
    assert len(path.read_bytes().splitlines()) == (10 if announced else 0)
    assert CellFolder(tmp_path / "c").records() == []
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        assert writer.absorb(board) == 3
    assert CellFolder(tmp_path / "c").records() == [make.record(sample) for sample in range(10)]
    (tmp_path / "c" / "events.jsonl").write_bytes(b"")
    with pytest.raises(BadResults, match="lacks the digests of 10 records"):
        CellWriter(tmp_path / "c", make.request(range(10)))


def test_a_full_disk(make, tmp_path, monkeypatch):
    writer = CellWriter(tmp_path / "c", make.request(range(8)))
    make.fill(writer, blocks=1)
    before = (tmp_path / "c" / "records.jsonl").read_bytes()
    real, calls = os.write, []

    def full(descriptor, data):
        calls.append(1)
        if len(calls) == 1:
            return real(descriptor, data[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(BadResults, match="No space left on device") as error:
            make.fill(writer)
    one_line(error)
    assert (tmp_path / "c" / "records.jsonl").read_bytes() == before
    make.fill(writer)  # room was made
    writer.close()
    assert CellFolder(tmp_path / "c").finished


def test_a_file_in_the_way(make, tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(BadResults, match="cannot write") as error:
        CellWriter(tmp_path / "f" / "c", make.request([1]))
    one_line(error)
    with pytest.raises(BadResults, match="cannot write"):
        write_plan(tmp_path / "f", PLAN)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(make, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BadResults, match="Permission denied"):
            CellWriter(tmp_path / "c", make.request([1]))
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["plan.json", "cell.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[1]", "not a results file"),
        ('{"version": 3}', "newer program"),
        ('{"version": "1"}', "not a results file"),
    ],
)
def test_damaged_or_later_files(make, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadResults, match=message) as error:
        _ = RunFolder(tmp_path).plan if name == "plan.json" else CellFolder(tmp_path).info
    one_line(error)
    if name == "cell.json":
        with pytest.raises(BadResults):
            CellWriter(tmp_path, make.request([1]))
    assert (tmp_path / name).read_text() == text


def test_a_folder_of_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(BadResults, match=r"thesis\.tex"):
        write_plan(tmp_path, PLAN)
    with pytest.raises(BadResults, match="not a results folder"):
        _ = RunFolder(tmp_path).plan
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_later_plan_adds_its_cells(tmp_path):
    write_plan(tmp_path, PLAN)
    cell = {**PLAN["cells"][0], "digest": "b", "model": "n"}
    more = {**PLAN, "name": "q", "samples": [2, 3], "cells": [cell]}
    more["commands"] = [["invbench", "evaluate"]]
    plan = write_plan(tmp_path, more).plan
    assert plan["commands"] == [["invbench", "evaluate"]]
    assert [cell["digest"] for cell in plan["cells"]] == ["a", "b"]
    assert (plan["name"], plan["samples"]) == ("p", [1, 2, 3])
    assert write_plan(tmp_path, more).plan == plan


def test_verdicts_on_other_models_stay(tmp_path):
    run = write_plan(tmp_path, PLAN)
    assert run.checks() == []

    def verdict(subject, scope="model"):
        texts = dict.fromkeys(("title", "rule", "evidence"), "")
        return {
            "id": "C6",
            "subject": subject,
            "scope": scope,
            "value": None,
            "verdict": "PASS",
            **texts,
        }

    write_checks(run, [verdict("m"), verdict("old cell", "cell")])
    write_checks(run, [verdict("n"), verdict("m") | {"verdict": "FAIL"}])
    assert {(v["subject"], v["verdict"]) for v in run.checks()} == {("n", "PASS"), ("m", "FAIL")}


def test_images_are_kept_whatever_happens(make, tmp_path):
    def path(name):
        return tmp_path / name / "adversarial.safetensors"

    with CellWriter(tmp_path / "count_complete", make.request(range(10))) as writer:
        make.fill(writer, keep=True)
    with CellWriter(tmp_path / "cut", make.request(range(10))) as writer:
        make.fill(writer, blocks=2, keep=True)
        # killed after the shard of the third block, before its records
        writer._images.add(2, (8, 9), make.images([8, 9]))
        assert CellFolder(tmp_path / "cut").images() is None
    with CellWriter(tmp_path / "cut", make.request(range(10))) as writer:
        make.fill(writer, keep=True)
    assert path("cut").read_bytes() == path("count_complete").read_bytes()
    kept = CellFolder(tmp_path / "cut").images()
    assert kept["samples"].tolist() == list(range(10))
    assert (kept["adversarial"] - kept["clean"] == 0.5).all()


def test_images_of_samples_without_records_are_dropped(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        make.fill(writer, blocks=1, keep=True)
        writer._images.add(1, (4, 5, 6, 7), make.images([4, 5, 6, 7]))
    with CellWriter(tmp_path / "c", make.request(range(4))) as writer:
        make.fill(writer, keep=True)
    assert CellFolder(tmp_path / "c").images()["samples"].tolist() == [0, 1, 2, 3]


def test_a_torn_note_is_passed_over(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(4))) as writer:
        writer.note("crash", block=0)
    with (tmp_path / "c" / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "ti')
    assert CellFolder(tmp_path / "c").events() == [{"event": "crash", "block": 0}]
    with CellWriter(tmp_path / "c", make.request(range(4))) as writer:
        writer.note("time", block=0)
    assert [e["event"] for e in CellFolder(tmp_path / "c").events()] == ["crash", "time"]


def test_a_file_of_numbers_is_one_line_an_entry(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(1000))):
        text = (tmp_path / "c" / "cell.json").read_text()
    assert len(text.splitlines()) == 2 + len(json.loads(text))
