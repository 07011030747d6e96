"""``invbench doctor``: what works on this machine, and what to do about the rest."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from robustbench_inv.cli.options import DataRoot, Json, option
from robustbench_inv.cli.output import print_json, print_line

__all__ = ["Finding", "doctor"]

State = Literal["ok", "absent", "broken"]
"""``absent``: optional and not there. ``broken``: there, and unusable; the exit code is 1."""

EXTRAS = {
    "torchattacks": ("torchattacks", "torchattacks"),
    "adv_lib": ("adv_lib", "adv-lib"),
    "ray": ("ray", "ray"),
    "timm": ("timm", "timm"),
    "torchvision": ("torchvision", "torchvision"),
    "transformers": ("transformers", "hf"),
    "datasets": ("datasets", "hf"),
    "robustbench": ("robustbench", "robustbench"),
}
"""Module and extra of each optional library."""

FREE = 1 << 30
"""Bytes of free disk space below which a run may not fit."""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis: about what, in which state, and the remedy or the facts."""

    topic: str
    name: str
    state: State
    text: str


def doctor(
    data_root: DataRoot = None,
    fast: Annotated[
        bool, option("--fast", help="Neither import optional libraries nor verify weights.")
    ] = False,
    json: Json = False,
) -> None:
    """Show versions, devices, data, weights, optional libraries and plugins, with a remedy for what is missing.

    The exit code is 1 if something is broken. What is optional and absent does not count.
    """
    from robustbench_inv.arguments import check_root

    check_root(data_root)
    found: list[Finding] = []
    for finding in _findings(data_root, fast=fast):
        found.append(finding)
        if not json:
            print_line(f"{finding.state:<7} {finding.topic}: {finding.name}: {finding.text}")
    if json:
        print_json([asdict(finding) for finding in found])
    raise typer.Exit(1 if any(each.state == "broken" for each in found) else 0)


def _findings(root: Path | None, *, fast: bool) -> Iterator[Finding]:
    yield from _versions()
    yield from _devices()
    yield from _disk()
    yield from _data(root)
    if not fast:
        yield from _weights()
        yield from _libraries()
    yield from _catalogue()


def _versions() -> Iterator[Finding]:
    from robustbench_inv import __version__
    from robustbench_inv.evaluation.provenance import versions

    yield Finding("version", "robustbench-inv", "ok", __version__)
    for name, version in versions().items():
        if name != "robustbench-inv":
            yield Finding("version", name, "ok", version)
    for name in sorted(each for each in os.environ if each.startswith("INVBENCH_")):
        yield Finding("environment", name, "ok", os.environ[name])


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("device", "cpu", "ok", f"{torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        yield Finding("device", f"cuda:{i}", *_device_state(f"cuda:{i}"))
    if not torch.cuda.is_available():
        yield Finding("device", "cuda", "absent", "torch finds none")
    if torch.backends.mps.is_available():
        yield Finding("device", "mps", *_device_state("mps"))


def _device_state(device: str) -> tuple[State, str]:
    """Multiply two numbers on a device."""
    import torch

    from robustbench_inv.errors import describe_error

    try:
        right = float(torch.full((), 2.0, device=device) * 3) == 6
    except Exception as error:  # a driver that does not fit the build of torch
        return "broken", describe_error(error)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return ("ok", name) if right else ("broken", "two times three is not six")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    yield Finding("disk", "here", "ok" if free > FREE else "broken", text)


def _data(root: Path | None) -> Iterator[Finding]:
    """Verify the files that are here; nothing is downloaded."""
    from robustbench_inv.data.archives import ARCHIVES, verify_files
    from robustbench_inv.data.registry import DATASETS

    for name, known in DATASETS.items():
        if not known.has_files and name not in ARCHIVES:
            yield Finding("data", name, "ok", "generated")
            continue
        wrong = [check for check in verify_files(name, root) if not check.ok]
        missing = [check for check in wrong if not check.file.is_file()]
        if not wrong:
            yield Finding("data", name, "ok", "verified")
        elif missing:
            yield Finding("data", name, "absent", f"invbench data fetch {name}")
        else:
            yield Finding("data", name, "broken", f"{wrong[0].file}: {wrong[0].message}")


def _weights() -> Iterator[Finding]:
    from robustbench_inv.catalogue.cards import read_model
    from robustbench_inv.catalogue.locate import entries
    from robustbench_inv.errors import BadCatalogue
    from robustbench_inv.identity import digest_file

    good = 0
    for name, path in entries("models").items():
        try:
            expected = read_model(path).weights_sha256
        except BadCatalogue as error:
            yield Finding("model", name, "broken", str(error))
            continue
        file = path.parent / "weights.safetensors"
        if expected is None:
            continue
        if not file.is_file():
            yield Finding("weights", name, "broken", f"{file} is missing")
        elif digest_file(file) != expected:
            yield Finding("weights", name, "broken", f"{file} has another SHA-256 than its card")
        else:
            good += 1
    yield Finding("weights", "shipped models", "ok", f"{good} verified")


def _libraries() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    from robustbench_inv.errors import MissingExtra, import_library
    from robustbench_inv.foreign import foreign_call

    for name, (module, extra) in EXTRAS.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield Finding("library", name, "absent", f'pip install "robustbench-inv[{extra}]"')
            continue
        try:
            with foreign_call(name):
                import_library(module, extra)
        except MissingExtra as error:
            yield Finding("library", name, "absent", f"{installed}; {error}")
        else:
            yield Finding("library", name, "ok", installed)


def _catalogue() -> Iterator[Finding]:
    from robustbench_inv.catalogue.locate import catalogue_roots, find_plugins, shadowed, unread

    for place in catalogue_roots():
        yield Finding("catalogue", place.name, "ok", str(place))
    for problem in (*find_plugins().problems, *shadowed(), *unread()):
        yield Finding("catalogue", "problem", "broken", problem)
