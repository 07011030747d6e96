"""``invbench doctor``: what is there, what is absent, and what is broken."""

import json
import shutil
from pathlib import Path

import robustbench_inv
from robustbench_inv.catalogue.locate import shipped_root


def findings(printed):
    return {(each["topic"], each["name"]): each for each in json.loads(printed.out)}


def test_the_shipped_weights_and_digits_are_verified(invbench):
    printed = invbench("doctor", "--json")
    found = findings(printed)
    assert found["version", "robustbench-inv"]["text"] == robustbench_inv.__version__
    assert found["data", "mnist5k"]["state"] == "ok"
    assert found["device", "cpu"]["state"] == "ok"
    weights = [path.parent for path in (shipped_root() / "models").glob("*/weights.safetensors")]
    assert found["weights", "shipped models"]["text"] == f"{len(weights)} verified"


def test_damaged_weights_and_unread_files_set_the_exit_code(invbench, tmp_path, monkeypatch):
    source = shipped_root() / "models" / "mnist-lenet5"
    own = tmp_path / "own" / "models"
    shutil.copytree(source, own / "lenet-copy")
    weights = own / "lenet-copy" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (own / "forgotten").mkdir()
    (own / "forgotten" / "model.toml").write_text("")
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path / "own"))
    printed = invbench("doctor", "--json")
    assert printed.code == 1
    broken = [each for each in json.loads(printed.out) if each["state"] == "broken"]
    assert {each["name"] for each in broken} == {"lenet-copy", "problem"}
    assert any("model.toml" in each["text"] for each in broken)


def test_absent_data_name_the_command(invbench, tmp_path):
    printed = invbench("doctor", "--fast", "--data-root", tmp_path)
    lines = [line for line in printed.out.splitlines() if " cifar10:" in line]
    assert lines == ["absent  data: cifar10: invbench data fetch cifar10"] or "verified" in lines[0]
    assert Path(tmp_path, "cifar10").exists() is False
