"""After a kill -9 at any moment and a resume, the records equal those of an uninterrupted run to the byte."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("kills.py")


@pytest.mark.parametrize("compact", ["", pytest.param("6", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_no_kill_loses_a_record(kills, compact):
    command, env = (
        [sys.executable, str(PROGRAM), str(kills)],
        {**os.environ, "INVBENCH_COMPACT": compact},
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= kills


@pytest.mark.parametrize("times", [pytest.param(30, marks=pytest.mark.slow)])
def test_neither_kills_nor_pauses_change_a_shared_run(times):
    command = [sys.executable, str(PROGRAM.with_name("shared_kills.py")), str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= times
