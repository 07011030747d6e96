"""Folders of images: classes, sizes, channels, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_inv.data.sources import open_source
from robustbench_inv.errors import BadData, BadParameter


def pixels(seed, rows=12, columns=12):
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def write(path, array, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path):
    for k, name in enumerate(("cat", "ape", "dog")):
        for i in range(4):
            write(tmp_path / "photos" / name / f"{i}.png", pixels(10 * k + i))
    return tmp_path / "photos"


def load(path, **parameters):
    return open_source("folder", str(path), parameters, "photos")


def test_classes_and_files_are_in_the_order_of_their_names(photos):
    data = load(photos)
    assert (data.classes, data.num_classes, data.shape) == (("ape", "cat", "dog"), 3, (3, 12, 12))
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    images, _ = data.batch([4, 2])
    assert images[0].equal(torch.tensor(pixels(0)).permute(2, 0, 1) / 255)
    assert images[1].equal(torch.tensor(pixels(12)).permute(2, 0, 1) / 255)
    assert data.notes == ()


def test_the_digest_is_that_of_the_pixels(photos):
    before = load(photos)
    assert load(photos).digest == before.digest
    changed = pixels(1)
    changed[3, 3, 0] ^= 1
    write(photos / "cat" / "1.png", changed)
    assert load(photos).digest != before.digest


def test_a_size_is_a_resize_and_a_centre_crop(photos):
    write(photos / "cat" / "wide.png", pixels(5, 20, 40))
    with pytest.raises(BadData, match=r"different sizes.*size=224"):
        load(photos)
    data = load(photos, size=8, resize=10)
    assert data.shape == (3, 8, 8)
    wide = Image.fromarray(pixels(5, 20, 40)).resize((20, 10), Image.Resampling.BILINEAR)
    expected = torch.tensor(np.asarray(wide.crop((6, 1, 14, 9)))).permute(2, 0, 1) / 255
    assert data.batch([8])[0][0].equal(expected)
    assert load(photos, size=20).shape == (3, 20, 20)
    with pytest.raises(BadParameter, match="size <= resize"):
        load(photos, size=12, resize=8)


def test_grey_images_have_one_channel_unless_three_are_requested(tmp_path):
    for k in range(2):
        write(tmp_path / "g" / "ab"[k] / "1.png", pixels(k), "L")
    data = load(tmp_path / "g")
    assert data.shape == (1, 12, 12)
    assert "1 channel" in data.notes[0]
    repeated = load(tmp_path / "g", channels=3).batch([0])[0][0]
    assert repeated[0].equal(repeated[2])
    assert repeated[:1].equal(data.batch([0])[0][0])


def test_transparency_is_noted(photos):
    write(photos / "cat" / "9.png", pixels(5), "RGBA")
    assert "transparency of 1 images" in load(photos).notes[0]


def test_the_models_classes_may_be_named(photos, tmp_path):
    (tmp_path / "classes.txt").write_text("eel\ncat\ndog\nape\n")
    data = load(photos, classes=str(tmp_path / "classes.txt"))
    assert (data.num_classes, data.labels.tolist()) == (4, [3] * 4 + [1] * 4 + [2] * 4)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(BadData, match=r"the model does not have.*'ape'"):
        load(photos, classes=str(tmp_path / "classes.txt"))


def test_numbers_as_names_must_agree_with_their_positions(tmp_path):
    for k in range(11):
        write(tmp_path / "n" / str(k) / "1.png", pixels(k))
    with pytest.raises(BadData, match=r"classes=classes.txt"):
        load(tmp_path / "n")  # torchvision makes "10" the class 2
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(11))))
    assert load(tmp_path / "n", classes=str(tmp_path / "classes.txt")).labels.tolist()[2] == 10
    (tmp_path / "n" / "10" / "1.png").unlink()
    (tmp_path / "n" / "10").rmdir()
    assert load(tmp_path / "n").labels.tolist() == list(range(10))


def test_the_first_images_of_each_class(photos):
    data = load(photos, per_class=2)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.batch([3])[0].equal(load(photos).batch([5])[0])


def test_other_structures_are_refused(photos, tmp_path):
    with pytest.raises(BadData, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(BadData, match="no images in folders of classes"):
        load(photos / "cat")
    (photos / "eel").mkdir()
    with pytest.raises(BadData, match="eel has no image"):
        load(photos)
    (photos / "eel" / "1.png").write_bytes(b"no image")
    with pytest.raises(BadData, match=r"eel/1.png is no readable image"):
        load(photos)
    write(tmp_path / "s" / "train" / "cat" / "1.png", pixels(0))
    write(tmp_path / "s" / "test" / "cat" / "1.png", pixels(0))
    with pytest.raises(BadData, match=r"name one of them: folder:.*/test"):
        load(tmp_path / "s")
    write(tmp_path / "o" / "cat" / "1.png", pixels(0))
    with pytest.raises(BadData, match="one class"):
        load(tmp_path / "o")


def test_images_of_16_bits_are_refused(photos):
    Image.fromarray(np.full((12, 12), 40000, np.uint16)).save(photos / "cat" / "deep.png")
    with pytest.raises(BadData, match="8 bits a channel"):
        load(photos)


def test_a_truncated_image_is_named(photos):
    content = (photos / "dog" / "2.png").read_bytes()
    (photos / "dog" / "2.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadData, match=r"dog/2.png is no readable image"):
        load(photos)


def test_what_does_not_fit_into_memory_is_refused(photos, monkeypatch):
    monkeypatch.setattr("robustbench_inv.data.image_folder.LARGEST", 1000)
    with pytest.raises(BadData, match="per_class=100"):
        load(photos)
