"""Traced, frozen, exported, compiled, lazy and quantised networks, and those that cannot be copied, are evaluated."""

import pytest
import torch
from torch import nn

from robustbench_inv.api import evaluate
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadModel

IMAGES = torch.rand((12, 1, 8, 8), generator=torch.Generator().manual_seed(1))


def network(seed=0):
    """Return a network whose predictions for IMAGES have every class."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        )
    with torch.no_grad():
        layers[3].weight *= 10
        layers[3].bias -= layers(IMAGES).mean(0)
    return layers.eval()


class Held(nn.Module):
    """A network inside a module."""

    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images)


class ExitsOnCopy(Held):
    def __deepcopy__(self, memo):
        raise SystemExit(3)


class CopiesANumber(Held):
    def __deepcopy__(self, memo):
        return 5


class CopiesAnother(Held):
    def __deepcopy__(self, memo):
        return CopiesAnother(network(3))


class SmallBatches(Held):
    def forward(self, images):
        if len(images) > 5:
            raise RuntimeError("at most five at once")
        return self.inner(images)


def with_buffer(buffer):
    held = Held(network())
    held.register_buffer("unused", buffer)
    return held


def exported():
    sizes = {"images": {0: torch.export.Dim.AUTO}}
    return Held(torch.export.export(Held(network()), (IMAGES[:4],), dynamic_shapes=sizes).module())


EQUAL = {
    "traced": lambda: Held(torch.jit.trace(network(), IMAGES[:4])),
    "scripted": lambda: Held(torch.jit.script(network())),
    "frozen": lambda: Held(torch.jit.freeze(torch.jit.script(network()))),
    "symbolically traced": lambda: Held(torch.fx.symbolic_trace(network())),
    "exported": exported,
    "compiled": lambda: Held(torch.compile(network(), backend="eager")),
    "exits on copy": lambda: ExitsOnCopy(network()),
    "copies a number": lambda: CopiesANumber(network()),
    "copies another": lambda: CopiesAnother(network()),
    "small batches": lambda: SmallBatches(network()),
    "meta buffer": lambda: with_buffer(torch.empty(3, device="meta")),
    "sparse buffer": lambda: with_buffer(torch.eye(3).to_sparse()),
}


def run(model, folder, attack="pgd:steps=5", threat="linf=0.02,0.06"):
    data = ArrayDataset(IMAGES, network()(IMAGES).argmax(1), "images")
    return evaluate(
        model=model, attack=attack, threat=threat, dataset=data, out=folder, checks=False
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", EQUAL)
def test_other_forms_of_a_network_give_its_results(tmp_path, kind):
    found, usual = run(EQUAL[kind](), tmp_path / "kind"), run(Held(network()), tmp_path / "plain")
    assert found.failures == ()
    assert [r.broken_at for r in found.records()] == [r.broken_at for r in usual.records()]
    assert {r.broken_at for r in usual.records()} == {0.02, 0.06, None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ["deepfool", "fmn:steps=5"])
def test_a_quantised_network_is_attacked_without_gradients(tmp_path, attack):
    model = Held(torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8))
    found = run(model, tmp_path, attack, "none")
    assert found.failures == ()
    assert {r.status for r in found.records()} <= {"ok", "already_wrong"}
    assert all(r.zero_gradient for r in found.records() if r.was_attacked)


def lazy():
    return Held(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)))


def test_lazy_weights_get_the_same_values_each_time(tmp_path):
    state = torch.get_rng_state()
    first, second = run(lazy(), tmp_path / "1"), run(lazy(), tmp_path / "2")
    assert first.failures == second.failures == ()
    assert first.plan.jobs[0].spec == second.plan.jobs[0].spec
    assert first.records() == second.records()
    assert torch.equal(torch.get_rng_state(), state)


def test_lazy_weights_without_data_are_refused():
    with pytest.raises(BadModel, match=r"held has lazy weights.*; call the model once"):
        load_model(lazy())


@pytest.mark.filterwarnings("ignore")
def test_frozen_networks_of_other_weights_are_other_models():
    def digest(seed):
        return load_model(Held(torch.jit.freeze(torch.jit.script(network(seed))))).digest

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_network_can_be_sent_to_another_process(tmp_path):
    from robustbench_inv.evaluation.packing import pack_jobs, unpack_jobs

    (job,) = run(Held(torch.jit.script(network())), tmp_path).plan.jobs
    (again,) = unpack_jobs(pack_jobs([job]))
    assert again.spec == job.spec
    torch.testing.assert_close(
        again.model.classifier(IMAGES).logits, job.model.classifier(IMAGES).logits
    )
