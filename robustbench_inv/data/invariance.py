"""The data set ``invariance-mnist``: digits altered until people saw another class, with the labels they gave."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.data.arrays import ArrayDataset, digest_samples
from robustbench_inv.data.fetch import fetch_file
from robustbench_inv.data.ids import Ids, checked_ids
from robustbench_inv.data.images import open_images
from robustbench_inv.data.npy import parse_array
from robustbench_inv.data.sources import Source, locate, source, verified
from robustbench_inv.errors import BadData, BadParameter
from robustbench_inv.tensors import flatten

__all__ = ["SETS", "HumanLabelled", "open_invariance_mnist"]

SETS = {
    "l0": ("indexs", "l0_automated"),
    "linf-0.3": ("indexs", "linf_automated_eps03"),
    "linf-0.4": ("indexs", "linf_automated_eps04"),
    "linf-0.4-manual": ("linf_manual_indexs", "linf_manual_eps04"),
}
"""Set → its files: which images of MNIST's test set, and what was made of them (labels in a third file)."""

EXACT = 1e-6
"""How far an element may be off for an image still to be the one that was labelled: rounding, no grey level."""


class HumanLabelled:
    """Labelled inputs, an altered version of each, and the classes that people saw in the altered ones.

    Its samples are the originals. As an oracle it knows these and the altered versions, and nothing else.

    Args:
        originals: the inputs as they were.
        altered: (N, *shape) float32 inside the originals' bounds.
        human: (N,) int64, what people see in the altered versions.
        name: how reports call it.

    Raises:
        BadData: if altered versions or labels are not those of so many inputs.

    References:
        Tramèr, Behrmann, Carlini, Papernot and Jacobsen, Fundamental tradeoffs between invariance and
        sensitivity to adversarial perturbations, ICML 2020, section 5.
    """

    oracle_source = "human"

    def __init__(self, originals: ArrayDataset, altered: Tensor, human: Tensor, name: str) -> None:
        self._altered = ArrayDataset(
            altered, human, name, originals.bounds, num_classes=originals.num_classes
        )
        if (len(self._altered), self._altered.shape) != (len(originals), originals.shape):
            raise BadData(
                f"{name}: altered versions do not fit their originals",
                got=tuple(altered.shape),
                expected=str((len(originals), *originals.shape)),
            )
        self._originals, self.name = originals, name
        self.num_classes, self.bounds = originals.num_classes, originals.bounds
        self.shape, self.labels, self.human = originals.shape, originals.labels, human

    def __repr__(self) -> str:
        return f"HumanLabelled({self.name!r}, {len(self)} x {self.shape})"

    def __len__(self) -> int:
        return len(self._originals)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over both versions of all samples and both labels, 64 hexadecimal digits."""
        labels = torch.cat([self.labels, self.human])
        return digest_samples(self._known.split(len(self)), labels, self.bounds)  # type: ignore[no-untyped-call]

    def batch(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Return original images (n, *shape) and their labels (n,)."""
        return self._originals.batch(ids)

    def counterparts(self, ids: Ids) -> Tensor:
        """Return the altered version of each sample, (n, *shape)."""
        return self._altered.batch(checked_ids(ids, len(self)))[0]

    def judge(self, images: Tensor) -> Tensor:
        """Return what people said of an altered version, an original's label, −1 of any other image.

        Args:
            images: (n, *shape); exact but for the rounding of another dtype.

        Returns:
            (n,) int64.
        """
        given = flatten(images.detach().cpu().float())
        known = flatten(self._known)
        nearest = torch.cdist(given, known).argmin(1)
        same = (given - known[nearest]).abs().amax(1) <= EXACT
        labels = torch.cat([self.labels, self.human])
        return labels[nearest].where(same, -1).to(images.device)

    @cached_property
    def _known(self) -> Tensor:
        """(2 N, *shape): originals, then altered versions."""
        everyone = torch.arange(len(self))
        return torch.cat([self.batch(everyone)[0].float(), self.counterparts(everyone).float()])


def open_invariance_mnist(chosen: str, root: Path | None = None) -> HumanLabelled:
    """Return one of the sets of Tramèr et al., fetched with MNIST's test set if they are nowhere on this machine.

    Args:
        chosen: one of ``SETS``: few pixels changed, or every pixel by at most 0.3 or 0.4, by a program or by hand.
        root: folder that holds ``invariance-mnist/`` and ``mnist/``; None for ``INVBENCH_DATA`` and the cache.

    Raises:
        BadParameter: for another set.
        BadData: if a file is damaged, or is missing and cannot be fetched.
    """
    if chosen not in SETS:
        raise BadParameter(
            "unknown set of invariance-mnist", got=chosen, expected="one of " + ", ".join(SETS)
        )
    origin, (which, stem) = source("invariance-mnist"), SETS[chosen]
    ids = _read(origin, f"{which}.npy", root).long()
    altered = _read(origin, f"{stem}.npy", root).float().reshape(len(ids), 1, 28, 28) / 255
    human = _read(origin, f"{stem}_labels.npy", root).long()
    images, labels = open_images("mnist", "test", root).batch(ids)
    name = f"invariance-mnist:set={chosen}"
    originals = ArrayDataset(images, labels, name, num_classes=10)
    return HumanLabelled(originals, altered, human, name)


def _read(origin: Source, file: str, root: Path | None) -> Tensor:
    path = locate(origin, file, root) or fetch_file(origin, file, origin.target(root))
    array = parse_array(verified(path, origin.sha256[file]), str(path))
    return torch.from_numpy(np.ascontiguousarray(array))
