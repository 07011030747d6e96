"""Measures the start-up of the command line: processor time of ``invbench list`` against importing typer and rich."""

import resource
import subprocess
import sys

__all__ = ["start_up_section"]

RUNS = 15
RUN = "import sys; sys.argv[1:] = {!r}\nfrom robustbench_inv.cli.main import main\nmain()"
TASKS = {
    "import typer, rich": "import typer, rich",
    "invbench --help": RUN.format(["--help"]),
    "invbench list models": RUN.format(["list", "models"]),
}


def start_up_section() -> str:
    """Return the section: the smallest processor time of some runs, and its ratio to that of the imports."""
    best = dict.fromkeys(TASKS, float("inf"))
    for _ in range(RUNS):  # in turn, so that a busy moment slows all of them
        for name, code in TASKS.items():
            best[name] = min(best[name], _seconds_used(code))
    base = best["import typer, rich"]
    rows = [f"| `{name}` | {1000 * s:.0f} | {s / base:.1f} |" for name, s in best.items()]
    return "\n".join(
        [
            "## Start-up",
            "",
            f"Processor time, the smallest of {RUNS} runs. `invbench list` stays below 2.5 times the imports.",
            "",
            "| command | ms | ratio |",
            "|---|---:|---:|",
            *rows,
            "",
        ]
    )


def _seconds_used(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
