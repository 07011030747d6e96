"""Checks of a model's outputs and input range: logits (C10), determinism (C11), bounds (C17)."""

import random
from collections.abc import Iterator
from math import isnan

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import Grade, Verdict
from robustbench_inv.models.protocol import Classifier, Stochastic
from robustbench_inv.tensors import SAME_ANSWER_TOLERANCE, relative_difference

__all__ = ["check_bounds", "check_determinism", "check_logits", "squashed_scores"]


def check_logits(probe: Probe) -> Verdict:
    """C10: are the outputs probabilities, or a multiple of them, instead of logits?

    Probabilities are >= 0 and have the same sum for every input; losses that take a softmax of them have
    gradients that are too flat. Logits that are NaN or +inf have no usable loss at all; −inf rules a class out.

    References:
        Croce and Hein, AutoAttack, flag for the output range.
    """
    logits = probe.query().logits.double()
    undefined = logits.isnan().any(1) | (logits == torch.inf).any(1)
    if undefined.any():
        evidence = (
            f"Of {len(logits)} samples {int(logits.isnan().any(1).sum())} have a logit of NaN and "
            f"{int((logits == torch.inf).any(1).sum())} one of +inf, where losses and gradients are undefined."
        )
        share = float(undefined.double().mean())
        return CHECKS["C10"].make_verdict(probe.model, "FAIL", share, evidence)
    known = logits[logits.isfinite()]  # −inf rules a class out
    sums = logits.where(logits.isfinite(), 0).sum(1)
    total, spread = float(sums.mean()), float(sums.max() - sums.min())
    least, largest = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    suspicious = _are_probabilities(logits)
    ruled_out = logits.numel() - len(known)
    note = f"; {ruled_out} of {logits.numel()} logits are −inf" if ruled_out else ""
    evidence = (
        f"Outputs of {len(logits)} samples lie in [{least:.3g}, {largest:.3g}], with sums of {total:.3g} "
        f"± {spread / 2:.2g}{note}."
    )
    return CHECKS["C10"].make_verdict(
        probe.model, "WARN" if suspicious else "PASS", spread, evidence
    )


def squashed_scores(logits: Tensor) -> Tensor | None:
    """Return outputs (n, C) of a sigmoid or softmax without a factor; None for logits."""
    if logits.min() >= 0 and logits.max() <= 1:
        return logits
    if _are_probabilities(logits):
        return logits / logits.sum(1, keepdim=True)
    return None


def _are_probabilities(logits: Tensor) -> bool:
    """Return whether outputs (n, C) are finite and >= 0 with the same sum for every input."""
    sums = logits.double().sum(1)
    total, spread = float(sums.mean()), float(sums.max() - sums.min())
    return bool(logits.isfinite().all() and logits.min() >= 0 and total > 0) and (
        spread <= 1e-3 * total
    )


HALF_TOLERANCE = 0.02
"""C11: tolerance of a model that computes in 16 bits; neighbouring numbers of bfloat16 lie 0.008 apart, relatively."""


def check_determinism(probe: Probe) -> Verdict:
    """C11: does the output depend on anything but the input?

    Five forward passes of the same batch, the samples one by one, the batch in reverse order; train mode;
    random numbers drawn from a global generator. A model that declares itself stochastic takes its noise as an
    argument. It gets the same noise here, and WARN, because its attacks must average over noise (EOT). Hidden
    noise cannot be replayed and gives FAIL.

    References:
        Croce and Hein, AutoAttack, flag for randomized defenses.
    """
    before = _random_state()
    reference = probe.query().logits
    repeated = max(relative_difference(reference, probe.query().logits) for _ in range(4))
    drew = _random_state() != before
    differences = {
        "5 repeats": repeated,
        "batches of 1": _single_sample_disagreement(probe, reference),
        "reverse order": _reversed_disagreement(probe, reference),
    }
    tolerance = HALF_TOLERANCE if probe.half_precision else SAME_ANSWER_TOLERANCE
    faults = [
        f"{how} disagree or raise" for how, value in differences.items() if not value <= tolerance
    ]
    faults += ["it draws from a global generator"] if drew else []
    faults += ["it is in train mode"] if _in_train_mode(probe.classifier) else []
    worst = max(differences.values())
    verdict, note = _determinism_grade(probe, faults)
    evidence = (
        f"Outputs for the same input differ by at most {worst:.2g} of the largest logit over 5 repeats, "
        f"batches of 1 and {len(reference)}, and reverse order{note}."
    )
    return CHECKS["C11"].make_verdict(probe.model, verdict, worst, evidence)


def _determinism_grade(probe: Probe, faults: list[str]) -> tuple[Grade, str]:
    model = probe.classifier
    if faults:
        return "FAIL", ": " + ", ".join(faults)
    if not isinstance(model, Stochastic):
        return "PASS", ""
    if model.fixed_noise:
        return "PASS", f"; it averages {model.draws} draws, the same in every forward pass"
    changed = (probe.query().decision != probe.query(step=1).decision).double().mean()
    return "WARN", (
        f" with the same noise; it averages {model.draws} draws, which change {changed:.1%} of its "
        "predictions, so attacks average over noise (EOT)"
    )


def _single_sample_disagreement(probe: Probe, reference: Tensor) -> float:
    """Return the difference of outputs in the batch and of single samples (at most 16)."""
    count = min(16, len(reference))
    rows = torch.arange(count, device=reference.device)[:, None].unbind()
    try:
        alone = torch.cat([probe.query(row).logits for row in rows])
    except Exception:  # a network in train mode may refuse a single sample
        return float("inf")
    return relative_difference(reference[:count], alone)


def _reversed_disagreement(probe: Probe, reference: Tensor) -> float:
    rows = torch.arange(len(reference), device=reference.device).flip(0)
    return relative_difference(reference[rows], probe.query(rows).logits)


def _in_train_mode(classifier: Classifier) -> bool:
    return any(module.training for part in _networks(classifier) for module in part.modules())


def _networks(classifier: Classifier) -> Iterator[nn.Module]:
    """Yield the networks of a classifier: itself, or those among its attributes."""
    if isinstance(classifier, nn.Module):
        yield classifier
        return
    yield from (value for value in vars(classifier).values() if isinstance(value, nn.Module))


def _random_state() -> tuple[object, ...]:
    """Return the state of the global random generators."""
    gpu = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 - to see whether a model uses it
    return torch.get_rng_state().numpy().tobytes(), *gpu, random.getstate(), repr(legacy)


BOUNDS_TOLERANCE = 1e-6
"""Largest excess over a bound that rounding to the model's dtype explains."""


def check_bounds(probe: Probe) -> Verdict:
    """C17: do the data lie in the bounds that the model declares, and are these the bounds of the data set?

    Attacks clamp to the model's bounds, and eps is in its input units. With other bounds than those of the data,
    a model is attacked with impossible images or with an eps of the wrong size.
    """
    low, high = map(float, probe.classifier.bounds)
    least, largest = float(probe.batch.images.min()), float(probe.batch.images.max())
    faults = _bounds_faults((low, high), probe.data_bounds, (least, largest))
    evidence = (
        f"The model declares [{low:g}, {high:g}], the data set [{probe.data_bounds[0]:g}, "
        f"{probe.data_bounds[1]:g}], and {len(probe.batch)} samples lie in [{least:.4g}, {largest:.4g}]"
        f"{''.join(f'; {fault}' for fault in faults)}."
    )
    excess = max(low - least, largest - high, 0.0)
    return CHECKS["C17"].make_verdict(probe.model, "FAIL" if faults else "PASS", excess, evidence)


def _bounds_faults(
    box: tuple[float, float], data_box: tuple[float, float], seen: tuple[float, float]
) -> list[str]:
    faults = []
    if any(map(isnan, box)) or not box[0] < box[1]:
        faults.append("the declared bounds are no interval")
    if not (box[0] - BOUNDS_TOLERANCE <= seen[0] and seen[1] <= box[1] + BOUNDS_TOLERANCE):
        faults.append("data leave the declared bounds")
    if not all(
        a == b or abs(a - b) <= BOUNDS_TOLERANCE for a, b in zip(box, data_box, strict=True)
    ):
        faults.append("the two boxes differ")
    return faults
