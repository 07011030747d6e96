"""The copy of a model that attacks search on: frozen, in evaluation mode, batch norm folded into convolutions."""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustbench_inv.models.protocol import Classifier

__all__ = ["device_of", "prepare"]

TOLERANCE = 1e-4
"""Largest difference of a logit that folding may make on the probe."""


def device_of(classifier: Classifier) -> torch.device:
    """Return where a classifier computes: the place of its first weight, the CPU without weights."""
    weights = classifier.parameters() if isinstance(classifier, nn.Module) else ()
    return next((weight.device for weight in weights), torch.device("cpu"))


def prepare(classifier: Classifier, probe: Tensor, *, fold: bool) -> Classifier:
    """Return a copy to search on; the classifier itself where it cannot be copied.

    Verdicts are taken on the original, so that a copy can cost an attack its strength and never make a
    number wrong. Folding moves logits by rounding: it is not for attacks that end on the decision boundary.

    Args:
        classifier: the model; it is left as it is.
        probe: (n, …) inputs on which the folded copy must agree.
        fold: fold batch norm into the convolution before it, where a ``Sequential`` holds both.
    """
    plain = _frozen_copy(classifier)
    if plain is None:
        return classifier
    folded = _frozen_copy(plain) if fold else None
    if folded is None or not _fold(folded):
        return plain
    return folded if _agree(plain, folded, probe) else plain


def _frozen_copy(classifier: Classifier) -> Classifier | None:
    if not isinstance(classifier, nn.Module):
        return None
    try:
        copy = deepcopy(classifier)
    except Exception:  # a user's module may hold anything: a file, a lock, a tensor with a graph
        return None
    copy.eval().requires_grad_(False)
    return copy


def _fold(module: Classifier) -> int:
    """Fold in place; return how many pairs were folded."""
    assert isinstance(module, nn.Module)
    sequences = [part for part in module.modules() if isinstance(part, nn.Sequential)]
    return sum(_fold_sequence(sequence) for sequence in sequences)


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
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (first, second))
    return second.running_mean is not None and not hooked


@torch.no_grad()
def _agree(plain: Classifier, folded: Classifier, probe: Tensor) -> bool:
    difference = plain(probe).logits - folded(probe).logits
    return bool((difference.abs() < TOLERANCE).all())
