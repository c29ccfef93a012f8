"""Two processes over gloo follow the trajectory of one process with accumulation."""

import pytest
import torch
from safetensors.torch import load_file

NF4 = {
    "quantize": "nf4", "memory": {"preset": "low_memory", "mlp_tile": 50},
    "adapter": {"targets": "all", "rank": 4, "embeddings": True},
}  # fmt: skip
# Half of the passes are on windows, which are longer than S2's groups.
RESTORATION = {"training": {"restoration": {"share": 0.5, "length": 32}}, "attention": {"group_size": 16}}


@pytest.mark.parametrize(
    ("launcher", "recipe"),
    [("torch.distributed.run", RESTORATION), ("accelerate.commands.launch", NF4)],
    ids=["restoration", "nf4"],
)
def test_two_processes_equal_one_with_accumulation(make_base, train_in_processes, launcher, recipe):
    base = make_base("wide", hidden_size=64, intermediate_size=128)
    one, losses = train_in_processes(base, 1, **recipe)
    two, others = train_in_processes(base, 2, launcher=launcher, **recipe)
    assert len(losses) == 4
    assert losses == pytest.approx(others, rel=1e-5)
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, two)]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-3, atol=1e-5)
