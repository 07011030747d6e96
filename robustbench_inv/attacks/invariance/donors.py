"""Donors: for each sample another input of the pool, whose nuisances or appearance an invariance attack uses."""

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, InputPool, Queries
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import flatten

__all__ = ["RULES", "assign_donors", "check_rule", "choose_donors", "required_pool"]

RULES = ("other-class", "random", "nearest", "farthest")
"""``other-class``: a random sample of another class. ``random``: a random other sample. ``nearest`` and ``farthest``: the
sample of another class that is closest or farthest in l2."""


def check_rule(rule: str) -> None:
    """Raise BadParameter for an unknown rule."""
    if rule not in RULES:
        known = "one of " + ", ".join(RULES)
        raise BadParameter("unknown rule for donors", got=rule, expected=known)


def choose_donors(
    batch: Batch, rule: str, rng: SampleRNG, number: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the position of each sample's donor in the pool (n,), and (n,) whether there is one.

    A sample is never its own donor, and its draw depends on no other sample.

    Args:
        batch: n samples with their pool.
        rule: one of ``RULES``.
        rng: the samples' random numbers.
        number: of the donor, from 0: other draws, or the next distances, the last one again if there are no more.
    """
    pool = required_pool(batch)
    allowed = pool.ids != batch.ids[:, None]
    if rule != "random":
        allowed &= pool.labels != batch.labels[:, None]
    if rule in ("nearest", "farthest"):
        return _donors_by_distance(batch, pool, allowed, rule, number), allowed.any(1)
    own = rng if number == 0 else rng.named(f"{rng.stream}/{number}")
    return _random_donors(allowed, own), allowed.any(1)


def assign_donors(model: Queries, batch: Batch, rule: str, rng: SampleRNG) -> tuple[Tensor, Tensor]:
    """Return each sample's donor (n, …), and (n,) whether there is one.

    It logs the donors' ids and labels, and reports samples without a donor.

    Args:
        model: receives the logged values.
        batch: n samples with their pool.
        rule: one of ``RULES``.
        rng: the samples' random numbers.
    """
    pool = required_pool(batch)
    donors, found = choose_donors(batch, rule, rng)
    model.report_failure((~found).nonzero()[:, 0], "no_start")
    model.log("donor", pool.ids[donors].where(found, -1))
    model.log("donor_label", pool.labels[donors].where(found, -1))
    return pool.images[donors], found


def required_pool(batch: Batch) -> InputPool:
    """Return a batch's pool.

    Raises:
        CapabilityMismatch: if the batch has no pool.
    """
    if batch.pool is None:
        raise CapabilityMismatch("the attack needs other inputs", expected="a batch with a pool")
    return batch.pool


def _donors_by_distance(
    batch: Batch, pool: InputPool, allowed: Tensor, rule: str, number: int
) -> Tensor:
    far = torch.cdist(flatten(batch.images), flatten(pool.images))
    far = -far if rule == "nearest" else far
    order = far.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)
    last = (allowed.sum(1) - 1).clamp(0, number)
    return order.gather(1, last[:, None])[:, 0]


def _random_donors(allowed: Tensor, rng: SampleRNG) -> Tensor:
    """Return the position of a true element of each row, drawn uniformly."""
    uniform = rng.named(f"{rng.stream}/donor").uniform((), dtype=torch.float64)
    number = (uniform * allowed.sum(1)).long()
    return (allowed.cumsum(1) == number[:, None] + 1).int().argmax(1)
