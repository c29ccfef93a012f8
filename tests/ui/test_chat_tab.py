"""The web page in headless Chromium, with the shipped model: documents in, question, streamed answer, stop."""

import os
import tempfile
import threading
import time
from pathlib import Path

import pytest

import lengthen

pytest.importorskip("gradio", reason="gradio is not installed (extra: ui)")
reportlab = pytest.importorskip("reportlab.pdfgen.canvas", reason="reportlab is not installed (extra: test)")

from lengthen.chat.session import ChatSession  # noqa: E402
from lengthen.chat.shared_model import SharedModel, UserSession  # noqa: E402
from lengthen.data.documents import read_documents  # noqa: E402
from lengthen.ui.chat_tab import EXAMPLES  # noqa: E402
from lengthen.ui.page import serve_page  # noqa: E402

QUESTION = "return self.name + "  # the answer is a class, not a column of comment signs
# Every text that the answer had while it grew.
RECORD = """() => {
    window.seen = [];
    new MutationObserver(() => {
        const bots = document.querySelectorAll('[data-testid="bot"]');
        const text = bots.length ? bots[bots.length - 1].textContent.trim() : '';
        if (text && text !== window.seen[window.seen.length - 1]) window.seen.push(text);
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
BLOCKED = "https://example.invalid/"
SLOW = 60_000  # ms; for busy machines


@pytest.fixture(scope="module")
def tiny():
    return lengthen.load("tiny", dtype="float32")


@pytest.fixture(scope="module")
def url(tiny):
    """The page's address. Each token takes 10 ms longer, so that a busy browser sees an answer grow."""
    pause = tiny[0].register_forward_pre_hook(lambda *_: time.sleep(0.01))
    with serve_page(SharedModel(*tiny, template="llama2"), "tiny") as url:
        yield url
    pause.remove()


@pytest.fixture
def open_page(browser, url):
    """A function that opens the page as one more person; closing checks that nothing came from elsewhere."""
    contexts, asked, failed = [], [], []

    def open_one(width=1280, height=900, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(SLOW)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#question textarea")
        wait_for_text(page, "#meter", "of 256 tokens")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert failed == []
    assert [each for each in asked if not each.startswith((url, "data:", "blob:", BLOCKED))] == []


@pytest.fixture
def pdf(tmp_path):
    path = tmp_path / "harbour.pdf"
    canvas = reportlab.Canvas(str(path))
    for line in ("The harbour master counts seven boats.", "On page two, a storm begins."):
        canvas.drawString(72, 700, line)
        canvas.showPage()
    canvas.save()
    return path


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("Mary had a small red boat. She sold it to Tom.\n")
    return path


def wait_for_text(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)", arg=[selector, text]
    )


def load(page, *paths):
    page.set_input_files("input[type=file]", [str(path) for path in paths])
    for path in paths:
        wait_for_text(page, "#documents", path.name)


def send(page, question=QUESTION):
    page.fill("#question textarea", question)
    page.click("#send")


def finish(page):
    """Wait until an answer is whole; returns its letters and digits."""
    wait_for_text(page, "#status", "read anew")
    page.wait_for_selector("#send", state="visible")
    return letters(page.locator('[data-testid="bot"]').last.inner_text())


def letters(text):
    """What Markdown leaves as it is: letters and digits."""
    return "".join(filter(str.isalnum, text))


def alone(tiny, *paths):
    """A conversation like the page's, without the page."""
    session = ChatSession(*tiny, 256, "llama2")
    for path in paths:
        session.load(path.name, read_documents([path])[0][0].text)
    return session


def test_pdf_and_text_are_loaded_counted_and_answered_from_in_a_stream(open_page, tiny, pdf, story):
    page, session = open_page(), alone(tiny, pdf, story)
    page.click("#send")  # without a question nothing happens
    load(page, pdf, story)
    for document in session.documents:
        assert f"{document.name}: {document.tokens} tokens" in page.inner_text("#documents")
    # Uploads are not kept.
    assert list(Path(os.environ["GRADIO_TEMP_DIR"]).iterdir())
    assert not list(Path(tempfile.gettempdir()).glob("gradio/**/story.txt"))
    assert not list(Path(os.environ["GRADIO_TEMP_DIR"]).glob("**/story.txt"))
    used = session.tokens(QUESTION)[0]
    page.fill("#question textarea", QUESTION)
    wait_for_text(page, "#meter", f"{used} of 256 tokens")  # before it is sent
    page.evaluate(RECORD)
    send(page)
    answer = finish(page)
    assert answer == letters(session.ask(QUESTION, 128).text)
    assert f"{used} of {used} read anew" in page.inner_text("#status")
    seen = page.evaluate("window.seen")
    assert len(seen) > 5
    lengths = [len(text) for text in seen]
    assert lengths[0] < lengths[-1] / 2
    assert page.input_value("#question textarea") == ""
    assert "Error" not in page.inner_text("body")
    wait_for_text(page, "#meter", f"{session.tokens()[0]} of 256 tokens")

    page.get_by_role("button", name="New conversation").click()
    wait_for_text(page, "#meter", f"{alone(tiny, pdf, story).tokens()[0]} of 256 tokens")
    assert page.locator('[data-testid="bot"]').count() == 0
    page.get_by_role("button", name="Remove documents").click()
    wait_for_text(page, "#documents", "No documents yet")
    wait_for_text(page, "#meter", f"{alone(tiny).tokens()[0]} of 256 tokens")


def test_stop_ends_the_answer_and_the_next_question_works(open_page, story):
    page = open_page()
    load(page, story)
    send(page)
    # As soon as the answer begins, since the model is fast.
    page.wait_for_function("""() => {
        const [bot, stop] = ['[data-testid="bot"]', '#stop'].map(each => document.querySelector(each));
        if (bot && stop) stop.click();
        return bot && stop;
    }""")
    stopped = finish(page)
    assert "stopped" in page.inner_text("#status")
    assert stopped
    written = int(page.inner_text("#status").split()[0])
    assert 0 < written < 128
    send(page, "import third")
    page.wait_for_function("document.querySelectorAll('[data-testid=\"bot\"]').length === 2")
    assert finish(page)


def test_two_people_at_once_do_not_mix(open_page, tiny, pdf, story):
    one, two = open_page(), open_page(390, 844)
    load(one, pdf)
    load(two, story)
    assert "story" not in one.inner_text("#documents")
    assert "harbour" not in two.inner_text("#documents")
    for page in (one, two):
        page.evaluate("""() => { window.states = [];
            const look = () => window.states.push(document.querySelector('#status').innerText);
            new MutationObserver(look).observe(document.body, {subtree: true, childList: true}); }""")
    send(one, "class Boat:")
    send(two, "class Boat:")  # whichever comes first, the other one waits
    answers = [finish(one), finish(two)]
    expected = [alone(tiny, path).ask("class Boat:", 128).text for path in (pdf, story)]
    assert answers == [letters(each) for each in expected]
    assert answers[0] != answers[1]
    states = one.evaluate("window.states") + two.evaluate("window.states")
    assert any("Waiting: 1 before you" in state for state in states)
    for page in (one, two):
        assert page.locator('[data-testid="user"]').count() == 1


def test_closing_the_page_ends_its_answer(open_page, monkeypatch):
    one, two = open_page(), open_page()
    stopped, stop = threading.Event(), UserSession.stop

    def stop_and_tell(user):
        stop(user)
        stopped.set()

    monkeypatch.setattr(UserSession, "stop", stop_and_tell)
    send(one)
    one.wait_for_selector('[data-testid="bot"]')
    one.close()
    assert stopped.wait(30)
    send(two, "import third")
    assert finish(two)


def test_what_does_not_fit_is_refused_or_cut_as_chosen(open_page, tmp_path):
    page = open_page()
    long = tmp_path / "long.txt"
    long.write_text("A boat and a storm. " * 100)
    page.set_input_files("input[type=file]", str(long))
    wait_for_text(page, "body", "long.txt does not fit")
    said = page.inner_text("body")
    assert "have its middle cut out" in said
    assert "--fit" not in said
    assert "lengthen-ui" not in said  # where uploads lie
    assert "No documents yet" in page.inner_text("#documents")

    page.get_by_label("Cut the middle out").check()
    load(page, long)
    assert "cut out" in page.inner_text("#documents")
    page.fill("#question textarea", "word " * 300)
    wait_for_text(page, "#meter", "no room for an answer")
    page.click("#send")
    wait_for_text(page, "body", "reset the conversation, or load less")
    # Nothing that was written is lost.
    page.wait_for_function("document.querySelector('#question textarea').value === 'word '.repeat(300)")


def test_broken_files_are_named(open_page, tmp_path):
    page = open_page()
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and nothing more")
    page.set_input_files("input[type=file]", str(tmp_path / "broken.pdf"))
    wait_for_text(page, "body", "broken.pdf is broken or no PDF")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_the_screen_and_has_examples(open_page, width, scheme):
    page = open_page(width, 844, scheme)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    page.get_by_text(EXAMPLES[0]).click()
    page.wait_for_function("text => document.querySelector('#question textarea').value === text", arg=EXAMPLES[0])


def test_nothing_can_be_loaded_from_elsewhere(open_page):
    page = open_page()
    blocked = page.evaluate(
        """url => new Promise(resolve => {
        document.addEventListener('securitypolicyviolation', event => resolve(event.blockedURI));
        const image = document.createElement('img');
        image.src = url;
        document.body.append(image);
        setTimeout(() => resolve('nothing was blocked'), 3000);
    })""",
        BLOCKED,
    )
    assert blocked == BLOCKED
