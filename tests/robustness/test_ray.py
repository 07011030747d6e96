"""A real Ray cluster of two nodes, one of which is killed midway: the records are those of a single process.

Skipped where Ray is not installed; ``.ci/run`` installs it and runs this file.
"""

import json
import subprocess
import sys
import time

import pytest

from robustbench_inv.results.block_board import BlockBoard
from robustbench_inv.results.run_files import RunFolder

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

MODEL = """
import time
import torch

class Halves(torch.nn.Module):
    bounds, num_classes = (0.0, 1.0), 2

    def forward(self, images):
        print("noise")
        time.sleep(0.05 if images.requires_grad else 0.0)
        beyond = images.flatten(1).mean(1) - 0.5
        return torch.stack([-beyond, beyond], 1)

def make():
    return Halves()

def data():
    images = torch.rand((60, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    return images, (images.flatten(1).mean(1) > 0.5).long()
"""


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second = found.add_node(num_cpus=1)
    found.wait_for_nodes()
    yield found, second
    ray.shutdown()
    found.shutdown()


def records(folder):
    return {
        cell.digest: (cell.path / "records.jsonl").read_bytes()
        for cell in RunFolder(folder).cells()
    }


def test_a_killed_node_changes_no_record(cluster, tmp_path):
    found, second = cluster
    (tmp_path / "mine.py").write_text(MODEL)

    def start(folder, workers):
        command = [sys.executable, "-m", "robustbench_inv", "evaluate", "--no-checks", "--json"]
        command += [
            "--model",
            f"{tmp_path / 'mine.py'}:make",
            "--dataset",
            f"{tmp_path / 'mine.py'}:data",
        ]
        command += [
            "--attack",
            "pgd:steps=8",
            "fgsm",
            "--threat",
            "linf=0.01,0.05",
            "--batch-size",
            "3",
        ]
        command += ["--out", str(folder), "--workers", workers]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    start(alone, "1").communicate()
    running = start(shared, f"ray:{found.address}")
    while running.poll() is None and len(list(shared.glob("*/blocks/*.block"))) < 3:
        time.sleep(0.1)
    workers = {
        claim.worker
        for path in shared.glob("*")
        for claim in BlockBoard(path, "").claims().values()
    }
    found.remove_node(second, allow_graceful=False)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert len(workers) == 2  # both nodes had blocks when one was killed
    assert [cell["samples"] for cell in json.loads(out)] == [60, 60]  # whatever the model prints
    assert records(shared) == records(alone)
    assert len(records(shared)) == 2
    assert not list(shared.glob("*/blocks"))
