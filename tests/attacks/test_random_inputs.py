"""Noise images by preset: the kinds of noise, and their identities."""

import pytest

from robustbench_inv.attacks.random_inputs import NoiseImage
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.errors import BadParameter


def test_the_preset_has_two_kinds_of_noise():
    assert load_attack("noise-image").attack == NoiseImage("uniform")
    assert load_attack("noise-image:kind=gaussian").attack == NoiseImage("gaussian")


def test_the_kind_is_part_of_the_identity():
    uniform, same, gaussian = (
        load_attack(f"noise-image{kind}").digest for kind in ("", ":kind=uniform", ":kind=gaussian")
    )
    assert uniform == same != gaussian


@pytest.mark.parametrize("parameters", ["kind=pink", "kinds=uniform"])
def test_an_unknown_kind_is_rejected(parameters):
    with pytest.raises(BadParameter, match=r"uniform or gaussian|unknown parameter kinds"):
        load_attack(f"noise-image:{parameters}")
