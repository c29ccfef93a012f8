"""Two processes over gloo follow the trajectory of one process with accumulation."""

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_two_processes_equal_one_with_accumulation(base, train_in_processes, launcher):
    one, losses = train_in_processes(base, 1)
    two, others = train_in_processes(base, 2, launcher=launcher)
    assert len(losses) == 4
    assert losses == pytest.approx(others, rel=1e-5)
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, two)]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-3, atol=1e-5)
