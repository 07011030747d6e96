"""Photographs on an untrained ImageNet-sized fiRevNet: inversion in float32."""

import pytest
import torch

from robustbench_inv.experiments.photographs import open_photographs, untrained_firevnet


@pytest.mark.slow
def test_imagenet_sized_network_is_inverted_in_float32():
    """108 million parameters at 224 × 224, untrained, with random couplings."""
    images = open_photographs(4)
    model = untrained_firevnet(images)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(107.7e6, rel=1e-3)
    with torch.no_grad():
        code = model.encode(images)
        assert code.shape == (4, 3 * 224 * 224)
        assert (model.decode(code) - images).abs().max() < 1e-3
        logits, nuisance = model.split(code)
        metamers = model.decode(model.join(logits, nuisance.roll(1, 0)))
        torch.testing.assert_close(model(metamers), logits, rtol=0, atol=2e-3)
