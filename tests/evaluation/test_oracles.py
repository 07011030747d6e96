"""Oracles: from a threat's text to the records, eligible members, votes of a panel, and its own error."""

import json
from dataclasses import replace

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.api import evaluate
from robustbench_inv.catalogue.fingerprint import content
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.catalogue.threats import load_threat
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.errors import (
    BadCatalogue,
    BadData,
    BadParameter,
    CapabilityMismatch,
    InvbenchError,
    UnknownName,
)
from robustbench_inv.evaluation.jobs import EvaluationRequest
from robustbench_inv.evaluation.oracles import (
    dataset_oracle,
    describe_oracle,
    load_oracle,
)
from robustbench_inv.evaluation.packing import pack_jobs, unpack_jobs
from robustbench_inv.evaluation.panel import AttackedModel, PanelOracle
from robustbench_inv.evaluation.plan import make_plan, plan_jobs
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.tensors import Output
from robustbench_inv.testing.analytic_problems import (
    AllRowsClassifier,
    BodyMeanClassifier,
    FirstRowClassifier,
    LinearClassifier,
    ShiftBodyAttack,
    column_images,
)
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import Misclassify
from robustbench_inv.threat.threat_model import ThreatModel, describe_threat, digest_threat


def described(threat, oracle=None):
    about = None if oracle is None else describe_oracle(str(threat.oracle), oracle)
    return describe_threat(threat, content, oracle=about)


def threat_digest(threat, oracle=None):
    return digest_threat(described(threat, oracle))


HERE = "robustbench_inv.testing.analytic_problems"
CARD = 'summary = "three readers"\nmembers = {members}\nrule = "{rule}"\n'


@pytest.fixture(autouse=True)
def catalogue(tmp_path, monkeypatch):
    """Return a function that adds a panel to the catalogue; ``three`` is there."""
    folder = tmp_path / "catalogue" / "attacks" / "oracles"
    folder.mkdir(parents=True)
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path / "catalogue"))

    def add(name, *members, rule="majority"):
        listed = json.dumps([f"{HERE}:{member}" for member in members])
        (folder / f"{name}.toml").write_text(CARD.format(members=listed, rule=rule))

    add("three", "BodyMeanClassifier", "BodyMaxClassifier", "AllRowsClassifier")
    return add


def panel(text="three", data=None, attacked=()):
    return load_oracle(
        text, data or column_images(), [AttackedModel.of(each) for each in attacked], load_model
    )


def shifted(data, first_changed_id=0):
    """Return all images as ShiftBodyAttack shows them, and their ids."""
    ids = torch.arange(len(data))
    images = data.batch(ids)[0]
    moved = images.clone()
    moved[first_changed_id:, :, 1:, :3] = moved[first_changed_id:, :, 1:, :3].roll(1, -1)
    return moved, ids


@pytest.mark.parametrize(
    "text",
    [
        "none:oracle=mnist-panel",
        "none:norm=linf:oracle=mnist-panel:rule=unanimous",
        "linf=0.1,0.2:oracle=some/labels.csv",
        "linf=0.1:oracle=three:substitute=mine.py:build:width=3",
        "linf=0.1:substitute=mine.py:build:oracle=3",
    ],
)
def test_the_text_of_a_threat_is_parsed_again(text):
    threat = load_threat(text)
    assert threat.text == text
    assert load_threat(threat.text) == threat


def test_the_name_of_a_substitute_is_the_rest_of_the_text():
    threat = load_threat("linf=0.1:oracle=three:substitute=a:oracle=3")
    assert (threat.oracle, threat.substitute) == ("three", "a:oracle=3")
    with pytest.raises(BadParameter, match="names no oracle, expected oracle=NAME"):
        load_threat("none:oracle=")


def test_a_threat_of_the_catalogue_may_name_an_oracle(tmp_path):
    threats = tmp_path / "catalogue" / "attacks" / "threats"
    threats.mkdir()
    (threats / "judged.toml").write_text('summary = "s"\nnorm = "l2"\noracle = "three"\n')
    assert load_threat("judged").oracle == "three"
    assert load_threat("judged:oracle=other").oracle == "other"


def test_an_oracle_is_part_of_the_digest_and_its_name_is_not():
    plain = ThreatModel(LpBall("linf", 0.3), sweep=(0.1, 0.3))
    frozen = threat_digest(plain)
    found = [
        panel(),
        panel("three:rule=unanimous"),
        panel(attacked=[load_model(BodyMeanClassifier())]),
    ]
    threats = [replace(plain, oracle="x"), replace(plain, oracle="y")]
    digests = [threat_digest(threats[0], oracle=each) for each in found]
    assert len({*digests, frozen}) == 4
    assert threat_digest(threats[1], oracle=panel()) == digests[0]
    about = described(threats[0], found[2])["oracle"]
    assert about["excluded"] == [
        f"{HERE}:BodyMeanClassifier is excluded from three: it is the attacked model"
    ]
    assert [each["name"] for each in about["members"]] == [
        f"{HERE}:BodyMaxClassifier",
        f"{HERE}:AllRowsClassifier",
    ]


def fixed(*logits):
    """Return a classifier of two classes that gives every image the same logits."""
    bias = torch.tensor([float(each) for each in logits])
    return LinearClassifier(torch.zeros(2, 4), bias, (0.0, 1.0))


class Refusing(torch.nn.Module):
    """Says class 1 and rejects."""

    bounds, num_classes = (0.0, 1.0), 2

    def forward(self, images):
        logits = torch.tensor([[0.0, 1.0]]).expand(len(images), 2)
        return Output(logits, None, torch.zeros(len(images), dtype=torch.bool))


@pytest.mark.parametrize(
    ("members", "rule", "expected"),
    [
        ([fixed(0, 1), fixed(0, 2), fixed(1, 0)], "majority", 1),
        ([fixed(0, 1), fixed(0, 2), fixed(1, 0)], "unanimous", -1),
        ([fixed(0, 1), fixed(0, 2)], "unanimous", 1),
        ([fixed(0, 1), fixed(1, 0)], "majority", -1),
        ([fixed(0, 1), fixed(0, 2), fixed(1, 0), fixed(2, 0)], "majority", -1),
        ([fixed(0, 1), Refusing()], "majority", -1),
        ([fixed(0, 1), fixed(0, 2), Refusing()], "majority", 1),
    ],
)
def test_the_rule_counts_all_members(members, rule, expected):
    data = ArrayDataset(torch.rand(3, 4), [1, 1, 1], "ones", num_classes=2)
    found = PanelOracle("p", rule, tuple(map(load_model, members)), data)
    ids = torch.arange(3)
    assert found.vote(data.batch(ids)[0], ids).tolist() == [expected] * 3


def test_a_panel_detects_a_changed_class():
    images, ids = shifted(column_images(), first_changed_id=2)
    assert panel().classify(images, ids).tolist() == [0, 1, *((i + 1) % 3 for i in range(2, 12))]


def test_a_panel_is_undecided_where_it_misclassifies_the_clean_input():
    data = column_images()
    labels = data.labels.clone()
    labels[4] = (labels[4] + 1) % 3
    wrong = ArrayDataset(data.batch(range(12))[0], labels, "column_images", num_classes=3)
    images, ids = shifted(wrong)
    said = panel(data=wrong).classify(images[3:6], ids[3:6]).tolist()
    assert said == [1, -1, 0]


def test_the_error_of_a_panel_is_measured_on_the_given_samples():
    data = column_images()
    images = data.batch(range(12))[0].clone()
    images[5, 0, 1:3, 0] = 1.0  # the peak's reader alone is misled: two of three are right
    images[7, 0, 0, 2] = images[7, 0, 1, 0] = 1.0
    images[7, 0, :, 1] = 0.5
    found = panel(data=ArrayDataset(images, (data.labels + 1) % 3, "turned", num_classes=3))
    error = found.error(range(12))
    assert (error.source, error.measured_on) == ("panel three", "clean inputs")
    assert (error.trials, error.errors + error.undecided) == (12, 12)
    assert panel().error(range(4)).error_rate.successes == 0
    assert panel().error(range(4)).trials == 4


@pytest.mark.parametrize(
    ("attacked", "why"),
    [
        (BodyMeanClassifier(), "it is the attacked model"),
        (BodyMeanClassifier().double(), "bodymeanclassifier has the same architecture"),
        (BodyMeanClassifier(scale=7.0), "bodymeanclassifier has the same architecture"),
    ],
)
def test_the_attacked_model_is_excluded_from_a_panel(attacked, why):
    found = panel(attacked=[load_model(attacked)])
    assert [each.name for each in found.members] == [
        f"{HERE}:BodyMaxClassifier",
        f"{HERE}:AllRowsClassifier",
    ]
    assert found.notes == (f"{HERE}:BodyMeanClassifier is excluded from three: {why}",)
    assert panel(attacked=[load_model(FirstRowClassifier())]).notes == ()


def test_the_same_weights_under_another_name_are_the_same_model():
    found = load_oracle(
        "mnist-panel",
        open_dataset("mnist5k"),
        [AttackedModel.of(load_model("mnist-vib"))],
        load_model,
    )
    assert found.notes == (
        "mnist-vib:noise=mean is excluded from mnist-panel: it is the attacked model",
    )
    assert len(found.members) == 3


def test_a_panel_of_one_is_refused(catalogue):
    catalogue("two", "BodyMeanClassifier", "BodyMaxClassifier")
    with pytest.raises(CapabilityMismatch, match="two has too few eligible members") as error:
        panel("two", attacked=[load_model(BodyMeanClassifier())])
    assert "\n" not in str(error.value)
    catalogue("double", "BodyMeanClassifier", "BodyMeanClassifier:scale=2.0")
    with pytest.raises(BadParameter, match="names a member twice"):
        panel("double")
    with pytest.raises(UnknownName, match="did you mean three"):
        panel("thre")
    with pytest.raises(BadCatalogue, match="rule does not fit"):
        panel("three:rule=any")


OWN = f"panel:{HERE}:BodyMeanClassifier:scale=2.0,{HERE}:BodyMaxClassifier,{HERE}:AllRowsClassifier"


def test_own_models_form_a_panel():
    found = panel(OWN)
    assert [each.name.removeprefix(f"{HERE}:") for each in found.members] == [
        "BodyMeanClassifier:scale=2.0",
        "BodyMaxClassifier",
        "AllRowsClassifier",
    ]
    assert found.rule == "majority"
    assert found.source.startswith("panel of 3 models #")
    assert found.notes == ()
    images, ids = shifted(column_images(), first_changed_id=2)
    assert found.classify(images, ids).tolist() == [0, 1, *((i + 1) % 3 for i in range(2, 12))]


def test_the_order_of_own_models_does_not_matter_but_their_rule_and_weights_do():
    one, two = f"{HERE}:BodyMeanClassifier", f"{HERE}:BodyMaxClassifier"
    texts = [
        f"panel:{one},{two}",
        f"panel: {two} , {one}",
        f"panel:{one},{two},rule=unanimous",
        f"panel:{one}:scale=2.0,{two}",
    ]
    digests = [panel(text).digest for text in texts]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_own_models_of_the_attacked_architecture_vote_and_the_attacked_model_does_not():
    found = panel(OWN, attacked=[load_model(BodyMeanClassifier(scale=2.0))])
    assert len(found.members) == 2
    assert "BodyMeanClassifier:scale=2.0 is excluded from the panel" in found.notes[0]
    related = [load_model(BodyMeanClassifier(scale=7.0))]
    found = panel(OWN.replace(":scale=2.0", ""), attacked=related)
    assert len(found.members) == 3
    assert "which has the same architecture: shared mistakes hide failures" in found.notes[0]
    assert panel(OWN, attacked=related).notes == ()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("panel", CapabilityMismatch, "as panel:MODEL,MODEL, or a CSV"),
        ("panel:", CapabilityMismatch, "the panel has too few eligible members, got 'none'"),
        ("panel:BodyMax", CapabilityMismatch, "too few eligible members, got .*:BodyMax"),
        ("panel:BodyMax,BodyMax", BadParameter, "the panel names a member twice"),
        ("panel:BodyMax,AllRows,rule=any", BadParameter, "unknown rule of a panel, got 'any'"),
        ("panel:BodyMax,AllRow", UnknownName, "AllRow"),
        ("panel:BodyMax,lables.csv", UnknownName, "lables.csv"),
    ],
)
def test_an_unusable_panel_of_own_models_is_refused(text, error, says):
    for name in ("BodyMax", "AllRows"):
        text = text.replace(name, f"{HERE}:{name}Classifier")
        says = says.replace(f":{name}", f":{name}Classifier")
    with pytest.raises(error, match=says) as raised:
        panel(text)
    assert "\n" not in str(raised.value)


def test_a_panel_of_own_models_from_the_threat_to_the_records(tmp_path):
    found, cell = run(tmp_path, threat=f"none:oracle={OWN}")
    assert [r.goal_reached for r in found.records()] == [False] * 2 + [True] * 10
    assert {r.oracle_source for r in found.records()} == {panel(OWN).source}
    assert cell.info.threat.text == f"none:oracle={OWN}"
    assert cell.oracle_error().trials == 12
    (job,) = make_plan(
        EvaluationRequest(
            models=["mnist-cnn"],
            attacks=["collision"],
            dataset="mnist5k",
            samples=4,
            threat="none:oracle=panel:mnist-lenet5,mnist-mlp",
        )
    ).jobs
    (packed,) = unpack_jobs(pack_jobs([job]))
    assert packed.build({}).oracle.digest == job.oracle.digest


def run(tmp_path, model=None, threat="none:oracle=three", attack=None, **more):
    asked = {"dataset": column_images(), "checks": False, "keep_images": True, **more}
    found = evaluate(
        model=model or FirstRowClassifier(), attack=attack or ShiftBodyAttack(2), threat=threat, out=tmp_path / "r", **asked
    )  # fmt: skip
    (cell,) = RunFolder(found.path).cells()
    return found, cell


def test_from_the_threat_to_the_records(tmp_path):
    found, cell = run(tmp_path)
    records = found.records()
    assert [r.goal_reached for r in records] == [False] * 2 + [True] * 10
    assert [r.oracle_label for r in records] == [0, 1, *((i + 1) % 3 for i in range(2, 12))]
    assert {r.oracle_source for r in records} == {"panel three"}
    assert cell.info.threat.oracle.digest == panel().digest
    error = cell.oracle_error()
    assert (error.trials, error.errors, error.undecided) == (12, 0, 0)
    (told,) = found.to_json()
    shares = {
        name: told["invariance"][name]["successes"]
        for name in ("same_prediction", "class_changed", "success")
    }
    assert shares == {"same_prediction": 12, "class_changed": 10, "success": 10}
    assert told["invariance"]["oracle"] == "panel three"
    assert told["invariance"]["oracle_error_rate"]["trials"] == 12


def test_the_error_covers_added_samples_and_is_measured_once(tmp_path, monkeypatch):
    _, cell = run(tmp_path, samples="first:4")
    assert cell.oracle_error().trials == 4
    _, cell = run(tmp_path)
    assert cell.oracle_error().trials == 12
    written = (cell.path / "oracle.json").stat().st_mtime_ns
    monkeypatch.setattr(PanelOracle, "error", lambda *_: pytest.fail("measured again"))
    run(tmp_path)
    assert (cell.path / "oracle.json").stat().st_mtime_ns == written


def test_batches_make_no_difference(tmp_path):
    lines = set()
    for size in (1, 5, 12):
        _, cell = run(tmp_path / str(size), batch_size=size)
        lines.add((cell.path / "records.jsonl").read_bytes())
    assert len(lines) == 1


def test_same_class_needs_the_oracle_to_agree(tmp_path):
    wanted = load_threat("none:oracle=three").with_goal(Misclassify(same_class=True))
    found, _ = run(tmp_path, model=BodyMeanClassifier(), threat=wanted, attack=Minimal())
    assert not any(
        r.goal_reached for r in found.records()
    )  # the decision changes, and so does the class
    assert {r.adversarial.prediction == r.oracle_label for r in found.records()} == {True}


class Minimal(ShiftBodyAttack):
    kind = "minimum-norm"


def test_the_oracle_of_a_threat_precedes_the_data_set():
    spheres = rbi.load_dataset("spheres:d=50,n=5,size=8")
    assert dataset_oracle(spheres).source == "exact"
    assert dataset_oracle(column_images()) is None
    question = EvaluationRequest(
        models=["spheres-misaligned"], attacks=["spheres-invariance"], dataset=spheres
    )
    (job,) = make_plan(question).jobs
    assert (job.oracle, job.threat.oracle, job.effective_oracle.source) == (None, None, "exact")


def test_the_default_oracle_is_used_if_the_goal_needs_one():
    asked = {"models": ["mnist-cnn"], "dataset": "mnist5k", "samples": 4}
    plan = make_plan(EvaluationRequest(attacks=[ShiftBodyAttack()], threat="none", **asked))
    assert plan.jobs[0].threat.oracle == "mnist-panel"
    assert plan.warnings == ("mnist-cnn is excluded from mnist-panel: it is the attacked model",)
    plan = make_plan(EvaluationRequest(attacks=["fgsm"], threat="linf=0.1", **asked))
    assert plan.jobs[0].threat.oracle is None
    job = make_plan(EvaluationRequest(attacks=[ShiftBodyAttack()], **asked)).jobs[0]
    (again,) = unpack_jobs(pack_jobs([job]))
    assert len(again.oracle.members) == 3


def test_without_any_oracle_it_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(CapabilityMismatch, match=r"needs the true class .* none:oracle=") as error:
        run(tmp_path, threat="none")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()


def test_threat_and_job_agree(toys):
    threat = replace(toys.linf(0.1), oracle="three")
    with pytest.raises(CapabilityMismatch, match="name different oracles"):
        plan_jobs([toys.make_job(toys.Straight(), threat)])


def test_members_must_be_compatible_with_the_data(tmp_path):
    wide = ArrayDataset(
        255 * column_images().batch(range(12))[0], column_images().labels, "wide", (0.0, 255.0)
    )
    model = FirstRowClassifier()
    model.bounds = (0.0, 255.0)
    with pytest.raises(CapabilityMismatch, match="BodyMeanClassifier and wide differ in the range"):
        run(tmp_path, model=model, dataset=wide)


CSV = "image,cell,sample,human_label\n"


def test_a_file_of_labels_is_an_oracle(tmp_path):
    from robustbench_inv.results.pixels import pixel_digest, to_pixels

    images, _ = shifted(column_images())
    seen = [pixel_digest(image) for image in to_pixels(images.numpy(), (0.0, 1.0))]
    labels = ["0", "unclear", "2"]
    rows = [f"{image},,,{label}\n" for image, label in zip(seen, labels, strict=False)]
    (tmp_path / "l.csv").write_text(CSV + "".join(rows))
    found, cell = run(
        tmp_path, threat=f"none:oracle={tmp_path / 'l.csv'}", attack=ShiftBodyAttack()
    )
    assert [r.oracle_label for r in found.records()[:4]] == [0, None, 2, None]
    assert [r.goal_reached for r in found.records()[:4]] == [False] * 4
    assert {r.oracle_source for r in found.records()} == {"human"}
    assert cell.oracle_error() is None  # there were no catch trials


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("aa,,,3\n", "line 2 of l.csv: label out of range, got 3, expected 0 to 2"),
        (",c,1,1\n", "does not identify the labelled images"),
    ],
)
def test_an_unsuitable_label_file_is_refused(tmp_path, rows, says):
    (tmp_path / "l.csv").write_text(CSV + rows)
    with pytest.raises((BadData, CapabilityMismatch), match=says):
        panel(str(tmp_path / "l.csv"))


def test_human_labels_need_images(tmp_path):
    flat = ArrayDataset(torch.rand(3, 4), [0, 1, 1], "flat")
    with pytest.raises(CapabilityMismatch, match="human labels need images"):
        panel(str(tmp_path / "l.csv"), flat)


@pytest.mark.parametrize("labels", [None, ("mean", "rows")])
def test_networks_in_memory_are_a_panel(tmp_path, labels):
    members = [BodyMeanClassifier(), AllRowsClassifier()]
    asked = {
        "model": FirstRowClassifier(),
        "attack": ShiftBodyAttack(),
        "dataset": column_images(),
        "checks": False,
    }
    oracle = members if labels is None else dict(zip(labels, members, strict=True))
    found = evaluate(**asked, oracle=oracle, out=tmp_path / "a")
    named = f"panel:{HERE}:BodyMeanClassifier,{HERE}:AllRowsClassifier"
    same = evaluate(**asked, threat=f"none:oracle={named}", out=tmp_path / "b")
    assert [r.oracle_label for r in found.records()] == [r.oracle_label for r in same.records()]
    assert -1 not in {r.oracle_label for r in found.records()}
    again = evaluate(**asked, oracle=oracle, workers=2, out=tmp_path / "c")
    assert [r.oracle_label for r in again.records()] == [r.oracle_label for r in found.records()]


@pytest.mark.parametrize(
    ("oracle", "message"),
    [
        ({"x,y": BodyMeanClassifier(), "z": AllRowsClassifier()}, "unusable label"),
        ("mnist-panel", "another oracle"),
        ("", "oracle"),
    ],
)
def test_unusable_oracles_are_refused(tmp_path, oracle, message):
    asked = {"model": FirstRowClassifier(), "attack": ShiftBodyAttack(), "dataset": column_images()}
    with pytest.raises(InvbenchError, match=message):
        evaluate(**asked, threat=f"none:oracle={tmp_path}/x.csv", oracle=oracle, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()
