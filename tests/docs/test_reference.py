"""The reference says what the program says: options, checks, keys of cards and recipes."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest

from robustbench_inv.catalogue import cards
from robustbench_inv.training.recipe import Recipe

ROOT = Path(__file__).parents[2]
PLACE = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
reference = importlib.util.module_from_spec(PLACE)
PLACE.loader.exec_module(reference)


@pytest.mark.parametrize("name", reference.WRITTEN)
def test_the_page_is_what_the_program_says(name):
    written = reference.page(name)
    assert (ROOT / name).read_text() == written, "run python tools/reference.py"


def keys(text):
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize(
    ("title", "card"),
    [
        ("Models", cards.ModelCard),
        ("Attacks", cards.AttackCard),
        ("Suites", cards.SuiteCard),
        ("Threat models", cards.ThreatCard),
        ("Oracles", cards.OracleCard),
    ],
)
def test_every_key_of_a_card_is_documented(title, card):
    page = (ROOT / "docs" / "cards.md").read_text()
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.M | re.S)[1]
    assert keys(section) == {each.name for each in fields(card)} - {"name", "folder"}


def test_every_key_of_a_recipe_is_documented():
    assert keys((ROOT / "docs" / "recipes.md").read_text()) == {f.name for f in fields(Recipe)} - {
        "name"
    }
