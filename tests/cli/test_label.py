"""``invbench label``: the page, what it counts, and the names of classes."""

import json

from robustbench_inv.results.files import write_json
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.analytic_problems import column_images


def test_several_patterns_of_cells(invbench, labelled_run, tmp_path):
    done = invbench(
        "label", labelled_run, "--out", tmp_path / "p.html", "--cells", "no", "shift*", "--json"
    )
    page = str(tmp_path / "p.html")
    assert json.loads(done.out) == {"page": page, "images": 10, "catch_trials": 12}


def test_the_classes_of_your_own_data_have_names(invbench, labelled, tmp_path):
    data = column_images()
    data.classes = tuple(f"animal <{k}>" for k in range(data.num_classes))
    invbench("label", labelled(data).path, "--out", tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "animal" in page
    assert "animal <1>" not in page


def test_the_classes_of_clothes_have_names(invbench, labelled_run, tmp_path):
    plan = json.loads((labelled_run / "plan.json").read_text())
    plan["cells"][0]["dataset"] = "fashion-mnist:split=test"
    write_json(labelled_run / "plan.json", plan)
    (cell,) = RunFolder(labelled_run).cells()
    info = json.loads((cell.path / "cell.json").read_text())
    info["dataset"]["num_classes"] = 10
    write_json(cell.path / "cell.json", info)
    invbench("label", labelled_run, "--out", tmp_path / "p.html")
    assert "Ankle boot" in (tmp_path / "p.html").read_text()
