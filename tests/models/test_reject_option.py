"""The reject option: quantiles, thresholds per class, and clearances with gradients."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robustbench_inv as rbi
from robustbench_inv.catalogue.models import (
    Rejection,
    calibration_digest,
    load_model,
    split_rejection,
)
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.experiments.calibration import CalibrationData, calibrate
from robustbench_inv.models.protocol import Stochastic
from robustbench_inv.models.reject_option import (
    PERCENTILES,
    SCORES,
    ScoreQuantiles,
    class_scores,
    fit_quantiles,
    reject,
)
from robustbench_inv.results.cell_parts import ModelInfo
from robustbench_inv.tensors import Output
from robustbench_inv.testing.toys import StochasticToy, Toy

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.5, 2.0, 1.0], [-5.0, -6.0, -4.0]], dtype=torch.float64)


class Identity(nn.Module):
    """Its inputs are its logits."""

    bounds, num_classes = (-100.0, 100.0), 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images * self.scale


def toy():
    return Toy(Identity(), 3, (-100.0, 100.0), torch.float64)


def training(count=3000):
    """Logits and labels of three classes; a tenth is misclassified with a large margin."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    logits = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    logits[torch.arange(count), labels] += 8
    logits[::10, :] = -50.0
    logits[torch.arange(0, count, 10), (labels[::10] + 1) % 3] = 50.0
    return logits, labels


def fitted(**facts):
    logits, labels = training()
    return fit_quantiles(Output(logits), labels, facts, classes=3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("likelihood", LOGITS.amax(1)),
        ("max-softmax", LOGITS.softmax(1).amax(1).logit()),
        ("margin", torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)),
        ("energy", LOGITS.logsumexp(1)),
    ],
)
def test_the_score_belongs_to_the_predicted_class(name, expected):
    output = reject(toy(), name, torch.zeros(3))(LOGITS)
    torch.testing.assert_close(output.score, expected)


def test_saturated_softmax_outputs_keep_their_order():
    sure = torch.tensor([[60.0, 0.0, 0.0], [70.0, 0.0, 0.0]])
    scores = class_scores("max-softmax", Output(sure))[:, 0]
    assert (sure.softmax(1)[:, 0] == 1).all()
    assert scores[1] - scores[0] == pytest.approx(10, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in SCORES if name != "own"])
def test_a_ruled_out_class_changes_no_score(name):
    wide = torch.cat([LOGITS[:, :1], torch.full_like(LOGITS[:, :1], -torch.inf), LOGITS[:, 1:]], 1)
    wide.requires_grad_()
    scores = class_scores(name, Output(wide))
    assert torch.allclose(scores[:, [0, 2, 3]], class_scores(name, Output(LOGITS)))
    assert scores.isfinite().all()
    scores.sum().backward()
    assert wide.grad.isfinite().all()


def test_a_sample_with_one_possible_class_is_accepted():
    rows = torch.tensor([[-torch.inf, 1.0, -torch.inf]], requires_grad=True)
    for name in ("max-softmax", "margin"):
        scores = class_scores(name, Output(rows))
        assert scores.argmax(1).item() == 1
        assert scores[0, 1] > 1e30
        (gradient,) = torch.autograd.grad(scores[0, 1], rows)
        assert gradient.isfinite().all()
        assert Output(rows, scores[:, 1]).valid.all()


def test_acceptance_uses_the_threshold_of_the_predicted_class():
    output = reject(toy(), "likelihood", torch.tensor([3.0, 2.5, -4.5]))(LOGITS)
    assert output.accepted.tolist() == [True, False, True]
    decided = output.clearance.gather(1, output.decision[:, None])[:, 0]
    assert decided.tolist() == [0.0, -0.5, 0.5]


@pytest.mark.parametrize("name", [name for name in SCORES if name != "own"])
def test_every_clearance_has_a_gradient(name):
    images = LOGITS.clone().requires_grad_(True)
    output = reject(toy(), name, torch.zeros(3))(images)
    (gradient,) = torch.autograd.grad(output.clearance[:, 1].sum(), images)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(1) > 0).all()


def test_a_model_may_return_a_score():
    class Scored(Identity):
        def forward(self, images):
            return Output(images, score=images.sum(1))

    class Whole(Toy):
        def __call__(self, images):
            return self.module(images)

    model = reject(Whole(Scored(), 3, (-100.0, 100.0), torch.float64), "own", torch.full((3,), 3.6))
    assert model(LOGITS).accepted.tolist() == [True, False, False]
    with pytest.raises(BadParameter, match="returns no score"):
        reject(toy(), "own", torch.zeros(3))(LOGITS)


@pytest.mark.parametrize("name", ["likelihood", "max-softmax", "margin", "energy"])
def test_each_class_rejects_its_percentage_of_correct_inputs(name):
    logits, labels = training()
    quantiles = fitted()
    for percentile in (0, 1, 2, 7.25, 20):
        output = reject(toy(), name, quantiles.thresholds(name, percentile))(logits)
        for label in range(3):
            right = (labels == label) & (output.decision == labels)
            share = float((~output.accepted[right]).double().mean())
            assert share == pytest.approx(percentile / 100, abs=2 / int(right.sum()))


def test_misclassified_inputs_do_not_change_the_quantiles():
    logits, labels = training()
    wrong = logits.argmax(1) != labels
    changed = torch.where(wrong[:, None], logits - 1e3, logits)
    again = fit_quantiles(Output(changed), labels, {}, classes=3)
    assert torch.equal(again.values["energy"], fitted().values["energy"])


def test_a_class_without_correct_inputs_raises():
    logits, labels = training()
    logits[:, 2] = -1e3
    with pytest.raises(BadModel, match="too few training inputs of class 2"):
        fit_quantiles(Output(logits), labels, {}, classes=3)


def test_quantiles_survive_a_round_trip(tmp_path):
    before = fitted(model="abc", first="0")
    (tmp_path / "t.safetensors").write_bytes(before.to_bytes())
    after = ScoreQuantiles.load(tmp_path / "t.safetensors")
    assert after.facts == before.facts
    assert after.facts["correct"] == "2700 of 3000"
    assert torch.equal(after.thresholds("margin", 1.3), before.thresholds("margin", 1.3))


def test_other_files_raise(tmp_path):
    with pytest.raises(BadModel, match="rejection thresholds not found"):
        ScoreQuantiles.load(tmp_path / "none")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(BadModel, match="holds no thresholds"):
        ScoreQuantiles.load(tmp_path / "text")
    save_file({"margin": torch.zeros(3, 2)}, tmp_path / "short", metadata={"facts": "{}"})
    with pytest.raises(BadModel, match="41 percentiles"):
        ScoreQuantiles.load(tmp_path / "short")


@pytest.mark.parametrize(("score", "percentile"), [("margin", -1), ("margin", 20.5), ("own", 1)])
def test_invalid_scores_and_percentiles_raise(score, percentile):
    with pytest.raises(BadParameter):
        fitted().thresholds(score, percentile)


def test_a_stochastic_model_stays_stochastic():
    model = reject(StochasticToy(toy(), fixed_noise=True), "margin", torch.full((3,), 1.5))
    assert isinstance(model, Stochastic)
    assert model.latent_shape == (3,)
    answer = model.respond(LOGITS, torch.zeros(4, 3, 3, dtype=torch.float64))
    assert answer.accepted.tolist() == [True, False, False]


def test_rejection_parameters_are_separated_from_model_parameters():
    assert split_rejection({"width": 3}) == (None, {"width": 3})
    assert split_rejection({"percentile": 2}) == (Rejection(percentile=2.0), {})
    wanted, rest = split_rejection({"reject": "energy", "percentile": 0.5, "dtype": "float64"})
    assert wanted == Rejection("energy", 0.5)
    assert rest == {"dtype": "float64"}
    with pytest.raises(BadParameter, match="percentile"):
        split_rejection({"percentile": "many"})


@pytest.fixture
def thresholds(tmp_path):
    """Return thresholds fitted to a user's model."""
    logits, labels = training()
    data = ArrayDataset(((logits + 100) / 200).float(), labels, "logits", num_classes=3)
    model = Small()
    found = calibrate(load_model(model), CalibrationData(data, 0, len(data)))
    (tmp_path / "t.safetensors").write_bytes(found.to_bytes())
    return model, data, str(tmp_path / "t.safetensors")


class Small(nn.Module):
    """Logits are inputs, put back from 0 to 1."""

    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self, offset=100.0):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, images):
        return 200 * images - self.offset


def test_any_model_can_be_wrapped(thresholds):
    model, data, path = thresholds
    plain = load_model(model)
    some, more = (
        load_model(model, reject="margin", percentile=p, thresholds=path) for p in (1, 20)
    )
    images, _ = data.batch(list(range(300)))
    assert plain(images).accepted is None
    assert (~some(images).accepted).sum() < (~more(images).accepted).sum()
    assert len({plain.digest, some.digest, more.digest}) == 3
    about = some.card["rejection"]
    assert about["fitted"]["dataset_digest"] == data.digest
    assert about["fitted"]["model"] == calibration_digest(plain)
    again = load_model(model, reject="margin", percentile=1, thresholds=path)
    assert again.digest == some.digest


def test_thresholds_belong_to_their_model(thresholds):
    *_, path = thresholds
    with pytest.raises(BadModel, match="fitted to another model") as caught:
        load_model(Small(99.0), percentile=1, thresholds=path)
    assert "invbench calibrate" in str(caught.value)
    with pytest.raises(BadModel, match="has no rejection thresholds"):
        load_model(Small(), percentile=1)


def test_the_shipped_thresholds_are_those_of_the_shipped_weights():
    model = load_model("mnist-cnn:reject=max-softmax,percentile=2")
    assert model.name == "mnist-cnn:reject=max-softmax,percentile=2"
    assert model.card["rejection"]["fitted"]["dataset"] == "mnist:split=train"
    assert model.card["rejection"]["fitted"]["first"] == "6000"
    assert len(PERCENTILES) == 41


def test_a_cell_records_score_and_thresholds(thresholds, tmp_path):
    model, data, path = thresholds
    loaded = load_model(model, reject="margin", percentile=1, thresholds=path)
    run = rbi.evaluate(
        model=loaded,
        attack="random-perturbation",
        threat="linf=0.001",
        dataset=data,
        samples="first:6",
        out=tmp_path / "run",
    )
    about = json.loads(next((tmp_path / "run").rglob("cell.json")).read_text())["model"]
    assert about["rejection"]["thresholds"] == loaded.card["rejection"]["values"]
    first = run.records()[0].clean
    expected = first.score - about["rejection"]["thresholds"][first.prediction]
    assert ModelInfo.from_json(about).score_above_threshold(first) == pytest.approx(expected)
    checks = json.loads(next((tmp_path / "run").rglob("checks.json")).read_text())
    (frozen,) = [check for check in checks["verdicts"] if check["id"] == "C24"]
    assert frozen["verdict"] == "FAIL"  # what was attacked was fitted on
    assert "6 of the attacked samples" in frozen["evidence"]
