"""The command line: each command parses, calls and prints. Nothing heavy is imported before a command runs."""

import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import typer

from lengthen.cli._launcher import check_processes, only_first_speaks
from lengthen.cli._options import with_options
from lengthen.errors import LengthenError

__all__ = ["app", "main", "set_allocator"]

app = typer.Typer(
    help="Extend the context window of a pretrained language model, and prove that it is usable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_GROUPS = {
    "eval": "Measure a model, and what of its context is usable.",
    "data": "Look at documents, tokenize them, have questions made about them.",
}
for _name, _help in _GROUPS.items():
    app.add_typer(import_module(f"lengthen.cli.{_name}").app, name=_name, help=_help)
for _name in (
    "extend",
    "quickstart",
    "train",
    "plan",
    "doctor",
    "export",
    "import_",
    "generate",
    "chat",
    "ui",
    "serve",
    "recipes",
    "report",
):
    app.command(_name.rstrip("_"))(with_options(getattr(import_module(f"lengthen.cli.{_name}"), _name)))


def _show_warning(message: Warning | str, *_details: Any, **_more: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


# Batches of many lengths leave gaps that segments of fixed size can't use; and pinning CPU memory, in which activations
# wait, takes one thread 0.56 s/GiB on an H100's host (docs/results/gpu).
_CUDA_ALLOCATOR = "expandable_segments:True,pinned_use_cuda_host_register:True,pinned_num_register_threads:8"


# Tensors of 2 MiB and more lie in huge pages, where Linux has them: where memory is given back at once, a quarter of a
# training step was page faults.
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def set_allocator() -> None:
    """Choose torch's allocator settings that the user has not chosen; those for CUDA where there is a GPU."""
    os.environ.setdefault(_HUGE_PAGES, "1")
    if Path("/dev/nvidiactl").exists() and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", _CUDA_ALLOCATOR)


def set_no_bars() -> None:
    """Have other packages show no progress bars; both variables are read when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the reader of GGUF files, which asks nobody else


def main() -> None:
    """Run the command line; input errors are one line on standard error and exit code 2."""
    set_allocator()
    warnings.showwarning = _show_warning
    if "--quiet" in sys.argv or not sys.stderr.isatty():
        set_no_bars()
    try:
        with only_first_speaks():
            check_processes(sys.argv[1:])
            app()
    except LengthenError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        # A name that is too long, or a folder without permissions, can be met wherever a file is only asked about.
        _refuse(f"can't use {error.filename}: {error.strerror}; check the name and its permissions")


def _refuse(text: str) -> NoReturn:
    line = " ".join(text.split())
    print(f"lengthen: {line}", file=sys.stderr)
    sys.exit(2)
