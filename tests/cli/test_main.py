"""The command line: what it prints where, its exit codes, and that every error is one line."""

import errno
import json
import os
import signal
from types import SimpleNamespace

import pytest

from robustbench_inv import __version__
from robustbench_inv.catalogue import listing
from robustbench_inv.cli import output
from robustbench_inv.cli.main import MALLOC_SETTINGS, configure_process, repeat_options


@pytest.mark.parametrize("kind", ["models", "attacks", "suites", "threats", "datasets"])
def test_list_prints_an_array_of_named_objects(invbench, kind):
    done = invbench("list", kind, "--json")
    entries = json.loads(done.out)
    assert done.code == 0
    assert entries
    assert all(entry["name"] and entry["summary"] for entry in entries)
    plain = invbench("list", kind)
    assert [line.split()[0] for line in plain.out.splitlines()] == [e["name"] for e in entries]


def test_list_reports_a_broken_card_on_standard_error(invbench, tmp_path):
    (tmp_path / "attacks" / "presets").mkdir(parents=True)
    (tmp_path / "attacks" / "presets" / "broken.toml").write_text("summary = 3")
    done = invbench("--catalogue", tmp_path, "list", "attacks", "--json")
    assert done.code == 0
    assert json.loads(done.out)
    assert "broken.toml" in done.err


@pytest.fixture(autouse=True)
def _keep_environment(monkeypatch):
    monkeypatch.setenv("INVBENCH_CATALOGUE", "")  # undone after the test


def test_list_all_includes_the_attacks_of_both_libraries(invbench):
    names = {
        entry["name"] for entry in json.loads(invbench("list", "attacks", "--all", "--json").out)
    }
    assert {"foolbox:LinfPGD", "torchattacks:PGD", "pgd"} <= names


def test_show_prints_the_card(invbench):
    card = json.loads(invbench("show", "pgd:steps=3", "--json").out)
    assert (card["name"], card["parameters"]["steps"]) == ("pgd:steps=3", 3)
    assert "summary: " in invbench("show", "mnist-cnn").out
    assert "spheres-invariance" in invbench("show", "spheres", "--kind", "suites").out
    assert "Madry" in (cited := invbench("show", "pgd", "--cite").out)
    assert "\n@inproceedings{madry2018towards,\n  title = {Towards" in cited


def test_show_prints_algorithm_and_deviations_of_a_preset(invbench):
    card = invbench("show", "cw").out
    assert "algorithm: sections V and VI.A" in card
    assert "deviations from the algorithm: \n  - The early abort" in card
    assert "deviations from the algorithm: none" in invbench("show", "random-perturbation").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "mnist-cn"), "did you mean mnist-cnn"),
        (("show", "none-at-all", "--cite"), "nothing is called"),
        (("--catalogue", "nowhere", "list", "models"), "no such catalogue folder"),
        (("evaluate", "--model", "mnist-cn", "--attack", "pgd"), "did you mean mnist-cnn"),
        (("evaluate", "--model", "mnist-cnn", "--attack", "pgd:stps=3"), "did you mean steps"),
        (("evaluate", "--model", "m.py:f", "--attack", "pgd"), "no such file"),
        (("report",), "add --from RUNS"),
        (("report", "--from", "nowhere"), "nowhere"),
        (("data", "fetch", "mnits"), "did you mean mnist"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(invbench, arguments, message):
    done = invbench(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lst",), "no such command 'lst'"),
        (("list",), "missing argument"),
        (("list", "modls"), "'KIND': 'modls' is not one of 'models'"),
        (("evaluate",), "missing option '--model'"),
        (("evaluate", "--modl", "x"), "no such option: --modl"),
        (("evaluate", "--model", "mnist-cnn", "--seed", "x"), "'--seed'"),
        (("evaluate", "--model", "mnist-cnn", "--attack", "pgd", "--samples", "²"), "first:N"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(invbench, arguments, message):
    done = invbench(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


@pytest.mark.parametrize("arguments", [(), ("data",)])
def test_without_arguments_the_help_is_printed(invbench, arguments):
    done = invbench(*arguments)
    assert done.code == 2
    assert done.err.startswith("Usage: invbench")
    assert "Commands:" in done.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            RuntimeError("boom\nbang"),
            1,
            "unexpected RuntimeError: boom bang; set INVBENCH_TRACEBACK=1",
        ),
        (OSError(errno.ENOSPC, "No space left", "runs/x"), 1, "the disk is full at runs/x"),
        (KeyboardInterrupt(), 130, "run the same command again to resume"),
        (SystemExit(0), 1, "error: the command tried to end the program, got 'SystemExit: 0'"),
    ],
)
def test_any_error_is_one_line(invbench, monkeypatch, error, code, message):
    def fail(*_):
        if isinstance(error, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise error

    monkeypatch.setattr(listing, "list_entries", fail)
    done = invbench("list", "models")
    assert done.code == code
    assert message in done.err
    assert done.err.count("\n") == 1


def test_an_environment_variable_shows_the_traceback(monkeypatch, invbench):
    def fail(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr(listing, "list_entries", fail)
    monkeypatch.setenv("INVBENCH_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="boom"):
        invbench("list", "models")


def test_version_and_help(invbench):
    assert invbench("--version").out == f"invbench {__version__}\n"
    assert "evaluate" in invbench("--help").out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["evaluate", "--model", "a", "b"], ["evaluate", "--model", "a", "--model", "b"]),
        (["--model", "a", "--attack", "b", "c", "--json"], None),
        (["report", "paper", "--from", "x", "y", "--out", "z"], None),
        (["--seed", "1", "2"], ["--seed", "1", "2"]),
        (["--model=a", "b"], ["--model=a", "b"]),
    ],
)
def test_options_with_several_values(given, expected):
    assert repeat_options(given) == (expected or repeat_options(repeat_options(given)))
    assert [a for a in repeat_options(given) if not a.startswith("--")] == [
        a for a in given if not a.startswith("--")
    ]


def test_cards_are_printed_without_empty_values(capsys):
    output.print_card(
        "suites", {"name": "q", "paper": "", "runs": [{"attack": "a", "ok": True, "n": None}]}
    )
    assert capsys.readouterr().out == "kind of entry: suite\nname: q\nruns: \n  attack=a, ok=true\n"


def test_data_verify_reports_damaged_files(invbench, tmp_path):
    assert invbench("data", "verify", "mnist5k").code == 0
    folder = tmp_path / "root"
    (folder / "mnist").mkdir(parents=True)
    (folder / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(b"not labels")
    done = invbench("data", "verify", "mnist", "--data-root", folder, "--json")
    assert done.code == 1
    assert not all(file["ok"] for file in json.loads(done.out))


def test_process_settings_keep_the_variables_of_the_user(monkeypatch):
    for name in ("OMP_WAIT_POLICY", *MALLOC_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    configure_process()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "4096"
    assert os.environ["MALLOC_MMAP_THRESHOLD_"] == str(32 << 20)


def test_freed_buffers_are_kept_by_the_allocator(monkeypatch):
    """``mallopt`` gets both parameters; ``make bench`` measures the effect."""
    calls = []
    library = SimpleNamespace(mallopt=lambda number, size: calls.append((number, size)))
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    for name in MALLOC_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    configure_process()
    assert calls == list(MALLOC_SETTINGS.values())
    configure_process()
    assert len(calls) == 2  # the environment is set already


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace())
    for name in MALLOC_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    configure_process()


PRESET = """
summary = "mine \\u001b[31mred\\u009b1m"
implementation = "robustbench_inv.attacks.pgd:PGD"
kind = "fixed-budget"
norms = ["linf"]
"""


@pytest.fixture
def own_catalogue(tmp_path):
    """A catalogue whose preset has the name of a shipped one, and another whose summary has escape sequences."""
    for name in ("pgd", "mine"):
        path = tmp_path / "own" / "attacks" / "presets" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PRESET)
    return tmp_path / "own"


@pytest.mark.parametrize(
    "command",
    [
        ("list", "attacks"),
        ("show", "pgd"),
        (
            *("evaluate", "--model", "mnist-mlp", "--attack", "pgd:steps=2", "--dry-run"),
            *("--dataset", "mnist5k", "--samples", "5"),
        ),
    ],
)
def test_a_catalogue_is_told_that_a_shipped_entry_has_its_name(invbench, own_catalogue, command):
    done = invbench("--catalogue", own_catalogue, *command)
    assert done.code == 0, done.err
    assert done.err.count("pgd.toml is not used: the shipped attack pgd") == 1


@pytest.mark.parametrize("command", [("list", "attacks"), ("show", "mine")])
def test_a_card_cannot_control_the_terminal(invbench, own_catalogue, command):
    done = invbench("--catalogue", own_catalogue, *command)
    assert "mine red" in done.out
    assert not {"\x1b", "\x9b"} & set(done.out)
    shown = json.loads(invbench("--catalogue", own_catalogue, *command, "--json").out)
    cards = shown if isinstance(shown, list) else [shown]
    assert "mine \x1b[31mred\x9b1m" in [card["summary"] for card in cards]


@pytest.mark.parametrize("name", ["x\x1b[31m", "x\x1b]0;title\x07", "x\u202e", "x\x9b2J"])
def test_a_message_cannot_control_the_terminal(invbench, name):
    done = invbench("evaluate", "--model", name, "--attack", "pgd")
    assert done.code == 2
    assert "no model is called x;" in done.err
