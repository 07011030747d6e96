"""The SquareAttack attack: inside ball and box whatever the shape, no gradient, and the schedule of its squares."""

from dataclasses import dataclass

import pytest
import torch

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.attacks.square import SquareAttack, square_share, two_bumps, window
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, flatten, norm
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.threat.budgets import LpBall, inside_box
from robustbench_inv.threat.threat_model import ThreatModel

NORMS = ("l1", "l2", "linf")
EPS = {"l1": 4.0, "l2": 0.8, "linf": 0.1}


@dataclass(frozen=True)
class Sure:
    """A classifier of class 0 whose margin is a weighted sum, far from any other decision."""

    bounds: tuple[float, float] = (0.0, 1.0)
    num_classes: int = 2
    dtype: torch.dtype = torch.float32

    def __call__(self, images):
        flat = flatten(images)
        value = flat @ torch.linspace(-1, 1, flat.shape[1], dtype=flat.dtype)
        return Output(torch.stack([1000 + 0 * value, value], 1))


def run(attack, model, images, labels, threat, ids=None):
    ids = torch.arange(len(labels)) if ids is None else ids
    batch, rng = Batch(images, labels, ids), SampleRNG(0, ids)
    meter = CountingModel(model, batch, threat, rng)
    return attack.run(meter, batch, threat, rng), meter


def pictures(shape, n=5):
    images = SampleRNG(3, torch.arange(n)).uniform(shape)
    return images.where(images > 0.3, 0.0), torch.zeros(n, dtype=torch.int64)  # many at the bound


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 7, 9), (2, 2), (20,)], ids=str)
def test_it_stays_in_ball_and_box_and_increases_the_margin(name, shape):
    images, labels = pictures(shape)
    threat = ThreatModel(LpBall(name, EPS[name]))
    adversarial, meter = run(SquareAttack(60), Sure(), images, labels, threat)
    assert inside_box(adversarial, (0.0, 1.0)).all()
    assert threat.budget.contains(images, adversarial).all()
    before, after = (Sure()(each).logits[:, 1] for each in (images, adversarial))
    assert (after > before).all()
    assert (meter.forward_passes == 60).all()
    assert (meter.backward_passes == 0).all()


@pytest.mark.parametrize("name", NORMS)
def test_uses_the_whole_budget(name):
    images, labels = pictures((1, 16, 16))
    images = 0.3 + 0.4 * images  # no bound is near
    adversarial, _ = run(
        SquareAttack(200), Sure(), images, labels, ThreatModel(LpBall(name, EPS[name]))
    )
    torch.testing.assert_close(
        norm(adversarial - images, name), torch.full((5,), EPS[name]), rtol=1e-3, atol=0
    )
    if name == "linf":  # every element is at an end of its range
        assert ((adversarial - images).abs() > 0.0999).all()


def test_fulfils_the_contract():
    check_attack(SquareAttack(12))


@pytest.mark.parametrize("name", NORMS)
def test_outcome_does_not_depend_on_the_batch(name):
    images, labels = pictures((1, 8, 8), 6)
    threat = ThreatModel(LpBall(name, EPS[name]))
    together, _ = run(SquareAttack(66), Sure(), images, labels, threat)
    for i in torch.arange(6).split(1):
        alone, _ = run(SquareAttack(66), Sure(), images[i], labels[i], threat, i)
        torch.testing.assert_close(alone, together[i], rtol=0, atol=1e-6)


def test_squares_shrink_as_the_queries_go():
    shares = [square_share(0.8, query / 10_000) for query in (0, 10, 11, 51, 201, 8001, 9999)]
    assert shares == [0.8, 0.8, 0.4, 0.2, 0.1, 0.8 / 512, 0.8 / 512]
    assert window(0.8, (1, 28, 28)) == (25, 25)
    assert window(0.001, (3, 28, 28)) == (1, 1)
    assert window(0.5, (1, 1, 20)) == (1, 10)
    assert window(0.5, (1, 20, 4)) == (10, 4)


def published_bumps(side, exponent, order):
    """Return the pattern of a square window, by the loops of the published equation and code."""
    halves = []
    for height in (side // 2, side - side // 2):
        half = torch.zeros(height, side, dtype=torch.float64)
        most = max(height, side) // 2
        for k in range(most + 1):  # boxes of growing radius around the centre
            for r in range(height):
                for s in range(side):
                    if abs(r - height // 2) <= k and abs(s - side // 2) <= k:
                        half[r, s] += (k + 1.0) ** -exponent
        halves.append(half / torch.linalg.vector_norm(half, order))
    both = torch.cat([halves[0], -halves[1]])
    return both / torch.linalg.vector_norm(both, order)


@pytest.mark.parametrize("side", [3, 5, 6, 9, 25])
@pytest.mark.parametrize(("order", "exponent"), [(2, 2), (1, 4)])
def test_bumps_are_those_of_the_paper(side, order, exponent):
    found = two_bumps(side, side, order=order)
    torch.testing.assert_close(found, published_bumps(side, exponent, order))
    halves = found[: side // 2], found[side // 2 :]
    lengths = [float(torch.linalg.vector_norm(half, order)) for half in halves]
    assert lengths == pytest.approx([2 ** (-1 / order)] * 2)


def test_the_first_grid_is_centred():
    """Five by five bumps of 5 pixels leave a margin in an image of 28 pixels: one above and left, two below and right."""
    images, labels = torch.full((4, 1, 28, 28), 0.5), torch.zeros(4, dtype=torch.int64)
    queried = []

    class Watched(Sure):
        def __call__(self, images):
            queried.append(images)
            return super().__call__(images)

    run(SquareAttack(2), Watched(), images, labels, ThreatModel(LpBall("l2", 0.8)))
    changed = queried[0] != 0.5
    assert changed[:, 0, 1:26, 1:26].all()
    assert int(changed.sum()) == 4 * 25**2
    grid = (queried[0] - 0.5)[0, 0, 1:26, 1:26].reshape(5, 5, 5, 5).transpose(1, 2)
    bump = two_bumps(5, 5).float()
    shapes = [signs * each for signs in (1, -1) for each in (bump, bump.T)]
    kinds = {
        index
        for tile in grid.flatten(0, 1) / grid[0, 0].norm()
        for index, shape in enumerate(shapes)
        if torch.allclose(tile, shape, atol=1e-4)
    }
    assert kinds == {0, 1, 2, 3}


def test_sides_of_windows_are_odd():
    """A window of 80 % of 11 × 11 pixels has sides of 10, so 11: the second candidate differs from the image everywhere."""
    images, labels = torch.full((4, 1, 11, 11), 0.5), torch.zeros(4, dtype=torch.int64)
    queried = []

    class Watched(Sure):
        def __call__(self, images):
            if len(queried) == 2:
                raise EOFError
            queried.append(images)
            return super().__call__(images)

    with pytest.raises(EOFError):
        run(SquareAttack(5000), Watched(), images, labels, ThreatModel(LpBall("l2", 0.8)))
    assert not (queried[0] != 0.5).flatten(1).all(1).any()
    assert (queried[1] != 0.5).all()


def test_bumps_are_of_length_one_and_of_unlike_signs():
    for height, width in ((5, 5), (3, 3), (1, 6), (4, 7)):
        bumps = two_bumps(height, width)
        assert bumps.norm().item() == pytest.approx(1)
        assert (bumps[: height // 2 or 1] > 0).all()
        assert (bumps[height // 2 or 1 :] < 0).all()
    middle = two_bumps(6, 3)[:3]
    assert middle[1, 1] == middle.max()


def test_the_undefended_network_is_broken_with_few_queries():
    model, data = load_model("mnist-cnn").classifier, load_dataset("mnist5k")
    ids = torch.tensor(select_samples(data.labels, 20))
    images, labels = data.batch(ids)
    threat = ThreatModel(LpBall("linf", 0.3))
    adversarial, _ = run(SquareAttack(300), model, images, labels, threat, ids)
    assert (model(adversarial).decision == labels).sum() <= 1


@pytest.mark.parametrize("bad", [{"queries": 0}, {"share": 0.0}, {"share": 1.0}])
def test_unusable_parameters(bad):
    with pytest.raises(BadParameter, match=next(iter(bad))):
        SquareAttack(**bad)
