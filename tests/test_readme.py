"""The README and the reference name what is there: attacks, suites, checks, goals, models."""

from pathlib import Path

from robustbench_inv.checks.check_list import CHECKS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


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
    assert (kinds[1:], sum(kinds)) == ([6, 3], len(names))
    assert f"{len(CHECKS)} checks give a verdict" in text
