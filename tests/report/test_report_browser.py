"""The report in headless Chromium: wide and narrow, light and dark."""

import shutil

import pytest

import report_files as files
from lengthen.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: test)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

# Boxes are in pixels of the page; a text's box is that of its font, a little more than what is drawn.
PICTURES = """() => [...document.querySelectorAll('svg')].map(svg => {
    const box = each => { const b = each.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
    const drawn = [...svg.querySelectorAll('path, use')].filter(each => box(each)[2] > box(each)[0]).length;
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const texts = [...svg.querySelectorAll('text')].map(each => ({
        text: each.textContent, box: box(each), size: scale * parseFloat(getComputedStyle(each).fontSize)}));
    return {label: svg.getAttribute('aria-label'), box: box(svg), drawn, texts};
})"""
LUMINANCE = """names => names.map(name => {
    const probe = document.body.appendChild(document.createElement('i'));
    probe.style.color = `var(--${name})`;
    const channels = getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number);
    probe.remove();
    const linear = channels.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
})"""


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "a-run-with-a-rather-long-name-that-has-to-be-broken-on-a-phone"
    shutil.copytree(run, folder)
    compare = files.write_all(folder, "base", folder.parent / "elsewhere")
    return write_report(folder, compare=compare)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield launched
        launched.close()


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(params=[1400, 400])
def page(browser, report, scheme, request):
    """The open page; closing it checks that nothing was complained about or asked for."""
    page = browser.new_page(viewport={"width": request.param, "height": 844}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    yield page
    page.close()
    assert said == []
    assert asked == [report.as_uri()]


def test_nothing_is_wider_than_the_screen_and_tables_scroll_in_their_own_box(page):
    width = page.viewport_size["width"]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    boxes = page.evaluate("[...document.querySelectorAll('main *')].map(e => e.closest('.scroll, pre') ? 0 : "
                          "e.getBoundingClientRect().right)")  # fmt: skip
    assert max(boxes) <= width


def test_every_picture_is_drawn_with_readable_text_inside_it(page):
    pictures = page.evaluate(PICTURES)
    assert len(pictures) == 9
    for picture in pictures:
        left, top, right, bottom = picture["box"]
        assert right - left > 300
        assert bottom - top > 120
        assert picture["drawn"] > 4
        assert len(picture["texts"]) > 4
        for text in picture["texts"]:
            assert text["size"] >= 7, text
            x0, y0, x1, y1 = text["box"]
            assert x1 > x0, text
            assert left - 1 <= x0 <= x1 <= right + 1, (picture["label"], text)
            assert top - 1 <= y0 <= y1 <= bottom + 1, (picture["label"], text)


def test_no_text_covers_another(page):
    for picture in page.evaluate(PICTURES):
        texts = picture["texts"]
        for i, one in enumerate(texts):
            for other in texts[:i]:
                across = min(one["box"][2], other["box"][2]) - max(one["box"][0], other["box"][0])
                down = min(one["box"][3], other["box"][3]) - max(one["box"][1], other["box"][1])
                assert across <= 1 or down <= 4, (picture["label"], one["text"], other["text"])


def test_text_and_lines_stand_out_from_the_ground(page):
    names = ["ground", "ink", "muted", "last", "series-1", "series-2", "series-3", "series-4"]
    ground, *others = page.evaluate(LUMINANCE, names)
    for name, luminance in zip(names[1:], others, strict=True):
        contrast = (max(ground, luminance) + 0.05) / (min(ground, luminance) + 0.05)
        assert contrast >= (4.5 if name in ("ink", "muted", "last") else 3), name


def test_dark_is_dark_and_light_is_light(page, scheme):
    (ground,) = page.evaluate(LUMINANCE, ["ground"])
    assert ground < 0.05 if scheme == "dark" else ground > 0.9


def test_verdict_and_picture_are_on_the_first_screen(page):
    bottoms = page.evaluate(
        "[document.querySelector('.verdict'), document.querySelector('svg')].map(e => e.getBoundingClientRect().bottom)"
    )
    assert max(bottoms) < page.viewport_size["height"]


def test_the_keyboard_reaches_what_scrolls_and_what_opens(page):
    reached = []
    while True:
        page.keyboard.press("Tab")
        now = page.evaluate("""() => {
            const active = document.activeElement;
            return active.getAttribute('aria-label') || active.textContent.trim().split('\\n')[0];
        }""")
        if now in reached or page.evaluate("document.activeElement === document.body"):
            break
        reached.append(now)
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached[0] == "All scores of base and run"
    page.keyboard.press("Shift+Tab")
    shown = page.locator("[role=region]").evaluate_all("each => each.filter(e => e.checkVisibility()).map(e => "
                                                       "e.ariaLabel)")  # fmt: skip
    assert set(shown) <= set(reached)
    page.evaluate("document.querySelector('details summary').focus()")
    page.keyboard.press("Enter")
    assert page.locator("header table").is_visible()


def test_on_paper_it_is_light_and_nothing_is_folded_away(page):
    page.emulate_media(media="print")
    (ground,) = page.evaluate(LUMINANCE, ["ground"])
    assert ground > 0.9
    folded = page.evaluate(
        "[...document.querySelectorAll('details > :not(summary)')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(folded) == 2
    assert min(folded) > 50
