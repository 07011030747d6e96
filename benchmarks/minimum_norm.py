"""Measures minimum-norm attacks against Foolbox's, torchattacks' and adversarial-library's of the same name: time and distance.

All run in one process on one thread, alternating; times are medians of processor time, which other programs on the
machine do not change.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from peers import adversarial_library
from torch import Tensor, nn

import robustbench_inv as rbi
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.models.wrapping import ModuleClassifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import norm
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Digits", "draw_digits", "minimum_norm_section", "nearness"]

SAMPLES, REPEATS = 100, 3
CARLINI_WAGNER: dict[str, Any] = {
    "binary_search_steps": 5,
    "steps": 100,
    "stepsize": 0.1,
    "initial_const": 0.1,
}
"""Foolbox's defaults, 9 searches of 10,000 steps of 0.01, take an hour; with 1,000 steps the distances are 2.5 % smaller than with these."""

Contestant = Callable[["Digits"], Tensor]


@dataclass(frozen=True)
class Digits:
    """The model and the correctly classified digits that every library gets."""

    classifier: Classifier
    network: nn.Module
    images: Tensor
    labels: Tensor
    ids: Tensor


def minimum_norm_section() -> str:
    """Return the benchmark's text for the page."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    digits = draw_digits(SAMPLES)
    rows = [row for name, contest in _contests().items() for row in _rows(digits, name, contest)]
    others = [row for each in train_networks(SAMPLES).items() for row in _network_rows(*each)]
    torch.set_num_threads(before)
    return "\n".join([_OPENING, *rows, "", _NETWORKS_OPENING, *others, ""])


def ours(name: str, measured: str, digits: Digits) -> Tensor:
    """Return the proposals of a preset: search on the prepared copy, as the engine does."""
    searched = prepare(digits.classifier, digits.images[:8], fold=False)
    batch, rng = Batch(digits.images, digits.labels, digits.ids), SampleRNG(0, digits.ids)
    threat = ThreatModel(Unbounded(measured))
    return rbi.load_attack(name).attack.run(
        CountingModel(searched, batch, threat, rng), batch, threat, rng
    )


def foolbox(name: str, digits: Digits, **parameters: object) -> Tensor:
    """Return the proposals of an attack of Foolbox."""
    import foolbox as fb
    from foolbox.models.pytorch import PyTorchModel

    model = PyTorchModel(digits.network, bounds=(0, 1), device="cpu")
    attack = getattr(fb.attacks, name)(**parameters)
    proposals: Tensor = attack(model, digits.images, digits.labels, epsilons=None)[1]
    return proposals


def torchattacks(name: str, digits: Digits) -> Tensor:
    """Return the proposals of an attack of torchattacks with its own parameters."""
    import torchattacks as ta

    proposals: Tensor = getattr(ta, name)(digits.network)(digits.images, digits.labels)
    return proposals


def adversarial(name: str, digits: Digits, **parameters: object) -> Tensor:
    """Return the proposals of an attack of adversarial-library."""
    attack = getattr(adversarial_library(), name)
    proposals: Tensor = attack(digits.network, digits.images, digits.labels, **parameters)
    return proposals


def _contests() -> dict[str, dict[str, Contestant]]:
    """Return the contestants of each comparison, by preset and norm."""
    carlini_wagner = partial(foolbox, "L2CarliniWagnerAttack", abort_early=False, **CARLINI_WAGNER)
    contests: dict[str, dict[str, Contestant]] = {
        "cw-adaptive l2": {
            "foolbox, 5 × 100 steps": carlini_wagner,
            "torchattacks": partial(torchattacks, "CW"),
        },
        "ddn l2": {"foolbox, 100 steps": partial(foolbox, "DDNAttack", steps=100)},
        "deepfool l2": {
            "foolbox": partial(foolbox, "L2DeepFoolAttack"),
            "torchattacks": partial(torchattacks, "DeepFool"),
        },
        "deepfool-linf linf": {"foolbox": partial(foolbox, "LinfDeepFoolAttack")},
    }
    for measured in ("l0", "l1", "l2", "linf"):
        theirs = f"{'LInf' if measured == 'linf' else measured.upper()}FMNAttack"
        contests[f"fmn {measured}"] = {"foolbox, 100 steps": partial(foolbox, theirs, steps=100)}
    third = {} if adversarial_library() is None else _third()
    return {
        name: {"ours": _ours(name), **them, **third.get(name, {})}
        for name, them in contests.items()
    }


def _ours(name: str) -> Contestant:
    preset, measured = name.split()
    return partial(ours, preset, measured)


def _third() -> dict[str, dict[str, Contestant]]:
    """Return the contestants of adversarial-library; only it has ALMA."""
    title = "adversarial-library"
    names = {"l0": 0.0, "l1": 1.0, "l2": 2.0, "linf": float("inf")}
    contests: dict[str, dict[str, Contestant]] = {
        f"fmn {measured}": {f"{title}, 100 steps": partial(adversarial, "fmn", norm=p, steps=100)}
        for measured, p in names.items()
    }
    contests["ddn l2"] = {
        f"{title}, 100 steps": partial(adversarial, "ddn", steps=100),
        f"{title}, ALMA of 100 steps": partial(adversarial, "alma", num_steps=100),
    }
    return contests


def draw_digits(count: int) -> Digits:
    """Return the correctly classified of ``count`` digits, under the undefended network."""
    classifier, data = rbi.load_model("mnist-cnn").classifier, rbi.load_dataset("mnist5k")
    ids = torch.tensor(select_samples(data.labels, count))
    images, labels = data.batch(ids)
    with torch.no_grad():
        right = classifier(images).decision == labels
    assert isinstance(classifier, ModuleClassifier)
    return Digits(classifier, classifier.module, images[right], labels[right], ids[right])


def train_networks(count: int) -> dict[str, Digits]:
    """Return three small networks that are trained here, with the correctly classified of ``count`` digits each.

    They see the even samples of ``mnist5k`` in training; the digits are odd ones.
    """
    data = rbi.load_dataset("mnist5k")
    images, labels = data.batch(range(5000))
    ids = torch.arange(1, 5000, 5000 // count)[:count]
    ids = ids + (ids % 2 == 0)
    found = {}
    for name, make in NETWORKS.items():
        network = _train(make, images[::2], labels[::2])
        with torch.no_grad():
            right = ids[network(images[ids]).argmax(1) == labels[ids]]
        classifier = ModuleClassifier(network, (0.0, 1.0), 10)
        found[name] = Digits(classifier, network, images[right], labels[right], right)
    return found


def _train(make: Callable[[], nn.Module], images: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(0)
    network = make()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(8):
        for batch in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def _network_rows(network: str, digits: Digits) -> list[str]:
    rows = []
    for name, contest in _contests().items():
        attack, measured = name.split()
        cells = [
            f"{each} {nearness(digits, run(digits), measured).split(' | ')[0]}"
            for each, run in contest.items()
        ]
        rows.append(f"| {network} | {attack} | {measured} | {' · '.join(cells)} |")
    return rows


def _rows(digits: Digits, name: str, contest: dict[str, Contestant]) -> list[str]:
    attack, measured = name.split()
    seconds: dict[str, list[float]] = {each: [] for each in contest}
    proposals: dict[str, Tensor] = {}
    for repeat in range(REPEATS):
        for each, contestant in contest.items():
            if repeat and sum(seconds[each]) > 20:  # one run of a slow one is exact enough
                continue
            start = time.process_time()
            proposals[each] = contestant(digits)
            seconds[each].append(time.process_time() - start)
    first = median(seconds["ours"])
    return [
        f"| {attack} | {measured} | {each} | {nearness(digits, images, measured)} | "
        f"{median(seconds[each]):.2f} s | {first / median(seconds[each]):.2f} |"
        for each, images in proposals.items()
    ]


def nearness(digits: Digits, proposals: Tensor, measured: str) -> str:
    """Return median and mean distance of the proposals, and the number of robust samples, as cells of a table."""
    with torch.no_grad():
        missed = digits.network(proposals).argmax(1) == digits.labels
    moved = (proposals - digits.images).detach()
    far = norm(moved.where(moved.abs() > 1e-6, 0), measured).where(~missed, float("inf"))
    return f"{far.median():.4g} | {far[~missed].mean():.4g} | {int(missed.sum())}"


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    ),
    "maximum pooling": lambda: nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 10)),
    ),
    "smooth": lambda: nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.SiLU()),
        *(nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.Tanh(), nn.Linear(64, 10)),
    ),
}
"""Small networks that are not in the zoo."""

_NETWORKS_OPENING = f"""
### On networks that are not in the zoo

Median distances of the same attacks on three networks that the benchmark trains, with the correctly classified of {SAMPLES}
digits of `mnist5k`. The presets were measured on these networks while they were chosen, too.

| network | attack | norm | medians |
|---|---|---|---|"""

_OPENING = f"""
## Minimum-norm attacks

Presets against attacks of the same name, on `mnist-cnn` and {SAMPLES} digits of `mnist5k` in one batch; one process, one thread,
libraries in turn, medians of processor time. Distances are those of broken digits; the median counts the others as infinite.

| attack | norm | whose | median | mean | not broken | time | ours / its time |
|---|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    print(minimum_norm_section())
