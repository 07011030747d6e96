"""Claims and finished blocks: one holder at a time, expired leases, first block wins, damage is noticed."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from robustbench_inv.errors import Locked
from robustbench_inv.results import block_board
from robustbench_inv.results.block_board import ATTEMPTS, BlockBoard, StoredBlock, new_evaluation

BLOCK = StoredBlock(
    (3, 5), b'{"a": 1}\n{"a": 2}\n', b'{"event": "x"}\n', images=False, worker="e/0"
)


def board(folder, worker="here/0", lease=60.0):
    return BlockBoard(folder / "cell", worker, lease)


def test_a_block_has_one_holder(tmp_path):
    one, other = board(tmp_path), board(tmp_path, "there/1")
    claim = one.claim(7)
    assert claim is not None
    assert other.claim(7) is None
    assert other.claim(8) is not None
    assert one.numbers() == (set(), {7, 8})
    one.release(7, claim)
    assert other.claim(7) is not None
    one.release(7, claim)  # another's claim stays
    assert one.claims()[7].worker == "there/1"


def test_of_many_threads_each_block_goes_to_one(tmp_path):
    won, start = Counter(), threading.Barrier(8)

    def run(number):
        mine = board(tmp_path, f"e/{number}")
        start.wait()
        for block in range(40):
            if mine.claim(block):
                won[block] += 1

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == Counter(range(40))


def test_a_lease_expires_when_it_is_not_renewed(tmp_path):
    one, other = board(tmp_path, lease=0.2), board(tmp_path, "there/1", lease=0.2)
    with one.held(0, one.claim(0)):
        for _ in range(6):
            assert other.take_over(0) is None
            time.sleep(0.1)
    assert other.take_over(0) is not None  # it was given up
    assert one.take_over(0) is None  # first seen
    time.sleep(0.25)
    taken = one.take_over(0)
    assert taken.attempt == 2
    assert one.claims()[0] == taken


def test_a_renewal_under_way_ends_before_the_claim_is_given_up(tmp_path, monkeypatch):
    """It renewed the claim of the next holder, which then could not expire in time."""
    one, began, renewed = board(tmp_path, lease=2.0), threading.Event(), []

    def slow(path):
        began.set()
        time.sleep(0.2)
        renewed.append(path)

    monkeypatch.setattr("robustbench_inv.results.block_board.os.utime", slow)
    with one.held(0, one.claim(0)):
        assert began.wait(30)
    assert renewed


def test_the_cell_fails_when_too_many_leases_of_a_block_expire(tmp_path):
    mine = board(tmp_path, lease=0.0)
    mine.claim(2)
    for _ in range(3 * ATTEMPTS):
        mine.take_over(2)
    assert mine.failure == f"{ATTEMPTS} processes did not finish its block 3 in time"
    mine.forgive()
    assert mine.failure is None


def test_a_process_that_has_ended_loses_its_claim_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from robustbench_inv.results.block_board import BlockBoard\n"
        "assert BlockBoard(Path(sys.argv[1]), 'theirs/0').claim(4)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "cell")], check=True)
    assert board(tmp_path, "theirs/1").take_over(4) is None  # the parent of both knows why it ended
    board(tmp_path).check_unclaimed()
    assert board(tmp_path).take_over(4).attempt == 1


def test_a_running_process_keeps_its_claim(tmp_path):
    board(tmp_path).claim(0)
    with pytest.raises(Locked, match="other processes compute blocks"):
        board(tmp_path, "other/0").check_unclaimed()
    old = time.time() - 10_000
    os.utime(tmp_path / "cell" / "blocks" / "0.claim", (old, old))
    board(tmp_path, "other/0").check_unclaimed()  # left behind


def test_a_claim_that_was_taken_meanwhile_is_put_back(tmp_path, monkeypatch):
    """Between the look at an expired lease and its removal, another process takes the block."""
    slow, fast = board(tmp_path, "slow/0", 0.0), board(tmp_path, "fast/0", 0.0)
    board(tmp_path, "gone/0").claim(0)
    for each in (slow, fast):
        assert each.take_over(0) is None
    time.sleep(0.01)
    real = BlockBoard._expired

    def late(self, number, claim):
        found = real(self, number, claim)
        if self is slow:
            assert fast.take_over(0)
        return found

    monkeypatch.setattr(BlockBoard, "_expired", late)
    assert slow.take_over(0) is None
    assert board(tmp_path).claims()[0].worker == "fast/0"


def test_the_first_finished_block_stays(tmp_path):
    mine = board(tmp_path)
    assert mine.store(1, BLOCK)
    assert not mine.store(1, replace(BLOCK, records=b"{}\n"))
    assert mine.read(1, (3, 5)) == BLOCK
    assert mine.numbers() == ({1}, set())
    assert [p.name for p in mine.folder.iterdir()] == ["1.block"]
    mine.discard(1)
    assert mine.read(1, (3, 5)) is None
    mine.clear()
    assert not mine.folder.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b'"a": 2', b'"a": 3'),
        lambda data: data[:-1],
        lambda data: data.replace(b'"images": false', b'"images": true'),
        lambda data: data[:0],
        lambda data: b"\xff" + data,
    ],
)
def test_a_damaged_block_is_computed_again(tmp_path, change):
    mine = board(tmp_path)
    mine.store(1, BLOCK)
    path = mine.folder / "1.block"
    path.write_bytes(change(path.read_bytes()))
    assert mine.read(1, (3, 5)) is None
    assert not path.exists()


def test_blocks_of_other_samples_or_cells_do_not_fit(tmp_path):
    mine = board(tmp_path)
    mine.store(1, BLOCK)
    other = BlockBoard(tmp_path / "other", "e/0")
    other.folder.mkdir(parents=True)
    (mine.folder / "1.block").rename(other.folder / "1.block")
    assert other.read(1, (3, 5)) is None
    mine.store(1, BLOCK)
    assert mine.read(1, (3, 6)) is None


def test_evaluations_have_names_of_their_own():
    assert new_evaluation() != new_evaluation()
    assert block_board.evaluation_of("a-b/3") == "a-b"
