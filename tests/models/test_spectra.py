"""Networks of mass spectra: the thesis's numbers of parameters, and attacks on inputs of one dimension."""

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.errors import BadParameter
from robustbench_inv.models.spectra import (
    BINS,
    RESIDUAL_LAYERS,
    Discriminant,
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
    "attack", ["pgd:steps=5", "fmn:steps=20", "square:queries=50", "hopskipjump:steps=1"]
)
def test_attacks_run_on_spectra(attack, tmp_path):
    torch.manual_seed(0)
    model = IsotopeNet(256).eval()
    threat = "linf=0.05" if attack.startswith(("pgd", "square")) else None
    run = rbi.evaluate(
        model,
        attack=attack,
        dataset="isotopes:bins=256,peptides=6,size=4",
        threat=threat,
        out=tmp_path,
        checks=False,
    )
    assert not run.failures
    assert len(list(run.records())) == 4


def test_bad_sizes_are_refused():
    with pytest.raises(BadParameter, match="spectra"):
        IsotopeNet(0)


def test_the_discriminant_is_that_of_the_chosen_bins():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    spectra = torch.randn(400, 6, generator=generator)
    spectra[:, 1] += 0.5 * spectra[:, 4]
    spectra[:, 4] += 1.5 * labels
    spectra[:, 1] -= 0.8 * labels
    model = Discriminant(6, 2).fit(spectra, labels)
    assert set(model.chosen.tolist()) == {1, 4}
    groups = [spectra[labels == k][:, model.chosen].double() for k in (0, 1)]
    means = [group.mean(0) for group in groups]
    within = sum(
        (group - mean).T @ (group - mean) for group, mean in zip(groups, means, strict=True)
    )
    direction = torch.linalg.solve(within / 398, means[1] - means[0])
    weight = (model.linear.weight[1] - model.linear.weight[0]).detach().double()
    torch.testing.assert_close(weight, direction, rtol=1e-4, atol=1e-4)
    middle = torch.zeros(1, 6)
    middle[:, model.chosen] = ((means[0] + means[1]) / 2).float()
    scores = model(middle)[0]
    assert float((scores[1] - scores[0]).detach().abs()) < 1e-5
