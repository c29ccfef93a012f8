"""The page in Gradio: its tabs, its address and its style."""

import html
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from lengthen.chat.shared_model import SharedModel
from lengthen.errors import LengthenError
from lengthen.ui.chat_tab import ChatTab
from lengthen.ui.extend_tab import ExtendTab
from lengthen.ui.job import ExtensionJob
from lengthen.ui.page_guard import MOST_FILE_BYTES, PageGuard

__all__ = ["serve_page"]

# Whatever a model writes, such as an image from elsewhere, the page loads nothing from other hosts.
_HEAD = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'self\' data: blob:; '
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'\">"
)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SYSTEM = ["system-ui", "sans-serif"]


@contextmanager
def serve_page(
    shared: SharedModel, name: str, host: str = "127.0.0.1", port: int | None = None, runs: Path = Path("runs")
) -> Iterator[str]:
    """Serve the page until the block ends, and yield its URL. A document to chat about is deleted once it is read.

    Who opens the tab "Extend" can have this process read files and train for hours, so it is there only where nobody
    but this machine reaches the page.

    Args:
        shared: the model.
        name: the MODEL argument, shown at the top.
        host: address to listen on; 127.0.0.1 is reached from this machine only.
        port: None takes a free one from 7860 on.
        runs: folder of the run folders that the page makes and goes on with.

    Raises:
        LengthenError: the port is taken, or the address is not this machine's.
    """
    _check_address(host, port)
    css = (resources.files("lengthen.ui") / "page.css").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="lengthen-ui-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # read when the page is built
        job = ExtensionJob() if host in _LOOPBACK else None
        page = _build(shared, name, job, runs)
        page.launch(
            server_name=host, server_port=port, share=False, inbrowser=False, prevent_thread_lock=True, quiet=True,
            ssr_mode=False, mcp_server=False, run_history=False, footer_links=[], head=_HEAD, css=css,
            max_file_size=MOST_FILE_BYTES, app_kwargs={"middleware": [Middleware(PageGuard, uploads=Path(uploads))]},
            theme=gr.themes.Default(font=_SYSTEM, font_mono=["ui-monospace", "monospace"]),
        )  # fmt: skip
        try:
            assert page.local_url is not None
            yield page.local_url
        finally:
            page.close(verbose=False)
            if job is not None:
                job.close()
            del os.environ["GRADIO_TEMP_DIR"]


def _check_address(host: str, port: int | None) -> None:
    """Gradio itself would try a hundred ports, five seconds each, at an address that is not this machine's."""
    try:
        socket.create_server((host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        raise LengthenError(f"can't listen on {where}: {error.strerror or error}; choose another") from error


def _build(shared: SharedModel, name: str, job: ExtensionJob | None, runs: Path) -> gr.Blocks:
    blocks = gr.Blocks(title=f"{name} - lengthen", analytics_enabled=False, fill_height=True)
    with blocks:
        gr.Markdown(f"## {html.escape(name)}, {shared.context:,} tokens of context")
        with gr.Tab("Chat"):
            ChatTab(shared).connect(blocks)
        if job is not None:
            with gr.Tab("Extend"):
                ExtendTab(job, runs, name).connect(blocks)
    # Each user's events are independent; the shared model decides whose turn it is.
    blocks.queue(default_concurrency_limit=None, api_open=False)
    return blocks
