"""Measures invariance attacks: failures and distance against passes, and time against a plain loop of one sample at a time.

Failures are those of the oracle ``mnist-panel-v1``. Times are processor time in one process, one thread.
"""

from dataclasses import dataclass, replace
from math import inf

import torch
from peers import is_there
from timing import one_thread, seconds_of
from torch import Tensor

import robustbench_inv as rbi
from robustbench_inv.attacks.invariance.invariance_standard import MEMBERS, InvarianceStandard
from robustbench_inv.attacks.invariance.level_set_traversal import LevelSetTraversal
from robustbench_inv.attacks.protocol import Attack, Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.catalogue.models import LoadedModel, load_model
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.evaluation.oracles import AttackedModel, Oracle, load_oracle
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.summary import median_distance
from robustbench_inv.tensors import norm
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.goals import GoalInputs, KeepDecision
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["invariance_section"]

SAMPLES, POOL, ALONE = 20, 1000, 2
"""Digits in one batch, donors, and digits of the plain loop."""

STEPS = (10, 25, 50, 100, 400)
"""Steps of level set traversal: one forward and one backward pass each."""

MODELS = ("mnist-cnn", "mnist-cnn-at")
CURVES, CURVE_SAMPLES = (*MODELS, "mnist-lenet5"), 50
"""Networks and digits of the curves."""

PASSES = (25, 50, 100, 200, 400, 600, 800, 1000)
"""Passes at which the curves are read."""

ORACLE = "mnist-panel-v1"
THREAT = ThreatModel(Unbounded("l2"), KeepDecision())


@dataclass(frozen=True)
class _Trial:
    """The result of an attack: (n,) failures, their l2 distances, mean passes, and processor time."""

    failed: Tensor
    distance: Tensor
    passes: float
    seconds: float


def invariance_section() -> str:
    """Return the benchmark's text for the page."""
    if not all(is_there(model, "mnist5k") for model in MODELS):
        return ""
    with one_thread():
        rows = [row for model in MODELS for row in _rows(model)]
        curves = [row for model in CURVES if is_there(model, "mnist5k") for row in _curve(model)]
    return "\n".join([_OPENING, *rows, _CURVES, *curves, ""])


def _curve(name: str) -> list[str]:
    """Return two rows: the failures in per cent, and their median distance, within each number of passes.

    The suite queries the oracle for points that keep the prediction, so these queries show when it found each failure.
    """
    model, batch, oracle = _setting(name, CURVE_SAMPLES)
    before, places = (
        model.classifier(batch.images).decision,
        {s: k for k, s in enumerate(batch.ids.tolist())},
    )
    first = torch.full((len(batch),), inf)
    nearest = torch.full((len(PASSES), len(batch)), inf)

    def watched(images: Tensor, ids: Tensor) -> Tensor:
        rows, classes = (
            torch.tensor([places[s] for s in ids.tolist()]),
            oracle.classify(images, ids),
        )
        far = norm(images - batch.images[rows], "l2")
        hit = (model.classifier(images).decision == before[rows]) & (far > 0)
        hit &= (classes != batch.labels[rows]) & (classes >= 0)
        passes = (counting.forward_passes + counting.backward_passes)[rows].float()
        first[rows[hit]] = first[rows[hit]].minimum(passes[hit])
        for place, limit in enumerate(PASSES):
            mine = hit & (passes <= limit)
            nearest[place].scatter_reduce_(0, rows[mine], far[mine], "amin")
        return classes

    asked = replace(batch, oracle=watched)
    rng = SampleRNG(0, batch.ids)
    counting = CountingModel(model.classifier, asked, THREAT, rng, keep_best=False)
    InvarianceStandard().run(counting, asked, THREAT, rng)
    failed = [f"{100 * (first <= limit).float().mean():.0f}" for limit in PASSES]
    medians = [_middle(row.tolist()) for row in nearest]
    return [
        f"| {name} | failures, % | {' | '.join(failed)} |",
        f"| {name} | median l2 distance | {' | '.join(medians)} |",
    ]


def _middle(distances: list[float]) -> str:
    median = median_distance(distances) or 0.0
    return "∞" if median == inf else f"{median:.3g}"


def _setting(name: str, samples: int) -> tuple[LoadedModel, Batch, Oracle]:
    model, data = load_model(name), rbi.load_dataset("mnist5k")
    oracle = load_oracle(ORACLE, data, [AttackedModel.of(model)], load_model)
    ids = torch.tensor(sorted(select_samples(data.labels, POOL)))
    pool = InputPool(ids, lambda rows: data.batch(rows))
    mine = torch.tensor(select_samples(data.labels, samples))
    images, labels = data.batch(mine)
    return model, Batch(images, labels, mine, pool=pool, oracle=oracle.classify), oracle


def _rows(name: str) -> list[str]:
    model, batch, oracle = _setting(name, SAMPLES)
    tried: list[tuple[str, Attack]] = [
        (f"level-set-traversal, {steps} steps", LevelSetTraversal(steps=steps)) for steps in STEPS
    ]
    tried += [
        (f"invariance-standard, first {count} members", InvarianceStandard(members=MEMBERS[:count]))
        for count in range(5, len(MEMBERS))
    ]
    tried.append(("invariance-standard", InvarianceStandard()))
    rows = [
        _row(name, label, _attack(model.classifier, batch, each, oracle)) for label, each in tried
    ]
    few = batch[torch.arange(ALONE)]
    loop = seconds_of(
        lambda: [
            _attack(model.classifier, few[torch.tensor([k])], InvarianceStandard(), oracle)
            for k in range(ALONE)
        ]
    )
    together = _attack(model.classifier, batch, InvarianceStandard(), oracle).seconds / SAMPLES
    rows.append(
        f"| {name} | one sample at a time | | | | {loop / ALONE:.2f} s a sample; in the batch {together:.2f} s, "
        f"{together * ALONE / loop:.2f} |"
    )
    return rows


def _row(model: str, label: str, found: _Trial) -> str:
    distances = found.distance.where(found.failed, torch.inf).tolist()
    middle = _middle([float(d) for d in distances])
    return (
        f"| {model} | {label} | {found.passes:,.0f} | {int(found.failed.sum())} of {len(found.failed)} | "
        f"{middle} | {found.seconds:.1f} s |"
    )


def _attack(classifier: object, batch: Batch, attack: Attack, oracle: Oracle) -> _Trial:
    counting = CountingModel(classifier, batch, THREAT, SampleRNG(0, batch.ids), keep_best=False)  # type: ignore[arg-type]
    results: list[Tensor] = []
    seconds = seconds_of(
        lambda: results.append(attack.run(counting, batch, THREAT, SampleRNG(0, batch.ids)))
    )
    (images,) = results
    passes = (counting.forward_passes + counting.backward_passes).double().mean().item()
    before, after = counting(batch.images), counting(images)
    seen = oracle.classify(images, batch.ids)
    evidence = GoalInputs(batch.images, images, batch.labels, before, after, seen)
    distance = norm(images - batch.images, "l2")
    return _Trial(THREAT.goal.reached(evidence), distance, passes, seconds)


_OPENING = f"""
## Invariance attacks

{SAMPLES} digits of `mnist5k` in one batch, {POOL} donors, no budget, oracle `{ORACLE}`; one process, one thread, processor time of one run. Passes are
forward and backward ones of the attacked model for each digit. *Median*: l2 distance of the failures, ∞ if at most half of the digits have one. The
last row of a model runs `invariance-standard` in a plain loop.

| model | attack | passes | failures | median | time |
|---|---|---|---|---|---|"""

_CURVES = f"""
### Failures against passes

`invariance-standard` on {CURVE_SAMPLES} digits: the share of digits with a failure, and the median of the smallest l2 distances, after each number of
forward and backward passes.

![Share of failures and median distance against the passes of invariance-standard](images/invariance-passes.svg)

| model | result | {" | ".join(map(str, PASSES))} |
|---|---|{"---|" * len(PASSES)}"""


if __name__ == "__main__":
    print(invariance_section())
