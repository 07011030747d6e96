"""Probe of the scale of a model's inputs: C17 (declared bounds, the data's bounds, the data)."""

from math import isnan

from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import CHECKS, Verdict

__all__ = ["check_bounds"]

SLACK = 1e-6
"""What rounding to the model's dtype may add to a bound."""


def check_bounds(probe: Probe) -> Verdict:
    """C17: do the data lie in the bounds that the model declares, and are those the data's own?

    Attacks clamp to the model's bounds and eps is in its input units, so that a model with other bounds than
    its data is attacked with images that the data could never show, or with an eps of the wrong size.
    """
    low, high = map(float, probe.classifier.bounds)
    least, largest = float(probe.batch.images.min()), float(probe.batch.images.max())
    faults = _faults((low, high), probe.data_bounds, (least, largest))
    evidence = (
        f"The model declares [{low:g}, {high:g}], the data set [{probe.data_bounds[0]:g}, "
        f"{probe.data_bounds[1]:g}], and {len(probe.batch)} samples lie in [{least:.4g}, {largest:.4g}]"
        f"{''.join(f'; {fault}' for fault in faults)}."
    )
    excess = max(low - least, largest - high, 0.0)
    return CHECKS["C17"].says(probe.model, "FAIL" if faults else "PASS", excess, evidence)


def _faults(
    box: tuple[float, float], data_box: tuple[float, float], seen: tuple[float, float]
) -> list[str]:
    faults = []
    if any(map(isnan, box)) or not box[0] < box[1]:
        faults.append("the declared bounds are no interval")
    if not (box[0] - SLACK <= seen[0] and seen[1] <= box[1] + SLACK):
        faults.append("data leave the declared bounds")
    if not all(a == b or abs(a - b) <= SLACK for a, b in zip(box, data_box, strict=True)):
        faults.append("the two boxes differ")
    return faults
