"""Files of arrays, and what a function returns, as data sets."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.data.image_folder import Resizing
from robustbench_inv.data.own_data import arrays_to_dataset
from robustbench_inv.data.sources import SOURCES, _from_samples, dataset_of, open_source
from robustbench_inv.errors import BadData, BadParameter

X = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
Y = np.arange(12) % 3
SAME = arrays_to_dataset(X, Y).digest


class Samples(torch.utils.data.Dataset):
    """A data set of torch; ``change`` makes each image from the stored one."""

    def __init__(self, change, count=12):
        self.change, self.count = change, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.change(X[i]), int(Y[i])


class Listed(torch.utils.data.Dataset):
    """A data set of torch that returns the samples of a list."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


@pytest.mark.parametrize(
    ("names", "parameters"),
    [
        (("x", "y"), {}),
        (("images", "labels"), {}),
        (("arr_0", "arr_1"), {}),
        (("a", "b"), {"x": "a", "y": "b"}),
    ],
)
def test_npz_files(tmp_path, names, parameters):
    np.savez(tmp_path / "d.npz", **dict(zip(names, (X, Y), strict=True)))
    data = open_source("npz", str(tmp_path / "d.npz"), parameters, "mine")
    assert (data.digest, data.name, data.num_classes) == (SAME, "mine", 3)


def test_npz_files_without_the_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", a=X, b=Y)
    with pytest.raises(BadData, match=r"no array x or images .*got 'a, b'.*x=NAME"):
        open_source("npz", str(tmp_path / "d.npz"), {}, "mine")
    with pytest.raises(BadData, match="no such file"):
        open_source("npz", str(tmp_path / "e.npz"), {}, "mine")


def test_pickled_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("code in a file was run",)

    objects = np.array([Trap()], dtype=object)
    np.savez(tmp_path / "d.npz", x=objects, y=Y)
    np.save(tmp_path / "x.npy", objects)
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Trap()))
    for kind, file in (("npz", "d.npz"), ("npz", "p.npz"), ("npy", "x.npy"), ("npy", "p.npy")):
        parameters = {"labels": str(tmp_path / "x.npy")} if kind == "npy" else {}
        with pytest.raises(BadData, match="without Python objects"):
            open_source(kind, str(tmp_path / file), parameters, "mine")


def test_npy_files_with_labels_in_a_second_file(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "y.txt").write_text("\n".join("abc"[label] for label in Y))
    for file in ("y.npy", "y.txt"):
        labels = {"labels": str(tmp_path / file)}
        data = open_source("npy", str(tmp_path / "x.npy"), labels, "mine")
        assert data.digest == SAME
    assert data.classes == ("a", "b", "c")
    with pytest.raises(BadData, match="labels=FILE"):
        open_source("npy", str(tmp_path / "x.npy"), {}, "mine")


def test_numbers_in_a_text_are_labels(tmp_path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "y.txt").write_text("\n".join(str(11 - i) for i in range(12)))
    data = open_source("npy", str(tmp_path / "x.npy"), {"labels": str(tmp_path / "y.txt")}, "m")
    assert data.labels.tolist() == list(range(11, -1, -1))


def test_damaged_files_are_one_line(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    labels = {"labels": str(tmp_path / "y.npy")}
    for kind, name in (("npy", "x.npy"), ("npz", "d.npz")):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(BadData, match="has no arrays"):
            open_source(kind, str(tmp_path / name), labels if kind == "npy" else {}, "m")


def test_bounds_and_classes_of_a_source(tmp_path):
    np.savez(tmp_path / "d.npz", x=X[:, 0, 0] / 50 - 2, y=Y)
    given = {"low": -3, "high": 4.0}
    data = open_source("npz", str(tmp_path / "d.npz"), given, "table")
    assert (data.bounds, data.shape) == ((-3, 4), (3,))
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\ndog\n")
    given["classes"] = str(tmp_path / "classes.txt")
    data = open_source("npz", str(tmp_path / "d.npz"), given, "table")
    assert (data.num_classes, data.classes[3]) == (4, "dog")


@pytest.mark.parametrize(
    ("kind", "parameters", "problem"),
    [
        ("npz", {"size": 3}, "unknown parameter of npz:"),
        ("npz", {"low": "a"}, "invalid low"),
        ("npz", {"low": True}, "invalid low"),
        ("folder", {"size": 2.5}, "invalid size"),
        ("folder", {"layout": "nhwc"}, "unknown parameter of folder:"),
    ],
)
def test_parameters_are_checked(kind, parameters, problem):
    with pytest.raises(BadParameter, match=problem):
        open_source(kind, "nowhere", parameters, "mine")


@pytest.mark.parametrize(
    "built",
    [
        (X, Y),
        [torch.tensor(X), torch.tensor(Y)],
        {"x": X, "y": Y},
        Samples(Image.fromarray),
        Samples(lambda image: torch.tensor(image).permute(2, 0, 1)),
        Samples(lambda image: image),
        torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)),
        ArrayDataset(X.transpose(0, 3, 1, 2).copy(), Y, "own"),
    ],
    ids=[
        "arrays",
        "tensors",
        "mapping",
        "pillow",
        "torch",
        "numpy",
        "tensordataset",
        "arraydataset",
    ],
)
def test_what_a_function_may_return(built):
    data = dataset_of(built, "mine.py:build")
    assert data.digest == SAME
    assert data.name == ("own" if isinstance(built, ArrayDataset) else "mine.py:build")


def deep(kind, scale):
    """Return a change of an image to one of Pillow with more than 8 bits."""
    return lambda image: Image.fromarray((image[..., 0] / 255 * scale).astype(kind))


@pytest.mark.parametrize(
    ("kind", "scale", "mode"),
    [("uint16", 65535, "I;16"), ("int32", 65535, "I"), ("float32", 1, "F")],
)
@pytest.mark.parametrize("resizing", [Resizing(), Resizing(4)])
def test_images_of_more_than_8_bits_are_refused(kind, scale, mode, resizing):
    """Their conversion to colours is saturated at 255, without a warning."""
    with pytest.raises(BadData, match=rf"8 bits a channel, got 'mode {mode} of Pillow'.*65535"):
        _from_samples(Samples(deep(kind, scale)), "mine", resizing)


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3)])
def test_grey_images_of_pillow_have_one_channel(mode, channels):
    data = dataset_of(Samples(lambda image: Image.fromarray(image).convert(mode)), "mine")
    assert data.shape == (channels, 8, 8)
    grey = np.asarray(Image.fromarray(X[3]).convert(mode).convert("L" if channels == 1 else "RGB"))
    pixels = torch.tensor(grey).reshape(8, 8, channels).permute(2, 0, 1)
    assert data.batch([3])[0][0].allclose(pixels / 255)


def test_grey_images_among_images_of_colour_have_three_channels():
    def change(image):
        return Image.fromarray(image).convert("L" if image[0, 0, 0] % 2 else "RGB")

    data = dataset_of(Samples(change), "mine")
    assert data.shape == (3, 8, 8)
    grey = next(i for i in range(12) if X[i, 0, 0, 0] % 2)
    assert data.batch([grey])[0][0].std(0).max() == 0


@pytest.mark.parametrize("library", [torch.eye, np.eye, lambda n: np.eye(n).tolist()])
def test_one_hot_labels_of_a_torch_data_set_are_refused_as_those_of_arrays(library):
    samples = [(X[i], library(3)[Y[i]]) for i in range(12)]
    with pytest.raises(BadData, match=r"labels of the wrong shape.*argmax\(1\) of one-hot"):
        dataset_of(Listed(samples), "mine")
    columns = Listed([(x, [label[1]]) for x, label in samples])
    assert dataset_of(columns, "mine").labels.tolist() == (Y == 1).astype(int).tolist()
    with pytest.raises(BadData, match="a label is no class, got 'dict'"):
        dataset_of(Listed([(x, {"boxes": label}) for x, label in samples]), "mine")


def test_classes_of_a_torch_data_set_are_kept():
    samples = Samples(Image.fromarray)
    samples.classes = ["ant", "bee", "cow", "dog"]
    data = dataset_of(samples, "mine")
    assert (data.classes, data.num_classes) == (("ant", "bee", "cow", "dog"), 4)


@pytest.mark.parametrize(
    ("built", "problem"),
    [
        (3, "no data set"),
        ("text", "no data set"),
        (iter([(X[0], 0)]), "no data set"),
        (torch.utils.data.DataLoader(Samples(Image.fromarray)), "no data set"),
        (Samples(lambda image: image + torch.rand(8, 8, 3).numpy()), "random augmentation"),
        (Samples(lambda image: image[: 1 + image[0, 0, 0] % 7]), "differ in shape"),
        (Samples(lambda image: torch.tensor(image).permute(2, 0, 1) / 64.0 - 2), "normalisation"),
        ([X[0], X[1], X[2]], "no pair"),
        (Samples(Image.fromarray, 0), "no samples"),
    ],
    ids=lambda value: None if not isinstance(value, str) else value.replace(" ", "-"),
)
def test_what_is_no_data_set_is_refused(built, problem):
    with pytest.raises(BadData, match=problem):
        dataset_of(built, "mine")


def test_the_sources_are_those_that_references_name():
    from robustbench_inv.catalogue.references import DATA_SOURCES

    assert tuple(SOURCES) == DATA_SOURCES
