"""``invbench queue`` lists the state of a queue; the shipped queue is in order."""

import json

from robustbench_inv.catalogue.locate import shipped_root
from robustbench_inv.training.training_queue import read_queue

QUEUE = """
[[entry]]
recipe = "mnist-cnn"
priority = 1
seconds_per_epoch = 12
why = "a test"
"""


def test_the_status_is_a_table_or_json(invbench, tmp_path):
    (tmp_path / "queue.toml").write_text(QUEUE)
    done = invbench("queue", "queue.toml", "--status")
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].split() == ["mnist-cnn", "waiting", "0/30", "12.0", "0:06", "h"]
    found = json.loads(invbench("queue", "queue.toml", "--status", "--json").out)
    assert found["jobs"][0]["seconds_left"] == 360
    assert not (tmp_path / "checkpoints").exists()


def test_a_mistake_is_one_line(invbench):
    done = invbench("queue", "none.toml", "--status")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1


def test_the_shipped_queue_is_in_order():
    queue = read_queue(shipped_root() / "models" / "queue.toml")
    assert queue.jobs
    assert all(job.why for job in queue.jobs)
