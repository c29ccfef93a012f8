"""The command line's choice of torch's allocator settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lengthen import cli

_HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


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


_FAULTS = """
import resource
from lengthen import cli
cli.set_allocator()
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.empty(1 << 26, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    not _HUGE.is_file() or "[madvise]" not in _HUGE.read_text(), reason="needs Linux with huge pages for who asks"
)
def test_large_tensors_lie_in_huge_pages_but_where_the_user_said_no():
    def faults(given):
        environment = {name: value for name, value in os.environ.items() if name != cli._HUGE_PAGES} | given
        done = subprocess.run([sys.executable, "-c", _FAULTS], env=environment, capture_output=True, check=True)
        return int(done.stdout)

    assert faults({}) * 4 < faults({cli._HUGE_PAGES: "0"})
