"""The README is followed word for word: its files are written, its commands are run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(
    r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## )", README, re.M | re.S)[1]


def follow(title, folder):
    """Write the files of a section and run its commands, and return what they print."""
    printed = []
    for block in BLOCK.finditer(section(title)):
        if block["file"]:
            path = folder / block["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block["text"])
        elif block["kind"] == "console":
            printed += [run(line, folder) for line in block["text"].splitlines()]
    return printed


def run(line, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


needs_command = pytest.mark.skipif(
    shutil.which("invbench", path=str(Path(sys.executable).parent)) is None,
    reason="the command invbench is not installed beside this Python",
)


@needs_command
def test_write_an_attack(tmp_path):
    shown, evaluated, tested = follow("Write an attack", tmp_path)
    assert "raises or lowers the contrast" in shown
    assert "contrast" in evaluated
    assert "1 passed" in tested


@needs_command
def test_your_own_model(tmp_path):
    (evaluated,) = follow("Your own model", tmp_path)
    assert "mymodel" in evaluated


def test_the_same_from_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = [b for b in BLOCK.finditer(section("On the command line")) if b["kind"] == "python"]
    exec(compile(block["text"], "README.md", "exec"), {})
    assert "Rate(successes=" in capsys.readouterr().out


def test_the_plugin_holds_the_attack_of_the_readme():
    files = {b["file"]: b["text"] for b in BLOCK.finditer(README) if b["file"]}
    plugin = ROOT / "attacks" / "example_plugin" / "invbench_example_attack"
    assert files["my-attacks/attacks/presets/contrast.py"] == (plugin / "contrast.py").read_text()
    card = (plugin / "attacks" / "presets" / "contrast.toml").read_text()
    assert files["my-attacks/attacks/presets/contrast.toml"] == card.replace(
        "invbench_example_attack.contrast:", "contrast.py:"
    )


def test_what_the_readme_names_is_there():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
