"""Chooses members of ``standard`` and their order greedily, in the manner of AutoAE.

Each candidate runs alone on all samples of each network. The next member is the candidate that breaks most further samples
per second, summed over all networks, until no candidate breaks another one. Its seconds are those of the samples that the
members before it did not break.

References:
    Liu, Peng and Tang, Reliable robustness evaluation via automatically constructed attack ensembles, AAAI 2023,
    algorithm 1 (AutoAE).
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peers import is_there
from standard import Problem, ours, select_problem
from timing import one_thread

from robustbench_inv.attacks.apgd import APGD
from robustbench_inv.attacks.ensemble import standard
from robustbench_inv.attacks.minimum_norm import MinimumNorm
from robustbench_inv.attacks.protocol import Attack
from robustbench_inv.attacks.square import SquareAttack
from robustbench_inv.threat.budgets import LpBall

__all__ = ["Choice", "Outcomes", "choose_members"]

NETWORKS = (
    ("mnist-cnn", "linf", 0.1),
    ("mnist-cnn", "l2", 1.0),
    ("mnist-cnn-at", "l2", 2.0),
    ("mnist-lenet5", "linf", 0.1),
)
"""Networks of the zoo, norm and eps with samples that some candidates break and others do not."""

MEMBERS = standard().members
CANDIDATES: dict[str, Attack] = {
    "APGD, scaled cross-entropy": MEMBERS[0],
    "minimum-norm search": MEMBERS[1],
    "APGD toward 5 classes": MEMBERS[2],
    "APGD from larger balls": MEMBERS[3],
    "Square with APGD": MEMBERS[4],
    "APGD, cross-entropy": APGD(loss="ce"),
    "APGD, DLR": APGD(loss="dlr"),
    "APGD, margin, 25 steps": APGD(steps=25, loss="margin"),
    "APGD, probability margin": APGD(loss="probability-margin"),
    "APGD toward 9 classes, DLR": APGD(loss="dlr", target_classes=9),
    "minimum-norm search, margin": MinimumNorm(30, "margin", bisections=0, refinements=0),
    "Square, 1,000 queries": SquareAttack(1000),
}
"""The members of ``standard``, and what could replace them."""


@dataclass(frozen=True)
class Outcomes:
    """What candidates do to the samples of one network.

    Args:
        samples: number of samples.
        broken: the samples that each candidate breaks.
        seconds: of each candidate, for all samples.
    """

    samples: int
    broken: Mapping[str, frozenset[int]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """A member: its name, the further samples that it breaks, and its seconds on those that no earlier member broke."""

    name: str
    broken: int
    seconds: float


def choose_members(tables: Sequence[Outcomes], first: Sequence[str] = ()) -> list[Choice]:
    """Return the members in their order.

    Args:
        tables: of the networks, all with the same candidates.
        first: members that are given; the rest are chosen after them.
    """
    left = [set(range(table.samples)) for table in tables]
    rest, chosen = dict.fromkeys(tables[0].broken), list[Choice]()
    for number in range(len(rest)):
        options = [_choice(name, tables, left) for name in rest]
        best = max(options, key=lambda each: each.broken / max(each.seconds, 1e-9))
        if number < len(first):
            best = next(each for each in options if each.name == first[number])
        elif not best.broken:
            break
        chosen.append(best)
        del rest[best.name]
        for table, samples in zip(tables, left, strict=True):
            samples -= table.broken[best.name]
    return chosen


def _choice(name: str, tables: Sequence[Outcomes], left: Sequence[set[int]]) -> Choice:
    pairs = list(zip(tables, left, strict=True))
    broken = sum(len(samples & table.broken[name]) for table, samples in pairs)
    return Choice(name, broken, sum(t.seconds[name] * len(s) / t.samples for t, s in pairs))


def measure(problem: Problem) -> Outcomes:
    """Run all candidates alone, each on all samples."""
    n, broken, seconds = len(problem.batch), {}, {}
    ids = problem.batch.ids.tolist()
    for name, attack in CANDIDATES.items():
        began = time.process_time()
        robust = problem.robust(ours(problem, attack))
        seconds[name] = time.process_time() - began
        broken[name] = frozenset(row for row, sample in enumerate(ids) if sample not in robust)
    return Outcomes(n, broken, seconds)


def main() -> None:
    """Measure the candidates, and print the chosen members beside the present ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=40)
    samples = parser.parse_args().samples
    with one_thread():
        cases = [each for each in NETWORKS if is_there(each[0], "mnist5k")]
        tables = [measure(select_problem(samples, n, "mnist5k", LpBall(*b))) for n, *b in cases]
    present = list(CANDIDATES)[: len(MEMBERS)]
    for title, first in (("chosen", ()), ("present", present)):
        print(f"\n| {title} | broken | seconds |\n|---|---|---|")
        for each in choose_members(tables, first):
            print(f"| {each.name} | {each.broken} | {each.seconds:.2f} |")
    print(f"\nof {sum(table.samples for table in tables)} samples; each alone:\n")
    for name in CANDIDATES:
        total = sum(len(table.broken[name]) for table in tables)
        print(f"| {name} | {total} | {sum(table.seconds[name] for table in tables):.2f} |")


if __name__ == "__main__":
    main()
