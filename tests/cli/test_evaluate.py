"""``invbench evaluate`` and ``report`` from end to end, on a small network of the user's own."""

import json

import pytest

NETWORK = """
import torch
from torch import nn

def build(width: int = 8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    model.bounds = (0.0, 1.0)
    return model

CALLS = []
class Raises(nn.Module):
    # works while it is inspected, on single images, and fails from its first batch on
    bounds, num_classes = (0.0, 1.0), 10
    def forward(self, images):
        if len(images) > 1 or CALLS:
            CALLS.append(1)
            raise RuntimeError("boom")
        return images.flatten(1)[:, :10]
"""


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    return (
        "evaluate",
        *("--model", "net.py:build:width=6", "--dataset", "mnist5k"),
        *("--attack", "pgd:steps=2", "fgsm", "--threat", "linf=0.1,0.2"),
        *("--samples", 20, "--out", "run"),
    )


def test_prints_an_object_for_each_cell(invbench, arguments):
    done = invbench(*arguments, "--json")
    cells = json.loads(done.out)
    assert done.code == 0, done.err
    assert [cell["attack"] for cell in cells] == ["pgd:steps=2", "fgsm"]
    for cell in cells:
        assert (cell["samples"], cell["dataset"], cell["rejection"]) == (
            20,
            "mnist5k",
            None,
        )
        assert len(cell["robust_accuracy"]) == 2
        assert set(cell["clean_accuracy"]) == {"successes", "trials", "low", "high"}
        assert cell["checks"]
    assert done.err.count("done after") == 2


def test_resumes_and_prints_a_table(invbench, arguments, tmp_path):
    first = json.loads(invbench(*arguments, "--no-checks", "--json").out)
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("records.jsonl")}
    again = invbench(*arguments, "--no-checks")
    assert {path: path.read_bytes() for path in files} == files
    assert len(files) == 2
    assert "net.py:build:width=6" in again.out
    robust = first[1]["robust_accuracy"][0]
    assert f"{100 * robust['successes'] / robust['trials']:.1f} [" in again.out
    command = json.loads((tmp_path / "run" / "plan.json").read_text())["commands"][0]
    assert command[:2] == ["invbench", "evaluate"]


def test_a_dry_run_writes_nothing(invbench, arguments, tmp_path):
    plain = invbench(*arguments, "--dry-run")
    cells = json.loads(invbench(*arguments, "--dry-run", "--json").out)
    assert "nothing was run" in plain.out
    assert [cell["samples"] for cell in cells] == [20, 20]
    assert all(cell["low"] <= cell["high"] for cell in cells)
    assert not (tmp_path / "run").exists()


def test_writes_a_report(invbench, arguments, tmp_path):
    invbench(*arguments, "--no-checks", "--keep-images")
    done = invbench("report", "--from", "run", "--out", "mine.html", "--json")
    assert json.loads(done.out) == {"report": "mine.html"}
    assert "fgsm" in (tmp_path / "mine.html").read_text()


def test_a_cell_that_fails_is_listed_and_the_exit_code_is_1(invbench, arguments):
    done = invbench("evaluate", "--model", "net.py:Raises", *arguments[3:], "--no-checks", "--json")
    assert done.code == 1
    assert "failed: " in done.err
    assert "boom" in done.err


def test_models_take_labels_of_the_user(invbench, arguments):
    given = [*arguments, "--no-checks"]
    given[1:3] = ["--model", "A=net.py:build:width=6", "net.py:build:width=5"]
    planned = invbench(*given, "--dry-run").out
    cells = json.loads(invbench(*given, "--json").out)
    names = ["A", "A", "net.py:build:width=5", "net.py:build:width=5"]
    assert [cell["model"] for cell in cells] == names
    assert len({cell["model_digest"] for cell in cells}) == 2
    assert all(line in planned for line in names)
    assert invbench("evaluate", "--model", "=net.py:build", *given[4:]).code == 2


def test_the_table_shows_fractions_and_the_next_command(invbench, arguments):
    words = [
        {"linf=0.1,0.2": "linf=8/255,0.1", "run": "a run"}.get(word, word) for word in arguments
    ]
    done = invbench(*words)
    assert done.code == 0, done.err
    assert " 8/255 " in done.out
    assert done.out.splitlines()[-1] == "next: invbench report --from 'a run'"
    assert invbench("report", "--from", "a run").code == 0
    cells = json.loads(invbench(*words, "--json").out)
    assert cells[0]["epsilons"] == [8 / 255, 0.1]
    assert cells[0]["threat"] == "linf=8/255,0.1"


def test_completion_is_installed_and_completes_names(invbench, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = invbench("--install-completion", "bash")
    assert done.code == 0, done.err
    assert (tmp_path / ".bash_completions" / "invbench.sh").exists()
    monkeypatch.setenv("_INVBENCH_COMPLETE", "complete_bash")
    for words, found in (("inf", []), ("eval", ["evaluate"])):
        monkeypatch.setenv("COMP_WORDS", f"invbench {words}")
        monkeypatch.setenv("COMP_CWORD", "1")
        assert invbench().out.split() == found
    monkeypatch.setenv("COMP_WORDS", "invbench evaluate --attack apgd")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert invbench().out.split() == ["apgd", "apgd-targeted"]


def test_the_verdict_is_printed_and_sets_the_exit_code_on_request(invbench, arguments):
    done = invbench(*arguments, "--fail-on", "reservations")
    assert done.code == 3
    assert (
        "verdict on net.py:build:width=6, mnist5k: do not publish. The model classifies" in done.out
    )
    assert "next: invbench audit net.py:build:width=6 --dataset mnist5k" in done.out
    assert " ✗" in done.out
    cells = json.loads(invbench(*arguments, "--json").out)
    assert {cell["verdict"]["verdict"] for cell in cells} == {"do not publish"}
    invbench("report", "--from", "run")
    assert invbench(*arguments, "--fail-on", "never").code == 2


LOGGER = """
import json
from pathlib import Path
class Log:
    def log(self, metrics):
        Path("metrics.json").write_text(json.dumps(metrics))
def make():
    return Log()
class Broken:
    def log(self, metrics):
        raise OSError("no network")
broken = Broken()
def failing():
    raise RuntimeError("not installed")
"""


def test_a_limit_on_robust_accuracy_sets_the_exit_code_and_a_logger_gets_the_numbers(
    invbench, arguments, tmp_path
):
    (tmp_path / "mylog.py").write_text(LOGGER)
    done = invbench(*arguments, "--fail-under", "0.9", "--logger", "mylog.py:make")
    assert done.code == 3
    assert "--fail-under: net.py:build:width=6, mnist5k, linf=0.2: robust accuracy" in done.err
    logged = json.loads((tmp_path / "metrics.json").read_text())
    assert logged["publishable/net.py:build:width=6/mnist5k"] == 0
    done = invbench(*arguments, "--fail-under", "0", "--logger", "mylog.py:broken")
    assert done.code == 0
    assert "warning: the logger failed: OSError: no network" in done.err
    assert invbench("report", "--from", "run", "--fail-under", "0.9").code == 3
    assert invbench("report", "--from", "run", "--fail-under", "0").code == 0
    assert invbench("report", "--from", "run", "--fail-on", "do-not-publish").code == 3
    for bad in (
        ("--fail-under", "nan"),
        ("--fail-under", "40"),
        ("--logger", "mylog.py:json"),
        ("--logger", "x"),
    ):
        assert invbench(*arguments, *bad).code == 2
    done = invbench(*arguments, "--logger", "mylog.py:failing")
    assert (done.code, done.err) == (
        2,
        "error: logger mylog.py:failing raised RuntimeError: not installed\n",
    )
    assert invbench("export", "run", "metrics").code == 0
    exported = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert exported.items() <= logged.items()


def test_a_benchmark_file_is_run_resumed_and_reported(invbench, tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "net.py").write_text(NETWORK)
    lines = ('models = ["net.py:build"]', 'datasets = ["mnist5k"]', "samples = 6", "[[runs]]")
    runs = ('attack = "fgsm"', 'threat = "linf=8/255"')
    (tmp_path / "bench" / "own.toml").write_text("\n".join([*lines, *runs]))
    words = ("run", "bench/own.toml", "--out", "run", "--no-checks")
    assert "nothing was run" in invbench(*words, "--dry-run").out
    first, again = json.loads(invbench(*words, "--json").out), invbench(*words)
    assert again.code == 0, again.err
    assert [cell["threat"] for cell in first] == ["linf=8/255"]
    assert "next: invbench report --from run" in again.out
    assert invbench("report", "--from", "run").code == 0
    assert invbench("run", "none.toml").code == 2
