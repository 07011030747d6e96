"""Searches that several cells share: on one substitute they are the same, whichever model is the target."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.evaluation.isolation import seeded
from robustbench_inv.evaluation.plan import Job
from robustbench_inv.evaluation.search import Found, Search
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["LIMIT", "Memory", "shared_by", "sharing_groups"]

LIMIT = 2**30
"""Bytes of proposals that are kept: ten thousand digits at 34 eps. What does not fit is searched for again."""


@dataclass
class Memory:
    """What searches on a substitute have found, for the cells of one group.

    Args:
        limit: bytes that may be kept.
    """

    limit: int = LIMIT
    _found: dict[tuple[object, ...], Found] = field(default_factory=dict)

    def sharing(self, job: Job, search: Search) -> Search:
        """Return a search that asks the memory first; its results are the same with and without it."""

        def shared(batch: Batch, start: Tensor | None, stage: ThreatModel) -> Found:
            key = (shared_by(job), tuple(batch.ids.tolist()), stage)
            if key not in self._found:
                # apart from the random numbers that the target has drawn, so that they do not count
                with seeded(job.seed, int(batch.ids[0]), batch.images.device):
                    found = search(batch, start, stage)
                size = found.proposals.nbytes
                if size > self.limit:
                    return found
                self.limit -= size
                self._found[key] = found
            return self._found[key]

        return shared


def shared_by(job: Job) -> tuple[object, ...]:
    """Return what a search on a substitute depends on: all that a cell is but for its model."""
    spec = job.spec
    return spec.attack, spec.threat, spec.dataset, spec.seed


def sharing_groups(jobs: Iterable[Job]) -> list[list[Job]]:
    """Return the jobs in groups that share their searches, in the order of the first of each group."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        key = shared_by(job) if job.threat.transfers else job.spec.digest
        groups.setdefault(key, []).append(job)
    return list(groups.values())
