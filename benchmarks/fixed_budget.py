"""Compares pgd-tuned with PGD of Foolbox, torchattacks and adversarial-library: same model, samples, eps and steps.

All run in one process on one thread, in turn; times are medians of processor time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from peers import adversarial_library, is_there
from timing import medians, one_thread
from torch import Tensor, nn

import robustbench_inv as rbi
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.models.protocol import Classifier, classify
from robustbench_inv.models.wrapping import ModuleClassifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import LpBall, inside_box
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["fixed_budget_section"]

STEPS, SAMPLES, DATA = 40, 250, "mnist5k"

CONTESTS = {
    "mnist-cnn": (0.002, 0.02, 0.1, 0.3),
    "mnist-cnn-at": (0.02, 0.3),
    "mnist-c-dv": (0.002, 0.02, 0.1),
}
"""Eps from those that break no digit to those that break all; models that are not installed are skipped."""


@dataclass(frozen=True)
class Problem:
    """The input of all libraries: model, samples and eps."""

    classifier: Classifier
    network: nn.Module
    batch: Batch
    eps: float

    def accuracy(self, shown: Tensor) -> float:
        """Return the robust accuracy, counting only allowed inputs."""
        budget, clean = LpBall("linf", self.eps), self.batch.images
        allowed = budget.contains(clean, shown) & inside_box(shown, self.classifier.bounds)
        with torch.no_grad():
            wrong = self.network(shown).argmax(1) != self.batch.labels
        return 1 - float((allowed & wrong).double().mean())


class Passes:
    """Counts forward and backward passes of a network and its copies."""

    def __init__(self, network: nn.Module) -> None:
        self.kind, self.forward, self.backward = type(network), 0, 0

    def count(self, contestant: Callable[[], Tensor]) -> Tensor:
        """Return a library's candidates."""
        handle = nn.modules.module.register_module_forward_hook(self._watch)
        try:
            return contestant()
        finally:
            handle.remove()

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if type(module) is self.kind:
            self.forward += len(output)
            if output.requires_grad:
                output.register_hook(self._count_backward)  # type: ignore[no-untyped-call]

    def _count_backward(self, slope: Tensor) -> None:
        self.backward += len(slope)


Contestant = Callable[[Problem], Tensor]


def fixed_budget_section() -> str:
    """Return the benchmark's text for the page."""
    with one_thread():
        rows = [
            row
            for model, budgets in CONTESTS.items()
            if is_there(model, DATA)
            for eps in budgets
            for row in _rows(model, eps)
        ]
    return "\n".join([_OPENING, *rows, ""])


def ours(problem: Problem) -> Tensor:
    """Return our candidates as the engine computes them: clean predictions, search on the prepared copy, verdicts."""
    classifier, batch = problem.classifier, problem.batch
    rng, threat = SampleRNG(0, batch.ids), ThreatModel(LpBall("linf", problem.eps))
    searched = prepare(classifier, batch.images[:16], fold=True)
    right = classify(classifier, batch.images, rng).decision == batch.labels
    meter = CountingModel(searched, batch[right], threat, rng.rows(right))
    shown = batch.images.clone()
    attack = rbi.load_attack("pgd-tuned", steps=STEPS).attack
    shown[right] = attack.run(meter, batch[right], threat, rng.rows(right))
    classify(classifier, shown, rng)
    return shown


def foolbox(problem: Problem) -> Tensor:
    """Return the candidates of Foolbox's LinfPGD with its default step, 1/30 of eps."""
    import foolbox as fb
    from foolbox.models.pytorch import PyTorchModel

    model = PyTorchModel(problem.network, bounds=(0, 1), device="cpu")
    batch, attack = problem.batch, fb.attacks.LinfPGD(steps=STEPS)
    shown: Tensor = attack(model, batch.images, batch.labels, epsilons=problem.eps)[1]
    return shown


def torchattacks(problem: Problem) -> Tensor:
    """Return the candidates of torchattacks' PGD with Foolbox's step."""
    import torchattacks as ta

    attack = ta.PGD(problem.network, eps=problem.eps, alpha=problem.eps / 30, steps=STEPS)
    shown: Tensor = attack(problem.batch.images, problem.batch.labels)
    return shown


def adversarial(problem: Problem) -> Tensor:
    """Return the candidates of adversarial-library's PGD with its default step, 1/30 of eps."""
    library, batch = adversarial_library(), problem.batch
    assert library is not None
    shown: Tensor = library.pgd_linf(
        problem.network, batch.images, batch.labels, problem.eps, steps=STEPS
    )
    return shown


def _rows(model: str, eps: float) -> list[str]:
    """Return one table row for each library."""
    problem = _problem(model, eps)
    contestants: dict[str, Contestant] = {
        "ours": ours,
        "foolbox": foolbox,
        "torchattacks": torchattacks,
    }
    if adversarial_library() is not None:
        contestants["adversarial-library"] = adversarial
    told = {name: _told(contestant, problem) for name, contestant in contestants.items()}
    seconds = medians({name: partial(each, problem) for name, each in contestants.items()})
    return [
        f"| {model} | {eps:g} | {name} | {accuracy} | {seconds[name]:.2f} s | "
        f"{seconds['ours'] / seconds[name]:.2f} | {passes} |"
        for name, (accuracy, passes) in told.items()
    ]


def _problem(model: str, eps: float) -> Problem:
    classifier, data = rbi.load_model(model).classifier, rbi.load_dataset(DATA)
    assert isinstance(classifier, ModuleClassifier)
    ids = torch.tensor(select_samples(data.labels, SAMPLES))
    images, labels = data.batch(ids)
    return Problem(classifier, classifier.module, Batch(images, labels, ids), eps)


def _told(contestant: Contestant, problem: Problem) -> tuple[str, str]:
    """Return a library's robust accuracy, and its passes per sample."""
    passes, n = Passes(problem.network), len(problem.batch)
    shown = passes.count(partial(contestant, problem))
    accuracy = f"{100 * problem.accuracy(shown):.1f} %"
    return accuracy, f"{passes.forward / n:.1f} | {passes.backward / n:.1f}"


_OPENING = f"""
## PGD

linf, {STEPS} steps, one random start, {SAMPLES} digits of `{DATA}` in one batch; one process, one thread, libraries in turn,
medians of processor time. Ours is the preset `pgd-tuned`; its time includes the prepared copy, clean predictions,
search and verdicts.

| model | eps | attack | robust accuracy | time | ours / its time | forward passes | backward passes |
|---|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    print(fixed_budget_section())
