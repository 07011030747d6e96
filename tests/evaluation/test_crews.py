"""The GPUs of worker processes, with a fake number of GPUs."""

import os
from types import SimpleNamespace

import pytest
import torch

from robustbench_inv.errors import BadParameter
from robustbench_inv.evaluation import crews
from robustbench_inv.evaluation.crews import Processes, worker_gpus


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
def test_each_worker_has_a_gpu_of_its_own(monkeypatch):
    assert worker_gpus("cuda", 2) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert worker_gpus("cuda", 1) == ("3",)
    assert worker_gpus("cuda", 2) == ("3", "GPU-abc")


@pytest.mark.usefixtures("two_gpus")
def test_a_named_device_is_shared_by_all_workers():
    assert worker_gpus("cuda:1", 9) == worker_gpus("cpu", 9) == ()


@pytest.mark.usefixtures("two_gpus")
def test_more_workers_than_gpus_are_refused():
    with pytest.raises(BadParameter, match="at most 2") as error:
        worker_gpus("cuda", 3)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("two_gpus")
def test_a_process_takes_the_gpu_of_the_one_that_it_replaces(monkeypatch):
    def worker(*arguments):
        _, _, name, _, gpu = arguments
        return SimpleNamespace(connection=name, name=name, gpu=gpu, close=lambda: None)

    monkeypatch.setattr(crews, "WorkerProcess", worker)
    options = SimpleNamespace(device="cuda")
    shared = SimpleNamespace(options=options, blocks=9, name="e", groups=[], root=None)
    crew = Processes(shared, 0, 2, print)
    assert [each.gpu for each in crew._running.values()] == ["0", "1"]
    del crew._running["e/0"]
    crew.start()
    assert {each.name: each.gpu for each in crew._running.values()} == {"e/1": "1", "e/2": "0"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
