"""Compares the time of two versions of this package: ``python benchmarks/versions.py CHECKOUT_OF_THE_OTHER_VERSION``.

The versions take turns, each round in a process of its own. The tasks are those of the section "Against the floor": the search on 250
digits, and the engine's run on 500, both on one thread, in processor time.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

__all__ = ["main"]

HERE = Path(__file__).resolve().parents[1]

CODE = """
import json, warnings
from functools import partial
warnings.simplefilter("ignore")
import robustbench_inv as rbi
from floor import BLOCK, DATA, EPS, MODELS, SAMPLES, digits
from robustbench_inv.cli.main import configure_process
from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.evaluation.search import Searcher
from peers import is_there
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel
from sweeps import evaluated
from timing import one_thread, seconds_of

configure_process()
found = {}
with one_thread():
    for model in (each for each in MODELS if is_there(each, DATA)):
        classifier = rbi.load_model(model).classifier
        batch = digits(classifier, BLOCK)
        searched = prepare(classifier, batch.images[:16], fold=True)
        search = Searcher(rbi.load_attack("pgd-tuned").attack, searched, None, 0)
        tasks = {
            "search": partial(search, batch, None, ThreatModel(LpBall("linf", EPS))),
            "engine": partial(evaluated, model, (EPS,), SAMPLES),
        }
        for name, task in tasks.items():
            task()
            found[f"{name} {model}"] = seconds_of(task)
print(json.dumps(found))
"""


def main() -> None:
    """Print the median seconds of each task for both versions, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="checkout of the other version")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    versions = {"this": HERE, "other": arguments.other.resolve()}
    rounds = [
        {name: _measured(path) for name, path in versions.items()} for _ in range(arguments.rounds)
    ]
    print(f"Medians of {len(rounds)} rounds, processor time in seconds.\n")
    print("| task | other | this | this / other |\n|---|---:|---:|---:|")
    for task in rounds[0]["this"]:
        this, other = (median(each[name][task] for each in rounds) for name in versions)
        print(f"| {task} | {other:.3f} | {this:.3f} | {this / other:.3f} |")


def _measured(checkout: Path) -> dict[str, float]:
    """Return the seconds of each task in a new process that runs the package of a checkout."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=checkout / "benchmarks",
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
