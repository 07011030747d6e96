"""After a kill -9 at any moment and a resume, the records equal those of an uninterrupted run to the byte."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("kills.py")


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_no_kill_loses_a_record(kills):
    command = [sys.executable, str(PROGRAM), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= kills


@pytest.mark.parametrize("times", [pytest.param(30, marks=pytest.mark.slow)])
def test_neither_kills_nor_pauses_change_a_shared_run(times):
    command = [sys.executable, str(PROGRAM.with_name("shared_kills.py")), str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= times
