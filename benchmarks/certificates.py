"""Measures what certificates cost: processor seconds and certified digits of each method."""

import time
from itertools import islice

import torch

import robustbench_inv as rbi
from robustbench_inv.certification.bounds import (
    Region,
    bound,
    margins,
    optimised_margins,
    wrong_class_rows,
)
from robustbench_inv.certification.milp import Program
from robustbench_inv.certification.tracing import trace
from robustbench_inv.data.sampling import select_samples

__all__ = ["certificates_section"]

CASES = (("mnist-mlp", 0.02, 20), ("mnist-mlp", 0.03, 20), ("mnist-cnn-at", 0.1, 10))
MILP_SECONDS, MILP_SAMPLES = 10.0, 4


def certificates_section() -> str:
    """Return the benchmark's text for the page."""
    rows = [row for case in CASES for row in _rows(*case)]
    about = (
        "Certified digits of mnist5k, linf, and processor seconds of one core for a digit. Each method is run on all "
        f"digits; MILP on at most {MILP_SAMPLES} that alpha-CROWN leaves open, {MILP_SECONDS:.0f} s for a target."
    )
    return "\n".join(
        [
            "## Certificates",
            "",
            about,
            "",
            "| model | eps | method | certified | seconds |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _rows(name: str, eps: float, count: int) -> list[str]:
    model, data = rbi.load_model(name), rbi.load_dataset("mnist5k")
    images, labels = data.batch(torch.tensor(select_samples(data.labels, count)))
    classifier = model.classifier
    network = trace(classifier.module, tuple(images.shape[1:]), classifier.num_classes)
    region = Region.of(images, eps, "linf", classifier.bounds)
    began = time.process_time()
    found = {"ibp": margins(bound(network, region, linear=False), labels, linear=False)}
    spent = {"ibp": time.process_time() - began}
    began = time.process_time()
    bounds = bound(network, region)
    found["crown"] = margins(bounds, labels)
    spent["crown"] = time.process_time() - began
    found["alpha-crown"] = optimised_margins(bounds, labels)
    spent["alpha-crown"] = time.process_time() - began
    rows = [
        f"| {name} | {eps} | {method} | {int((found[method] > 0).all(1).sum())} of {count} "
        f"| {spent[method] / count:.2f} |"
        for method in found
    ]
    left = (found["alpha-crown"] <= 0).any(1).nonzero()[:, 0].tolist()
    if name != "mnist-mlp" or not left:
        return rows
    began, settled, tried = time.process_time(), 0, left[:MILP_SAMPLES]
    for row in tried:
        settled += _settles(Program(bounds, row), labels[row], found["alpha-crown"][row])
    taken = (time.process_time() - began) / len(tried)
    return [
        *rows,
        f"| {name} | {eps} | milp | settles {settled} of {len(tried)} open | {taken:.1f} |",
    ]


def _settles(program: Program, label: torch.Tensor, lowest: torch.Tensor) -> bool:
    """Is a sample proven robust, or has the program a candidate?"""
    weights, _ = wrong_class_rows(label[None], len(lowest) + 1)
    targets = (target for target in lowest.argsort().tolist() if lowest[target] <= 0)
    for target in islice(targets, len(lowest)):
        status = program.search(weights[target], MILP_SECONDS).status
        if status != "robust":
            return status == "candidate"
    return True


if __name__ == "__main__":
    print(certificates_section())
