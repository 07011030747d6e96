"""Code that catalogue files may name: strange modules and files are refused before they are imported."""

import sys

import pytest

from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.cards import read_model, read_oracle, read_suite, read_threat
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.catalogue.reproduction_file import read_reproduction
from robustbench_inv.errors import BadCatalogue
from robustbench_inv.training.training_run import train_recipe

CODE = """
import pathlib
pathlib.Path(__file__).with_suffix(".ran").touch()

from torch import nn

def build():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model.bounds = (0.0, 1.0)
    return model
"""

MODEL = """
summary = "s"
dataset = "mnist5k"
implementation = "{}"
num_classes = 10
bounds = [0, 1]
"""

ATTACK = """
summary = "s"
implementation = "{}"
kind = "fixed-budget"
norms = ["linf"]
"""

SUITE = """
summary = "s"
[[runs]]
attack = "{}"
threat = "linf=0.1"
"""

SUITE_THREAT = """
summary = "s"
[[runs]]
attack = "pgd"
threat = "linf=0.1:substitute={}"
"""

THREAT = """
summary = "s"
norm = "linf"
epsilons = [0.1]
access = "transfer"
substitute = "{}"
"""

ORACLE = """
summary = "s"
members = ["mnist-cnn", "{}"]
"""

TRIALS = """
version = 1
title = "t"
summary = "s"
paper = "p"
datasets = {datasets}
columns = [{{ name = "a", published = "{published}" }}]
trials = [{{ name = "PGD", attack = "{attack}", threat = "{threat}", group = "a" }}]
panels = [{{ title = "t", trial = "PGD" }}]
"""

MEASUREMENT = """
version = 1
title = "t"
summary = "s"
paper = "p"
datasets = ["mnist"]
[measurement]
by = "{by}"
parameters = {{ models = {{ a = ["{model}"] }} }}
"""

RECIPE = """
model = "{model}"
objective = "{objective}"
dataset = "mnist5k"
held_out = ["mnist5k"]
first = 0
last = 20
epochs = 1
batch_size = 10
learning_rate = 0.1
seed = 0
"""

STRANGE = [
    "os:system",
    "os:system:command=touch ran",
    "subprocess:run",
    "builtins:eval",
    "robustbench_inv_evil:build",
    "robustbench_inv.catalogue.models:load_model",
    "robustbench_inv.api:evaluate",
    "robustbench_inv.cli.main:main",
    "../../../outside.py:build",
    "{outside}:build",
    "link.py:build",
]


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    """An empty catalogue; a file outside of it, and a link to that file, record whether they were imported."""
    root = tmp_path / "catalogue"
    root.mkdir()
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(root))
    monkeypatch.delenv("INVBENCH_TRUST", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside.py").write_text(CODE)
    yield root
    assert not list(tmp_path.rglob("outside.ran"))
    assert not list(tmp_path.rglob("ran"))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if not (path.parent / "link.py").is_symlink():
        (path.parent / "link.py").symlink_to(path.parents[3] / "outside.py")
    return path


def named(strange, catalogue):
    return strange.replace("{outside}", str(catalogue.parent / "outside.py"))


def strange_implementations():
    return [each for each in STRANGE if "=" not in each]


@pytest.mark.parametrize("strange", strange_implementations())
def test_a_card_names_no_strange_code(catalogue, strange):
    name = named(strange, catalogue)
    write(catalogue / "models" / "m" / "card.toml", MODEL.format(name))
    write(catalogue / "attacks" / "presets" / "a.toml", ATTACK.format(name))
    with pytest.raises(BadCatalogue):
        load_model("m")
    with pytest.raises(BadCatalogue):
        load_attack("a")


@pytest.mark.parametrize("name", ["../../../outside.py:build", "link.py:build", "os:system"])
def test_the_error_names_the_remedy(catalogue, name):
    path = write(catalogue / "models" / "m" / "card.toml", MODEL.format(name))
    with pytest.raises(BadCatalogue, match="if you trust it: invbench --trust"):
        read_model(path)


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize(
    ("read", "text", "place"),
    [
        (read_suite, SUITE, "attacks/suites/s.toml"),
        (read_suite, SUITE_THREAT, "attacks/suites/s.toml"),
        (read_threat, THREAT, "attacks/threats/s.toml"),
        (read_oracle, ORACLE, "attacks/oracles/s.toml"),
    ],
)
def test_no_other_entry_names_strange_code(catalogue, read, text, place, strange):
    path = write(catalogue / place, text.format(named(strange, catalogue)))
    with pytest.raises(BadCatalogue):
        read(path)


@pytest.mark.parametrize(
    "values",
    [
        {"published": "os:system:command=touch ran"},
        {"attack": "os:system"},
        {"threat": "linf=0.1:substitute=os:system:command=touch ran"},
        {"threat": "linf=0.1:oracle=mnist-panel:guide=os:system"},
        {"published": "o{data[3]}:{data[3]}y{data[3]}tem"},
        {"published": "{data}", "datasets": '["os:system"]'},
        {"published": "../../../../outside.py:build"},
    ],
)
def test_a_reproduction_names_no_strange_code(catalogue, values):
    plain = {
        "datasets": '["mnist"]',
        "published": "mnist-cnn",
        "attack": "pgd",
        "threat": "linf=0.1",
    }
    path = catalogue / "reports" / "definitions" / "p" / "table-1.toml"
    read_reproduction(write(path, TRIALS.format(**plain)))
    write(path, TRIALS.format(**plain | values))
    with pytest.raises(BadCatalogue):
        read_reproduction(path)


@pytest.mark.parametrize(
    ("by", "model"),
    [
        ("os:system", "mnist-cnn"),
        ("robustbench_inv.cli.main:main", "mnist-cnn"),
        ("logits", "os:system:command=touch ran"),
        ("logits", "none:substitute=os:system"),
    ],
)
def test_an_experiment_names_no_strange_code(catalogue, by, model):
    path = catalogue / "reports" / "definitions" / "p" / "table-1.toml"
    read_reproduction(write(path, MEASUREMENT.format(by="logits", model="mnist-cnn")))
    write(path, MEASUREMENT.format(by=by, model=model))
    with pytest.raises(BadCatalogue):
        read_reproduction(path)


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ("os:system", "cross-entropy"),
        ("lenet5", "os:system"),
        ("robustbench_inv.cli.main:os.system", "cross-entropy"),
        ("../../../outside.py:build", "cross-entropy"),
    ],
)
def test_a_recipe_names_no_strange_code(catalogue, model, objective):
    path = catalogue / "models" / "m" / "recipe.toml"
    write(path, RECIPE.format(model=model, objective=objective))
    with pytest.raises(BadCatalogue):
        train_recipe(path, catalogue.parent / "out")


def test_what_a_module_of_the_package_imports_is_not_its_own(catalogue):
    write(catalogue / "models" / "m" / "card.toml", MODEL.format("robustbench_inv.models.vib:log"))
    with pytest.raises(BadCatalogue, match="is not defined in"):
        load_model("m")


def test_a_file_inside_the_catalogue_may_be_named(catalogue):
    write(catalogue / "models" / "m" / "card.toml", MODEL.format("../../code/net.py:build"))
    write(catalogue / "code" / "net.py", CODE)
    assert load_model("m").classifier.num_classes == 10
    suite = write(
        catalogue / "attacks" / "suites" / "s.toml", SUITE_THREAT.format("../../code/net.py:build")
    )
    assert f"substitute={catalogue}/code/net.py:build" in read_suite(suite).runs[0].threat


def test_a_file_that_two_names_reach_is_the_one_that_was_checked(catalogue):
    """A suite names a file beside it; the user's folder has another file of that name."""
    (catalogue.parent / "net.py").write_text("raise SystemExit")
    write(catalogue / "attacks" / "oracles" / "net.py", CODE)
    path = write(catalogue / "attacks" / "oracles" / "o.toml", ORACLE.format("net.py:build"))
    member = read_oracle(path).members[1]
    assert load_model(member).classifier.num_classes == 10


def test_trusted_code_may_be_named(catalogue, monkeypatch):
    write(catalogue / "models" / "m" / "card.toml", MODEL.format("trusted_code.sub:build"))
    (catalogue.parent / "trusted_code").mkdir()
    (catalogue.parent / "trusted_code" / "sub.py").write_text(CODE)
    monkeypatch.syspath_prepend(catalogue.parent)
    with pytest.raises(BadCatalogue, match="--trust trusted_code"):
        load_model("m")
    monkeypatch.setenv("INVBENCH_TRUST", "trusted_code")
    assert load_model("m").classifier.num_classes == 10
    monkeypatch.delitem(sys.modules, "trusted_code.sub")
    write(catalogue / "models" / "m" / "card.toml", MODEL.format("../../../elsewhere.py:build"))
    (catalogue.parent / "elsewhere.py").write_text(CODE)
    with pytest.raises(BadCatalogue, match=r"--trust .*elsewhere.py"):
        load_model("m")
    monkeypatch.setenv("INVBENCH_TRUST", f"trusted_code:{catalogue.parent / 'elsewhere.py'}")
    assert load_model("m").classifier.num_classes == 10
