"""Runs one attack on a batch: counts its queries, and prepares its proposals for the judge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Attack, Batch, short_run_of
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.errors import UsageError
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.judge import checked_proposals
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.prepare import is_deterministic, prepare
from robustbench_inv.models.protocol import Classifier, has_fresh_draws
from robustbench_inv.randomness import SampleRNG, seeded
from robustbench_inv.results.record import Status
from robustbench_inv.tensors import broadcast, flatten, norm
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "CACHE_BYTES",
    "DISTANCE_FACTORS",
    "SearchCache",
    "SearchFunction",
    "SearchResult",
    "Searcher",
    "initial_step",
    "is_out_of_memory",
    "make_searches",
    "push_past_boundary",
    "scale_to_budget",
]


def scale_to_budget(
    clean: Tensor, direction: Tensor, ball: LpBall, bounds: tuple[float, float]
) -> Tensor:
    """Return the inputs that lie as far along a way from the clean ones as a budget allows.

    A minimum-norm attack ends on the substitute's decision boundary, which is seldom that of another model:
    from there the attacker takes the direction, and the length from what the budget allows. Cutting with the
    box may leave an input nearer than eps. In l0 there is nothing to lengthen: the largest changes are kept.

    Args:
        clean: (n, …).
        direction: (n, …) directions of any length; where one is zero, the clean input stays.
        ball: the budget.
        bounds: least and largest value of an element.
    """
    if ball.norm == "l0":
        return ball.project(clean, clean + direction).clamp(*bounds)
    # the largest element becomes 1: the square of a tiny gradient would be 0, its inverse infinite
    direction = direction / broadcast(
        norm(direction, "linf").clamp_min(torch.finfo(direction.dtype).tiny), direction
    )
    direction = direction * broadcast(ball.eps / norm(direction, ball.norm).clamp_min(1), direction)
    return ball.project(clean, clean + direction).clamp(*bounds)


def initial_step(meter: CountingModel, proposals: Tensor) -> Tensor:
    """Move the samples that an attack left alone because the substitute fails on them to begin with.

    The model may be right about them, so they are no successes yet. Their way is the substitute's gradient.

    Args:
        meter: asks the substitute, and counts the passes.
        proposals: (n, …).
    """
    clean, budget = meter.batch.images, meter.threat.budget
    rows = (flatten(proposals - clean).abs().amax(1) == 0).nonzero()[:, 0]
    if not isinstance(budget, LpBall) or not len(rows):
        return proposals
    goal, labels = meter.threat.goal, meter.batch.labels
    rows = rows[goal.margin(meter(clean[rows], rows), labels[rows]) > 0]
    if not len(rows):
        return proposals
    _, gradient = meter.gradient(clean[rows], goal.margin, rows)
    direction = gradient.sign() if budget.norm == "linf" else gradient
    moved = proposals.clone()
    moved[rows] = scale_to_budget(clean[rows], direction.nan_to_num(0, 0, 0), budget, meter.bounds)
    return moved


DISTANCE_FACTORS = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0)
"""Lengths that are tried, relative to the proposal's distance from the clean input."""

CONFIRMATIONS = 10
"""Answers, each with draws of its own, that must all be successes: what passes at one of several factors by luck
would else be taken for broken (with 3, 71 % of the successes on a toy of one draw held, with 10, 92 %)."""


def push_past_boundary(meter: CountingModel, proposals: Tensor) -> Tensor:
    """Return the proposals of a search that ended on the boundary, lengthened until the model is sure.

    On the boundary of a stochastic model every other verdict is a failure, and the attack would look weaker
    than it is. Each proposal is lengthened by the smallest factor at which fresh answers agree; the verdict,
    on draws that neither search nor these answers have seen, stays the engine's. A proposal that no factor
    makes sure is left as it is.

    Args:
        meter: answers about the batch, and counts the passes.
        proposals: (n, …).
    """
    clean, labels = meter.batch.images, meter.batch.labels
    shown, direction = proposals.clone(), proposals - clean
    moved = flatten(direction).abs().amax(1)
    rows = (moved.isfinite() & (moved > 0)).nonzero()[:, 0]
    for factor in DISTANCE_FACTORS:
        if not len(rows):
            break
        images = (clean[rows] + factor * direction[rows]).clamp(*meter.bounds)
        margins = [
            meter.threat.goal.margin(meter(images, rows), labels[rows])
            for _ in range(CONFIRMATIONS)
        ]
        sure = (torch.stack(margins) > 0).all(0)
        shown[rows[sure]] = images[sure]
        rows = rows[~sure]
    return shown


@dataclass(frozen=True)
class SearchResult:
    """What a search came to, for n samples.

    Args:
        proposals: (n, …) what the attack proposes, the clean inputs if it crashed.
        succeeded: (n,) did a query show a success?
        nearest: (n, …) the nearest of these, where there was one.
        forward_passes: (n,) int64 inputs that the model was asked about.
        backward_passes: (n,) int64 gradients that were taken.
        zero_gradient: (n,) were gradients taken, of which every one was zero or not finite?
        failures: why there is no proposal, by position.
        crash: what the attack raised, one line; None if it did not.
        measured: numbers of each sample, (n,), by name.
    """

    proposals: Tensor
    succeeded: Tensor
    nearest: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    zero_gradient: Tensor
    failures: Mapping[int, Status]
    crash: str | None = None
    measured: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: Tensor) -> "SearchResult":
        """Return what the search came to for the samples at (m,) positions."""
        tensors = {
            name: value[rows] for name, value in vars(self).items() if torch.is_tensor(value)
        }
        places = enumerate(rows.tolist())
        failures = {new: self.failures[old] for new, old in places if old in self.failures}
        measured = {name: values[rows] for name, values in self.measured.items()}
        return SearchResult(**tensors, failures=failures, crash=self.crash, measured=measured)

    def with_proposals(self, proposals: Tensor, *, already_counted: bool) -> "SearchResult":
        """Return the same with other proposals; ``already_counted`` if the search has been charged for already."""
        if not already_counted:
            return replace(self, proposals=proposals)
        none = torch.zeros_like(self.forward_passes)
        return replace(
            self,
            proposals=proposals,
            forward_passes=none,
            backward_passes=none,
            zero_gradient=none.bool(),
        )


SearchFunction = Callable[[Batch, Tensor | None, ThreatModel], SearchResult]
"""(n samples, (n, …) inputs to start from or None, one stage of the threat) → what was found."""


@dataclass(frozen=True)
class Searcher:
    """An attack, and the model that it searches on.

    Args:
        attack: the attack.
        classifier: what answers it: a copy of the model or, under a transfer threat, of the substitute.
        guide: what gives the gradients in place of the classifier; None for itself.
        seed: of the random numbers.
        deterministic: does the classifier give the same answer twice, apart from draws that it declares?
    """

    attack: Attack
    classifier: Classifier
    guide: Classifier | None
    seed: int
    deterministic: bool = True

    def __call__(self, batch: Batch, start: Tensor | None, stage: ThreatModel) -> SearchResult:
        """SearchFunction; an attack that raises proposes nothing.

        Raises:
            UsageError: if the attack says that it cannot be used so.
        """
        # draws of its own for each eps: an image that only looked broken must not look so again
        rng = SampleRNG(self.seed, batch.ids, f"attack/{stage.budget}")
        keeps_best = self.attack.kind != "invariance" and not stage.is_transfer
        meter = CountingModel(
            self.classifier, batch, stage, rng, keeps_best, self.guide, self.deterministic
        )
        # indexed, and so copied: an attack may write into its own batch
        own = replace(batch, start=start)[torch.arange(len(batch), device=batch.ids.device)]
        proposals, crash = self._propose(meter, own)
        return SearchResult(
            proposals=proposals,
            succeeded=meter.found,
            nearest=meter.best if keeps_best else proposals,
            forward_passes=meter.forward_passes,
            backward_passes=meter.backward_passes,
            zero_gradient=meter.zero_gradient,
            failures=meter.failures,
            crash=crash,
            measured=meter.measured,
        )

    @property
    def short_run(self) -> "Searcher | None":
        """The search in brief, with which a sweep goes down from its largest eps.

        None if the attack has no brief form, and where an answer is a matter of luck, which may be better at a smaller eps.
        """
        attack = short_run_of(self.attack)
        if attack is None or not self.deterministic or has_fresh_draws(self.classifier):
            return None
        return replace(self, attack=attack)

    def _propose(self, meter: CountingModel, own: Batch) -> tuple[Tensor, str | None]:
        try:
            found = self.attack.run(meter, own, meter.threat, meter.rng)
            return self._finished(meter, checked_proposals(found, meter.batch)), None
        except UsageError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return meter.batch.images, f"{type(error).__name__}: {error}".splitlines()[0]

    def _finished(self, meter: CountingModel, proposals: Tensor) -> Tensor:
        if meter.threat.is_transfer:
            return initial_step(meter, proposals)
        sure = meter.success_is_final or self.attack.kind != "minimum-norm"
        return proposals if sure else push_past_boundary(meter, proposals)


def is_out_of_memory(error: BaseException) -> bool:
    """Is this the error of a device, or of the CPU's allocator, that has no memory left?"""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text and "memory" in text
    )


CACHE_BYTES = 2**30
"""Bytes of proposals that are kept: ten thousand digits at 34 eps. What does not fit is searched for again."""


@dataclass
class SearchCache:
    """What searches on a substitute have found, for the cells of one group.

    Args:
        limit: bytes that may be kept.
    """

    limit: int = CACHE_BYTES
    _found: dict[tuple[object, ...], SearchResult] = field(default_factory=dict)

    def cached(self, job: Job, search: SearchFunction) -> SearchFunction:
        """Return a search that asks the memory first; its results are the same with and without it."""

        def shared(batch: Batch, start: Tensor | None, stage: ThreatModel) -> SearchResult:
            key = (job.search_key, tuple(batch.ids.tolist()), stage)
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


PROBE_SAMPLES = 16
"""Samples on which the prepared copy must agree: the first of the data set, whichever are evaluated."""


def make_searches(
    job: Job, device: torch.device, cache: SearchCache | None = None
) -> tuple[SearchFunction, SearchFunction | None]:
    """Return a job's search on a prepared copy of the model, and its short run.

    Args:
        job: the cell.
        device: where the model computes.
        cache: results of other cells that search on the same substitute.

    Returns:
        The search, and its short run for descending sweeps; None for an ascending sweep.
    """
    loader = Loader(job.dataset, device, job.model.classifier.dtype)
    probe = loader.batch(range(min(PROBE_SAMPLES, len(job.dataset)))).images
    # minimum-norm attacks end on the boundary, where the rounding of folded layers can flip a prediction
    copy = partial(prepare, probe=probe, fold=job.attack.attack.kind == "fixed-budget")
    guide = copy(job.guide.classifier) if job.guide else None
    search_model = copy(job.search_model.classifier)
    with seeded(job.seed, 0, device):
        deterministic = is_deterministic(search_model, probe)
    search = Searcher(job.attack.attack, search_model, guide, job.seed, deterministic)
    if job.threat.is_transfer:
        return (cache or SearchCache(limit=0)).cached(job, search), None
    return search, search.short_run
