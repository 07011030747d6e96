"""The script for a GPU: its trainings run on the CPU with one batch, a second call repeats none, and all are archived."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WANTED = (
    "cifar10-iresnet-paper-c09",
    "cifar10-resnet10-at",
    "cifar10-resnet26",
    "cifar10-sdim",
    "mnist-c-js-200-seed1",
    "mnist-firevnet-paper-ce",
    "mnist-firevnet-paper-ice",
    "mnist-sdim-100",
)


@pytest.mark.slow
def test_all_trainings_run_on_the_cpu(tmp_path):
    if not (Path(os.environ.get("INVBENCH_DATA", "/nowhere")) / "cifar-10-batches-bin").exists():
        pytest.skip("INVBENCH_DATA has no CIFAR-10")
    out, work = tmp_path / "out", tmp_path / "work"
    lanes = {"GPU_LANES": "2", "GPU_SECONDS": "6000"}
    env = {**os.environ, **lanes, "PYTHON": sys.executable, "GPU_WORK": str(work)}

    def call(*words):
        command = [ROOT / "tools" / "gpu.sh", *map(str, words)]
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    call("train", "cpu", out, "--one-batch")
    metrics = {path: path.stat().st_mtime for path in work.glob("networks/*/metrics.jsonl")}
    call("train", "cpu", out, "--one-batch")
    assert metrics == {path: path.stat().st_mtime for path in metrics}
    assert not list(work.glob("networks/*/failure.txt"))
    archived = []
    while True:
        call("collect", out)
        found = sorted(out.glob("networks-*.tar"))
        if not found:
            break
        assert len(found) <= 7
        for path in found:
            assert path.stat().st_size <= 16 * 2**20
            with tarfile.open(path) as file:
                archived += [name for name in file.getnames() if name.endswith("card.toml")]
            path.unlink()
    names = {Path(name).parent.name for name in archived}
    assert set(WANTED) <= names
    assert len(archived) == len(names) == len(metrics)
