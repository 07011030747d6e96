"""Places of the catalogue, and the isolation of broken plugins."""

import os
import sys
from importlib.metadata import EntryPoint

import pytest

from robustbench_inv.catalogue import locate as plugins
from robustbench_inv.catalogue.listing import list_entries, show_entry
from robustbench_inv.catalogue.locate import (
    catalogue_roots,
    entries,
    find,
    shadowed,
    shipped_root,
    unread,
)
from robustbench_inv.errors import BadCatalogue, UnknownName

PRESET = """
summary = "mine"
implementation = "robustbench_inv.attacks.pgd:PGD"
kind = "fixed-budget"
norms = ["linf"]
"""


@pytest.fixture(autouse=True)
def _fresh_plugins():
    plugins.find_plugins.cache_clear()
    yield
    plugins.find_plugins.cache_clear()


def make_catalogue(folder, **presets):
    (folder / "attacks" / "presets").mkdir(parents=True)
    for name, text in presets.items():
        (folder / "attacks" / "presets" / f"{name}.toml").write_text(text)
    return folder


def install(monkeypatch, **values):
    points = [EntryPoint(name, value, plugins.ENTRY_POINT_GROUP) for name, value in values.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda **_: points)


def names(kind):
    return {entry["name"] for entry in list_entries(kind).entries}


def test_the_shipped_catalogue_is_found_from_any_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert catalogue_roots()[0] == shipped_root()
    assert {"pgd", "fgsm", "random-perturbation"} <= entries("attacks").keys()


def test_named_folders_are_added_and_cannot_take_a_shipped_name(monkeypatch, tmp_path):
    folder = make_catalogue(tmp_path, mine=PRESET, pgd=PRESET)
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(folder))
    assert catalogue_roots()[1] == folder.resolve()
    assert "mine" in names("attacks")
    assert find("attacks", "pgd").is_relative_to(shipped_root())


def test_a_missing_folder_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path / "nowhere"))
    with pytest.raises(BadCatalogue, match="no such catalogue folder"):
        entries("attacks")


def test_a_plugin_is_a_package_folder_or_a_function(monkeypatch, tmp_path):
    package = make_catalogue(tmp_path / "invbench_test_plugin", mine=PRESET)
    (package / "__init__.py").write_text("raise RuntimeError('a listing must not import me')\n")
    other = make_catalogue(tmp_path / "other", yours=PRESET)
    (tmp_path / "invbench_test_code.py").write_text(f"def where():\n    return {str(other)!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, one="invbench_test_plugin", two="invbench_test_code:where")
    assert {"mine", "yours"} <= names("attacks")
    assert "invbench_test_plugin" not in sys.modules


def test_a_broken_plugin_is_one_line_and_hides_nothing(monkeypatch, tmp_path):
    good = make_catalogue(tmp_path / "invbench_test_good", mine=PRESET)
    (tmp_path / "invbench_test_bad.py").write_text("raise RuntimeError('boom')\n")
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, bad="invbench_test_bad:where", gone="invbench_test_gone", good=good.name)
    listing = list_entries("attacks")
    assert {"mine", "pgd"} <= {entry["name"] for entry in listing.entries}
    assert [line for line in listing.problems if "plugin bad" in line and "boom" in line]
    assert [line for line in listing.problems if "plugin gone" in line]
    assert all("\n" not in line for line in listing.problems)
    with pytest.raises(UnknownName, match="plugin bad is broken"):
        find("attacks", "from-the-bad-one")


def test_a_broken_card_is_one_line_and_hides_nothing(monkeypatch, tmp_path):
    make_catalogue(tmp_path, broken="summary = 3", mine=PRESET)
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path))
    listing = list_entries("attacks")
    assert {"mine", "pgd"} <= {entry["name"] for entry in listing.entries}
    assert len(listing.problems) == 1
    assert "broken.toml" in listing.problems[0]


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("models", "mnist-cn", "no model is called mnist-cn; did you mean mnist-cnn"),
        ("attacks", "pdg", "did you mean pgd"),
        ("models", "pgd", "pgd is among the attacks"),
        ("attacks", "zzz", "known: .*fgsm"),
    ],
)
def test_an_unknown_name_gives_the_closest_names(kind, name, says):
    with pytest.raises(UnknownName, match=says):
        find(kind, name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mnist-cnn", "models"),
        ("pgd:steps=3", "attacks"),
        ("quick", "suites"),
        ("mnist-linf", "threats"),
        ("spheres", "datasets"),
        ("mnist5k", "datasets"),
    ],
)
def test_show_finds_entries_of_every_kind(name, kind):
    found, card = show_entry(name)
    assert found == kind
    assert card["name"] == name


def test_shows_an_attack_with_all_its_parameters():
    _, card = show_entry("pgd:steps=3")
    assert card["parameters"]["steps"] == 3
    assert "restarts" in card["parameters"]
    with pytest.raises(UnknownName, match="did you mean"):
        show_entry("mnist5")


def test_a_plugin_that_was_built_without_its_cards_is_named(monkeypatch, tmp_path):
    (tmp_path / "invbench_test_empty").mkdir()
    (tmp_path / "invbench_test_empty" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, empty="invbench_test_empty")
    (problem,) = list_entries("attacks").problems
    assert "plugin empty is broken" in problem
    assert "in the wheel" in problem


def test_an_entry_that_another_one_hides_is_told(tmp_path, monkeypatch):
    for folder, name in (("first", "pgd"), ("first", "own"), ("second", "own"), ("second", "new")):
        path = tmp_path / folder / "attacks" / "presets" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    roots = f"{tmp_path / 'first'}{os.pathsep}{tmp_path / 'second'}"
    monkeypatch.setenv("INVBENCH_CATALOGUE", roots)
    lines = shadowed(["attacks"])
    assert len(lines) == 2
    assert "first/attacks/presets/pgd.toml is not used: the shipped attack pgd" in lines[0]
    assert "second/attacks/presets/own.toml is not used" in lines[1]
    assert "first/attacks/presets/own.toml own has its name" in lines[1]
    assert shadowed(["models"]) == ()


@pytest.mark.parametrize("fault", ["sys.exit(0)", "time.sleep(60)", "raise StopIteration"])
def test_a_plugin_that_ends_the_program_or_hangs_is_a_problem_of_its_own(
    monkeypatch, tmp_path, fault
):
    (tmp_path / "bad_plugin.py").write_text(f"import sys, time\n\ndef catalogue():\n    {fault}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bad_plugin", raising=False)
    monkeypatch.setattr(plugins, "PLUGIN_SECONDS", 0.5)
    install(monkeypatch, bad="bad_plugin:catalogue")
    listing = list_entries("attacks")
    assert "pgd" in {entry["name"] for entry in listing.entries}
    assert [line.partition(" is broken: ")[0] for line in listing.problems] == ["plugin bad"]


def test_a_file_that_no_entry_is_read_from_is_told(tmp_path, monkeypatch):
    for place in ("models/mine/model.toml", "models/mine/recipe.toml", "attacks/own.toml"):
        path = tmp_path / "catalogue" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "presets").mkdir()
    roots = f"{tmp_path / 'catalogue'}{os.pathsep}{tmp_path / 'presets'}"
    assert unread() == ()
    monkeypatch.setenv("INVBENCH_CATALOGUE", roots)
    own, mine, empty = unread()
    assert "attacks/own.toml is not read: entries are attacks/presets/*.toml" in own
    assert "models/mine/model.toml is not read: entries are models/*/card.toml" in mine
    assert "presets adds nothing: a catalogue has a folder attacks or models or reports" in empty
    assert set(unread()) <= set(list_entries("suites").problems)


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("attacks", "AutoAttack", "write standard"),
        ("attacks", "APGD-CE", "write apgd:loss=ce"),
        ("models", "net.pt", "write FILE.py:FUNCTION"),
        ("models", "runs/best.ckpt", "write FILE.py:FUNCTION"),
        ("models", "mine.py", "mine.py:NAME"),
        ("threats", "8/255", "linf=8/255"),
        ("threats", "0.3", "linf=0.3"),
    ],
)
def test_names_of_other_tools_get_a_hint(kind, name, hint):
    with pytest.raises(UnknownName, match=hint):
        find(kind, name)
