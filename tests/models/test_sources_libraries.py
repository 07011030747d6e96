"""Networks of timm, torchvision, transformers and RobustBench: the preprocessing is inside, eps is in units of [0, 1].

The libraries are stubs here, which have the functions and results of timm 1.0, torchvision 0.28, transformers 5.24 and
robustbench 1.1. A library that can be imported is tried as well.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from robustbench_inv.api import evaluate
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadModel, BadParameter, MissingExtra

IMAGES = torch.rand((24, 3, 8, 8), generator=torch.Generator().manual_seed(1))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def network(classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )
    with torch.no_grad():
        layers[4].weight *= 20
        layers[4].bias -= layers(normalised(IMAGES)).mean(0)
    return layers.eval()


def normalised(images, mean=MEAN, std=STD):
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class Answers(nn.Module):
    """Returns an object with logits, as networks of transformers do."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, pixel_values):
        return SimpleNamespace(loss=None, logits=self.inner(pixel_values))


def expected(mean=MEAN, std=STD):
    with torch.no_grad():
        return network()(normalised(IMAGES, mean, std))


def stub(monkeypatch, name, **content):
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def asked():
    return {}


@pytest.fixture
def timm(monkeypatch, asked):
    def create_model(name, **options):
        asked.update(options, name=name)
        return network(options.get("num_classes", 3))

    def resolve_model_data_config(_):
        return {"mean": MEAN, "std": STD, "input_size": (3, 8, 8), "crop_pct": 0.9}

    stub(monkeypatch, "timm", create_model=create_model)
    stub(monkeypatch, "timm.data", resolve_model_data_config=resolve_model_data_config)


@pytest.fixture
def torchvision(monkeypatch, asked):
    preset = SimpleNamespace(transforms=lambda: SimpleNamespace(mean=list(MEAN), std=list(STD)))

    def get_model(name, weights, **options):
        asked.update(options, name=name, weights=weights)
        return network()

    models = {
        "get_model": get_model,
        "get_model_weights": lambda _: {"DEFAULT": preset, "V2": 2},
    }
    stub(monkeypatch, "torchvision")
    stub(monkeypatch, "torchvision.models", **models)


PROCESSOR = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}


@pytest.fixture
def transformers(monkeypatch, asked):
    def from_pretrained(name, **options):
        asked.update(options, name=name)
        return Answers().to(options.get("dtype", torch.bfloat16))

    processor = SimpleNamespace(**PROCESSOR, image_mean=list(MEAN), image_std=list(STD))

    def of_processor(name):
        if asked.get("processor") == "none":
            raise OSError(f"{name} does not appear to have a file named preprocessor_config.json")
        vars(processor).update(asked.get("processor", {}))
        return processor

    stub(
        monkeypatch,
        "transformers",
        AutoModelForImageClassification=SimpleNamespace(from_pretrained=from_pretrained),
        AutoImageProcessor=SimpleNamespace(from_pretrained=of_processor),
    )


@pytest.fixture
def robustbench(monkeypatch, asked):
    class Normalises(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, images):
            return self.inner(normalised(images))

    def load(model_name, dataset, threat_model):
        asked.update(name=model_name, dataset=dataset, threat_model=threat_model)
        return Normalises()

    stub(monkeypatch, "robustbench")
    stub(monkeypatch, "robustbench.utils", load_model=load)


NAMES = {
    "timm": "timm:resnet18",
    "torchvision": "torchvision:resnet18",
    "transformers": "hf:org/network:dtype=float32",
    "robustbench": "robustbench:Carmon2019Unlabeled",
}


@pytest.mark.parametrize("library", NAMES)
def test_the_preprocessing_is_inside(library, request):
    request.getfixturevalue(library)
    data = ArrayDataset(IMAGES, expected().argmax(1), "three")
    loaded = load_model(NAMES[library], dataset=data)
    tolerance = 0.5 if library == "transformers" else 1e-4  # its weights are stored in bfloat16
    assert torch.allclose(loaded(IMAGES).logits, expected(), atol=tolerance)
    assert (loaded.classifier.bounds, loaded.classifier.num_classes) == ((0.0, 1.0), 3)
    run = evaluate(
        model=NAMES[library], attack="fgsm", threat="linf=0.02", dataset=data, checks=False
    )
    assert run.summary()[0].clean_accuracy.value > 0.9


@pytest.mark.usefixtures("timm")
def test_parameters_reach_the_library_and_the_preprocessing(asked):
    loaded = load_model("timm:resnet18:num_classes=5,pretrained=false,drop_rate=0.1,resize=16")
    assert asked == {"name": "resnet18", "num_classes": 5, "pretrained": False, "drop_rate": 0.1}
    assert loaded.classifier.module.size == 16
    assert loaded(IMAGES).logits.shape == (24, 5)
    other = load_model("timm:resnet18:mean=0.1/0.2/0.3,std=1/1/1")
    with torch.no_grad():
        assert torch.allclose(
            other(IMAGES).logits, expected((0.1, 0.2, 0.3), (1.0, 1.0, 1.0)), atol=1e-4
        )
    assert other.digest != loaded.digest != load_model("timm:resnet18").digest


@pytest.mark.usefixtures("timm")
def test_weights_of_a_file_replace_those_of_the_library(tmp_path, asked):
    state = {key: each + 1 for key, each in network().state_dict().items()}
    torch.save(state, tmp_path / "mine.pt")
    loaded = load_model(f"timm:resnet18:weights={tmp_path / 'mine.pt'}")
    assert asked == {"name": "resnet18", "pretrained": False}
    assert torch.equal(loaded.classifier.module.network[4].bias, state["4.bias"])


@pytest.mark.usefixtures("torchvision")
def test_torchvision_without_weights_has_the_normalisation_of_imagenet(asked):
    loaded = load_model("torchvision:resnet18:pretrained=false")
    assert asked["weights"] is None
    assert loaded.classifier.module.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


PROCESSORS = {
    "no normalisation": ({"do_normalize": False}, 0.0, 1.0),
    "rescaled to [-1, 1]": (
        {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
        0.5,
        0.5,
    ),
    "bytes": ({"do_rescale": False, "do_normalize": False}, 0.0, 1 / 255),
}


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize("case", PROCESSORS)
def test_processors_of_transformers_become_one_normalisation(case, asked):
    asked["processor"], mean, std = PROCESSORS[case]
    module = load_model("hf:org/network").classifier.module
    assert module.mean.flatten().tolist() == pytest.approx([mean])
    assert module.deviation.flatten().tolist() == pytest.approx([std])


@pytest.mark.usefixtures("transformers")
def test_a_network_without_a_processor_needs_mean_and_deviation(asked):
    asked["processor"] = "none"
    with pytest.raises(BadModel, match=r"no image processor.*mean=0\.5,std=0\.5"):
        load_model("hf:./folder")
    loaded = load_model("hf:./folder:mean=0.5,std=0.25")
    assert loaded.classifier.module.mean.flatten().tolist() == [0.5]


@pytest.mark.usefixtures("robustbench")
def test_robustbench_gets_data_set_and_threat_model(asked):
    load_model("robustbench:Wang2023:dataset=cifar100,threat_model=L2")
    assert asked == {"name": "Wang2023", "dataset": "cifar100", "threat_model": "L2"}


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("bad", ["resize=0", "resize=true", "mean=0.5", "mean=a,std=1"])
def test_unusable_parameters_are_named(bad):
    with pytest.raises(BadParameter):
        load_model(f"timm:resnet18:{bad}")


def test_a_library_that_is_missing_or_broken_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(MissingExtra, match=r"robustbench-inv\[robustbench\]"):
        load_model("robustbench:Standard")


def test_an_unknown_name_is_the_librarys_own_error(monkeypatch):
    def create_model(name, **_):
        raise RuntimeError(f"Unknown model ({name})")

    stub(monkeypatch, "timm", create_model=create_model)
    with pytest.raises(BadModel, match="Unknown model"):
        load_model("timm:resnet17")


def test_a_vision_transformer_of_transformers(tmp_path):
    """The real library, with random weights, from a local folder."""
    try:
        from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
    except Exception as error:
        pytest.skip(f"transformers cannot be imported: {error}")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=8, patch_size=4, intermediate_size=16, num_labels=3, **size)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}", dataset=ArrayDataset(IMAGES, torch.arange(24) % 3, "x"))
    assert loaded(IMAGES).logits.shape == (24, 3)
    assert loaded.classifier.module.mean.flatten().tolist() == [0.5, 0.5, 0.5]
