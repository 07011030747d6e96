"""Times our PGD against Foolbox's and torchattacks' on the same model, samples, eps and steps.

All three run in one process, alternating; the figures are medians. ``make bench``
puts them into docs/benchmarks.md.
"""

import argparse
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from hypothesis_forward import hypothesis_section
from minimum_norm import minimum_norm_section
from query_attacks import query_section
from standard import standard_section
from torch import Tensor, nn

import robustbench_inv as rbi
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.evaluation.metering import Meter, judge
from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.models.module import wrap_module
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import Output
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

STEPS = 40
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


@dataclass
class Passes:
    """Counts the inputs that go through a module, forward and backward."""

    forward: int = 0
    backward: int = 0

    def watch(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | Output) -> None:
        """Forward hook."""
        logits = output.logits if isinstance(output, Output) else output
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._count)

    def _count(self, slope: Tensor) -> None:
        self.backward += len(slope)


@dataclass(frozen=True)
class Problem:
    """What all contestants are given."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    ids: Tensor
    eps: float
    batch_size: int

    def batches(self) -> Sequence[slice]:
        """Return the slices of the batches."""
        return [slice(i, i + self.batch_size) for i in range(0, len(self.ids), self.batch_size)]


def ours(problem: Problem) -> Tensor:
    """Return our proposals: search on the prepared copy, as the engine does."""
    classifier = wrap_module(problem.network, "mnist-cnn")
    searched = prepare(classifier, problem.images[:8], fold=True)
    attack = rbi.load_attack("pgd", steps=STEPS).attack
    threat, found = ThreatModel(LpBall("linf", problem.eps)), []
    for rows in problem.batches():
        noise = Noise(0, problem.ids[rows])
        batch = Batch(problem.images[rows], problem.labels[rows], problem.ids[rows])
        right = judge(classifier, batch.images, noise).decision == batch.labels
        shown = batch.images.clone()
        meter = Meter(searched, batch[right], threat, noise.rows(right))
        shown[right] = attack.run(meter, batch[right], threat, noise.rows(right))
        judge(classifier, shown, noise)
        found.append(shown)
    return torch.cat(found)


def foolbox(problem: Problem) -> Tensor:
    """Return the proposals of Foolbox's LinfPGD with its own default step, 1/30 of eps."""
    import foolbox as fb

    model = fb.PyTorchModel(problem.network, bounds=(0, 1), device="cpu")
    attack = fb.attacks.LinfPGD(steps=STEPS)
    found = []
    for rows in problem.batches():
        _, shown, _ = attack(
            model, problem.images[rows], problem.labels[rows], epsilons=problem.eps
        )
        found.append(shown)
    return torch.cat(found)


def torchattacks(problem: Problem) -> Tensor:
    """Return the proposals of torchattacks' PGD with the step that Foolbox takes."""
    import torchattacks as ta

    attack = ta.PGD(problem.network, eps=problem.eps, alpha=problem.eps / 30, steps=STEPS)
    return torch.cat([attack(problem.images[r], problem.labels[r]) for r in problem.batches()])


def measure(problem: Problem, repeats: int) -> list[str]:
    """Return one table row for each contestant."""
    contestants: list[Callable[[Problem], Tensor]] = [ours, foolbox, torchattacks]
    seconds: dict[str, list[float]] = {each.__name__: [] for each in contestants}
    accuracy, passes = {}, {}
    for contestant in contestants:
        passes[contestant.__name__], shown = _counted(contestant, problem)
        accuracy[contestant.__name__] = _accuracy(problem, shown)
    for _ in range(repeats):
        for contestant in contestants:
            start = time.perf_counter()
            contestant(problem)
            seconds[contestant.__name__].append(time.perf_counter() - start)
    first, n = median(seconds["ours"]), len(problem.ids)
    return [
        f"| {problem.eps:g} | {name} | {100 * accuracy[name]:.1f} % | {median(times):.2f} s | "
        f"{first / median(times):.2f} | {passes[name].forward / n:.1f} | {passes[name].backward / n:.1f} |"
        for name, times in seconds.items()
    ]


def _accuracy(problem: Problem, shown: Tensor) -> float:
    inside = (shown - problem.images).abs().amax((1, 2, 3)) <= problem.eps + 1e-6
    with torch.no_grad():
        wrong = problem.network(shown).argmax(1) != problem.labels
    return 1 - (inside & wrong).double().mean().item()


def _counted(contestant: Callable[[Problem], Tensor], problem: Problem) -> tuple[Passes, Tensor]:
    passes = Passes()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: (
            passes.watch(module, inputs, output) if _top(module) else None
        )
    )
    try:
        shown = contestant(problem)
    finally:
        handle.remove()
    return passes, shown


def _top(module: nn.Module) -> bool:
    return type(module).__name__ == "GuessFirstCNN"


def main() -> None:
    """Print the table; with --write also put it into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.02, 0.1, 0.3])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    network = rbi.load_model("mnist-cnn").classifier.module
    data = rbi.load_dataset("mnist5k")
    ids = torch.tensor(select_samples(data.labels, arguments.samples))
    images, labels = data.batch(ids)
    rows = []
    for eps in arguments.eps:
        problem = Problem(network, images, labels, ids, eps, arguments.batch_size)
        rows += measure(problem, arguments.repeats)
    sections = (standard_section, minimum_norm_section, query_section, hypothesis_section)
    text = "\n".join([_page(rows, arguments), *(section() for section in sections)])
    print(text)
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")


def _page(rows: list[str], arguments: argparse.Namespace) -> str:
    cores = torch.get_num_threads()
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"PGD, linf, {STEPS} steps, one random start, on `mnist-cnn` and {arguments.samples} digits of",
            f"`mnist5k`, batches of {arguments.batch_size}; one process, contestants in turn, medians of",
            f"{arguments.repeats} runs; {platform.machine()}, {cores} threads, torch {torch.__version__}.",
            "`make bench` makes this page. Ours counts clean answers, search and verdicts.",
            "",
            "| eps | attack | robust accuracy | time | ours / its time | forward passes | backward passes |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
