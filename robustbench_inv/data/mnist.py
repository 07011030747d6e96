"""MNIST and related data sets: mnist5k, mnist, fashion-mnist, and the human-labelled invariance-mnist."""

from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from robustbench_inv.data.arrays import ArrayDataset, Ids, checked_ids, digest_samples
from robustbench_inv.data.fetch import Source, fetch_file, find_source, locate
from robustbench_inv.data.formats import parse_array, parse_images, parse_labels
from robustbench_inv.errors import BadData, BadParameter
from robustbench_inv.tensors import blocks, flatten

__all__ = [
    "SETS",
    "SPLITS",
    "HumanLabelled",
    "open_images",
    "open_invariance_mnist",
    "open_mnist5k",
]


SPLITS = {"test": "t10k", "train": "train"}
"""Prefix of the file names of each split."""


BUDGETS = {
    "mnist": ("mnist-linf", "mnist-l2", "l0=25"),
    "fashion-mnist": ("fashion-linf",),
}
"""Customary budgets; the largest l0 eps is the number of pixels in Tramèr et al., ICML 2020."""


def open_mnist5k() -> ArrayDataset:
    """Return the 5,000 digits that are part of the package, sorted by class."""
    return _mnist5k().copied()  # the file is read once, and its digest computed once


@cache
def _mnist5k() -> ArrayDataset:
    origin = find_source("mnist5k")
    return _read_images_and_labels(
        origin, ("images-idx3-ubyte", "labels-idx1-ubyte"), None, origin.name
    )


def open_images(
    name: str, split: str = "test", root: Path | None = None, *, pad: int = 0
) -> ArrayDataset:
    """Return ``mnist`` or ``fashion-mnist``; missing files are fetched.

    Args:
        name: name of the data set.
        split: ``test`` (10,000 images) or ``train`` (60,000).
        root: folder with ``mnist/`` and ``fashion-mnist/``; None for ``INVBENCH_DATA``, system folders and the cache.
        pad: black pixels added on each side, 0 to 18; 2 gives images of 32 × 32.

    Raises:
        BadParameter: for an unknown split, or a padding out of range.
        BadData: if the root does not exist, or a file is damaged or cannot be fetched.
    """
    if split not in SPLITS:
        raise BadParameter(
            f"unknown split of {name}", got=split, expected="one of " + ", ".join(SPLITS)
        )
    if not 0 <= pad <= 18:
        raise BadParameter(f"pad of {name} out of range", got=pad, expected="0 to 18")
    if root is not None and not root.is_dir():
        raise BadData("no such data root", got=str(root), expected="an existing folder")
    files = (f"{SPLITS[split]}-images-idx3-ubyte", f"{SPLITS[split]}-labels-idx1-ubyte")
    chosen = {"split": split} if split != "test" else {}
    chosen |= {"pad": str(pad)} if pad else {}
    full = ":".join([name, *([",".join(f"{k}={v}" for k, v in chosen.items())] if chosen else [])])
    return _read_images_and_labels(find_source(name), files, root, full, pad)


def _read_images_and_labels(
    origin: Source, files: tuple[str, str], root: Path | None, name: str, pad: int = 0
) -> ArrayDataset:
    paths = [
        locate(origin, file, root) or fetch_file(origin, file, origin.target(root))
        for file in files
    ]
    data = [origin.content(path, file) for path, file in zip(paths, files, strict=True)]
    images, labels = parse_images(data[0], str(paths[0])), parse_labels(data[1], str(paths[1]))
    framed = padded(torch.from_numpy(images)[:, None], [pad] * 4)
    budgets = BUDGETS[origin.name.removesuffix("5k")]
    return ArrayDataset(framed, labels, name, num_classes=10, budgets=budgets)


SETS = {
    "l0": ("indexs", "l0_automated"),
    "linf-0.3": ("indexs", "linf_automated_eps03"),
    "linf-0.4": ("indexs", "linf_automated_eps04"),
    "linf-0.4-manual": ("linf_manual_indexs", "linf_manual_eps04"),
}
"""Files of each set: ids in MNIST's test set, and altered images. A third file has the labels."""

MATCH_TOLERANCE = 1e-6
"""Largest difference of an element between an image and the labelled one: less than a grey level."""


class HumanLabelled:
    """Labelled inputs with an altered version of each, and human labels of the altered versions.

    Its samples are the original inputs. As an oracle, it returns labels only for originals and altered versions.

    Args:
        originals: the original inputs.
        altered: (N, *shape) float32 inside the originals' bounds.
        human: (N,) int64, human labels of the altered versions.
        name: name of the data set in reports.

    Raises:
        BadData: if the shapes of altered versions or labels do not match the originals.

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
                f"{name}: altered versions have another shape than the originals",
                got=tuple(altered.shape),
                expected=str((len(originals), *originals.shape)),
            )
        self._originals, self.name = originals, name
        self.num_classes, self.bounds = originals.num_classes, originals.bounds
        self.budgets = originals.budgets
        self.shape, self.labels, self.human = originals.shape, originals.labels, human

    def __repr__(self) -> str:
        return f"HumanLabelled({self.name!r}, {len(self)} x {self.shape})"

    def __len__(self) -> int:
        return len(self._originals)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over both versions of all samples and both labels, 64 hexadecimal digits."""
        labels = torch.cat([self.labels, self.human])
        return digest_samples(blocks(self._known, len(self)), labels, self.bounds)

    def batch(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Return original images (n, *shape) and their labels (n,)."""
        return self._originals.batch(ids)

    def counterparts(self, ids: Ids) -> Tensor:
        """Return the altered version of each sample, (n, *shape)."""
        return self._altered.batch(checked_ids(ids, len(self)))[0]

    def classify(self, images: Tensor) -> Tensor:
        """Return what people said of an altered version, an original's label, −1 of any other image.

        Args:
            images: (n, *shape); exact but for the rounding of another dtype.

        Returns:
            (n,) int64.
        """
        given = flatten(images.detach().cpu().float())
        known = flatten(self._known)
        nearest = torch.cdist(given, known).argmin(1)
        same = (given - known[nearest]).abs().amax(1) <= MATCH_TOLERANCE
        labels = torch.cat([self.labels, self.human])
        return labels[nearest].where(same, -1).to(images.device)

    @cached_property
    def _known(self) -> Tensor:
        """(2 N, *shape): originals, then altered versions."""
        everyone = torch.arange(len(self))
        return torch.cat([self.batch(everyone)[0].float(), self.counterparts(everyone).float()])


def open_invariance_mnist(chosen: str, root: Path | None = None) -> HumanLabelled:
    """Return a set of invariance-based adversarial examples by Tramèr et al.; missing files are fetched.

    Args:
        chosen: one of ``SETS``: few pixels changed, or every pixel by at most 0.3 or 0.4, by a program or by hand.
        root: folder with ``invariance-mnist/`` and ``mnist/``; None for ``INVBENCH_DATA`` and the cache.

    Raises:
        BadParameter: for an unknown set.
        BadData: if a file is damaged or cannot be fetched.
    """
    if chosen not in SETS:
        raise BadParameter(
            "unknown set of invariance-mnist", got=chosen, expected="one of " + ", ".join(SETS)
        )
    origin, (which, stem) = find_source("invariance-mnist"), SETS[chosen]
    ids = _read_npy(origin, f"{which}.npy", root).long()
    altered = _read_npy(origin, f"{stem}.npy", root).float().reshape(len(ids), 1, 28, 28) / 255
    human = _read_npy(origin, f"{stem}_labels.npy", root).long()
    images, labels = open_images("mnist", "test", root).batch(ids)
    name = f"invariance-mnist:set={chosen}"
    originals = ArrayDataset(images, labels, name, num_classes=10, budgets=BUDGETS["mnist"])
    return HumanLabelled(originals, altered, human, name)


def _read_npy(origin: Source, file: str, root: Path | None) -> Tensor:
    path = locate(origin, file, root) or fetch_file(origin, file, origin.target(root))
    array = parse_array(origin.content(path, file), str(path))
    return torch.from_numpy(np.ascontiguousarray(array))
