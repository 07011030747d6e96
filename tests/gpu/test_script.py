"""The script for a GPU: each of its steps runs on the CPU with one batch, and a second call repeats none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STEPS = (
    "cifar10-sdim",
    "cifar10-resnet26",
    "mnist-firevnet-paper-ce",
    "mnist-firevnet-paper-ice",
    "cifar10-iresnet-c09",
    "cifar10-resnet10-at",
)


@pytest.mark.slow
def test_every_step_runs_on_the_cpu(tmp_path):
    if not (Path(os.environ.get("INVBENCH_DATA", "/nowhere")) / "cifar-10-batches-bin").exists():
        pytest.skip("INVBENCH_DATA has no CIFAR-10")
    command = [ROOT / "tools" / "gpu.sh", "cpu", tmp_path / "out", "--one-batch"]
    env = {**os.environ, "PYTHON": sys.executable, "GPU_WORK": str(tmp_path / "work")}
    for _ in range(2):
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done before") == len(STEPS) + 2
    found = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert len(found) <= 8
    assert {f"{name}.tar" for name in STEPS} <= found.keys()
    assert max(found.values()) <= 16 * 2**20, found
