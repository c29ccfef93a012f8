"""Two processes over gloo follow the trajectory of one process with accumulation."""

import pytest
import torch
from safetensors.torch import load_file

from gemma3_files import write_gemma3

NF4 = {
    "quantize": "nf4", "memory": {"preset": "low_memory", "mlp_tile": 50},
    "adapter": {"targets": "all", "rank": 4, "embeddings": True},
}  # fmt: skip
# Half of the passes are on windows, which are longer than S2's groups.
RESTORATION = {"training": {"restoration": {"share": 0.5, "length": 32}}, "attention": {"group_size": 16}}


@pytest.mark.parametrize(
    ("launcher", "recipe"),
    [
        pytest.param("torch.distributed.run", RESTORATION, id="restoration"),
        pytest.param("accelerate.commands.launch", NF4, id="nf4", marks=pytest.mark.slow),
    ],
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


@pytest.mark.slow
def test_two_processes_train_the_text_decoder_of_a_multimodal_base(base, train_in_processes, tmp_path):
    """What is beside the decoder has no gradients, which several processes would wait for."""
    folder = write_gemma3(tmp_path / "multimodal", base, context=32)
    run, losses = train_in_processes(folder, 2)
    assert len(losses) == 4
    assert not [name for name in load_file(run / "adapter" / "adapter_model.safetensors") if "vision" in name]
