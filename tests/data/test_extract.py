"""Text of PDF, EPUB, HTML and Word files, each made here."""

import io
import sys
import zipfile

import docx
import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from lengthen.data.documents import read_documents
from lengthen.data.extract import extract_text
from lengthen.errors import DataError


def write_pdf(path, pages, encrypt=None):
    """One page for each entry: lines of text, None for a blank page, or a picture."""
    canvas = Canvas(str(path), encrypt=encrypt)
    for page in pages:
        if isinstance(page, ImageReader):
            canvas.drawImage(page, 72, 400, 200, 100)
        for number, line in enumerate(page if isinstance(page, list) else []):
            canvas.drawString(72, 720 - 20 * number, line)
        canvas.showPage()
    canvas.save()
    return path


@pytest.fixture
def picture():
    from PIL import Image

    content = io.BytesIO()
    Image.new("L", (20, 10), 128).save(content, "PNG")
    content.seek(0)
    return ImageReader(content)


CHAPTER = """<?xml version="1.0" encoding="utf-8"?>
<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x.js"/></head>
<body><h2>{title}</h2><p>caf\u00e9&nbsp;and <em>more</em><br/>of it</p><div/></body></html>"""


def write_epub(path, titles=("One", "Two"), **more):
    items = "".join(
        f'<item id="c{i}" href="text/c%20{i}.xhtml" media-type="application/xhtml+xml"/>' for i in range(len(titles))
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(titles)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "OEBPS/book.opf",
            f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}'
            '<item id="cover" href="cover.svg" media-type="image/svg+xml"/></manifest>'
            f'<spine><itemref idref="cover"/>{spine}</spine></package>',
        )
        for index, title in enumerate(titles):
            archive.writestr(f"OEBPS/text/c {index}.xhtml", CHAPTER.format(title=title))
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def refused(path, *words):
    with pytest.raises(DataError) as caught:
        extract_text(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_pdf(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [["First line", "second line"], None, ["On the third page"]])
    text, warnings = extract_text(path)
    assert text == "[page 1]\nFirst line\nsecond line\n\n[page 3]\nOn the third page"
    assert warnings == []


def test_pdf_that_is_partly_scanned(tmp_path, picture):
    path = write_pdf(tmp_path / "a.pdf", [["Title"], picture, picture])
    text, (warning,) = extract_text(path)
    assert text == "[page 1]\nTitle"
    assert "2 of 3 pages" in warning
    assert "page 2" in warning


def test_pdf_without_text(tmp_path, picture):
    refused(write_pdf(tmp_path / "a.pdf", [picture, picture]), "2 pages", "scanned", "ocrmypdf")


def test_pdf_with_password(tmp_path):
    encryption = StandardEncryption("secret", strength=128)
    refused(write_pdf(tmp_path / "a.pdf", [["hidden"]], encryption), "password")
    # One that only restricts what may be done with it is read.
    open_to_all = StandardEncryption("", ownerPassword="owner", strength=128)
    assert "shown" in extract_text(write_pdf(tmp_path / "b.pdf", [["shown"]], open_to_all))[0]


@pytest.mark.parametrize("suffix", [".pdf", ".epub", ".docx"])
@pytest.mark.parametrize("content", [b"", b"not of this kind at all", b"PK\x03\x04 cut short"])
def test_broken(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    refused(path, "broken")


@pytest.mark.parametrize("suffix", [".pdf", ".epub", ".docx"])
def test_cut_short(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pdf":
        write_pdf(path, [["text"]])
    elif suffix == ".epub":
        write_epub(path)
    else:
        docx.Document().save(str(path))
    path.write_bytes(path.read_bytes()[:300])
    refused(path, "broken")


def test_epub(tmp_path):
    text, warnings = extract_text(write_epub(tmp_path / "a.epub"))
    body = "caf\u00e9 and more\nof it"
    assert text == f"[section 1]\n## One\n\n{body}\n\n[section 2]\n## Two\n\n{body}"
    assert warnings == []


def test_epub_with_encryption(tmp_path):
    fonts = (
        '<encryption><EncryptedData><CipherData><CipherReference URI="{}"/></CipherData></EncryptedData></encryption>'
    )
    free = write_epub(tmp_path / "a.epub", **{"META-INF/encryption.xml": fonts.format("OEBPS/font.otf")})
    assert "One" in extract_text(free)[0]
    refused(
        write_epub(tmp_path / "b.epub", **{"META-INF/encryption.xml": fonts.format("OEBPS/text/c%200.xhtml")}), "DRM"
    )


def test_epub_that_misses_a_chapter(tmp_path):
    whole, path = write_epub(tmp_path / "a.epub"), tmp_path / "b.epub"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if "c 1" not in name:
                target.writestr(name, source.read(name))
    refused(path, "broken", "c 1.xhtml")


def html_text(tmp_path, content):
    path = tmp_path / "a.html"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return extract_text(path)[0]


def test_html(tmp_path):
    text = html_text(
        tmp_path,
        """<html><head><title>not this</title><style>p {}</style></head><body>
        <h1>Top <em>one</em></h1><p>First &amp;
        second<br>third<br><br>fourth</p><!-- not this --> tail <script>not this</script>
        <ul><li>a<li><p>b <b>bold</b></p></ul>
        <table><tr><th>x<th>y</tr><tr><td>1</td><td>2</td></tr></table>
        <pre>def f():\n    return 1</pre>x &lt; y</body></html>""",
    )
    assert text == (
        "# Top one\n\nFirst & second\nthird\n\nfourth\n\ntail\n- a\n- b bold\nx | y\n1 | 2\n\n"
        "def f():\n    return 1\n\nx < y"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "utf-16", "utf-8-sig"])
def test_html_encodings(tmp_path, encoding):
    page = f'<html><head><meta charset="{encoding}"></head><body>na\u00efve caf\u00e9</body></html>'
    assert html_text(tmp_path, page.encode(encoding)) == "na\u00efve caf\u00e9"


def test_html_that_cant_be_read(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes("caf\u00e9".encode("latin-1"))
    refused(path, "encoding", "iconv")
    path.write_text("<html><script>only this</script></html>")
    refused(path, "no text")
    refused(tmp_path / "none.html", "does not exist")


def test_docx(tmp_path):
    document = docx.Document()
    document.add_heading("The title", 0)
    document.add_heading("Methods", 2)
    document.add_paragraph("A paragraph.")
    table = document.add_table(2, 2)
    for cell, text in zip([*table.rows[0].cells, *table.rows[1].cells], "abcd", strict=True):
        cell.text = text
    table.rows[1].cells[0].merge(table.rows[1].cells[1])
    document.add_paragraph("The end.")
    path = tmp_path / "a.docx"
    document.save(str(path))
    text, warnings = extract_text(path)
    assert text == "# The title\n\n## Methods\n\nA paragraph.\n\na | b\nc\nd\n\nThe end."
    assert warnings == []


def test_docx_with_password(tmp_path):
    path = tmp_path / "a.docx"
    path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600))
    refused(path, "password")


@pytest.mark.parametrize(
    ("suffix", "module", "package"),
    [(".pdf", "pypdfium2", "pypdfium2"), (".docx", "docx", "python-docx"), (".epub", "lxml.etree", "lxml"),
     (".html", "lxml.etree", "lxml")],
)  # fmt: skip
def test_a_missing_package_is_named(tmp_path, monkeypatch, suffix, module, package):
    path = tmp_path / f"a{suffix}"
    path.write_text("text")
    monkeypatch.setitem(sys.modules, module, None)
    refused(path, package, "lengthen[documents]")


def test_they_are_documents(tmp_path, picture):
    write_pdf(tmp_path / "b.PDF", [["In a PDF"], picture])
    write_epub(tmp_path / "c.epub")
    (tmp_path / "a.html").write_text("<p>In a page")
    documents, warnings = read_documents([tmp_path])
    assert [document.text.split("\n")[0] for document in documents] == ["In a page", "[page 1]", "[section 1]"]
    assert documents[1].name == str(tmp_path / "b.PDF")
    assert len(warnings) == 1
