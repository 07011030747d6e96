"""Foreign code cannot end the program, change the state of the process, or run for ever."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_inv.errors import ForeignCodeError, TimeLimitExceeded, describe_error
from robustbench_inv.foreign import foreign, foreign_call, time_limit
from robustbench_inv.torch_state import KeptModules, call_keeping_modes, stated_torch


class Odd(BaseException):
    """Not an Exception."""


class Unreadable(BaseException):
    def __str__(self):
        raise ValueError


def exit_from_generator():
    raise GeneratorExit


ENDINGS = {
    "sys.exit": lambda: sys.exit(0),
    "SystemExit": lambda: (_ for _ in ()).throw(SystemExit("bye")),
    "quit": lambda: os._exit(0),
    "abort": lambda: os.abort(),
    "exec": lambda: os.execl("/bin/true", "true"),
    "own": lambda: (_ for _ in ()).throw(Odd("x")),
    "unreadable": lambda: (_ for _ in ()).throw(Unreadable()),
    "cancelled": lambda: (_ for _ in ()).throw(asyncio.CancelledError()),
    "generator": exit_from_generator,
    "false Ctrl-C": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
    "end of an iterator": lambda: next(iter(())),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_nothing_ends_the_program(name):
    with (
        pytest.raises(ForeignCodeError, match=r"mine.py tried to end the program, got "),
        foreign("mine.py"),
    ):
        ENDINGS[name]()


def test_exceptions_pass():
    with pytest.raises(ZeroDivisionError), foreign("mine.py"):
        1 / 0  # noqa: B018


def test_the_users_interrupt_passes():
    with pytest.raises(KeyboardInterrupt), foreign("mine.py"):
        signal.raise_signal(signal.SIGINT)


def test_the_users_interrupt_passes_every_guard():
    with pytest.raises(KeyboardInterrupt), foreign("outer"), foreign_call("inner"):
        signal.raise_signal(signal.SIGINT)


def test_a_false_interrupt_in_an_inner_guard_is_an_error():
    with pytest.raises(ForeignCodeError, match="inner"), foreign("outer"), foreign_call("inner"):
        raise KeyboardInterrupt


def press_and_ignore():
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_foreign_code_catches_is_raised_afterwards():
    with pytest.raises(KeyboardInterrupt), foreign("mine.py"):
        press_and_ignore()


def test_a_forked_child_does_not_continue():
    code = (
        "import os\nfrom robustbench_inv.foreign import foreign\n"
        "with foreign('x'):\n    child = os.fork()\n    child and os.waitpid(child, 0)\nprint('once')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "once\n"


ENTERED = []


def enter(context):
    """Enter a context and never leave it; it is kept, since torch leaves it when it is deleted."""
    ENTERED.append(context)
    context.__enter__()


def add_hook():
    nn.modules.module.register_module_forward_hook(lambda *given: given[-1] + 1)


CHANGES = {
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "inference": (
        lambda: enter(torch.inference_mode()),
        torch.is_inference_mode_enabled,
    ),
    "autocast": (
        lambda: enter(torch.autocast("cpu")),
        lambda: torch.is_autocast_enabled("cpu"),
    ),
    "device": (lambda: torch.set_default_device("meta"), lambda: torch.zeros(1).device),
    "device entered": (lambda: enter(torch.device("meta")), lambda: torch.zeros(1).device),
    "threads": (
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        torch.get_num_threads,
    ),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "anomaly": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "global hook": (add_hook, lambda: nn.Identity()(torch.zeros(1)).item()),
    "numpy errors": (lambda: np.seterr(all="raise"), np.geterr),
    "folder": (lambda: os.chdir("/"), os.getcwd),
    "environment": (lambda: os.environ.update(HOME="/x"), lambda: os.environ["HOME"]),
    "path": (lambda: sys.path.insert(0, "/x"), lambda: list(sys.path)),
    "path replaced": (lambda: setattr(sys, "path", []), lambda: list(sys.path)),
    "arguments": (sys.argv.clear, lambda: list(sys.argv)),
    "stdout": (lambda: setattr(sys, "stdout", None), lambda: sys.stdout),
    "filters": (
        lambda: warnings.simplefilter("ignore", BytesWarning),
        lambda: list(warnings.filters),
    ),
    "signal": (
        lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGTERM),
    ),
    "timer": (lambda: signal.alarm(30), lambda: signal.getitimer(signal.ITIMER_REAL)[0]),
    "file mode": (lambda: os.umask(0o777), lambda: (mask := os.umask(0), os.umask(mask))[0]),
    "recursion": (lambda: sys.setrecursionlimit(5000), sys.getrecursionlimit),
    "collection": (gc.disable, gc.isenabled),
    "excepthook": (lambda: setattr(sys, "excepthook", print), lambda: sys.excepthook),
    "thread hook": (lambda: setattr(threading, "excepthook", print), lambda: threading.excepthook),
}


@pytest.mark.parametrize("name", CHANGES)
def test_state_is_restored(name):
    change, value = CHANGES[name]
    with foreign("outside"):  # so that a failure stays in this test
        before = value()
        with foreign("mine.py"):
            change()
            changed = value()
        assert value() == before != changed


@pytest.mark.parametrize("name", ["default dtype", "gradients", "inference", "autocast"])
def test_one_call_of_a_model_restores_modes(name):
    change, value = CHANGES[name]
    with foreign("outside"):
        before = value()
        images = torch.zeros(2)
        assert call_keeping_modes(lambda given: (change(), given)[1], images) is images
        assert value() == before


def test_the_stated_state_does_not_depend_on_the_caller():
    before = torch.get_default_dtype()
    with torch.inference_mode(), foreign("outside"):
        torch.set_default_dtype(torch.float64)
        with stated_torch():
            assert torch.zeros(1, requires_grad=True).exp().requires_grad
            assert torch.zeros(1).dtype == torch.float32
            assert not torch.zeros(1).is_inference()
        assert torch.get_default_dtype() == torch.float64
        assert torch.is_inference_mode_enabled()
    assert torch.get_default_dtype() == before


def sleep_on():
    while True:
        with contextlib.suppress(Exception):
            time.sleep(5)


def spin():
    while True:
        pass


def wait_for_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def call(what, seconds, code):
    with time_limit(seconds), foreign_call(what):
        code()


@pytest.mark.parametrize("hang", [sleep_on, spin, wait_for_a_lock])
def test_a_hang_ends_at_the_time_limit(hang):
    line = r"mine.py took longer than the time limit of 0.05 seconds; raise it with --timeout"
    with pytest.raises(TimeLimitExceeded, match=line):
        call("mine.py", 0.05, hang)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_call_inside_another_has_its_own_limit():
    with pytest.raises(TimeLimitExceeded, match="inner"):
        call("outer", 5, lambda: call("inner", 0.01, spin))


def test_the_outer_limit_holds_after_an_inner_call():
    def nested():
        call("inner", 5, int)
        spin()

    with pytest.raises(TimeLimitExceeded, match="outer"):
        call("outer", 0.05, nested)


class Changing(nn.Module):
    """A network with a weight, a buffer, a counter and dropout."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(3, 2), nn.Dropout()
        self.register_buffer("mean", torch.zeros(3))
        self.calls, self.noise = 0, torch.ones(2)


MODULE_CHANGES = {
    "mode": lambda net: net.eval(),
    "one mode": lambda net: net.drop.eval(),
    "dtype": lambda net: net.double(),
    "weight": lambda net: net.layer.weight.data.add_(1),
    "weight replaced": lambda net: setattr(net.layer, "weight", nn.Parameter(torch.ones(2, 3))),
    "buffer": lambda net: net.mean.add_(1),
    "attribute": lambda net: setattr(net, "calls", net.calls + 1),
    "new attribute": lambda net: setattr(net, "cache", torch.ones(1)),
    "tensor attribute": lambda net: net.noise.mul_(3),
    "requires_grad": lambda net: net.requires_grad_(False),
    "hook": lambda net: net.layer.register_forward_hook(lambda *_: None),
    "gradient": lambda net: net.layer(torch.ones(1, 3)).sum().backward(),
    "layer removed": lambda net: delattr(net, "drop"),
    "forward": lambda net: setattr(net, "forward", lambda images: images),
}


def describe(net):
    tensors = (*net.parameters(), *net.buffers(), net.noise)
    return [
        [(t.dtype, t.tolist(), t.requires_grad, t.grad is None) for t in tensors],
        [(name, m.training, len(m._forward_hooks)) for name, m in net.named_modules()],
        sorted(vars(net)),
        net.calls,
    ]


@pytest.mark.parametrize("name", MODULE_CHANGES)
def test_modules_return_to_their_state(name):
    net = Changing()
    before, kept = describe(net), KeptModules([net])
    for _ in range(2):
        MODULE_CHANGES[name](net)
        kept.restore()
        assert describe(net) == before


def test_modules_inside_another_object_are_kept():
    class Holder:
        def __init__(self):
            self.net = Changing()

    holder = Holder()
    kept = KeptModules([holder])
    holder.net.eval()
    kept.restore()
    assert holder.net.training


def test_a_lazy_module_that_was_completed_stays_complete():
    net = nn.Sequential(nn.LazyLinear(2))
    kept = KeptModules([net])
    net(torch.ones(1, 3))
    kept.restore()
    assert net(torch.ones(1, 3)).shape == (1, 2)


def test_texts_of_errors_have_no_escapes():
    assert (
        describe_error(ValueError("a \x1b[31mred\x1b[0m\x07 line\nmore"))
        == "ValueError: a red line"
    )
