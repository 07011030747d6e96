"""Metamers of a layer: inputs of another class, or noise, changed until a layer of the network has the activations of x."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import cos, pi
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from robustbench_inv.attacks.cw import Adam
from robustbench_inv.attacks.invariance.donors import (
    assign_donors,
    check_rule,
    required_pool,
)
from robustbench_inv.attacks.parameters import check_least, check_positive
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadParameter, CapabilityMismatch, did_you_mean
from robustbench_inv.models.protocol import Classifier, device_of, query_model
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, Output, broadcast, flatten, norm, where_rows
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["LayerMetamer", "find_layer"]

NOISE = "noise"
"""Start at uniform noise instead of a donor."""

NULL_INPUTS = 100
"""Other inputs whose activations are compared with those of x; the closest one is the null error."""


@dataclass(frozen=True)
class LayerMetamer:
    """Changes a donor, or noise, until a layer has the activations of x; what precedes the layer is ignored by it.

    The error of a match is |h(x') − h(x)|₂ / |h(x)|₂. Adam minimizes it inside the bounds; the best iterate is kept. A
    match counts only if its error is below the null error: that of the closest of 100 other inputs of the data set.
    Otherwise x itself is returned. The attack needs a network whose layers are modules, not its class or its inverse.

    A pass of one input and one of two, which are not counted, show which layers have a row for each input. Layers
    that are evaluated on several draws of a latent variable at once have none. A network may split its batch.

    Logged for each sample (check C44): ``match_error``, ``null_error``, ``donor`` and ``donor_label``.

    Args:
        layer: name of the module whose output is matched, as in ``named_modules()``; empty for the input of the
            last layer with weights. Names such as 0 and 1.2 are read as numbers; write ``module.1.10`` for 1.10.
        start: rule for donors, one of ``donors.RULES``, or ``noise``.
        steps: gradient steps, >= 1.
        rate: of the first step, relative to the width of the bounds, > 0; it decreases to 0 along a cosine.

    References:
        Feather, Leclerc, Mądry and McDermott, Model metamers reveal divergent invariances between biological and
        artificial neural networks, Nature Neuroscience 2023; Mahendran and Vedaldi, CVPR 2015.
    """

    layer: str | float = ""
    start: str = "other-class"
    steps: int = 100
    rate: float = 0.05

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        if self.start != NOISE:
            check_rule(self.start)
        check_least(self, steps=1)
        check_positive(self, "rate")

    @property
    def layer_name(self) -> str:
        """The layer's name as text."""
        return self.layer if isinstance(self.layer, str) else f"{self.layer:g}"

    def check_requirements(self, model: Classifier, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a model without such a layer."""
        image = data.batch([0])[0].to(device_of(model), model.dtype)
        _matched_layer(model, self.layer_name, image)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        images, found = self._starts(model, batch, rng)
        layer = _matched_layer(cast("Classifier", model.model), self.layer_name, batch.images[:1])
        with layer.recording() as activations:
            with torch.no_grad():
                model(batch.images)
            wanted = activations.of(batch.images)
            null = self._null_errors(model, batch, activations, wanted)
            images, error = self._match(model, batch, threat, images, activations, wanted)
        model.log("match_error", error)
        model.log("null_error", null)
        return where_rows(found & (error < null), images, batch.images)

    def _starts(self, model: Queries, batch: Batch, rng: SampleRNG) -> tuple[Tensor, Tensor]:
        if self.start != NOISE:
            return assign_donors(model, batch, self.start, rng)
        low, high = model.bounds
        noise = rng.named(f"{rng.stream}/noise").uniform(tuple(batch.images.shape[1:]))
        found = torch.ones_like(batch.labels, dtype=torch.bool)
        return low + (high - low) * noise.to(batch.images), found

    def _match(
        self,
        model: Queries,
        batch: Batch,
        threat: ThreatModel,
        images: Tensor,
        activations: "_Activations",
        wanted: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the best iterates (n, …) and their errors (n,)."""
        error = torch.full_like(batch.labels, torch.inf, dtype=model.dtype)

        def loss(_output: Output, _labels: Tensor) -> Tensor:
            nonlocal error
            error = _relative_error(activations.of(images), wanted)
            return -error

        low, high = model.bounds
        images = threat.budget.project(batch.images, images).clamp(low, high)
        best, least = images, error
        adam = Adam.start(images)
        for step in range(self.steps):
            _, gradients = model.gradient(images, loss)
            found = error.detach().to(least)
            best, least = where_rows(found < least, images, best), found.fmin(least)
            # per sample, so that the length of a gradient, which falls with the error, does not matter
            gradients = gradients.nan_to_num(0, 0, 0)
            scale = norm(gradients, "l2").clamp_min(torch.finfo(gradients.dtype).tiny)
            length = self.rate * (high - low) * (1 + cos(pi * step / self.steps)) / 2
            moved = images + adam.step(gradients / broadcast(scale, gradients), length)
            images = threat.budget.project(batch.images, moved)
            images = images.clamp(low, high)
        return best, least

    @torch.no_grad()
    def _null_errors(
        self, model: Queries, batch: Batch, activations: "_Activations", wanted: Tensor
    ) -> Tensor:
        """Return the error (n,) of the closest of some other inputs, the same ones for every batch."""
        pool = required_pool(batch)
        some = torch.linspace(0, len(pool.ids) - 1, min(NULL_INPUTS, len(pool.ids))).long()
        some = some.to(pool.ids.device)
        model(pool.images[some])
        others = activations.of(pool.images[some])
        errors = torch.cdist(wanted, others) / _sizes(wanted)[:, None]
        own = pool.ids[some] == batch.ids[:, None]
        return errors.masked_fill(own, torch.inf).amin(1)


def find_layer(model: object, name: str) -> nn.Module | None:
    """Return the module of a name as in ``named_modules()`` of the user's network; None for the empty name.

    Raises:
        CapabilityMismatch: if the model is no module.
        BadParameter: for a name that no module has.
    """
    if not isinstance(model, nn.Module):
        raise CapabilityMismatch(
            "the attack needs the layers of a network",
            got=type(model).__name__,
            expected="an nn.Module",
        )
    if not name:
        return None
    modules: dict[str, nn.Module] = dict(model.named_modules())
    # the tool's wrapper calls the user's network "module"
    for known in (name, f"module.{name}"):
        if known in modules:
            return modules[known]
    names = [known.removeprefix("module.") for known in modules if known not in ("", "module")]
    raise BadParameter(
        f"the model has no layer {name}",
        expected="one of " + ", ".join(names[:20]) if names else "a network with layers",
        remedy=did_you_mean(name, names),
    )


@dataclass(frozen=True)
class _MatchedLayer:
    """A module whose output, or first input, is matched.

    Args:
        name: as the user wrote it; empty for the input of the last layer with weights.
        module: the module.
        calls: number of its calls in one pass of few inputs.
        places: positions among these calls of those with a row for each input.
    """

    name: str
    module: nn.Module
    calls: int
    places: tuple[int, ...]

    @contextmanager
    def recording(self) -> Iterator["_Activations"]:
        """Record the activations during each call of the model."""
        record = _Activations(self)
        with _hooked([self.module], not self.name, lambda _, each: record.last.append(each)):
            yield record


@dataclass
class _Activations:
    """What a layer returned, or got, in the calls of the model since the last ``of``."""

    layer: _MatchedLayer
    last: list[Tensor] = field(default_factory=list)

    def of(self, images: Tensor) -> Tensor:
        """Return the activations (n, units) for the images of the call before, and forget them.

        Raises:
            CapabilityMismatch: if the layer was called otherwise than in the first passes.
        """
        parts = [self.last[place :: self.layer.calls] for place in self.layer.places]
        self.last.clear()
        if any(sum(map(len, part)) != len(images) for part in parts):
            raise _no_activations(self.layer.name)
        return torch.cat([flatten(torch.cat(part)) for part in parts], 1)


def _matched_layer(model: Classifier, name: str, image: Tensor) -> _MatchedLayer:
    """Return the named layer, or for the empty name the last one with weights.

    The number of rows of a call is compared with one and with two inputs, since by chance it may equal a number of
    draws or channels.

    Args:
        model: the model.
        name: of the layer.
        image: (1, …).

    Raises:
        CapabilityMismatch: if no such layer has a row for each input.
    """
    module = find_layer(model, name)
    assert isinstance(model, nn.Module)
    weighted = [m for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor)]
    known = weighted if module is None else [module]
    one, two = (_call_sizes(model, known, not name, image, count) for count in (1, 2))
    for last, _ in reversed(one):
        first, second = ([size for each, size in calls if each is last] for calls in (one, two))
        calls = len(first)
        places = tuple(k for k in range(calls) if first[k] == 1 and sum(second[k::calls]) == 2)
        if places:
            return _MatchedLayer(name, last, calls, places if name else places[-1:])
    raise _no_activations(name)


@torch.no_grad()
def _call_sizes(
    model: Classifier, modules: Sequence[nn.Module], inputs: bool, image: Tensor, count: int
) -> list[tuple[nn.Module, int]]:
    """Return the modules in the order of their calls in one pass of ``count`` inputs, and the rows of each call."""
    found = list[tuple[nn.Module, int]]()
    images = image.expand(count, *image.shape[1:])
    with _hooked(modules, inputs, lambda module, each: found.append((module, len(each)))):
        query_model(model, images, SampleRNG(0, torch.arange(count, device=image.device)))
    return found


@contextmanager
def _hooked(
    modules: Sequence[nn.Module], inputs: bool, keep: Callable[[nn.Module, Tensor], None]
) -> Iterator[None]:
    """Call a function with a copy of each output of some modules, or of each first input.

    A copy, since later operations of the model may change the tensor in place.
    """

    def keep_tensor(module: nn.Module, each: object) -> None:
        if isinstance(each, Tensor) and each.ndim > 0:
            keep(module, each.clone())

    def before(module: nn.Module, given: tuple[object, ...]) -> None:
        keep_tensor(module, given[0] if given else None)

    def after(module: nn.Module, _given: object, output: object) -> None:
        keep_tensor(module, output)

    hooks = [
        each.register_forward_pre_hook(before) if inputs else each.register_forward_hook(after)
        for each in modules
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _no_activations(name: str) -> CapabilityMismatch:
    return CapabilityMismatch(
        "no activations were recorded",
        got=name or "no layer with weights was called",
        expected="a layer that returns a tensor with a row for each input",
        remedy="name another one: layer=NAME",
    )


def _sizes(activations: Tensor) -> Tensor:
    return norm(activations, "l2").clamp_min(torch.finfo(activations.dtype).tiny)


def _relative_error(activations: Tensor, wanted: Tensor) -> Tensor:
    """Return |h(x') − h(x)|₂ / |h(x)|₂, (n,)."""
    return norm(activations - wanted, "l2") / _sizes(wanted)
