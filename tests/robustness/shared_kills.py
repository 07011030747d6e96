"""Kill and pause processes that share a run, past their leases: nothing is lost, doubled or changed.

Run as a program, it does so 30 times: ``python tests/robustness/shared_kills.py 30``. Followed by mounts of one network
file system, process k sees the run through the k-th of them, and takes the others for processes of other machines.
"""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

if __name__ == "__main__":
    os.environ["INVBENCH_LEASE"] = "0.5"
sys.path.insert(0, str(Path(__file__).parent))

import torch
from kills import COMPARED, Halves, RandomPoints, leftovers

from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.evaluation.engine import RunOptions, ignore_progress
from robustbench_inv.evaluation.jobs import EvaluationRequest
from robustbench_inv.evaluation.plan import make_plan
from robustbench_inv.evaluation.schedule import run_jobs
from robustbench_inv.evaluation.worker import work
from robustbench_inv.results import block_board
from robustbench_inv.results.block_board import LEASE_SECONDS, new_evaluation

SAMPLES, PROCESSES = 60, 3
OPTIONS = RunOptions(batch_size=3, keep_images=True)


@dataclass(frozen=True)
class SlowPoints(RandomPoints):
    """Random points of the ball, after a while."""

    seconds: float = 0.04
    kind: ClassVar = "fixed-budget"
    norms: ClassVar = frozenset({"linf"})

    def run(self, model, batch, threat, rng):
        time.sleep(self.seconds)
        return super().run(model, batch, threat, rng)


def jobs():
    """Return two cells of 20 blocks."""
    images = torch.rand((SAMPLES, 16), generator=torch.Generator().manual_seed(1))
    data = ArrayDataset(images, (images.mean(1) > 0.5).long(), "halves")
    request = EvaluationRequest(
        models=[Halves()],
        attacks=[SlowPoints(), SlowPoints(0.02)],
        threat="linf=0.05,0.2",
        dataset=data,
    )
    return make_plan(request).jobs


def start(cells, roots, number):
    """Start a process that shares the cells."""
    child = os.fork()
    if child:
        return child
    code, root = 1, roots[number % len(roots)]
    try:
        if len(roots) > 1:
            block_board.place = lambda: f"machine {number}"
        list(
            work(
                [[cell] for cell in cells],
                root,
                OPTIONS,
                ignore_progress,
                f"{new_evaluation()}/{number}",
            )
        )
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def disturb(cells, roots, draw):
    """Share a run among processes of which one is killed and one paused at random moments; return how often."""
    running = [start(cells, roots, number) for number in range(PROCESSES)]
    time.sleep(draw.uniform(0.0, 0.4))
    killed, paused = draw.sample(range(PROCESSES), 2)
    os.kill(running[paused], signal.SIGSTOP)
    os.kill(running[killed], signal.SIGKILL)
    os.waitpid(running[killed], 0)
    running[killed] = start(cells, roots, killed)
    time.sleep(LEASE_SECONDS * draw.uniform(0.5, 2.5))
    os.kill(running[paused], signal.SIGCONT)
    for child in running:
        status = os.waitpid(child, 0)[1]
        assert status == 0, f"a process ended with status {status}"
    return 2


def contents(root):
    """Return the files of all cells that must not depend on who computed what."""
    found = sorted(path for name in COMPARED for path in root.glob(f"*/{name}"))
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def main(times, *mounts):
    """Disturb runs until processes were killed or paused so often; return the number."""
    torch.set_num_threads(1)
    draw, done, cells = random.Random(0), 0, jobs()
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        assert not any(each.failure for each in run_jobs(cells, whole, OPTIONS))
        expected = contents(whole)
        assert len({Path(path).parent for path in expected}) == len(cells)
        assert len(expected) == 3 * len(cells), "records in one form, images and cell.json"
        while done < times:
            roots = [Path(folder) / str(done) for folder in mounts or (name,)]
            done += disturb(cells, roots, draw)
            for root in roots:
                assert contents(root) == expected, "lost, doubled or different"
                assert not leftovers(root), leftovers(root)
    return done


if __name__ == "__main__":
    print(main(int(sys.argv[1]), *sys.argv[2:]))
