"""Every bad argument is refused in one line, before anything is written."""

import importlib.util
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "bad_arguments", Path(__file__).parent / "bad_arguments.py"
)
bad_arguments = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = bad_arguments  # dataclasses look their module up while the file runs
spec.loader.exec_module(bad_arguments)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INVBENCH_CATALOGUE", "")
    monkeypatch.delenv("INVBENCH_TRACEBACK", raising=False)
    bad_arguments.prepare(tmp_path)
    return tmp_path


def test_there_are_hundreds():
    assert len(list(bad_arguments.command_lines())) >= 300
    assert len(list(bad_arguments.calls())) >= 100


def test_one_of_twelve_is_refused_in_one_line(prepared):
    assert list(bad_arguments.problems(prepared, every=12)) == []


@pytest.mark.slow
def test_each_is_refused_in_one_line(prepared):
    assert list(bad_arguments.problems(prepared)) == []


@pytest.mark.parametrize(
    ("outcome", "created", "found"),
    [
        (bad_arguments.Outcome(0, "", ""), [], "accepted"),
        (bad_arguments.Outcome(2, "", "error: a\n"), ["new"], "wrote"),
        (bad_arguments.Outcome(1, "", "error: unexpected X\n"), [], "unexpected"),
        (bad_arguments.Outcome(2, "x", "error: a\n"), [], "standard output"),
        (bad_arguments.Outcome(2, "", "error: a\nb\n"), [], "2 lines"),
        (bad_arguments.Outcome(1, "", "error: a\n"), [], "exit code 1"),
        (bad_arguments.Outcome(2, "", "error: \x1b[31m\n"), [], "control"),
        (bad_arguments.Outcome(2, "", "error: a\n"), [], ""),
    ],
)
def test_every_fault_of_a_refusal_is_found(outcome, created, found):
    assert found in bad_arguments.problem(outcome, created)
    assert bool(found) == bool(bad_arguments.problem(outcome, created))
