"""Kept images carry a digest; damage, images of another cell and images that do not fit the records are told."""

import shutil
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from robustbench_inv.errors import BadResults
from robustbench_inv.results import image_files
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.image_files import ADVERSARIAL, ImageShards, images_to_bytes
from robustbench_inv.results.record import Distances
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


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_blocks_are_merged_to_what_safetensors_writes(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(image_files, "PIECE", 40)  # of some rows only
    draw = np.random.default_rng(0)
    images = {name: draw.random((17, 2, 3)).astype(kind) for name in ("clean", "adversarial")}
    shards = ImageShards(tmp_path, "salt")
    for block, samples in enumerate([(0, 4, 9), (12,), (1, 2, 3, 10), (9, 16)]):
        shards.add(block, samples, {name: each[list(samples)] for name, each in images.items()})
        if block == 1:
            shards.consolidate(range(17))  # the cell grows later
    shards.consolidate([*range(11), 16])  # 12 lost its record
    kept = np.array([0, 1, 2, 3, 4, 9, 10, 16])
    expected = {"samples": kept, **{name: each[kept] for name, each in images.items()}}
    assert (tmp_path / ADVERSARIAL).read_bytes() == images_to_bytes(expected, "salt")
    assert list(tmp_path.iterdir()) == [tmp_path / ADVERSARIAL]


def test_memory_is_bounded_by_a_block(make, tmp_path, monkeypatch):
    """Opening and finishing a cell takes the memory of some blocks, whatever the number of them is."""
    monkeypatch.setattr(image_files, "PIECE", 1 << 16, raising=False)
    blocks, size, pixels = 30, 5, 10_000
    rows = np.arange(blocks * size, dtype=np.float32)[:, None].repeat(pixels, 1)
    distances = Distances(pixels, 0.5 * pixels, 0.5 * pixels**0.5, 0.5)

    def fill(last):
        with CellWriter(tmp_path / "c", make.request(range(len(rows)), size)) as writer:
            while (block := writer.next_block()) and block[0] < last:
                chosen = rows[list(block[1])]
                records = [make.record(sample, distance=distances) for sample in block[1]]
                writer.append(records, {"clean": chosen, "adversarial": chosen + 0.5})
            if last == blocks:
                writer.finish()

    fill(blocks - 1)
    tracemalloc.start()
    fill(blocks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 2**20 < 2 * rows.nbytes / 3
    assert len(CellFolder(tmp_path / "c").images()["samples"]) == len(rows)
