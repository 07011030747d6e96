"""What every attack must fulfil, asked of this one; and that the plugin is found by its entry point."""

import pytest

from robustbench_inv import load_attack
from robustbench_inv.testing.harness import check_attack


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_contrast_keeps_to_the_rules(strength):
    check_attack(load_attack(f"contrast:strength={strength}").attack)
