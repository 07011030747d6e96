"""Probes of a model's answers: C10 (logits, not probabilities) and C11 (each answer stands alone)."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import CHECKS, Grade, Verdict
from robustbench_inv.models.protocol import Classifier, Stochastic
from robustbench_inv.tensors import ALIKE, disagreement

__all__ = ["check_determinism", "check_logits"]


def check_logits(probe: Probe) -> Verdict:
    """C10: are the outputs probabilities, or a multiple of them, instead of logits?

    Probabilities are >= 0 and have the same sum for every input; losses that take a softmax of them have
    gradients that are too flat.

    References:
        Croce and Hein, AutoAttack, flag for the output range.
    """
    logits = probe.ask().logits.double()
    sums = logits.sum(1)
    total, spread = float(sums.mean()), float(sums.max() - sums.min())
    least, largest = float(logits.min()), float(logits.max())
    suspicious = least >= 0 and total > 0 and spread <= 1e-3 * total
    evidence = (
        f"Outputs of {len(logits)} samples lie in [{least:.3g}, {largest:.3g}], with sums of {total:.3g} "
        f"± {spread / 2:.2g}."
    )
    return CHECKS["C10"].says(probe.model, "WARN" if suspicious else "PASS", spread, evidence)


def check_determinism(probe: Probe) -> Verdict:
    """C11: does the answer to an input depend on anything else?

    Five forward passes of the same batch, the samples one by one, the batch in reverse order; train mode;
    random numbers drawn from a global generator. A model that is stochastic by declaration takes its draws
    as an argument: it gets the same ones here, and WARN, because its attacks must average over draws
    (EOT). Draws that it hides cannot be replayed and give FAIL.

    References:
        Croce and Hein, AutoAttack, flag for randomized defenses.
    """
    before = _random_state()
    reference = probe.ask().logits
    repeated = max(disagreement(reference, probe.ask().logits) for _ in range(4))
    drew = _random_state() != before
    differences = {
        "5 repeats": repeated,
        "batches of 1": _alone(probe, reference),
        "reverse order": _reversed(probe, reference),
    }
    faults = [
        f"{how} disagree or raise" for how, value in differences.items() if not value <= ALIKE
    ]
    faults += ["it draws from a global generator"] if drew else []
    faults += ["it is in train mode"] if _trains(probe.classifier) else []
    worst = max(differences.values())
    verdict, note = _judge(probe, faults)
    evidence = (
        f"Answers to the same input differ by at most {worst:.2g} of the largest logit over 5 repeats, "
        f"batches of 1 and {len(reference)}, and reverse order{note}."
    )
    return CHECKS["C11"].says(probe.model, verdict, worst, evidence)


def _judge(probe: Probe, faults: list[str]) -> tuple[Grade, str]:
    model = probe.classifier
    if faults:
        return "FAIL", ": " + ", ".join(faults)
    if not isinstance(model, Stochastic):
        return "PASS", ""
    if model.fixed_noise:
        return "PASS", f"; it averages {model.draws} draws, the same in every answer"
    changed = (probe.ask().decision != probe.ask(step=1).decision).double().mean()
    return "WARN", (
        f" under the same draws; it averages {model.draws} fresh ones, which change {changed:.1%} of its "
        "decisions, so that attacks take the EOT path"
    )


def _alone(probe: Probe, reference: Tensor) -> float:
    """Disagreement of the answers in the batch and those to samples on their own (at most 16)."""
    count = min(16, len(reference))
    rows = torch.arange(count, device=reference.device)[:, None].unbind()
    try:
        alone = torch.cat([probe.ask(row).logits for row in rows])
    except Exception:  # a network in train mode may refuse a single sample
        return float("inf")
    return disagreement(reference[:count], alone)


def _reversed(probe: Probe, reference: Tensor) -> float:
    rows = torch.arange(len(reference), device=reference.device).flip(0)
    return disagreement(reference[rows], probe.ask(rows).logits)


def _trains(classifier: Classifier) -> bool:
    return any(module.training for part in _parts(classifier) for module in part.modules())


def _parts(classifier: Classifier) -> Iterator[nn.Module]:
    """The networks of a classifier: itself, or what it holds."""
    if isinstance(classifier, nn.Module):
        yield classifier
        return
    yield from (value for value in vars(classifier).values() if isinstance(value, nn.Module))


def _random_state() -> tuple[object, ...]:
    """The state of the global generators that a model could draw from."""
    gpu = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 - to see whether a model uses it
    return torch.get_rng_state().numpy().tobytes(), *gpu, random.getstate(), repr(legacy)
