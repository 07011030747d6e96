"""LocalSearch: on a linear model the pixels of largest weight, and few queries for an undefended network."""

from dataclasses import replace

import pytest
import torch

from robustbench_inv.attacks.local_search import LocalSearch
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output
from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.goals import MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

STRONGER = LocalSearch(probe=0.75, score="log-odds", ends_on_probe=True)
EVERYWHERE = replace(STRONGER, initial_share=1.0, candidates=10**6, half_side=100)
THREAT = ThreatModel(Unbounded("l0"))


def dark(classes=2, offset=100.0, shape=(1, 5, 5)):
    """Return a linear model that decides for class 0 by far, and black images."""
    size = torch.Size(shape).numel()
    weights = SampleRNG(3, torch.arange(classes), "weights").normal((size,), dtype=torch.float64)
    biases = torch.zeros(classes, dtype=torch.float64)
    biases[0] = offset
    return LinearClassifier(weights, biases), torch.zeros(1, *shape, dtype=torch.float64)


def probed(attack, model, images, lab):
    """Return the queried images of a search, in order."""
    asked = []

    def noting(adversarial):
        asked.append(adversarial.clone())
        return model(adversarial)

    ran = lab.run(attack, (Recording(model, noting), images, model(images).decision), THREAT)
    return ran, torch.cat(asked)


class Recording:
    """A classifier that records its queries."""

    dtype = torch.float64

    def __init__(self, model, call):
        self.call, self.num_classes, self.bounds = call, model.num_classes, model.bounds

    def __call__(self, images):
        return self.call(images)


def test_it_passes_the_harness():
    check_attack(LocalSearch())


def test_the_pixels_of_largest_weight_are_changed(lab):
    """All pixels are black, so that each can rise by the same: the gain is the difference of weights."""
    model, images = dark()
    _, asked = probed(replace(EVERYWHERE, pixels=4, rounds=1), model, images, lab)
    changed = asked[-1].flatten().nonzero()[:, 0]
    gains = model.weights[1] - model.weights[0]
    assert set(changed.tolist()) == set(gains.topk(4).indices.tolist())


def test_each_round_changes_the_best_remaining_pixels(lab):
    model, images = dark()
    _, asked = probed(replace(EVERYWHERE, factor=1.5, pixels=2, rounds=2), model, images, lab)
    # a round queries each of 25 pixels, and the changed image
    first, second = asked[25].flatten(), asked[51].flatten()
    gains = model.weights[1] - model.weights[0]
    assert set(first.nonzero()[:, 0].tolist()) == set(gains.topk(2).indices.tolist())
    # a written pixel is at 0.75; tried, it would be at 1 − 0.75 = 0.25: worse than before
    assert set(second.nonzero()[:, 0].tolist()) == set(gains.topk(4).indices.tolist())


def test_values_are_those_of_the_paper(lab):
    """Centred in the box v = −½ becomes 1.5 v = −0.75, and beyond the end of the box 0.25; v = ¼ becomes ⅜."""
    model, images = dark()
    images = torch.full_like(images, 0.75)
    images[..., 0] = 0.0
    attack = replace(EVERYWHERE, pixels=25, rounds=1)
    _, asked = probed(attack, model, images, lab)
    written = asked[-1]
    assert torch.allclose(written[..., 0], torch.tensor(0.75, dtype=torch.float64))
    assert torch.allclose(written[..., 1:], torch.tensor(0.875, dtype=torch.float64))
    tried = asked[:-1]
    assert 0 <= tried.min() <= tried.max() <= 1


@pytest.mark.parametrize("probe", [0.3, 1.0, 10.0])
def test_no_query_leaves_the_box(probe, lab):
    model, images, _ = linear_problem(4, bounds=(-1.0, 3.0))
    _, asked = probed(replace(LocalSearch(), probe=probe, rounds=8), model, images, lab)
    assert -1 <= asked.min() <= asked.max() <= 3


def test_a_pixel_is_all_its_channels(lab):
    model, images = dark(shape=(3, 4, 4))
    _, asked = probed(replace(EVERYWHERE, pixels=2, rounds=1), model, images, lab)
    changed = (asked[-1] != images[0]).reshape(3, 16)
    assert (changed.sum(1) == 2).all()
    assert (changed == changed[0]).all()


def test_the_next_round_searches_around_changed_pixels(lab):
    model, images = dark(shape=(1, 9, 9))
    attack = replace(EVERYWHERE, half_side=1, pixels=1, rounds=2)
    _, asked = probed(attack, model, images, lab)
    written = asked[81]
    row, column = divmod(int(written.flatten().argmax()), 9)
    for image in asked[82:-1]:
        place = int((image != written).flatten().nonzero()[0, 0])
        assert abs(place // 9 - row) <= 1
        assert abs(place % 9 - column) <= 1


def test_a_successful_probe_ends_the_search(lab):
    model, images = dark(offset=0.1)
    ran = lab.run(EVERYWHERE, (model, images, model(images).decision), THREAT)
    assert int((ran.images != images).sum()) == 1
    assert int(ran.meter.forward_passes) == 26
    assert ran.broken.all()


def test_saturated_probabilities_do_not_hide_differences(lab):
    """Margins of 1e4 nats: the published order, of softmax outputs, would be none."""
    model, images = dark()
    large = LinearClassifier(1e4 * model.weights, 1e4 * model.biases)
    attack = replace(EVERYWHERE, pixels=4, rounds=1)
    adversarial = [probed(attack, m, images, lab)[1][-1] for m in (model, large)]
    assert torch.equal(*adversarial)


def test_the_published_search_does_not_end_with_a_probe(lab):
    model, images = dark(offset=0.1)
    published = replace(EVERYWHERE, ends_on_probe=False)
    ran = lab.run(published, (model, images, model(images).decision), THREAT)
    assert int((ran.images != images).sum()) == published.pixels
    assert ran.broken.all()


@pytest.mark.parametrize(("offset", "same"), [(3.0, True), (1e4, False)])
def test_probabilities_rank_like_log_odds_until_they_are_all_one(lab, offset, same):
    """With margins of 1e4 nats all probabilities of the true class are 1: the changed pixels are arbitrary."""
    model, images = dark(offset=offset)
    attack = replace(EVERYWHERE, pixels=4, rounds=1, ends_on_probe=False)
    ours, published = (
        probed(replace(attack, score=score), model, images, lab)[1][-1]
        for score in ("log-odds", "probability")
    )
    assert torch.equal(ours, published) == same


def test_the_defaults_are_those_of_the_paper():
    """p = 1, r = 3/2, d = 5, t = 5, R = 150; scores are probabilities, and only a round's image may end the search."""
    attack = LocalSearch()
    assert (attack.probe, attack.factor, attack.half_side, attack.pixels, attack.rounds) == (
        1.0,
        1.5,
        5,
        5,
        150,
    )
    assert attack.score == "probability"
    assert not attack.ends_on_probe


@pytest.mark.parametrize("attack", [LocalSearch(), STRONGER])
def test_a_sample_does_not_depend_on_its_batch(lab, attack):
    on = lab.problem(8)
    alone = lab.in_parts(attack, 1, on, THREAT)
    assert torch.equal(alone, lab.in_parts(attack, 8, on, THREAT))


def test_it_aims_at_a_class(lab):
    model, images, labels = linear_problem(9, 3)
    rows = labels != 2
    goal = ThreatModel(Unbounded("l0"), Target(2))
    ran = lab.run(LocalSearch(), (model, images[rows], labels[rows]), goal)
    assert (model(ran.images).decision == 2).all()


def test_without_success_the_clean_image_is_returned(lab):
    model, images = dark(offset=1e6)
    ran = lab.run(LocalSearch(rounds=3), (model, images, torch.tensor([0])), THREAT)
    assert torch.equal(ran.images, images)


def test_flat_inputs_are_a_row_of_pixels(lab):
    model, images, labels = linear_problem(4, shape=(30,))
    ran = lab.run(LocalSearch(), (model, images, labels), THREAT)
    assert ran.broken.all()


@pytest.mark.parametrize(
    "wrong",
    [{"probe": 0.0}, {"factor": 2.5}, {"initial_share": 0}, {"half_side": -1}, {"rounds": 0}],
)
def test_settings_are_checked(wrong):
    with pytest.raises(BadParameter, match=f"unusable {next(iter(wrong))}"):
        LocalSearch(**wrong)


def test_the_undefended_network_is_broken(lab):
    """At most 1 of 10 digits is robust after 10 rounds; none was when this was written."""
    data, model = load_dataset("mnist5k"), load_model("mnist-cnn").classifier
    images, labels = data.batch(list(select_samples(data.labels, 10)))
    attack = load_attack("local-search-log-odds", rounds=10).attack
    ran = lab.run(attack, (model, images.float(), labels), THREAT)
    assert (~ran.broken).sum() <= 1
    assert (ran.images != images).flatten(1).sum(1).float().median() <= 30


def test_a_rejected_input_is_no_success(lab):
    model, images = dark(offset=0.1)
    never = Recording(model, lambda x: Output(model(x).logits, accepted=torch.zeros(len(x)).bool()))

    threat = ThreatModel(Unbounded("l0"), MisclassifyAccepted())
    ran = lab.run(LocalSearch(rounds=2), (never, images, torch.tensor([0])), threat)
    assert torch.equal(ran.images, images)
