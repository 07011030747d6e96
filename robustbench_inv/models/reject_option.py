"""A reject option around any classifier: an input is accepted if its score reaches the threshold of the predicted class."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.models.protocol import Classifier, Stochastic
from robustbench_inv.tensors import Output, class_margins

__all__ = [
    "PERCENTILES",
    "SCORES",
    "RejectingClassifier",
    "RejectingStochasticClassifier",
    "ScoreQuantiles",
    "class_scores",
    "fit_quantiles",
    "reject",
]


PERCENTILES = tuple(step / 2 for step in range(41))
"""Stored percentiles, 0 to 20; values between them are interpolated."""

MIN_CORRECT = 20
"""Smallest number of correctly classified inputs per class; with fewer, the 1st percentile is hardly more than the
minimum."""


def _log_odds(output: Output) -> Tensor:
    """Return the log-odds of each class, which have the order of max-softmax but do not saturate at 1."""
    logits = output.logits
    same = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    others = logits[:, None].expand(-1, logits.shape[1], -1).masked_fill(same, float("-inf"))
    # where all other classes are ruled out the odds are infinite, and constant
    alone = (others == float("-inf")).all(2)
    return (logits - torch.logsumexp(others.masked_fill(alone[..., None], 0), 2)).masked_fill(
        alone, float("inf")
    )


def _energy(output: Output) -> Tensor:
    return torch.logsumexp(output.logits, 1, keepdim=True).expand_as(output.logits)


def _model_score(output: Output) -> Tensor:
    if output.score is None:
        raise BadParameter(
            "the model returns no score",
            got="reject=own",
            expected="one of " + ", ".join(name for name in SCORES if name != "own"),
        )
    return output.score[:, None].expand_as(output.logits)


SCORES: Mapping[str, Callable[[Output], Tensor]] = {
    "likelihood": lambda output: output.logits,
    "max-softmax": _log_odds,
    "margin": lambda output: class_margins(output.logits),
    "energy": _energy,
    "own": _model_score,
}
"""Functions by name that return the score of each class as if it were predicted, (n, classes), in units of logits.

``likelihood`` is the logit, which is log p(x|y) for a generative classifier. ``max-softmax`` is the log-odds of the
class, which has the order of the softmax output. ``margin`` is the difference to the largest other logit. ``energy`` is
log Σ exp z, and ``own`` is the score that the model returns; both are the same for all classes.
"""


def class_scores(name: str, output: Output) -> Tensor:
    """Return the score of each class as if it were predicted, (n, classes).

    Raises:
        BadParameter: for an unknown name, or ``own`` of a model without a score.

    Example:
        >>> class_scores("margin", Output(torch.tensor([[1.0, 4.0, 2.0]]))).tolist()
        [[-3.0, 2.0, -2.0]]
    """
    if name not in SCORES:
        raise BadParameter("unknown score", got=name, expected="one of " + ", ".join(SCORES))
    largest = torch.finfo(output.logits.dtype).max  # a finite score, if infinitely certain
    return SCORES[name](output).clamp(-largest, largest)


@dataclass(frozen=True)
class ScoreQuantiles:
    """Quantiles of a model's scores on the correctly classified training inputs of each class.

    Args:
        values: quantiles (classes, percentiles of PERCENTILES) by score.
        facts: provenance of the fit: ``model`` (digest), ``dataset``, ``dataset_digest``, ``first``, ``last``,
            ``correct``, and ``invalid`` if inputs were left out.
    """

    values: Mapping[str, Tensor]
    facts: Mapping[str, str]

    def thresholds(self, score: str, percentile: float) -> Tensor:
        """Return the threshold of each class, (classes,).

        Args:
            score: one of SCORES.
            percentile: 0 to 20, percentage of each class's training inputs that are rejected.

        Raises:
            BadParameter: for a score that was not fitted, or a percentile that is not stored.
        """
        if score not in self.values:
            expected = "one of " + ", ".join(sorted(self.values))
            raise BadParameter("no thresholds for this score", got=score, expected=expected)
        if not 0 <= percentile <= PERCENTILES[-1]:
            expected = f"0 to {PERCENTILES[-1]:g}"
            raise BadParameter("percentile out of range", got=percentile, expected=expected)
        below = min(int(2 * percentile), len(PERCENTILES) - 2)
        low, high = self.values[score][:, below], self.values[score][:, below + 1]
        return torch.lerp(low, high, 2 * percentile - below)

    def to_bytes(self) -> bytes:
        """Return the content of the file that ``load`` reads."""
        values = {name: value.double().contiguous() for name, value in self.values.items()}
        return save(values, metadata={"facts": json.dumps(dict(self.facts), sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> "ScoreQuantiles":
        """Read a file of ``to_bytes``.

        Raises:
            BadModel: if the file is missing or damaged.
        """
        if not path.is_file():
            raise BadModel(
                "rejection thresholds not found",
                got=str(path),
                remedy="fit them: invbench calibrate MODEL --out FILE, then thresholds=FILE",
            )
        try:
            with safe_open(path, "pt") as file:
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                facts = json.loads((file.metadata() or {})["facts"])
        except (OSError, SafetensorError, LookupError, ValueError, RecursionError) as error:
            raise BadModel(f"{path} holds no thresholds", remedy=str(error)) from error
        if not isinstance(facts, dict) or not all(isinstance(v, str) for v in facts.values()):
            raise BadModel(f"{path} holds no thresholds", got=facts, expected="facts in words")
        if any(not value.is_floating_point() or value.isnan().any() for value in values.values()):
            raise BadModel(f"{path} holds no thresholds", expected="numbers")
        if any(value.ndim != 2 or value.shape[1] != len(PERCENTILES) for value in values.values()):
            raise BadModel(
                f"{path} holds no thresholds", expected=f"{len(PERCENTILES)} percentiles"
            )
        return cls(values, facts)


def fit_quantiles(
    output: Output, labels: Tensor, facts: Mapping[str, str], *, classes: int
) -> ScoreQuantiles:
    """Return the quantiles of each class over the correctly classified inputs.

    Inputs whose output or score is not a number are left out; the fact ``invalid`` is their number, if there are any.

    Args:
        output: the model's output on training inputs.
        labels: (n,) classes of the inputs.
        facts: provenance, as for ``ScoreQuantiles``.
        classes: number of classes.

    Raises:
        BadModel: if too few inputs of a class are classified correctly.
    """
    names = [name for name in SCORES if name != "own" or output.score is not None]
    scores = {
        name: class_scores(name, output).gather(1, labels[:, None])[:, 0].double() for name in names
    }
    usable = output.valid & ~torch.stack([*scores.values()]).isnan().any(0)
    right = (output.decision == labels) & usable
    counts = torch.bincount(labels[right], minlength=classes)
    if int(counts.min()) < MIN_CORRECT:
        raise BadModel(
            f"too few training inputs of class {int(counts.argmin())} are classified correctly",
            got=int(counts.min()),
            expected=f">= {MIN_CORRECT}",
            remedy="calibrate on more inputs, as with a wider --ids",
        )
    grid = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    values = {
        name: torch.stack(
            [each[right & (labels == label)].quantile(grid) for label in range(classes)]
        )
        for name, each in scores.items()
    }
    found = {**facts, "correct": f"{int(right.sum())} of {len(labels)}"}
    return ScoreQuantiles(
        values, found if usable.all() else {**found, "invalid": str(int((~usable).sum()))}
    )


class RejectingClassifier(nn.Module):
    """A classifier with a reject option.

    Args:
        base: the classifier without reject option.
        score: one of SCORES.
        thresholds: (classes,); an input is accepted if its score is at least the threshold of the predicted class.
    """

    def __init__(self, base: Classifier, score: str, thresholds: Tensor) -> None:
        super().__init__()
        if thresholds.shape != (base.num_classes,):
            raise BadModel(
                "wrong number of thresholds", got=len(thresholds), expected=str(base.num_classes)
            )
        self.base, self.score = base, score
        self.num_classes, self.bounds, self.dtype = base.num_classes, base.bounds, base.dtype
        self.register_buffer("thresholds", thresholds.to(base.dtype))
        self.training = False

    def forward(self, images: Tensor) -> Output:
        return self.with_acceptance(self.base(images))

    def with_acceptance(self, output: Output) -> Output:
        """Return an output of the base classifier with score, acceptance and clearance."""
        scores, decision = class_scores(self.score, output), output.decision[:, None]
        clearance = scores - self.get_buffer("thresholds")
        accepted = clearance.gather(1, decision)[:, 0] >= 0
        return Output(output.logits, scores.gather(1, decision)[:, 0], accepted, clearance)


class RejectingStochasticClassifier(RejectingClassifier):
    """A stochastic classifier with a reject option, which depends on the mean over the draws."""

    @property
    def draws(self) -> int:
        return cast("Stochastic", self.base).draws

    @property
    def fixed_noise(self) -> bool:
        return cast("Stochastic", self.base).fixed_noise

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return cast("Stochastic", self.base).latent_shape

    def respond(self, images: Tensor, latent: Tensor) -> Output:
        return self.with_acceptance(cast("Stochastic", self.base).respond(images, latent))


def reject(base: Classifier, score: str, thresholds: Tensor) -> RejectingClassifier:
    """Return the classifier with a reject option; other capabilities, such as inversion, are not available on it."""
    kind = RejectingStochasticClassifier if isinstance(base, Stochastic) else RejectingClassifier
    return kind(base, score, thresholds)
