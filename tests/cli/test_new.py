"""``invbench new`` and ``check``: each plugin works as it is written, and what breaks a rule is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_inv.cli.new import SCAFFOLD, PluginKind, plugin_files

KINDS = [kind.value for kind in PluginKind]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_files_and_no_placeholder_is_left(kind):
    words = {"kind": kind, "name": "my-own", "package": "my_own", "class_name": "MyOwn"}
    files = plugin_files(kind, words)
    assert {"pyproject.toml", "README.md", "my_own/__init__.py", "tests/test_my_own.py"} <= {*files}
    assert not any("$" in text for text in (*files, *files.values()))


def test_the_tests_of_a_new_plugin_pass(invbench, tmp_path):
    names = [f"my-{kind}" for kind in ("attack", "model", "dataset")]
    for name in names:
        assert invbench("new", name.removeprefix("my-"), name).code == 0
    path = os.pathsep.join([*(str(tmp_path / name) for name in names), *sys.path])
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *names],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_card_of_a_new_attack_is_read(invbench, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "my-attack")
    assert invbench("new", "attack", "my-attack").code == 0
    catalogue = str(tmp_path / "my-attack" / "my_attack")
    printed = invbench("--catalogue", catalogue, "--trust", "my_attack", "show", "my-attack")
    assert printed.code == 0, printed.err


def test_a_name_of_the_catalogue_is_refused(invbench):
    printed = invbench("new", "attack", "pgd")
    assert printed.code == 2
    assert "choose another name" in printed.err


def test_a_new_oracle_and_a_new_model_keep_the_rules(invbench, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "my-model")
    for kind in ("oracle", "model"):
        assert invbench("new", kind, f"my-{kind}").code == 0
    monkeypatch.setenv("INVBENCH_CATALOGUE", os.pathsep.join(map(str, (tmp_path / "my-oracle" / "my_oracle", tmp_path / "my-model" / "my_model"))))  # fmt: skip
    printed = invbench("check", "my-oracle", "--json")
    assert json.loads(printed.out) == {"name": "my-oracle", "kind": "oracle", "ok": True, "problem": None}  # fmt: skip
    printed = invbench("--trust", "my_model", "check", "my-model")
    assert printed.out == "model my-model: keeps the rules\n", printed.err


@pytest.mark.parametrize("name", ["", "My-own", "2nd", "a_b", "class", "../up", "a b"])
def test_a_name_that_is_no_package_is_refused(invbench, name):
    assert invbench("new", "attack", name).code == 2


def test_nothing_is_overwritten(invbench, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "mine exists" in invbench("new", "attack", "mine").err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


BROKEN = """
from dataclasses import dataclass
from typing import ClassVar
import torch

@dataclass(frozen=True)
class TooFar:
    kind: ClassVar[str] = "fixed-budget"
    norms: ClassVar[frozenset] = frozenset({"linf"})
    def run(self, model, batch, threat, rng):
        return (batch.images + 1).clamp(*model.bounds)

class Nothing(TooFar):
    def run(self, model, batch, threat, rng):
        return None

class Raising(TooFar):
    def run(self, model, batch, threat, rng):
        raise RuntimeError("no luck")

def augmented():
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 20
        def __getitem__(self, i):
            return torch.rand(1, 4, 4), i % 2
    return Data()
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TooFar", "leaves its budget"),
        ("Nothing", "returns an object of type NoneType, not a tensor"),
        ("Raising", "attack broken.py:Raising: it raises RuntimeError: no luck"),
        ("augmented", "if it is read again"),
    ],
)
def test_what_breaks_a_rule_is_named(invbench, tmp_path, name, message):
    (tmp_path / "broken.py").write_text(BROKEN)
    printed = invbench("check", f"broken.py:{name}")
    assert printed.code in (1, 2)
    assert message in printed.out + printed.err


@pytest.mark.parametrize("name", ["nothing-of-this-name", "broken.py:missing", ""])
def test_an_unknown_name_is_refused(invbench, name):
    printed = invbench("check", name)
    assert printed.code in (1, 2)
    assert len(printed.err.splitlines()) == 1


def test_the_scaffold_is_complete():
    assert {path.name for path in Path(SCAFFOLD).iterdir()} == {"common", *KINDS}
