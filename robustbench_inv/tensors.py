"""Per-sample tensor functions, and the output of a classifier."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.errors import BadParameter, text_of

__all__ = [
    "HALF_PRECISION",
    "NORMS",
    "SAME_ANSWER_TOLERANCE",
    "Output",
    "acceptance_margin",
    "accepted_margin",
    "blocks",
    "broadcast",
    "check_device",
    "class_margins",
    "finite_size",
    "flatten",
    "graph_dtypes",
    "image_shape",
    "is_out_of_memory",
    "logit_change",
    "margin",
    "mask_true_class",
    "norm",
    "per_sample_gradient",
    "rank_rejected",
    "rejected_rank",
    "relative_difference",
    "subtract",
    "top_other_classes",
    "where_rows",
]

NORMS = ("l0", "l1", "l2", "linf")

HALF_PRECISION = (torch.float16, torch.bfloat16)
"""Types of 16 bits: a model may compute in them, images and outputs are float32, so that rounding leaves no budget."""

SAME_ANSWER_TOLERANCE = 1e-4
"""Relative difference up to which outputs for the same inputs count as equal, due to rounding (check C11)."""

SMALLEST_MARGIN, LARGEST_SCORE = 1e-24, 1e12
"""Unit of the margins that rank rejected inputs, and the largest score that they tell apart."""


@dataclass(frozen=True)
class Output:
    """The output of a classifier for a batch; numbers of 16 bits become float32.

    Args:
        logits: (n, classes) unnormalized class scores.
        score: (n,) higher means more in-distribution, or None.
        accepted: (n,) booleans, or None for a model without a reject option.
        clearance: (n, classes) score of each class minus its threshold, if it were the prediction; maximized by
            detector-aware attacks. None if the model does not reveal it, or has no reject option.
    """

    logits: Tensor
    score: Tensor | None = None
    accepted: Tensor | None = None
    clearance: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("logits", "score", "clearance"):
            if getattr(getattr(self, name), "dtype", None) in HALF_PRECISION:
                object.__setattr__(self, name, getattr(self, name).float())

    @property
    def decision(self) -> Tensor:
        """(n,) int64: the predicted class, that of the largest logit, even if the input is rejected."""
        return self.logits.argmax(1)

    def predicts(self, classes: Tensor) -> Tensor:
        """Return (n,): are these classes (n,) predicted, and the inputs accepted? A rejected input has no prediction."""
        same = self.decision == classes
        return same if self.accepted is None else same & self.accepted

    @property
    def valid(self) -> Tensor:
        """(n,): is no logit NaN, some logit above −inf, and the score, if any, finite?

        A logit of −inf rules its class out. Where every class is ruled out, there is no prediction.
        """
        predicted = self.logits.amax(1) > -torch.inf  # the maximum of a NaN and a number is NaN
        return predicted if self.score is None else predicted & self.score.isfinite()

    def __getitem__(self, rows: Tensor) -> "Output":
        """Return the output of a subset of the batch."""
        return Output(
            self.logits[rows],
            None if self.score is None else self.score[rows],
            None if self.accepted is None else self.accepted[rows],
            None if self.clearance is None else self.clearance[rows],
        )

    def copied(self) -> "Output":
        """Return the same output with copies of tensors without a graph: a model may write into them again."""
        tensors = (self.logits, self.score, self.accepted, self.clearance)
        return Output(*(_copied(each) for each in tensors))  # type: ignore[arg-type]

    def detach(self) -> "Output":
        """Return the same output without its graph."""
        score = None if self.score is None else self.score.detach()
        clearance = None if self.clearance is None else self.clearance.detach()
        return Output(self.logits.detach(), score, self.accepted, clearance)


def check_device(name: object) -> torch.device:
    """Return a device that can compute.

    Args:
        name: as torch names it: cpu, cuda, cuda:1, mps.

    Raises:
        BadParameter: for an unknown device, or one that this machine does not have.
    """
    reason = "cpu, cuda, cuda:1 or mps"
    try:
        if isinstance(name, str) and name.strip() == name and name != "meta":
            device = torch.device(name)
            torch.zeros(1, device=device)
            if device.type != "cpu" or device.index is None:
                return device
    except Exception as error:  # an unavailable device raises errors of many kinds
        reason = f"{reason}; torch reports: {str(error).splitlines()[0][:200]}"
    raise BadParameter("unusable device", got=name, expected=reason)


def _copied(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.requires_grad else tensor.clone()


def blocks(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return consecutive parts of a tensor along its first dimension, each of at most ``size`` rows.

    Example:
        >>> [block.tolist() for block in blocks(torch.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    parts: tuple[Tensor, ...] = rows.split(size)  # type: ignore[no-untyped-call]
    return parts


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return channels, height and width of a sample's shape: all dimensions before the last two are channels.

    Example:
        >>> image_shape((3, 16, 8, 8)), image_shape((8, 8)), image_shape((8,)), image_shape(())
        ((48, 8, 8), (1, 8, 8), (1, 1, 8), (1, 1, 1))
    """
    *channels, height, width = (1, 1, *shape)
    return math.prod(channels), height, width


def flatten(images: Tensor) -> Tensor:
    """Return (n, d) from (n, …); n may be 0."""
    return images.reshape(images.shape[0], math.prod(images.shape[1:]))


def broadcast(values: Tensor, images: Tensor) -> Tensor:
    """Return per-sample values (n,) shaped (n, 1, …) so that they multiply images (n, …)."""
    return values.reshape(-1, *[1] * (images.ndim - 1))


def norm(perturbation: Tensor, name: str) -> Tensor:
    """Return the norm of each sample's perturbation over all its elements.

    Args:
        perturbation: (n, …).
        name: one of ``l0`` (number of non-zero elements), ``l1``, ``l2``, ``linf``.

    Returns:
        (n,), in the dtype of the perturbation.
    """
    flat = flatten(perturbation)
    if name == "l0":
        return (flat != 0).sum(1).to(flat.dtype)
    if name == "linf":  # twelve times as fast as vector_norm
        return flat.abs().amax(1)
    result: Tensor = torch.linalg.vector_norm(flat, ord={"l1": 1.0, "l2": 2.0}[name], dim=1)
    return result


def where_rows(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return (n, …) with the rows of ``new`` where the mask (n,) is true, else those of ``old``."""
    return torch.where(broadcast(mask, old), new, old)


def subtract(first: Tensor, second: Tensor) -> Tensor:
    """Return first − second, but 0 where both are the same infinity, such as the logits of two ruled-out classes."""
    difference = first - second
    undefined = difference.isnan()
    if not undefined.any():
        return difference
    return difference.masked_fill(undefined & (first == second), 0)


def finite_size(values: Tensor) -> float:
    """Return the largest absolute value among the finite elements, 0 if there are none."""
    return float(values.masked_fill(~values.isfinite(), 0).abs().max())


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{j≠y} z_j − z_y for each sample, (n,): positive when misclassified.

    The true class is masked with −inf, so that all-negative and huge logits give the right result (check C9). A class
    worth −inf never wins: the margin is −inf if all other classes are ruled out, and inf if only the true class is.
    """
    true = logits.gather(1, labels[:, None])
    return subtract(mask_true_class(logits, labels).max(1).values, true[:, 0])


def mask_true_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits (n, classes) with −inf for the true class of each sample (check C9)."""
    return logits.scatter(1, labels[:, None], float("-inf"))


def top_other_classes(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the other classes of the largest logits, (n, at most count), in descending order.

    A class worth −inf is left out: where a sample has fewer other classes than the rest of the batch, its best one is
    repeated, and any other class stands in for it if all are ruled out.

    Example:
        >>> top_other_classes(torch.tensor([[3.0, -torch.inf, 1.0, 2.0]]), torch.tensor([0]), 3).tolist()
        [[3, 2]]
    """
    others = mask_true_class(logits, labels)
    most = int((others > -torch.inf).sum(1).amax()) if len(labels) else 1
    # the same number in every batch: which of equal logits comes first depends on it
    found = others.topk(max(min(count, others.shape[1]), 1), dim=1)
    values, classes = (each[:, : max(min(count, most), 1)] for each in found)
    possible, best = values > -torch.inf, classes[:, :1]
    best = best.where(possible[:, :1], ((labels + 1) % logits.shape[1])[:, None])
    return classes.where(possible, best)


def class_margins(logits: Tensor) -> Tensor:
    """Return each logit minus the largest other logit, (n, classes): positive for the prediction alone.

    Example:
        >>> class_margins(torch.tensor([[1.0, 4.0, 2.0]])).tolist()
        [[-3.0, 2.0, -2.0]]
    """
    best = logits.topk(2).values
    first, second = best[:, :1], best[:, 1:]
    lead = subtract(first, second)
    return subtract(logits, first).scatter(1, logits.argmax(1, keepdim=True), lead)


def accepted_margin(output: Output, labels: Tensor) -> Tensor:
    """Return max_{j≠y} min(margin of j, clearance of j), (n,): positive if the prediction is wrong and accepted.

    Without clearance, wrong inputs that the model rejects are ranked by their score (``rank_rejected``).
    """
    if output.clearance is None:
        return rank_rejected(margin(output.logits, labels), output)
    limits = torch.minimum(class_margins(output.logits), output.clearance)
    return limits.scatter(1, labels[:, None], float("-inf")).max(1).values


def rank_rejected(margins: Tensor, output: Output) -> Tensor:
    """Return margins (n,), replaced by ``rejected_rank`` where only the rejection of the input remains to be overcome.

    These are margins of at least 0 of rejected inputs. A rejected input that is wrong is then better than any input that is
    not, and never a success.

    Args:
        margins: (n,) of the prediction, whether or not the model accepts it.
        output: of a model without clearance.
    """
    if output.accepted is None:
        return margins
    rank = rejected_rank(output).to(margins)
    return rank.where(~output.accepted & (margins >= 0), margins)


def rejected_rank(output: Output) -> Tensor:
    """Return r(s) / 10²⁴ for each sample's score s, (n,), with r(s) = s − 1 for s ≤ 0 and −1 / (1 + s) for s > 0.

    It increases strictly, stays below 0 and is far smaller than differences of logits. It is 0 if the model does not reveal
    its score. A score that is not a number counts as the lowest.

    Example:
        >>> (1e24 * rejected_rank(Output(torch.zeros(3, 2), torch.tensor([-3.0, 0.0, 3.0])))).tolist()
        [-4.0, -1.0, -0.25]
    """
    if output.score is None:
        return torch.zeros_like(output.logits[:, 0])
    return SMALLEST_MARGIN * _negative(output.score.detach())


def acceptance_margin(output: Output) -> Tensor:
    """Return max_j min(margin of j, clearance of j), (n,): positive if the input is accepted.

    Without clearance, it is the margin of the prediction where the model accepts. Where it rejects, it is a negative
    number that grows with the score, and minus the margin if the model does not reveal its score.
    """
    margins = class_margins(output.logits)
    if output.clearance is not None:
        return torch.minimum(margins, output.clearance).max(1).values
    largest = margins.max(1).values
    if output.accepted is None:
        return largest
    rejected = -largest if output.score is None else _negative(output.score.detach()).to(largest)
    return rejected.where(~output.accepted & ~largest.isnan(), largest)


def _negative(score: Tensor) -> Tensor:
    """Return numbers below 0 that increase strictly with the score, (n,)."""
    score = score.nan_to_num(nan=-LARGEST_SCORE).clamp(-LARGEST_SCORE, LARGEST_SCORE)
    return score.clamp_max(0) - 1 / (1 + score.clamp_min(0))


def logit_change(after: Tensor, before: Tensor) -> Tensor:
    """Return the largest change of a logit of each sample, (n,): 0 for a class that stays ruled out (−inf), or NaN."""
    same = after.isnan() & before.isnan()
    return subtract(after, before).abs().masked_fill(same, 0).amax(1)


def relative_difference(logits: Tensor, again: Tensor) -> float:
    """Return the largest difference between two logits for the same inputs, relative to the largest finite logit.

    Example:
        >>> relative_difference(torch.tensor([[0.0, -4.0]]), torch.tensor([[0.0, -3.0]]))
        0.25
    """
    apart, size = float(logit_change(again, logits).max()), finite_size(logits)
    if apart == 0:
        return 0.0
    return apart / size if size else math.inf


def per_sample_gradient(values: Tensor, images: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Return the gradient of each sample's value, (n, …), zero if the values do not depend on the images (check C6).

    Args:
        values: (n,), each a function of its own image alone.
        images: (n, …) that require a gradient.
        retain_graph: keep the graph for another call.
    """
    if not values.requires_grad:
        return torch.zeros_like(images)
    (gradients,) = torch.autograd.grad(
        values.sum(), images, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )
    return gradients


def graph_dtypes(logits: Tensor) -> set[torch.dtype]:
    """Return the types of the tensors through which a gradient of some logits passes, by their graph."""
    seen: set[object] = set()
    found: set[torch.dtype] = set()
    remaining = [logits.grad_fn]
    while remaining:
        node = remaining.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # an attribute that is not documented, but in every version since 2.1; without it nothing is found
        found |= {part.dtype for part in getattr(node, "_input_metadata", ())}
        remaining += [before for before, _ in node.next_functions]
    return found


OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
)
"""Parts of errors about missing memory that have no type of their own: of CUDA, MPS, cuDNN, the CPU's allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is about missing memory, of a device or of the CPU's allocator."""
    text = text_of(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(each in text for each in OUT_OF_MEMORY)
    )
