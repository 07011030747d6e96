"""C39 to C42 fire when labels, inputs or weights precede the attack wrongly, and name the cause."""

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.checks.clean_accuracy import (
    check_clean_accuracy,
    check_inputs,
    check_labels,
)
from robustbench_inv.checks.comparisons import check_card_accuracy
from robustbench_inv.checks.model_checks import probe_model
from robustbench_inv.checks.probe import Probe, evenly_spaced
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.toy_cells import toy_cell
from robustbench_inv.testing.toys import (
    StochasticToy,
    Toy,
    constant,
    least_squares,
    other_classes,
    other_inputs,
    untrained,
)

CLASSES = 10


def looking(toy, data, count=100):
    return Probe.of("toy", toy, data, evenly_spaced(range(len(data)), count))


def relabelled(data, labels, **options):
    images, _ = data.batch(list(range(len(data))))
    return ArrayDataset(images, labels, "relabelled", **options)


@pytest.fixture(scope="module")
def colours():
    """Return colour images of six classes: one has its own hue and a bright upper, left or right part."""
    labels = torch.arange(300) % 6
    rng = SampleRNG(0, torch.arange(300), "colours")
    images = 0.3 * rng.uniform((3, 8, 8))
    for sample, label in enumerate(labels.tolist()):
        part = (slice(0, 3), slice(0, 2)) if label < 3 else (slice(0, 2), slice(0, 8))
        images[sample, label % 3][part] += 0.7
    return ArrayDataset(images, labels, "colours")


@pytest.fixture(scope="module")
def colour_model(colours):
    return least_squares(*colours.batch(list(range(300))), hidden=128, ridge=10.0)


# C39


def test_an_honest_model_passes(honest, digits):
    probe = looking(honest, digits)
    for check in (check_clean_accuracy, check_inputs, check_labels):
        assert check(probe).verdict == "PASS"


@pytest.mark.parametrize("seed", range(5))
def test_random_weights_are_named(honest, digits, seed):
    probe = looking(untrained(honest, seed), digits)
    verdict = check_clean_accuracy(probe)
    assert verdict.verdict in ("WARN", "FAIL")
    assert "check whether the weights were loaded" in verdict.evidence
    assert (check_inputs(probe).verdict, check_labels(probe).verdict) == ("PASS", "PASS")


def test_a_constant_prediction_fails_however_accurate(honest, digits):
    assert check_clean_accuracy(looking(constant(honest), digits)).verdict == "FAIL"
    labels = (torch.arange(200) // 2 % 20 == 0).long()
    rare = ArrayDataset(torch.rand(200, 1, 4, 4), labels, "rare")
    verdict = check_clean_accuracy(looking(Toy(Fixed((1.0, 0.0)), 2), rare))
    assert (verdict.verdict, verdict.value) == ("FAIL", 0.95)
    assert "predicts 1 of 2 classes" in verdict.evidence


def test_an_accurate_model_of_rare_classes_passes():
    labels = (torch.arange(200) % 20 == 0).long()
    images = labels[:, None, None, None].float().expand(200, 1, 4, 4).contiguous()
    data = ArrayDataset(images, labels, "rare")
    assert check_clean_accuracy(looking(Toy(Brightness(), 2), data)).verdict == "PASS"


def test_a_weak_but_honest_model_passes(digits):
    weak = least_squares(*digits.batch(list(range(0, 5000, 100))), hidden=16)
    probe = looking(weak, digits)
    verdict = check_clean_accuracy(probe)
    assert 0.3 < verdict.value < 0.8
    grades = [verdict.verdict, check_inputs(probe).verdict, check_labels(probe).verdict]
    assert grades == ["PASS", "PASS", "PASS"]


def test_outputs_that_are_not_numbers_are_errors_and_named(honest, digits):
    def broken(images):
        logits = honest(images).logits
        return torch.where(
            images.flatten(1).mean(1, keepdim=True) > 0.05, logits * torch.nan, logits
        )

    verdict = check_clean_accuracy(looking(Toy(broken, CLASSES), digits))
    assert verdict.verdict == "FAIL"
    assert "are not numbers" in verdict.evidence


def test_a_model_that_fails_on_some_samples_is_checked_on_the_others(honest, digits):
    def failing(images):
        if (images.flatten(1).mean(1) > 0.25).any():
            raise RuntimeError("too bright")
        return honest(images).logits

    probe = looking(Toy(failing, CLASSES), digits)
    verdict = check_clean_accuracy(probe)
    assert (verdict.verdict, check_labels(probe).verdict) == ("PASS", "PASS")
    assert 0.5 < verdict.value < 0.95
    with pytest.raises(RuntimeError, match="too bright"):
        check_clean_accuracy(looking(Toy(lambda images: failing(images + 1), CLASSES), digits))


def test_requested_samples_of_one_class_do_not_hide_it(honest, digits):
    verdicts = {v.id: v for v in probe_model(Named("toy", constant(honest, 0)), digits, range(5))}
    assert verdicts["C39"].verdict == "FAIL"
    verdicts = {v.id: v for v in probe_model(Named("toy", honest), digits, range(1))}
    assert {verdicts[id_].verdict for id_ in ("C39", "C41", "C42")} == {"PASS"}


# C41


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda images: images / 255, "multiplied by 255"),
        (lambda images: 1 - images, "inverted"),
        (lambda images: images.transpose(-1, -2), "transposed"),
        (lambda images: images.flip(-2), "upside down"),
        (lambda images: images.flip(-1), "mirrored"),
        (lambda images: (images + 1) / 2, r"mapped from \[0, 1\] to \[-1, 1\]"),
    ],
)
def test_inputs_of_another_form_are_named(honest, digits, change, says):
    probe = looking(other_inputs(honest, change), digits)
    verdict = check_inputs(probe)
    assert verdict.verdict in ("WARN", "FAIL")
    assert f"With inputs {says}".replace("\\", "") in verdict.evidence
    assert check_labels(probe).verdict == "PASS"


def test_a_noisy_model_may_prefer_more_contrast(digits, honest):
    noisy = StochasticToy(honest, scale=30.0)
    verdict = check_inputs(looking(noisy, digits))
    assert (verdict.verdict, check_labels(looking(noisy, digits)).verdict) == ("WARN", "PASS")
    assert "multiplied by 255" in verdict.evidence


def test_a_missing_normalisation_is_named(digits):
    images, labels = digits.batch(list(range(0, 5000, 5)))
    network = least_squares((images - images.mean()) / images.std(), labels)
    verdict = check_inputs(looking(other_inputs(network, lambda x: x * 0.02), digits))
    assert verdict.verdict in ("WARN", "FAIL"), verdict.evidence


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda images: images.flip(1), "in reverse order of channels (BGR)"),
        (
            lambda images: images.permute(0, 2, 3, 1).reshape(images.shape),
            "read as height × width × channels",
        ),
    ],
)
def test_colour_images_of_another_layout_are_named(colours, colour_model, change, says):
    assert check_inputs(looking(colour_model, colours)).verdict == "PASS"
    images, labels = colours.batch(list(range(300)))
    changed = ArrayDataset(change(images).contiguous(), labels, "changed")
    verdict = check_inputs(looking(colour_model, changed))
    assert verdict.verdict in ("WARN", "FAIL")
    assert f"With inputs {says}" in verdict.evidence


def test_inputs_of_a_larger_range_are_named():
    labels = torch.arange(200) // 2 % 2
    images = (20 + 200 * labels[:, None, None, None]).float().expand(200, 1, 4, 4).contiguous()
    data = ArrayDataset(images, labels, "bright", (0.0, 255.0))
    verdict = check_inputs(looking(Toy(Brightness(), 2, (0.0, 255.0)), data))
    assert verdict.verdict == "FAIL"
    assert "With inputs divided by 255" in verdict.evidence


@pytest.mark.parametrize("largest", [1, 3])
def test_bytes_that_never_exceed_one_fail(honest, digits, largest):
    images, labels = digits.batch(list(range(0, 5000, 25)))
    data = ArrayDataset((images * largest).round().to(torch.uint8), labels, "bits")
    verdict = check_inputs(looking(honest, data))
    assert verdict.verdict == "FAIL"
    assert "Bytes of 0 and 1, or a division by 255 twice" in verdict.evidence


def test_floats_that_were_divided_twice_fail(digits, honest):
    images, labels = digits.batch(list(range(0, 5000, 25)))
    for bounds in ((0.0, 1.0), (0.0, 255.0)):
        data = ArrayDataset(images / 255 * bounds[1], labels, "dark", bounds)
        assert check_inputs(looking(constant(honest), data)).verdict == "FAIL"


def test_other_forms_of_the_inputs_leave_no_trace_in_the_model():
    labels = torch.arange(200) // 2 % 2
    images = (20 + 200 * labels[:, None, None, None]).float().expand(200, 1, 4, 4).contiguous()
    data = ArrayDataset(images, labels, "bright", (0.0, 255.0))
    observer = Observer()
    assert check_inputs(looking(Toy(observer, 2, (0.0, 255.0)), data)).verdict == "FAIL"
    assert observer.largest == 220.0


# C42


def test_labels_that_begin_at_one_are_named(digits):
    network = least_squares(*digits.batch(list(range(0, 5000, 4))))
    wider = Toy(Appended(network.module), CLASSES + 1)
    data = relabelled(digits, digits.labels + 1)
    verdict = check_labels(looking(wider, data))
    assert verdict.verdict == "FAIL"
    assert "classes plus 1" in verdict.evidence
    assert "Labels begin at 1." in verdict.evidence
    assert check_clean_accuracy(looking(wider, data)).verdict == "FAIL"


def test_a_model_of_labels_from_one_passes(digits):
    data = relabelled(digits, digits.labels + 1)
    fitted = least_squares(*data.batch(list(range(0, 5000, 4))))
    assert check_labels(looking(fitted, data)).verdict == "PASS"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([*range(1, 10), 0], "classes plus"),
        ([*reversed(range(10))], "reverse order"),
        ([3, 1, 4, 0, 5, 9, 2, 6, 8, 7], "renamed (0 to 3"),
        ([0, 1, 2, 5, 4, 3, 6, 7, 8, 9], "renamed (3 to 5, 5 to 3)"),
    ],
)
def test_permuted_labels_are_named(honest, digits, names, says):
    probe = looking(other_classes(honest, names), digits)
    verdict = check_labels(probe)
    assert verdict.verdict == "FAIL"
    assert says in verdict.evidence
    assert check_inputs(probe).verdict == "PASS"


def test_clean_accuracy_at_chance_names_the_permuted_labels(honest, digits):
    verdict = check_clean_accuracy(looking(other_classes(honest, [*range(1, 10), 0]), digits))
    assert verdict.verdict == "FAIL"
    assert "classes plus 1" in verdict.evidence


def test_labels_of_the_neighbouring_sample_are_named(honest, digits):
    order = SampleRNG(0, torch.arange(5000), "order").integers(2**31).argsort()
    images, labels = digits.batch(order)
    data = ArrayDataset(images, labels.roll(1), "displaced")
    verdict = check_labels(looking(honest, data))
    assert verdict.verdict == "FAIL"
    assert "label of the next one" in verdict.evidence


def test_shuffled_labels_are_at_chance_without_a_renaming(honest, digits):
    shuffled = SampleRNG(0, torch.arange(5000), "order").integers(2**31).argsort()
    probe = looking(honest, relabelled(digits, digits.labels[shuffled]))
    verdict = check_clean_accuracy(probe)
    assert verdict.verdict == "FAIL"
    assert "labels are in the order of the images" in verdict.evidence
    assert check_labels(probe).verdict == "PASS"


def test_labels_that_differ_from_those_of_the_batches_fail(honest, digits):
    data = relabelled(digits, digits.labels)
    probe = looking(honest, data)
    data.labels = data.labels.flip(0)
    assert check_labels(probe).verdict == "PASS"
    verdict = check_labels(Probe("toy", honest, probe.batch, (0.0, 1.0), 0, data.labels))
    assert verdict.verdict == "FAIL"
    assert "differ from those of its batches" in verdict.evidence


# C40


def card_cell(right, n=100, **training):
    card = {"training": training} if training else {}
    broken = [None] * right + [0.0] * (n - right)
    return toy_cell("pgd", broken, model={"name": "toy", "card": card})


@pytest.mark.parametrize(
    ("right", "stated", "expected"),
    [
        (95, 0.97, "PASS"),
        (85, 0.97, "WARN"),
        (40, 0.97, "FAIL"),
        (99, 0.6, "FAIL"),
        (90, 0.8, "PASS"),
    ],
)
def test_an_accuracy_far_from_the_cards_is_found(right, stated, expected):
    (verdict,) = check_card_accuracy([card_cell(right, accuracy_four=stated)])
    assert (verdict.id, verdict.verdict) == ("C40", expected)
    assert f"the card states {stated:.1%}" in verdict.evidence


def test_samples_of_several_cells_count_once_and_few_are_not_compared():
    cells = [card_cell(5, 10, accuracy_four=0.9)] * 3
    (verdict,) = check_card_accuracy(cells)
    assert verdict.verdict == "NA"


def test_training_images_are_no_test_images():
    card = {"trained_on": ["four"], "training": {"accuracy_four": 0.95}}
    (verdict,) = check_card_accuracy([toy_cell("pgd", [None] * 95, model={"card": card})])
    assert (verdict.id, verdict.verdict) == ("C40", "FAIL")
    assert "trained on images of four" in verdict.evidence


@pytest.mark.parametrize(
    ("data", "own", "trained_on", "expected"),
    [
        ("four:split=train", "four", [], "WARN"),
        ("four:split=train,pad=2", "four", [], "WARN"),
        ("hf:org/four,split=train", "hf:org/four", [], "WARN"),
        ("four:split=train", "four", ["four:split=train"], "FAIL"),
        ("four:pad=2,split=train", "four", ["four:split=train"], "FAIL"),
        ("five:split=train", "four", [], None),
        ("four:split=test", "four", ["four:split=train"], None),
        ("four:split=training", "four", [], None),
    ],
)
def test_a_training_split_is_no_test_split(data, own, trained_on, expected):
    model = {"card": {"dataset": own, "trained_on": trained_on}}
    verdicts = check_card_accuracy(
        [toy_cell("pgd", [None] * 95, model=model, dataset={"name": data})]
    )
    assert [(v.id, v.verdict) for v in verdicts] == ([("C40", expected)] if expected else [])


@pytest.mark.parametrize("stated", [True, "0.9", 97.0, None])
def test_a_card_without_a_usable_accuracy_gives_no_verdict(stated):
    assert check_card_accuracy([card_cell(5, accuracy_four=stated), card_cell(5)]) == []
    assert check_card_accuracy([card_cell(5, accuracy_other=0.9)]) == []


# the whole path


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda toy: other_inputs(toy, lambda x: x / 255), {"C39": "FAIL", "C41": "FAIL"}),
        (lambda toy: other_classes(toy, [*range(1, 10), 0]), {"C39": "FAIL", "C42": "FAIL"}),
        (constant, {"C39": "FAIL"}),
    ],
)
def test_an_evaluation_tells(honest, digits, tmp_path, spoil, expected):
    run = rbi.evaluate(
        model=spoil(honest),
        attack="fgsm",
        threat="linf=0.1",
        dataset=digits,
        samples=10,
        out=tmp_path,
    )
    found = {v["id"]: v["verdict"] for v in RunFolder(run.path).checks()}
    assert {id_: found[id_] for id_ in expected} == expected


class Fixed(torch.nn.Module):
    """The same logits for every input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1)


class Brightness(torch.nn.Module):
    """Class 1 for a bright image."""

    def forward(self, images):
        bright = images.flatten(1).mean(1) - 0.5
        return torch.stack([-bright, bright], 1)


class Observer(Brightness):
    """Records the largest input, as a network does that is prepared for quantisation."""

    largest = 0.0

    def forward(self, images):
        self.largest = max(self.largest, float(images.max()))
        return super().forward(images)


class Appended(torch.nn.Module):
    """A network with another class that it never predicts."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images):
        logits = self.module(images)
        return torch.cat([logits, logits[:, :1] - 1e3], 1)


class Named:
    def __init__(self, name, classifier):
        self.name, self.classifier = name, classifier
