"""The command line's choice of torch's CUDA allocator settings."""

import os
from pathlib import Path

import pytest

from lengthen import cli


@pytest.mark.parametrize(
    ("has_gpu", "given", "expected"),
    [
        (True, {}, cli._CUDA_ALLOCATOR),
        (False, {}, None),
        (True, {"PYTORCH_ALLOC_CONF": "mine:1"}, "mine:1"),
        (True, {"PYTORCH_CUDA_ALLOC_CONF": "mine:1"}, None),
    ],
)
def test_chosen_where_there_is_a_gpu_and_nothing_was_chosen(monkeypatch, has_gpu, given, expected):
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(Path, "exists", lambda path: has_gpu)
    cli.set_allocator()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected
