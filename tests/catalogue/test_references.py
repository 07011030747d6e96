"""References: the syntax of names with parameters, and imports."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_inv.catalogue.references import Reference, import_object, parse_reference
from robustbench_inv.errors import BadCatalogue, BadParameter, UnknownName, did_you_mean, suggest

WORD = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=8).filter(
    lambda word: (
        word[0].isalpha() and word.lower() not in ("true", "false", "inf", "nan", "infinity")
    )
)
VALUE = WORD | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("pgd", "pgd", {}),
        ("pgd:steps=20,loss=ce", "pgd", {"steps": 20, "loss": "ce"}),
        ("foolbox:LinfPGD", "foolbox:LinfPGD", {}),
        ("foolbox:LinfPGD:steps=20", "foolbox:LinfPGD", {"steps": 20}),
        ("dir/file.py:factory", "dir/file.py:factory", {}),
        ("file.py:factory:width=4", "file.py:factory", {"width": 4}),
        ("spheres:d=500,r2=1.3", "spheres", {"d": 500, "r2": 1.3}),
        ("a:b=true,c=False,d=1e-3,e=inf", "a", {"b": True, "c": False, "d": 1e-3, "e": "inf"}),
        (" pgd : steps = 3 ", "pgd ", {"steps": 3}),
    ],
)
def test_reads_names_and_typed_parameters(text, name, parameters):
    reference = parse_reference(text)
    assert reference == Reference(name, parameters)
    assert [type(v) for v in reference.parameters.values()] == [
        type(v) for v in parameters.values()
    ]


@given(name=WORD, parameters=st.dictionaries(WORD, VALUE, max_size=3))
def test_references_are_parsed_again(name, parameters):
    reference = Reference(name, parameters)
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text", ["", ":a=1", "pgd:steps=", "pgd:=3", "pgd:steps=3,,", "pgd:a=1,a=2"]
)
def test_refuses_what_it_cannot_read(text):
    with pytest.raises(BadParameter):
        parse_reference(text)


def test_suggests_the_nearest_name_and_else_all():
    assert did_you_mean("mnist-cn", ["mnist-cnn", "spheres"]) == "did you mean mnist-cnn?"
    assert did_you_mean("zzz", ["mnist-cnn"]) == ""
    assert suggest("zzz", ["b", "a"]) == "known: a, b"
    assert suggest("zzz", []) == ""


def test_imports_from_modules_and_files(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Thing:\n    size: 'int' = 3\n"
    )
    assert import_object("math:pi") == pytest.approx(3.14159, abs=1e-5)
    thing = import_object("mine.py:Thing", tmp_path)
    assert thing().size == 3
    assert import_object(f"{tmp_path / 'mine.py'}:Thing") is thing


def test_a_changed_file_is_imported_again(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("value = 1\n")
    assert import_object(f"{file}:value") == 1
    file.write_text("value = 22\n")
    assert import_object(f"{file}:value") == 22


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("nowhere.py:Thing", BadCatalogue, "no such file"),
        ("no_such_module_x:Thing", BadCatalogue, "No module named"),
        ("math", BadCatalogue, "module:Name"),
        ("math:ceill", UnknownName, "did you mean ceil"),
    ],
)
def test_the_error_of_a_failed_import(reference, error, says):
    with pytest.raises(error, match=says):
        import_object(reference)


def test_a_file_that_raises_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("raise RuntimeError('boom')\n")
    with pytest.raises(BadCatalogue, match=r"broken\.py raised RuntimeError: boom"):
        import_object("broken.py:Thing", tmp_path)


HELPED = """
from torch import nn
import layers
def build():
    import later
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, layers.WIDTH))
    model.bounds, model.later = (0.0, later.HIGH), later.HIGH
    return model
"""


def helped(folder, width, high=1.0):
    folder.mkdir()
    (folder / "mine.py").write_text(HELPED)
    (folder / "layers.py").write_text(f"WIDTH = {width}\n")
    (folder / "later.py").write_text(f"HIGH = {high}\n")
    return f"{folder / 'mine.py'}:build"


def test_a_file_imports_modules_of_its_own_folder_also_when_it_is_called(tmp_path):
    from robustbench_inv.catalogue.models import load_model

    loaded = load_model(helped(tmp_path / "one", 3, 2.0))
    assert (loaded.classifier.num_classes, loaded.classifier.bounds) == (3, (0.0, 2.0))
    other = load_model(helped(tmp_path / "two", 4, 5.0))
    assert (other.classifier.num_classes, other.classifier.bounds) == (4, (0.0, 5.0))


def test_the_digest_covers_the_modules_of_the_folder(tmp_path):
    from robustbench_inv.catalogue.models import load_model

    digests = [
        load_model(helped(tmp_path / name, 3, high)).identity["code"]
        for name, high in (("a", 1.0), ("b", 2.0), ("c", 1.0))
    ]
    assert digests[0] == digests[2] != digests[1]


def test_a_card_names_a_file_that_imports_modules_of_its_folder(tmp_path, monkeypatch):
    from robustbench_inv.catalogue.locate import CATALOGUE_VARIABLE
    from robustbench_inv.catalogue.models import load_model

    (tmp_path / "models").mkdir()
    folder = tmp_path / "models" / "helped"
    helped(folder, 3)
    (folder / "card.toml").write_text(
        'summary = "Helped"\npaper = "none"\nimplementation = "mine.py:build"\nnum_classes = 3\n'
        'shape = [1, 2, 2]\nbounds = [0.0, 1.0]\ndataset = "mnist5k"\n'
    )
    monkeypatch.setenv(CATALOGUE_VARIABLE, str(tmp_path))
    assert load_model("helped").classifier.num_classes == 3
