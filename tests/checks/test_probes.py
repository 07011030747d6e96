"""Each probe fires on the toy that it is for and is silent on an honest model."""

import math
import random

import pytest
import torch

from robustbench_inv.checks.attack_strength import (
    check_convergence,
    check_fixed_noise,
    check_logit_scale,
    check_monotone_attack,
    check_unbounded,
)
from robustbench_inv.checks.gradients import (
    check_gradient_accuracy,
    check_gradients,
    check_saturation,
    check_single_pass,
)
from robustbench_inv.checks.model_checks import list_probes
from robustbench_inv.checks.model_outputs import check_bounds, check_determinism, check_logits
from robustbench_inv.checks.probe import Probe
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.models.spheres import max_margin, misaligned
from robustbench_inv.models.wrapping import wrap_module
from robustbench_inv.testing.toys import (
    RandomGradientToy,
    StochasticToy,
    Toy,
    adding_noise,
    batch_dependent,
    confident,
    dead_relu,
    detached,
    in_train_mode,
    input_optimising,
    narrow_band,
    offset,
    one_pixel_gradient,
    probabilities,
    quantised,
    squashed,
    wrong_bounds,
    wrong_gradient,
)


@pytest.mark.parametrize(("id_", "check"), [(id_, check) for id_, _, _, check in list_probes()])
def test_every_probe_is_silent_on_an_honest_model(honest, probe, id_, check):
    verdict = check(probe(honest))
    assert (verdict.id, verdict.verdict, verdict.subject) == (id_, "PASS", "toy"), verdict.evidence
    assert any(digit.isdigit() for digit in verdict.evidence)


@pytest.mark.parametrize(
    ("id_", "check"),
    [
        (id_, check)
        for id_, _, _, check in list_probes(deep=True)[len(list_probes()) :]
        if id_ != "C13"
    ],
)
def test_every_deep_probe_is_silent_on_an_honest_model(honest, few, id_, check):
    verdict = check(few(honest))
    assert (verdict.id, verdict.verdict) == (id_, "PASS"), verdict.evidence


def test_the_honest_model_is_worth_attacking(honest, probe):
    subject = probe(honest)
    assert (subject.query().decision == subject.batch.labels).double().mean() > 0.8


def test_c1_fires_where_larger_steps_leap_over_the_error(grey_probe):
    verdict = check_monotone_attack(grey_probe(narrow_band()))
    assert verdict.verdict == "WARN"
    assert verdict.value > 0.5


@pytest.mark.parametrize("make", [max_margin, misaligned])
def test_probes_are_silent_on_the_classifiers_of_the_spheres(make):
    spheres = open_dataset("spheres", {"d": 100, "n": 2, "size": 100})
    subject = Probe.of("toy", make(spheres), spheres, range(40))
    verdicts = [check(subject) for _, _, _, check in list_probes()]
    assert {v.verdict for v in verdicts} == {"PASS"}, verdicts


def test_c2_fires_on_a_quantiser_whose_gradients_are_zero(honest, probe):
    verdict = check_unbounded(probe(quantised(honest)))
    assert verdict.verdict == "FAIL"
    assert verdict.value > 0.7


def test_c4_fires_where_each_step_finds_one_pixel(grey_probe):
    verdict = check_convergence(grey_probe(one_pixel_gradient()))
    assert verdict.verdict == "WARN", verdict.evidence
    assert verdict.value > 0.5


def test_c6_fires_when_no_loss_has_a_gradient(honest, probe):
    for toy in (quantised(honest), detached(honest), dead_relu(honest)):
        verdict = check_gradients(probe(toy))
        assert (verdict.verdict, verdict.value) == ("FAIL", 1.0)
    assert "not connected" in check_gradients(probe(detached(honest))).evidence


def test_c6_warns_when_one_loss_of_several_has_no_gradient(honest, probe):
    verdict = check_gradients(probe(confident(honest)))
    assert verdict.verdict == "WARN"
    assert "margin 0.0%" in verdict.evidence
    assert "ce 0.0%" not in verdict.evidence.replace("scaled-ce 0.0%", "")


def test_c6_counts_gradients_that_are_not_numbers(honest, probe):
    def broken_slope(images: torch.Tensor) -> torch.Tensor:
        return images + 0 * (images - images).abs().sqrt()

    module = torch.nn.Sequential(_Function(broken_slope), honest.module)
    module.bounds, module.num_classes = (0.0, 1.0), 10
    subject = probe(wrap_module(module, "toy"))
    assert subject.query().logits.isfinite().all()
    assert check_gradients(subject).verdict == "FAIL"


def test_c6_and_c7_have_nothing_to_say_of_a_model_that_is_always_wrong(grey_probe):
    always_one = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    with torch.no_grad():
        always_one[1].weight.zero_()
        always_one[1].bias.copy_(torch.tensor([0.0, 1.0]))
    always_one.bounds = (0.0, 1.0)
    subject = grey_probe(wrap_module(always_one, "toy"))
    assert {check_gradients(subject).verdict, check_saturation(subject).verdict} == {"NA"}


def test_c7_fires_on_margins_that_saturate_cross_entropy(honest, probe):
    verdict = check_saturation(probe(confident(honest, 1e6)))
    assert verdict.verdict == "NOTE"
    assert verdict.value > 1000
    assert "at every logit for 100.0%" in verdict.evidence


def test_c7_value_is_the_median_margin(honest, probe):
    once, thrice = check_saturation(probe(honest)), check_saturation(probe(confident(honest, 3.0)))
    assert thrice.value == pytest.approx(3 * once.value, rel=1e-5)


def test_c7_fires_on_a_sigmoid_that_is_saturated_and_not_on_a_steep_one(honest, probe):
    flat = check_saturation(probe(squashed(honest, 1e4)))
    assert (flat.verdict, flat.value) == ("FAIL", 1.0)
    assert "Attack the outputs before it" in flat.evidence
    assert check_saturation(probe(squashed(honest, 1e-3))).verdict == "PASS"


def test_c8_fires_on_logits_that_an_offset_has_rounded(honest, few):
    verdict = check_logit_scale(few(offset(honest)))
    assert verdict.verdict == "FAIL", verdict.evidence


def test_c8_fails_where_the_scale_hides_the_gradients_of_cross_entropy(honest, few):
    verdict = check_logit_scale(few(confident(honest)))
    assert verdict.verdict == "FAIL", verdict.evidence
    assert verdict.value > 0.5


def test_c12_fires_on_a_model_that_optimises_before_it_answers(honest, probe):
    verdict = check_single_pass(probe(input_optimising(honest)))
    assert (verdict.verdict, verdict.value) == ("WARN", 1)


def test_c13_compares_known_draws_with_fresh_ones(honest, few):
    assert check_fixed_noise(few(honest)).verdict == "NA"
    fair = check_fixed_noise(few(StochasticToy(honest)))
    assert fair.verdict == "PASS", fair.evidence
    shy = check_fixed_noise(few(RandomGradientToy(honest)))
    assert shy.verdict == "FAIL", shy.evidence


def test_c31_fires_on_a_gradient_of_another_function(honest, few):
    verdict = check_gradient_accuracy(few(wrong_gradient(honest)))
    assert verdict.verdict == "WARN", verdict.evidence
    assert check_gradient_accuracy(few(quantised(honest))).verdict != "PASS"


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_c10_fires_on_probabilities_and_their_multiples(honest, probe, factor):
    assert check_logits(probe(probabilities(honest, factor))).verdict == "WARN"


def test_c10_is_silent_on_logits_with_a_constant_sum(probe, honest):
    subject = probe(honest)
    sums = subject.query().logits.sum(1)
    assert (sums - sums[0]).abs().max() < 1e-3
    assert check_logits(subject).verdict == "PASS"


def with_infinities(honest, value, last=10):
    """Return the honest toy with twelve classes, of which the last two have a logit of ``value``."""

    def add(logits):
        extra = torch.full_like(logits[:, :2], value)
        return torch.cat([logits, extra.where(torch.arange(len(logits))[:, None] < last, -1e3)], 1)

    return Toy(torch.nn.Sequential(honest.module, _Function(add)).eval(), 12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_c10_names_logits_that_are_not_numbers(honest, probe, value):
    verdict = check_logits(probe(with_infinities(honest, value)))
    assert (verdict.verdict, verdict.value) == ("FAIL", 0.1)
    named = "10 have a logit of NaN and 0" if math.isnan(value) else "0 have a logit of NaN and 10"
    assert named in verdict.evidence


def test_ruled_out_classes_change_no_verdict(honest, probe, few):
    rule = with_infinities(honest, -math.inf, 1000)
    assert "200 of 1200 logits are −inf" in check_logits(probe(rule)).evidence
    for check, maker in (
        (check_logits, probe),
        (check_determinism, probe),
        (check_gradients, probe),
        (check_saturation, probe),
        (check_logit_scale, few),
        (check_gradient_accuracy, few),
    ):
        expected, found = check(maker(honest)), check(maker(rule))
        assert (found.verdict, found.value) == (expected.verdict, pytest.approx(expected.value))
    noisy = Toy(torch.nn.Sequential(adding_noise(honest).module, rule.module[1]).eval(), 12)
    assert "5 repeats disagree" in check_determinism(probe(noisy)).evidence


def test_c11_fires_on_hidden_random_numbers(honest, probe):
    verdict = check_determinism(probe(adding_noise(honest)))
    assert verdict.verdict == "FAIL"
    assert "5 repeats disagree" in verdict.evidence
    assert "global generator" in verdict.evidence


def test_c11_fires_on_random_numbers_that_change_nothing(honest, probe):
    def idle(images: torch.Tensor) -> torch.Tensor:
        random.random()
        return images

    toy = torch.nn.Sequential(_Function(idle), honest.module)
    toy.bounds, toy.num_classes = (0.0, 1.0), 10
    verdict = check_determinism(probe(wrap_module(toy, "toy")))
    assert verdict.verdict == "FAIL"
    assert verdict.value < 1e-4


@pytest.mark.parametrize("spoil", [batch_dependent, in_train_mode])
def test_c11_fires_on_answers_that_depend_on_the_batch(honest, probe, spoil):
    verdict = check_determinism(probe(spoil(honest)))
    assert verdict.verdict == "FAIL"
    assert "batches of 1 disagree" in verdict.evidence


def test_c11_sees_train_mode_even_where_it_changes_nothing(honest, probe):
    toy = torch.nn.Sequential(honest.module, torch.nn.Identity())
    toy.bounds, toy.num_classes = (0.0, 1.0), 10
    model = wrap_module(toy, "toy")
    toy[1].train()
    verdict = check_determinism(probe(model))
    assert (verdict.verdict, "train mode" in verdict.evidence) == ("FAIL", True)


def test_c11_sends_declared_draws_down_the_eot_path(honest, probe):
    fresh = check_determinism(probe(StochasticToy(honest)))
    assert (fresh.verdict, "EOT" in fresh.evidence) == ("WARN", True)
    assert check_determinism(probe(StochasticToy(honest, fixed_noise=True))).verdict == "PASS"


def test_c11_does_not_excuse_a_declared_model_that_depends_on_its_batch(honest, probe):
    assert check_determinism(probe(StochasticToy(batch_dependent(honest)))).verdict == "FAIL"


@pytest.mark.parametrize(
    ("bounds", "fault"),
    [
        ((-1.0, 1.0), "boxes differ"),
        ((0.0, 255.0), "boxes differ"),
        ((0.0, 0.5), "data leave"),
        ((1.0, 0.0), "no interval"),
        ((0.0, float("nan")), "no interval"),
    ],
)
def test_c17_fires_on_wrong_bounds(honest, probe, bounds, fault):
    verdict = check_bounds(probe(wrong_bounds(honest, bounds)))
    assert verdict.verdict == "FAIL"
    assert fault in verdict.evidence


class _Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)
