"""The web page, asked by a client that is no browser: other routes, others' files, names, and too much at once."""

import json
import socket
import threading

import httpx
import pytest

import lengthen

pytest.importorskip("gradio", reason="gradio is not installed (extra: ui)")

from lengthen.chat.shared_model import SharedModel
from lengthen.ui import page_guard
from lengthen.ui.page import serve_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A client of the page, which also knows the folder of its uploads."""
    import os

    model, tokenizer = lengthen.load("tiny", dtype="float32")
    with (
        serve_page(SharedModel(model, tokenizer, template="llama2"), "tiny") as url,
        httpx.Client(base_url=url) as client,
    ):
        client.uploads = os.environ["GRADIO_TEMP_DIR"]
        yield client


def upload(page, name, content=b"Mary had a boat."):
    return page.post("/gradio_api/upload", files={"files": (name, content)})


def send(page, paths, session):
    """Have files read, as the page does when they are uploaded; returns the last event."""
    dependencies = page.get("/config").json()["dependencies"]
    number = next(each["id"] for each in dependencies if any(target[1] == "upload" for target in each["targets"]))
    files = [{"path": str(path), "orig_name": "a.txt", "meta": {"_type": "gradio.FileData"}} for path in paths]
    body = {"data": [files, False, "", 16], "fn_index": number, "session_hash": session, "event_data": None}
    page.post("/gradio_api/queue/join", json=body).raise_for_status()
    with page.stream("GET", f"/gradio_api/queue/data?session_hash={session}", timeout=60) as events:
        for line in events.iter_lines():
            event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if event.get("msg") in ("process_completed", "unexpected_error"):
                return event
    raise AssertionError("the events ended")


def test_an_upload_is_read_and_then_gone(page):
    (path,) = upload(page, "story.txt").json()
    event = send(page, [path], "reader")
    assert event["success"], event
    assert "story.txt" in json.dumps(event["output"]) or "a.txt" in json.dumps(event["output"])
    assert not page_guard.Path(path).exists()


CLOSED = [
    "/gradio_api/file={path}", "/gradio_api/file/{path}", "/file={path}", "/gradio_api/file=/etc/passwd",
    "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/deep_link", "/gradio_api/openapi.json", "/monitoring",
    "/monitoring/summary", "/gradio_api/runs", "/gradio_api/run-history/records", "/docs", "/openapi.json",
    "/gradio_api/call/load/x", "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/custom_component/a/b/c/d",
    "/gradio_api/vibe-code/", "/gradio_api/user", "/gradio_api/token", "/gradio_api/dev/reload", "/gradio_api/mcp/sse",
    "/static/..%2f..%2f..%2fetc/passwd", "/assets/%2e%2e/%2e%2e/routes.py", "/svelte/..%2fx",
]  # fmt: skip


def test_no_other_route_is_open(page):
    (path,) = upload(page, "secret.txt").json()
    for route in CLOSED:
        answer = page.get(route.format(path=path))
        assert answer.status_code in (400, 404), route
        assert b"Mary had" not in answer.content
    for route in (
        "api/predict",
        "call/load",
        "component_server",
        "process_recording",
        "stream/x",
        "info",
    ):
        assert page.post(f"/gradio_api/{route}", json={"data": []}).status_code == 404, route
    for route in ("/login", "/config", "/"):
        assert page.post(route, json={"data": []}).status_code == 404, route
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert page.request(method, "/config").status_code in (400, 404, 405)


@pytest.mark.parametrize(
    "name",
    ["../../../out.txt", "..\\..\\out.txt", "/tmp/out.txt", ".bashrc", "a\r\nb.txt", "x" * 300 + ".txt",
     "\u202etxt.exe.txt", "con.txt", "a/b/c.txt", "%2e%2e%2fout.txt", " .txt", "$(id).txt", "'; rm -rf x.txt"],
)  # fmt: skip
def test_names_stay_in_the_folder_of_uploads(page, name):
    answer = upload(page, name)
    if answer.status_code == 200:
        (path,) = answer.json()
        place = page_guard.Path(path).resolve()
        assert place.is_relative_to(page_guard.Path(page.uploads).resolve())
    else:
        assert answer.status_code in (400, 413, 422)


def test_files_of_the_machine_are_not_documents(page, tmp_path):
    (tmp_path / "private.txt").write_text("a private text")
    outside = ["/etc/passwd", tmp_path / "private.txt", f"{page.uploads}/../x", f"{page.uploads}/../../etc/passwd", ""]
    for number, path in enumerate(outside):
        event = send(page, [path], f"thief{number}")
        assert not event.get("success"), (path, event)
        assert "private text" not in json.dumps(event)
        assert "root:" not in json.dumps(event)


def test_no_url_is_fetched(page):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)

        def listen():
            try:
                while True:
                    asked.append(listener.accept())
            except OSError:
                pass

        for number, address in enumerate(("127.0.0.1", "localhost")):
            url = f"http://{address}:{listener.getsockname()[1]}/x.txt"
            thread = threading.Thread(target=listen)
            thread.start()
            with pytest.raises(httpx.HTTPStatusError, match="400"):
                send(page, [url], f"fetcher{number}")
            thread.join()
    assert asked == []


def test_uploads_are_bounded(page, monkeypatch):
    monkeypatch.setattr(page_guard, "_MOST_HELD", 3000)
    assert upload(page, "one.txt", b"x" * 1000).status_code == 200
    assert upload(page, "two.txt", b"y" * 2000).status_code == 413
    body = b"".join((b"x" * 100,))
    assert page.post("/gradio_api/upload", content=(each for each in (body, body))).status_code == 411
    assert page.post("/gradio_api/queue/join", content=b" " * (2**20 + 1)).status_code == 413
    for path in page_guard.Path(page.uploads).rglob("*"):
        if path.is_file():
            path.unlink()
    assert upload(page, "two.txt", b"y" * 2000).status_code == 200


def test_what_nobody_reads_goes(page, monkeypatch):
    (path,) = upload(page, "old.txt").json()
    monkeypatch.setattr(page_guard, "_KEPT", -1)
    upload(page, "new.txt")
    assert not page_guard.Path(path).exists()


def test_a_file_that_is_too_large(page, monkeypatch):
    assert upload(page, "large.txt", bytes(page_guard.MOST_FILE_BYTES + 1)).status_code == 413


def test_more_files_at_once_are_not_read(page):
    paths = [
        path for number in range(page_guard.MOST_FILES + 3) for path in upload(page, f"{number}.txt", b"a b").json()
    ]
    event = send(page, paths, "many")
    assert event["success"]
    assert json.dumps(event["output"]).count("<li>") <= page_guard.MOST_FILES
    assert not any(page_guard.Path(path).exists() for path in paths)
