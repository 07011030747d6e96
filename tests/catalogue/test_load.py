"""Loading by name: attacks of every origin, models, threats and goals, and their error messages."""

import pytest
import torch
from torch import nn

from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.catalogue.threats import load_goal, load_threat
from robustbench_inv.errors import (
    BadCatalogue,
    BadModel,
    BadParameter,
    InvbenchError,
    UnknownName,
)
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import KeepDecision, Misclassify, MisclassifyAccepted, Target

OWN_ATTACK = '''
"""Shows the clean image."""
from dataclasses import dataclass
from typing import ClassVar
@dataclass(frozen=True)
class Still:
    size: float = 0.5
    kind: ClassVar[str] = "invariance"
    norms: ClassVar[frozenset] = frozenset({"l2"})
    def run(self, model, batch, threat, noise):
        return batch.images
@dataclass
class Melting(Still.__mro__[1]):
    size: float = 0.5
class NoAttack:
    pass
instance = Still(0.25)
'''


@pytest.fixture
def own_attack(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN_ATTACK)
    return file


def test_parameters_override_those_of_the_preset():
    loaded = load_attack("pgd:steps=7,loss=ce", restarts=2)
    assert (loaded.attack.steps, loaded.attack.loss, loaded.attack.restarts) == (7, "ce", 2)
    assert loaded.name == "pgd:steps=7,loss=ce,restarts=2"
    assert loaded.card["parameters"]["steps"] == 7
    assert isinstance(loaded.goal, Misclassify)


def test_whole_numbers_are_valid_floats():
    attack = load_attack("pgd:rel_step=1").attack
    assert attack.rel_step == 1.0
    assert isinstance(attack.rel_step, float)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("pgd:stps=20", "unknown parameter stps, expected one of steps, .*did you mean steps"),
        ("pgd:steps=many", "steps does not fit, got 'many', expected a whole number"),
        ("pgd:steps=2.5", "steps does not fit"),
        ("pgd:random_start=1", "random_start does not fit, got 1, expected true or false"),
        ("pgd:steps=0", "unusable steps"),
    ],
)
def test_a_wrong_parameter_is_named_with_those_that_exist(source, says):
    with pytest.raises(BadParameter, match=says):
        load_attack(source)


def test_loads_a_users_attack_from_a_file(own_attack):
    loaded = load_attack(f"{own_attack}:Still:size=1")
    assert loaded.attack.size == 1.0
    assert loaded.goal == KeepDecision()
    assert load_attack(f"{own_attack}:instance").attack.size == 0.25
    assert load_attack(loaded.attack, size=0.5).attack.size == 0.5


@pytest.mark.parametrize("name", ["Melting", "NoAttack"])
def test_an_attack_must_be_a_frozen_dataclass(own_attack, name):
    with pytest.raises(BadCatalogue, match="frozen dataclass"):
        load_attack(f"{own_attack}:{name}")


def test_a_preset_finds_a_file_beside_it(own_attack, monkeypatch):
    presets = own_attack.parent / "attacks" / "presets"
    presets.mkdir(parents=True)
    own_attack.rename(presets / "own.py")
    (presets / "still.toml").write_text(
        'summary = "s"\nimplementation = "own.py:Still"\nkind = "invariance"\nnorms = ["l2"]\n'
    )
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(own_attack.parent))
    assert load_attack("still:size=2").attack.size == 2.0


@pytest.mark.parametrize(
    ("text", "budget", "sweep"),
    [
        ("linf=0.1", LpBall("linf", 0.1), ()),
        ("linf=0.05,0.1,0.2", LpBall("linf", 0.2), (0.05, 0.1, 0.2)),
        ("linf=0,8/256", LpBall("linf", 0.03125), (0.0, 0.03125)),
        ("l2=2.0", LpBall("l2", 2.0), ()),
        ("none", Unbounded("l2"), ()),
        ("none:norm=linf", Unbounded("linf"), ()),
    ],
)
def test_reads_threats(text, budget, sweep):
    threat = load_threat(text)
    assert (threat.budget, threat.sweep, threat.goal) == (budget, sweep, Misclassify())
    assert load_threat(threat) is threat


@pytest.mark.parametrize(
    ("text", "access", "substitute"),
    [
        ("linf=0.1:substitute=mnist-lenet5", "transfer", "mnist-lenet5"),
        ("linf=0.1,0.2 : guide=x", "score", "x"),
        ("mnist-linf:substitute=mine.py:build:width=3", "transfer", "mine.py:build:width=3"),
        ("none:norm=linf:substitute=a:guide=b", "transfer", "a:guide=b"),
        ("none:guide=a:substitute=1", "score", "a:substitute=1"),
    ],
)
def test_reads_substitutes(text, access, substitute):
    threat = load_threat(text)
    assert (threat.access, threat.substitute) == (access, substitute)


def test_a_card_may_name_a_substitute_and_a_text_another(tmp_path, monkeypatch):
    (tmp_path / "attacks" / "threats").mkdir(parents=True)
    card = 'summary = "s"\nnorm = "linf"\nepsilons = [0.1]\naccess = "transfer"\n'
    (tmp_path / "attacks" / "threats" / "mine.toml").write_text(card + 'substitute = "a"\n')
    (tmp_path / "attacks" / "threats" / "open.toml").write_text(card)
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path))
    assert load_threat("mine").substitute == "a"
    assert load_threat("mine:substitute=b").substitute == "b"
    assert load_threat("mine:guide=b").access == "score"
    assert load_threat("open:substitute=b").is_transfer
    with pytest.raises(BadParameter, match="needs a substitute"):
        load_threat("open")


def test_a_threat_takes_the_goal_of_its_attack_unless_it_has_its_own(tmp_path, monkeypatch):
    (tmp_path / "attacks" / "threats").mkdir(parents=True)
    (tmp_path / "attacks" / "threats" / "mine.toml").write_text(
        'summary = "s"\nnorm = "linf"\nepsilons = [0.1]\ngoal = "misclassify-accepted"\naccess = "score"\n'
    )
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path))
    assert load_threat("none", KeepDecision()).goal == KeepDecision()
    mine = load_threat("mine", KeepDecision())
    assert (mine.goal, mine.access) == (MisclassifyAccepted(), "score")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("linf=0.2,0.1", "ascending"),
        ("linf=0.1,0.1", "ascending"),
        ("linf=-0.1", "got '-0.1', expected a finite number >= 0"),
        ("linf=inf", "got 'inf'"),
        ("linf=8/0", "got '8/0'"),
        ("linf=", "got ''"),
        ("l3=0.1", "unknown norm, got 'l3', expected one of l0, l1, l2, linf"),
        ("none:norm=l3", "unknown norm"),
        ("none:eps=1", "unknown parameter"),
        ("mnist-lnf", "did you mean mnist-linf"),
        ("mnist-lnf:guide=a", "did you mean mnist-linf"),
        ("linf=0.1:substitute=", "names no model, expected substitute=MODEL"),
    ],
)
def test_a_wrong_threat_is_explained(text, says):
    with pytest.raises(InvbenchError, match=says) as caught:
        load_threat(text)
    assert caught.value.exit_code == 2


def test_reads_goals():
    assert load_goal("misclassify-same-class").same_class
    assert load_goal("target:label=3") == Target(3)
    nearest = load_goal("target-accepted:offset=2,confidence=500")
    assert nearest == Target(offset=2, confidence=500.0, accepted=True, name="target-accepted")
    assert load_goal("keep-logits:tolerance=0.5").tolerance == 0.5
    with pytest.raises(UnknownName, match="did you mean misclassify"):
        load_goal("misclasify")
    with pytest.raises(BadParameter, match="label=K or offset=J"):
        load_goal("target")


def test_wraps_a_users_network():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    network.bounds = (0, 1)
    loaded = load_model(network, dtype="float64")
    assert loaded.classifier.dtype == torch.float64
    assert loaded.classifier(torch.zeros(3, 4, dtype=torch.float64)).logits.shape == (3, 2)
    assert (loaded.classifier.num_classes, loaded.classifier.bounds) == (2, (0.0, 1.0))


@pytest.mark.parametrize(
    ("code", "source", "error", "says"),
    [
        ("def build(): return nn.Linear(2, 2)", "build", BadModel, "has no valid bounds"),
        ("def build(): return 3", "build", BadModel, "not a model"),
        ("def build(): raise OSError('gone')", "build", BadParameter, "raised OSError: gone"),
        ("def build(width): return 3", "build", BadParameter, "width is missing.*:width=VALUE"),
        ("def build(width=1): return 3", "build:widht=3", BadParameter, "did you mean width"),
        ("build = 3", "build", BadModel, "not a model"),
        ("def build(): pass", "bild", UnknownName, "did you mean build"),
    ],
)
def test_errors_of_a_users_model_are_one_line(tmp_path, code, source, error, says):
    (tmp_path / "mine.py").write_text("from torch import nn\n" + code + "\n")
    with pytest.raises(error, match=says) as caught:
        load_model(f"{tmp_path / 'mine.py'}:{source}")
    assert "\n" not in str(caught.value)


def test_a_missing_device_is_explained():
    network = nn.Linear(2, 2)
    network.bounds = (0, 1)
    with pytest.raises(BadParameter, match="unusable device"):
        load_model(network, device="mps:7")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("num_classes = 12\nbounds = [0, 1]", r"in num_classes, got 12, expected 10"),
        (
            "num_classes = 10\nbounds = [0, 2]",
            r"in bounds, got \(0.0, 2.0\), expected \(0.0, 1.0\)",
        ),
    ],
)
def test_a_card_that_contradicts_its_network_is_refused(tmp_path, monkeypatch, line, says):
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(
        f'summary = "s"\npaper = "p"\ndataset = "mnist5k"\nimplementation = "mine_net:Net"\n{line}\n'
    )
    (tmp_path / "mine_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    bounds, num_classes = (0.0, 1.0), 10\n"
        "    def forward(self, images):\n"
        "        return images.flatten(1)[:, :10]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path))
    monkeypatch.setenv("INVBENCH_TRUST", "mine_net")
    with pytest.raises(BadCatalogue, match=f"the card of mine contradicts its network {says}"):
        load_model("mine")
