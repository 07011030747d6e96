"""Networks and weights in files: state dictionaries, TorchScript and exported programs; no code of a file is run."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustbench_inv.api import evaluate
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadModel, BadParameter, InvbenchError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

IMAGES = torch.rand((20, 1, 4, 4), generator=torch.Generator().manual_seed(1))
FACTORY = """
from torch import nn
def build(width=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width))
"""


def network(width=3):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(16, width)).eval()
    with torch.no_grad():
        layers[1].bias -= layers(IMAGES).mean(0)  # every class is predicted for some image
    return layers


DATA = ArrayDataset(IMAGES, network()(IMAGES).argmax(1), "three")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    return tmp_path


def checkpoint(state):
    return {"epoch": 3, "state_dict": {f"module.{key}": each for key, each in state.items()}}


STATES = {
    "net.safetensors": lambda state, path: save_file(state, path),
    "net.pt": torch.save,
    "net.pth": lambda state, path: torch.save(checkpoint(state), path),
    "net.ckpt": lambda state, path: torch.save({"net": state, "acc": 0.9}, path),
}


@pytest.mark.parametrize("file", STATES)
def test_weights_of_a_file_fill_the_network_of_a_factory(file):
    STATES[file](network().state_dict(), file)
    loaded = load_model(f"mine.py:build:weights={file},bounds=0..1")
    assert torch.equal(loaded(IMAGES).logits, network()(IMAGES))
    assert loaded.classifier.bounds == (0.0, 1.0)


def test_the_tensors_count_and_not_the_path_of_their_file(folder):
    (folder / "old").mkdir()
    torch.save(network().state_dict(), "old/net.pt")
    torch.save(network().state_dict(), "net.pt")
    torch.save({key: each + 1 for key, each in network().state_dict().items()}, "other.pt")
    old, new, other = (
        load_model(f"mine.py:build:bounds=0..1,weights={file}").digest
        for file in ("old/net.pt", "net.pt", "other.pt")
    )
    assert old == new != other


def scripted(path):
    torch.jit.save(torch.jit.script(network()), path)


def exported(path):
    sizes = {"input": {0: torch.export.Dim.AUTO}}
    torch.export.save(torch.export.export(network(), (IMAGES[:4],), dynamic_shapes=sizes), path)


@pytest.mark.parametrize(("save", "file"), [(scripted, "net.pt"), (exported, "net.pt2")])
def test_saved_networks_are_evaluated_by_their_file(save, file):
    save(file)
    run = evaluate(
        model=f"{file}:bounds=0..1", attack="fgsm", threat="linf=0.1", dataset=DATA, checks=False
    )
    summary = run.summary()[0]
    assert summary.clean_accuracy.value == 1
    plain = network()
    plain.bounds = (0.0, 1.0)
    expected = evaluate(model=plain, attack="fgsm", threat="linf=0.1", dataset=DATA, checks=False)
    assert summary.robust_accuracy == expected.summary()[0].robust_accuracy


class Harmful:
    def __reduce__(self):
        return open, ("harm", "w")


def test_pickled_objects_are_refused_and_not_run(folder):
    torch.save(Harmful(), "net.pt")
    torch.save({"state_dict": network().state_dict(), "more": Harmful()}, "more.pt")
    (folder / "raw.pth").write_bytes(pickle.dumps(Harmful()))
    for reference in ("net.pt", "mine.py:build:weights=more.pt", "mine.py:build:weights=raw.pth"):
        with pytest.raises(BadModel, match=r"net|more|raw"):
            load_model(reference)
    assert not (folder / "harm").exists()


def test_a_pickled_part_of_an_exported_program_is_not_run(monkeypatch):
    exported("net.pt2")
    seen = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: seen.append(_forced()) or load(*a, **k))
    load_model("net.pt2:bounds=0..1", dataset=DATA)
    assert set(seen) <= {"1"}
    assert _forced() is None


def _forced():
    import os

    return os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")


def test_weights_alone_are_named_as_such_with_what_to_type():
    torch.save(network().state_dict(), "net.pt")
    with pytest.raises(BadModel, match=r"FILE\.py:FUNCTION:weights=net\.pt"):
        load_model("net.pt")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine.py:build:width=4,weights=net.pt", "size mismatch"),
        ("mine.py:build:weights=part.pt", "missing 1.bias"),
        ("mine.py:build:weights=more.pt", "unexpected extra"),
        ("mine.py:build:weights=number.pt", "no weights by name"),
        ("mine.py:build:weights=none.pt", "no such file"),
        ("mine.py:build:weights=damaged.safetensors", "damaged"),
        ("damaged.pt", "damaged"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, reference, message):
    state = network().state_dict()
    torch.save(state, "net.pt")
    torch.save({"1.weight": state["1.weight"]}, "part.pt")
    torch.save({**state, "extra": torch.zeros(1)}, "more.pt")
    torch.save(torch.zeros(3), "number.pt")
    for file in ("damaged.safetensors", "damaged.pt"):
        (folder / file).write_bytes(b"PK")
    with pytest.raises(InvbenchError, match=message):
        load_model(f"{reference}{',' if '=' in reference else ':'}bounds=0..1")


def test_a_saved_network_takes_no_parameters():
    scripted("net.pt")
    with pytest.raises(BadParameter, match="takes no parameters"):
        load_model("net.pt:width=3")
