"""The tab "Extend" in headless Chromium: plan, start, live loss, cancel, a restart, go on, verdict."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lengthen

pytest.importorskip("gradio", reason="gradio is not installed (extra: ui)")

from lengthen.chat.shared_model import SharedModel
from lengthen.data.stdlib import stdlib_documents
from lengthen.errors import LengthenError
from lengthen.extension import ExtendRequest, Extension, plan_extension, read_state
from lengthen.run_folder import RunFolder
from lengthen.ui.job import ExtensionJob
from lengthen.ui.page import serve_page

SLOW = 240_000  # ms; for busy machines
IS_TRAINING = "() => /\\d+ of \\d+ steps, loss \\d/.test(document.querySelector('#extension').innerText)"


@pytest.fixture(scope="module")
def shared():
    return SharedModel(*lengthen.load("tiny", dtype="float32"), template="llama2")


@pytest.fixture(scope="module")
def small(make_base):
    return make_base("small", max_position_embeddings=256, hidden_size=64, num_hidden_layers=4)


@pytest.fixture
def open_tab(browser):
    """A function that opens a page's tab as one more person; closing checks that nothing came from elsewhere."""
    contexts, asked, failed = [], [], []

    def open_one(url, width=1400, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(SLOW)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(url)
        page.get_by_role("tab", name="Extend").click()
        page.wait_for_selector("#extension .extension")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert failed == []
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []


def wait_for(page, text):
    page.wait_for_function("text => document.querySelector('#extension')?.innerText.includes(text)", arg=text)


def ask_for(page, base, to, data, hours):
    page.fill("#base input", str(base))
    page.press("#base input", "Enter")
    page.fill("#target input", str(to))
    page.fill("#data textarea", str(data))
    page.fill("#hours input", str(hours))
    page.press("#hours input", "Tab")


def choose(page, run):
    page.click("#run input")
    page.get_by_role("option", name=run).click()


def test_from_the_plan_to_the_verdict_over_a_restart(open_tab, shared, small, books, tmp_path):
    folder = tmp_path / "runs" / "small-512"
    with serve_page(shared, "tiny", runs=tmp_path / "runs") as url:
        page = open_tab(url)
        ask_for(page, small, 512, books, 1)
        page.click("#plan")
        wait_for(page, "Planned.")
        assert "method: yarn to 512 tokens" in page.inner_text("#extension")
        assert tuple(read_state(folder).seconds) == ("plan",)
        assert not RunFolder(folder).metrics.exists(), "nothing is trained before it is started"

        other = open_tab(url, width=400)  # who comes later sees the same
        choose(other, "small-512 (not finished)")
        wait_for(other, "Planned.")
        page.click("#start")
        wait_for(other, "Measure the base ...")
        assert not other.locator("#start").is_visible(), "there is one at a time"
        assert other.input_value("#data textarea") == str(books)
        # Anyone can cancel it; at once, as a small model trains fast.
        other.wait_for_function(f"""() => {{
            const trains = ({IS_TRAINING})() && document.querySelector('#extension section[aria-label=Loss] svg');
            if (trains) document.querySelector('#cancel').click();
            return trains; }}""")
        for each in (page, other):
            wait_for(each, "Stopped; next: Train.")
        assert not RunFolder(folder).is_finished
        taken = len(RunFolder(folder).read_metrics())
        assert 0 < taken < read_state(folder).plan.steps

    with serve_page(shared, "tiny", runs=tmp_path / "runs") as url:
        page = open_tab(url, width=400, scheme="dark")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 400
        choose(page, "small-512 (not finished)")
        wait_for(page, "Stopped; next: Train.")
        assert page.inner_text("#start") == "Go on"
        assert page.input_value("#target input") == "512"
        page.click("#start")
        page.wait_for_selector("#extension .verdict")
        said = page.inner_text("#extension")
    steps = [record["step"] for record in RunFolder(folder).read_metrics()]
    assert steps == list(range(1, read_state(folder).plan.steps + 1)), "no step is taken twice"
    verdict = Extension(folder).verdict
    for line in (*verdict.lines, *verdict.next, *verdict.advice, str(folder / "report.html")):
        assert line in said
    assert (folder / "report.html").is_file()


def test_a_run_that_was_begun_elsewhere_goes_on_by_its_own_wishes(open_tab, shared, small, books, tmp_path):
    folder = tmp_path / "runs" / "elsewhere"
    wishes = {"eval_data": [str(books / "7.txt")], "task": "lookup", "overrides": ["training.steps=2"]}
    plan_extension(str(small), 512, str(books), out=folder, hours=0.02, **wishes)
    with serve_page(shared, "tiny", runs=tmp_path / "runs") as url:
        page = open_tab(url)
        choose(page, "elsewhere (not finished)")
        page.wait_for_function("() => document.querySelector('#target input').value == '512'")
        page.click("#start")
        page.wait_for_selector("#extension .verdict")
    assert len(RunFolder(folder).read_metrics()) == 2
    assert Extension(folder).comparison["documents"] == [str(books / "7.txt")]
    assert read_state(folder).plan.questions.task == "lookup"


def test_what_is_missing_and_what_is_wrong_is_said(open_tab, shared, small, books, tmp_path):
    with serve_page(shared, "tiny", runs=tmp_path / "runs") as url:
        page = open_tab(url)
        page.click("#start")
        page.get_by_text("Say which base to extend").wait_for()
        ask_for(page, small, 512, books, "")
        page.click("#start")
        page.get_by_text("and in how many hours").last.wait_for()
        ask_for(page, small, 128, books, 1)
        page.click("#start")
        wait_for(page, "has a context of 256 tokens already")
        assert page.locator("#extension [role=alert]").count() == 1
        page.click("#start")  # and again, as nothing is left of it
        wait_for(page, "has a context of 256 tokens already")


def test_uploads_are_kept_where_a_later_process_finds_them(open_tab, shared, books, tmp_path):
    with serve_page(shared, "tiny", runs=tmp_path / "runs") as url:
        page = open_tab(url)
        page.set_input_files("#files input[type=file]", [str(books / "0.txt"), str(books / "1.txt")])
        page.wait_for_function("() => document.querySelector('#data textarea').value.includes('1.txt')")
        kept = [Path(line) for line in page.input_value("#data textarea").splitlines()]
    assert [path.name for path in kept] == ["0.txt", "1.txt"]
    assert [path.read_text() for path in kept] == [(books / path.name).read_text() for path in kept]


def test_the_tab_is_not_there_for_others(browser, shared, tmp_path):
    with serve_page(shared, "tiny", host="0.0.0.0", runs=tmp_path) as url:
        page = browser.new_page()
        page.goto(url.replace("0.0.0.0", "127.0.0.1"))
        page.get_by_role("tab", name="Chat").wait_for()
        assert page.get_by_role("tab", name="Extend").count() == 0
        page.close()


def test_one_at_a_time(small, books, tmp_path):
    job, wishes = ExtensionJob(), ExtendRequest(str(small), 512, (str(books),), hours=1)
    job.begin(wishes, tmp_path / "one")
    with pytest.raises(LengthenError, match="one is being extended"):
        job.begin(wishes, tmp_path / "two")
    job.close()
    assert job.progress.state == "stopped"
    assert not (tmp_path / "two").exists()
    job.begin(wishes, tmp_path / "one", only_plan=True)
    job.close()
    assert job.progress.state in ("planned", "stopped")


@pytest.mark.slow
def test_the_shipped_base_by_the_command_killed_and_started_again(open_tab, tmp_path):
    """With uploaded documents; killed while it trains; the same page goes on and shows the verdict."""
    documents = [path for path in stdlib_documents("train") if 30_000 < path.stat().st_size < 120_000][:40]

    def serve():
        where = tmp_path / "page.json"
        where.unlink(missing_ok=True)
        command = ["ui", "tiny", "--template", "llama2", "--runs", str(tmp_path / "runs"), "--json", str(where)]
        process = subprocess.Popen([sys.executable, "-m", "lengthen.cli", *command], cwd=tmp_path)
        while not where.exists() and process.poll() is None:
            time.sleep(0.1)
        return process, json.loads(where.read_text())["url"]

    process, url = serve()
    try:
        page = open_tab(url)
        page.set_input_files("#files input[type=file]", list(map(str, documents)))
        page.wait_for_function(f"() => document.querySelector('#data textarea').value.includes('{documents[-1].name}')")
        page.fill("#target input", "512")
        page.fill("#hours input", "0.1")
        page.press("#hours input", "Tab")
        page.click("#start")
        page.wait_for_function(IS_TRAINING)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process, url = serve()
        page = open_tab(url)
        choose(page, "tiny-512 (not finished)")
        page.get_by_role("button", name="Go on").click()
        page.wait_for_selector("#extension .verdict")
        assert re.search(r"(?i)usable", page.inner_text("#extension .verdict"))
        assert page.locator("#extension section[aria-label=Verdict] svg").count() == 1
    finally:
        process.kill()
    verdict = Extension(tmp_path / "runs" / "tiny-512").verdict
    assert len(verdict.lines) == 5
