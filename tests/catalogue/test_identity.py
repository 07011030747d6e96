"""Identities: frozen for every shipped entry, deaf to names of classes and places of files, changed by behaviour.

``python tests/catalogue/test_identity.py`` writes identities.json anew.
"""

import importlib
import json
import os
import random
import subprocess
import sys
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, make_dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MethodType
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_inv.attacks import pgd
from robustbench_inv.attacks import pgd as fgsm
from robustbench_inv.attacks.ensemble import Ensemble, SquareThenAPGD
from robustbench_inv.catalogue import attacks as loaded_attack
from robustbench_inv.catalogue import code_identity
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.datasets import identify_dataset, load_dataset
from robustbench_inv.catalogue.fingerprint import content, plain
from robustbench_inv.catalogue.locate import entries, shipped_root
from robustbench_inv.catalogue.models import THRESHOLDS_FILE, calibration_digest, load_model
from robustbench_inv.catalogue.threats import load_threat
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.evaluation.oracles import load_oracle
from robustbench_inv.identity import IDENTITY_VERSION, digest_value
from robustbench_inv.models import plain_networks as cnn
from robustbench_inv.models import spheres
from robustbench_inv.models import wrapping as module
from robustbench_inv.threat import budgets, goals
from robustbench_inv.threat.threat_model import ThreatModel, describe_threat, digest_threat


def threat_digest(threat):
    return digest_threat(describe_threat(threat, content))


FILE = Path(__file__).with_name("identities.json")

REMEDY = """{kind} {name} is another than the one that results are filed under.
- Does it behave otherwise? Raise `revision` in its card (no card: IDENTITY_VERSION), then freeze it again.
- Is it the same under another name of a field? Then its digest must be the old one; freeze its parameters again.
  python tests/catalogue/test_identity.py"""

DATASETS = ("mnist5k", "mnist-planted", "spheres")
"""Those that need no download."""


def shipped(kind):
    return [name for name, path in entries(kind).items() if path.is_relative_to(shipped_root())]


def frozen_attack(name):
    loaded = load_attack(name)
    return {"digest": loaded.digest, "parameters": loaded_attack._values(loaded.attack)}


def frozen_model(name):
    loaded = load_model(name)
    about = {"digest": loaded.digest, "identity": dict(loaded.identity)}
    if not (entries("models")[name].parent / THRESHOLDS_FILE).is_file():
        return about
    rejecting = load_model(f"{name}:reject=likelihood,percentile=1")
    return {**about, "fitted": calibration_digest(loaded), "rejecting": rejecting.digest}


def frozen_oracle(name):
    return load_oracle(name, load_dataset("mnist5k"), (), load_model).digest


KINDS = {
    "attacks": (partial(shipped, "attacks"), frozen_attack),
    "models": (partial(shipped, "models"), frozen_model),
    "threats": (partial(shipped, "threats"), lambda name: threat_digest(load_threat(name))),
    "oracles": (partial(shipped, "oracles"), frozen_oracle),
    "datasets": (lambda: DATASETS, lambda name: load_dataset(name).digest),
}


def current():
    return {kind: {name: look(name) for name in names()} for kind, (names, look) in KINDS.items()}


def frozen():
    return json.loads(FILE.read_text())


def test_the_frozen_identities_are_of_this_version_and_of_all_entries():
    known = frozen()
    assert known.pop("version") == IDENTITY_VERSION
    assert {kind: set(known[kind]) for kind in KINDS} == {
        kind: set(names()) for kind, (names, _) in KINDS.items()
    }


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (names, _) in KINDS.items() for name in names()]
)
def test_the_identity_of_a_shipped_entry_is_frozen(kind, name):
    expected, found = frozen()[kind].get(name), json.loads(json.dumps(KINDS[kind][1](name)))
    assert found == expected, REMEDY.format(kind=kind.removesuffix("s"), name=name)


def test_a_shipped_model_without_weights_has_none():
    for name in shipped("models"):
        loaded = load_model(name)
        assert loaded.identity["weights"] or not isinstance(loaded.classifier, nn.Module)


@pytest.fixture
def rename():
    """Return a function that renames a class until the test ends."""
    names, before = ("__name__", "__qualname__", "__module__"), {}

    def renamed(kind):
        before[kind] = [getattr(kind, name) for name in names]
        kind.__name__, kind.__qualname__ = f"New{kind.__name__}", f"New{kind.__qualname__}"
        kind.__module__ = "robustbench_inv.elsewhere"

    yield renamed
    for kind, values in before.items():
        for name, value in zip(names, values, strict=True):
            setattr(kind, name, value)


@pytest.fixture
def presets_anew():
    """Let the shipped presets be read again, before the test and after it."""
    loaded_attack._shipped.cache_clear()
    yield
    loaded_attack._shipped.cache_clear()


@pytest.mark.usefixtures("presets_anew")
def test_names_of_our_classes_are_in_no_digest(rename):
    attacks = {type(load_attack(name).attack) for name in shipped("attacks")}
    threats = {budgets.LpBall, budgets.Unbounded, budgets.OnSphere}
    aims = {goals.Misclassify, goals.MisclassifyAccepted, goals.Accept, goals.Target}
    aims |= {goals.KeepDecision, goals.KeepLogits}
    networks = {cnn.GuessFirstCNN, module.ModuleClassifier, spheres.NormThresholdClassifier}
    others = [goals.Target(offset=2), goals.KeepLogits(0.1)]
    before = [threat_digest(ThreatModel(budgets.OnSphere(1.0), goal)) for goal in others]
    for kind in attacks | threats | aims | networks:
        rename(kind)
    known = frozen()
    for name in known["attacks"]:
        assert load_attack(name).digest == known["attacks"][name]["digest"]
    for name in known["threats"]:
        assert threat_digest(load_threat(name)) == known["threats"][name]
    for name in ("mnist-cnn", "spheres-max-margin"):
        assert load_model(name).digest == known["models"][name]["digest"]
    assert before == [threat_digest(ThreatModel(budgets.OnSphere(1.0), goal)) for goal in others]


@pytest.mark.usefixtures("presets_anew")
def test_a_field_that_no_card_names_may_be_renamed(monkeypatch):
    fields = [("iterations", int, 1)]
    own = {key: getattr(fgsm.FGSM, key) for key in ("kind", "norms", "run")}
    body = {**own, "__module__": fgsm.__name__}
    monkeypatch.setattr(
        fgsm, "FGSM", make_dataclass("FastStep", fields, namespace=body, frozen=True)
    )
    assert load_attack("fgsm").digest == frozen()["attacks"]["fgsm"]["digest"]
    assert load_attack("fgsm:iterations=2").digest != frozen()["attacks"]["fgsm"]["digest"]


def test_equal_attacks_are_equal_however_they_are_named():
    digests = frozen()["attacks"]
    same = [pgd.PGD(), "pgd", "pgd:steps=40", "robustbench_inv.attacks.pgd:PGD"]
    assert {load_attack(each).digest for each in same} == {digests["pgd"]["digest"]}
    targeted = load_attack("apgd:loss=dlr,target_classes=9").digest
    assert targeted == digests["apgd-targeted"]["digest"]
    assert load_attack(load_attack("standard").attack).digest == digests["standard"]["digest"]
    built = [
        Ensemble((pgd.PGD(), SquareThenAPGD(long_queries=many))) for many in (5000, 5000, 6000)
    ]
    assert len({load_attack(each).digest for each in built}) == 2


def test_attacks_of_libraries_are_their_names_and_parameters():
    before = load_attack("foolbox:LinfPGD:steps=3")
    identity = loaded_attack._identity(before.attack)
    assert identity == {
        "attack": "foolbox:LinfPGD",
        "revision": 1,
        "parameters": [["steps", 3]],
    }
    assert before.digest != load_attack("foolbox:LinfPGD:steps=4").digest


def test_a_revision_makes_another_entry(monkeypatch):
    presets = loaded_attack._shipped()
    revised = [loaded_attack.dataclasses.replace(each.card, revision=9) for each in presets]
    new = tuple(
        loaded_attack._Preset(card, each.attack)
        for card, each in zip(revised, presets, strict=True)
    )
    monkeypatch.setattr(loaded_attack, "_shipped", lambda: new)
    assert load_attack("pgd").digest != frozen()["attacks"]["pgd"]["digest"]


class Net(nn.Module):
    """A user's network with a bit of everything."""

    bounds = (0.0, 1.0)
    num_classes = 2

    def __init__(self, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self._scale = scale
        self.tables = [{"rows": torch.ones(2)}]
        self.counts = defaultdict(lambda: 1.0)
        self.masked = np.ma.array([1.0, 2.0], mask=[False, False])
        self.random = random.Random(3)
        self.order = {"a": 1, "b": 2}

    def forward(self, images):
        return self.layer(images - self.mean) * self._scale


def enclosing(factor):
    return lambda _module, _inputs, output: output * factor


def hooked(factor, kind="forward_hook"):
    net = Net()
    getattr(net.layer, f"register_{kind}")(enclosing(factor))
    return net


def typed_in(body, name="__main__"):
    space = {"nn": nn, "torch": torch, "__name__": name, "FACTOR": 1.0}
    text = f"class Typed(nn.Module):\n    bounds, num_classes = (0.0, 1.0), 2\n    def forward(self, x):\n        {body}\n"
    exec(text, space)
    return space["Typed"]


def changed(change):
    net = Net()
    change(net)
    return net


CHANGES = {
    "a buffer that is not saved": lambda net: net.mean.add_(1),
    "a private attribute": lambda net: setattr(net, "_scale", 2.0),
    "a tensor in a container": lambda net: net.tables[0]["rows"].add_(1),
    "a new tensor in an attribute": lambda net: setattr(net, "_shift", torch.ones(2)),
    "a weight": lambda net: net.layer.weight.data.add_(1),
    "a hook": lambda net: net.layer.register_forward_hook(enclosing(2.0)),
    "a hook before": lambda net: net.register_forward_pre_hook(lambda _m, x: (x[0] / 2,)),
    "a hook on gradients": lambda net: net.register_full_backward_hook(lambda *_: None),
    "a forward of its own": lambda net: setattr(net, "forward", MethodType(Net.__call__, net)),
    "a part that is replaced": lambda net: setattr(net, "layer", nn.Identity()),
    "the default of a dictionary": lambda net: setattr(net.counts, "default_factory", lambda: 2.0),
    "a masked element": lambda net: net.masked.mask.__setitem__(0, True),
    "a state of random numbers": lambda net: net.random.random(),
    "an order of keys": lambda net: setattr(net, "order", {"b": 2, "a": 1}),
    "a partial": lambda net: setattr(net, "act", partial(torch.clamp, min=0)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_a_network_change_its_identity(change):
    assert load_model(Net()).digest == load_model(Net()).digest
    assert load_model(Net()).digest != load_model(changed(change)).digest
    assert load_model(changed(change)).digest == load_model(changed(change)).digest


def test_the_order_of_layers_counts():
    def stacked(*names):
        layers = {"act": nn.ReLU(), "shift": nn.Threshold(0.1, 20.0)}
        net = nn.Sequential(OrderedDict((name, layers[name]) for name in names))
        net.bounds, net.num_classes = (0.0, 1.0), 2
        return load_model(net).digest

    assert stacked("act", "shift") == stacked("act", "shift") != stacked("shift", "act")


def test_hooks_of_all_modules_count():
    before = load_model(Net()).digest
    handle = nn.modules.module.register_module_forward_hook(enclosing(2.0))
    during = load_model(Net()).digest
    handle.remove()
    assert load_model(Net()).digest == before != during


def test_values_of_other_modules_count_where_a_function_names_them(tmp_path, monkeypatch):
    (tmp_path / "settings_of_mine.py").write_text(
        "FACTOR = 1.0\nclass K:\n    slope = 1.0\ndef f(x):\n    return x * FACTOR\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    other = importlib.import_module("settings_of_mine")
    bodies = {
        "return x[:, :2] * settings_of_mine.FACTOR": partial(setattr, other, "FACTOR"),
        "return x[:, :2] * settings_of_mine.K.slope": lambda value: setattr(
            other.K, "slope", value
        ),
        "return settings_of_mine.f(x[:, :2])": partial(setattr, other, "FACTOR"),
        "import settings_of_mine as s; return x[:, :2] * s.FACTOR": partial(
            setattr, other, "FACTOR"
        ),
        "return torch.relu(x[:, :2])": partial(monkeypatch.setattr, torch, "relu"),
    }
    for body, assign in bodies.items():
        kind = typed_in(body)
        kind.forward.__globals__["settings_of_mine"] = other
        before = load_model(kind()).digest
        assign(enclosing(2.0))
        assert load_model(kind()).digest != before, body
        importlib.reload(other)
    monkeypatch.delitem(sys.modules, "settings_of_mine")


def test_enclosed_values_of_hooks_count():
    for kind in ("forward_hook", "full_backward_hook"):
        digests = [load_model(hooked(factor, kind)).digest for factor in (1.0, 1.0, 2.0)]
        assert digests[0] == digests[1] != digests[2]


def test_patched_methods_count_on_any_class(monkeypatch):
    before = load_model(Net()).digest
    with monkeypatch.context() as patch:
        patch.setattr(Net, "forward", lambda self, images: self.layer(images))
        assert load_model(Net()).digest != before
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", lambda self, images: images @ self.weight.T)
        assert load_model(Net()).digest != before
    with monkeypatch.context() as patch:
        patch.setattr(Net, "helper", staticmethod(enclosing(3.0)), raising=False)
        assert load_model(Net()).digest != before
    assert load_model(Net()).digest == before


@pytest.mark.parametrize("name", ["__main__", __name__, "no.such.module"])
def test_a_class_that_was_typed_in_is_its_code(name):
    kinds = [typed_in(body, name) for body in ("return x[:, :2]", "return x[:, :2]  # same", "return 2 * x[:, :2]")]  # fmt: skip
    digests = [load_model(kind()).digest for kind in kinds]
    assert digests[0] == digests[1] != digests[2]


def test_global_values_count_where_a_function_looks_them_up():
    kinds = [typed_in("return x[:, :2] * FACTOR") for _ in range(3)]
    kinds[2].forward.__globals__["FACTOR"] = 2.0
    digests = [load_model(kind()).digest for kind in kinds]
    assert digests[0] == digests[1] != digests[2]
    calls = [typed_in("return helper(x)") for _ in range(3)]
    for kind, slope in zip(calls, (1.0, 1.0, 2.0), strict=True):
        kind.forward.__globals__["helper"] = enclosing(slope)
    digests = [load_model(kind()).digest for kind in calls]
    assert digests[0] == digests[1] != digests[2]


def test_kept_values_and_devices_do_not_count():
    class Lazy:
        @cached_property
        def twice(self):
            return 2

    lazy = Lazy()
    assert lazy.twice == 2
    assert content(lazy) == content(Lazy())
    net, other = Net(), Net()
    net.device = torch.device("cpu")
    other.device = torch.device("meta")
    assert load_model(net).digest == load_model(other.train()).digest


def test_traced_networks_are_their_code_and_tensors():
    def traced(net):
        found = torch.fx.symbolic_trace(net)
        found.bounds, found.num_classes = (0.0, 1.0), 2
        return load_model(found).digest

    assert traced(Net()) == traced(Net()) != traced(Net(2.0))
    assert traced(Net()) != traced(changed(CHANGES["a weight"]))


FILES = {
    "mine.py": "import helper\nfrom torch import nn\nfrom pack.deep import SLOPE\n\n\nclass Net(nn.Module):\n"
    "    bounds, num_classes = (0.0, 1.0), 2\n\n    def forward(self, x):\n        return helper.f(x) * SLOPE\n\n\n"
    "def build(width: int = 2):\n    return Net()\n",
    "helper.py": "def f(x):\n    return x[:, :2]\n",
    "pack/__init__.py": "",
    "pack/deep.py": "from .deeper import SLOPE\n",
    "pack/deeper.py": "SLOPE = 2.0\n",
}

ATTACK = """
from dataclasses import dataclass
from typing import ClassVar
from pack.deep import SLOPE
@dataclass(frozen=True)
class Still:
    kind: ClassVar[str] = "fixed-budget"
    norms: ClassVar[frozenset] = frozenset({"linf"})
    def run(self, model, batch, threat, noise):
        return batch.images
"""

CODE = """
import sys
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.models import load_model
print(load_model(sys.argv[1] + "/mine.py:build").digest, load_attack(sys.argv[1] + "/still.py:Still").digest)
"""


def written(folder, **files):
    for name, text in {**FILES, "still.py": ATTACK, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def digests_of(folder, monkeypatch):
    """Return the digests of a model and an attack from files, whose helpers are imported for the first time."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        found = [load_model(f"{folder}/mine.py:build"), load_attack(f"{folder}/still.py:Still")]
    for name in ("helper", "pack", "pack.deep", "pack.deeper"):
        del sys.modules[name]
    return [each.digest for each in found]


def test_code_is_its_files_and_what_they_import_wherever_they_lie(tmp_path, monkeypatch):
    model, attack = digests_of(written(tmp_path / "a"), monkeypatch)
    assert digests_of(written(tmp_path / "b"), monkeypatch) == [model, attack]
    faster = {"helper.py": "def f(x):\n    return 2 * x[:, :2]\n"}
    helped = digests_of(written(tmp_path / "c", **faster), monkeypatch)
    assert (helped[0] != model, helped[1] == attack) == (True, True)
    deeper = {"pack/deeper.py": "SLOPE = 3.0\n"}
    deep = digests_of(written(tmp_path / "d", **deeper), monkeypatch)
    assert (deep[0] != model, deep[1] != attack) == (True, True)


def test_installed_code_is_its_version_but_for_plugins(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "lent.py").write_text("class Thing:\n    def f(self):\n        return 1\n")
    monkeypatch.syspath_prepend(folder)
    lent = importlib.import_module("lent")
    assert content(lent.Thing) == "lent:Thing"
    monkeypatch.setattr(lent, "__version__", "2.0", raising=False)
    code_identity.library_version.cache_clear()
    assert content(lent.Thing) == "lent:Thing 2.0"
    monkeypatch.setattr(code_identity, "_plugins", lambda: frozenset({"lent"}))
    assert code_identity.read_files("lent")[0][0] == "lent"
    assert "lent" not in content(lent.Thing)
    monkeypatch.delitem(sys.modules, "lent")


def test_other_processes_agree(tmp_path, monkeypatch):
    folder, package = written(tmp_path), str(Path(loaded_attack.__file__).parents[2])
    paths = {"PYTHONPATH": os.pathsep.join([package, str(folder)]), "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == digests_of(folder, monkeypatch)


def test_a_module_stays_what_it_was_when_its_file_is_edited(tmp_path, monkeypatch):
    (tmp_path / "edited_later.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    imported = importlib.import_module("edited_later")
    before = content(imported.f), content(imported)
    (tmp_path / "edited_later.py").write_text("def f(x):\n    return 2 * x\n")
    assert (content(imported.f), content(imported)) == before
    again = importlib.reload(imported)
    assert content(again.f) != before[0]
    assert content(again) != before[1]
    monkeypatch.delitem(sys.modules, "edited_later")


def test_a_file_edited_before_it_was_looked_at_is_told_from_what_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for name, first in (("edited_early", "return 2 * x"), ("edited_not", "return x")):
        (tmp_path / f"{name}.py").write_text(f"def f(x):\n    {first}\n")
        imported = importlib.import_module(name)
        (tmp_path / f"{name}.py").write_text("def f(x):\n    return x\n")
        found.append(plain(loaded_attack.content(imported.f)))
        monkeypatch.delitem(sys.modules, name)
    assert found[0] != found[1]


CARD = """
summary = "a network"
dataset = "mnist"
implementation = "{implementation}"
num_classes = 2
bounds = [0, 1]
"""


def test_a_card_without_weights_is_the_weights_that_it_got(tmp_path, monkeypatch):
    folder = tmp_path / "catalogue" / "models" / "random-weights"
    folder.mkdir(parents=True)
    text = CARD.format(implementation="torch.nn:Linear")
    (folder / "card.toml").write_text(text + "[parameters]\nin_features = 4\nout_features = 2\n")
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.setenv("INVBENCH_TRUST", "torch")
    monkeypatch.setattr(nn.Linear, "bounds", (0.0, 1.0), raising=False)

    def ones(layer):
        nn.init.ones_(layer.weight)

    digests = []
    for seed, changed in ((0, False), (1, False), (1, True)):
        torch.manual_seed(seed)  # loading draws from a stated seed
        if changed:
            monkeypatch.setattr(nn.Linear, "reset_parameters", ones)
        loaded = load_model("random-weights")
        digests.append((loaded.digest, loaded.weights_digest))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] != digests[2][1]


@dataclass(frozen=True)
class Given:
    """A user's attack."""

    size: float = 0.5
    kind: ClassVar[str] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model, batch, threat, noise):
        return batch.images


def test_a_users_attack_is_its_code_and_fields(monkeypatch):
    before = load_attack(Given()).digest
    assert load_attack(Given(0.5)).digest == before != load_attack(Given(0.6)).digest
    monkeypatch.setattr(Given, "run", lambda *_: None)
    assert load_attack(Given()).digest != before


def test_a_users_goal_budget_and_data_are_their_code():
    @dataclass(frozen=True)
    class Aim(goals.Misclassify):
        least: float = 0.0

    @dataclass(frozen=True)
    class Box(budgets.LpBall):
        side: float = 1.0

    class Mine(ArrayDataset):
        pass

    aims = [Aim(), Aim(), Aim(least=1.0), goals.Misclassify()]
    digests = [threat_digest(ThreatModel(budgets.LpBall("l2", 1.0), aim)) for aim in aims]
    assert digests[0] == digests[1]
    assert len({*digests}) == 3
    boxes = [Box("l2", 1.0), Box("l2", 1.0, 2.0), budgets.LpBall("l2", 1.0)]
    assert len({threat_digest(ThreatModel(box)) for box in boxes}) == 3
    arrays = torch.zeros(2, 1, 2, 2), [0, 1], "two"
    assert Mine(*arrays).digest == identify_dataset(ArrayDataset(*arrays))
    assert identify_dataset(Mine(*arrays)) != Mine(*arrays).digest


class Declared(ArrayDataset):
    """A user's data whose declared digest never changes."""

    digest = "0" * 64


def test_a_users_data_set_is_all_that_it_holds():
    def made(images, labels):
        return identify_dataset(Declared(images, labels, "two"))

    images, labels = torch.zeros(2, 1, 2, 2), [0, 1]
    assert made(images, labels) == made(images.clone(), [0, 1])
    assert len({made(images, labels), made(images + 0.1, labels), made(images, [1, 0])}) == 3


def test_digests_of_plain_values_are_those_of_their_version():
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    expected = "68740d8c988fa14feccce3c0bda214c1758d362d9acb0459642315a2ec4482fa"
    assert digest_value({"t": plain(tensor)}) == digest_value({"t": content(tensor)}) == expected


if __name__ == "__main__":
    FILE.write_text(json.dumps({"version": IDENTITY_VERSION, **current()}, indent=1) + "\n")
