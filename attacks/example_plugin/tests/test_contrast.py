"""The plugin is found by its entry point, and its attack passes the harness."""

import pytest

from robustbench_inv import load_attack
from robustbench_inv.testing.harness import check_attack


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_contrast_passes_the_harness(strength):
    check_attack(load_attack(f"contrast:strength={strength}").attack)
