"""The model as attacks query it: counts passes, addresses random draws, keeps the closest adversarial example."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, FailureReason, Loss
from robustbench_inv.models.protocol import Classifier, Stochastic, has_fresh_draws, query_model
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, norm, per_sample_gradient
from robustbench_inv.threat.budgets import inside_box
from robustbench_inv.threat.threat_model import ThreatModel
from robustbench_inv.torch_state import call_keeping_modes

__all__ = ["CountingModel", "Watch"]


@dataclass
class CountingModel:
    """Evaluates an attack's queries of one batch (implements ``attacks.protocol.Queries``).

    Args:
        classifier: the queried model; the substitute in a transfer attack.
        batch: the n samples.
        threat: its goal defines success during the search.
        rng: the samples' random numbers.
        keep_best: keep the closest adversarial example of all queries. False for invariance goals, which the
            clean input's output already meets, and for substitutes.
        guide: another model, whose gradients replace those of the classifier.
        deterministic: whether the model gives the same output twice, apart from declared latent draws.
        watch: called before each query, to report progress; ``stage`` is the part of the attack that runs.
    """

    classifier: Classifier
    batch: Batch
    threat: ThreatModel
    rng: SampleRNG
    keep_best: bool = True
    guide: Classifier | None = None
    deterministic: bool = True
    watch: "Watch | None" = field(default=None, repr=False)
    stage: str = field(init=False, default="")
    found: Tensor = field(init=False)
    undefined: Tensor = field(init=False)
    best: Tensor = field(init=False)
    failures: dict[int, FailureReason] = field(init=False, default_factory=dict)
    crashes: dict[int, str] = field(init=False, default_factory=dict)
    logged: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        n, device = len(self.batch), self.batch.images.device
        self.found = torch.zeros(n, dtype=torch.bool, device=device)
        self.undefined = torch.zeros_like(self.found)
        self.best = self.batch.images.clone()
        self._distance = torch.full((n,), float("inf"), device=device, dtype=self.dtype)
        self._forward = torch.zeros(n, dtype=torch.float64, device=device)
        self._backward = torch.zeros(n, dtype=torch.float64, device=device)
        self._useful = torch.zeros(n, dtype=torch.bool, device=device)
        self._all_useful = False
        self._every = torch.arange(n, device=device)
        self._draws = isinstance(self.classifier, Stochastic) or isinstance(self.guide, Stochastic)
        self._latent = self.rng.named(f"{self.rng.stream}/search")

    @property
    def num_classes(self) -> int:
        return self.classifier.num_classes

    @property
    def model(self) -> Classifier:
        return self.classifier

    @property
    def dtype(self) -> torch.dtype:
        return self.classifier.dtype

    @cached_property
    def success_is_final(self) -> bool:
        """False for a stochastic model with fresh draws, a nondeterministic model, and a substitute."""
        return self.deterministic and not (
            has_fresh_draws(self.classifier) or self.threat.is_transfer
        )

    @property
    def bounds(self) -> tuple[float, float]:
        return self.classifier.bounds

    @property
    def forward_passes(self) -> Tensor:
        """(n,) int64: forward passes of each sample."""
        return self._forward.ceil().long()

    @property
    def backward_passes(self) -> Tensor:
        """(n,) int64: backward passes of each sample."""
        return self._backward.ceil().long()

    @property
    def zero_gradient(self) -> Tensor:
        """(n,): whether gradients were computed and all of them were zero or not finite."""
        return (self._backward > 0) & ~self._useful

    def report_failure(self, rows: Tensor, status: FailureReason, error: str = "") -> None:
        """Report why there is no candidate for some samples (positions in the batch); the error of a crash, one line."""
        self.failures.update(dict.fromkeys(rows.tolist(), status))
        if error:
            self.crashes.update(dict.fromkeys(rows.tolist(), error))

    def enter(self, stage: str) -> None:
        """Name the part of the attack that begins, for the progress."""
        self.stage = stage

    def log(self, name: str, values: Tensor) -> None:
        """Log one number per sample (n,), for events.jsonl."""
        self.logged[name] = values.detach()

    def __call__(self, images: Tensor, rows: Tensor | None = None) -> Output:
        with torch.no_grad():
            return self._query(images, rows)

    def gradient(
        self, images: Tensor, loss: Loss, rows: Tensor | None = None
    ) -> tuple[Output, Tensor]:
        labels = self.batch.labels if rows is None else self.batch.labels[rows]
        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            output = self._query(images, rows)
            gradient = per_sample_gradient(loss(output, labels), images)
        self._count_backward(gradient, rows)
        return output.detach(), gradient

    def differentiable(self, images: Tensor, rows: Tensor | None = None) -> Output:
        output = self._query(images, rows)
        if images.requires_grad and not output.logits.requires_grad:
            self._count_backward(torch.zeros_like(images), rows)  # no graph: the gradient is zero
        elif images.requires_grad:
            # the hook must not hold the images: they would never be freed
            size, device = images.shape, images.device
            images.register_hook(  # type: ignore[no-untyped-call]
                # an operation without a derivative, as of a quantised layer, gives None
                lambda gradient: self._count_backward(
                    torch.zeros(size, device=device) if gradient is None else gradient, rows
                )
            )
        return output

    def _query(self, images: Tensor, rows: Tensor | None) -> Output:
        if self.watch is not None:
            self.watch(self)
        whole = rows is None and len(images) == len(self.batch)
        if whole:
            rows = self._every
        output = self._output(images, rows)
        if rows is None:
            self._forward += len(images) / len(self.batch)
            return output
        if whole:
            self._forward += 1
        else:
            self._forward.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
        if self.keep_best:
            self._keep_nearest(images.detach(), output.detach(), rows)
        return output

    def _output(self, images: Tensor, rows: Tensor | None) -> Output:
        """Return the model's output, with the guide's graph if a gradient is needed and there is a guide."""
        # random draws take a percent of a small network's pass
        if not self._draws and self.guide is None:
            return call_keeping_modes(self.classifier, images.clone())
        if rows is None:
            step: int | Tensor = 0
            rng = self._anonymous(images)
        else:
            step = self._forward[rows].long()
            rng = self._latent.rows(rows)
        if self.guide is None or not (images.requires_grad and torch.is_grad_enabled()):
            return query_model(self.classifier, images, rng, step)
        with torch.no_grad():
            output = query_model(self.classifier, images, rng, step)
        return _with_guide_gradients(
            output, query_model(self.guide, images, rng.named(f"{rng.stream}/guide"), step)
        )

    def _anonymous(self, images: Tensor) -> SampleRNG:
        """Return random numbers for images whose samples the attack does not declare."""
        ids = torch.arange(len(images), device=images.device)
        return SampleRNG(self.rng.seed, ids, f"{self.rng.stream}/anonymous")

    @torch.no_grad()
    def _keep_nearest(self, images: Tensor, output: Output, rows: Tensor) -> None:
        margin = self.threat.goal.margin(output, self.batch.labels[rows])
        if margin.isnan().any():
            self.undefined[rows[margin.isnan()]] = True
        hit = margin > 0
        if not hit.any():
            return
        images, rows = images[hit], rows[hit]
        clean = self.batch.images[rows]
        allowed = inside_box(images, self.bounds) & self.threat.budget.contains(clean, images)
        distance = self.threat.budget.distance(clean, images)
        nearer = allowed & (distance < self._distance[rows])
        if not nearer.any():
            return
        images, rows = images[nearer].to(self.best), rows[nearer]
        distance = distance[nearer].to(self._distance)
        # one query may hold several images of a sample
        least = self._distance.scatter_reduce(0, rows, distance, "amin")
        first = distance == least[rows]
        self.best[rows[first]] = images[first]
        self._distance[rows[first]] = distance[first]
        self.found[rows[first]] = True

    def _count_backward(self, gradient: Tensor, rows: Tensor | None) -> None:
        if rows is None and len(gradient) != len(self.batch):
            self._backward += len(gradient) / len(self.batch)
            self._useful |= _has_gradient(gradient).any()
            return
        chosen = self._every if rows is None else rows
        self._backward.index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float64))
        # a library may take one gradient for each sample and class: one look at a known sample is enough
        if not self._all_useful and not self._useful[chosen].all():
            self._useful[chosen[_has_gradient(gradient)]] = True
            self._all_useful = bool(self._useful.all())


Watch = Callable[[CountingModel], None]
"""Called with the queried model before each query, to report progress."""


def _has_gradient(gradient: Tensor) -> Tensor:
    """Return (n,): whether a gradient (n, …) is finite and not zero."""
    size = norm(gradient.detach(), "linf")
    return (size > 0) & (size < torch.inf)  # both are false for NaN


def _with_guide_gradients(output: Output, guide: Output) -> Output:
    """Return the model's output, bit for bit, with the gradients of the guide's output."""
    logits = output.logits + (guide.logits - guide.logits.detach())
    if output.score is None or guide.score is None:
        return Output(logits, output.score, output.accepted)
    clearance = output.clearance
    if clearance is not None and guide.clearance is not None:
        clearance = clearance + (guide.clearance - guide.clearance.detach())
    score = output.score + (guide.score - guide.score.detach())
    return Output(logits, score, output.accepted, clearance)
