"""Compares the cost of a sweep of ten eps with that of the same eps one by one, both run by the engine."""

from functools import partial
from tempfile import TemporaryDirectory

from peers import is_there
from timing import medians, one_thread

import robustbench_inv as rbi
from robustbench_inv.results.summary import CellSummary

__all__ = ["evaluated", "sweep_section"]

SAMPLES, DATA = 100, "mnist5k"

GRIDS = (
    ("mnist-cnn", 0.01),
    ("mnist-cnn", 0.03),
    ("mnist-cnn-at", 0.03),
    ("mnist-c-dv", 0.01),
    ("mnist-c-js:sigmoid=true", 0.01),
)
"""Models and the smallest of ten eps, all multiples of it; a model that is not installed is left out."""


def sweep_section() -> str:
    """Return the benchmark's text for the page."""
    with one_thread():
        rows = [_row(model, least) for model, least in GRIDS if is_there(model, DATA)]
    return "\n".join([_OPENING, *rows, ""])


def evaluated(model: str, budgets: tuple[float, ...], samples: int = SAMPLES) -> CellSummary:
    """Return the result of PGD within linf budgets."""
    threat = "linf=" + ",".join(f"{eps:g}" for eps in budgets)
    with TemporaryDirectory() as folder:
        run = rbi.evaluate(
            model=model,
            attack="pgd-tuned",
            threat=threat,
            dataset=DATA,
            samples=samples,
            out=folder,
            checks=False,
        )
        return run.summary()[0]


def _row(model: str, least: float) -> str:
    grid = tuple(round(least * k, 6) for k in range(1, 11))
    tasks = {each: partial(evaluated, model, each) for each in (grid, *((eps,) for eps in grid))}
    found = {each: task() for each, task in tasks.items()}
    seconds = medians({str(each): task for each, task in tasks.items()})
    swept, *alone = (seconds[str(each)] for each in tasks)
    passes, *passes_alone = (found[each].backward_passes for each in tasks)
    robust = [rate.successes for rate in found[grid].robust_accuracy]
    more = [
        n - found[(eps,)].robust_accuracy[0].successes for n, eps in zip(robust, grid, strict=True)
    ]
    against = (alone[-1], max(alone), sum(alone))
    ratios = " | ".join(f"{swept / other:.2f}" for other in against)
    return (
        f"| {model} | {grid[0]:g} … {grid[-1]:g} | {swept:.2f} s | {ratios} | {passes:.0f} | "
        f"{passes_alone[-1]:.0f} | {sum(passes_alone):.0f} | {min(more):+d} … {max(more):+d} |"
    )


_OPENING = f"""
## A sweep of ten eps

PGD, linf, 40 steps, {SAMPLES} digits of `{DATA}`, all of `rbi.evaluate`; one process, one thread, in turn, medians of
processor time. Passes are gradients per sample. A sweep descends from its largest eps ([decision 16](decisions/0016-speed.md)). The last column is
the number of additional robust samples of the sweep at each of the ten eps, compared with that eps alone (least and most).

| model | eps | sweep | / its largest eps | / its most expensive eps | / its ten eps alone | passes | largest alone | ten alone | additional robust |
|---|---|---|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    print(sweep_section())
