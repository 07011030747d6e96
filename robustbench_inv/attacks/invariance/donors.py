"""Chooses for each sample another one of the pool: a donor of nuisances, or of another class's looks."""

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Pool, Queries
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import flatten

__all__ = ["RULES", "check_rule", "choose_donors", "pool_of", "take_donors"]

RULES = ("other-class", "random", "nearest")
"""``other-class``: any sample of another class. ``random``: any other sample. ``nearest``: of another class, in
pixels."""


def check_rule(rule: str) -> None:
    """Raise BadParameter for a rule that there is none of."""
    if rule not in RULES:
        known = "one of " + ", ".join(RULES)
        raise BadParameter("unknown rule for donors", got=rule, expected=known)


def choose_donors(batch: Batch, rule: str, noise: Noise) -> tuple[Tensor, Tensor]:
    """Return for each sample the position (n,) of its donor in the pool, and (n,): is there one?

    A sample is never its own donor, and its draw depends on no other sample.

    Args:
        batch: n samples with their pool.
        rule: one of ``RULES``.
        noise: the samples' random numbers.
    """
    pool = pool_of(batch)
    allowed = pool.ids != batch.ids[:, None]
    if rule != "random":
        allowed &= pool.labels != batch.labels[:, None]
    donors = _nearest(batch, pool, allowed) if rule == "nearest" else _drawn(allowed, noise)
    return donors, allowed.any(1)


def take_donors(model: Queries, batch: Batch, rule: str, noise: Noise) -> tuple[Tensor, Tensor]:
    """Return each sample's donor (n, …), and (n,): is there one?

    Whose images they are is kept beside the records, and a sample without donor is marked.

    Args:
        model: takes the notes.
        batch: n samples with their pool.
        rule: one of ``RULES``.
        noise: the samples' random numbers.
    """
    pool = pool_of(batch)
    donors, found = choose_donors(batch, rule, noise)
    model.mark((~found).nonzero()[:, 0], "no_start")
    model.measure("donor", pool.ids[donors].where(found, -1))
    model.measure("donor_label", pool.labels[donors].where(found, -1))
    return pool.images[donors], found


def pool_of(batch: Batch) -> Pool:
    """Return a batch's pool.

    Raises:
        CapabilityMismatch: if the attack is run without one.
    """
    if batch.pool is None:
        raise CapabilityMismatch("the attack needs other inputs", expected="a batch with a pool")
    return batch.pool


def _nearest(batch: Batch, pool: Pool, allowed: Tensor) -> Tensor:
    far = torch.cdist(flatten(batch.images), flatten(pool.images))
    return far.masked_fill(~allowed, float("inf")).argmin(1)


def _drawn(allowed: Tensor, noise: Noise) -> Tensor:
    """Return for each row the position of a true element, each as likely as the others."""
    uniform = noise.named(f"{noise.stream}/donor").uniform((), dtype=torch.float64)
    number = (uniform * allowed.sum(1)).long()
    return (allowed.cumsum(1) == number[:, None] + 1).int().argmax(1)
