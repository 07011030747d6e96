"""Help and listings answer at once, and import nothing heavy."""

import resource
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "pandas", "matplotlib", "scipy", "foolbox", "rich"}
CODE = """
import sys
from robustbench_inv.cli.main import main
try:
    main()
except SystemExit as leaving:
    heavy = {heavy} & set(sys.modules)
    sys.exit(f"imported {{heavy}}" if heavy else leaving.code)
"""


def command(*arguments):
    return [sys.executable, "-c", CODE.format(heavy=HEAVY), *arguments]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("evaluate", "--help"),
        ("reproduce",),
        *(
            ("list", kind, "--json")
            for kind in (
                "models",
                "attacks",
                "suites",
                "threats",
                "oracles",
                "datasets",
                "reproductions",
            )
        ),
    ],
    ids=" ".join,
)
def test_imports_nothing_heavy(arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("list", "models")], ids=" ".join)
def test_answers_within_three_tenths_of_a_second(arguments):
    # processor time, and several trials: it is what the wall clock shows on a machine that is not busy
    assert any(seconds_used(command(*arguments)) <= 0.3 for _ in range(10))


def seconds_used(words):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
