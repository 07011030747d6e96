"""Metamers of a layer: inputs of another class, or noise, changed until a layer of the network has the activations of x."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import cos, pi
from typing import ClassVar

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
from robustbench_inv.models.protocol import Classifier, device_of
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

    @torch.no_grad()
    def check_requirements(self, model: Classifier, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a model without such a layer."""
        image = data.batch([0])[0].to(device_of(model), model.dtype)
        with _recording(model, self.layer_name) as activations:
            model(image)
        activations.of(image)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        images, found = self._starts(model, batch, rng)
        with _recording(model.model, self.layer_name) as activations:
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


@dataclass
class _Activations:
    """What a layer returned in the calls of the model since the last ``of``."""

    layer: str
    last: list[Tensor] = field(default_factory=list)

    def of(self, images: Tensor) -> Tensor:
        """Return the activations (n, units) for the images of the call before, and forget them.

        Raises:
            CapabilityMismatch: if the layer was not called with one row for each image.
        """
        rows = [flatten(each) for each in self.last if len(each) == len(images)]
        self.last.clear()
        if not rows:
            raise CapabilityMismatch(
                "no activations were recorded",
                got=self.layer or "no layer with weights was called",
                expected="a layer that returns a tensor with a row for each input",
                remedy="name another one: layer=NAME",
            )
        return torch.cat(rows, 1) if self.layer else rows[-1]


@contextmanager
def _recording(model: object, layer: str) -> Iterator[_Activations]:
    """Record the activations of a layer during each call of the model."""
    module, record = find_layer(model, layer), _Activations(layer)
    assert isinstance(model, nn.Module)

    def keep_output(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim > 0:
            record.last.append(output)

    def keep_input(_module: nn.Module, inputs: tuple[object, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            record.last.append(inputs[0])

    if module is not None:
        hooks = [module.register_forward_hook(keep_output)]
    else:
        leaves = [m for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor)]
        hooks = [leaf.register_forward_pre_hook(keep_input) for leaf in leaves]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _sizes(activations: Tensor) -> Tensor:
    return norm(activations, "l2").clamp_min(torch.finfo(activations.dtype).tiny)


def _relative_error(activations: Tensor, wanted: Tensor) -> Tensor:
    """Return |h(x') − h(x)|₂ / |h(x)|₂, (n,)."""
    return norm(activations - wanted, "l2") / _sizes(wanted)
