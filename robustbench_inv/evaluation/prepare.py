"""Prepares the copy of a model that attacks query: frozen, in evaluation mode, with faster convolutions."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, fold
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustbench_inv.foreign import foreign_call
from robustbench_inv.isolation import isolate
from robustbench_inv.models.protocol import Classifier, device_of
from robustbench_inv.tensors import (
    SAME_ANSWER_TOLERANCE,
    is_out_of_memory,
    logit_change,
    per_sample_gradient,
    relative_difference,
)
from robustbench_inv.torch_state import call_keeping_modes, set_evaluation_mode

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
    "usable_probe",
]


MAX_CHANNELS = 4
"""Largest number of input channels for which the folded gradient is used.

The CNN has two convolutions of 4×4 and stride 2. On 250 digits the gradient of the first, of one channel, takes
2.5 ms folded and 10 ms in torch; that of the second, of 32 channels, takes 27 ms folded and 7 ms in torch.
"""

MAX_KERNEL_STRIDES = 2
"""Largest kernel size in strides: an element then lies in at most 2×2 patches.

Both passes take, folded and in torch: 193 and 113 ms at 7×7 and stride 2 on three channels of 224×224; 43 and 138 ms
at 16×16 and stride 16; 8.5 and 13.9 ms at 3×3 and stride 2 on one channel of 28×28.
"""


class FoldedGradientConv(nn.Module):
    """A convolution of frozen weights with torch's output to the bit, and torch's gradient up to rounding.

    ∂/∂x = fold(Wᵀ g): the gradient g of each output, mapped to its patch of the input and summed over the patches.

    Args:
        convolution: a convolution for which ``supports`` returns True.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    @staticmethod
    def supports(module: nn.Module) -> bool:
        """Return whether a module is a plain convolution whose folded gradient is faster."""
        if type(module) is not nn.Conv2d or isinstance(module.padding, str):
            return False
        plain = module.groups == 1 and module.padding_mode == "zeros"
        sizes = zip(module.kernel_size, module.stride, strict=True)
        narrow = all(stride > 1 and size <= MAX_KERNEL_STRIDES * stride for size, stride in sizes)
        return plain and narrow and module.in_channels <= MAX_CHANNELS

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, c, h, w) as the convolution does."""
        output: Tensor = _Convolve.apply(images, self.convolution)  # type: ignore[no-untyped-call]
        return output


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
"""Rearranges a frozen copy in place, and returns whether it changed anything."""

LOGIT_TOLERANCE = 1e-4
"""Largest difference of a logit on the probe that a rearrangement may cause."""

GRADIENT_TOLERANCE = 0.05
"""Largest difference of the gradients on the probe, relative to their norm."""


def prepare(classifier: Classifier, probe: Tensor, *, fold: bool) -> Classifier:
    """Return a copy for attacks to query; the classifier itself if it cannot be copied.

    The judge uses the original model, so that a copy can weaken an attack and never make a number wrong.
    Rearranged arithmetic changes logits by rounding, which attacks that end on the decision boundary do not tolerate.
    Each rearrangement is kept if the copy agrees on the probe; docs/benchmarks.md lists the gains.

    Args:
        classifier: the model, which stays unchanged.
        probe: (n, …) inputs on which the rearranged copy must agree.
        fold: rearrange the copy: fold batch norm into the convolution before it in a ``Sequential``. On a CPU, also
            store weights of convolutions with channels last, and use ``FoldedGradientConv`` for strided
            convolutions of few channels.
    """
    plain = frozen_copy(classifier)
    if plain is None or not _is_faithful(plain, classifier, probe):
        return classifier
    copy = rearrange(plain, probe, _rearrangements(plain)) if fold else plain
    set_evaluation_mode(
        copy
    )  # new parts are in training mode, which every query would change and restore
    return copy


@torch.no_grad()
def is_deterministic(classifier: Classifier, probe: Tensor) -> bool:
    """Return whether a classifier returns the same output twice; undeclared random draws prevent it (check C11).

    Args:
        classifier: the model; a stochastic one is queried without its declared draws.
        probe: (n, …) inputs.
    """
    first, second = (call_keeping_modes(classifier, probe.clone()).logits for _ in range(2))
    return relative_difference(first, second) <= SAME_ANSWER_TOLERANCE


@torch.no_grad()
def usable_probe(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the images (m, …) of a probe (n, …) with valid outputs; fewer if memory is short."""
    rows = torch.arange(len(images), device=images.device)

    def valid(part: Tensor) -> Tensor:
        with foreign_call("the model"):
            return part[classifier(images[part]).valid]

    while len(rows):
        try:
            return images[valid(rows)]
        except Exception as error:
            size = len(rows)
            if not is_out_of_memory(error):
                parts = isolate(valid, rows, error)
                kept = [part for _, part in parts if isinstance(part, Tensor)]
                rows = torch.cat([rows[:0], *kept])
            if len(rows) == size:  # the batch is too large
                rows = rows[: size // 2]
    return images[:0]


@torch.no_grad()
def _is_faithful(copy: Classifier, classifier: Classifier, probe: Tensor) -> bool:
    """Return whether a copy has the model's outputs on a probe, as far as the model itself repeats them."""

    def apart(one: Classifier, other: Classifier) -> bool:
        first, second = one(probe.clone()).logits, other(probe.clone()).logits
        return relative_difference(first, second) > SAME_ANSWER_TOLERANCE

    try:
        with foreign_call("the copy of the model"):
            return not len(probe) or not apart(copy, classifier) or apart(classifier, classifier)
    except Exception:
        return False


def rearrange(plain: Classifier, probe: Tensor, changes: Sequence[Rearrangement]) -> Classifier:
    """Return a copy with all changes that keep its outputs on a probe.

    All changes are tried at once. They are tried one by one only if that fails, since copies of large networks are
    expensive.

    Args:
        plain: a frozen copy, which stays unchanged.
        probe: (n, …) inputs.
        changes: the changes to try.
    """
    together = _rearranged(plain, probe, changes)
    if together is not None:
        return together
    best = plain
    for change in changes:
        best = _rearranged(best, probe, [change]) or best
    return best


def frozen_copy(classifier: Classifier) -> Classifier | None:
    """Return a copy in evaluation mode with frozen weights; None if the classifier cannot be copied."""
    if not isinstance(classifier, nn.Module):
        return None
    try:
        # a traced network's copy has weights without a graph only if none is recorded
        with foreign_call("the copy of the model"), torch.no_grad():
            copy = deepcopy(classifier)
            copy.eval().requires_grad_(False)
    except Exception:  # a user's module may hold anything: a file, a lock, a tensor with a graph
        return None
    return copy if type(copy) is type(classifier) else None


def fold_batch_norm(module: Classifier) -> bool:
    """Fold batch norm into the convolution before it, where a ``Sequential`` holds both."""
    folded = [
        _fold_sequence(part) for part in _submodules(module) if isinstance(part, nn.Sequential)
    ]
    return sum(folded) > 0


def order_channels_last(module: Classifier) -> bool:
    """Store weights of convolutions with channels last, as the CPU's kernels read them; feature maps follow."""
    layers = [part for part in _submodules(module) if type(part) is nn.Conv2d]
    for layer in layers:
        # ``contiguous`` would not change the weight of a single channel, nor the order of its feature maps
        layer.weight.data = layer.weight.detach().to(memory_format=torch.channels_last)
    return bool(layers)


def fold_gradients(module: Classifier) -> bool:
    """Replace strided convolutions of few channels by ``FoldedGradientConv``."""
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
    on_cpu = device_of(classifier).type == "cpu"  # the last two are not measured on other devices
    every = (fold_batch_norm, order_channels_last, fold_gradients)
    return every if on_cpu else every[:1]


def _rearranged(
    plain: Classifier, probe: Tensor, changes: Sequence[Rearrangement]
) -> Classifier | None:
    """Return a copy with all of the changes; None if nothing changed, or if the copy's outputs differ."""
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
        with foreign_call("the copy of the model"):
            logits, gradients = _logits_and_gradients(changed, probe)
            expected, expected_gradients = _logits_and_gradients(plain, probe)
    except (
        Exception
    ):  # a user's network may access anything in its layers: contiguous maps, a weight
        return False
    # a unit that rounding switches changes one gradient, a wrong derivative all of them
    difference = (gradients - expected_gradients).norm()
    same = difference <= GRADIENT_TOLERANCE * expected_gradients.norm()
    return bool((logit_change(logits, expected) < LOGIT_TOLERANCE).all() & same)


def _logits_and_gradients(classifier: Classifier, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of a probe, and the gradient of each input's largest logit."""
    with torch.enable_grad():
        images = probe.detach().clone().requires_grad_()
        logits = call_keeping_modes(classifier, images).logits
        return logits.detach(), per_sample_gradient(logits.amax(1), images)
