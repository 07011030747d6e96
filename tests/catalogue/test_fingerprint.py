"""Digests of attacks and models: changed by what changes results, and by nothing else."""

import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.fingerprint import describe, plain
from robustbench_inv.catalogue.models import load_model


@dataclass(frozen=True)
class Still:
    """An attack that shows the clean image."""

    steps: int = 3
    size: float = 0.5
    kind: ClassVar[str] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model, batch, threat, rng):
        return batch.images


def network(seed=0, slope=0.1):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LeakyReLU(slope), nn.Linear(3, 2))
    model.bounds = (0.0, 1.0)
    return model


def test_the_digest_of_an_attack():
    same = [load_attack("pgd"), load_attack("pgd:steps=40")]
    assert load_attack("pgd").attack.steps == 40
    assert same[0].digest == same[1].digest
    others = [load_attack("pgd:steps=41"), load_attack("fgsm"), load_attack(Still())]
    assert len({each.digest for each in [*same, *others]}) == 4


def test_a_goal_changes_the_digest(tmp_path, monkeypatch):
    text = 'summary="s"\nimplementation="robustbench_inv.attacks.pgd:PGD"\nkind="fixed-budget"\nnorms=["linf"]\n'
    presets = tmp_path / "attacks" / "presets"
    presets.mkdir(parents=True)
    (presets / "one.toml").write_text(text)
    (presets / "two.toml").write_text(text + 'goal = "misclassify-accepted"\n')
    (presets / "three.toml").write_text(text + 'goal = "target:label=3"\n')
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path))
    loaded = [load_attack(name) for name in ("one", "two", "three")]
    assert len({each.digest for each in loaded}) == 3
    assert loaded[0].digest == load_attack("robustbench_inv.attacks.pgd:PGD").digest
    assert loaded[2].goal.label == 3


CARD = """
summary = "a network"
dataset = "mnist"
implementation = "torch.nn:Linear"
num_classes = 2
bounds = [0, 1]
[parameters]
in_features = 3
out_features = 2
"""


def card_digest(tmp_path, text, name="mine"):
    (tmp_path / "models" / "mine").mkdir(parents=True, exist_ok=True)
    (tmp_path / "models" / "mine" / "card.toml").write_text(text)
    torch.manual_seed(0)  # the card names no weights
    return load_model(name).digest


def test_the_digest_of_a_published_model_ignores_prose(tmp_path, monkeypatch):
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path))
    monkeypatch.setenv("INVBENCH_TRUST", "torch")
    monkeypatch.setattr(nn.Linear, "bounds", (0.0, 1.0), raising=False)
    digest = card_digest(tmp_path, CARD)
    assert card_digest(tmp_path, 'paper = "new"\n' + CARD.replace("a network", "other")) == digest
    assert card_digest(tmp_path, CARD + "[training]\nepochs = 3\n") == digest
    other = card_digest(tmp_path, CARD + "bias = false\n")
    assert other == card_digest(tmp_path, CARD, "mine:bias=false") != digest


def test_a_model_that_is_built_for_its_data_counts_them():
    digests = {
        load_model("spheres-max-margin", dataset=f"spheres:d=50,size=20,seed={seed}").digest
        for seed in (0, 0, 1)
    }
    assert len(digests) == 2


def test_the_digest_of_a_users_model():
    digest = load_model(network()).digest
    assert load_model(network()).digest == digest
    assert load_model(network(seed=1)).digest != digest
    assert load_model(network(slope=0.2)).digest != digest
    assert load_model(network().train()).digest == digest
    assert load_model(network(), dtype="float64").digest != digest


def test_a_users_file_counts_by_its_content_wherever_it_lies(tmp_path):
    code = "from torch import nn\ndef build(width: int = 3):\n    m = nn.Linear(width, 2)\n    nn.init.ones_(m.weight); nn.init.zeros_(m.bias)\n    m.bounds = (0, 1)\n    return m\n"
    files = [tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py", tmp_path / "c" / "mine.py"]
    for file in files:
        file.parent.mkdir()
        file.write_text(code)
    files[2].write_text(code + "# another version\n")
    a, b, c = (load_model(f"{file}:build:width=4") for file in files)
    assert a.digest == b.digest != c.digest
    assert a.digest != load_model(f"{files[0]}:build").digest
    assert str(tmp_path) not in str({**a.card, "name": ""})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_tensors_count_by_type_shape_and_bytes(dtype):
    tensor = torch.tensor([[1, 0], [1, 1]]).to(dtype)
    assert plain(tensor) == plain(tensor.T.contiguous().T)
    assert plain(tensor) != plain(tensor.T)
    assert plain(tensor) != plain(tensor.reshape(4))
    assert plain(torch.empty(0)) == plain(torch.empty(0))


def test_recursive_objects():
    class Node:
        pass

    node = Node()
    node.me = node
    assert describe(node)["me"] == "…"
    assert plain({"f": sys.intern, "b": b"x"})["f"] == "sys:intern"
