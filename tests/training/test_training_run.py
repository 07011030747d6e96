"""``invbench train`` from a recipe to a catalogue whose model can be evaluated, and its errors."""

import fcntl
import json
import os
import signal
import time
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustbench_inv.catalogue.models import load_model
from robustbench_inv.errors import (
    BadCatalogue,
    BadParameter,
    BadResults,
    ForeignCodeError,
    TimeLimitExceeded,
    UnknownName,
)
from robustbench_inv.foreign import time_limit
from robustbench_inv.training.loop import TrainingOptions
from robustbench_inv.training.recipe import read_recipe
from robustbench_inv.training.training_run import LOCK, toml_text, train_recipe, try_lock

RECIPE = """model = "guess-first-cnn"
objective = "cross-entropy"
dataset = "mnist5k"
first = 0
last = 400
epochs = 3
batch_size = 100
learning_rate = 1e-3
seed = 0
held_out = ["mnist5k"]

[card]
summary = "a test"
dataset = "mnist"
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mnist-tiny" / "recipe.toml"
    path.parent.mkdir()
    path.write_text(RECIPE)
    return path


def test_the_finished_folder_is_a_catalogue(recipe, tmp_path, monkeypatch):
    folder = train_recipe(recipe, tmp_path / "out")
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path / "out"))
    model = load_model("mnist-tiny")
    golden = load_file(folder / "golden.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(golden["images"]).logits, golden["logits"])
    assert model.card["training"]["epochs"] == 3
    assert 0 < model.card["training"]["accuracy_mnist5k"] <= 1


def test_the_text_of_a_card_is_read_as_it_was_given():
    """Nested settings of a network, such as those of the log-determinant of a flow, are inline tables."""
    flat = {"a b": [1, 2.5], "name": 'x "y"', "tables": [{"k": True}]}
    tables = {
        "parameters": {"log_determinant": {"terms": 2, "estimator": "roulette"}, "mnist:x=1": []}
    }
    assert tomllib.loads(toml_text(flat, tables)) == {**flat, **tables}


def test_a_network_of_your_own_is_copied_beside_its_card(recipe, tmp_path, monkeypatch):
    (recipe.parent / "net.py").write_text(
        "from robustbench_inv.models.plain_networks import GuessFirstCNN as Network\n"
    )
    recipe.write_text(RECIPE.replace("guess-first-cnn", "net.py:Network").replace("3", "1"))
    train_recipe(recipe, tmp_path / "out")
    recipe.parent.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path / "out"))
    assert load_model("mnist-tiny").card["implementation"] == "net.py:Network"


MISBEHAVING = """
import os, sys, time
import torch
from torch import nn

class Network(nn.Module):
    bounds, num_classes = (0.0, 1.0), 10
    def __init__(self, fault):
        super().__init__()
        self.layer, self.fault = nn.Linear(784, 10), fault
        if fault == "hangs when built":
            time.sleep(60)

    def forward(self, images):
        match self.fault:
            case "exits":
                sys.exit(0)
            case "hangs":
                time.sleep(60)
            case "ends the process":
                os._exit(0)
            case "changes the state":
                torch.set_grad_enabled(True)
                torch.set_default_dtype(torch.float64)
                os.chdir("/")
                os.environ["STRANGE"] = "1"
        return self.layer(images.flatten(1).float())
"""


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("exits", ForeignCodeError),
        ("ends the process", ForeignCodeError),
        ("hangs", TimeLimitExceeded),
        ("hangs when built", TimeLimitExceeded),
        ("changes the state", None),
    ],
)
def test_a_network_that_misbehaves_neither_ends_nor_changes_the_process(
    recipe, tmp_path, fault, error
):
    (recipe.parent / "net.py").write_text(MISBEHAVING)
    recipe.write_text(
        RECIPE.replace("guess-first-cnn", "net.py:Network").replace("= 3", "= 1")
        + f'\n[model_parameters]\nfault = "{fault}"\n'
    )
    before = Path.cwd(), dict(os.environ), torch.get_default_dtype()
    limit = 0.7 if "hangs" in fault else 20.0
    with time_limit(limit), pytest.raises(error) if error else nullcontext():
        train_recipe(recipe, tmp_path / "out")
    assert (Path.cwd(), dict(os.environ), torch.get_default_dtype()) == before
    with try_lock(tmp_path / "out") as free:
        assert free


def train_in_child(recipe, out, epochs):
    """Train in a process that is killed when an epoch is reported."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)

        def report(metrics):
            if metrics.epoch == epochs:
                os.kill(os.getpid(), signal.SIGKILL)

        train_recipe(recipe, out, options=TrainingOptions(report=report))
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_killed_and_resumed_gives_the_same_files(recipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_recipe(recipe, whole)
    assert train_in_child(recipe, parts, epochs=2) == signal.SIGKILL
    assert not (parts / "models").exists()
    train_recipe(recipe, parts)
    for name in ("weights.safetensors", "golden.safetensors", "card.toml"):
        place = f"models/mnist-tiny/{name}"
        assert (whole / place).read_bytes() == (parts / place).read_bytes(), name
    metrics = (parts / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in metrics] == [1, 2, 3]


def test_another_seed_gives_another_model_with_its_own_recipe(recipe, tmp_path):
    folder = train_recipe(recipe, tmp_path / "out", seed=5)
    assert folder.name == "mnist-tiny-seed5"
    card = tomllib.loads((folder / "card.toml").read_text())
    exported = read_recipe(folder / "recipe.toml")
    assert exported == read_recipe(recipe).with_seed(5)
    assert card["training"]["recipe"] == exported.digest
    assert card["training"]["seed"] == 5


def test_a_stage_before_the_last_exports_no_model(recipe, tmp_path):
    out = tmp_path / "out"
    assert train_recipe(recipe, out, options=TrainingOptions(until=1)) == out
    assert not (out / "models").exists()
    assert train_recipe(recipe, out) == out / "models" / "mnist-tiny"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("last = 400", "last = 5001", BadParameter),
        ("guess-first-cnn", "guess-last-cnn", BadCatalogue),
        ("cross-entropy", "robustbench_inv.training.objectives:Entropy", UnknownName),
        ('held_out = ["mnist5k"]', "", BadCatalogue),
        ("[card]", "[model_parameters]\nwidth = 3\n[card]", BadCatalogue),
    ],
)
def test_an_invalid_recipe_raises_a_one_line_error_before_training(
    recipe, tmp_path, old, new, error
):
    recipe.write_text(RECIPE.replace(old, new))
    with pytest.raises(error) as caught:
        train_recipe(recipe, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_an_unavailable_device_raises_a_one_line_error(recipe, tmp_path):
    with pytest.raises(BadParameter, match="unusable device"):
        train_recipe(recipe, tmp_path / "out", device="abacus")


def test_a_folder_in_which_another_process_trains_is_refused(recipe, tmp_path):
    with try_lock(tmp_path / "out") as acquired:
        assert acquired
        with pytest.raises(BadResults, match="another process is training"):
            train_recipe(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_a_file_instead_of_a_folder_is_refused(recipe, tmp_path):
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "inner"):
        with pytest.raises(BadResults, match="cannot write"):
            train_recipe(recipe, out)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "value"),
    [("epoch", "two"), ("epoch", -1), ("recipe", 3), ("other", 1)],
)
def test_a_checkpoint_with_an_odd_position_is_damaged(recipe, tmp_path, key, value):
    train_recipe(recipe, tmp_path / "out", options=TrainingOptions(until=1))
    path = tmp_path / "out" / "checkpoint.safetensors"
    tensors = load_file(path)
    position = {"recipe": read_recipe(recipe).digest, "epoch": 1, key: value}
    save_file(tensors, path, metadata={"position": json.dumps(position)})
    with pytest.raises(BadResults, match="damaged checkpoint"):
        train_recipe(recipe, tmp_path / "out")


def test_a_checkpoint_without_a_weight_is_damaged(recipe, tmp_path):
    train_recipe(recipe, tmp_path / "out", options=TrainingOptions(until=1))
    path = tmp_path / "out" / "checkpoint.safetensors"
    tensors = load_file(path)
    del tensors["model/features.conv1.weight"]
    position = {"recipe": read_recipe(recipe).digest, "epoch": 1}
    save_file(tensors, path, metadata={"position": json.dumps(position)})
    with pytest.raises(BadResults, match="damaged checkpoint") as caught:
        train_recipe(recipe, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_lock_waits_for_readers_of_the_state_and_not_for_a_training(tmp_path, monkeypatch):
    with try_lock(tmp_path):
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited for a training"))
        with try_lock(tmp_path) as acquired:
            assert not acquired
    with (tmp_path / LOCK).open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(reader, fcntl.LOCK_UN))
        with try_lock(tmp_path) as acquired:
            assert acquired
