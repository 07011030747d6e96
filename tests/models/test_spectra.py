"""Networks of mass spectra: the thesis's numbers of parameters, and attacks on inputs of one dimension."""

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.spectra import (
    BINS,
    RESIDUAL_LAYERS,
    IsotopeNet,
    ResidualNet,
    receptive_field,
)


@pytest.mark.parametrize(("build", "count"), [(IsotopeNet, 13_935), (ResidualNet, 2_132_130)])
def test_the_number_of_parameters_is_that_of_the_thesis(build, count):
    """Table 7.2 and table A.1."""
    model = build()
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.eval()(torch.rand(1, BINS)).shape == (1, 2)


def test_the_receptive_field_is_the_number_of_bins_that_change_a_feature():
    layers = IsotopeNet(300).layers.double().eval()
    x = torch.rand(1, 1, 300, dtype=torch.float64, requires_grad=True)
    middle = layers(x)[0, 0, 10]
    (gradient,) = torch.autograd.grad(middle, x)
    touched = gradient[0, 0].nonzero()
    assert int(touched.max() - touched.min()) + 1 <= receptive_field()
    assert receptive_field(RESIDUAL_LAYERS, kernel=5) > BINS


@pytest.mark.parametrize(
    "attack", ["pgd:steps=5", "fmn:steps=20", "square:queries=50", "hopskipjump:steps=2"]
)
def test_attacks_run_on_spectra(attack, tmp_path):
    torch.manual_seed(0)
    model = IsotopeNet(256).eval()
    threat = "linf=0.05" if attack.startswith(("pgd", "square")) else None
    run = rbi.evaluate(
        model,
        attack=attack,
        dataset="isotopes:bins=256,peptides=6,size=8",
        threat=threat,
        out=tmp_path,
        checks=False,
    )
    assert not run.failures
    assert len(list(run.records())) == 8


def test_bad_sizes_are_refused():
    with pytest.raises(BadParameter, match="spectra"):
        IsotopeNet(0)
