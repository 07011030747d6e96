"""Re-scoring: the records equal those of an evaluation with the new oracle, and the old run is unchanged."""

import json
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import ClassVar

import jsonschema
import pytest

from robustbench_inv.api import evaluate
from robustbench_inv.catalogue.threats import load_threat
from robustbench_inv.checks.suite import check_records
from robustbench_inv.errors import BadData, BadResults, CapabilityMismatch
from robustbench_inv.evaluation.rejudge import rejudge
from robustbench_inv.reporting.labelling import LabelSelection, choose_tasks
from robustbench_inv.results import run_writing as rewriting
from robustbench_inv.results.human_labels import COLUMNS
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.analytic_problems import (
    AllRowsClassifier,
    FirstRowClassifier,
    ShiftBodyAttack,
    column_images,
)
from robustbench_inv.threat.goals import KeepLogits, Misclassify


def rejudged(run, oracle, out, command=()):
    return rejudge(run, oracle, out, check_records, command=command)


@dataclass(frozen=True)
class Moved(ShiftBodyAttack):
    """The same images, as those of an attack that seeks another decision."""

    kind: ClassVar[str] = "minimum-norm"


HERE = "robustbench_inv.testing.analytic_problems"


@pytest.fixture(autouse=True)
def _panel(tmp_path, monkeypatch):
    folder = tmp_path / "catalogue" / "attacks" / "oracles"
    folder.mkdir(parents=True)
    listed = json.dumps(
        [
            f"{HERE}:{name}"
            for name in ("BodyMeanClassifier", "BodyMaxClassifier", "AllRowsClassifier")
        ]
    )
    (folder / "three.toml").write_text(f'summary = "three"\nmembers = {listed}\n')
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path / "catalogue"))


def run(path, threat="none:oracle=three", **more):
    asked = {
        "model": FirstRowClassifier(),
        "attack": ShiftBodyAttack(2),
        "dataset": column_images(),
        "keep_images": True,
    }
    return evaluate(**{**asked, "threat": threat, "checks": False, "out": path, **more}).path


def label(path, run, say=None, rows=()):
    """Write the labels of somebody who sees the shifted class, or what ``say`` makes of each trial."""
    trials, _ = choose_tasks([run], LabelSelection(catch=3))
    say = say or (lambda t: t.known if t.known is not None else (t.sample + 1) % 3)
    lines = [
        f"{t.image},{t.cell},{t.sample},{say(t)},me,{'' if t.known is None else t.known}"
        for t in trials
    ]
    path.write_text("\n".join([",".join(COLUMNS), *lines, *rows]) + "\n")
    return path


def cells(path):
    return RunFolder(path).cells()


def content(path):
    return {f.relative_to(path): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_the_records_equal_those_of_an_evaluation_with_the_labels(tmp_path):
    old = run(tmp_path / "old")
    before, csv = content(old), label(tmp_path / "l.csv", old)
    found = rejudged(old, str(csv), tmp_path / "new", command=["invbench", "judge"])
    again = run(tmp_path / "again", f"none:oracle={csv}")
    (mine,), (theirs,) = cells(tmp_path / "new"), cells(again)
    assert mine.digest == theirs.digest != cells(old)[0].digest
    for name in ("records.jsonl", "oracle.json"):
        assert (mine.path / name).read_bytes() == (theirs.path / name).read_bytes()
    assert mine.info.threat == theirs.info.threat
    assert mine.info.rejudged_from == cells(old)[0].digest
    assert content(old) == before
    assert {r.oracle_source for r in mine.records()} == {"human"}
    assert mine.oracle_error().trials == 3
    assert found.notes == ()
    plan = RunFolder(tmp_path / "new").plan
    assert [each["digest"] for each in plan["cells"]] == [mine.digest]
    assert plan["commands"][-1] == ["invbench", "judge"]
    assert {v["id"] for v in RunFolder(tmp_path / "new").checks()} >= {"C34", "C35", "C22"}
    assert {v["verdict"] for v in RunFolder(tmp_path / "new").checks()} <= {"PASS", "NA"}


def test_files_are_what_their_schemas_say(tmp_path):
    old = run(tmp_path / "old")
    rejudged(old, str(label(tmp_path / "l.csv", old)), tmp_path / "new")
    for path in (old, tmp_path / "new"):
        (cell,) = cells(path)
        for kind, name in (("cell", "cell.json"), ("oracle", "oracle.json")):
            schema = files("robustbench_inv.results") / f"schema/{kind}-v2.json"
            jsonschema.validate(json.loads((cell.path / name).read_text()), json.loads(schema.read_text()))  # fmt: skip


def opened_as(data, monkeypatch):
    """Let the data set of toys, which has no name, be opened."""
    monkeypatch.setattr("robustbench_inv.evaluation.rejudge.load_dataset", lambda *_, **__: data)


def test_a_panel_may_replace_another_oracle(tmp_path, monkeypatch):
    old = run(tmp_path / "old")
    people = rejudged(old, str(label(tmp_path / "l.csv", old)), tmp_path / "people").run
    opened_as(column_images(), monkeypatch)
    back = rejudged(people.path, "three", tmp_path / "back").run
    for name in ("records.jsonl", "oracle.json"):
        (mine,), (first,) = back.cells(), cells(old)
        assert (mine.path / name).read_bytes() == (first.path / name).read_bytes()
    assert mine.digest == first.digest


def test_unlabelled_samples_are_unknown_and_counted(tmp_path):
    old = run(tmp_path / "old")
    csv = label(tmp_path / "l.csv", old, lambda t: "unclear" if t.sample > 5 else 1)
    found = rejudged(old, str(csv), tmp_path / "new")
    records = {r.sample: r for r in found.run.cells()[0].records()}
    assert found.notes == (
        "shiftbodyattack on firstrowclassifier: 6 of 10 changed images have an unknown class",
    )
    assert [records[s].oracle_label for s in (0, 2, 5, 6)] == [None, 1, 1, None]
    assert [records[s].goal_reached for s in (2, 3, 4, 5, 6)] == [True, True, False, True, False]
    assert records[4].broken_at is None  # its label is 1: the panel saw a change, this person none
    assert records[2].broken_at == pytest.approx(records[2].distance.l2)


def test_disagreement_is_resolved_by_majority_and_reported(tmp_path):
    old = run(tmp_path / "old")
    (cell,) = cells(old)
    more = [f",{cell.digest[:6]},2,2,you,"]
    csv = label(tmp_path / "l.csv", old, rows=more)
    text = csv.read_text()
    first = next(line for line in text.splitlines() if f"{cell.digest},2," in line)
    csv.write_text(text + first.replace(",0,me,", ",1,you,") + "\n")
    found = rejudged(old, str(csv), tmp_path / "new")
    assert any(
        "raters disagree on 1 image, 1 of these without a majority" in n for n in found.notes
    )


def test_a_sweep_records_the_breaking_eps(tmp_path):
    old = run(tmp_path / "old", "l2=1.0,2.5:oracle=three")
    found = rejudged(old, str(label(tmp_path / "l.csv", old)), tmp_path / "new")
    assert {r.broken_at for r in found.run.cells()[0].records() if r.goal_reached} == {2.5}
    (first,) = cells(old)
    assert [r.broken_at for r in first.records()] == [
        r.broken_at for r in found.run.cells()[0].records()
    ]


def test_misclassified_and_forbidden_samples_are_unchanged(tmp_path):
    data = column_images()
    data.labels[3] = 1
    old = run(tmp_path / "old", "l2=0.5:oracle=three", dataset=data)  # every proposal is too far
    found = rejudged(old, str(label(tmp_path / "l.csv", old)), tmp_path / "new")
    records = {r.sample: r for r in found.run.cells()[0].records()}
    assert (records[3].status, records[3].broken_at) == ("already_wrong", 0.0)
    assert {r.within_budget for r in records.values() if r.sample > 3} == {False}
    assert not any(r.goal_reached for r in records.values() if r.sample != 3)


def test_a_goal_without_oracle_keeps_its_successes(tmp_path):
    old = run(tmp_path / "old", "none", model=AllRowsClassifier(), attack=Moved(2))
    found = rejudged(old, str(label(tmp_path / "l.csv", old)), tmp_path / "new")
    pairs = zip(cells(old)[0].records(), found.run.cells()[0].records(), strict=True)
    assert all(replace(b, oracle_label=None, oracle_source=None) == a for a, b in pairs)
    assert found.run.cells()[0].records()[4].oracle_label == 2


def test_a_perturbation_that_changed_the_class_is_no_success(tmp_path):
    wanted = load_threat("none:oracle=three").with_goal(Misclassify(same_class=True))
    old = run(tmp_path / "old", wanted, model=AllRowsClassifier(), attack=Moved(2))
    assert not any(r.goal_reached for r in cells(old)[0].records())
    blind = label(tmp_path / "l.csv", old, lambda t: t.sample % 3)  # sees the old class everywhere
    found = rejudged(old, str(blind), tmp_path / "new")
    assert sum(r.goal_reached for r in found.run.cells()[0].records()) == 10


def test_logits_are_not_in_the_records(tmp_path):
    old = run(tmp_path / "old", load_threat("none:oracle=three").with_goal(KeepLogits(0.1)))
    with pytest.raises(BadResults, match="records hold no logits"):
        rejudged(old, "three", tmp_path / "new")


def test_re_scoring_needs_images(tmp_path):
    old = run(tmp_path / "old", keep_images=False)
    with pytest.raises(BadResults, match="no images; evaluate with --keep-images") as error:
        rejudged(old, "three", tmp_path / "new")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_bad_rows_leave_nothing_behind(tmp_path):
    old = run(tmp_path / "old")
    (cell,) = cells(old)
    csv = label(tmp_path / "l.csv", old, rows=[f",{cell.digest},99,1,me,"])
    with pytest.raises(BadData, match=r"unknown sample .* got 99"):
        rejudged(old, str(csv), tmp_path / "new")
    csv = label(tmp_path / "l.csv", old, lambda _: 7)
    with pytest.raises(BadData, match="label out of range, got 7, expected 0 to 2"):
        rejudged(old, str(csv), tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["catalogue", "l.csv", "old"]


def test_rows_of_other_runs_are_counted(tmp_path):
    old = run(tmp_path / "old")
    csv = label(tmp_path / "l.csv", old, rows=["ab12,,,1,me,"])
    found = rejudged(old, str(csv), tmp_path / "new")
    assert found.notes == ("l.csv: 1 of 11 rows belong to other runs",)


def test_an_existing_folder_is_not_changed(tmp_path):
    old = run(tmp_path / "old")
    csv = label(tmp_path / "l.csv", old)
    before = content(old)
    with pytest.raises(BadResults, match="exists already"):
        rejudged(old, str(csv), old)
    assert content(old) == before


def test_an_interrupted_writing_leaves_no_folder(tmp_path, monkeypatch):
    old = run(tmp_path / "old")
    csv = label(tmp_path / "l.csv", old)
    monkeypatch.setattr(rewriting, "write_checks", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rejudged(old, str(csv), tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["catalogue", "l.csv", "old"]


def test_the_attacked_model_is_excluded_from_re_scoring(tmp_path, monkeypatch):
    old = run(tmp_path / "old", model=AllRowsClassifier(), attack=ShiftBodyAttack(12))
    opened_as(column_images(), monkeypatch)
    found = rejudged(old, "three", tmp_path / "new")
    assert found.notes == (
        f"{HERE}:AllRowsClassifier is excluded from three: it is the attacked model",
    )
    folder = tmp_path / "catalogue" / "attacks" / "oracles"
    (folder / "two.toml").write_text(
        f'summary = "two"\nmembers = ["{HERE}:AllRowsClassifier", "{HERE}:BodyMeanClassifier"]\n'
    )
    with pytest.raises(CapabilityMismatch, match="too few eligible members"):
        rejudged(old, "two", tmp_path / "other")
    other = column_images()
    other.labels[0] = 2
    opened_as(other, monkeypatch)
    with pytest.raises(BadResults, match="column_images is not the data set of the run"):
        rejudged(old, "three", tmp_path / "third")
