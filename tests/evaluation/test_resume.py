"""A resumed cell has the records of an uninterrupted run to the byte; kills: ``tests/robustness/kills.py``."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustbench_inv.errors import BadResults
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.results.run_files import CellFolder


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory):
    job = toys.make_job(toys.Draws(), toys.linf(0.05, 0.1))
    folder = tmp_path_factory.mktemp("finished") / "cell"
    run_cell(job, folder, RunOptions(batch_size=8, keep_images=True))
    return job, folder


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cut=st.floats(0, 0.99), garbage=st.sampled_from([b"", b'{"sample": 3', b"\x00\x00\x00", b"x\n"])
)
def test_torn_at_any_byte(finished, tmp_path, cut, garbage):
    job, whole = finished
    torn = tmp_path / "torn"
    shutil.rmtree(torn, ignore_errors=True)
    shutil.copytree(whole, torn)
    (torn / "adversarial.safetensors").unlink()  # images would be shards at this moment
    lines = (whole / "records.jsonl").read_bytes()
    (torn / "records.jsonl").write_bytes(lines[: int(cut * len(lines))] + garbage)
    with pytest.raises(BadResults, match="repair"):
        run_cell(job, torn, RunOptions())
    run_cell(job, torn, RunOptions(existing="repair"))
    assert (torn / "records.jsonl").read_bytes() == lines


def test_another_batch_size_is_ignored_on_resume(finished, tmp_path):
    job, whole = finished
    torn = tmp_path / "torn"
    shutil.copytree(whole, torn)
    lines = (whole / "records.jsonl").read_bytes()
    (torn / "records.jsonl").write_bytes(lines[:5000])
    notes = run_cell(job, torn, RunOptions(batch_size=5, existing="repair"))
    assert (torn / "records.jsonl").read_bytes() == lines
    assert any("first batch size, 8" in note for note in notes)


def test_more_samples_keep_existing_records(toys, tmp_path):
    folder = tmp_path / "cell"
    few = toys.make_job(toys.Draws(), samples=range(0, 60, 3))
    more = toys.make_job(toys.Draws(), samples=range(0, 60, 2))
    run_cell(few, folder, RunOptions(batch_size=8, keep_images=True))
    first = (folder / "records.jsonl").read_bytes()
    run_cell(more, folder, RunOptions(keep_images=True))
    assert (folder / "records.jsonl").read_bytes().startswith(first)
    cell = CellFolder(folder)
    asked = sorted({*few.samples, *more.samples})
    assert sorted(r.sample for r in cell.records()) == asked == list(cell.samples)
    assert cell.images()["samples"].tolist() == asked
    run_cell(more, tmp_path / "alone", RunOptions(batch_size=8))
    alone = {r.sample: r for r in CellFolder(tmp_path / "alone").records()}
    found = {r.sample: r for r in cell.records()}
    assert all(found[sample] == record for sample, record in alone.items())


def test_redo_deletes_and_skip_keeps_results(toys, tmp_path):
    folder = tmp_path / "cell"
    job = toys.make_job(toys.Breaks(sample=10))
    run_cell(job, folder, RunOptions(batch_size=8, keep_images=True))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    notes = run_cell(job, folder, RunOptions(existing="skip"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "skipped" in notes[0]
    run_cell(job, folder, RunOptions(batch_size=20, existing="redo"))
    cell = CellFolder(folder)
    assert cell.info.batch_size == 20
    assert cell.images() is None
    assert [e["block"] for e in cell.events() if e["event"] == "crash"] == [0]


def test_another_cell_in_the_folder_is_refused(toys, tmp_path):
    run_cell(toys.make_job(toys.Straight()), tmp_path / "c", RunOptions())
    before = (tmp_path / "c" / "records.jsonl").read_bytes()
    with pytest.raises(BadResults, match="another cell"):
        run_cell(toys.make_job(toys.Draws()), tmp_path / "c", RunOptions())
    assert (tmp_path / "c" / "records.jsonl").read_bytes() == before
