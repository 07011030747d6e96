"""Every model of the catalogue: its card loads, its weights are the card's, its golden logits come out."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import robustbench_inv as rbi
from robustbench_inv.catalogue.locate import catalogue_roots
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.training.recipe import read_recipe

FOLDERS = sorted(path.parent for path in (catalogue_roots()[0] / "models").glob("*/card.toml"))
TRAINED = [folder for folder in FOLDERS if (folder / "weights.safetensors").exists()]


def named(folder: Path) -> str:
    return folder.name


def test_the_zoo_has_the_models_of_the_first_release():
    assert {"mnist-cnn", "mnist-c-dv", "mnist-vib", "spheres-max-margin", "spheres-misaligned"} <= {
        folder.name for folder in FOLDERS
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_card_gives_a_classifier(folder):
    dataset = rbi.load_dataset("spheres:d=200,n=3,size=4") if "spheres" in folder.name else None
    loaded = rbi.load_model(folder.name, dataset=dataset)
    assert isinstance(loaded.classifier, Classifier)
    assert len(loaded.digest) == 64


@pytest.mark.parametrize("folder", TRAINED, ids=named)
def test_golden_logits(folder):
    golden = load_file(folder / "golden.safetensors")
    module = rbi.load_model(folder.name).classifier.module
    with torch.no_grad():
        logits = module(golden["images"])
    torch.testing.assert_close(logits, golden["logits"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("folder", TRAINED, ids=named)
def test_recipe_is_the_one_trained(folder):
    card = rbi.load_model(folder.name).card
    assert card["training"]["recipe"] == read_recipe(folder / "recipe.toml").digest
    assert read_recipe(folder / "recipe.toml").first == 6_000


@pytest.mark.parametrize("folder", TRAINED, ids=named)
def test_clean_accuracy_on_mnist5k(folder):
    module, dataset = rbi.load_model(folder.name).classifier.module, rbi.load_dataset("mnist5k")
    correct = 0
    with torch.no_grad():
        for ids in torch.arange(0, 5000).split(500):
            images, labels = dataset.batch(ids)
            correct += int((module(images).argmax(1) == labels).sum())
    assert correct / 5000 == pytest.approx(
        rbi.load_model(folder.name).card["training"]["accuracy_mnist5k"]
    )
    assert correct / 5000 >= 0.985


@pytest.mark.parametrize("folder", TRAINED, ids=named)
def test_clean_accuracy_on_the_test_set(folder):
    if not os.environ.get("INVBENCH_DATA"):
        pytest.skip("INVBENCH_DATA names no folder with the MNIST test set")
    from robustbench_inv.training.run import clean_accuracy

    accuracy = clean_accuracy(
        rbi.load_model(folder.name).classifier.module, rbi.load_dataset("mnist")
    )
    assert accuracy == pytest.approx(rbi.load_model(folder.name).card["training"]["accuracy_mnist"])
    assert accuracy >= 0.985
