"""Runs one attack on a batch: counts its queries, and prepares its proposals for the judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Attack, Batch, FailureReason, short_run_of
from robustbench_inv.attacks.queries import CountingModel, Watch
from robustbench_inv.errors import AttackFailed, BadModel, UsageError, describe_error
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.prepare import is_deterministic, prepare, usable_probe
from robustbench_inv.foreign import foreign_call
from robustbench_inv.isolation import attempts_for, isolate, joined_values
from robustbench_inv.models.protocol import Classifier, has_fresh_draws
from robustbench_inv.randomness import SampleRNG, seeded
from robustbench_inv.tensors import broadcast, flatten, is_out_of_memory, norm
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel
from robustbench_inv.torch_state import KeptModules

__all__ = [
    "CACHE_BYTES",
    "DISTANCE_FACTORS",
    "SearchCache",
    "SearchFunction",
    "SearchResult",
    "Searcher",
    "checked_proposals",
    "initial_step",
    "make_searches",
    "push_past_boundary",
    "scale_to_budget",
]


@dataclass(frozen=True)
class SearchResult:
    """The result of a search for n samples.

    Args:
        threat: one stage of the sweep, under which the proposals are judged.
        proposals: (n, …) the attack's proposals, the clean inputs if it crashed.
        succeeded: (n,) did any query show a success?
        nearest: (n, …) the nearest of these successes, where there was one.
        forward_passes: (n,) int64 number of queries.
        backward_passes: (n,) int64 number of gradients.
        zero_gradient: (n,) were gradients taken, and was every one zero or not finite?
        undefined: (n,) was the model's output for a query not a number?
        failures: reasons for missing proposals, by position.
        crash: the attack's exception, one line, if it raised for every sample; None otherwise.
        crashes: the attack's exceptions for single samples, one line each, by position.
        logged: numbers that the attack reports for each sample, (n,), by name.
    """

    threat: ThreatModel
    proposals: Tensor
    succeeded: Tensor
    nearest: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    zero_gradient: Tensor
    undefined: Tensor
    failures: Mapping[int, FailureReason]
    crash: str | None = None
    crashes: Mapping[int, str] = field(default_factory=dict)
    logged: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: Tensor) -> "SearchResult":
        """Return the result for the samples at (m,) positions."""
        tensors: dict[str, Any] = {
            name: value[rows] for name, value in vars(self).items() if torch.is_tensor(value)
        }
        places = list(enumerate(rows.tolist()))
        failures = {new: self.failures[old] for new, old in places if old in self.failures}
        crashes = {new: self.crashes[old] for new, old in places if old in self.crashes}
        logged = {name: values[rows] for name, values in self.logged.items()}
        return replace(self, **tensors, failures=failures, crashes=crashes, logged=logged)

    @classmethod
    def joined(cls, parts: "Sequence[tuple[Tensor, SearchResult]]") -> "SearchResult":
        """Return the result for the samples of all parts, each given with its rows (m,), in ascending order."""
        results = [result for _, result in parts]
        tensors: dict[str, Any] = {
            name: torch.cat([getattr(result, name) for result in results])
            for name, value in vars(results[0]).items()
            if torch.is_tensor(value)
        }
        failures: dict[int, FailureReason] = {}
        crashes: dict[int, str] = {}
        for rows, result in parts:
            places = rows.tolist()
            failures |= {places[row]: reason for row, reason in result.failures.items()}
            crashes |= {places[row]: reason for row, reason in result.crashes.items()}
            if result.crash is not None:
                crashes |= dict.fromkeys(places, result.crash)
        logged = joined_values([(len(rows), result.logged) for rows, result in parts])
        every = results[0].crash if len(crashes) == len(tensors["succeeded"]) else None
        tensors |= {"failures": failures, "crashes": {} if every else crashes, "logged": logged}
        return replace(results[0], **tensors, crash=every)

    def with_proposals(
        self, proposals: Tensor, threat: ThreatModel, *, already_counted: bool
    ) -> "SearchResult":
        """Return the same with other proposals for another stage; ``already_counted`` sets its passes to 0."""
        if not already_counted:
            return replace(self, proposals=proposals, threat=threat)
        none = torch.zeros_like(self.forward_passes)
        return replace(
            self,
            proposals=proposals,
            threat=threat,
            forward_passes=none,
            backward_passes=none,
            zero_gradient=none.bool(),
        )


SearchFunction = Callable[[Batch, Tensor | None, ThreatModel], SearchResult]
"""(n samples, (n, …) inputs to start from or None, one stage of the threat) → the result."""


@dataclass(frozen=True)
class Searcher:
    """An attack, and the model that it queries.

    Args:
        attack: the attack.
        classifier: the queried model: a copy of the model or, in a transfer attack, of the substitute.
        guide: the model whose gradients replace those of the classifier; None for the classifier's own.
        seed: random seed.
        deterministic: does the classifier return the same output twice, apart from draws that it declares?
        kept: the state of a foreign classifier, from which each search starts.
        watch: called before each query.
    """

    attack: Attack
    classifier: Classifier
    guide: Classifier | None
    seed: int
    deterministic: bool = True
    kept: KeptModules = field(default_factory=lambda: KeptModules(()), repr=False)
    watch: Watch | None = field(default=None, repr=False)

    def __call__(self, batch: Batch, start: Tensor | None, stage: ThreatModel) -> SearchResult:
        """Run the attack on a batch; where an attack raises, it proposes the clean inputs.

        An attack that raises is run on halves of the batch, so that the other samples are attacked.
        It raises UsageError if it refuses the batch or the threat.
        """
        result = self._run(batch, start, stage)
        if result.crash is None or len(batch) == 1 or result.crash.startswith("TimeLimit"):
            return result

        def run(rows: Tensor) -> SearchResult:
            part = self._run(batch[rows], None if start is None else start[rows], stage)
            if part.crash is not None and len(rows) > 1:
                raise AttackFailed(part.crash)
            return part

        every = torch.arange(len(batch), device=batch.ids.device)
        found = isolate(run, every, AttackFailed(result.crash), attempts_for(len(batch)))
        parts = [
            (rows, replace(result[rows], crash=str(part)) if isinstance(part, Exception) else part)
            for rows, part in found
        ]
        return SearchResult.joined(parts)

    def _run(self, batch: Batch, start: Tensor | None, stage: ThreatModel) -> SearchResult:
        self.kept.restore()
        # separate draws for each eps: an image that looked broken by luck must not look so again
        rng = SampleRNG(self.seed, batch.ids, f"attack/{stage.budget}")
        keeps_best = self.attack.kind != "invariance" and not stage.is_transfer
        about = (rng, keeps_best, self.guide, self.deterministic, self.watch)
        meter = CountingModel(self.classifier, batch, stage, *about)
        # indexed, and so copied: an attack may write into its own batch
        own = replace(batch, start=start)[torch.arange(len(batch), device=batch.ids.device)]
        proposals, crash = self._propose(meter, own)
        return SearchResult(
            threat=stage,
            proposals=proposals,
            succeeded=meter.found,
            nearest=meter.best if keeps_best else proposals,
            forward_passes=meter.forward_passes,
            backward_passes=meter.backward_passes,
            zero_gradient=meter.zero_gradient,
            undefined=meter.undefined,
            failures=meter.failures,
            crash=crash,
            crashes=meter.crashes,
            logged=meter.logged,
        )

    @property
    def short_run(self) -> "Searcher | None":
        """The short search of a descending sweep.

        None if the attack has no short run, or if the model's outputs vary from query to query: a sample may then
        break at a smaller eps by luck.
        """
        attack = short_run_of(self.attack)
        if attack is None or not self.deterministic or has_fresh_draws(self.classifier):
            return None
        return replace(self, attack=attack)

    def _propose(self, meter: CountingModel, own: Batch) -> tuple[Tensor, str | None]:
        try:
            with foreign_call("the attack"):
                proposals = self.attack.run(meter, own, meter.threat, meter.rng)
                return self._finished(meter, checked_proposals(proposals, meter.batch)), None
        except Exception as error:
            refuses = isinstance(error, UsageError) and not isinstance(error, BadModel)
            if refuses or is_out_of_memory(error):
                raise
            return meter.batch.images, describe_error(error)

    def _finished(self, meter: CountingModel, proposals: Tensor) -> Tensor:
        if meter.threat.is_transfer:
            return initial_step(meter, proposals)
        sure = meter.success_is_final or self.attack.kind != "minimum-norm"
        return proposals if sure else push_past_boundary(meter, proposals)


CACHE_BYTES = 2**30
"""Bytes of proposals that are kept: ten thousand digits at 34 eps. Results beyond the limit are computed again."""


@dataclass
class SearchCache:
    """Results of searches on a substitute, for the cells of one group; at most ``limit`` bytes are kept."""

    limit: int = CACHE_BYTES
    _results: dict[tuple[object, ...], SearchResult] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget all results, since the next block needs none."""
        self.limit += sum(each.proposals.nbytes for each in self._results.values())
        self._results.clear()

    def cached(self, job: Job, search: SearchFunction) -> SearchFunction:
        """Return a search that looks its result up in the cache first; the result is the same without the cache."""

        def lookup(batch: Batch, start: Tensor | None, stage: ThreatModel) -> SearchResult:
            key = (job.search_key, tuple(batch.ids.tolist()), stage)
            if key not in self._results:
                # seeded again, so that random numbers drawn by the attacked model make no difference
                with seeded(job.seed, int(batch.ids[0]), batch.images.device):
                    result = search(batch, start, stage)
                size = result.proposals.nbytes
                if size > self.limit:
                    return result
                self.limit -= size
                self._results[key] = result
            return self._results[key]

        return lookup


PROBE_SAMPLES, LEAST_PROBE_SAMPLES, PROBE_ELEMENTS = 16, 4, 800_000
"""Samples on which the prepared copy must agree: the first of the data set; fewer of inputs with many elements."""


def make_searches(
    job: Job, device: torch.device, cache: SearchCache | None = None, watch: Watch | None = None
) -> tuple[SearchFunction, SearchFunction | None]:
    """Return a job's search on a prepared copy of the model, and its short run.

    Gradients are folded for fixed-budget attacks, which seldom end on the decision boundary.

    Args:
        job: the cell.
        device: where the model computes.
        cache: results of other cells that search on the same substitute.
        watch: called before each query.

    Returns:
        The search, and its short run for descending sweeps; None for an ascending sweep.
    """
    loader = Loader(job.dataset, device, job.model.classifier.dtype)
    fitting = max(PROBE_ELEMENTS // max(prod(job.dataset.shape), 1), LEAST_PROBE_SAMPLES)
    probe = loader.batch(range(min(PROBE_SAMPLES, fitting, len(job.dataset)))).images
    with seeded(job.seed, 0, device):
        probe = usable_probe(job.search_model.classifier, probe)
    fold = job.attack.attack.kind == "fixed-budget" and len(probe) > 0
    copy = partial(prepare, probe=probe, fold=fold)
    guide = copy(job.guide.classifier) if job.guide else None
    search_model = copy(job.search_model.classifier)
    kept = KeptModules([search_model, guide] if job.search_model.is_foreign else ())
    with seeded(job.seed, 0, device), foreign_call("the model"):
        deterministic = not len(probe) or is_deterministic(search_model, probe)
    search = Searcher(job.attack.attack, search_model, guide, job.seed, deterministic, kept, watch)
    if job.threat.is_transfer:
        return (cache or SearchCache(limit=0)).cached(job, search), None
    return search, search.short_run


def checked_proposals(proposals: object, batch: Batch) -> Tensor:
    """Return an attack's proposals, detached and in the dtype of the batch.

    Raises:
        AttackFailed: if they are not a batch of images.
    """
    expected = tuple(batch.images.shape)
    if not isinstance(proposals, Tensor) or tuple(proposals.shape) != expected:
        got = tuple(proposals.shape) if isinstance(proposals, Tensor) else type(proposals).__name__
        raise AttackFailed(
            "the attack returned no batch of images", got=got, expected=str(expected)
        )
    return proposals.detach().to(batch.images)


def scale_to_budget(
    clean: Tensor, direction: Tensor, ball: LpBall, bounds: tuple[float, float]
) -> Tensor:
    """Return the inputs that lie in a direction from the clean ones, as far as a budget allows.

    A minimum-norm attack ends on the substitute's decision boundary, which is seldom that of another model. Its
    direction is kept, and its length is the budget's. Clamping to the box may shorten it below eps. In l0 the
    largest changes are kept, and none is lengthened.

    Args:
        clean: (n, …).
        direction: (n, …) directions of any length; where one is zero, the clean input is returned.
        ball: the budget.
        bounds: smallest and largest value of an element.
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
    """Move the samples that an attack left unchanged because the substitute misclassifies the clean input.

    The attacked model may classify them correctly. They move in the direction of the substitute's gradient.

    Args:
        meter: queries the substitute, and counts the passes.
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
"""Distances that are tried, relative to the proposal's distance from the clean input."""

CONFIRMATIONS = 10
"""Queries, each with fresh draws, that must all be successes; else a proposal that succeeds at one factor by luck
would count. On a toy model with one draw 71 % of the successes were replayed with 3 queries, 92 % with 10."""


def push_past_boundary(meter: CountingModel, proposals: Tensor) -> Tensor:
    """Return the proposals of a minimum-norm search, pushed past the boundary of a stochastic model.

    On the boundary of a stochastic model every other query fails, and the attack would look weaker than it is. Each
    proposal is lengthened by the smallest factor at which fresh queries agree. The engine judges it on other draws.
    If the queries agree at no factor, the proposal is returned unchanged.

    Args:
        meter: queries the model, and counts the passes.
        proposals: (n, …).
    """
    clean, labels = meter.batch.images, meter.batch.labels
    pushed, direction = proposals.clone(), proposals - clean
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
        pushed[rows[sure]] = images[sure]
        rows = rows[~sure]
    return pushed
