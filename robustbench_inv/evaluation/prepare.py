"""The copy of a model that attacks search on: frozen, in evaluation mode, its convolutions rearranged to be faster."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustbench_inv.evaluation.convolution import FoldedSlope
from robustbench_inv.models.protocol import Classifier, device_of
from robustbench_inv.tensors import ALIKE, disagreement, slopes_of

__all__ = [
    "Change",
    "answers_alike",
    "fold_batch_norm",
    "fold_slopes",
    "frozen_copy",
    "order_channels_last",
    "prepare",
    "rearrange",
]

Change = Callable[[Classifier], bool]
"""Rearranges a frozen copy in place, and tells whether there was something to rearrange."""

TOLERANCE = 1e-4
"""Largest difference of a logit that a rearrangement may make on the probe."""

SLOPES = 0.05
"""Largest difference of the slopes on the probe, relative to their length."""


def prepare(classifier: Classifier, probe: Tensor, *, fold: bool) -> Classifier:
    """Return a copy to search on; the classifier itself where it cannot be copied.

    Verdicts are taken on the original, so that a copy can cost an attack its strength and never make a
    number wrong. What rearranges the arithmetic moves logits by rounding: it is not for attacks that end on the
    decision boundary. Each rearrangement is made where a model allows it and answers the probe as before; what each gains is in
    docs/benchmarks.md.

    Args:
        classifier: the model; it is left as it is.
        probe: (n, …) inputs on which the rearranged copy must agree.
        fold: rearrange: fold batch norm into the convolution before it, where a ``Sequential`` holds both; on a
            CPU store weights of convolutions with the channels last, and take the slope of strided
            convolutions of few channels by ``FoldedSlope``.
    """
    plain = frozen_copy(classifier)
    if plain is None:
        return classifier
    return rearrange(plain, probe, _changes(plain)) if fold else plain


@torch.no_grad()
def answers_alike(classifier: Classifier, probe: Tensor) -> bool:
    """Does a classifier give the same answer twice? One that draws numbers without saying so does not (check C11).

    Args:
        classifier: asked as it is; one that declares its draws answers without them.
        probe: (n, …) inputs.
    """
    first, second = classifier(probe.clone()).logits, classifier(probe.clone()).logits
    return disagreement(first, second) <= ALIKE


def rearrange(plain: Classifier, probe: Tensor, changes: Sequence[Change]) -> Classifier:
    """Return a copy with those of the changes, one upon the other, that leave its answers to a probe as they are.

    All are tried at once, and each by itself only where that fails: a copy of a large network takes its time.

    Args:
        plain: a frozen copy, itself left as it is.
        probe: (n, …) inputs.
        changes: what to try.
    """
    together = _changed(plain, probe, changes)
    if together is not None:
        return together
    best = plain
    for change in changes:
        best = _changed(best, probe, [change]) or best
    return best


def frozen_copy(classifier: Classifier) -> Classifier | None:
    """Return a copy in evaluation mode whose weights ask for no gradient; None if there can be none."""
    if not isinstance(classifier, nn.Module):
        return None
    try:
        copy = deepcopy(classifier)
    except Exception:  # a user's module may hold anything: a file, a lock, a tensor with a graph
        return None
    copy.eval().requires_grad_(False)
    return copy


def fold_batch_norm(module: Classifier) -> bool:
    """Fold batch norm into the convolution before it, where a ``Sequential`` holds both."""
    folded = [_fold_sequence(part) for part in _parts(module) if isinstance(part, nn.Sequential)]
    return sum(folded) > 0


def order_channels_last(module: Classifier) -> bool:
    """Store weights of convolutions as the CPU's kernels read them; the maps follow."""
    layers = [part for part in _parts(module) if type(part) is nn.Conv2d]
    for layer in layers:
        # ``contiguous`` would leave the weight of a single channel as it is, and so the order of its maps
        layer.weight.data = layer.weight.detach().to(memory_format=torch.channels_last)
    return bool(layers)


def fold_slopes(module: Classifier) -> bool:
    """Take the slopes of strided convolutions of few channels by ``FoldedSlope``."""
    places = [
        (parent, name, layer)
        for parent in _parts(module)
        for name, layer in parent.named_children()
        if FoldedSlope.suits(layer) and not _hooked(layer)
    ]
    for parent, name, layer in places:
        assert isinstance(layer, nn.Conv2d)
        setattr(parent, name, FoldedSlope(layer))
    return bool(places)


def _changes(classifier: Classifier) -> tuple[Change, ...]:
    on_cpu = device_of(classifier).type == "cpu"  # elsewhere the last two are not measured
    every = (fold_batch_norm, order_channels_last, fold_slopes)
    return every if on_cpu else every[:1]


def _changed(plain: Classifier, probe: Tensor, changes: Sequence[Change]) -> Classifier | None:
    """Return a copy with all of the changes; None if there was nothing to change, or the copy answers otherwise."""
    copy = frozen_copy(plain)
    if copy is None:
        return None
    changed = [change(copy) for change in changes]
    return copy if any(changed) and _agree(plain, copy, probe) else None


def _fold_sequence(sequence: nn.Sequential) -> int:
    pairs = [
        pair for pair in pairwise(sequence.named_children()) if _foldable(pair[0][1], pair[1][1])
    ]
    for (first, conv), (second, norm) in pairs:
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        setattr(sequence, first, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
        setattr(sequence, second, nn.Identity())
    return len(pairs)


def _foldable(first: nn.Module, second: nn.Module) -> bool:
    if type(first) is not nn.Conv2d or type(second) is not nn.BatchNorm2d:
        return False
    return second.running_mean is not None and not _hooked(first) and not _hooked(second)


def _parts(module: Classifier) -> Iterator[nn.Module]:
    assert isinstance(module, nn.Module)
    yield from module.modules()


def _hooked(layer: nn.Module) -> bool:
    after = layer._forward_hooks or layer._backward_hooks
    return bool(after or layer._forward_pre_hooks or layer._backward_pre_hooks)


def _agree(plain: Classifier, changed: Classifier, probe: Tensor) -> bool:
    try:
        answer, slopes = _asked(changed, probe)
        expected, wanted = _asked(plain, probe)
    except Exception:  # a user's network may ask its layers for anything: contiguous maps, a weight
        return False
    # a unit that rounding switches moves a slope, a wrong derivative all of them
    same = (slopes - wanted).norm() <= SLOPES * wanted.norm()
    return bool(((expected - answer).abs() < TOLERANCE).all() & same)


def _asked(classifier: Classifier, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of a probe, and the slopes of the largest of each."""
    with torch.enable_grad():
        images = probe.detach().clone().requires_grad_()
        logits = classifier(images).logits
        return logits.detach(), slopes_of(logits.amax(1), images)
