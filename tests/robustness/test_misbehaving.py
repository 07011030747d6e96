"""Models and attacks that misbehave: each has the outcome that it names, and leaves process and other cells unchanged."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
PROGRAM = FOLDER / "misbehaviour.py"
AT_ONCE = 20
"""Names for one process."""


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


KINDS = {
    "misbehaving_models": load("misbehaving_models").MODELS,
    "misbehaving_attacks": load("misbehaving_attacks").ATTACKS,
}
FEW = {
    "misbehaving_models": ("ExitsHardLate", "SetsDefaultDtype", "ClosesStreams", "ReusesOutput"),
    "misbehaving_attacks": ("Exits", "ChangesState"),
}
"""Names for the normal suite, each of another kind; the hangs take seconds."""


def check(file, names, tmp_path):
    kinds, out = KINDS[file], tmp_path / "out.jsonl"
    command = [sys.executable, PROGRAM, out, f"{file}.py", *names]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line["name"] for line in found] == list(names)
    wrong = [line for line in found if line["outcome"] != kinds[line["name"]].outcome]
    assert wrong == []
    assert [line for line in found if line["changed"] or not line["honest"]] == []
    assert [line for line in found if "\n" in line["message"] or "\033" in line["message"]] == []
    assert [line for line in found if len(line["message"]) > 1000] == []


@pytest.mark.parametrize("file", KINDS)
def test_few(file, tmp_path):
    check(file, FEW[file], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "first"),
    [(file, first) for file, kinds in KINDS.items() for first in range(0, len(kinds), AT_ONCE)],
)
def test_all(file, first, tmp_path):
    check(file, [*KINDS[file]][first : first + AT_ONCE], tmp_path)


def test_there_are_enough():
    assert len(KINDS["misbehaving_models"]) >= 90
    assert len(KINDS["misbehaving_attacks"]) >= 35
