import pytest
import torch

from tinycifar import machine


def test_the_environment_says_what_a_figure_depends_on() -> None:
    details = machine.environment(torch.device("cpu"))
    assert details["device"].startswith("cpu: ")
    assert details["threads"] == torch.get_num_threads()
    assert details["torch_version"] == torch.__version__
    assert details["date"].endswith("+00:00")


def test_a_device_that_is_not_there_is_refused() -> None:
    assert machine.select_device("cpu").type == "cpu"
    for name in ("tpu", "cuda:99", "meta", "hpu", "cpu:3", ""):
        with pytest.raises(ValueError, match="allowed are auto, cpu, cuda and mps"):
            machine.select_device(name)
