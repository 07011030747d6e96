"""Every command and snippet of the README and the documentation is run as a reader runs it, on few samples.

A page is followed from its start in an empty folder. Blocks of ``sh`` and ``python`` run, and a block below a line
with a file's name is written to that file. A comment above a block or at the start of a page says otherwise, and why:
``<!-- not run: REASON -->``, ``<!-- slow: REASON -->`` (only with -m slow) or ``<!-- needs: DATA OR PACKAGE -->``.
"""

import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.listing import models_like
from robustbench_inv.catalogue.locate import CATALOGUE_VARIABLE, entries, find
from robustbench_inv.cli.main import app, main, repeat_options
from robustbench_inv.errors import BadData, MissingExtra, UnknownName
from robustbench_inv.models.plain_networks import LeNet5

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^:\n]+): (?P<why>[^\n]+) -->\n+)?"
    r"(?:^`(?P<file>[^`\n]+)`:\n\n)?"
    r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
MARKS = ("not run", "slow", "needs")
KINDS = {"sh", "python", "toml", "text", "json", "yaml", "bibtex"}
FEW = [  # a reader's sizes, and those of the tests
    (r"--samples (?:first:)?\d+", "--samples 5"),
    (r"samples=\d+", "samples=5"),
    (r"(train\.py) \d+", r"\1 20"),
    (r"--minutes \d+", "--minutes 0.1"),
    (r"minutes=\d+", "minutes=0.1"),
    (r"SAMPLES = \d+", "SAMPLES = 5"),
]
EXPECTED = {
    "README.md": ["linf 8/255", "mnist-cnn-at", "report.html", "compare.html"],
    "docs/guides/own-attack.md": ["Raises or lowers the contrast", "1 passed"],
    "docs/guides/own-model.md": ["net.py:build", "net.pt2", "my-net"],
    "docs/guides/own-data.md": ["own.py:network"],
    "docs/python.md": ["verdict on ", "Rate(successes=", "torch.Size([5, 1, 28, 28])"],
}
"""Texts that the blocks of a page print, those of the normal suite."""

CHECKED = {"tutorial.md", "checks.md", "--no-checks", "--fail-on", "--suite"}
"""Pages and options with which ``invbench evaluate`` is run with its checks; elsewhere they only take time."""


@dataclass
class Reader:
    """Follows pages in a folder: writes files, runs commands in this process, keeps what they print."""

    folder: Path
    capsys: pytest.CaptureFixture
    monkeypatch: pytest.MonkeyPatch
    names: dict = field(default_factory=dict)
    page: str = ""

    def follow(self, page: Path, slow: bool) -> str:
        printed, self.page = [], page.name
        for block in BLOCK.finditer(page.read_text()):
            if block["file"]:
                path = self.folder / block["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(few(block["text"]))
            elif is_left_out(block, slow):
                continue
            elif block["kind"] == "sh":
                printed += [self.run(line) for line in commands(few(block["text"]))]
            elif block["kind"] == "python":
                exec(compile(few(block["text"]), str(page), "exec"), self.names)
                printed.append(self.capsys.readouterr().out)
        return "\n".join(printed)

    def run(self, line: str) -> str:
        words = shlex.split(line)
        if words[:2] == ["invbench", "evaluate"]:
            words += [] if "--samples" in words else ["--samples", "5"]
            words += [] if CHECKED & {*words, self.page} else ["--no-checks"]
        if words[0] == "invbench":
            return self.run_main(words)
        if words[0] == "python" and words[1].endswith(".py"):
            self.monkeypatch.setattr(sys, "argv", words[1:])
            self.monkeypatch.syspath_prepend(str(self.folder))
            runpy.run_path(words[1], run_name="__main__")
            return self.capsys.readouterr().out
        line = re.sub(r"^python ", f"{sys.executable} ", line)
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_main(self, words: list[str]) -> str:
        self.monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as leaving:
            main()
        printed = self.capsys.readouterr()
        failed = leaving.value.code or "the logger failed" in printed.err
        assert not failed, f"{shlex.join(words)}\n{printed.out}\n{printed.err}"
        return printed.out


@pytest.fixture
def reader(tmp_path, monkeypatch, capsys):
    """A reader in an empty folder, who has a network and data of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CATALOGUE_VARIABLE, "")  # --catalogue sets it: this restores it afterwards
    images, labels = load_dataset("mnist5k").batch(range(5))
    forget_modules_of(tmp_path.parent)  # of other tests: a script imports those of its own folder
    yield Reader(tmp_path, capsys, monkeypatch, {"net": LeNet5(), "x": images, "y": labels})
    forget_modules_of(tmp_path)


def forget_modules_of(folder):
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{folder}/"):
            del sys.modules[name]


def name_of(page):
    return str(page.relative_to(ROOT))


def few(text):
    """Return a text with the sizes of the tests."""
    for size, small in FEW:
        text = re.sub(size, small, text)
    return text


def commands(text):
    """Return the command lines of a block, joined where they continue, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    lines = [re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines]
    return [line for line in lines if line]


def is_here(need):
    """Is a data set or a package here?"""
    try:
        load_dataset(need)
    except BadData:
        return False
    except UnknownName:
        return need in entries("models") or importlib.util.find_spec(need) is not None
    return True


def is_left_out(block, slow):
    """Does the comment above a block say that it is not run, not now, or that something is missing?"""
    mark = block["mark"]
    missing = mark == "needs" and not is_here(block["why"])
    return mark == "not run" or (mark == "slow" and not slow) or missing


def needs(page):
    """Return what a whole page needs: the comment above its title."""
    found = re.match(r"<!-- needs: (.*?) -->", page.read_text())
    return [found[1]] if found else []


def runs(page, slow):
    """Does a page have blocks to run in the normal suite, or slow ones?"""
    blocks = [b for b in BLOCK.finditer(page.read_text()) if b["kind"] in ("sh", "python")]
    marks = {b["mark"] for b in blocks if not b["file"]}
    return "slow" in marks if slow else bool(marks - {"slow", "not run"})


def make_own_data(folder):
    """Write the images and arrays that the guide to your own data names."""
    x, y = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8), [0, 1] * 10
    np.savez(folder / "data.npz", x=x, y=y)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    for i, image in enumerate(x):
        file = folder / "photos" / "ab"[y[i]] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def follow(reader, page, slow=False):
    for need in needs(page):
        if not is_here(need):
            pytest.skip(f"{need} is not here")
    if page.name == "own-data.md":
        make_own_data(reader.folder)
    return reader.follow(page, slow)


@pytest.mark.parametrize("page", [p for p in PAGES if runs(p, slow=False)], ids=name_of)
def test_a_page_is_followed(page, reader):
    printed = follow(reader, page)
    for text in EXPECTED.get(name_of(page), []):
        assert text in printed


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if runs(p, slow=True)], ids=name_of)
def test_a_page_is_followed_with_its_slow_blocks(page, reader):
    follow(reader, page, slow=True)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=name_of)
def test_an_example_runs(example, reader):
    (reader.folder / example.name).write_text(few(example.read_text()))
    assert reader.run(f"python {example.name}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_say_what_they_are(page):
    """No command hides in a block without a language, and none is left out without a reason."""
    text = page.read_text()
    fences = re.findall(r"^ *```", text, re.M)
    blocks = list(BLOCK.finditer(text))
    assert len(fences) == 2 * len(blocks), "a fence is indented or not closed"
    for block in blocks:
        assert block["kind"] in KINDS, f"language {block['kind']!r}: {block['text'][:60]}"
        assert block["mark"] is None or block["mark"] in MARKS
        if block["kind"] == "text":
            assert not re.search(r"^(\$ )?(invbench|python|pip|make) ", block["text"], re.M), block


def invbench_lines():
    """Yield each invbench command of the documentation, run or not."""
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text()):
            if block["kind"] == "sh":
                yield from (x for x in commands(block["text"]) if x.startswith("invbench "))


def test_every_command_of_the_documentation_parses():
    """Options and commands exist; nothing is run."""
    group = typer.main.get_command(app)
    for line in invbench_lines():
        arguments = repeat_options(shlex.split(line.split(" || ")[0])[1:])
        while arguments and arguments[0] in ("--catalogue", "--trust"):
            arguments = arguments[2:]
        if not arguments or arguments[0].startswith("--"):
            continue
        name, *rest = arguments
        command = group.commands[name]
        while hasattr(command, "commands"):
            name, *rest = rest
            command = command.commands[name]
        command.make_context(name, rest, resilient_parsing=False)


def test_commands_inside_sentences_have_options_that_exist():
    group = typer.main.get_command(app)
    known = {option for command in every_command(group) for option in command}
    for page in PAGES:
        if "decisions" in page.parts or "measurements" in page.parts:
            continue  # they say what was typed then
        for found in re.findall(r"`invbench ([^`]*)`", page.read_text()):
            words = found.split()
            assert words[0] in group.commands or words[0].startswith("--"), f"{page}: {found}"
            options = [w for w in words if re.match(r"--[a-z-]+$", w)]
            assert set(options) <= known, f"{page}: {found}"


def every_command(group):
    for command in [group, *group.commands.values()]:
        yield {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        yield {"--install-completion", "--show-completion", "--help"}
        yield from (
            every_command(command) if hasattr(command, "commands") and command is not group else ()
        )


def test_every_model_and_attack_of_the_documentation_is_in_the_catalogue():
    for line in invbench_lines():
        words = line.split()
        for value in values(words, "--attack"):
            with suppress(MissingExtra):  # of a library that is not installed here
                assert value.startswith("contrast") or load_attack(value), line
        if words[1] in ("compare", "export"):
            continue  # labels of a run
        for value in values(words, "--model"):
            name = models_like(value.strip("'"))[0].partition(":")[0].rpartition("=")[-1]
            recipe = ROOT / "models" / name / "recipe.toml"  # of a network that is not trained yet
            assert is_own(value) or recipe.is_file() or find("models", name), line


def is_own(model):
    """Is a model of the documentation one that the page makes, or one of another library?"""
    libraries = ("timm:", "torchvision:", "hf:", "robustbench:")
    own = (
        ".py" in model,
        ".pt" in model,
        model in ("my-net", "MODEL"),
        model.startswith(libraries),
    )
    return any(own)


def values(words, option):
    """Return the words between an option and the next one."""
    if option not in words:
        return []
    rest = words[words.index(option) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), None)]


def test_the_plugin_is_the_attack_of_the_documentation():
    page = (DOCS / "guides" / "own-attack.md").read_text()
    files = {b["file"]: b["text"] for b in BLOCK.finditer(page) if b["file"]}
    plugin = ROOT / "attacks" / "example_plugin" / "invbench_example_attack"
    assert files["my-attacks/attacks/presets/contrast.py"] == (plugin / "contrast.py").read_text()
    card = (plugin / "attacks" / "presets" / "contrast.toml").read_text()
    assert files["my-attacks/attacks/presets/contrast.toml"] == card.replace(
        "invbench_example_attack.contrast:", "contrast.py:"
    )


def test_a_reader_notices_what_is_wrong(reader):
    """The mechanism itself: blocks run, comments leave blocks out, a command that fails is an error."""
    page = reader.folder / "page.md"
    page.write_text("`a.py`:\n\n```python\nprint(3)\n```\n\n```sh\npython a.py  # runs\n```\n")
    assert reader.follow(page, slow=False) == "3\n"
    page.write_text(
        "<!-- slow: long -->\n```sh\necho slow\n```\n\n<!-- not run: no -->\n```sh\nfalse\n```\n"
    )
    assert reader.follow(page, slow=False) == ""
    assert reader.follow(page, slow=True) == "slow\n"
    for wrong in ("invbench show no-such-attack", "false"):
        page.write_text(f"```sh\n{wrong}\n```\n")
        with pytest.raises(AssertionError):
            reader.follow(page, slow=False)
    page.write_text("```python\nassert torch is None\n```\n")
    reader.names["torch"] = torch
    with pytest.raises(AssertionError):
        reader.follow(page, slow=False)
