"""The strongest attack that needs no settings: gradients, nearest successes, targets and scores, cheapest first."""

from robustbench_inv.attacks.apgd import APGD
from robustbench_inv.attacks.cascade import Cascade
from robustbench_inv.attacks.fmn import FMN
from robustbench_inv.attacks.scouted import Scouted

__all__ = ["standard"]


def standard() -> Cascade:
    """Return the ensemble: APGD, FMN, APGD toward five classes, and Square with gradients where they help."""
    return Cascade(
        (
            APGD(),
            FMN(),
            APGD(steps=25, loss="margin", target_classes=5),
            Scouted(),
        )
    )
