"""Measures PGD against the floor, passes times the cost of a pass, and the memory that an evaluation takes.

The floor counts the necessary passes: those of the search on the prepared copy, and three on the model itself for the clean
prediction, the verdict and its replay. The rest is overhead: random numbers, steps, projections, bookkeeping, files.
"""

import resource
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
from peers import is_there
from sweeps import evaluated
from timing import Task, one_thread, seconds_of
from torch.nn.functional import cross_entropy

import robustbench_inv as rbi
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.cli.main import configure_process
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.evaluation.search import Searcher
from robustbench_inv.models.protocol import Classifier, classify, query_model
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import per_sample_gradient
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["both_ways", "digits", "floor_section", "forward", "most_memory"]

BLOCK, SAMPLES, DATA, EPS = 250, 500, "mnist5k", 0.02
PASSES, ROUNDS = 10, 9
MODELS = ("mnist-cnn", "mnist-cnn-at", "mnist-c-dv")
HEAPS = (1000, 4000)
"""Samples of the evaluations whose memory is compared."""


def floor_section() -> str:
    """Return the benchmark's text for the page."""
    configure_process()
    with one_thread():
        rows = [_row(model) for model in MODELS if is_there(model, DATA)]
    return "\n".join([_OPENING, *rows, "", _memory(), ""])


def digits(classifier: Classifier, count: int) -> Batch:
    """Return the correctly classified of ``count`` digits."""
    data = rbi.load_dataset(DATA)
    ids = torch.tensor(select_samples(data.labels, count))
    images, labels = data.batch(ids)
    right = classify(classifier, images, SampleRNG(0, ids)).decision == labels
    return Batch(images, labels, ids)[right]


def both_ways(classifier: Classifier, batch: Batch) -> torch.Tensor:
    """Make one forward and one backward pass, and return the gradients."""
    images = batch.images.detach().requires_grad_()
    return per_sample_gradient(-cross_entropy(classifier(images).logits, batch.labels), images)


def forward(classifier: Classifier, batch: Batch) -> None:
    """Make one forward pass."""
    with torch.no_grad():
        query_model(classifier, batch.images, SampleRNG(0, batch.ids))


def _row(model: str) -> str:
    classifier = rbi.load_model(model).classifier
    batch = digits(classifier, BLOCK)
    searched = prepare(classifier, batch.images[:16], fold=True)
    search = Searcher(rbi.load_attack("pgd-tuned").attack, searched, None, 0)
    stage = ThreatModel(LpBall("linf", EPS))
    found = search(batch, None, stage)
    backward = found.backward_passes.double().mean().item()
    ahead = found.forward_passes.double().mean().item() - backward
    passes: dict[str, Task] = {
        "both": partial(both_ways, searched, batch),
        "ahead": partial(forward, searched, batch),
        "verdict": partial(forward, classifier, batch),
    }
    rounds = []
    for _ in range(ROUNDS):
        costs, (searching, running) = _round(
            passes,
            partial(search, batch, None, stage),
            partial(evaluated, model, (EPS,), SAMPLES),
        )
        floor = backward * costs["both"] + ahead * costs["ahead"]
        least = SAMPLES / BLOCK * (floor + 3 * costs["verdict"])
        rounds.append(
            (costs["both"], floor, searching, searching / floor, least, running, running / least)
        )
    pass_, floor, searching, over, least, running, engine_over = map(
        median, zip(*rounds, strict=True)
    )
    return (
        f"| {model} | {backward:.1f} | {1e3 * pass_:.1f} ms | {floor:.2f} s | {searching:.2f} s | "
        f"{100 * (over - 1):+.1f} % | {least:.2f} s | {running:.2f} s | {100 * (engine_over - 1):+.1f} % |"
    )


def _round(passes: Mapping[str, Task], *wholes: Task) -> tuple[dict[str, float], list[float]]:
    """Return the mean cost of each pass, measured before, between and after the tasks, and the time of the tasks, in seconds."""
    costs, seconds = [], []
    for whole in (*wholes, None):
        costs.append({name: seconds_of(task, PASSES) for name, task in passes.items()})
        if whole is not None:
            seconds.append(seconds_of(whole))
    return {name: mean(cost[name] for cost in costs) for name in passes}, seconds


def _memory() -> str:
    """Return a sentence on the memory of evaluations of different length, each in a process of its own."""
    first, second = (_peak(samples) for samples in HEAPS)
    return (
        f"Memory is bounded by the block: the peak is {first:.0f} MiB for an evaluation of {HEAPS[0]:,} samples and "
        f"{second:.0f} MiB for {HEAPS[1]:,}, torch and the data set of 5,000 included."
    )


def _peak(samples: int) -> float:
    """Return the peak memory in MiB of a process that evaluates so many samples."""
    code = (
        "from floor import most_memory; from sweeps import evaluated;"
        f"evaluated('mnist-cnn', (0.3,), {samples}); print(most_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def most_memory() -> float:
    """Return the peak memory of this process in MiB; on Linux without that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].removesuffix("kB")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


_OPENING = f"""
## Against the floor

PGD-40 at linf {EPS:g} on `{DATA}`, one thread, medians of processor time over {ROUNDS} rounds. Each round measures the cost of a pass before,
between and after the search and the engine's run. Freed memory stays with the process, as on the command line.

- Floor of the search: its passes on {BLOCK} digits in one batch, times the cost of such a pass on the prepared copy.
- Floor of the engine: the same for each of the two blocks of {SAMPLES} digits, plus three passes of the model itself for clean predictions,
  judging and replay. The engine's time is all of `rbi.evaluate`, reading and writing included.

| model | passes | forward and backward pass | floor of the search | search | overhead | floor of the engine | engine | overhead |
|---|---|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    print(floor_section())
