"""Experiments of the thesis: residual networks, log-determinants, preimages, and bins of isotope patterns."""

from math import isnan, nan

import pytest
import torch

from robustbench_inv.errors import MissingData
from robustbench_inv.experiments import protocol
from robustbench_inv.experiments.preimages import (
    measure_isotope_bins,
    measure_log_determinants,
    measure_preimages,
)
from robustbench_inv.experiments.protocol import ExperimentRequest, counted_lines
from robustbench_inv.experiments.residual_networks import (
    bits_per_dimension_numbers,
    crossings,
    measure_dynamics,
    measure_residual_networks,
    network_numbers,
)
from robustbench_inv.models.iresnet import classifier, residual_blocks, residual_flow
from robustbench_inv.results.experiment_result import MeasuredNumber

REQUEST = ExperimentRequest("mnist5k", {}, samples=10)


def values(result):
    return {(number.row, number.column): number.value for number in result.numbers}


def test_a_model_that_is_not_trained_yet_is_named_and_keeps_its_row():
    told = []
    request = ExperimentRequest("mnist5k", {}, samples=10, report=told.append)
    result = measure_residual_networks(request, {"c = 0.9": "mnist-iresnet-of-tomorrow"})
    (number,) = result.numbers
    assert (number.row, number.column, isnan(number.value)) == ("Error", "c = 0.9", True)
    assert told == ["mnist-iresnet-of-tomorrow is not trained yet"]
    assert not result.lines


def test_errors_on_other_data_are_further_rows_and_absent_data_are_named(monkeypatch):
    request, known = ExperimentRequest("mnist5k", {}, samples=10), protocol.load_dataset

    def find(name, **options):
        if name == "cifar10":
            raise MissingData("cannot find the files of cifar10")
        return known(name, **options)

    monkeypatch.setattr(protocol, "load_dataset", find)
    spheres = "spheres:d=500,n=10,r1=1,r2=1.3"
    further = [
        {"row": "Error, spheres", "data": spheres, "models": {"A": "spheres-max-margin"}},
        {"row": "Error, CIFAR-10", "data": "cifar10", "models": {"A": "cifar10-thin"}},
        {"row": "Error, later", "data": spheres, "models": {"A": "of-tomorrow"}},
    ]
    result = measure_residual_networks(request, {}, further=further)
    numbers = values(result)
    assert numbers["Error, spheres", "A"] == 0
    assert isnan(numbers["Error, later", "A"])
    assert list(result.left_out) == ["Error, CIFAR-10"]
    assert list(result.models) == ["spheres-max-margin"]


def test_errors_of_reconstruction_become_one_line_per_network():
    numbers = [
        MeasuredNumber("Largest pixel error, 1 iteration", "c = 0.9", 0.5),
        MeasuredNumber("Error", "c = 0.9", 0.1),
        MeasuredNumber("Largest pixel error, 10 iterations", "c = 0.9", 0.25),
        MeasuredNumber("Largest pixel error, 1 iteration", "vanilla", nan),
    ]
    panel = counted_lines("Largest pixel error", numbers)
    assert panel.lines == {"c = 0.9": ((1.0, 10.0), (0.5, 0.25))}


def test_reconstructions_improve_with_the_iterations_and_norms_stay_below_c():
    torch.manual_seed(0)
    model = classifier((1, 8, 8), 3, blocks=(1, 1), width=8, padding=2, coefficient=0.7).eval()
    with torch.no_grad():
        for block in model.stages:
            for layer in getattr(block, "residual", ()):
                if hasattr(layer, "measure"):
                    layer.weight.mul_(4)
                    layer.measure()
        found = list(network_numbers(model, torch.rand(4, 1, 8, 8), "c = 0.7", (1, 5, 60)))
    named = {number.row: number.value for number in found}
    assert named["Largest spectral norm of a convolution"] <= 0.7 * (1 + 1e-3)
    assert named["Largest Lipschitz constant of a block"] == pytest.approx(0.343, rel=1e-3)
    errors = [
        named[f"Largest pixel error, {k}"] for k in ("1 iteration", "5 iterations", "60 iterations")
    ]
    assert errors[0] > 10 * errors[1] > errors[2]
    assert errors[2] <= 1e-5


def test_bits_per_dimension_and_their_error_agree_with_those_of_many_probes():
    images = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for probes in (1, 50):
        torch.manual_seed(0)
        plan = {"evaluation_probes": probes}
        flow = residual_flow((1, 4, 4), 2, blocks=(2,), width=(8,), log_determinant=plan).eval()
        own = [block.seed for block in residual_blocks(flow)]
        with torch.no_grad():
            found.append([n.value for n in bits_per_dimension_numbers(flow, images, "flow")])
        assert [block.seed for block in residual_blocks(flow)] == own
    (bits, error), (reference, _) = found
    assert 0 < error < 0.1
    assert 0 < abs(bits - reference) < 4 * error


def test_the_bias_of_the_log_determinant_falls_below_its_bound():
    measured = measure_log_determinants(REQUEST, {"c": 0.9}, [1, 4], draws=50)
    found = values(measured)
    for terms in ("1 term", "4 terms"):
        assert 0 < found[f"Bias, {terms}", "c"] <= found[f"Bound of the bias, {terms}", "c"]
    assert found["Bias, 4 terms", "c"] < found["Bias, 1 term", "c"] / 100
    assert found["Deviation, 4 terms", "c"] > found["Bias, 4 terms", "c"]
    (lines,) = measured.lines
    assert [panel.title for panel in lines.panels] == ["Bias", "Bound of the bias", "Deviation"]
    bias = found["Bias, 1 term", "c"], found["Bias, 4 terms", "c"]
    assert lines.panels[0].lines == {"c": ((1.0, 4.0), bias)}


def test_the_cases_of_figure_3_2_and_the_regions_of_figure_3_1():
    found = values(measure_preimages(REQUEST, points=12))
    assert found["(a) hyperplanes meet in p, omnidirectional", "unique"] == 1
    assert found["(d) no common point, omnidirectional", "bounded"] == 1
    shares = [found["Part of the square", kind] for kind in ("unique", "bounded", "unbounded")]
    assert sum(shares) == pytest.approx(1)
    assert found["Smallest condition number", "unique"] > 1


def test_patterns_fit_into_the_receptive_field_of_the_thesis():
    found = values(measure_isotope_bins(REQUEST, [700, 3000]))
    assert 20 < found["3,000 Da", "bins per pattern"] < found["700 Da", "bins per pattern"] < 43
    assert found["700 Da", "bins per Da"] > found["3,000 Da", "bins per Da"]


def test_paths_that_change_their_order_at_any_depth_cross():
    ordered = torch.tensor([[0.0, 0.0], [1.0, 0.5], [2.0, 3.0]])
    assert crossings(ordered) == 0
    assert crossings(ordered.flip(1)) == 0
    assert crossings(torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 1.0]])) == 1


def test_paths_of_an_invertible_network_never_cross():
    numbers = values(measure_dynamics(REQUEST, blocks=2, width=8, steps=3))
    assert numbers["Pairs of neighbouring paths that cross, of 400", "invertible"] == 0
    assert numbers["Largest Lipschitz constant of a block", "invertible"] < 1
