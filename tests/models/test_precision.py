"""Models that compute in 16 bits or in float64 give the results of the same model in float32, in every attack family."""

from contextlib import nullcontext
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn

import robustbench_inv as rbi
from robustbench_inv.attacks.losses import cross_entropy
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.checks.gradients import check_gradient_accuracy
from robustbench_inv.checks.model_outputs import check_determinism
from robustbench_inv.checks.probe import Probe
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadModel
from robustbench_inv.models.protocol import classify
from robustbench_inv.models.reject_option import reject
from robustbench_inv.models.vib import BottleneckCNN
from robustbench_inv.models.wrapping import StochasticClassifier, wrap_module
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, graph_dtypes, norm
from robustbench_inv.testing.toys import Toy, least_squares
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import Misclassify, MisclassifyAccepted
from robustbench_inv.threat.threat_model import ThreatModel

SHARPNESS = 3.0
"""Factor of the logits: margins of 20 nats, at which gradients of cross-entropy are below the range of float16."""


class Network(nn.Module):
    """A small network of digits, whose weights or products may have 16 bits."""

    bounds, num_classes = (0.0, 1.0), 10

    def __init__(self, network, weights=torch.float32, products=None, back=False):
        super().__init__()
        self.network = deepcopy(network).to(weights)
        self.products, self.back = products, back

    def forward(self, images):
        with torch.autocast("cpu", self.products) if self.products else nullcontext():
            logits = SHARPNESS * self.network(images)
        return logits.float() if self.back else logits


KINDS = {
    "bfloat16": {"weights": torch.bfloat16},
    "float16": {"weights": torch.float16},
    "float64": {"weights": torch.float64},
    "autocast bfloat16": {"products": torch.bfloat16},
    "autocast float16": {"products": torch.float16},
    "autocast float16, cast back": {"products": torch.float16, "back": True},
}
ATTACKS = (
    ("pgd:steps=8", "linf", 0.05),
    ("pgd:steps=8,loss=margin", "l2", 0.8),
    ("fgsm", "linf", 0.05),
    ("apgd:steps=10", "l1", 6.0),
    ("apgd:steps=10,loss=ce", "linf", 0.05),
    ("square:queries=40", "linf", 0.1),
    ("fmn:steps=10", "l0", None),
    ("fmn:steps=10", "l1", None),
    ("fmn:steps=10", "l2", None),
    ("fmn:steps=10", "linf", None),
    ("ddn:steps=10", "l2", None),
    ("deepfool", "l2", None),
    ("deepfool-linf", "linf", None),
    ("minimum-norm:steps=10,lagrangian_steps=0", "l2", None),
    ("cw:steps=30,searches=2,learning_rate=0.05,initial_constant=1", "l2", None),
    ("local-search:rounds=5", "l0", None),
    ("boundary:steps=20", "l2", None),
    ("hopskipjump:steps=1", "l2", None),
    ("foolbox:LinfPGD:steps=8", "linf", 0.1),
    ("foolbox:DDNAttack:steps=10", "l2", None),
    ("torchattacks:PGD:steps=8", "linf", 0.05),
    ("torchattacks:APGD:steps=8", "linf", 0.05),
)
SAMPLES = 40


@cache
def trained():
    digits = rbi.load_dataset("mnist5k")
    toy = least_squares(*digits.batch([i for i in range(5000) if i % 5 < 2]))
    ids = torch.arange(2, 5000, 5000 // SAMPLES)[:SAMPLES]
    return toy.module, ids, *digits.batch(ids)


def network(kind):
    return Network(trained()[0], **KINDS.get(kind, {})).eval()


def attacked(classifier, name, measured, eps, goal=None):
    """Return the proposals, whether each is a success inside its budget, and its distance."""
    _, ids, images, labels = trained()
    images = images.to(classifier.dtype)
    batch, rng = Batch(images, labels, ids), SampleRNG(0, ids)
    budget = LpBall(measured, eps) if eps else Unbounded(measured)
    threat = ThreatModel(budget, goal or Misclassify())
    meter = CountingModel(classifier, batch, threat, rng)
    found = rbi.load_attack(name).attack.run(meter, batch, threat, rng)
    allowed = budget.contains(images, found)
    wrong = classify(classifier, found, rng).decision != labels
    return found, wrong & allowed, norm(found - images, measured)


@cache
def in_float32(name, measured, eps):
    return attacked(wrap_module(network("float32"), "toy"), name, measured, eps)


@pytest.mark.parametrize("attack", ATTACKS, ids=[f"{name} {norm}" for name, norm, _ in ATTACKS])
@pytest.mark.parametrize(
    "kind",
    [
        "bfloat16",
        "float16",
        pytest.param("float64", marks=pytest.mark.slow),
        pytest.param("autocast bfloat16", marks=pytest.mark.slow),
        pytest.param("autocast float16", marks=pytest.mark.slow),
        "autocast float16, cast back",
    ],
)
def test_results_are_those_of_float32(kind, attack):
    _, expected, far = in_float32(*attack)
    found, broken, distances = attacked(wrap_module(network(kind), "toy"), *attack)
    assert found.dtype == (torch.float64 if kind == "float64" else torch.float32)
    assert expected.sum() >= 5
    # published attacks end at the first step beyond the boundary, which rounding moves; they are searched no further
    few = 4 if attack[0].startswith(("fmn", "deepfool")) else 2
    assert abs(int(broken.sum()) - int(expected.sum())) <= few
    if attack[2] is None:
        wide = (
            ours.where(hit, torch.inf).median()
            for ours, hit in ((distances, broken), (far, expected))
        )
        found_median, median = wide
        assert found_median.item() == pytest.approx(median.item(), rel=0.05, abs=1)


@pytest.mark.parametrize(
    "kind",
    [
        "bfloat16",
        "float16",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if "auto" in kind),
        "float64",
    ],
)
def test_the_whole_path_keeps_float32_images(kind, tmp_path):
    run = rbi.evaluate(
        model=network(kind),
        attack=["pgd:steps=8", "fmn:steps=10"],
        threat="linf=0.05",
        dataset="mnist5k",
        samples=60,
        out=tmp_path / "run",
        keep_images=True,
        checks=False,
    )
    plain = rbi.evaluate(
        model=network("float32"),
        attack=["pgd:steps=8", "fmn:steps=10"],
        threat="linf=0.05",
        dataset="mnist5k",
        samples=60,
        out=tmp_path / "plain",
        checks=False,
    )
    for found, expected in zip(run.cells, plain.cells, strict=True):
        robust = [sum(not r.goal_reached for r in cell.records) for cell in (found, expected)]
        assert abs(robust[0] - robust[1]) <= 2
        assert all(record.replayed for record in found.records)
        assert {record.status for record in found.records} <= {"ok", "already_wrong"}


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast float16, cast back"])
def test_a_reject_option_on_16_bits(kind):
    results = []
    for name in (kind, "float32"):
        base = wrap_module(network(name), "toy")
        model = reject(base, "max-softmax", torch.full((10,), 2.0))
        assert model.dtype == torch.float32
        results.append(attacked(model, "pgd:steps=8", "linf", 0.05, MisclassifyAccepted())[1])
    assert abs(int(results[0].sum()) - int(results[1].sum())) <= 2


def test_a_stochastic_model_of_16_bits():
    torch.manual_seed(0)
    single = BottleneckCNN()
    both = [
        StochasticClassifier(deepcopy(single).to(dtype), 4, fixed_noise=True)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    images = trained()[2]
    latent = torch.randn(4, len(images), *single.latent_shape)
    expected, found = (model.respond(images, latent).logits for model in both)
    assert [model.dtype for model in both] == [torch.float32] * 2
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.1)


def test_gradients_below_the_range_of_float16_are_those_of_float32():
    def gradients(kind):
        model, labels = wrap_module(network(kind), "toy"), trained()[3]
        images = trained()[2].clone().requires_grad_()
        values = cross_entropy(model(images), labels)
        return torch.autograd.grad(values.sum(), images)[0].flatten(1)

    expected, found = gradients("float32"), gradients("float16")
    sure = expected.abs().amax(1) < 1e-7
    assert sure.any()
    assert (torch.cosine_similarity(1e6 * found[sure], 1e6 * expected[sure]) > 0.99).all()
    assert (found.norm(dim=1) / expected.norm(dim=1))[sure].sub(1).abs().max() < 0.2


def test_the_graph_shows_the_types_inside():
    images = trained()[2].clone().requires_grad_()
    for kind, expected in (
        ("float32", None),
        ("bfloat16", torch.bfloat16),
        ("autocast float16, cast back", torch.float16),
    ):
        types = graph_dtypes(
            network(kind)(images.to(torch.bfloat16) if kind == "bfloat16" else images)
        )
        assert (types & {torch.float16, torch.bfloat16}) == ({expected} if expected else set())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_classifier_that_asks_for_16_bit_images_is_refused(dtype):
    module = trained()[0]
    special = Toy(module, 10, dtype=dtype)
    with pytest.raises(BadModel, match="cast the images inside"):
        wrap_module(special, "toy")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_of_16_bits_become_float32(dtype):
    values = torch.tensor([[1.0, 2.0]], dtype=dtype)
    output = Output(values, values[:, 0], None, values)
    assert {output.logits.dtype, output.score.dtype, output.clearance.dtype} == {torch.float32}
    assert Output(values.double()).logits.dtype == torch.float64


@pytest.mark.parametrize("kind", ["bfloat16", "autocast bfloat16", "float16"])
def test_checks_stay_silent_on_rounding(kind):
    probe = Probe.of(
        "toy", wrap_module(network(kind), "toy"), rbi.load_dataset("mnist5k"), range(2, 5000, 250)
    )
    assert probe.half_precision
    assert check_gradient_accuracy(probe).verdict == "PASS"
    assert check_determinism(probe).verdict == "PASS"


class HalfDigits(ArrayDataset):
    """Digits whose images have 16 bits, as a data set of one's own may return them."""

    def batch(self, ids):
        images, labels = super().batch(ids)
        return images.half(), labels


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64"])
def test_images_of_16_bits_are_widened(kind, tmp_path):
    _, _, images, labels = trained()
    results = []
    for source, given in ((ArrayDataset, images.half().float()), (HalfDigits, images)):
        run = rbi.evaluate(
            model=network(kind),
            attack="pgd:steps=8",
            threat="linf=0.05",
            dataset=source(given, labels, name="digits", bounds=(0.0, 1.0)),
            out=tmp_path / source.__name__,
            checks=False,
        )
        assert all(record.within_budget for record in run.records())
        results.append([record.goal_reached for record in run.records()])
    assert results[0] == results[1]
