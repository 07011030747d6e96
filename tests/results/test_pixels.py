"""Images as people see them."""

import numpy as np

from robustbench_inv.results.pixels import is_image_shape, pixel_digest, to_pixels


def test_what_looks_the_same_has_the_same_digest():
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 1, 3, 4)
    near, far = image + np.float32(0.001), image + np.float32(0.01)
    digests = [
        pixel_digest(to_pixels(each, (0.0, 1.0))[0]) for each in (image, image.astype(float), near)
    ]
    assert len(set(digests)) <= 2
    assert digests[0] == digests[1]
    assert pixel_digest(to_pixels(far, (0.0, 1.0))[0]) != digests[0]
    assert pixel_digest(to_pixels(image * 255, (0.0, 255.0))[0]) == digests[0]


def test_the_shape_counts():
    flat = np.zeros((1, 2, 8), np.uint8)
    assert pixel_digest(flat) != pixel_digest(flat.reshape(1, 4, 4))
    assert len(pixel_digest(flat)) == 32


def test_bounds_are_black_and_white_and_nothing_wraps_round():
    images = np.array([[-2.0, -1.0, 0.0, 1.0, 3.0]])
    assert to_pixels(images, (-1.0, 1.0)).tolist() == [[0, 0, 128, 255, 255]]


def test_only_grey_and_colour_can_be_shown():
    assert is_image_shape((1, 28, 28))
    assert is_image_shape((3, 4, 4))
    assert not is_image_shape((500,))
    assert not is_image_shape((4, 8, 8))
