"""Thirty-five attacks that misbehave, each in one way, and the outcome that an evaluation with them must have.

The test names them as ``misbehaving_attacks.py:Name``. ``outcome`` is one of

- ``refused``: nothing runs, and one line gives the reason.
- ``failed``: the attack is listed as crashed, and its samples count as robust.
- ``noted``: the records have a status that names the fault, or a check fails.
- ``done``: the fault changes nothing, and the proposals are judged as usual.
"""

import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch


@dataclass(frozen=True)
class Step:
    """One signed gradient step to the edge of the budget; the attacks below differ in what they do after it."""

    outcome: ClassVar[str] = "done"
    kind: ClassVar[str] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def step(self, model, batch, threat):
        _, gradient = model.gradient(batch.images, loss)
        return (batch.images + threat.budget.eps * gradient.sign()).clamp(*model.bounds)

    def fault(self, model, batch, images):
        """Misbehave, and return the proposals."""
        return images

    def run(self, model, batch, threat, rng):
        return self.fault(model, batch, self.step(model, batch, threat))


def loss(output, labels):
    """Return the negated logit of the label."""
    return -output.logits.gather(1, labels[:, None])[:, 0]


class Failed(Step):
    outcome = "failed"


class Noted(Step):
    outcome = "noted"


class Refused(Step):
    outcome = "refused"


class Exits(Failed):
    def fault(self, model, batch, images):
        sys.exit(0)


class ExitsHard(Failed):
    def fault(self, model, batch, images):
        os._exit(0)


class Executes(Failed):
    def fault(self, model, batch, images):
        os.execlp("true", "true")


class PressesCtrlC(Failed):
    def fault(self, model, batch, images):
        raise KeyboardInterrupt


class Cancels(Failed):
    def fault(self, model, batch, images):
        raise asyncio.CancelledError


class EndsIteration(Failed):
    def fault(self, model, batch, images):
        raise StopIteration


class ExitsInInit(Refused):
    def __init__(self):
        sys.exit(0)


class HangsInInit(Refused):
    seconds = 2.0

    def __init__(self):
        time.sleep(60)


class Forks(Step):
    def fault(self, model, batch, images):
        if child := os.fork():
            os.waitpid(child, 0)
        return images


class Raises(Failed):
    def fault(self, model, batch, images):
        raise ValueError("first\nsecond\033[31m")


class RaisesLate(Failed):
    def fault(self, model, batch, images):
        if 7 in batch.ids.tolist():
            raise ZeroDivisionError
        return images


class RunsOutOfMemory(Failed):
    def fault(self, model, batch, images):
        raise MemoryError


class Recurses(Failed):
    def fault(self, model, batch, images):
        return self.fault(model, batch, images)


class Sleeps(Failed):
    seconds = 2.0

    def fault(self, model, batch, images):
        time.sleep(60)


class Spins(Failed):
    seconds = 2.0

    def fault(self, model, batch, images):
        while True:
            pass


class WaitsForThread(Failed):
    seconds = 2.0

    def fault(self, model, batch, images):
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait, daemon=True)
        thread.start()
        thread.join()


class ReturnsNothing(Failed):
    def fault(self, model, batch, images):
        return None


class ReturnsArray(Failed):
    def fault(self, model, batch, images):
        return images.numpy()


class ReturnsTooFew(Step):
    """Can be run on one sample only, and so it is."""

    def fault(self, model, batch, images):
        return images[:1]


class ReturnsOneByOne(Failed):
    def fault(self, model, batch, images):
        return iter(images)


class ReturnsNaN(Noted):
    def fault(self, model, batch, images):
        return images * float("nan")


class ReturnsInfinity(Noted):
    def fault(self, model, batch, images):
        return images + float("inf")


class LeavesBudget(Noted):
    def fault(self, model, batch, images):
        return images.flip(0)


class LeavesBox(Noted):
    def fault(self, model, batch, images):
        return images + 5


class ReturnsOthers(Noted):
    """Returns the proposals in another order, which lie outside the budget of their samples."""

    def fault(self, model, batch, images):
        return images.roll(1, 0)


class ReturnsIntegers(Noted):
    def fault(self, model, batch, images):
        return (images * 255).long()


class ChangesBatch(Step):
    def fault(self, model, batch, images):
        batch.images.zero_()
        batch.labels.zero_()
        return images


class ChangesModel(Step):
    def fault(self, model, batch, images):
        for weight in model.model.parameters():
            weight.data.zero_()
        return images


class TrainsModel(Step):
    def fault(self, model, batch, images):
        model.model.train()
        return images


class ChangesState(Step):
    def fault(self, model, batch, images):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(3)
        torch.use_deterministic_algorithms(True)
        os.chdir("/")
        os.environ["HOME"] = "/"
        sys.setrecursionlimit(5000)
        gc.disable()
        np.seterr(all="raise")
        return images


class SeedsEverything(Step):
    def fault(self, model, batch, images):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        return images


class ClosesStreams(Step):
    def fault(self, model, batch, images):
        sys.stdout.close()
        os.close(1)
        return images


class SetsAlarm(Step):
    def fault(self, model, batch, images):
        signal.alarm(1)
        return images


class Prints(Step):
    def fault(self, model, batch, images):
        print("searching")
        os.write(1, b"searching\n")
        return images


class NeedsGraph(Step):
    """Returns proposals with a graph."""

    def fault(self, model, batch, images):
        return images.clone().requires_grad_() * 1


class HasNoKind(Refused):
    kind = "strong"


class HasNoNorms(Refused):
    norms = frozenset()


ATTACKS = {
    name: kind
    for name, kind in list(globals().items())
    if isinstance(kind, type)
    and issubclass(kind, Step)
    and name not in {"Step", "Failed", "Noted", "Refused"}
}
