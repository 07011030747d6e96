"""Switches the engine's optimisations off and on, one by one, and measures the gain of each.

All run in one process on one thread, off and on in turn; times are medians of processor time.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
from floor import both_ways, digits, forward
from peers import is_there
from timing import Task, medians, one_thread, seconds_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import robustbench_inv as rbi
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.evaluation.prepare import (
    Rearrangement,
    fold_batch_norm,
    fold_gradients,
    frozen_copy,
    order_channels_last,
    prepare,
    rearrange,
)
from robustbench_inv.models.protocol import Classifier, Output, classify
from robustbench_inv.models.wrapping import ModuleClassifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["switch_section"]

DATA = "mnist5k"
MODELS = {"mnist-cnn": 250, "mnist-c-dv": 250, "mnist-resnet10": 25}
"""Models, and how many digits a pass has. The ResNet takes forty times as long."""

FEW_BROKEN, MOST_BROKEN = 0.02, 0.1
CHANGES: dict[str, Rearrangement] = {
    "conv + batch norm folded": fold_batch_norm,
    "channels last": order_channels_last,
    "gradient of strided convolutions folded": fold_gradients,
}


class Switch(NamedTuple):
    """Seconds with something off, and with it on."""

    off: float
    on: float

    def __str__(self) -> str:
        return f"{self.off / self.on:.2f} ({_time(self.off)} → {_time(self.on)})"


class Unceasing(CountingModel):
    """A model on which no success is final, so that no sample leaves the batch."""

    @property
    def success_is_final(self) -> bool:
        return False


def switch_section() -> str:
    """Return the benchmark's text for the page."""
    models = [model for model in MODELS if is_there(model, DATA)]
    with one_thread():
        columns = [_column(rbi.load_model(each).classifier, MODELS[each]) for each in models]
        half, compiled = (task(models) for task in (_in_half_precision, _compiled))
    head = "| switch | " + " | ".join(models) + " |"
    rows = [
        f"| {name} | " + " | ".join(str(column.get(name, "–")) for column in columns) + " |"
        for name in columns[0]
    ]
    return "\n".join([_OPENING, head, "|---" * (len(models) + 1) + "|", *rows, "", half, compiled])


def _column(classifier: Classifier, count: int) -> dict[str, Switch]:
    """Return the gain of each switch on one model."""
    batch = digits(classifier, count)
    searched = prepare(classifier, batch.images[:16], fold=True)
    found = _copies(classifier, searched, batch)
    found["inference mode, judging"] = _inference(classifier, batch)
    found["inference mode, 10 samples"] = _inference(classifier, batch[torch.arange(10)])
    if count < 250:
        return found
    found["batches of 250, not 25"] = _batches(searched, batch, 25)
    found["batches of 250, not 1,000"] = _batches(searched, digits(classifier, 1000), 1000)
    for eps in (FEW_BROKEN, MOST_BROKEN):
        found[f"active sets, PGD-40 at {eps:g}"] = _active(
            searched, batch[torch.arange(0, len(batch), 2)], eps
        )
    return found


def _copies(classifier: Classifier, searched: Classifier, batch: Batch) -> dict[str, Switch]:
    """Compare forward and backward passes on the prepared copy with those on a copy that lacks one change."""
    plain, probe = frozen_copy(classifier), batch.images[:16]
    assert plain is not None
    without = {
        name: rearrange(plain, probe, [each for each in CHANGES.values() if each is not change])
        for name, change in CHANGES.items()
    }
    without["frozen parameters"] = _thawed(searched)
    without["all of these"] = _thawed(plain)
    tasks: dict[str, Task] = {
        name: partial(both_ways, each, batch) for name, each in without.items()
    }
    seconds = medians(tasks | {"on": partial(both_ways, searched, batch)}, repeats=5, times=3)
    return {name: Switch(seconds[name], seconds["on"]) for name in without}


def _thawed(classifier: Classifier) -> Classifier:
    """Return a copy whose weights require gradients."""
    copy = deepcopy(classifier)
    assert isinstance(copy, nn.Module)
    copy.requires_grad_(True)
    return copy


def _inference(classifier: Classifier, batch: Batch) -> Switch:
    def within() -> None:
        with torch.inference_mode():
            forward(classifier, batch)

    tasks: dict[str, Task] = {"off": partial(forward, classifier, batch), "on": within}
    return Switch(**medians(tasks, repeats=5, times=5))


def _batches(searched: Classifier, batch: Batch, size: int) -> Switch:
    """Compare passes over the same samples in batches of another size and of 250."""

    def in_batches(of: int) -> None:
        for rows in torch.split(torch.arange(len(batch)), of):
            both_ways(searched, batch[rows])

    return Switch(**medians({"off": partial(in_batches, size), "on": partial(in_batches, 250)}))


def _active(searched: Classifier, batch: Batch, eps: float) -> Switch:
    tasks = {name: partial(_search, searched, batch, eps, kind) for name, kind in _METERS.items()}
    return Switch(**medians(tasks))


_METERS: dict[str, type[CountingModel]] = {"off": Unceasing, "on": CountingModel}


def _search(
    searched: Classifier,
    batch: Batch,
    eps: float,
    kind: Callable[..., CountingModel] = CountingModel,
) -> Tensor:
    rng, threat = SampleRNG(0, batch.ids), ThreatModel(LpBall("linf", eps))
    attack = rbi.load_attack("pgd-tuned").attack
    return attack.run(kind(searched, batch, threat, rng), batch, threat, rng)


class Half(nn.Module):
    """A copy that computes in bfloat16 and takes and gives float32."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        assert isinstance(classifier, nn.Module)
        self.classifier = deepcopy(classifier).to(torch.bfloat16)
        self.bounds, self.num_classes = classifier.bounds, classifier.num_classes
        self.dtype = torch.float32

    def forward(self, images: Tensor) -> Output:
        """Return the output for (n, …) images."""
        return Output(self.classifier(images.bfloat16()).logits.float())


def _in_half_precision(models: list[str]) -> str:
    """Return a table of searches in bfloat16, whose proposals the model itself evaluates in float32."""
    rows = [
        _half(model, eps) for model in models if MODELS[model] >= 250 for eps in (0.02, 0.05, 0.1)
    ]
    return "\n".join([_HALF, *rows, ""])


def _half(model: str, eps: float) -> str:
    classifier = rbi.load_model(model).classifier
    batch = digits(classifier, 250)
    single = prepare(classifier, batch.images[:16], fold=True)
    copies: dict[str, Classifier] = {"off": single, "on": Half(single)}
    seconds = Switch(
        **medians({name: partial(_search, each, batch, eps) for name, each in copies.items()})
    )
    proposals = [_search(each, batch, eps) for each in copies.values()]
    outputs = [classify(classifier, images, SampleRNG(0, batch.ids)) for images in proposals]
    robust = [int((output.decision == batch.labels).sum()) for output in outputs]
    return f"| {model} | {eps:g} | {seconds} | {robust[0]} | {robust[1]} |"


def _compiled(models: list[str]) -> str:
    """Return the gain of torch.compile, or why it fails."""
    return "\n".join([_COMPILED, *(_compile(each) for each in models if MODELS[each] >= 250), ""])


def _compile(model: str) -> str:
    classifier = rbi.load_model(model).classifier
    batch = digits(classifier, 250)
    searched = prepare(classifier, batch.images[:16], fold=True)
    assert isinstance(searched, ModuleClassifier)
    fast = torch.compile(searched.module, dynamic=True)

    def compiled() -> None:
        images = batch.images.detach().requires_grad_()
        torch.autograd.grad(cross_entropy(fast(images), batch.labels), images)

    try:
        first = seconds_of(compiled)
        tasks: dict[str, Task] = {"off": partial(both_ways, searched, batch), "on": compiled}
        seconds = Switch(**medians(tasks, repeats=5, times=3))
    except Exception as error:  # no compiler, or a kernel that does not build: the table states it
        return f"| {model} | does not compile: {type(error).__name__} | – |"
    return f"| {model} | {seconds} | {first:.0f} s |"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


_OPENING = f"""
## Gain of each optimisation

Time without an optimisation as a multiple of the time with it; one process, one thread, off and on in turn, medians of processor time. Changes of
the prepared copy: a forward and a backward pass of {MODELS["mnist-cnn"]} digits ({MODELS["mnist-resnet10"]} for the ResNet). [Decision
16](decisions/0016-speed.md) lists what the engine uses and what it leaves out.
"""

_HALF = """
Search in bfloat16 with judging in float32 (not used by the engine): gain in time, and robust samples of 250 under PGD-40.

| model | eps | gain | robust, float32 | robust, bfloat16 |
|---|---|---|---|---|"""

_COMPILED = """
`torch.compile` of the prepared copy with open shapes, a forward and a backward pass of 250 digits (not used by the engine). The table has the gain,
and the processor seconds until the end of the first pass without the compiler's own time.

| model | gain | first pass |
|---|---|---|"""


if __name__ == "__main__":
    print(switch_section())
