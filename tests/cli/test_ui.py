"""`lengthen ui`: what it refuses, and a process that serves the page until it is interrupted."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from command_line import invoke
from lengthen.errors import LengthenError

pytest.importorskip("gradio", reason="gradio is not installed (extra: ui)")


def refused(*arguments):
    result = invoke("ui", *arguments)
    if isinstance(result.exception, LengthenError):
        return str(result.exception)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def test_it_refuses_before_it_serves(base, run, tmp_path):
    assert "choose one by --template" in refused("tiny")
    assert "template 'none' is not one of" in refused("tiny", "--template", "none")
    assert "holds no adapter" in refused(str(base), "--template", "llama2", "--adapter", f"mine={tmp_path}")
    assert "NAME=PATH" in refused(str(base), "--adapter", "a=x", "--adapter", "a=y")
    assert "has its adapter already" in refused(str(run), "--template", "llama2", "--adapter", str(run / "adapter"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("tiny", "--template", "llama2", "--port", str(port))
        assert f"can't listen on 127.0.0.1, port {port}" in said
    assert "can't listen on 192.0.2.1" in refused("tiny", "--template", "llama2", "--host", "192.0.2.1")


def test_it_serves_until_it_is_interrupted(base, run, tmp_path):
    where = tmp_path / "page.json"
    command = ["ui", str(base), "--template", "llama2", "--adapter", f"mine={run / 'adapter'}", "--json", str(where)]
    process = subprocess.Popen(
        [sys.executable, "-m", "lengthen.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where these tests run in the background, the signal is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not where.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        page = json.loads(where.read_text())
        assert page == {"model": str(base), "url": page["url"], "context": 128, "adapters": ["mine"]}
        assert page["url"].startswith("http://127.0.0.1:")
        content = urlopen(page["url"]).read().decode()
        assert "Content-Security-Policy" in content
        assert Path(base).name in content
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert page["url"] in out
    assert "Traceback" not in err
