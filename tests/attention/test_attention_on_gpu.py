"""The kernels that only a GPU has, against the reference: run by `python -m pytest -m gpu`."""

import pytest
import torch
from s2_reference import reference

from lengthen.attention import sdpa
from lengthen.attention.backends import pick_backend
from lengthen.attention_pattern import Groups

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
WHOLE, PACKED = (((0, 512),),), (((0, 150), (150, 233), (383, 97)), ((40, 440),))


def inputs(documents, heads, size, length):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(len(documents), length, n, size, generator=generator).to(CUDA, torch.bfloat16).transpose(1, 2)
        for n in (heads[0], heads[1], heads[1])
    ]


@pytest.mark.parametrize("backend", ["auto", "sdpa", "torch_varlen"])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (9, 3), (4, 1)])
@pytest.mark.parametrize(("documents", "length", "sinks"), [(WHOLE, 512, 0), (PACKED, 480, 0), (PACKED, 480, 2)])
def test_backends_equal_the_reference(backend, heads, documents, length, sinks):
    given = [x.requires_grad_() for x in inputs(documents, heads, 80 if sinks else 64, length)]
    exact = [x.detach().double().cpu().requires_grad_() for x in given]
    groups = Groups(128, sinks)
    ours = pick_backend(backend, CUDA, torch.bfloat16)(*given, documents, groups, None, 0.0)
    expected = reference(*exact, documents, groups)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    gradients = torch.autograd.grad(ours, given, weight.cuda())
    for mine, theirs in zip(
        (ours, *gradients), (expected, *torch.autograd.grad(expected, exact, weight.double())), strict=True
    ):
        assert (mine.cpu().double() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_shared_keys_never_hold_all_scores(dtype):
    """8,192 tokens in groups of 4,096 would hold 1 GiB of scores."""
    q, k, v = (x.to(dtype) for x in inputs((((0, 8192),),), (8, 2), 64, 8192))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    sdpa.s2_sdpa(q, k, v, (((0, 8192),),), Groups(4096))
    assert torch.cuda.max_memory_allocated() - before < 2**27


def test_packed_documents_get_no_cudnn_plans():
    kernels = set()
    for documents in ((((0, 100), (100, 412)),), (((0, 300), (300, 212)),)):
        q, k, v = (x.requires_grad_() for x in inputs(documents, (4, 4), 64, 512))
        out = sdpa.s2_sdpa(q, k, v, documents, Groups(128))
        nodes = [out.grad_fn]
        while nodes:
            node = nodes.pop()
            kernels.add(type(node).__name__)
            nodes += [each for each, _ in node.next_functions if each is not None]
    assert any("FlashAttention" in name for name in kernels)
    assert not any("Cudnn" in name for name in kernels)
    assert torch.backends.cuda.cudnn_sdp_enabled()
