"""The strongest attack that needs no settings: gradients, nearest successes, targets and scores, cheapest first."""

from robustbench_inv.attacks.apgd import APGD
from robustbench_inv.attacks.cascade import Cascade
from robustbench_inv.attacks.fmn import FMN
from robustbench_inv.attacks.scouted import Scouted

__all__ = ["standard"]


def standard() -> Cascade:
    """Return the ensemble: APGD, FMN, APGD toward five classes and from larger budgets, and Square with gradients where they help."""
    return Cascade(
        (
            APGD(),
            FMN(),
            APGD(steps=25, loss="margin", target_classes=5),
            APGD(steps=90, loss="margin", target_classes=2, widths=(8.0, 5.0, 3.0, 2.0, 1.4)),
            Scouted(),
        )
    )
