"""Cells in several processes: a process that dies, a parent that dies, locks, and what can be sent."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from robustbench_inv.errors import BadResults, UsageError
from robustbench_inv.evaluation import sharing
from robustbench_inv.evaluation import worker as worker_module
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.packing import unpack_jobs
from robustbench_inv.evaluation.schedule import check_locks, run_jobs
from robustbench_inv.results.block_board import BlockBoard
from robustbench_inv.results.cell_parts import CellRequest
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.run_files import CellFolder

PARENT = str(os.getpid())


def dying(toys, folder, deaths, end):
    """Return a TwoSides that kills its process by a signal so many times, but never this one."""

    class Dying(toys.TwoSides):
        def forward(self, images):
            seen = len(list(folder.glob("death-*")))
            if os.environ.get("INVBENCH_TEST_PARENT") == str(os.getppid()) and seen < deaths:
                (folder / f"death-{seen}").touch()
                os.kill(os.getpid(), end)
            return super().forward(images)

    return Dying()


@pytest.fixture
def jobs(toys, tmp_path, monkeypatch):
    """Four cells: one whose process always dies, one whose process dies once, and two that run."""
    monkeypatch.setenv("INVBENCH_TEST_PARENT", PARENT)
    folders = [tmp_path / name for name in ("always", "once")]
    for folder in folders:
        folder.mkdir()
    ends = (signal.SIGKILL, signal.SIGTERM)
    models = [
        dying(toys, folder, count, end)
        for folder, count, end in zip(folders, (99, 1), ends, strict=True)
    ]
    models += [toys.TwoSides(), None]
    attacks = [toys.Straight()] * 3 + [toys.Draws()]
    return [toys.make_job(a, module=m) for m, a in zip(models, attacks, strict=True)]


def test_a_dead_process_fails_no_other_cell(jobs, tmp_path):
    """Neither a cell of another process, nor one before or after it in its own."""
    seen = []
    outcomes = run_jobs(jobs, tmp_path / "r", RunOptions(), seen.append, workers=2)
    assert [bool(outcome.failure) for outcome in outcomes] == [True, False, False, False]
    assert outcomes[0].failure == (
        "its worker process was killed by SIGKILL, perhaps for lack of memory, 2 times"
    )
    assert "was killed by SIGTERM" in outcomes[1].notes[0]
    ends = {p.cell: p.state for p in seen if p.state != "running"}
    assert ends == {1: "failed", 2: "completed", 3: "completed", 4: "completed"}
    for job in jobs[1:]:
        records = CellFolder(tmp_path / "r" / job.spec.digest).records()
        assert [r.sample for r in records] == list(range(60))
    run_jobs(jobs[2:], tmp_path / "alone", RunOptions())
    for job in jobs[2:]:
        one, other = (tmp_path / at / job.spec.digest / "records.jsonl" for at in ("r", "alone"))
        assert one.read_bytes() == other.read_bytes()


class RayError(Exception):
    """What the fake Ray below raises."""


def fake_ray(dies, nodes=1):
    """Return a Ray that runs tasks at once; a task that begins with such a block dies while it holds it."""
    deaths = []

    def get(task):
        function, (parcel, groups, root, options, name) = task
        job = unpack_jobs(parcel)[dies]
        board = BlockBoard(root / job.spec.digest, name)
        if board.failure is None:
            deaths.append(name)
            assert board.claim(0)
            raise RayError("The worker died\nsomehow")
        return function(parcel, groups, root, options, name)

    def remote(**options):
        assert options == {"max_retries": 0}
        return lambda function: SimpleNamespace(remote=lambda *args: _Reference((function, args)))

    return SimpleNamespace(
        is_initialized=lambda: True,
        put=lambda value: value,
        cluster_resources=lambda: {"CPU": float(nodes)},
        remote=remote,
        wait=lambda tasks, **_: (tasks[:1], tasks[1:]),
        get=lambda reference: get(reference.task),
        cancel=lambda *_, **__: None,
        exceptions=SimpleNamespace(RayError=RayError),
        deaths=deaths,
    )


class _Reference:
    def __init__(self, task):
        self.task = task


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_block_that_kills_its_ray_tasks_fails_its_cell_alone(toys, tmp_path, monkeypatch, nodes):
    ray = fake_ray(1, nodes)
    monkeypatch.setitem(sys.modules, "ray", ray)
    jobs = [toys.make_job(attack) for attack in (toys.Straight(), toys.Draws(), toys.Forgets())]
    (tmp_path / jobs[1].spec.digest).mkdir()
    seen = []
    outcomes = run_jobs(jobs, tmp_path, RunOptions(), seen.append, workers="ray")
    assert [outcome.failure for outcome in outcomes] == [
        None,
        "its Ray task ended: The worker died, 2 times",
        None,
    ]
    assert [p.state for p in seen if p.cell == 2] == ["failed"]
    assert len(ray.deaths) == 2


def test_an_unreachable_ray_cluster_is_one_line(toys, tmp_path, monkeypatch):
    def init(**_):
        raise ConnectionError("no node\nthere")

    monkeypatch.setitem(
        sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init)
    )
    with pytest.raises(UsageError, match="Ray cluster, got 'there:1'; ConnectionError: no node"):
        run_jobs([toys.make_job(toys.Draws())], tmp_path, RunOptions(), workers="ray:there:1")


SCRIPT = """
import sys, time
import torch
import robustbench_inv as rbi
from robustbench_inv.data.arrays import ArrayDataset

class Mine(torch.nn.Module):
    bounds, num_classes = (0.0, 1.0), 2
    def __init__(self, weight):
        super().__init__()
        self.weight = weight
    def forward(self, images):
        print("noise")
        beyond = self.weight * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-beyond, beyond], 1)

class Waits(Mine):
    def forward(self, images):
        if images.requires_grad:
            time.sleep(600)
        return super().forward(images)

images = torch.rand((20, 8), generator=torch.Generator().manual_seed(1))
data = ArrayDataset(images, (images.mean(1) > 0.5).long(), "halves")
for kind in (Mine, Waits):
    run = rbi.evaluate(model=[kind(1.0), kind(2.0)], attack="fgsm", threat="linf=0.01", dataset=data,
                       out=f"{sys.argv[1]}/{kind.__name__}", workers=2, checks=False)
    assert not run.failures, run.failures
    print(len(run.records()), flush=True)
"""


def start(folder):
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_classes_of_a_script_work_and_workers_end_with_their_parent(tmp_path, number):
    """What models print in workers is on standard error; the process that starts them only inspects the models."""
    parent = start(tmp_path)
    for _ in range(4000):
        if parent.poll() is not None or len(list(tmp_path.glob("Waits/*/cell.json"))) == 2:
            break
        time.sleep(0.05)
    workers = psutil.Process(parent.pid).children()
    assert len(workers) == 2, parent.kill()
    cell = next(tmp_path.glob("Waits/*/cell.json")).parent
    for _ in range(200):
        if BlockBoard(cell, "").claims():
            break
        time.sleep(0.05)
    with pytest.raises(BadResults, match="other processes compute blocks"):
        BlockBoard(cell, "").check_unclaimed()
    parent.send_signal(number)
    out, err = parent.communicate(timeout=60)
    assert "40" in out.splitlines(), err
    assert out.count("noise") < err.count("noise")
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    BlockBoard(cell, "").check_unclaimed()  # their claims count no longer


def test_a_lock_is_reported_before_anything_runs(toys, tmp_path):
    jobs = [toys.make_job(toys.Straight()), toys.make_job(toys.Draws())]
    locked = tmp_path / jobs[1].spec.digest
    with (
        CellWriter(locked, CellRequest({"identity": {}}, (), 1)),
        pytest.raises(BadResults, match=f"writing {locked}; wait for it"),
    ):
        run_jobs(jobs, tmp_path, RunOptions())
    assert not (tmp_path / jobs[0].spec.digest).exists()
    run_jobs(jobs[:1], tmp_path, RunOptions())
    with CellWriter(
        tmp_path / jobs[0].spec.digest, CellRequest(described(jobs[0], tmp_path), (), 1)
    ):
        check_locks(jobs[:1], tmp_path, RunOptions(existing="skip"))


def described(job, root):
    return {"identity": dict(CellFolder(root / job.spec.digest).info.identity)}


def test_a_lock_that_is_freed_in_a_moment_is_waited_for(toys, tmp_path):
    job = toys.make_job(toys.Straight())
    writer = CellWriter(tmp_path / job.spec.digest, CellRequest({"identity": {}}, (), 1))
    timer = threading.Timer(0.3, writer.close)
    timer.start()
    check_locks([job], tmp_path, RunOptions())
    timer.join()


def test_a_group_keeps_no_searches_of_a_single_cell(toys, tmp_path, monkeypatch):
    limits, real = [], worker_module.SearchCache
    monkeypatch.setattr(
        worker_module, "SearchCache", lambda limit: limits.append(limit) or real(limit)
    )
    run_jobs([toys.make_job(toys.Straight())], tmp_path, RunOptions())
    assert limits == [0]


def test_what_cannot_be_sent_is_reported(toys, tmp_path):
    class Held(toys.TwoSides):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    job = toys.make_job(toys.Straight(), module=Held())
    with pytest.raises(UsageError, match=r"another process: .*file\.py:factory"):
        run_jobs([job], tmp_path, RunOptions(), workers=2)
    assert not list(tmp_path.iterdir())


def test_finished_blocks_are_moved_while_others_are_computed(toys, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "MOVED_AT_ONCE", 2)
    job, waiting = toys.make_job(toys.Straight()), []

    def count(_progress):
        waiting.append(len(list(tmp_path.glob("*/blocks/*.block"))))

    (outcome,) = run_jobs([job], tmp_path, RunOptions(batch_size=1), count)
    assert outcome.failure is None
    assert 0 < max(waiting) <= len(job.samples) / 4
    assert len(CellFolder(tmp_path / job.spec.digest).records()) == len(job.samples)
