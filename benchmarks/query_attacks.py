"""Measures score-based and decision-based attacks against those of Foolbox and torchattacks: time, queries, distance.

All run through the same interface, so that queries are counted in the same way and a failed start affects one sample only.
One process, one thread; times are processor time.
"""

import time

import torch
from minimum_norm import Digits, draw_digits, nearness
from torch import Tensor

import robustbench_inv as rbi
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import Budget, LpBall, Unbounded
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["query_section"]

SAMPLES, STEPS, QUERIES = 20, 1000, 1000

HOPS = 10
"""Steps of HopSkipJump, 50·√t probes in each and 200 at most: Foolbox takes a quarter of an hour for our preset's 25."""

OURS = f"hopskipjump:steps={HOPS},max_queries=200"
FOOLBOX = (
    f"foolbox:HopSkipJumpAttack:steps={HOPS},"
    "initial_gradient_eval_steps=50,max_gradient_eval_steps=200"
)

CONTESTS: tuple[tuple[Budget, tuple[str, ...]], ...] = (
    (Unbounded("l2"), (f"boundary:steps={STEPS}", f"foolbox:BoundaryAttack:steps={STEPS}")),
    (Unbounded("l2"), (OURS, FOOLBOX, "hopskipjump")),
    (Unbounded("linf"), (OURS, FOOLBOX, "hopskipjump")),
    (
        LpBall("linf", 0.1),
        (f"square:queries={QUERIES}", f"torchattacks:Square:n_queries={QUERIES}"),
    ),
    (
        Unbounded("l0"),
        (
            "local-search",
            "local-search-log-odds",
            "torchattacks:Pixle",
            "torchattacks:OnePixel:pixels=15,steps=20",
        ),
    ),
)
"""Boundary and HopSkipJump with equal steps, Square with equal queries. Neither library has LocalSearch: it is compared with
torchattacks' score-based attacks on few pixels, OnePixel with as many pixels as LocalSearch changes.
Foolbox's PointwiseAttack takes minutes, and it has no Square."""


def query_section() -> str:
    """Return the benchmark's text for the page."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    digits = draw_digits(SAMPLES)
    rows = [_row(digits, attack, budget) for budget, names in CONTESTS for attack in names]
    torch.set_num_threads(before)
    return "\n".join([_OPENING, *rows, ""])


def _row(digits: Digits, attack: str, budget: Budget) -> str:
    start = time.process_time()
    proposals, queries = _attack(digits, attack, budget)
    seconds = time.process_time() - start
    distances = nearness(digits, proposals, budget.norm)
    within = f"{budget.norm} ≤ {budget.eps:g}" if isinstance(budget, LpBall) else budget.norm
    return f"| `{attack}` | {within} | {distances} | {queries:,.0f} | {seconds:.2f} s |"


def _attack(digits: Digits, attack: str, budget: Budget) -> tuple[Tensor, float]:
    """Return the proposals of an attack, and its mean number of queries per sample."""
    searched = prepare(digits.classifier, digits.images[:8], fold=False)
    batch, rng = Batch(digits.images, digits.labels, digits.ids), SampleRNG(0, digits.ids)
    threat = ThreatModel(budget)
    counting = CountingModel(searched, batch, threat, rng)
    proposals = rbi.load_attack(attack).attack.run(counting, batch, threat, rng)
    return proposals, counting.forward_passes.double().mean().item()


_OPENING = f"""
## Score-based and decision-based attacks

On `mnist-cnn` and {SAMPLES} digits of `mnist5k` in one batch; one process, one thread, processor time of one run. Boundary and HopSkipJump run
with equal steps, HopSkipJump also as in its preset; Square runs with equal queries inside a budget. Neither library has LocalSearch: the rows
below it are their closest attacks.

| attack | norm | median | mean | not broken | queries | time |
|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    print(query_section())
