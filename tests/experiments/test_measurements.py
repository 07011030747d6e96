"""Measurements on a network whose code is the image itself, so that every answer is known beforehand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_inv.errors import BadCatalogue, BadModel, BadParameter
from robustbench_inv.experiments.decision_planes import measure_planes
from robustbench_inv.experiments.error_rates import measure_errors, measure_feature_shift
from robustbench_inv.experiments.interpolations import measure_interpolations
from robustbench_inv.experiments.metamers import balanced_subset, measure_metamers, quantise_images
from robustbench_inv.experiments.protocol import ExperimentRequest, run_experiment

NETWORKS = Path(__file__).parent / "networks.py"
READER = f"{NETWORKS}:reader"
PROBE = {"name": "nuisances", "hidden": [32], "epochs": 8, "learning_rate": 5e-3, "levels": 0}


def asked(**others):
    return ExperimentRequest(
        **{"dataset": "mnist5k", "columns": {"R": READER}, "samples": 60, **others}
    )


def by_row(measured):
    return {number.row: number for number in measured.numbers}


def test_logits_of_blank_pixels_know_nothing_and_the_rest_knows_the_digit():
    found = by_row(measure_errors(asked(samples=400), "mnist5k", 0, 5000, [PROBE]))
    assert found["Test error, logits"].value == pytest.approx(0.9, abs=0.01)  # all say 0
    assert found["Test error, nuisances"].value < 0.2
    assert {number.trials for number in found.values()} == {400}
    counted = found["Test error, logits"].counted
    assert len(counted) == round(400 * found["Test error, logits"].value)


def test_a_model_without_nuisances_has_no_row_for_them():
    measured = measure_errors(asked(columns={"C": "mnist-cnn"}), "mnist5k", 0, 5000, [PROBE])
    assert set(by_row(measured)) == {"Test error, logits", "Train error, logits"}


def test_a_probe_with_an_unknown_field_is_refused():
    with pytest.raises(BadCatalogue, match="probe nuisances: unknown key hiden"):
        measure_errors(asked(), "mnist5k", 0, 5000, [{"hiden": [3], "name": "nuisances"}])


def test_metamers_of_the_image_itself_are_their_donors():
    measured = measure_metamers(asked(), num_examples=5, photographs=0)
    found = by_row(measured)
    assert found["Largest error of a logit, decoded"].value < 1e-5
    for stage in ("decoded", "clipped", "quantise_images"):
        assert found[f"Decision kept, {stage}"].value == 1
        assert found[f"Panel sees the donor's class, {stage}"].value > 0.9
        whose = ("the donor's class", "the source's class", "another class", "no class")
        assert sum(found[f"Panel sees {each}, {stage}"].value for each in whose) == pytest.approx(1)
    (grid,) = measured.image_grids
    assert grid.images.shape == (3, 5, 1, 28, 28)
    below = (slice(None), 0, slice(1, None))
    for metamer, donor in zip(grid.images[1], grid.images[2], strict=True):
        assert np.array_equal(metamer[below], donor[below])
    assert [words.partition(",")[0] for words in grid.words[1]] == ["0"] * 5


def test_interpolations_go_from_the_source_to_the_donor():
    measured = measure_interpolations(asked(), num_examples=4, steps=3)
    found = by_row(measured)
    assert found["Panel sees the source's class, at 0 %"].value == pytest.approx(1, abs=0.1)
    assert found["Panel sees the source's class, at 100 %"].value == 0
    assert found["Panel sees the donor's class, at 0 %"].value == 0
    (grid,) = measured.image_grids
    assert grid.rows == ("0 %", "50 %", "100 %", "nuisances of")
    first, middle, last, donor = grid.images[..., 1:, :].astype(float)
    assert np.array_equal(last, donor)
    assert np.abs(middle - (first + last) / 2).max() <= 1
    assert not np.array_equal(first, last)


def test_all_models_are_shown_the_same_samples_and_donors():
    measured = measure_interpolations(
        asked(columns={"R": READER, "S": READER}), num_examples=3, steps=2
    )
    left, right = np.split(measured.image_grids[0].images, 2, axis=1)
    assert np.array_equal(left, right)
    assert measured.image_grids[0].groups == (("R", 3), ("S", 3))


def test_a_model_without_a_code_has_no_metamers():
    with pytest.raises(BadModel, match="no metamers"):
        measure_metamers(asked(columns={"C": "mnist-cnn"}), photographs=0)


def test_few_are_balanced_and_rounding_stays_inside():
    dataset = asked().open_dataset()
    few = balanced_subset(dataset, asked().draw(dataset), 10)
    assert sorted(dataset.labels[few].tolist()) == list(range(10))
    found = quantise_images(torch.tensor([-0.2, 0.5, 1.3]), (0.0, 1.0))
    torch.testing.assert_close(found, torch.tensor([0.0, 128 / 255, 1.0]))


def test_who_reads_the_feature_alone_falls_to_chance_when_it_is_random():
    columns = {"CNN": "mnist-cnn", "W": f"{NETWORKS}:Watermark"}
    question = asked(dataset="mnist-planted", columns=columns, samples=200)
    measured = measure_feature_shift(question, "mnist-planted", 0, 5000)
    numbers = {(n.row, n.column): n.value for n in measured.numbers}
    assert numbers["Accuracy with the feature", "W"] == 1
    assert numbers["Accuracy with that of a random class", "W"] == pytest.approx(0.1, abs=0.07)
    assert numbers["Accuracy without a feature", "W"] == pytest.approx(0.1)  # all say 0
    assert all(numbers[row, "CNN"] > 0.95 for row, column in numbers if column == "CNN")
    told, random, bare = measured.image_grids[0].images
    assert (told[:, 0, 1].max(1) == 255).all()
    assert not (bare[:, 0, 1].max(1) == 255).any()
    assert not np.array_equal(told, random)
    with pytest.raises(BadParameter, match="nothing is planted"):
        measure_feature_shift(asked(), "mnist-planted")


def test_planes_of_spheres_come_with_accuracies():
    spheres = "spheres:d=4,n=1,r1=1,r2=10,size=400"
    question = asked(dataset=spheres, columns={"M": f"{__file__}:code_of_points"}, samples=200)
    probe = {"hidden": [16], "epochs": 2, "levels": 0, "batch_size": 50}
    measured = measure_planes(question, f"{spheres},seed=1", probe, resolution=9)
    assert [plane["name"] for plane in measured.planes["planes"]][:2] == ["data", "metamer"]
    assert {number.column for number in measured.numbers} == {"M"}
    assert len(measured.numbers) == 6
    with pytest.raises(BadParameter, match="need spheres"):
        measure_planes(asked(), "mnist5k", probe)


def code_of_points():
    from robustbench_inv.models.firevnet import fully_connected

    torch.manual_seed(0)
    return fully_connected(4, blocks=1, width=4).requires_grad_(False)


def test_what_cannot_be_carried_out_is_one_line():
    with pytest.raises(BadCatalogue, match="does not take these parameters"):
        run_experiment("error-rates", asked(), {"hidden": 3})
    with pytest.raises(BadCatalogue, match="did you mean error-rates"):
        run_experiment("errors-rates", asked(), {})
    with pytest.raises(BadCatalogue, match="is no experiment"):
        run_experiment("robustbench_inv.experiments.error_rates:BLOCK", asked(), {})
