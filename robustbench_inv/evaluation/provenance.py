"""Describes a cell before it runs: everything its records depend on, and the software that made them."""

import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.identity import IDENTITY_VERSION, digest_bytes, digest_file, digest_value
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.cell_parts import ThresholdInfo
from robustbench_inv.results.certificates import CERTIFICATES_FILE
from robustbench_inv.results.run_files import CELL, RunFolder

__all__ = ["describe_cell", "digest_package", "digest_subject", "git_state", "versions"]


PACKAGES = (
    "robustbench-inv",
    "torch",
    "numpy",
    "foolbox",
    "torchattacks",
    "adv-lib",
    "safetensors",
)


def describe_cell(job: Job, device: str) -> dict[str, Any]:
    """Return the content of cell.json but for version, batch size and segments."""
    model, attack, data = job.model, job.attack, job.dataset
    return {
        "identity": {"version": IDENTITY_VERSION, **vars(job.spec)},
        "model": {
            "name": model.name,
            "digest": model.digest,
            "weights_digest": model.weights_digest,
            "rejection": _rejection(model.card),
            "card": {key: value for key, value in model.card.items() if key != "rejection"},
        },
        "attack": {
            "name": attack.name,
            "digest": attack.digest,
            "kind": attack.attack.kind,
            "implementation": attack.card.get("implementation", ""),
            "parameters": attack.card.get("parameters", {}),
            "goal": attack.goal.name,
            "card": attack.card,
        },
        "threat": job.threat_description,
        "dataset": {
            "name": data.name,
            "digest": data.digest,
            "size": len(data),
            "num_classes": data.num_classes,
            "bounds": list(data.bounds),
            "shape": list(data.shape),
        },
        "seed": job.seed,
        "device": device,
        "dtype": str(model.classifier.dtype).removeprefix("torch."),
        "versions": versions(),
        "git": git_state(),
    }


def _rejection(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the rejection thresholds of a model's card as cell.json has them."""
    about = card.get("rejection")
    return ThresholdInfo.from_json(about).to_json() if about else None


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def digest_package() -> str:
    """Return the digest of this package's source files: whether code changed that has one version."""
    root = Path(__file__).resolve().parent.parent
    files = {str(path.relative_to(root)): digest_file(path) for path in root.rglob("*.py")}
    return digest_value(files)


@cache
def git_state() -> dict[str, Any] | None:
    """Return commit and cleanliness of the checkout that this code runs from, None outside of one."""
    here = Path(__file__)
    if not _git("ls-files", here.name, folder=here.parent):
        return None
    commit = _git("rev-parse", "HEAD", folder=here.parent)
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", folder=here.parent))}


def _git(*arguments: str, folder: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def digest_subject(
    path: Path, jobs: Sequence[Job], cells: Iterable[FinishedCell], device: str, *, deep: bool
) -> str:
    """Return the digest of all that verdicts depend on: cells, records, certificates, requested samples, software.

    Args:
        path: of the run folder.
        jobs: of the plan.
        cells: those of the folder, with their records.
        device: where the models compute.
        deep: whether the costly probes are made.
    """
    folders = RunFolder(path).cells()
    return digest_value(
        {
            "cells": {cell.digest: [cell.label, *_file_digests(cell.path)] for cell in folders},
            "records": {
                cell.digest: digest_bytes(cell.ids.tobytes() + cell.broken_at.tobytes())
                for cell in cells
            },
            "jobs": {job.spec.digest: list(job.samples) for job in jobs},
            "deep": deep,
            "device": device,
            "software": {**versions(), "package": digest_package()},
        }
    )


def _file_digests(cell: Path) -> list[str]:
    paths = (cell / CELL, cell / CERTIFICATES_FILE)
    return [digest_file(path) for path in paths if path.exists()]
