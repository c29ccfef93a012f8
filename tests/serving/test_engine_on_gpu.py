"""The engine on a GPU gives what it gives on a CPU. Nothing here needs more than pytest beside the package."""

import pytest
import torch
from adapter_files import CPU, make_adapter

from lengthen.adapters.load import load_apart
from lengthen.decoding.sampling import Sampler, SamplingParams, pick_tokens
from lengthen.serving.engine import Engine, GenerationRequest, Limits, LoadedBase
from lengthen.serving.engine.lora_batch import LoraMatrices, LoraStack, has_grouped_products
from lengthen.serving.engine.routing import Routing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
KINDS = [{"rank": 3, "embeddings": False, "norms": False}, {"targets": "all", "rank": 5}, {"few_tokens": True}]


def test_a_mix_of_adapters_writes_the_tokens_that_it_writes_on_a_cpu(make_base, tmp_path):
    base = make_base("engine", max_position_embeddings=256)
    folders = {str(seed): make_adapter(base, tmp_path / str(seed), seed, **kind) for seed, kind in enumerate(KINDS)}
    generator = torch.Generator().manual_seed(0)
    requests = [
        GenerationRequest(
            torch.randint(1, 95, (5 + 3 * index,), generator=generator).tolist(),
            name,
            20,
            temperature=index % 2,
            ignore_end=True,
        )
        for index, name in enumerate([*folders, None, *folders, None])
    ]

    def complete(device):
        apart = load_apart(base, "float32", None, device)
        plenty = Limits(batch_size=8, cache_bytes=2**24, adapter_bytes=2**24)
        engine = Engine(LoadedBase.of(apart), apart.tokenizer, plenty)
        for name, folder in folders.items():
            engine.load_adapter(name, folder)
        return engine.complete(requests)

    assert complete(CUDA) == complete(CPU)


def test_rows_are_drawn_as_on_a_cpu():
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    logits[3] = torch.nan
    settings = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 2.0, "top_p": 0.4}, {"temperature": 1.0}]

    def draw(device):
        samplers = [Sampler(SamplingParams(**each), [1]) for each in settings]
        return [pick_tokens(logits.to(device), samplers) for _ in range(20)]

    assert draw(CUDA) == draw(CPU)


@pytest.mark.parametrize("slots", [[3, 1, None, 3, 0], [0, 1, 2, 3], [5, None, 2], [7] * 40 + [0]])
@pytest.mark.parametrize("tokens", [1, 37])
def test_grouped_products_equal_a_loop_over_rows(slots, tokens):
    if not has_grouped_products(CUDA, torch.bfloat16):
        pytest.skip("grouped products in one kernel need Hopper or Blackwell, and torch 2.10")
    inputs, outputs, rank, count = 256, (128, 64), 16, 8
    torch.manual_seed(0)
    stack, adapters = LoraStack(inputs, outputs, count, rank, torch.bfloat16, CUDA), []
    for index in range(count):
        adapters.append(
            [LoraMatrices(torch.randn(rank, inputs) / 16, torch.randn(out, rank) / 4, 0.5) for out in outputs]
        )
        stack.put(index, adapters[-1])
    lengths = [tokens] * len(slots)
    x = torch.randn(sum(lengths), inputs).bfloat16()
    before = [torch.randn(sum(lengths), out).bfloat16() for out in outputs]
    ours = [y.to(CUDA, copy=True) for y in before]
    routing = Routing.of(slots, lengths, CUDA, count)
    stack.add_(ours, x.to(CUDA), routing)
    assert routing.ends is not None or routing.slots is not None
    for layer, (y, old) in enumerate(zip(ours, before, strict=True)):
        expected = old.double()
        for row, slot in enumerate(slot for slot in slots for _ in range(tokens)):
            if slot is not None:
                own = adapters[slot][layer]
                expected[row] += own.scale * (own.b.double() @ (own.a.double() @ x[row].double()))
        torch.testing.assert_close(y.cpu().double(), expected, atol=0.15, rtol=0.03)
