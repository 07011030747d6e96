"""Adam's step, against torch's optimizer."""

import torch

from robustbench_inv.attacks.cw import Adam


def test_the_steps_are_those_of_torchs_optimizer():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(20, 3, 5, generator=generator, dtype=torch.float64)
    theirs = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theirs], lr=0.1)
    ours, adam = torch.zeros(3, 5, dtype=torch.float64), Adam.start(theirs.detach())
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
        ours = ours - adam.step(gradient, 0.1)
        torch.testing.assert_close(ours, theirs.detach())


def test_samples_that_leave_change_nothing_for_the_others():
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(6, 4, 2, generator=generator)
    kept = torch.tensor([True, False, True, True])
    whole, part = Adam.start(gradients[0]), Adam.start(gradients[0])
    for number, gradient in enumerate(gradients):
        moved = whole.step(gradient, 0.5)
        if number == 3:
            part = part[kept]
        mine = part.step(gradient if number < 3 else gradient[kept], 0.5)
    assert torch.equal(mine, moved[kept])
