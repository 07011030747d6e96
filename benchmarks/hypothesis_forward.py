"""Times a label-hypothesis net, all hypotheses in one pass, against the CNN and against its naive forms.

All run in one process, alternating; the figures are medians. Forward passes are those of a verdict: the
model itself, in inference mode. Forward and backward passes are those of a search: on the prepared copy,
to the gradient of the input.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import robustbench_inv as rbi
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.models.label_hypothesis import MAX_BATCH, LabelHypothesisNet
from robustbench_inv.models.wrapping import ModuleClassifier

__all__ = ["hypothesis_section"]

BATCH = 250
THREADS = (1, 2)
KEEP_FREED_MEMORY = ((-1, 1 << 30), (-3, 32 << 20))
"""glibc's mallopt: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD so high that freed buffers stay with the process."""

Form = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Contestant:
    """A network, its prepared copy, and the function that evaluates it."""

    name: str
    plain: nn.Module
    searched: nn.Module
    form: Form


def hypothesis_section(repeats: int = 9) -> str:
    """Return the benchmark's text for the page."""
    images, labels = _digits()
    contestants = list(_contestants(images))
    parts = [_opening(repeats), _table(contestants, images, labels, repeats)]
    if _keep_freed_memory():
        parts += [_KEPT, _table(contestants, images, labels, repeats)]
    return "\n".join(parts)


def in_blocks(network: nn.Module, images: Tensor) -> Tensor:
    """Return the outputs of a network, evaluated in the blocks of the label-hypothesis network."""
    return torch.cat([network(block) for block in torch.split(images, MAX_BATCH)])


def head_per_hypothesis(network: nn.Module, images: Tensor) -> Tensor:
    """Return T(x, k) with the convolutions evaluated once and the layers behind them once for each k."""
    assert isinstance(network, LabelHypothesisNet)
    features = network.features(images)
    return torch.cat([_concatenated(network, features, k) for k in range(10)], 1)


def network_per_hypothesis(network: nn.Module, images: Tensor) -> Tensor:
    """Return T(x, k) with the network evaluated once for each k."""
    assert isinstance(network, LabelHypothesisNet)
    outputs = [_concatenated(network, network.features(images), k) for k in range(10)]
    return torch.cat(outputs, 1)


def _concatenated(network: LabelHypothesisNet, features: Tensor, k: int) -> Tensor:
    guess = network.guess
    code = torch.zeros(len(features), len(guess.label), dtype=features.dtype)
    code[:, k] = 1
    joint = torch.cat([guess.weight, guess.label.T], 1)
    first = linear(torch.cat([features, code], 1), joint, guess.bias)
    output: Tensor = network.judge(network.second(first))
    return output


def _digits() -> tuple[Tensor, Tensor]:
    data = rbi.load_dataset("mnist5k")
    return data.batch(torch.tensor(select_samples(data.labels, BATCH)))


def _contestants(images: Tensor) -> Iterator[Contestant]:
    def plain(network: nn.Module, inputs: Tensor) -> Tensor:
        output: Tensor = network(inputs)
        return output

    forms: list[tuple[str, str, Form]] = [
        ("CNN", "mnist-cnn", plain),
        (f"CNN in blocks of {MAX_BATCH}", "mnist-cnn", in_blocks),
        ("C-DV", "mnist-c-dv", plain),
        ("C-JS", "mnist-c-js", plain),
        ("C-DV, naive: head for each hypothesis", "mnist-c-dv", head_per_hypothesis),
        ("C-DV, naive: network for each hypothesis", "mnist-c-dv", network_per_hypothesis),
    ]
    for name, model, form in forms:
        classifier = rbi.load_model(model).classifier
        prepared = prepare(classifier, images[:16], fold=True)
        assert isinstance(classifier, ModuleClassifier)
        assert isinstance(prepared, ModuleClassifier)
        searched = prepared.module
        frozen = deepcopy(classifier.module).requires_grad_(False)
        contestant = Contestant(name, frozen, searched, form)
        if isinstance(frozen, LabelHypothesisNet):
            _check(contestant, images)
        yield contestant


@torch.inference_mode()
def _check(contestant: Contestant, images: Tensor) -> None:
    outputs = contestant.form(contestant.plain, images)
    torch.testing.assert_close(outputs, contestant.plain(images), rtol=1e-5, atol=1e-5)


def _table(contestants: list[Contestant], images: Tensor, labels: Tensor, repeats: int) -> str:
    columns = [
        _column(contestants, task, threads, repeats)
        for task in (_forward(images), _forward_and_backward(images, labels))
        for threads in THREADS
    ]
    rows = [
        " | ".join([f"| {each.name}", *(column[i] for column in columns)]) + " |"
        for i, each in enumerate(contestants)
    ]
    titles = [f"{task}, {t} thread{'s' * (t > 1)}" for task in _TASKS for t in THREADS]
    return "\n".join(["| form | " + " | ".join(titles) + " |", "|---" * 5 + "|", *rows, ""])


_TASKS = ("forward", "forward + backward")


def _forward(images: Tensor) -> Callable[[Contestant], None]:
    @torch.inference_mode()
    def run(contestant: Contestant) -> None:
        contestant.form(contestant.plain, images)

    return run


def _forward_and_backward(images: Tensor, labels: Tensor) -> Callable[[Contestant], None]:
    def run(contestant: Contestant) -> None:
        inputs = images.clone().requires_grad_()
        loss = cross_entropy(contestant.form(contestant.searched, inputs), labels)
        torch.autograd.grad(loss, inputs)

    return run


def _column(
    contestants: list[Contestant], task: Callable[[Contestant], None], threads: int, repeats: int
) -> list[str]:
    """Return each contestant's median time in ms, and in multiples of the first one's."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    seconds: list[list[float]] = [[] for _ in contestants]
    for _ in range(repeats):
        for contestant, times in zip(contestants, seconds, strict=True):
            start = time.perf_counter()
            task(contestant)
            times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    medians = [median(times) for times in seconds]
    return [f"{1e3 * found:.1f} ms, {found / medians[0]:.2f}" for found in medians]


def _keep_freed_memory() -> bool:
    """Make the C library keep freed buffers; return False where it has no such option."""
    try:
        library = ctypes.CDLL(None)
        return all(library.mallopt(option, value) == 1 for option, value in KEEP_FREED_MEMORY)
    except (AttributeError, OSError):
        return False


def _opening(repeats: int) -> str:
    return f"""
## All hypotheses at the cost of one network

{BATCH} digits of `mnist5k`; one process, networks in turn, medians of {repeats} runs, and multiples of the CNN's time. Forward: the model itself,
in inference mode. Forward + backward: the prepared copy, to the gradient of the input. An image takes 1.9 million products in the CNN and 3.4
million in a label-hypothesis network, whose second and third layers evaluate ten hypotheses. The naive forms take 10.8 and 18.9 million. Inactive
units of the first layer are skipped.
"""


_KEPT = """
The same with freed memory kept by the process (`mallopt`), which avoids page faults:
"""
