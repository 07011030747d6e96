"""Recipes: reading, validation, and digests that are frozen for every shipped recipe.

``python tests/training/test_recipe.py`` writes ``recipe_digests.json`` again.
"""

import json
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import pytest

from robustbench_inv.catalogue.locate import shipped_root
from robustbench_inv.errors import BadCatalogue, UnknownName
from robustbench_inv.training.recipe import (
    ARCHITECTURES,
    OBJECTIVES,
    Recipe,
    find_recipe,
    read_recipe,
)

RECIPE = Recipe("toy", "m:f", "m:O", "toy", 0, 60, 4, 16, 1e-2, 3)
FILE = Path(__file__).with_name("recipe_digests.json")
ROOT = Path(__file__).parents[2]


def shipped_digests():
    paths = [
        *(shipped_root() / "models").rglob("recipe.toml"),
        *(ROOT / "docs/recipes").glob("*/recipe.toml"),
    ]
    return {path.parent.name: read_recipe(path).digest for path in sorted(paths)}


def test_the_digest_of_every_shipped_recipe_is_frozen():
    """A changed digest separates a recipe from its trained weights and its checkpoints."""
    assert shipped_digests() == json.loads(FILE.read_text())


@pytest.mark.parametrize("path", [*ARCHITECTURES.values(), *OBJECTIVES.values()])
def test_every_name_refers_to_code(path):
    assert callable(resolve_name(path))


def test_a_path_has_the_digest_of_its_name():
    named = replace(RECIPE, model="mlp", objective="elbo")
    by_path = replace(RECIPE, model=named.model_path, objective=named.objective_path)
    assert ":" in by_path.model
    assert by_path.digest == named.digest
    assert replace(named, model="lenet5").digest != named.digest


def test_a_moved_implementation_keeps_the_digest(monkeypatch):
    named = replace(RECIPE, model="mlp", objective="elbo")
    before = named.digest
    monkeypatch.setitem(ARCHITECTURES, "mlp", "elsewhere:Perceptron")
    monkeypatch.setitem(OBJECTIVES, "elbo", "elsewhere:Bound")
    assert named.digest == before


def test_prose_does_not_change_a_recipes_digest():
    assert replace(RECIPE, card={"summary": "x"}).digest == RECIPE.digest
    assert replace(RECIPE, epochs=5).digest != RECIPE.digest
    assert replace(RECIPE, flip=True).digest != RECIPE.digest
    assert replace(RECIPE, shift=1).digest != RECIPE.digest
    assert replace(RECIPE, precision="bfloat16").digest != RECIPE.digest


GOOD = """model = "m:f"
objective = "m:O"
dataset = "d"
first = 0
last = 10
epochs = 1
batch_size = 5
learning_rate = 1e-3
seed = 0
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 0", "", "key seed is missing"),
        ("seed = 0", "seed = 0\nepoch = 3", "unknown key epoch"),
        ("epochs = 1", "epochs = 0", "positive"),
        ("epochs = 1", "epochs = true", "epochs does not fit, got True"),
        ("batch_size = 5", "batch_size = 50", "inside that range"),
        ("seed = 0", "seed = ", "cannot be read"),
        ("seed = 0", 'seed = 0\nstorage = "float8"', "one of float16, float32"),
        ("seed = 0", 'seed = 0\nprecision = "float8"', "one of float32, bfloat16"),
        ("seed = 0", "seed = 0\nflip = 1", "flip does not fit, got 1"),
        ('"m:f"', '"lenet"', "did you mean lenet5"),
        ('"m:O"', '"hinge"', "known: adversarial"),
    ],
)
def test_a_wrong_recipe_raises_a_one_line_error(tmp_path, old, new, message):
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(BadCatalogue, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_valid_recipe_is_read(tmp_path):
    path = tmp_path / "toy" / "recipe.toml"
    path.parent.mkdir()
    path.write_text(GOOD)
    recipe = read_recipe(path)
    assert (recipe.name, recipe.learning_rate, recipe.held_out) == ("toy", 1e-3, ())


def test_recipes_are_found_by_name():
    assert find_recipe("mnist-cnn").name == "recipe.toml"
    assert find_recipe("cifar10-resnet26").is_file()
    assert find_recipe("ablation/mnist-gbz-variance-0.1").is_file()
    with pytest.raises(BadCatalogue, match="no recipe"):
        find_recipe("spheres-max-margin")
    with pytest.raises(UnknownName, match="mnist-cnn"):
        find_recipe("mnist-cnm")


if __name__ == "__main__":
    FILE.write_text(json.dumps(shipped_digests(), indent=2) + "\n")
