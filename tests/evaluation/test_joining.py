"""Other processes join a run by its folder alone: same records, no objects, a stranger's jobs are refused."""

import json
import os
import signal
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import robustbench_inv as rbi
from robustbench_inv.api import evaluate
from robustbench_inv.cli.main import app
from robustbench_inv.errors import BadResults, UsageError
from robustbench_inv.evaluation.block_runner import BlockRunner
from robustbench_inv.evaluation.engine import RunOptions, ignore_progress
from robustbench_inv.evaluation.joining import join, write_jobs
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.evaluation.sharing import SharedCell
from robustbench_inv.evaluation.worker import _Group
from robustbench_inv.results.block_board import BlockBoard
from robustbench_inv.results.cell_content import sample_order
from robustbench_inv.results.files import write_json
from robustbench_inv.results.image_files import ImageShards
from robustbench_inv.results.run_files import CellFolder, RunFolder

SPHERES = "spheres:d=500,n=10,r1=1,r2=1.3"
ARGUMENTS = {
    "model": {"A": "spheres-max-margin", "B": "spheres-misaligned"},
    "attack": ["pgd:steps=2", "fgsm"],
    "threat": "l2=0.1,0.4",
    "dataset": SPHERES,
    "samples": 40,
    "batch_size": 7,
    "keep_images": True,
    "checks": False,
}


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("records.jsonl", "adversarial.safetensors")
        for path in folder.glob(f"*/{name}")
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "r"
    evaluate(**ARGUMENTS, out=folder)
    return folder


def test_a_run_without_workers_waits_for_others(alone, tmp_path):
    folder = tmp_path / "r"
    waiting = evaluate(**ARGUMENTS, out=folder, workers=0)
    assert "invbench work" in waiting.notes[-1]
    assert not list(folder.glob("*/cell.json"))
    seen = []
    outcomes = list(join(folder, "cpu", None, seen.append, worker=3))
    assert [outcome.failure for outcome in outcomes] == [None] * 4
    assert files(folder) == files(alone)
    assert {(p.cell, p.cells) for p in seen} == {(n, 4) for n in range(1, 5)}
    assert not list(folder.glob("*/blocks"))
    assert [p.done for p in seen if p.cell == 4 and p.state == "running" and not p.detail] == [
        *range(0, 40, 7),
        40,
    ]
    assert evaluate(**ARGUMENTS, out=folder).failures == ()
    assert files(folder) == files(alone)


def test_a_run_of_one_worker_can_be_joined(alone, tmp_path):
    folder, mine, joined = tmp_path / "r", [], []

    def report(progress):
        mine.append(progress)
        if progress.done == 7 and not joined:
            joined.extend(join(folder, "cpu", None, ignore_progress))

    assert evaluate(**ARGUMENTS, out=folder, progress=report).failures == ()
    assert [outcome.failure for outcome in joined] == [None] * 4  # the other one has completed all
    assert not [each for each in mine if each.done == 14]
    assert files(folder) == files(alone)


def test_a_process_that_was_paused_past_the_end_of_its_cell(alone, tmp_path, monkeypatch):
    """Its folder of images is gone, which is no error: others have computed its block."""
    folder, real, seen = tmp_path / "r", ImageShards.add, []
    evaluate(**ARGUMENTS, out=folder, workers=0)

    def paused(self, block, *rest):
        if seen:
            return real(self, block, *rest)
        seen.append(block)
        (claim,) = folder.glob("*/blocks/0.claim")
        claim.unlink()  # the lease has expired
        list(join(folder, "cpu", None, ignore_progress))
        raise BadResults("no such file or directory")

    monkeypatch.setattr(ImageShards, "add", paused)
    outcomes = list(join(folder, "cpu", None, ignore_progress))
    assert [outcome.failure for outcome in outcomes] == [None] * 3
    assert files(folder) == files(alone)


def test_jobs_without_samples_are_complete_at_once(tmp_path):
    """As in the first stage of a run that stops when it is decided, for an attack on a part of the samples."""
    folder = tmp_path / "r"
    plan = evaluate(**ARGUMENTS, out=folder, workers=0).plan
    jobs = [replace(plan.jobs[0], samples=()), plan.jobs[1]]
    write_jobs(folder, jobs, [[0], [1]], RunOptions(batch_size=7))
    outcomes = list(join(folder, "cpu", None, ignore_progress))
    assert [outcome.failure for outcome in outcomes] == [None, None]


def test_what_another_process_left_is_used(alone, tmp_path):
    """Finished blocks that are not in the journal yet are neither lost nor computed again."""
    folder = tmp_path / "r"
    jobs = evaluate(**ARGUMENTS, out=folder, workers=0).plan.jobs
    child = os.fork()
    if not child:
        list(join(folder, "cpu", None, kill_after(4)))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (cell,) = folder.glob("*/cell.json")
    assert BlockBoard(cell.parent, "").numbers()[0] == {0, 1, 2}
    assert not (cell.parent / "records.jsonl").read_bytes()
    watch(cell.parent, jobs)
    kept = (cell.parent / "blocks" / "1.block").read_bytes()
    evaluate(**ARGUMENTS, out=folder)
    assert files(folder) == files(alone)
    events = (cell.parent / "events.jsonl").read_text()
    seconds = json.loads(kept[kept.index(b'{"event": "block_time"') :].splitlines()[0])["seconds"]
    assert f'"seconds": {seconds}' in events


def watch(folder, jobs):
    """A process that computes nothing, such as that of a Ray cluster's driver, reads the progress of others in the folder."""
    seen, board = [], BlockBoard(folder, "")
    assert set(board.claims()) == {2}
    board.describe(2, "block 3 of 6: 2 of 7 samples robust")
    job = next(job for job in jobs if job.spec.digest == folder.name)
    SharedCell(job, folder, RunOptions(batch_size=7), seen.append, "", {}).look()
    assert [(p.done, p.total, p.detail) for p in seen] == [
        (21, 40, "block 3 of 6: 2 of 7 samples robust")
    ]
    row = json.loads(CliRunner().invoke(app, ["status", str(folder.parent), "--json"]).output)
    assert [claim["detail"] for each in row for claim in each["claims"]] == [seen[0].detail]


def worker_of(toys, folder, samples, name):
    """Return what a process named ``name/0`` does for a cell with these samples, step by step."""
    job = toys.make_job(toys.Draws(), samples=samples)
    options = RunOptions(batch_size=4)
    cell = SharedCell(job, folder / "cell", options, ignore_progress, f"{name}/0", {})
    return _Group([cell]), cell


def alternate(*workers, steps=80):
    """Let each process take a step in turn until all have ended."""
    for _ in range(steps):
        for group, _ in workers:
            if not group.ended:
                group.step()
        if all(group.ended for group, _ in workers):
            return [cell.outcome and cell.outcome.failure for _, cell in workers]
    raise AssertionError("the processes do not end")


@pytest.mark.parametrize(
    ("first", "second"),
    [(20, 40), (40, 20), (range(20), range(10, 40)), (range(20), range(20, 40))],
    ids=["more", "fewer", "overlapping", "other"],
)
@pytest.mark.parametrize("before", range(4))
def test_two_processes_with_other_samples_complete_one_cell(
    toys, tmp_path, first, second, before, monkeypatch
):
    """One of them ended with StopIteration, and the other one computed the same block for ever."""
    samples = [range(each) if isinstance(each, int) else each for each in (first, second)]
    one, two = (
        worker_of(toys, tmp_path, each, name) for each, name in zip(samples, "ab", strict=True)
    )
    computed, run = [], BlockRunner.run
    monkeypatch.setattr(
        BlockRunner, "run", lambda self, ids, log: computed.append(ids) or run(self, ids, log)
    )
    for _ in range(
        before
    ):  # the second process finds no claim, for the first one is between blocks
        one[0].step()
    assert set(alternate(one, two)) == {None}
    asked = sorted({*samples[0], *samples[1]})
    assert sorted(record.sample for record in CellFolder(tmp_path / "cell").records()) == asked
    run_cell(toys.make_job(toys.Draws(), samples=asked), tmp_path / "alone", RunOptions())
    alone = {each.sample: each for each in CellFolder(tmp_path / "alone").records()}
    assert all(alone[each.sample] == each for each in CellFolder(tmp_path / "cell").records())
    wasted = sum(map(len, computed)) - 2 * len(asked)
    assert wasted <= 4 * max(before - 1, 0)  # blocks that the first one stored before


def test_samples_that_another_process_computes_keep_their_places(toys, tmp_path):
    first, second = range(20, 40), range(40)
    one, two = (worker_of(toys, tmp_path, *each) for each in ((first, "a"), (second, "b")))
    for _ in range(2):
        one[0].step()
    with one[1].board.held(2, one[1].board.claim(2)):
        two[0].step()
        order = sample_order(CellFolder(tmp_path / "cell").info.segments)
        assert order == [*range(20, 40), *range(20)]
        assert one[0].step()  # with the order that the other one has extended
        two[0].step()
        assert one[1].pending() == two[1].pending() == list(range(1, 10))
    assert alternate(one, two) == [None, None]


def test_a_block_whose_file_is_deleted_again_and_again_is_an_error(toys, tmp_path, monkeypatch):
    group, cell = worker_of(toys, tmp_path, range(20), "a")
    store = BlockBoard.store
    monkeypatch.setattr(
        BlockBoard, "store", lambda self, n, block: store(self, n, block) and self.discard(n)
    )
    with pytest.raises(BadResults, match=r"block 1 of .* was deleted .*got '2 times'.*--out"):
        alternate((group, cell))


def kill_after(count):
    seen = []

    def report(progress):
        seen.append(progress)
        if sum(not each.detail for each in seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return report


def test_objects_cannot_be_joined(tmp_path):
    model = rbi.load_model("spheres-max-margin", dataset=rbi.load_dataset(SPHERES))
    with pytest.raises(UsageError, match=r"no other process can load .*file\.py:factory"):
        evaluate(**{**ARGUMENTS, "model": model}, out=tmp_path / "r", workers=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: {**value, "options": 3},
        lambda value: {**value, "jobs": [3]},
        lambda value: {**value, "groups": [[9]]},
    ],
)
def test_damaged_jobs_are_one_line(tmp_path, change):
    folder = tmp_path / "r"
    evaluate(**ARGUMENTS, out=folder, workers=0)
    write_json(folder / "jobs.json", change(json.loads((folder / "jobs.json").read_bytes())))
    with pytest.raises(BadResults, match="has no jobs that another process can load"):
        list(join(folder, "cpu", None, ignore_progress))


def test_names_that_denote_something_else_fail_the_cell(tmp_path):
    folder = tmp_path / "r"
    evaluate(**ARGUMENTS, out=folder, workers=0)
    value = json.loads((folder / "jobs.json").read_bytes())
    value["jobs"][0]["seed"] = 1
    write_json(folder / "jobs.json", value)
    outcomes = list(join(folder, "cpu", None, ignore_progress))
    assert ["another cell" in str(outcome.failure) for outcome in outcomes] == [True, *[False] * 3]


def test_the_commands(alone, tmp_path):
    folder = tmp_path / "r"
    jobs = evaluate(**ARGUMENTS, out=folder, workers=0).plan.jobs
    run = CliRunner().invoke
    assert "waiting" in run(app, ["status", str(folder)]).output
    script = run(app, ["work", str(folder), "--slurm", "8"]).output
    assert "--array=0-7" in script
    assert f"invbench work {folder}" in script
    assert run(app, ["work", str(folder)]).exit_code == 0
    rows = json.loads(run(app, ["status", str(folder), "--json"]).output)
    assert [(row["state"], row["done"], row["samples"]) for row in rows] == [
        ("completed", 40, 40)
    ] * 4
    assert [row["cell"] for row in rows] == [job.title for job in jobs]
    assert len(RunFolder(folder).cells()) == 4
    assert files(folder) == files(alone)
