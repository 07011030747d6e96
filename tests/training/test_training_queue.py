"""A queue trains jobs that are not completed, survives kills and failures, and never trains one job twice at a time."""

import fcntl
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from robustbench_inv.errors import BadCatalogue, UnknownName
from robustbench_inv.training.training_queue import (
    JobState,
    QueueCallbacks,
    job_status,
    read_queue,
    run_queue,
    seed_spread,
)

RECIPE = """model = "mlp"
objective = "cross-entropy"
dataset = "mnist5k"
first = 0
last = {last}
epochs = 4
batch_size = 50
learning_rate = 1e-3
schedule = "constant"
seed = 0
held_out = ["mnist5k"]

[model_parameters]
hidden = [8]

[card]
summary = "a test"
dataset = "mnist"
"""

ENTRY = """
[[entry]]
recipe = "{recipe}/recipe.toml"
priority = {priority}
seconds_per_epoch = 1.5
why = "a test"
{more}
"""


@pytest.fixture
def folder(tmp_path):
    for name, last in (("good", 1500), ("bad", 5001), ("other", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text(RECIPE.format(last=last))
    return tmp_path


def write(folder, *entries, head=""):
    path = folder / "queue.toml"
    text = [
        ENTRY.format(recipe=recipe, priority=priority, more=more)
        for recipe, priority, more in entries
    ]
    path.write_text(head + "".join(text))
    return path


def run(path, out, begun=None):
    begun = [] if begun is None else begun
    callbacks = QueueCallbacks(lambda job: begun.append(job.name), print, print)
    return run_queue(read_queue(path), out, callbacks=callbacks)


def states(path, out):
    return {job.name: job_status(job, out).state for job in read_queue(path).jobs}


def test_entries_are_trained_by_priority_and_never_twice(folder):
    path = write(folder, ("other", 2, ""), ("good", 1, "seeds = [0, 4]"), head="snapshots = [2]\n")
    begun, out = [], folder / "out"
    assert states(path, out) == dict.fromkeys(["good", "good-seed4", "other"], JobState.waiting)
    assert not out.exists()
    assert run(path, out, begun) == []
    assert begun == ["good", "good-seed4", "other"]
    assert set(states(path, out).values()) == {JobState.completed}
    run(path, out, begun)
    assert len(begun) == 3
    weights = load_file(out / "good-seed4" / "models" / "good-seed4" / "weights.safetensors")
    kept = load_file(out / "good-seed4" / "snapshots" / "epoch-2.safetensors")
    assert weights.keys() == kept.keys()
    mean, deviation, seeds = seed_spread(read_queue(path), out)["good"]["mnist5k"]
    assert 0.1 < mean < 1
    assert deviation > 0
    assert seeds == 2


def test_stages_end_where_the_next_begins_and_give_the_same_weights(folder):
    whole, parts = folder / "whole", folder / "parts"
    run(write(folder, ("good", 1, "")), whole)
    stages = [("good", 1, "until_epoch = 1"), ("good", 3, ""), ("other", 2, "")]
    path, begun = write(folder, *stages), []
    run(path, parts, begun)
    assert begun == ["good to epoch 1", "other", "good to epoch 4"]
    name = "good/models/good/weights.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert [job.first for job in read_queue(path).jobs] == [0, 0, 1]


def test_a_later_stage_waits_for_the_earlier_one(folder):
    path, begun = write(folder, ("good", 2, "until_epoch = 1"), ("good", 1, "")), []
    run(path, folder / "out", begun)
    assert begun == ["good to epoch 1"]
    first, second = (job_status(job, folder / "out") for job in read_queue(path).jobs[::-1])
    assert (first.state, first.seconds_left) == (JobState.completed, 0)
    assert (second.state, second.epochs) == (JobState.waiting, 0)
    assert second.seconds_left == 3 * second.seconds_per_epoch > 0


def test_a_failure_is_reported_and_the_next_entry_trained(folder):
    path, out, begun = write(folder, ("bad", 1, ""), ("good", 2, "")), folder / "out", []
    (failed,) = run(path, out, begun)
    assert begun == ["bad", "good"]
    assert failed.failure.startswith("mnist5k has no sample 5000")
    assert "Traceback" in (out / "bad" / "failure.txt").read_text()
    assert states(path, out) == {"bad": JobState.failed, "good": JobState.completed}
    (folder / "bad" / "recipe.toml").write_text(RECIPE.format(last=200))
    run(path, out, begun)
    assert begun == ["bad", "good", "bad"]
    assert set(states(path, out).values()) == {JobState.completed}


def test_an_edited_recipe_is_not_completed_and_its_checkpoint_is_refused(folder):
    path, out = write(folder, ("good", 1, "")), folder / "out"
    run(path, out)
    recipe = folder / "good" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("learning_rate = 1e-3", "learning_rate = 2e-3"))
    assert states(path, out) == {"good": JobState.waiting}
    (failed,) = run(path, out)
    assert "another recipe" in failed.failure


def test_a_damaged_model_is_not_completed(folder):
    path, out = write(folder, ("good", 1, "")), folder / "out"
    run(path, out)
    weights = out / "good" / "models" / "good" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert states(path, out) == {"good": JobState.interrupted}
    run(path, out)
    assert weights.read_bytes() == whole


def test_an_entry_that_another_process_trains_is_skipped(folder):
    path, out, begun = write(folder, ("good", 1, ""), ("other", 2, "")), folder / "out", []
    (out / "good").mkdir(parents=True)
    with (out / "good" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert states(path, out)["good"] is JobState.running
        run(path, out, begun)
    assert begun == ["other"]
    assert states(path, out)["good"] is JobState.waiting
    run(path, out, begun)
    assert begun == ["other", "good"]


def run_in_killed_child(path, out, epoch):
    """Run the queue in a process that dies when an epoch is reported; return the process id."""

    def die(metrics):
        if metrics.epoch == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        callbacks = QueueCallbacks(lambda _: None, die, lambda _: None)
        run_queue(read_queue(path), out, callbacks=callbacks)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    return child


def test_a_killed_queue_leaves_no_lock_and_is_resumed(folder):
    path, out = write(folder, ("good", 1, "")), folder / "out"
    child = run_in_killed_child(path, out, epoch=2)
    job = read_queue(path).jobs[0]
    assert int((out / "good" / ".lock").read_text()) == child
    assert job_status(job, out).state is JobState.interrupted
    assert 0 < job_status(job, out).epochs < 4
    reported = []
    callbacks = QueueCallbacks(
        lambda _: None, lambda metrics: reported.append(metrics.epoch), lambda _: None
    )
    run_queue(read_queue(path), out, callbacks=callbacks)
    assert reported[0] > 1
    assert reported[-1] == 4
    assert job_status(job, out).state is JobState.completed
    lines = (out / "good" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('why = "a test"', "", "good/recipe.toml: key why is missing"),
        ("priority = 1", 'priority = "high"', "priority does not fit, got 'high'"),
        ("priority = 1", "priority = 1\nstate = 2", "unknown key state"),
        ("priority = 1", "priority = 1\nuntil_epoch = 5", "until_epoch = 5"),
        ("seconds_per_epoch = 1.5", "seconds_per_epoch = 3000", "good takes 12000 s"),
        ("[[entry]]", "[[entri]]", "unknown key entri"),
        ("[[entry]]", "[[entry", "queue.toml: cannot be read"),
        ("good/recipe.toml", "none/recipe.toml", "none/recipe.toml: cannot be read"),
    ],
)
def test_an_invalid_queue_raises_a_one_line_error(folder, old, new, message):
    path = write(folder, ("good", 1, ""))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadCatalogue, match=message) as caught:
        read_queue(path)
    assert "\n" not in str(caught.value)


def test_an_entry_twice_or_an_unknown_name_is_an_error(folder):
    with pytest.raises(BadCatalogue, match="good occurs twice"):
        read_queue(write(folder, ("good", 1, ""), ("good", 2, "seeds = [1, 0]")))
    path = write(folder, ("good", 1, ""))
    path.write_text(path.read_text().replace("good/recipe.toml", "mnist-cnm"))
    with pytest.raises(UnknownName, match="mnist-cnn"):
        read_queue(path)


def test_a_long_training_is_accepted_in_stages(folder):
    more = "until_epoch = 2"
    path = write(folder, ("good", 1, more), ("good", 2, ""))
    path.write_text(path.read_text().replace("= 1.5", "= 3000"))
    assert [job.until for job in read_queue(path).jobs] == [2, 4]
