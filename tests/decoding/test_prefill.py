"""What counts as the rounding of other kernels when a model is read in chunks."""

import pytest
import torch

from lengthen.decoding.prefill import is_rounding


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_one_token_may_jump_but_not_most(dtype, rounding):
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(1, 8, 64, generator=generator)
    found = expected + rounding * torch.randn(1, 8, 64, generator=generator)
    assert is_rounding(found.to(dtype), expected.to(dtype))
    found[0, 1] = torch.randn(64, generator=generator)  # a massive activation on one side only
    assert is_rounding(found.to(dtype), expected.to(dtype))
    found[0, 2:4] = torch.randn(2, 64, generator=generator)
    assert not is_rounding(found.to(dtype), expected.to(dtype))


def test_zeros_are_equal_and_nan_is_not():
    zeros = torch.zeros(1, 4, 8)
    assert is_rounding(zeros, zeros)
    assert not is_rounding(torch.full_like(zeros, torch.nan), zeros)
