"""The adversarial spheres: geometry, oracle, and points that depend only on their id."""

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.data.protocol import Dataset, LabelOracle
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.data.spheres import Spheres
from robustbench_inv.errors import BadParameter


@given(st.integers(2, 40), st.floats(1e-3, 1e3), st.floats(1.01, 10), st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_points_lie_on_their_spheres(d, r1, ratio, seed):
    data = Spheres(d=d, n=1, r1=r1, r2=r1 * ratio, seed=seed, size=12)
    points, labels = data.batch(range(12))
    radii = torch.tensor([data.r1, data.r2], dtype=torch.float64)[labels]
    assert ((points.pow(2).sum(1).sqrt() - radii).abs() <= 1e-14 * radii).all()
    assert points.abs().max() <= data.bounds[1] * (1 + 1e-15)
    assert torch.equal(data.classify(points), labels)


def test_contract():
    data = open_dataset("spheres")
    assert isinstance(data, Dataset)
    assert isinstance(data, LabelOracle)
    assert (len(data), data.shape, data.num_classes) == (1000, (500,), 2)
    assert (data.bounds, data.oracle_source) == ((-1.3, 1.3), "exact")
    assert data.labels.bincount().tolist() == [500, 500]
    assert data.batch([3])[0].dtype == torch.float64


def test_a_point_depends_only_on_its_id():
    small, large = Spheres(d=30, size=5), Spheres(d=30, size=2500)
    points = large.batch(range(2500))[0]
    assert torch.equal(small.batch(range(5))[0], points[:5])
    assert torch.equal(large.batch([2400, 7, 1000])[0], points[[2400, 7, 1000]])
    assert torch.equal(Spheres(d=30, n=3, size=5).batch([2])[0], points[[2]])
    assert not torch.equal(Spheres(d=30, seed=1).batch([2])[0], points[[2]])


def test_directions_are_uniform():
    points = Spheres(d=3, n=0, r1=1, r2=2, size=20_000).batch(range(20_000))[0]
    directions = points / points.norm(dim=1, keepdim=True)
    # By Archimedes, each coordinate of a uniform point of the sphere in three dimensions is uniform on (−1, 1).
    for coordinate in directions.T:
        counts = torch.histc(coordinate.float(), 10, -1, 1)
        assert ((counts - 2000).abs() < 5 * 2000**0.5).all()
    assert (directions.T @ directions / len(points) - torch.eye(3) / 3).abs().max() < 0.02


def test_training_points_differ_from_the_data_set():
    data = Spheres(d=20, size=50)
    points, labels = data.training(50)
    assert torch.equal(data.classify(points), labels)
    assert labels.bincount().tolist() == [25, 25]
    assert torch.cdist(points, data.batch(range(50))[0]).min() > 0.1
    assert torch.equal(data.training(80)[0][:50], points)


def test_the_oracle_labels_points_between_the_spheres():
    data = Spheres(d=4, n=1, r1=1.0, r2=1.3)
    axis = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    radii = torch.tensor(
        [1.0, 1.3, 1 + 5e-10, 1 - 5e-10, 1 + 2e-9, 1.3 * (1 - 2e-9), 1.15, 0.0, float("nan")],
        dtype=torch.float64,
    )
    assert data.classify(radii[:, None] * axis).tolist() == [0, 1, 0, 0, -1, -1, -1, -1, -1]
    floats = torch.tensor([1.0, 1.3, 1 + 5e-6, 1.3 - 3e-5, float("inf")])
    assert data.classify(floats[:, None] * axis.float()).tolist() == [0, 1, 0, -1, -1]
    assert data.classify(torch.empty(0, 4)).tolist() == []


def test_the_name_contains_all_parameters():
    assert Spheres().name == "spheres:d=500,n=10,r1=1,r2=1.3"
    assert Spheres(d=5, n=0, r1=0.25, seed=3, size=7).name == (
        "spheres:d=5,n=0,r1=0.25,r2=1.3,seed=3,size=7"
    )


@pytest.mark.parametrize("inner", [0.9, 0.25, 0.5, 1 / 3])
def test_any_share_of_the_points_can_lie_on_the_inner_sphere(inner):
    data = open_dataset("spheres", {"d": 4, "n": 1, "size": 900, "inner": inner})
    points, labels = data.batch(range(900))
    assert torch.equal(data.classify(points), labels)
    assert torch.equal(data.labels, labels)
    for end in (30, 300, 900):  # evenly, so that the first N have it as well
        assert abs(int((labels[:end] == 0).sum()) - inner * end) <= 1
    assert data.training(900)[1].tolist() == labels.tolist()


def test_the_name_contains_an_unequal_share():
    assert Spheres(d=5, n=0, inner=0.9).name == "spheres:d=5,n=0,r1=1,r2=1.3,inner=0.9"


def test_with_equal_shares_the_classes_alternate():
    assert Spheres(size=6).labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_values_are_frozen():
    points = Spheres(d=4, n=1, size=2).batch([0, 1])[0]
    expected = torch.tensor(
        [
            [0.5205536708705125, 0.6271425489271675, -0.306258611654246, -0.49185542779965696],
            [-0.6032745086800138, -0.33748329345470585, -0.7929254352587964, 0.7638286116240354],
        ],
        dtype=torch.float64,
    )
    assert torch.allclose(points, expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="the last bit of a logarithm or cosine differs between kinds of processor",
)
def test_digest_is_frozen():
    expected = "1e0958af0fe5698a6c9c28d542cf9bd82364eb49f885326b214b575f6ef2860d"
    assert Spheres(d=8, n=2, size=16).digest == expected
    assert Spheres(d=8, n=2, size=17).digest != expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"d": 1}, "invalid d"),
        ({"d": 10, "n": 10}, "expected 0 to 9"),
        ({"n": -1}, "invalid n"),
        ({"r1": 0.0}, "invalid r1"),
        ({"r1": 1.3}, "invalid r2"),
        ({"r1": 2.0}, "invalid r2"),
        ({"r2": float("inf")}, "invalid r2"),
        ({"r1": float("nan")}, "invalid r1"),
        ({"seed": -1}, "invalid seed"),
        ({"size": 0}, "invalid size"),
        ({"inner": 0.0}, "invalid inner"),
        ({"inner": 1.0}, "between 0 and 1"),
    ],
)
def test_invalid_parameters_raise(parameters, message):
    with pytest.raises(BadParameter, match=message):
        Spheres(**parameters)


def test_invalid_requests_raise():
    with pytest.raises(BadParameter, match="expected 0 to 999"):
        Spheres().batch([1000])
    with pytest.raises(BadParameter, match="training points"):
        Spheres().training(1)
