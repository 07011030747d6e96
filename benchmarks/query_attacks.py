"""Measures attacks that only ask questions against their nearest kin in Foolbox and torchattacks: time, questions, distance.

All are run through the same interface, so that questions are counted alike and a failed start ends no other sample; in
one process on one thread, times are of the processor.
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

SAMPLES, STEPS, QUESTIONS = 20, 1000, 1000

HOPS = 10
"""Steps of HopSkipJump, 50·√t probes in each and 200 at most: Foolbox takes a quarter of an hour for our preset's 25."""

OURS = f"hopskipjump:steps={HOPS},most=200"
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
        (f"square:queries={QUESTIONS}", f"torchattacks:Square:n_queries={QUESTIONS}"),
    ),
    (
        Unbounded("l0"),
        ("local-search", "torchattacks:Pixle", "torchattacks:OnePixel:pixels=15,steps=20"),
    ),
)
"""Boundary and HopSkipJump at equal steps, Square at equal questions; nobody else has LocalSearch: beside it stand
torchattacks' searches for few pixels by questions alone, OnePixel with as many pixels as LocalSearch changes.
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
    shown, questions = _asked(digits, attack, budget)
    seconds = time.process_time() - start
    told = nearness(digits, shown, budget.norm)
    within = f"{budget.norm} ≤ {budget.eps:g}" if isinstance(budget, LpBall) else budget.norm
    return f"| `{attack}` | {within} | {told} | {questions:,.0f} | {seconds:.2f} s |"


def _asked(digits: Digits, attack: str, budget: Budget) -> tuple[Tensor, float]:
    """Return what an attack shows, and how often it asked about a sample, on average."""
    searched = prepare(digits.classifier, digits.images[:8], fold=False)
    batch, rng = Batch(digits.images, digits.labels, digits.ids), SampleRNG(0, digits.ids)
    threat = ThreatModel(budget)
    meter = CountingModel(searched, batch, threat, rng)
    shown = rbi.load_attack(attack).attack.run(meter, batch, threat, rng)
    return shown, meter.forward_passes.double().mean().item()


_OPENING = f"""
## Attacks that only ask

On `mnist-cnn` and {SAMPLES} digits of `mnist5k` in one batch; one process, one thread, processor time of one run. Boundary
and HopSkipJump at equal steps, and HopSkipJump as the preset has it; Square at equal questions inside a budget. LocalSearch is in neither
library: the rows below it are the nearest that they have.

| attack | norm | median | mean | not broken | questions | time |
|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    print(query_section())
