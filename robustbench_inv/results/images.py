"""Kept images: a shard for each block while a cell grows, one file when it is finished."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import explain_failures, write_atomically
from robustbench_inv.results.store import ADVERSARIAL

__all__ = ["ImageShards"]

Tensors = dict[str, np.ndarray]


class ImageShards:
    """The images of a cell under ``images/``, to become adversarial.safetensors.

    A shard is written before the records of its block, so that no record is without its image; a block
    that is evaluated again replaces its shard. A crash between the steps of ``consolidate`` leaves rows
    that are in both places, and they are the same rows.
    """

    def __init__(self, cell: Path) -> None:
        self._cell, self._folder = cell, cell / "images"

    @property
    def any(self) -> bool:
        """Are there images?"""
        return (self._cell / ADVERSARIAL).exists() or self._folder.exists()

    def add(self, block: int, samples: Sequence[int], images: Mapping[str, np.ndarray]) -> None:
        """Write the shard of a block.

        Args:
            block: number of the block.
            samples: its n sample ids.
            images: ``clean`` and ``adversarial``, each (n, …).
        """
        with explain_failures(self._folder):
            self._folder.mkdir(exist_ok=True)
        shard = {"samples": np.asarray(samples, np.int64), **images}
        write_atomically(self._folder / f"{block:06d}.safetensors", save(shard))

    def consolidate(self, samples: Sequence[int]) -> None:
        """Merge the shards into adversarial.safetensors, rows in ascending order of sample id.

        Args:
            samples: those that have records; a shard may hold others after a crash.
        """
        shards = sorted(self._folder.glob("*.safetensors"))
        if shards:
            path = self._cell / ADVERSARIAL
            parts = [_load(file) for file in (path, *shards) if file.exists()]
            write_atomically(path, save(_merge(parts, samples)))
        self._remove_shards()

    def forget(self) -> None:
        """Remove all images of the cell."""
        (self._cell / ADVERSARIAL).unlink(missing_ok=True)
        self._remove_shards()

    def _remove_shards(self) -> None:
        if self._folder.exists():
            with explain_failures(self._folder):
                for file in self._folder.iterdir():
                    file.unlink()
                self._folder.rmdir()


def _merge(parts: Sequence[Tensors], recorded: Sequence[int]) -> Tensors:
    samples = np.concatenate([part["samples"] for part in parts])
    _, rows = np.unique(samples, return_index=True)
    rows = rows[np.isin(samples[rows], np.asarray(recorded))]
    merged = {"samples": samples[rows]}
    for name in ("clean", "adversarial"):
        merged[name] = np.concatenate([part[name] for part in parts])[rows]
    return merged


def _load(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadResults(f"cannot read {path}: {error}") from error
