"""Times our PGD against that of Foolbox, torchattacks and adversarial-library: same model, samples, eps and steps.

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
"""Budgets, from those that break no digit to those that break all; a model that is not installed is left out."""


@dataclass(frozen=True)
class Problem:
    """The model, samples and eps that every library gets."""

    classifier: Classifier
    network: nn.Module
    batch: Batch
    eps: float

    def accuracy(self, proposals: Tensor) -> float:
        """Return the share of samples that no allowed input breaks."""
        budget, clean = LpBall("linf", self.eps), self.batch.images
        allowed = budget.contains(clean, proposals) & inside_box(proposals, self.classifier.bounds)
        with torch.no_grad():
            wrong = self.network(proposals).argmax(1) != self.batch.labels
        return 1 - float((allowed & wrong).double().mean())


class Passes:
    """Counts the inputs that go through a network, forward and backward, and through copies of it."""

    def __init__(self, network: nn.Module) -> None:
        self.kind, self.forward, self.backward = type(network), 0, 0

    def count(self, contestant: Callable[[], Tensor]) -> Tensor:
        """Return the proposals of a contestant."""
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

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


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
    """Return our proposals as the engine makes them: clean predictions, search on the prepared copy, verdicts."""
    classifier, batch = problem.classifier, problem.batch
    rng, threat = SampleRNG(0, batch.ids), ThreatModel(LpBall("linf", problem.eps))
    searched = prepare(classifier, batch.images[:16], fold=True)
    right = classify(classifier, batch.images, rng).decision == batch.labels
    counting = CountingModel(searched, batch[right], threat, rng.rows(right))
    proposals = batch.images.clone()
    attack = rbi.load_attack("pgd-tuned", steps=STEPS).attack
    proposals[right] = attack.run(counting, batch[right], threat, rng.rows(right))
    classify(classifier, proposals, rng)
    return proposals


def foolbox(problem: Problem) -> Tensor:
    """Return the proposals of Foolbox's LinfPGD with its own default step, 1/30 of eps."""
    import foolbox as fb
    from foolbox.models.pytorch import PyTorchModel

    model = PyTorchModel(problem.network, bounds=(0, 1), device="cpu")
    batch, attack = problem.batch, fb.attacks.LinfPGD(steps=STEPS)
    proposals: Tensor = attack(model, batch.images, batch.labels, epsilons=problem.eps)[1]
    return proposals


def torchattacks(problem: Problem) -> Tensor:
    """Return the proposals of torchattacks' PGD with the step that Foolbox takes."""
    import torchattacks as ta

    attack = ta.PGD(problem.network, eps=problem.eps, alpha=problem.eps / 30, steps=STEPS)
    proposals: Tensor = attack(problem.batch.images, problem.batch.labels)
    return proposals


def adversarial(problem: Problem) -> Tensor:
    """Return the proposals of adversarial-library's PGD with its own default step, 1/30 of eps."""
    library, batch = adversarial_library(), problem.batch
    assert library is not None
    proposals: Tensor = library.pgd_linf(
        problem.network, batch.images, batch.labels, problem.eps, steps=STEPS
    )
    return proposals


def _rows(model: str, eps: float) -> list[str]:
    """Return one table row for each contestant."""
    problem = _problem(model, eps)
    contestants: dict[str, Contestant] = {
        "ours": ours,
        "foolbox": foolbox,
        "torchattacks": torchattacks,
    }
    if adversarial_library() is not None:
        contestants["adversarial-library"] = adversarial
    results = {name: _measure(contestant, problem) for name, contestant in contestants.items()}
    seconds = medians({name: partial(each, problem) for name, each in contestants.items()})
    return [
        f"| {model} | {eps:g} | {name} | {accuracy} | {seconds[name]:.2f} s | "
        f"{seconds['ours'] / seconds[name]:.2f} | {passes} |"
        for name, (accuracy, passes) in results.items()
    ]


def _problem(model: str, eps: float) -> Problem:
    classifier, data = rbi.load_model(model).classifier, rbi.load_dataset(DATA)
    assert isinstance(classifier, ModuleClassifier)
    ids = torch.tensor(select_samples(data.labels, SAMPLES))
    images, labels = data.batch(ids)
    return Problem(classifier, classifier.module, Batch(images, labels, ids), eps)


def _measure(contestant: Contestant, problem: Problem) -> tuple[str, str]:
    """Return a contestant's robust accuracy, and its passes for each sample."""
    passes, n = Passes(problem.network), len(problem.batch)
    proposals = passes.count(partial(contestant, problem))
    accuracy = f"{100 * problem.accuracy(proposals):.1f} %"
    return accuracy, f"{passes.forward / n:.1f} | {passes.backward / n:.1f}"


_OPENING = f"""
## PGD

linf, {STEPS} steps, one random start, {SAMPLES} digits of `{DATA}` in one batch; one process, one thread, libraries in turn,
medians of processor time. Our time includes the prepared copy, clean predictions, search and judging; our rows are from `pgd-tuned`.

| model | eps | attack | robust accuracy | time | ours / its time | forward passes | backward passes |
|---|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    print(fixed_budget_section())
