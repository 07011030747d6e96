"""Runs the command line in this process."""

import sys
from typing import NamedTuple

import pytest

from robustbench_inv.cli.main import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def invbench(monkeypatch, capsys, tmp_path):
    """Return a function that runs ``invbench`` with some arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INVBENCH_TRACEBACK", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["invbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        printed = capsys.readouterr()
        return Done(leaving.value.code or 0, printed.out, printed.err)

    return run
