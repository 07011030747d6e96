"""Damaged results are refused or show the same numbers, and a repair brings them back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("corruptions.py")


@pytest.mark.parametrize(
    ("count", "first", "compact"),
    [
        (6, 0, ""),
        pytest.param(500, 100, "", marks=pytest.mark.slow),
        pytest.param(500, 100, "6", marks=pytest.mark.slow),
    ],
)
def test_no_corruption_changes_a_number(count, first, compact):
    command = [sys.executable, str(PROGRAM), str(count), str(first)]
    env = {**os.environ, "INVBENCH_COMPACT": compact}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
