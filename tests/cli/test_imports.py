"""What help texts and listings import: this package's light modules, typer, and the standard library alone.

Start-up takes as long as these imports; ``make bench`` measures the time.
"""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import contextlib, io, json, sys
import typer
before = set(sys.modules)
from robustbench_inv.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["invbench", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as leaving:
            assert not leaving.code and out.getvalue(), arguments
print(json.dumps(sorted(set(sys.modules) - before)))
"""

COMMANDS = {
    *(
        "benchmark",
        "audit",
        "analyse",
        "calibrate",
        "certify",
        "check",
        "compare",
        "doctor",
        "new",
        "data",
        "entries",
        "envelope",
        "evaluate",
        "export",
        "label",
        "leaderboard",
        "main",
        "options",
        "output",
        "queue",
    ),
    *("report", "reproduce", "rescore", "train", "work"),
}
HELP = {
    "robustbench_inv",
    "robustbench_inv.cli",
    "robustbench_inv.arguments",
    "robustbench_inv.errors",
    "robustbench_inv.foreign",
    "robustbench_inv.progress",
    *(f"robustbench_inv.cli.{n}" for n in COMMANDS),
}
LISTING = {
    "robustbench_inv.catalogue",
    *(f"robustbench_inv.catalogue.{n}" for n in ("cards", "fields", "listing", "locate", "trust")),
    "robustbench_inv.catalogue.references",
    "robustbench_inv.identity",
    "robustbench_inv.results",
    "robustbench_inv.results.rate",
}
KINDS = ("models", "attacks", "suites", "threats", "oracles", "datasets", "reproductions")


def imported_by(*commands):
    """Return the modules outside the standard library that commands import besides typer.

    Without INVBENCH_DATA: typer imports pydantic to convert the value of an option.
    """
    child = [sys.executable, "-c", CODE, json.dumps(commands)]
    variables = {name: value for name, value in os.environ.items() if name != "INVBENCH_DATA"}
    done = subprocess.run(child, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout)
    outside = {m for m in modules if m.partition(".")[0] not in sys.stdlib_module_names}
    return {
        m for m in outside if not m.startswith("_sysconfigdata")
    }  # generated, part of the library


@pytest.mark.parametrize(
    ("command", "allowed"),
    [(("--help",), HELP), (("list", "models"), HELP | LISTING)],
    ids=["help", "list"],
)
def test_help_and_listings_import_a_known_set(command, allowed):
    found = {m for m in imported_by(command) if not m.startswith("typer.")}
    assert found <= allowed, sorted(found - allowed)


def test_no_help_and_no_listing_imports_a_heavy_package():
    listings = [["list", kind, "--json"] for kind in KINDS]
    helps = [[command, "--help"] for command in ("evaluate", "reproduce", "train", "label")]
    found = imported_by(["--version"], ["reproduce"], *helps, *listings)
    packages = {module.partition(".")[0] for module in found}
    assert packages <= {"robustbench_inv", "typer"}
