"""From a run to the labelling page and back into records, on the command line."""

import json

import pytest

from robustbench_inv.api import evaluate
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.analytic_problems import (
    FirstRowClassifier,
    ShiftBodyAttack,
    column_images,
)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "first.csv").write_text("image,human_label\nff,1\n")
    found = evaluate(
        model=FirstRowClassifier(), attack=ShiftBodyAttack(2), threat=f"none:oracle={tmp_path / 'first.csv'}",
        dataset=column_images(), keep_images=True, checks=False, out=tmp_path / "run",
    )  # fmt: skip
    return found.path


def test_label_then_judge(invbench, run, tmp_path):
    done = invbench("label", run, "--out", tmp_path / "new" / "page.html", "--catch", "3")
    assert (done.code, done.out) == (0, f"{tmp_path / 'new' / 'page.html'}\n")
    assert "10 changed images, 3 clean ones mixed in" in done.err
    html = (tmp_path / "new" / "page.html").read_text()
    page = json.loads(html.partition('id="page">')[2].partition("</script>")[0])
    rows = [
        f"{t['image']},{t['cell']},{t['sample']},{(t['sample'] + 1) % 3 if t['known'] is None else t['known']},me,"
        f"{'' if t['known'] is None else t['known']}"
        for t in page["trials"]
    ]
    (tmp_path / "l.csv").write_text("\n".join([",".join(page["columns"]), *rows]) + "\n")
    done = invbench("rescore", run, "--oracle", tmp_path / "l.csv", "--json")
    (cell,) = json.loads(done.out)
    assert (cell["invariance"]["success"]["successes"], cell["invariance"]["oracle"]) == (
        10,
        "human",
    )
    assert cell["invariance"]["oracle_error_rate"] == pytest.approx({**cell["invariance"]["oracle_error_rate"], "successes": 0, "trials": 3})  # fmt: skip
    assert RunFolder(tmp_path / "run-l").cells()[0].digest == cell["path"].rpartition("/")[2]
    told = invbench("rescore", run, "--oracle", tmp_path / "l.csv", "--out", tmp_path / "other")
    assert "decision kept, class changed" in told.out
    assert f"records: {tmp_path / 'other'}" in told.out
    again = invbench("rescore", run, "--oracle", tmp_path / "l.csv")
    assert (again.code, again.err.count("\n"), again.out) == (2, 1, "")
    assert "exists already" in again.err


def test_several_patterns_of_cells(invbench, run, tmp_path):
    done = invbench("label", run, "--out", tmp_path / "p.html", "--cells", "no", "shift*", "--json")
    assert json.loads(done.out) == {"page": str(tmp_path / "p.html"), "images": 10, "catch": 12}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("label", "nowhere", "--out", "p.html"), "not a results folder"),
        (("rescore", "run", "--oracle", "no.csv"), "no.csv"),
        (("rescore", "run", "--oracle", "mnist-pane"), "did you mean mnist-panel"),
        (("rescore", "run", "--oracle", "first.csv"), "no row of first.csv is about what this run shows"),
        (("show", "mnist-pannel"), "did you mean mnist-panel"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("run")
def test_a_mistake_is_one_line(invbench, monkeypatch, arguments, says):
    monkeypatch.setattr(
        "robustbench_inv.evaluation.rejudge.load_dataset", lambda *_, **__: column_images()
    )
    done = invbench(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert says in done.err


def test_the_classes_of_clothes_have_names(invbench, run, tmp_path):
    plan = json.loads((run / "plan.json").read_text())
    plan["cells"][0]["dataset"] = "fashion-mnist:split=test"
    (run / "plan.json").write_text(json.dumps(plan))
    (cell,) = RunFolder(run).cells()
    about = cell.info.to_json()
    about["dataset"]["num_classes"] = 10
    (cell.path / "cell.json").write_text(json.dumps(about))
    invbench("label", run, "--out", tmp_path / "p.html")
    assert "Ankle boot" in (tmp_path / "p.html").read_text()
