"""The package's own description: what the two commands install is pinned, and the catalogue is in the wheel."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import robustbench_inv

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(
    line.lower().split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def requirements():
    extras = PROJECT["project"]["optional-dependencies"]
    installed = [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["torchattacks"]]
    return [re.split(r"[<>=!~\[; ]", text)[0].lower().replace("-", "_") for text in installed]


def test_every_requirement_is_pinned_to_one_version():
    pinned = {name.replace("-", "_") for name in PINS}
    assert [name for name in requirements() if name not in pinned] == []
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", pin) for pin in PINS.values())


def test_the_catalogue_is_in_the_wheel():
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source, target in included.items():
        assert (ROOT / source).is_dir(), source
        assert target == f"robustbench_inv/_catalogue/{source}"


def test_the_version_has_one_source():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert version("robustbench-inv") == robustbench_inv.__version__
    assert f"## {robustbench_inv.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_names_this_version():
    assert f"\nversion: {robustbench_inv.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_workflow_runs_what_must_pass():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "- run: .ci/run" in text
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
