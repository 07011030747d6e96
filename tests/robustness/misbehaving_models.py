"""Ninety models that misbehave, each in one way, and the outcome that an evaluation of it must have.

The classes are a user's code: the test names them as ``misbehaving_models.py:Name``. ``outcome`` is one of

- ``same``: the evaluation neutralises the fault, and the records equal those of ``Honest``.
- ``refused``: nothing runs, and one line gives the reason.
- ``failed``: the cell is listed as failed, with the reason, or its attack as crashed on some samples.
- ``noted``: there are records, and a check fails or a status names the samples.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import torch
from torch import nn

from robustbench_inv.errors import BadResults
from robustbench_inv.tensors import Output


def weights():
    """Return the weights of a classifier of 1×4×4 images in three classes."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn((3, 16), generator=generator)


class Honest(nn.Module):
    """A linear classifier without a fault; the others differ in what they override."""

    bounds = (0.0, 1.0)
    num_classes = 3
    outcome = "same"

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)
        with torch.no_grad():
            self.layer.weight.copy_(weights())
            self.layer.bias.zero_()

    def classify(self, images):
        """Return the logits."""
        return self.layer(images.flatten(1))

    def fault(self):
        """Misbehave, after the logits are computed."""

    def forward(self, images):
        logits = self.classify(images)
        self.fault()
        return logits


class Refused(Honest):
    outcome = "refused"


class Failed(Honest):
    outcome = "failed"


class Noted(Honest):
    outcome = "noted"


class Late:
    """Misbehaves only after the first pass, which the plan makes."""

    calls = 0

    def forward(self, images):
        type(self).calls += 1
        logits = self.classify(images)
        if type(self).calls > 1:
            self.fault()
        return logits


# --- models that end the program ------------------------------------------------------------------------------------


class Exits(Refused):
    def fault(self):
        sys.exit(0)


class ExitsLate(Late, Failed):
    def fault(self):
        sys.exit(0)


class ExitsHard(Refused):
    def fault(self):
        os._exit(0)


class ExitsHardLate(Late, Failed):
    def fault(self):
        os._exit(0)


class Aborts(Refused):
    def fault(self):
        os.abort()


class Executes(Refused):
    def fault(self):
        os.execlp("true", "true")


class PressesCtrlC(Refused):
    def fault(self):
        raise KeyboardInterrupt


class ClosesGenerator(Refused):
    def fault(self):
        raise GeneratorExit


class Cancels(Refused):
    def fault(self):
        raise asyncio.CancelledError


class EndsIteration(Refused):
    def fault(self):
        raise StopIteration


class EndsIterationLate(Late, Failed):
    def fault(self):
        raise StopIteration


class RaisesBaseException(Refused):
    def fault(self):
        raise BaseException("neither nor")  # noqa: TRY002


class ExitsInInit(Refused):
    def __init__(self):
        super().__init__()
        sys.exit(0)


class ExitsInHook(Refused):
    def __init__(self):
        super().__init__()
        self.layer.register_forward_hook(lambda *_: sys.exit(0))


class ExitsInBounds(Refused):
    @property
    def bounds(self):
        sys.exit(0)


class ExitsInEval(Refused):
    def train(self, mode=True):
        sys.exit(0)


class ExitsInCopy(Honest):
    def __deepcopy__(self, memo):
        sys.exit(0)


class ExitsInThread(Honest):
    def fault(self):
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=sys.exit, args=(0,)).start()


class Forks(Honest):
    def fault(self):
        if child := os.fork():
            os.waitpid(child, 0)


class ExitsInGradient(Failed):
    def classify(self, images):
        logits = super().classify(images)
        if logits.requires_grad:
            logits.register_hook(lambda _: sys.exit(0))
        return logits


# --- models that change the state of the process ---------------------------------------------------------------------


class SetsDefaultDtype(Honest):
    def fault(self):
        torch.set_default_dtype(torch.float64)


class DisablesGradients(Honest):
    def fault(self):
        torch.set_grad_enabled(False)


OPEN = []


class EntersInferenceMode(Honest):
    def fault(self):
        OPEN.append(torch.inference_mode())
        OPEN[-1].__enter__()


class EntersAutocast(Honest):
    def fault(self):
        OPEN.append(torch.autocast("cpu", torch.bfloat16))
        OPEN[-1].__enter__()


class SetsDefaultDevice(Honest):
    def __init__(self):
        super().__init__()
        torch.set_default_device("meta")


class SetsThreads(Honest):
    def fault(self):
        torch.set_num_threads(3)


class DemandsDeterminism(Honest):
    def fault(self):
        torch.use_deterministic_algorithms(True)


class RaisesNumpyErrors(Honest):
    def fault(self):
        np.seterr(all="raise")


class SeedsEverything(Honest):
    def fault(self):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)


class HooksEveryModule(Honest):
    def __init__(self):
        super().__init__()
        nn.modules.module.register_module_forward_hook(lambda *given: given[-1] * -1)


class ChangesFolder(Honest):
    def fault(self):
        os.chdir("/")


class ChangesEnvironment(Honest):
    def fault(self):
        os.environ.clear()


class ClearsPath(Honest):
    def fault(self):
        sys.path[:] = []


class ClearsArguments(Honest):
    def fault(self):
        sys.argv[:] = []


class RemovesStreams(Honest):
    def fault(self):
        sys.stdout = sys.stderr = sys.stdin = None


class ClosesStreams(Honest):
    def fault(self):
        sys.stdout.close()
        sys.stderr.close()


class ClosesDescriptors(Honest):
    def fault(self):
        for number in (0, 1):
            with contextlib.suppress(OSError):
                os.close(number)


class TurnsWarningsIntoErrors(Honest):
    def fault(self):
        warnings.simplefilter("error")


class IgnoresSignals(Honest):
    def fault(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class SetsAlarm(Honest):
    def fault(self):
        signal.alarm(1)


class ShrinksStack(Honest):
    def fault(self):
        sys.setrecursionlimit(sys.getrecursionlimit() - 10)


class StopsCollection(Honest):
    def fault(self):
        gc.disable()


class Traces(Honest):
    def fault(self):
        sys.settrace(lambda *_: None)


class ReplacesExceptHook(Honest):
    def fault(self):
        sys.excepthook = print


class ForbidsFiles(Honest):
    def fault(self):
        os.umask(0o777)


class DetectsAnomalies(Honest):
    def fault(self):
        torch.autograd.set_detect_anomaly(True)


# --- models that print -----------------------------------------------------------------------------------------------


class Prints(Honest):
    def fault(self):
        print("forward")


class PrintsPastPython(Honest):
    def fault(self):
        os.write(1, b"forward\n")
        sys.__stdout__.write("forward\n")


class PrintsInC(Honest):
    def fault(self):
        library = ctypes.CDLL(None)
        library.puts(b"forward")
        library.fflush(None)


class PrintsInChild(Honest):
    def fault(self):
        subprocess.run(["echo", "forward"], check=True)


class Warns(Honest):
    def fault(self):
        warnings.warn("forward", stacklevel=1)


# --- models that hang ------------------------------------------------------------------------------------------------


class Sleeps(Refused):
    seconds = 2.0

    def fault(self):
        time.sleep(60)


class Spins(Refused):
    seconds = 2.0

    def fault(self):
        while True:
            pass


class SpinsLate(Late, Failed):
    seconds = 2.0

    def fault(self):
        while True:
            pass


class WaitsForever(Refused):
    seconds = 2.0

    def fault(self):
        threading.Event().wait()


class CatchesInterruption(Refused):
    seconds = 2.0

    def fault(self):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(Exception):
                time.sleep(60)


class HangsInInit(Refused):
    seconds = 2.0

    def __init__(self):
        super().__init__()
        time.sleep(60)


class HangsInGradient(Failed):
    seconds = 2.0

    def classify(self, images):
        logits = super().classify(images)
        if logits.requires_grad:
            logits.register_hook(lambda _: time.sleep(60))
        return logits


# --- models that change themselves or their input --------------------------------------------------------------------


class TrainsItself(Honest):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def classify(self, images):
        return super().classify(self.drop(images))

    def fault(self):
        self.train()


class ChangesInput(Honest):
    def forward(self, images):
        logits = self.classify(images)
        if not images.requires_grad:
            images.zero_()
        return logits


class ReusesOutput(Honest):
    """Returns one tensor for all calls without gradients."""

    def forward(self, images):
        logits = self.classify(images)
        if logits.requires_grad:
            return logits
        if not hasattr(self, "answer"):
            self.answer = torch.empty(1000, 3)
        return self.answer[: len(images)].copy_(logits)


class DetachesWeights(Honest):
    def fault(self):
        self.requires_grad_(False)


class AddsHooks(Honest):
    def fault(self):
        self.layer.register_forward_hook(lambda *_: None)


class ForgetsLayer(Failed):
    def fault(self):
        self._modules.pop("layer", None)

    def classify(self, images):
        if "layer" not in self._modules:
            raise RuntimeError("no layer")
        return super().classify(images)


class CountsCalls(Noted):
    """Predicts something else at each call."""

    calls = 0

    def classify(self, images):
        self.calls += 1
        return super().classify(images).roll(self.calls, 1)


class LearnsAtTest(Failed):
    def fault(self):
        with torch.no_grad():
            self.layer.weight += 0.5 * torch.ones_like(self.layer.weight).cumsum(1)


class DrawsNoise(Noted):
    def classify(self, images):
        return super().classify(images + torch.randn_like(images))


class DependsOnBatch(Noted):
    def classify(self, images):
        return super().classify(images).roll(len(images) % 3, 1)


class HidesGradients(Noted):
    def classify(self, images):
        return super().classify(images.detach())


# --- models with wrong outputs ---------------------------------------------------------------------------------------


class ReturnsNothing(Refused):
    def forward(self, images):
        return None


class ReturnsList(Refused):
    def forward(self, images):
        return self.classify(images).tolist()


class ReturnsArray(Refused):
    def forward(self, images):
        return self.classify(images).detach().numpy()


class ReturnsDictionary(Honest):
    def forward(self, images):
        return {"logits": self.classify(images)}


class ReturnsPair(Honest):
    def forward(self, images):
        return self.classify(images), None


class ReturnsScalar(Refused):
    def forward(self, images):
        return self.classify(images).sum()


class ReturnsTooFew(Honest):
    """Can be queried with one image only, and so it is."""

    def forward(self, images):
        return self.classify(images)[: max(1, len(images) - 1)]


class ReturnsOtherClasses(Refused):
    def forward(self, images):
        return self.classify(images)[:, :2]


class ReturnsIntegers(Refused):
    def forward(self, images):
        return self.classify(images).long()


class ReturnsComplex(Refused):
    def forward(self, images):
        return self.classify(images).to(torch.complex64)


class ReturnsSparse(Refused):
    def forward(self, images):
        return self.classify(images).to_sparse()


class ReturnsMeta(Refused):
    def forward(self, images):
        return self.classify(images).to("meta")


class ReturnsNaN(Failed):
    def forward(self, images):
        return self.classify(images) * float("nan")


class ReturnsConstant(Noted):
    def forward(self, images):
        return self.classify(images) * 0


class ScoresAreStrings(Refused):
    def forward(self, images):
        return Output(self.classify(images), score=["high"] * len(images))


# --- models that raise -----------------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


class RaisesUnprintable(Late, Failed):
    def fault(self):
        raise Unprintable


class RaisesLong(Refused):
    def fault(self):
        raise ValueError("x" * 10**6)


class RaisesManyLines(Late, Failed):
    def fault(self):
        raise ValueError("first\nsecond\n\033[31mthird")


class RunsOutOfMemory(Late, Failed):
    def fault(self):
        raise MemoryError


class Recurses(Refused):
    def fault(self):
        self.fault()


class RaisesOurError(Late, Failed):
    def fault(self):
        raise BadResults("not ours to raise")


class RaisesWarning(Refused):
    def fault(self):
        raise UserWarning("as an error")


class RaisesGroup(Refused):
    def fault(self):
        raise ExceptionGroup("several", [ValueError("a"), TypeError("b")])


# --- models with wrong attributes ------------------------------------------------------------------------------------


class HasNoBounds(Refused):
    bounds = None


class HasReversedBounds(Refused):
    bounds = (1.0, 0.0)


class HasNoClasses(Honest):
    """The number of classes is that of the last layer."""

    num_classes = 0


class CannotBeCopied(Honest):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class CannotBeCompared(Failed):
    def __eq__(self, other):
        raise TypeError("no comparison")

    __hash__ = nn.Module.__hash__


class CannotBePrinted(Honest):
    def __repr__(self):
        raise TypeError("no text")


class IsNoModel(Refused):
    def __new__(cls):
        return 5


MODELS = {
    name: kind
    for name, kind in list(globals().items())
    if isinstance(kind, type)
    and issubclass(kind, Honest)
    and name not in {"Honest", "Refused", "Failed", "Noted"}
}
