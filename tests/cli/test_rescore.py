"""``invbench rescore``: from a run to the label page, and from its CSV file back into records."""

import json

import pytest

from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.analytic_problems import column_images


def write_labels(page, path):
    """Write the CSV file that the page would export: adversarial images one class further, catch trials correct."""
    data = json.loads(page.read_text().partition('id="page">')[2].partition("</script>")[0])
    lines = [",".join(data["columns"])]
    for task in data["trials"]:
        known = "" if task["known"] is None else task["known"]
        label = (task["sample"] + 1) % 3 if task["known"] is None else task["known"]
        lines.append(f"{task['image']},{task['cell']},{task['sample']},{label},me,{known}")
    path.write_text("\n".join(lines) + "\n")


def test_label_then_rescore(invbench, labelled_run, tmp_path):
    page = tmp_path / "new" / "page.html"
    done = invbench("label", labelled_run, "--out", page, "--catch-trials", "3")
    assert (done.code, done.out) == (0, f"{page}\n")
    assert "10 adversarial images, 3 catch trials" in done.err
    write_labels(page, tmp_path / "l.csv")
    arguments = ("rescore", labelled_run, "--oracle", tmp_path / "l.csv")
    (cell,) = json.loads(invbench(*arguments, "--json").out)
    found = cell["invariance"]
    assert (found["success"]["successes"], found["oracle"]) == (10, "human")
    assert (found["oracle_error_rate"]["successes"], found["oracle_error_rate"]["trials"]) == (0, 3)
    (stored,) = RunFolder(tmp_path / "run-l").cells()
    assert stored.digest == cell["path"].rpartition("/")[2]
    other = invbench(*arguments, "--out", tmp_path / "other")
    assert "invariance failure" in other.out
    assert f"records: {tmp_path / 'other'}" in other.out
    assert cell["model"] == RunFolder(labelled_run).cells()[0].read().model_label
    again = invbench(*arguments)
    assert (again.code, again.err.count("\n"), again.out) == (2, 1, "")
    assert "exists already" in again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("label", "nowhere", "--out", "p.html"), "not a results folder"),
        (("rescore", "run", "--oracle", "no.csv"), "no.csv"),
        (("rescore", "run", "--oracle", "mnist-pane"), "did you mean mnist-panel"),
        (("rescore", "run", "--oracle", "first.csv"), "no row of first.csv"),
        (("show", "mnist-pannel"), "did you mean mnist-panel"),
    ],
)
@pytest.mark.usefixtures("labelled_run")
def test_a_mistake_is_one_line(invbench, monkeypatch, arguments, message):
    monkeypatch.setattr(
        "robustbench_inv.evaluation.rejudge.load_dataset", lambda *_, **__: column_images()
    )
    done = invbench(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err


DATA = """
from robustbench_inv.testing.analytic_problems import column_images

def data():
    images, labels = column_images().batch(range(12))
    return images, labels
"""

HERE = "robustbench_inv.testing.analytic_problems"


def test_a_panel_rescores_data_that_a_function_makes(invbench, tmp_path, monkeypatch):
    from robustbench_inv.api import evaluate

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(DATA)
    panel = f"panel:{HERE}:BodyMaxClassifier,{HERE}:AllRowsClassifier"
    made = evaluate(
        model=f"{HERE}:FirstRowClassifier",
        attack=f"{HERE}:ShiftBodyAttack",
        dataset="mine.py:data",
        threat=f"none:oracle={panel}",
        out="run",
        keep_images=True,
        checks=False,
    )
    refused = invbench("rescore", "run", "--oracle", panel)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--dataset" in refused.err
    done = invbench("rescore", "run", "--oracle", panel, "--dataset", "mine.py:data", "--json")
    assert done.code == 0, done.err
    (cell,) = json.loads(done.out)
    assert cell["invariance"]["success"] == made.to_json()[0]["invariance"]["success"]
