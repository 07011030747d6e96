"""The model as Foolbox and torchattacks expect it, and their attacks called so that an error on one sample affects no other."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_inv.attacks.protocol import Batch, Queries
from robustbench_inv.errors import AttackFailed, CapabilityMismatch, InvbenchError
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import flatten, mask_true_class, where_rows
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import Goal, Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "AdaptedModel",
    "AttackCall",
    "GreyFromRGB",
    "InputScaling",
    "call_attack",
    "check_decision_goal",
    "check_images",
    "collect_candidates",
    "suppressed_output",
    "targeting_unsupported",
    "valid_proposals",
]


class InputScaling:
    """The affine map between a model's bounds and the box of 0 to 1 in which libraries work.

    Args:
        bounds: least and largest value of the model's inputs.
    """

    bounds = (0.0, 1.0)

    def __init__(self, bounds: tuple[float, float]) -> None:
        low, high = bounds
        self._identity = (low, high) == self.bounds
        self._low, self._span = low, high - low

    def to_library(self, images: Tensor) -> Tensor:
        """Return (n, …) images of the model in the library's bounds."""
        return images if self._identity else ((images - self._low) / self._span).clamp(0, 1)

    def to_model(self, images: Tensor) -> Tensor:
        """Return (n, …) images of the library in the model's bounds."""
        if self._identity:
            return images
        return self._low * (1 - images) + (self._low + self._span) * images  # exact at both ends

    def length(self, eps: float, norm: str) -> float:
        """Return an eps of the model in the library's units; l0 counts elements in both."""
        return eps if self._identity or norm == "l0" else eps / self._span


class AdaptedModel(nn.Module):
    """The model as a module of another library, for some of a batch's samples.

    Args:
        queries: the queried model.
        rows: (m,) positions of the samples in the batch.
        scale: map between the library's bounds and the model's.
        like: an image, for device and dtype.
    """

    def __init__(self, queries: Queries, rows: Tensor, scale: InputScaling, like: Tensor) -> None:
        super().__init__()
        # libraries take the device from the first parameter
        self.place = nn.Parameter(like.new_empty(0), requires_grad=False)
        self._queries, self._rows, self._scale = queries, rows, scale
        self._dtype = queries.dtype
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (k, classes) of k images, which belong to the m samples in order if k = m."""
        mapped = self._scale.to_model(images).to(self._dtype)
        output = self._queries.differentiable(mapped, self._rows_of(len(images)))
        return _replace_ruled_out(output.logits).to(images.dtype)

    def _rows_of(self, count: int) -> Tensor | None:
        if count == len(self._rows):
            return self._rows
        return self._rows.expand(count) if len(self._rows) == 1 else None


RULED_OUT_GAP = 100.0
"""Distance of a ruled-out class below the smallest finite logit, at least: its softmax output is 0 in float32."""


def _replace_ruled_out(logits: Tensor) -> Tensor:
    """Return logits (n, classes) with a constant far below the others for −inf, of which other libraries subtract others."""
    if logits.detach().amin() > -torch.inf:  # not for NaN
        return logits
    ruled_out = logits == -torch.inf
    known = logits.detach().masked_fill(~logits.isfinite(), 0)
    low, high = known.amin(1, keepdim=True), known.amax(1, keepdim=True)
    return logits.where(~ruled_out, low - (high - low) - RULED_OUT_GAP)


@dataclass(frozen=True)
class AttackCall:
    """The arguments of an attack's run, and starting points (n, …) for attacks that need them."""

    model: Queries
    batch: Batch
    threat: ThreatModel
    rng: SampleRNG
    starts: Tensor | None = None

    def eps(self, scale: InputScaling) -> float:
        """Return the radius of the budget in the library's units."""
        assert isinstance(self.threat.budget, LpBall), "only a ball is a fixed budget"
        return scale.length(self.threat.budget.eps, self.threat.norm)

    def runner_up(self, rows: Tensor) -> Tensor:
        """Return the runner-up class (m,) of some samples' clean inputs."""
        logits = self.model(self.batch.images[rows], rows).logits
        return mask_true_class(logits, self.batch.labels[rows]).argmax(1)


class GreyFromRGB(nn.Module):
    """A model of grey images whose input is the mean of three channels."""

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (k, classes) of (k, 3, height, width) images."""
        logits: Tensor = self.model(images.mean(1, keepdim=True))
        return logits


def valid_proposals(
    proposals: Tensor, model: Queries, batch: Batch, threat: ThreatModel, *, bounded: bool
) -> Tensor:
    """Return finite candidates inside the bounds and inside a fixed budget.

    Args:
        proposals: (n, …) candidates.
        model: receives the samples without a finite candidate.
        batch: the n samples.
        threat: the budget.
        bounded: whether the attack has a fixed budget; the candidates are then projected, since some exceed it.
    """
    finite = flatten(proposals).isfinite().all(1)
    model.report_failure((~finite).nonzero()[:, 0], "numerics")
    images = where_rows(finite, proposals, batch.images)
    if bounded:
        images = threat.budget.project(batch.images, images)
    return images.clamp(*model.bounds)


def check_decision_goal(name: str, goal: Goal) -> None:
    """Raise for a goal other than a misclassification or a target class.

    Raises:
        CapabilityMismatch: with the goal's name.
    """
    if not isinstance(goal, Misclassify | MisclassifyAccepted | Target):
        raise CapabilityMismatch(
            f"{name} changes the prediction",
            got=goal.name,
            expected="misclassify or target",
            remedy="use an invariance attack for this goal",
        )


def targeting_unsupported(name: str) -> CapabilityMismatch:
    """Return the error for an attack without a targeted mode."""
    return CapabilityMismatch(
        f"{name} has no targeted mode",
        expected="the goal misclassify",
        remedy="use another attack for this goal",
    )


def call_attack(
    name: str, attack: Callable[[Tensor], Tensor], rows: Tensor, model: Queries, *, one_by_one: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Call an attack of another library on some samples; if it raises, call it on each of them separately.

    Args:
        name: of the attack, for messages.
        attack: (m,) positions of samples → (m, …) candidates.
        rows: positions of all samples to attack.
        model: receives the samples on which the attack raises.
        one_by_one: call it on each sample separately from the start.

    Yields:
        Positions and their candidates; none for a sample on which the attack raised.

    Raises:
        AttackFailed: if it raised on every sample.
    """
    if not one_by_one and len(rows) > 1:
        with contextlib.suppress(AttackFailed):
            yield rows, _call_once(name, attack, rows)
            return
    failed: list[Tensor] = []
    reason: AttackFailed | None = None
    for row in rows.chunk(len(rows)):
        try:
            yield row, _call_once(name, attack, row)
        except AttackFailed as error:
            failed.append(row)
            reason = error
    if reason is not None and len(failed) == len(rows):
        raise reason
    if failed:
        model.report_failure(torch.cat(failed), "crash")


def collect_candidates(
    name: str,
    attack: Callable[[Tensor], Tensor],
    rows: Tensor,
    model: Queries,
    batch: Batch,
    *,
    one_by_one: bool,
) -> Tensor:
    """Return the candidates of ``call_attack`` (n, …), the clean inputs where there are none."""
    images = batch.images.clone()
    for done, candidates in call_attack(name, attack, rows, model, one_by_one=one_by_one):
        images[done] = candidates.to(images.dtype)
    return images


@contextlib.contextmanager
def suppressed_output() -> Iterator[None]:
    """Suppress what other libraries print, warn and log."""
    silent = logging.NullHandler()
    # without a handler, logging.info would install a permanent one
    logging.getLogger().addHandler(silent)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().removeHandler(silent)


def _call_once(name: str, attack: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    try:
        with suppressed_output():
            return attack(rows)
    except (InvbenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise AttackFailed(f"{name} raised {reason}") from error


def check_images(shape: tuple[int, ...]) -> None:
    """Raise CapabilityMismatch if a data set's inputs are no images."""
    if len(shape) != 3:
        raise CapabilityMismatch(
            "the attack needs images",
            got=f"inputs of shape {tuple(shape)}",
            expected="shape (channels, height, width)",
        )
