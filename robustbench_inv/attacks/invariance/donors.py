"""Chooses for each sample another one of the pool: a donor of nuisances, or of another class's looks."""

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, InputPool, Queries
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import flatten

__all__ = ["RULES", "assign_donors", "check_rule", "choose_donors", "required_pool"]

RULES = ("other-class", "random", "nearest")
"""``other-class``: any sample of another class. ``random``: any other sample. ``nearest``: of another class, in
pixels."""


def check_rule(rule: str) -> None:
    """Raise BadParameter for a rule that there is none of."""
    if rule not in RULES:
        known = "one of " + ", ".join(RULES)
        raise BadParameter("unknown rule for donors", got=rule, expected=known)


def choose_donors(batch: Batch, rule: str, rng: SampleRNG) -> tuple[Tensor, Tensor]:
    """Return for each sample the position (n,) of its donor in the pool, and (n,): is there one?

    A sample is never its own donor, and its draw depends on no other sample.

    Args:
        batch: n samples with their pool.
        rule: one of ``RULES``.
        rng: the samples' random numbers.
    """
    pool = required_pool(batch)
    allowed = pool.ids != batch.ids[:, None]
    if rule != "random":
        allowed &= pool.labels != batch.labels[:, None]
    donors = (
        _nearest_donors(batch, pool, allowed) if rule == "nearest" else _random_donors(allowed, rng)
    )
    return donors, allowed.any(1)


def assign_donors(model: Queries, batch: Batch, rule: str, rng: SampleRNG) -> tuple[Tensor, Tensor]:
    """Return each sample's donor (n, …), and (n,): is there one?

    Whose images they are is kept beside the records, and a sample without donor is marked.

    Args:
        model: takes the notes.
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
        CapabilityMismatch: if the attack is run without one.
    """
    if batch.pool is None:
        raise CapabilityMismatch("the attack needs other inputs", expected="a batch with a pool")
    return batch.pool


def _nearest_donors(batch: Batch, pool: InputPool, allowed: Tensor) -> Tensor:
    far = torch.cdist(flatten(batch.images), flatten(pool.images))
    return far.masked_fill(~allowed, float("inf")).argmin(1)


def _random_donors(allowed: Tensor, rng: SampleRNG) -> Tensor:
    """Return for each row the position of a true element, each as likely as the others."""
    uniform = rng.named(f"{rng.stream}/donor").uniform((), dtype=torch.float64)
    number = (uniform * allowed.sum(1)).long()
    return (allowed.cumsum(1) == number[:, None] + 1).int().argmax(1)
