"""Measures minimum-norm attacks on networks that are not in the zoo.

Published forms meet the same algorithm with the same parameters in other libraries; ``minimum-norm`` meets the best
attack of any kind.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peers import run_adversarial_library, run_art, run_foolbox, run_torchattacks
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

__all__ = ["NETWORKS", "Digits", "draw_digits", "minimum_norm_section", "nearness", "train"]

SAMPLES, FEW, SEEDS = 50, 20, 3
"""Digits of each network, of which the correctly classified are attacked. Decision-based attacks get fewer of them, and as
many seeds, whose distances are pooled: their results are random."""

LIBRARIES = {
    "Foolbox": run_foolbox,
    "torchattacks": run_torchattacks,
    "adversarial-library": run_adversarial_library,
    "ART": run_art,
}

Peer = tuple[str, str, Mapping[str, Any]]
"""Library, name of its attack, parameters."""

SEARCHES = {"binary_search_steps": 5, "initial_const": 0.1}
P = {"l0": 0.0, "l1": 1.0, "l2": 2.0, "linf": float("inf")}


@dataclass(frozen=True)
class Digits:
    """The model and the correctly classified digits that every library gets."""

    classifier: Classifier
    network: nn.Module
    images: Tensor
    labels: Tensor
    ids: Tensor

    def first(self, count: int) -> "Digits":
        """Return the first digits."""
        few = (self.images[:count], self.labels[:count], self.ids[:count])
        return Digits(self.classifier, self.network, *few)


def _fmn(name: str) -> tuple[Peer, ...]:
    """Return the peers of FMN; Foolbox's attack in l2 never projects and is another algorithm."""
    theirs: Peer = ("adversarial-library", "fmn", {"norm": P[name], "steps": 100})
    title = "LInf" if name == "linf" else name.upper()
    return (theirs,) if name == "l2" else (("Foolbox", f"{title}FMNAttack", {"steps": 100}), theirs)


PUBLISHED: dict[tuple[str, str], tuple[Peer, ...]] = {
    ("ddn", "l2"): (
        ("Foolbox", "DDNAttack", {"steps": 100}),
        ("adversarial-library", "ddn", {"steps": 100, "levels": None}),
    ),
    ("deepfool", "l2"): (
        ("Foolbox", "L2DeepFoolAttack", {}),
        ("adversarial-library", "df", {"steps": 50}),
        ("torchattacks", "DeepFool", {"steps": 50, "overshoot": 0.02}),
        ("ART", "DeepFool", {"max_iter": 50, "epsilon": 0.02, "nb_grads": 10}),
    ),
    ("deepfool-linf", "linf"): (
        ("Foolbox", "LinfDeepFoolAttack", {}),
        ("adversarial-library", "df", {"steps": 50, "norm": P["linf"]}),
    ),
    **{("fmn", name): _fmn(name) for name in P},
    ("cw:searches=5,steps=100,learning_rate=0.1,initial_constant=0.1,abort_early=false", "l2"): (
        ("Foolbox", "L2CarliniWagnerAttack", {**SEARCHES, "steps": 100, "stepsize": 0.1, "abort_early": False}),
        ("ART", "CarliniL2Method", {**SEARCHES, "max_iter": 100, "learning_rate": 0.1, "batch_size": 64}),
    ),
    ("boundary:steps=1000", "l2"): (("Foolbox", "BoundaryAttack", {"steps": 1000}),),
    ("hopskipjump:steps=5", "l2"): (
        ("Foolbox", "HopSkipJumpAttack", {"steps": 5, "constraint": "l2"}),
        ("ART", "HopSkipJump", {"max_iter": 5, "norm": 2}),
    ),
    ("hopskipjump:steps=5", "linf"): (
        ("Foolbox", "HopSkipJumpAttack", {"steps": 5, "constraint": "linf"}),
        ("ART", "HopSkipJump", {"max_iter": 5, "norm": "inf"}),
    ),
}  # fmt: skip
"""Presets and norms, and the same algorithm with the same parameters in other libraries."""

FAB = {"eps": 100.0, "steps": 100, "n_restarts": 1, "n_classes": 10}
ANY: dict[str, tuple[Peer, ...]] = {
    "l0": (
        ("adversarial-library", "sigma_zero", {}),
        ("Foolbox", "L0FMNAttack", {"steps": 1000}),
    ),
    "l1": (
        ("adversarial-library", "alma", {"distance": "l1", "init_lr_distance": 0.5}),
        ("adversarial-library", "fab", {"norm": 1.0, "n_iter": 100}),
        ("Foolbox", "EADAttack", {"binary_search_steps": 5, "steps": 200}),
    ),
    "l2": (
        ("adversarial-library", "alma", {}),
        ("adversarial-library", "fab", {"norm": 2.0, "n_iter": 100}),
        ("torchattacks", "FAB", {**FAB, "norm": "L2"}),
        ("Foolbox", "DDNAttack", {"steps": 1000}),
        ("Foolbox", "L2CarliniWagnerAttack", {**SEARCHES, "steps": 200, "stepsize": 0.1, "abort_early": False}),
    ),
    "linf": (
        ("adversarial-library", "fab", {"norm": P["linf"], "n_iter": 100}),
        ("torchattacks", "FAB", {**FAB, "norm": "Linf"}),
        ("Foolbox", "LInfFMNAttack", {"steps": 1000}),
    ),
}  # fmt: skip
"""The strongest attacks of other libraries in each norm, with 100 to 1,000 steps."""


def minimum_norm_section(
    parts: tuple[str, ...] = ("published", "any"),
    names: tuple[str, ...] = (),
    attacks: tuple[str, ...] = ("",),
) -> str:
    """Return the benchmark's text for the page, of all networks and attacks or of those named (by their beginnings)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    trained = train_networks(SAMPLES)
    networks = {name: trained[name] for name in names or trained}
    lines = [_OPENING]
    if "published" in parts:
        lines += [
            _PUBLISHED,
            *(
                _row(*at, *each)
                for at in networks.items()
                for each in PUBLISHED.items()
                if each[0][0].startswith(attacks)
            ),
        ]
    if "any" in parts:
        strong = {("minimum-norm", name): peers for name, peers in ANY.items()}
        lines += [_ANY, *(_row(*at, *each) for at in networks.items() for each in strong.items())]
    torch.set_num_threads(before)
    return "\n".join([*lines, ""])


def _row(network: str, digits: Digits, attack: tuple[str, str], peers: tuple[Peer, ...]) -> str:
    """Return a row: our median, those of the peers, and the ratio to the smallest; absent libraries are left out."""
    preset, measured = attack
    seeds = 1
    if preset.startswith(("boundary", "hopskipjump")):
        digits, seeds = digits.first(FEW), SEEDS
    cost, mine = _timed(partial(ours, preset, measured), digits, measured, seeds)
    cells, best = [], float("inf")
    for library, name, parameters in peers:
        try:
            run = partial(_theirs, library, name, parameters)
            seconds, far = _timed(run, digits, measured, seeds)
        except Exception as fault:
            cells.append(f"{library} {name}: {type(fault).__name__}")
            continue
        best = min(best, far)
        cells.append(f"{library} {name} {far:.4g} in {seconds:.1f} s")
    ratio = f"{mine / best:.3f}" if mine < float("inf") else "both none" if best == mine else "none"
    row = f"| {network}, {len(digits.ids)} | `{preset}` | {measured} | {mine:.4g} in {cost:.1f} s | {' · '.join(cells)} | {ratio} |"
    print(row, flush=True)
    return row


def _timed(
    run: Callable[[Digits, int], Tensor], digits: Digits, measured: str, seeds: int
) -> tuple[float, float]:
    """Return the mean processor time of a run in seconds, and the median distance over digits and seeds."""
    start = time.process_time()
    found = [run(digits, seed) for seed in range(seeds)]
    seconds = (time.process_time() - start) / seeds
    far = torch.cat([_distances(digits, each, measured) for each in found])
    return seconds, far.median().item()


def _theirs(
    library: str, name: str, parameters: Mapping[str, Any], digits: Digits, seed: int
) -> Tensor:
    run: Callable[..., Tensor] = LIBRARIES[library]
    return run(digits.network, digits.images, digits.labels, name, seed=seed, **parameters)


def ours(name: str, measured: str, digits: Digits, seed: int = 0) -> Tensor:
    """Return the proposals of a preset: search on the prepared copy, as the engine does."""
    searched = prepare(digits.classifier, digits.images[:8], fold=False)
    batch = Batch(digits.images, digits.labels, digits.ids)
    threat, rng = ThreatModel(Unbounded(measured)), SampleRNG(seed, digits.ids)
    return rbi.load_attack(name).attack.run(
        CountingModel(searched, batch, threat, rng), batch, threat, rng
    )


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
    for name in MEASURED:
        network = train(NETWORKS[name], images[::2], labels[::2])
        with torch.no_grad():
            right = ids[network(images[ids]).argmax(1) == labels[ids]]
        classifier = ModuleClassifier(network, (0.0, 1.0), 10)
        found[name] = Digits(classifier, network, images[right], labels[right], right)
    return found


def train(
    make: Callable[[], nn.Module], images: Tensor, labels: Tensor, eps: float = 0.0
) -> nn.Module:
    """Return a network trained for 8 epochs; with an eps for 16, on the examples of five steps of PGD in linf."""
    torch.manual_seed(0)
    network, epochs = make(), 16 if eps else 8
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for epoch in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            inputs, radius = images[batch], eps * min(1.0, 2 * (epoch + 1) / epochs)
            if eps:
                inputs = _perturbed(network, inputs, labels[batch], radius)
            loss = nn.functional.cross_entropy(network(inputs), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def _perturbed(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    delta = torch.empty_like(images).uniform_(-eps, eps)
    for _ in range(5):
        delta.requires_grad_(True)
        loss = nn.functional.cross_entropy(network((images + delta).clamp(0, 1)), labels)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + eps / 2 * gradient.sign()).clamp(-eps, eps)
    return (images + delta).clamp(0, 1)


def nearness(digits: Digits, proposals: Tensor, measured: str) -> str:
    """Return median and mean distance of the proposals, and the number of robust samples, as cells of a table."""
    far = _distances(digits, proposals, measured)
    found = far.isfinite()
    return f"{far.median():.4g} | {far[found].mean():.4g} | {int((~found).sum())}"


def _distances(digits: Digits, proposals: Tensor, measured: str) -> Tensor:
    """Return the distances (n,), infinite where a proposal is no adversarial example."""
    with torch.no_grad():
        missed = digits.network(proposals).argmax(1) == digits.labels
    moved = (proposals - digits.images).detach()
    return norm(moved.where(moved.abs() > 1e-6, 0), measured).where(~missed, float("inf"))


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
    "strided": lambda: nn.Sequential(
        *(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10)),
    ),
}
"""Small networks that are not in the zoo."""

MEASURED = ("perceptron", "maximum pooling", "smooth")
"""Those on which minimum-norm attacks are measured."""

_OPENING = f"""
## Minimum-norm attacks

Median distances and processor times on three networks that the benchmark trains and that are not in the zoo. Attacked are
the correctly classified of {SAMPLES} digits of `mnist5k`, and {FEW} of them by decision-based attacks, with {SEEDS} seeds
whose distances are pooled. One process and one thread run. A digit that is not broken counts as infinitely far. Ratio: our median over the smallest of the peers.
[Why some ratios are above 1](measurements/minimum-norm.md)."""

_PUBLISHED = """
### Published forms: the same algorithm with the same parameters

DDN and FMN take 100 steps, DeepFool up to 50 with an overshoot of 0.02, `cw` 5 searches of 100 steps of 0.1 from c = 0.1,
without early abort, Boundary 1,000 steps, HopSkipJump 5.

| network, digits | preset | norm | ours | peers | ratio |
|---|---|---|---|---|---|"""

_ANY = """
### The strong search against the best attack of any kind

`minimum-norm` with its own parameters. Peers: adversarial-library's ALMA (1,000 steps), FAB (100) and σ-zero; torchattacks'
FAB (100); Foolbox's FMN and DDN (1,000), EAD and Carlini–Wagner (5 × 200).

| network, digits | preset | norm | ours | peers | ratio |
|---|---|---|---|---|---|"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["published", "any"])
    parser.add_argument("--network", choices=MEASURED, nargs="+", default=MEASURED)
    parser.add_argument("--attack", nargs="*", default=[""])
    given = parser.parse_args()
    minimum_norm_section(tuple(given.parts), tuple(given.network), tuple(given.attack))
