"""A user's data set is checked before anything runs; each fault is named with its remedy."""

import pytest
import torch
from torch.nn.functional import one_hot

from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadData, ForeignCodeError

IMAGES, LABELS = torch.rand(40, 1, 4, 4), torch.arange(40) % 10


class Own:
    """A data set with the protocol's attributes alone."""

    name, digest = "own", "0" * 64
    num_classes, shape, bounds = 10, (1, 4, 4), (0.0, 1.0)

    def __init__(self, **changes):
        self.images, self.labels, self.batch_labels = IMAGES, LABELS, None
        vars(self).update(changes)

    def __len__(self):
        return len(self.images)

    def batch(self, ids):
        rows = torch.as_tensor(ids)
        labels = self.labels if self.batch_labels is None else self.batch_labels
        return self.images[rows], labels[rows]


class Augmented(Own):
    def batch(self, ids):
        images, labels = super().batch(ids)
        return images + 0.01 * torch.rand_like(images), labels


class InOrder(Own):
    def batch(self, ids):
        return super().batch(torch.as_tensor(ids).sort().values)


class Failing(Own):
    def batch(self, ids):
        raise KeyError("no such file")


class Ending(Own):
    def batch(self, ids):
        raise SystemExit(0)


@pytest.mark.parametrize("data", [Own(), Own(images=IMAGES.double()), Own(shape=[1, 4, 4])])
def test_a_data_set_that_fulfils_the_protocol_is_returned_unchanged(data):
    assert load_dataset(data) is data
    own = ArrayDataset(IMAGES, LABELS, "array")
    assert load_dataset(own) is own


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Own(labels=one_hot(LABELS, 10)), "labels of the wrong type or shape.*argmax"),
        (Own(labels=LABELS.float()), r"got 'torch.float32 of shape \(40,\)'.*labels.long"),
        (Own(labels=LABELS.to(torch.uint8)), "got 'torch.uint8"),
        (Own(labels=LABELS.numpy()), "got 'ndarray'"),
        (Own(labels=LABELS.tolist()), "got 'list'"),
        (Own(labels=LABELS + 1), "got 10, expected 0 to 9; labels begin at 1: subtract 1"),
        (Own(labels=LABELS - 1), "got -1, expected 0 to 9"),
        (Own(labels=LABELS[:30]), "wrong number of labels, got 30, expected 40"),
        (Own(labels=LABELS[:0], images=IMAGES[:0]), "wrong number of labels, got 0"),
        (Own(batch_labels=LABELS.flip(0)), "labels of a batch differ"),
        (Own(batch_labels=one_hot(LABELS, 10)), "labels of a batch are unusable"),
        (Own(batch_labels=LABELS.float()), "labels of a batch are unusable"),
        (
            Own(images=(IMAGES * 255).to(torch.uint8)),
            "images of a batch are unusable, got 'torch.uint8",
        ),
        (Own(shape=(1, 5, 5)), r"expected floating point of shape \(40, 1, 5, 5\)"),
        (
            Own(images=IMAGES.clone().index_fill_(0, torch.tensor(3), torch.nan)),
            "image 3 has an element",
        ),
        (Own(num_classes="10"), "num_classes is invalid, got '10', expected an int >= 2"),
        (Own(num_classes=1), "num_classes is invalid"),
        (Own(bounds=(1.0, 0.0)), "bounds is invalid"),
        (Own(bounds="01"), "bounds is invalid"),
        (Own(name=None), "name is invalid, expected a name"),
        (Own(digest=""), "digest is invalid"),
        (Augmented(), "samples differ if they are read again.*without random augmentation"),
        (InOrder(), "differ"),
        (Failing(), "own cannot be read, got \"KeyError: 'no such file'\""),
        ({}, "not a data set, got 'dict without name, num_classes"),
        (3, "not a data set, got 'int without"),
        (torch.zeros(3), "not a data set, got 'Tensor without num_classes"),
    ],
)
def test_a_fault_is_named(data, says):
    with pytest.raises(BadData, match=says) as caught:
        load_dataset(data)
    assert "\n" not in str(caught.value)


def test_a_data_set_cannot_end_the_program():
    with pytest.raises(ForeignCodeError):
        load_dataset(Ending())


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (one_hot(LABELS, 10), "labels.argmax"),
        (LABELS.float(), "labels.long"),
        (LABELS + 1, "got 10, expected 0 to 9; labels begin at 1: subtract 1"),
        (LABELS + 2, "labels begin at 2"),
    ],
)
def test_labels_of_an_array_data_set_are_refused_with_the_remedy(labels, says):
    with pytest.raises(BadData, match=says):
        ArrayDataset(IMAGES, labels, "array", num_classes=10)
