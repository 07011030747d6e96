"""``Run``: verdict, checks, tables, adversarial examples, display; and what ``evaluate`` accepts and warns of."""

import math
import subprocess
import sys
import types
import typing
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import robustbench_inv as rbi
from robustbench_inv import progress as progress_module
from robustbench_inv.api import evaluate
from robustbench_inv.auditing import AuditOptions, audit
from robustbench_inv.errors import BadParameter, BadResults
from robustbench_inv.reporting.run_plot import plot_cells
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.toy_cells import toy_cell

EPS = 8 / 255


def network(weight=4.0):
    """A linear classifier of the mean of 16 pixels: 0 below one half, 1 above."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight[:] = torch.tensor([[-weight], [weight]]).expand(2, 16)
        net[1].bias[:] = torch.tensor([8 * weight, -8 * weight])
    net.bounds = (0.0, 1.0)
    return net


def data():
    """Twenty images, half of them dark; their means differ from one half by 0.01 to 0.2."""
    distance = torch.linspace(0.01, 0.2, 10)
    means = torch.stack([0.5 - distance, 0.5 + distance], 1).flatten()
    return means[:, None, None, None].expand(20, 1, 4, 4).clone(), torch.arange(20) % 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    x, y = data()
    return rbi.evaluate(
        {"<b>net</b>": network()},
        attack=["pgd:steps=5", "fgsm"],
        x=x,
        y=y,
        threat=f"linf={EPS},0.1",
        keep_images=True,
        out=tmp_path_factory.mktemp("run") / "r",
    )


def test_the_table_has_one_row_for_each_attack_and_eps(run):
    table = run.table()
    assert list(table) == [
        "model",
        "attack",
        "norm",
        "eps",
        "clean",
        "robust",
        "low",
        "high",
        "n",
        "checks",
    ]
    assert list(table.attack) == ["pgd:steps=5"] * 2 + ["fgsm"] * 2
    assert list(table.eps) == [EPS, 0.1] * 2
    # of the ten distances 0.01 + i * 0.19 / 9, two are at most 8/255 and five at most 0.1
    assert list(table.robust) == [0.8, 0.5] * 2
    (rate, _) = run.summary()[0].robust_accuracy
    assert (table.low[0], table.high[0], table.n[0]) == (rate.low, rate.high, 20)
    assert list(table.clean) == [1.0] * 4
    assert set(table.checks) <= {"PASS", "WARN", "FAIL"}
    details = run.table(details=True)
    assert list(details.robust_accuracy) == list(table.robust)
    assert {"goal", "seed", "median_distance", "dataset", "checks"} <= set(details)


def test_checks_are_those_of_the_run_the_worst_first(run):
    stored = RunFolder(run.path).checks()
    assert len(run.checks) == len(stored) > 10
    grades = [check.verdict for check in run.checks]
    order = ["FAIL", "WARN", "NOTE", "NA", "PASS"]
    assert grades == sorted(grades, key=order.index)
    assert run.verdict == run.conclusions[0].verdict


def test_without_checks_no_number_is_publishable(tmp_path):
    x, y = data()
    run = rbi.evaluate(
        network(), x=x, y=y, threat="linf=0.1", out=tmp_path, checks=False, samples=2
    )
    assert run.checks == []
    assert list(run.table().checks) == [""]
    assert run.verdict == "publishable with reservations"
    assert run.cells[0].attack.name == "standard"


def test_checks_of_fewer_samples_do_not_certify_those_that_are_added(tmp_path):
    x, y = data()
    about = {"x": x, "y": y, "attack": "pgd:steps=5", "threat": f"linf={EPS}", "out": tmp_path}
    rbi.evaluate(network(), samples="first:1", **about)
    run = rbi.evaluate(network(), checks=False, **about)
    assert "made on 1 of 20 samples" in run.conclusions[0].reasons[0].text
    assert not {"C11", "C14", "C22"} & {check.id for check in run.checks if check.verdict == "PASS"}
    assert set(run.table().checks) <= {"", "WARN", "FAIL"}
    checked = rbi.evaluate(network(), **about)
    assert "checks" not in checked.conclusions[0].reasons[0].text


def test_a_subset_of_a_checked_cell_is_complete_and_the_model_is_probed_on_all_samples(tmp_path):
    x, y = data()
    about = {"x": x, "y": y, "attack": "standard", "threat": f"linf={EPS}", "out": tmp_path}
    whole = rbi.evaluate(network(), **about)
    part = rbi.evaluate(network(), samples="first:5", **about)
    assert [len(each.cells[0].records) for each in (whole, part)] == [20, 5]
    assert part.cells[0].finished
    texts = [[each.text for each in run.conclusions[0].reasons] for run in (whole, part)]
    assert not any("missing" in text or "checks" in text for text in (*texts[0], *texts[1]))
    assert {v["samples"] for v in RunFolder(tmp_path).checks() if v["id"] in ("C11", "C22")} == {20}


def test_a_failed_check_warns_once_where_the_evaluation_was_asked_for(tmp_path):
    x, y = data()
    saturated = {"a": network(1e6), "b": network(2e6)}
    with pytest.warns(rbi.EvaluationWarning) as seen:
        run = rbi.evaluate(saturated, x=x, y=1 - y, threat="linf=0.1", out=tmp_path / "r")
    (warning,) = seen
    assert warning.filename == __file__
    assert "a (and 1 more models): do not publish. The model classifies 0%" in str(warning.message)
    assert run.verdict == "do not publish"
    assert run.checks[0].verdict == "FAIL"
    assert set(run.table().checks) == {"FAIL"}
    with pytest.warns(rbi.EvaluationWarning) as seen:
        audit(network(1e6), x=x, y=1 - y, threat="linf=0.1", out=tmp_path / "s", samples=4)
    assert [each.filename for each in seen] == [__file__]


def test_an_honest_model_gives_no_warning(tmp_path):
    x, y = data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = rbi.evaluate(network(), attack="fgsm", x=x, y=y, threat="linf=0.1", out=tmp_path)
    assert run.verdict != "do not publish"


def test_a_cell_that_fails_warns(tmp_path):
    class Fails(nn.Module):
        bounds, num_classes = (0.0, 1.0), 2

        def forward(self, x):
            means = x.flatten(1).mean(1)
            if (means > 0.65).any():
                raise RuntimeError("no luck")
            return torch.stack([1 - means, means], 1)

    x, y = data()
    with pytest.warns(rbi.EvaluationWarning, match="no luck"):
        run = rbi.evaluate(
            Fails(), attack="fgsm", x=x, y=y, threat="linf=0.1", out=tmp_path, checks=False
        )
    assert run.failures


def test_adversarial_examples_are_tensors(run):
    x, y = data()
    found = run.adversarial(attack="fgsm")
    assert torch.equal(found.clean, x)
    assert torch.equal(found.y, y)
    assert found.samples.tolist() == list(range(20))
    assert torch.equal(network()(found.x).argmax(1), found.predictions)
    assert torch.equal(found.predictions != y, found.broken)
    assert int(found.broken.sum()) == 10
    assert (found.x - x).abs().max() <= 0.1 + 1e-6
    assert "broken: 10 of 20" in repr(found)
    assert torch.equal(run.adversarial("<b>net</b>", "fgsm", "linf=8/255,0.1").x, found.x)


def test_images_are_those_of_the_requested_samples(run):
    x, y = data()
    few = rbi.evaluate(
        {"<b>net</b>": network()},
        attack="fgsm",
        x=x,
        y=y,
        threat=f"linf={EPS},0.1",
        samples="first:6",
        out=run.path,
        checks=False,
    )
    assert few.adversarial().samples.tolist() == list(range(6))


def test_images_need_a_name_that_one_cell_has(run, tmp_path):
    with pytest.raises(BadParameter, match="several cells have these names"):
        run.adversarial()
    with pytest.raises(BadParameter, match=r"no cell has these names.*'attack': 'pdg'"):
        run.adversarial(attack="pdg")
    x, y = data()
    plain = rbi.evaluate(network(), attack="fgsm", x=x, y=y, threat="linf=0.1", out=tmp_path)
    with pytest.raises(BadResults, match=r"images of 0 of 20 samples.*keep_images=True"):
        plain.adversarial()


def test_a_run_is_shown_briefly_and_printed_as_a_table(run):
    assert repr(run) == f"Run({str(run.path)!r}, cells=2, verdict={run.verdict!r})"
    lines = str(run).splitlines()
    assert lines[0].split() == ["model", "attack", "threat", "samples", "clean", "robust"]
    assert "linf 8/255" in lines[1]
    assert "80.0 % [58.4, 91.9]" in lines[1]
    assert f"verdict on <b>net</b>, arrays: {run.verdict}" in str(run)
    assert 'next: rbi.audit(net, x=x, y=y, threat="linf=8/255,0.1")' in lines
    html = run._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;net&lt;/b&gt;" in html
    assert "80.0 % [58.4, 91.9]" in html


def test_a_run_is_plotted(run, tmp_path):
    figure = run.plot()
    (axes,) = figure.axes
    assert axes.get_xlabel() == "ε in ℓ∞"
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(names) == ["<b>net</b>, fgsm", "<b>net</b>, pgd:steps=5"]
    (first, _) = axes.lines
    assert list(first.get_xdata()) == [0.0, EPS, 0.1]
    assert list(first.get_ydata()) == [100.0, 80.0, 50.0]
    assert figure._repr_svg_().startswith("<?xml")
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_goals_are_told_apart_and_fixed_inputs_have_neither_eps_nor_curve(tmp_path):
    x, y = data()
    attack = ["deepfool-linf", "noise-image"]
    run = rbi.evaluate(network(), attack=attack, x=x, y=y, threat="none:norm=linf", out=tmp_path)
    (axes,) = run.plot().axes
    (line,) = axes.lines
    assert line.get_ydata()[0] == 100.0
    table = run.table()
    assert list(table.goal) == ["misclassify", "accept"]
    assert all(map(math.isnan, table.eps))
    assert list(table.checks) != ["", ""]
    distances, noise = str(run).splitlines()[1:3]
    assert "linf 0.1" in distances  # the median of distances from 0.01 to 0.2
    assert "%" in noise
    with pytest.raises(BadResults, match="nothing to plot"):
        replace(run, plan=replace(run.plan, jobs=run.plan.jobs[1:])).plot()


def test_invariance_is_plotted_as_failures():
    threat = {"norm": "l2", "epsilons": [], "goal": "keep-decision"}
    cell = toy_cell(
        "x", [1.0, 2.0, None, 4.0], epsilons=(), threat=threat, attack={"kind": "invariance"}
    )
    (axes,) = plot_cells([cell]).axes
    assert axes.get_ylabel() == "failures, % of attacked"
    (line,) = axes.lines
    assert max(line.get_ydata()) == 75.0


def test_a_run_whose_folder_is_gone_has_a_repr(run):
    lost = rbi.Run(Path("gone"), run.plan)
    assert repr(lost).startswith("Run('gone', ")


@pytest.mark.parametrize("function", [evaluate, audit])
def test_parameters_have_types(function):
    """Every parameter names the types that it accepts, so that a checker of types finds mistakes."""
    hints = typing.get_type_hints(function)
    if "options" in hints:
        hints |= typing.get_type_hints(AuditOptions)
    assert {"model", "threat", "dataset", "x", "y", "progress"} <= hints.keys()
    vague = [name for name, hint in hints.items() if hint in (object, typing.Any)]
    assert vague == []


@pytest.mark.slow
def test_mypy_finds_mistakes(tmp_path):
    code = """import torch
import robustbench_inv as rbi
net = torch.nn.Linear(2, 2)
rbi.evaluate(net, x=torch.rand(2, 2), y=[0, 1], threat="linf=0.1")
rbi.evaluate({"a": net}, attack=["pgd", rbi.load_attack("fgsm")], dataset="mnist5k")
rbi.audit(net, threat="linf=0.1", minutes=1)
rbi.evaluate(model=3)
rbi.evaluate(net, attack=1.0)
rbi.audit([1], dataset=4)
"""
    (tmp_path / "code.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "code.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert lines == {7, 8, 9}, done.stdout


@pytest.fixture
def quick():
    x, y = data()
    return {"attack": "fgsm", "x": x, "y": y, "threat": "linf=0.1", "checks": False}


def test_a_terminal_gets_a_bar_and_a_script_nothing(quick, tmp_path, monkeypatch, capsys):
    rbi.evaluate(network(), **quick, out=tmp_path / "a")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    rbi.evaluate(network(), **quick, out=tmp_path / "b", progress=False)
    assert capsys.readouterr().err == ""
    rbi.evaluate(network(), **quick, out=tmp_path / "c")
    assert "fgsm on sequential" in capsys.readouterr().err


def test_progress_calls_a_function_or_is_refused(quick, tmp_path):
    seen = []
    rbi.evaluate(network(), **quick, out=tmp_path / "a", progress=seen.append)
    assert seen[-1].state == "completed"
    with pytest.raises(BadParameter, match="unusable progress"):
        rbi.evaluate(network(), **quick, out=tmp_path / "b", progress="bar")


class Handle:
    """Stands for the handle of a display in a notebook."""

    shown: typing.ClassVar = []

    def display(self, line):
        Handle.shown = []

    def update(self, line):
        Handle.shown.append((repr(line), line._repr_html_()))


def test_a_notebook_gets_one_line(quick, tmp_path, monkeypatch, capsys):
    shell = types.SimpleNamespace(kernel=object())
    display = types.SimpleNamespace(DisplayHandle=Handle)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert progress_module.is_interactive()
    rbi.evaluate({"<i>": network()}, **quick, out=tmp_path)
    text, html = Handle.shown[-1]
    assert text.startswith("[1/1] fgsm on <i>, linf=0.1, arrays, seed 0: 20 of 20 samples")
    assert '<progress value="20" max="20"></progress> [1/1] fgsm on &lt;i&gt;' in html
    assert capsys.readouterr().err == ""


def test_a_run_stands_for_its_folder(tmp_path):
    x, y = data()
    run = rbi.evaluate(network(), attack="fgsm", x=x, y=y, threat=f"linf={EPS}", out=tmp_path / "a")
    for given in (run, [run], str(run.path)):
        assert rbi.write_report(given, tmp_path / "report.html").exists()
    assert rbi.compare(run, run)


def test_seeds_are_told_apart(tmp_path):
    x, y = data()
    asked = {"attack": "random-perturbation", "x": x, "y": y, "threat": f"linf={EPS}"}
    runs = [rbi.evaluate(network(), **asked, seed=seed, out=tmp_path) for seed in (0, 1)]
    together = replace(
        runs[0], plan=replace(runs[0].plan, jobs=runs[0].plan.jobs + runs[1].plan.jobs)
    )
    assert list(together.table().seed) == [0, 1]
    assert "seed" not in runs[0].table()
