"""The copy of a model that attacks search on: frozen, in evaluation mode, its convolutions rearranged to be faster."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, fold
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustbench_inv.models.protocol import Classifier, device_of
from robustbench_inv.tensors import SAME_ANSWER_TOLERANCE, per_sample_gradient, relative_difference

__all__ = [
    "FoldedGradientConv",
    "Rearrangement",
    "fold_batch_norm",
    "fold_gradients",
    "frozen_copy",
    "is_deterministic",
    "order_channels_last",
    "prepare",
    "rearrange",
]


MAX_CHANNELS = 4
"""An image's. Of the CNN's two convolutions of 4×4 and stride 2, on 250 digits, the slope of the first, of one channel,
takes 2.5 ms in this form and 10 in torch's; of the second, of 32 channels, 27 and 7."""

MAX_KERNEL_STRIDES = 2
"""In strides: an element then lies in at most 2×2 patches. At 7×7 and stride 2, on three channels of 224×224, both passes
take 193 ms in this form and 113 in torch's; at 16×16 and stride 16 it is 43 and 138, at 3×3 and stride 2 on one of 28×28 8.5 and 13.9."""


class FoldedGradientConv(nn.Module):
    """A convolution of frozen weights, whose answer is torch's to the bit and whose slope is the same up to rounding.

    ∂/∂x = fold(Wᵀ g): what each output's slope g means for its patch of the input, summed over the patches.

    Args:
        convolution: one that ``supports``.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    @staticmethod
    def supports(module: nn.Module) -> bool:
        """Is it a plain convolution that gains by this?"""
        if type(module) is not nn.Conv2d or isinstance(module.padding, str):
            return False
        plain = module.groups == 1 and module.padding_mode == "zeros"
        sizes = zip(module.kernel_size, module.stride, strict=True)
        narrow = all(stride > 1 and size <= MAX_KERNEL_STRIDES * stride for size, stride in sizes)
        return plain and narrow and module.in_channels <= MAX_CHANNELS

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, c, h, w) as the convolution does."""
        answer: Tensor = _Convolve.apply(images, self.convolution)  # type: ignore[no-untyped-call]
        return answer


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, layer: nn.Conv2d) -> Tensor:  # noqa: ANN401
        ctx.layer, ctx.size = layer, images.shape[2:]
        return conv2d(images, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        layer = ctx.layer
        each = gradients[0].permute(0, 2, 3, 1).flatten(1, 2) @ layer.weight.flatten(1)
        return fold(
            each.mT, ctx.size, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        ), None


Rearrangement = Callable[[Classifier], bool]
"""Rearranges a frozen copy in place, and tells whether there was something to rearrange."""

LOGIT_TOLERANCE = 1e-4
"""Largest difference of a logit that a rearrangement may make on the probe."""

GRADIENT_TOLERANCE = 0.05
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
            convolutions of few channels by ``FoldedGradientConv``.
    """
    plain = frozen_copy(classifier)
    if plain is None:
        return classifier
    return rearrange(plain, probe, _rearrangements(plain)) if fold else plain


@torch.no_grad()
def is_deterministic(classifier: Classifier, probe: Tensor) -> bool:
    """Does a classifier give the same answer twice? One that draws numbers without saying so does not (check C11).

    Args:
        classifier: asked as it is; one that declares its draws answers without them.
        probe: (n, …) inputs.
    """
    first, second = classifier(probe.clone()).logits, classifier(probe.clone()).logits
    return relative_difference(first, second) <= SAME_ANSWER_TOLERANCE


def rearrange(plain: Classifier, probe: Tensor, changes: Sequence[Rearrangement]) -> Classifier:
    """Return a copy with those of the changes, one upon the other, that leave its answers to a probe as they are.

    All are tried at once, and each by itself only where that fails: a copy of a large network takes its time.

    Args:
        plain: a frozen copy, itself left as it is.
        probe: (n, …) inputs.
        changes: what to try.
    """
    together = _rearranged(plain, probe, changes)
    if together is not None:
        return together
    best = plain
    for change in changes:
        best = _rearranged(best, probe, [change]) or best
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
    folded = [
        _fold_sequence(part) for part in _submodules(module) if isinstance(part, nn.Sequential)
    ]
    return sum(folded) > 0


def order_channels_last(module: Classifier) -> bool:
    """Store weights of convolutions as the CPU's kernels read them; the maps follow."""
    layers = [part for part in _submodules(module) if type(part) is nn.Conv2d]
    for layer in layers:
        # ``contiguous`` would leave the weight of a single channel as it is, and so the order of its maps
        layer.weight.data = layer.weight.detach().to(memory_format=torch.channels_last)
    return bool(layers)


def fold_gradients(module: Classifier) -> bool:
    """Take the slopes of strided convolutions of few channels by ``FoldedGradientConv``."""
    places = [
        (parent, name, layer)
        for parent in _submodules(module)
        for name, layer in parent.named_children()
        if FoldedGradientConv.supports(layer) and not _has_hooks(layer)
    ]
    for parent, name, layer in places:
        assert isinstance(layer, nn.Conv2d)
        setattr(parent, name, FoldedGradientConv(layer))
    return bool(places)


def _rearrangements(classifier: Classifier) -> tuple[Rearrangement, ...]:
    on_cpu = device_of(classifier).type == "cpu"  # elsewhere the last two are not measured
    every = (fold_batch_norm, order_channels_last, fold_gradients)
    return every if on_cpu else every[:1]


def _rearranged(
    plain: Classifier, probe: Tensor, changes: Sequence[Rearrangement]
) -> Classifier | None:
    """Return a copy with all of the changes; None if there was nothing to change, or the copy answers otherwise."""
    copy = frozen_copy(plain)
    if copy is None:
        return None
    changed = [change(copy) for change in changes]
    return copy if any(changed) and _same_outputs(plain, copy, probe) else None


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
    return second.running_mean is not None and not _has_hooks(first) and not _has_hooks(second)


def _submodules(module: Classifier) -> Iterator[nn.Module]:
    assert isinstance(module, nn.Module)
    yield from module.modules()


def _has_hooks(layer: nn.Module) -> bool:
    after = layer._forward_hooks or layer._backward_hooks
    return bool(after or layer._forward_pre_hooks or layer._backward_pre_hooks)


def _same_outputs(plain: Classifier, changed: Classifier, probe: Tensor) -> bool:
    try:
        answer, gradients = _logits_and_gradients(changed, probe)
        expected, wanted = _logits_and_gradients(plain, probe)
    except Exception:  # a user's network may ask its layers for anything: contiguous maps, a weight
        return False
    # a unit that rounding switches moves a slope, a wrong derivative all of them
    same = (gradients - wanted).norm() <= GRADIENT_TOLERANCE * wanted.norm()
    return bool(((expected - answer).abs() < LOGIT_TOLERANCE).all() & same)


def _logits_and_gradients(classifier: Classifier, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of a probe, and the slopes of the largest of each."""
    with torch.enable_grad():
        images = probe.detach().clone().requires_grad_()
        logits = classifier(images).logits
        return logits.detach(), per_sample_gradient(logits.amax(1), images)
