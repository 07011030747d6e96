"""Report definitions: the shipped ones, and what is wrong with bad ones."""

import pytest

from robustbench_inv.catalogue.locate import entries
from robustbench_inv.errors import BadCatalogue, UnknownName
from robustbench_inv.reporting.definitions import Selection, load_definition, read_definition
from robustbench_inv.reporting.figures import FIGURES
from robustbench_inv.reporting.tables import TABLES


@pytest.mark.parametrize("name", sorted(entries("reports")))
def test_every_shipped_definition_reads(name):
    definition = load_definition(name)
    assert definition.name == name
    assert all(section.tables or section.figures for section in definition.sections)


def test_default_shows_everything():
    definition = load_definition()
    assert {kind for section in definition.sections for kind in section.tables} == set(TABLES)
    assert {kind for section in definition.sections for kind in section.figures} == set(FIGURES)
    assert definition.select == Selection()
    assert all(section.select == Selection() for section in definition.sections)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"got 'defualt'.*did you mean default"):
        load_definition("defualt")


GOOD = 'version = 1\ntitle = "T"\n[[sections]]\ntitle = "S"\ntables = ["worst"]\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "version does not fit"),
        ("version = 2\n", "got 2, expected 1"),
        ("not toml", "unreadable"),
        ('version = 1\ntitle = "T"\n', "needs a section"),
        (GOOD.replace("worst", "wurst"), "expected one of worst"),
        (GOOD.replace("title = ", "tilte = "), "unknown key tilte"),
        (GOOD + "select = 3\n", "sections and select are tables"),
        (GOOD + 'select = { model = ["x"] }\n', "did you mean models"),
        (GOOD + 'select = { models = "x" }\n', "expected a list"),
        (GOOD.replace("[[sections]]", "images = 0\n[[sections]]"), "at least 1 column"),
        (GOOD.replace("[[sections]]", 'interval = "wald"\n[[sections]]'), "expected one of wilson"),
        ('version = 1\ntitle = "T"\nsections = ["S"]\n', "sections and select are tables"),
    ],
)
def test_a_bad_file_is_explained_in_one_line(tmp_path, text, told):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(BadCatalogue, match=told) as caught:
        read_definition(path)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_can_be_named_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + 'select = { norms = ["l*"] }\n')
    definition = load_definition(str(path))
    assert (definition.name, definition.sections[0].select.norms) == ("mine", ("l*",))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadCatalogue, match="absent"):
        load_definition(str(tmp_path / "absent.toml"))


def test_selection_needs_every_pattern_and_any_of_a_list():
    select = Selection(models=("mnist-*", "spheres-*"), norms=("linf",))
    assert select.matches(model="mnist-cnn", norm="linf")
    assert select.matches(model="spheres-max-margin", norm="linf")
    assert not select.matches(model="mnist-cnn", norm="l2")
    assert not select.matches(model="cifar10-cnn", norm="linf")
