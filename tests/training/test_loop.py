"""A resumed training ends with the weights of an uninterrupted one; a damaged or foreign checkpoint is refused."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from robustbench_inv.errors import BadResults
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.training.loop import (
    TrainingData,
    TrainingOptions,
    dequantise,
    random_flip,
    random_shift,
    train,
)
from robustbench_inv.training.objectives import CrossEntropy, InformationBottleneck, TrainingBatch
from robustbench_inv.training.recipe import Recipe

RECIPE = Recipe("toy", "m:f", "m:O", "toy", 0, 60, 4, 16, 1e-2, 3)


def network():
    torch.manual_seed(RECIPE.seed)
    # of several channels, so that weights and the optimiser's moments are stored with channels last
    convolutions = [nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten()]
    return nn.Sequential(
        *convolutions, nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)
    )


def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.rand(60, 1, 4, 4, generator=generator) * 0.3 + labels[:, None, None, None] / 3
    return TrainingData(torch.arange(100, 160), images, labels)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_resumed_weights_equal_uninterrupted_ones(tmp_path, after):
    whole = train(RECIPE, network(), CrossEntropy(), data(), tmp_path / "whole")

    def stop(epoch):
        if epoch.epoch == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(
            RECIPE,
            network(),
            CrossEntropy(),
            data(),
            tmp_path / "parts",
            options=TrainingOptions(report=stop),
        )
    parts = train(RECIPE, network(), CrossEntropy(), data(), tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def resume_in_bfloat16(tmp_path):
    """Raise AssertionError if a resumed training in bfloat16 has other weights than an uninterrupted one."""
    recipe = replace(RECIPE, flip=True, shift=1, precision="bfloat16")
    whole = train(recipe, network(), CrossEntropy(), data(), tmp_path / "whole").state_dict()

    def stop(epoch):
        if epoch.epoch == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(
            recipe,
            network(),
            CrossEntropy(),
            data(),
            tmp_path / "parts",
            options=TrainingOptions(report=stop),
        )
    parts = train(recipe, network(), CrossEntropy(), data(), tmp_path / "parts").state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert all(value.dtype != torch.bfloat16 for value in whole.values())
    for other in (
        replace(recipe, flip=False),
        replace(recipe, shift=0),
        replace(recipe, precision="float32"),
    ):
        plain = train(
            other, network(), CrossEntropy(), data(), tmp_path / other.digest
        ).state_dict()
        assert not torch.equal(whole["4.weight"], plain["4.weight"])


def test_mirroring_and_precision_survive_a_resume(tmp_path):
    # in a process of its own: sums in bfloat16 may depend on what ran before in the same process
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True)


def test_each_epoch_mirrors_another_half():
    images, ids = torch.arange(200.0).reshape(50, 1, 1, 4), torch.arange(50)
    halves = []
    for epoch in (0, 1):
        mirrored = random_flip(images, SampleRNG(3, ids, f"train/{epoch}"))
        turned = (mirrored == images.flip(-1)).flatten(1).all(1)
        assert torch.equal(mirrored[~turned], images[~turned])
        halves.append(turned)
    assert 15 < halves[0].sum() < 35
    assert not torch.equal(*halves)


def test_each_image_has_its_own_translation():
    images = torch.rand(40, 2, 6, 5)
    moved = random_shift(images, SampleRNG(1, torch.arange(40), "train/0"), 1)
    wide, ways = torch.nn.functional.pad(images, [1] * 4), []
    for before, after in zip(wide, moved, strict=True):
        fits = [
            (down, right)
            for down in range(3)
            for right in range(3)
            if torch.equal(before[:, down : down + 6, right : right + 5], after)
        ]
        assert len(fits) == 1
        ways += fits
    assert len(set(ways)) == 9


def test_training_learns(tmp_path):
    epochs = []
    train(
        replace(RECIPE, epochs=30),
        network(),
        CrossEntropy(),
        data(),
        tmp_path,
        options=TrainingOptions(report=epochs.append),
    )
    assert epochs[-1].accuracy > 0.9
    assert epochs[-1].loss < epochs[0].loss
    assert 0 < epochs[-1].learning_rate < 1e-3


def test_a_completed_training_is_not_repeated(tmp_path):
    train(RECIPE, network(), CrossEntropy(), data(), tmp_path)
    train(
        RECIPE,
        network(),
        CrossEntropy(),
        data(),
        tmp_path,
        options=TrainingOptions(report=pytest.fail),
    )


def test_a_checkpoint_of_another_recipe_raises(tmp_path):
    train(RECIPE, network(), CrossEntropy(), data(), tmp_path)
    with pytest.raises(BadResults, match="another recipe"):
        train(replace(RECIPE, seed=4), network(), CrossEntropy(), data(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_checkpoint_raises_a_one_line_error(tmp_path, content):
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(BadResults, match="damaged checkpoint") as caught:
        train(RECIPE, network(), CrossEntropy(), data(), tmp_path)
    assert "\n" not in str(caught.value)


def test_draws_of_the_bottleneck_objective_depend_only_on_sample_and_epoch():
    from robustbench_inv.models.vib import BottleneckCNN
    from robustbench_inv.randomness import SampleRNG

    model, images = BottleneckCNN().eval(), torch.rand(2, 1, 28, 28)
    objective, labels = InformationBottleneck(), torch.tensor([0, 1])
    first = [
        objective(model, TrainingBatch(images, labels, SampleRNG(0, torch.arange(2), "train/0")))[0]
        for _ in "ab"
    ]
    later = objective(
        model, TrainingBatch(images, labels, SampleRNG(0, torch.arange(2), "train/1"))
    )[0]
    assert torch.equal(*first)
    assert not torch.equal(first[0], later)


def test_stages_give_the_weights_of_a_whole_training(tmp_path):
    whole = train(RECIPE, network(), CrossEntropy(), data(), tmp_path / "whole").state_dict()
    for until in (2, 2, None):
        options = TrainingOptions(until=until, snapshots=frozenset({1, 2}))
        parts = train(RECIPE, network(), CrossEntropy(), data(), tmp_path / "parts", options)
    assert all(torch.equal(whole[name], parts.state_dict()[name]) for name in whole)
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_snapshots_are_the_weights_of_their_epochs_in_float16(tmp_path):
    options = TrainingOptions(until=2, snapshots=frozenset({2, 3}))
    model = train(RECIPE, network(), CrossEntropy(), data(), tmp_path, options).state_dict()
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["epoch-2.safetensors"]
    kept = load_file(tmp_path / "snapshots" / "epoch-2.safetensors")
    for name, value in kept.items():
        expected = model[name].half() if model[name].is_floating_point() else model[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("until", [None, 2])
def test_the_weights_of_least_loss_are_kept(tmp_path, until):
    """The loss rises from the third epoch on: those of the second are the best, resumed or not."""
    recipe = replace(RECIPE, keep="least-loss", schedule="step", milestones=(2,), rate_factor=0.5)
    losses = iter([3.0, 1.0, 2.0, 4.0])
    epochs = []

    class Scripted(CrossEntropy):
        def __call__(self, model, batch):
            loss, logits = super().__call__(model, batch)
            if int(batch.progress * 4 + 1e-9) + 1 > len(epochs):
                epochs.append(next(losses))
            return loss - loss.detach() + epochs[-1], logits

    options = TrainingOptions(until=until, snapshots=frozenset({2, 4}))
    train(recipe, network(), Scripted(), data(), tmp_path, options)
    model = train(
        recipe, network(), Scripted(), data(), tmp_path, TrainingOptions(snapshots=frozenset({4}))
    )
    kept = model.state_dict()
    best = load_file(tmp_path / "snapshots" / "epoch-2.safetensors")
    last = load_file(tmp_path / "snapshots" / "epoch-4.safetensors")
    assert all(torch.equal(kept[name].to(best[name]), best[name]) for name in kept)
    assert not all(torch.equal(kept[name].to(last[name]), last[name]) for name in kept)
    (tmp_path / "least-loss.safetensors").write_bytes(b"")
    with pytest.raises(BadResults, match="damaged weights"):
        train(recipe, network(), Scripted(), data(), tmp_path)


def test_dequantised_levels_stay_in_their_cells():
    rng = SampleRNG(0, torch.arange(4), "train/0")
    images = torch.arange(4).float()[:, None, None, None].expand(4, 1, 5, 5) / 3
    moved = (dequantise(images, rng, 4) - images) * 3
    assert moved.abs().max() < 0.5
    assert moved.std() == pytest.approx(1 / math.sqrt(12), abs=0.05)
    assert torch.equal(dequantise(images, rng, 4), dequantise(images, rng, 4))


if __name__ == "__main__":
    resume_in_bfloat16(Path(sys.argv[1]))
