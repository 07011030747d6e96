"""``invbench analyse``: singular values by layer and preimages of a user's network."""

import json


def test_the_command_prints_layers_and_preimages(invbench, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n    bounds, num_classes = (0.0, 1.0), 10\n"
        "def build():\n    torch.manual_seed(0)\n"
        "    return Net(nn.Flatten(), nn.Linear(784, 5), nn.ReLU(), nn.Linear(5, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["analyse", "mine.py:build", "--dataset", "mnist5k", "--samples", "2"]
    result = invbench(*command, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [layer["layer"] for layer in found["layers"]] == ["1", "2", "3"]
    assert found["preimages"] == {"1": {"unique": 0, "bounded": 0, "unbounded": 2}}
    text = invbench(*command, "--layers", "1")
    assert "preimages of 1 and ReLU: 0 unique, 0 bounded, 2 unbounded" in text.out
