"""State of torch, NumPy and a model that any code can change: saved before foreign code runs, restored after it."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "KeptModules",
    "call_keeping_modes",
    "evaluation_mode",
    "kept_modules",
    "kept_torch",
    "set_evaluation_mode",
    "state_torch",
    "stated_torch",
]

T = TypeVar("T")


@contextmanager
def kept_torch() -> Iterator[None]:
    """Restore the settings of torch and NumPy that the code inside changed.

    These are modes, default dtype and device, threads, determinism, precision and global hooks of torch, and the
    error handling of NumPy.
    """
    before = [setting.get() for setting in _SETTINGS]
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def stated_torch() -> Iterator[None]:
    """Start from torch as it is after its import, and restore the caller's settings afterwards.

    That is float32, on the CPU, with gradients, without inference mode and autocast. Threads,
    determinism, precision and global hooks stay the user's.
    """
    with kept_torch(), torch.inference_mode(mode=False):
        state_torch()
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products of float32 in float32: TF32, which cuDNN uses by default, has 10 bits of mantissa.

    Where the user has chosen a precision by torch's newer ``fp32_precision``, that stays.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        before = bool(matmul.allow_tf32), bool(cudnn.allow_tf32)
    except RuntimeError:  # torch refuses the older names then
        yield
        return
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def release_memory(device: torch.device) -> None:
    """Return cached memory to a GPU, so that a smaller batch finds it in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def state_torch() -> None:
    """Set modes, default dtype and device to what they are after torch's import."""
    for setting in _SETTINGS:
        if setting.stated is not None and setting.get() != setting.stated:
            setting.set(setting.stated)


def call_keeping_modes(function: Callable[[Tensor], T], images: Tensor) -> T:
    """Return what a model returns, and restore torch's modes and default dtype; cheap enough for every query."""
    before, process = _modes(), os.getpid()
    try:
        return function(images)
    finally:
        if os.getpid() != process:  # the model forked, and this is the child
            os._exit(0)
        if _modes() != before:
            _set_modes(before)


class KeptModules:
    """The state of some modules and of all modules inside them, to which they can be returned.

    It covers weights, buffers and plain attributes, with dtype, device and ``requires_grad``, training flags, hooks,
    and the content of lists, sets and dictionaries, but not changes inside other objects that an attribute holds.

    Args:
        roots: the modules; other objects are searched for modules among their attributes.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        found = dict.fromkeys(module for root in roots for module in _modules(root))
        self._attributes = [(module, type(module), _attributes(module)) for module in found]
        self._tensors = [_KeptTensor.of(each) for each in _tensors(found)]

    def restore(self) -> None:
        """Return the modules to their state; a lazy module that has become another since stays what it is."""
        for module, kind, attributes in self._attributes:
            if type(module) is kind:
                _set_attributes(module, attributes)
        for kept in self._tensors:
            kept.restore()


@contextmanager
def kept_modules(roots: Iterable[object]) -> Iterator[KeptModules]:
    """Hold modules in evaluation mode, yield their state, and return them to their mode and state afterwards."""
    held = tuple(roots)
    with ExitStack() as stack:
        for root in held:
            if isinstance(root, nn.Module):
                stack.enter_context(evaluation_mode(root))
        kept = KeptModules(held)
        stack.callback(kept.restore)
        yield kept


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Hold a network in evaluation mode, whatever mode it is in, and restore the mode of each of its parts."""
    modes = [(part, _mode(part)) for part in module.modules()]
    if any(training for _, training in modes):
        set_evaluation_mode(module)
    try:
        yield
    finally:
        for part, training in modes:
            if _mode(part) != training:
                part.training = training


def set_evaluation_mode(module: object) -> None:
    """Set a network to evaluation mode; an exported one has none."""
    if isinstance(module, nn.Module):
        with suppress(NotImplementedError):
            module.eval()


class _KeptTensor(NamedTuple):
    """A weight or buffer, and what it was."""

    tensor: Tensor
    values: Tensor
    requires_grad: bool
    gradient: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> "_KeptTensor":
        return cls(tensor, tensor.detach().clone(), tensor.requires_grad, tensor.grad)

    def restore(self) -> None:
        now = self.tensor.detach()
        if (
            now.dtype != self.values.dtype
            or now.device != self.values.device
            or _differ(now, self.values)
        ):
            self.tensor.data = self.values.clone()
        if self.tensor.is_leaf and self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        self.tensor.grad = self.gradient


def _differ(now: Tensor, before: Tensor) -> bool:
    return now.shape != before.shape or not torch.equal(now, before)


def _modules(root: object) -> Iterator[nn.Module]:
    if isinstance(root, nn.Module):
        yield from root.modules()
        return
    for value in getattr(root, "__dict__", {}).values():
        if isinstance(value, nn.Module):
            yield from value.modules()


def _tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    seen: dict[int, Tensor] = {}
    for module in modules:
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        plain = (value for value in vars(module).values() if isinstance(value, Tensor))
        seen |= {id(each): each for each in (*own, *plain) if _is_plain(each)}
    return iter(seen.values())


def _is_plain(tensor: Tensor) -> bool:
    """Has a tensor values to keep? A lazy one has none yet, an inference tensor cannot be written."""
    lazy = nn.parameter.is_lazy(tensor)
    plain = not lazy and not tensor.is_meta and tensor.layout == torch.strided
    return plain and not tensor.is_inference()


def _attributes(module: nn.Module) -> dict[str, tuple[object, object]]:
    """Return a module's attributes, each with a copy if it is a collection: of submodules, weights, hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        return {"training": (_mode(module), None)}
    return {name: (value, _copied(value)) for name, value in vars(module).items()}


def _mode(module: nn.Module) -> bool:
    """Is a network in training mode? A frozen traced one has no mode."""
    return bool(getattr(module, "training", False))


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, dict | set | list) else None


def _set_attributes(module: nn.Module, kept: Mapping[str, tuple[object, object]]) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        if _mode(module) != kept["training"][0]:
            module.training = bool(kept["training"][0])
        return
    own = vars(module)
    for name in own.keys() - kept.keys():
        del own[name]
    for name, (value, content) in kept.items():
        own[name] = value
        if isinstance(value, dict | set | list):
            value.clear()
            fill: Any = value.extend if isinstance(value, list) else value.update
            fill(content)


class _Setting(NamedTuple):
    """How to get and set a setting, whose values ``==`` compares, and its value after torch's import; None to keep it."""

    get: Callable[[], Any]
    set: Callable[[Any], object]
    stated: Any = None


def _restore(values: Sequence[Any]) -> None:
    for setting, value in zip(_SETTINGS, values, strict=True):
        if setting.get() != value:
            setting.set(value)


AUTOCAST_DEVICES = ("cpu", "cuda")
FRESH_MODES = (True, torch.float32, False, *(False for _ in AUTOCAST_DEVICES))


def _modes() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_inference_mode_enabled(),
        *map(torch.is_autocast_enabled, AUTOCAST_DEVICES),
    )


_LEFT_OPEN: list[object] = []
"""Guards of inference mode that live on: the mode ends when the cell does."""


def _set_modes(modes: tuple[Any, ...]) -> None:
    gradients, dtype, inference, *autocast = modes
    if torch.is_inference_mode_enabled() != inference:
        guard = torch.inference_mode(mode=inference)
        guard.__enter__()
        _LEFT_OPEN.append(guard)
    torch.set_grad_enabled(gradients)
    torch.set_default_dtype(dtype)
    for device, on in zip(AUTOCAST_DEVICES, autocast, strict=True):
        torch.set_autocast_enabled(device, on)


def _default_device() -> str:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return "" if context is None else str(context.device)


def _set_default_device(device: str) -> None:
    torch.set_default_device(device or None)


def _pop_function_modes(count: int) -> None:
    for _ in range(torch._C._len_torch_function_stack() - count):
        torch._C._pop_torch_function_stack()


def _flags() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_anomaly_enabled(),
        torch.is_anomaly_check_nan_enabled(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
    )


def _set_flags(flags: tuple[Any, ...]) -> None:
    threads, deterministic, warn_only, precision, anomaly, check_nan, cudnn = flags
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    # the public function imports the compiler, which takes seconds
    torch._C._set_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.set_float32_matmul_precision(precision)
    torch.autograd.set_detect_anomaly(anomaly, check_nan)
    for name, value in zip(("enabled", "benchmark", "deterministic"), cudnn, strict=True):
        setattr(torch.backends.cudnn, name, value)


_HOOK_TABLES = {
    name: table
    for name, table in vars(nn.modules.module).items()
    if name.startswith("_global") and isinstance(table, dict)
}
"""Hooks that torch calls for every module of the process."""


def _global_hooks() -> dict[str, dict[Any, Any]]:
    return {name: dict(table) for name, table in _HOOK_TABLES.items()}


def _set_global_hooks(hooks: dict[str, dict[Any, Any]]) -> None:
    for name, table in _HOOK_TABLES.items():
        table.clear()
        table.update(hooks[name])


_SETTINGS = (
    _Setting(torch._C._len_torch_function_stack, _pop_function_modes),
    _Setting(_default_device, _set_default_device, ""),
    _Setting(_modes, _set_modes, FRESH_MODES),
    _Setting(_flags, _set_flags),
    _Setting(_global_hooks, _set_global_hooks),
    _Setting(np.geterr, lambda errors: np.seterr(**errors)),
)
"""Function modes come first: a default device is one of them, and tensors on the device ``meta`` have no values."""
