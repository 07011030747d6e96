"""Kept images carry a digest; damage, images of another cell and images that do not fit the records are told."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.image_files import ADVERSARIAL
from robustbench_inv.results.run_files import CellFolder


def fill(make, folder, blocks=None, *, count=10, **options):
    with CellWriter(folder, make.request(range(count), **options)) as writer:
        make.fill(writer, blocks, keep=True)
        return writer


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 20, 200, -1, -60])
def test_a_flipped_bit_is_refused_and_repaired(make, tmp_path, at):
    fill(make, tmp_path / "c")
    path = tmp_path / "c" / ADVERSARIAL
    whole = path.read_bytes()
    flip(path, at)
    with pytest.raises(BadResults, match="repair") as error:
        CellFolder(tmp_path / "c").images()
    assert "\n" not in str(error.value)
    with pytest.raises(BadResults, match="repair"):
        CellWriter(tmp_path / "c", make.request(range(10)))
    fill(make, tmp_path / "c", repair=True)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("shard", [0, 1])
def test_a_damaged_block_of_an_unfinished_cell_is_refused_and_repaired(make, tmp_path, shard):
    fill(make, tmp_path / "whole")
    fill(make, tmp_path / "c", blocks=2)
    flip(tmp_path / "c" / "images" / f"00000{shard}.safetensors")
    with pytest.raises(BadResults, match="repair"):
        CellWriter(tmp_path / "c", make.request(range(10)))
    assert fill(make, tmp_path / "c", repair=True).repaired == 8 - 4 * shard
    expected = (tmp_path / "whole" / ADVERSARIAL).read_bytes()
    assert (tmp_path / "c" / ADVERSARIAL).read_bytes() == expected


def test_images_of_another_cell_are_refused(make, tmp_path):
    fill(make, tmp_path / "c")
    fill(make, tmp_path / "other", seed=1)
    shutil.copyfile(tmp_path / "other" / ADVERSARIAL, tmp_path / "c" / ADVERSARIAL)
    with pytest.raises(BadResults, match="changed after it was written"):
        CellFolder(tmp_path / "c").images()


def test_images_without_a_digest_are_compared_with_the_records_on_resume(make, tmp_path):
    fill(make, tmp_path / "c")
    path = tmp_path / "c" / ADVERSARIAL
    images = load_file(path)
    save_file(images, path)  # as an earlier version wrote them
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        assert writer.lost_images == []
    images["adversarial"][7] += 0.25
    save_file(images, path)
    with pytest.raises(BadResults, match="sample 7 has another distance"):
        CellWriter(tmp_path / "c", make.request(range(10)))


@pytest.mark.parametrize(
    "change",
    [
        {"samples": np.arange(10, dtype=np.int32)},
        {"samples": np.zeros(10, np.int64)},
        {"clean": np.zeros((9, 3), np.float32)},
        {"clean": np.zeros((10, 3), np.int64)},
        {"other": np.zeros(3)},
    ],
)
def test_arrays_of_another_kind_are_one_line(make, tmp_path, change):
    fill(make, tmp_path / "c")
    path = tmp_path / "c" / ADVERSARIAL
    save_file({**load_file(path), **change}, path)
    with pytest.raises(BadResults, match="is damaged") as error:
        CellFolder(tmp_path / "c").images()
    assert "\n" not in str(error.value)


def test_images_that_were_removed_are_told(make, tmp_path):
    fill(make, tmp_path / "c")
    (tmp_path / "c" / ADVERSARIAL).unlink()
    cell = CellFolder(tmp_path / "c")
    assert cell.images() is None
    assert cell.read().remarks == ("the images of 10 samples were removed",)
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        assert writer.lost_images == list(range(10))
    fill(make, tmp_path / "c", repair=True)
    assert cell.images()["samples"].tolist() == list(range(10))


def test_a_folder_of_images_that_is_removed_midway_is_told(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        make.fill(writer, 2, keep=True)
        shutil.rmtree(tmp_path / "c" / "images")
        make.fill(writer, keep=True)
        assert writer.lost_images == list(range(8))
