"""Text of PDF, EPUB, HTML and Word files, each made here."""

import io
import re
import sys
import zipfile

import docx
import pytest
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
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


def test_pdf_hyphens_go_where_the_word_is_known(tmp_path):
    lines = [
        "An extraordi-", "nary self-", "employed man of COVID-", "19 from 1990-", "1995, at example.org/long-", "name.",
        "Extraordinary.",
    ]  # fmt: skip
    text, _ = extract_text(write_pdf(tmp_path / "a.pdf", [lines, ["A cor-", "rect one."], ["It is correct."]]))
    assert text == (
        "[page 1]\nAn extraordinary self-employed man of COVID-19 from 1990-\n1995, at example.org/long-name.\n"
        "Extraordinary.\n\n[page 2]\nA correct one.\n\n[page 3]\nIt is correct."
    )


def test_pdf_hyphens_stay_in_compounds_addresses_and_ranges(tmp_path):
    lines = ["A well-", "known e-", "mail of a co-", "author, pages 12-", "15 of x-", "ray.example: Cooper-", "ate."]
    text, _ = extract_text(write_pdf(tmp_path / "a.pdf", [lines, ["They cooperate, as coauthors do."]]))
    assert text.startswith("[page 1]\nA well-known e-mail of a co-author, pages 12-\n15 of x-ray.example: Cooperate.\n")


def test_marks_for_layout_are_no_text_in_epub(tmp_path):
    title = "ex&#173;tra zero&#8203;width <ruby>\u5c71<rt>\u3084\u307e</rt></ruby>"
    text, _ = extract_text(write_epub(tmp_path / "a.epub", titles=(title,)))
    assert text.startswith("[section 1]\n## extra zerowidth \u5c71\n")


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("An ex&shy;tra&shy;or&shy;di&shy;nary zero&#8203;width&#xFEFF; word&NoBreak;joiner.",
         "An extraordinary zerowidth wordjoiner."),
        ("<ruby>\u6771\u4eac<rp>(</rp><rt>\u3068\u3046</rt><rp>)</rp></ruby>\u3078", "\u6771\u4eac\u3078"),
        ("<ruby>\u5c71<rt>\u3084\u307e</ruby>", "\u5c71"),
        ("E = <math><semantics><mi>m</mi><annotation encoding='application/x-tex'>\\\\mu</annotation>"
         "<annotation-xml><mi>q</mi></annotation-xml></semantics></math>", "E = m"),
        ("very<wbr>long <span>word</span>", "verylong word"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    ],
)  # fmt: skip
def test_marks_for_layout_are_no_text(tmp_path, page, text):
    assert html_text(tmp_path, f"<meta charset=utf-8><p>{page}</p>") == text


@pytest.mark.parametrize(
    ("label", "content", "text"),
    [
        ("iso-8859-1", b"\x93it\x92s\x94 \x97 5 \x80", "\u201cit\u2019s\u201d \u2014 5 \u20ac"),
        ("us-ascii", b"caf\xe9", "caf\xe9"),
        ("latin1", b"caf\xe9 \x85", "caf\xe9 \u2026"),
        ("iso-8859-9", b"\xfd\xfe \x80", "\u0131\u015f \u20ac"),
        ("gb2312", "\u9555".encode("gbk"), "\u9555"),  # not in GB 2312 itself
        ("gbk", "\u4e2d\u20ac\U00020087".encode("gb18030"), "\u4e2d\u20ac\U00020087"),
        ("shift_jis", "\u2460".encode("cp932"), "\u2460"),
        ("x-sjis", "\u5c71".encode("cp932"), "\u5c71"),
        ("unicode-1-1-utf-8", b"caf\xc3\xa9", "caf\xe9"),
    ],
)
def test_labels_mean_what_they_mean_to_browsers(tmp_path, label, content, text):
    page = b'<html><head><meta http-equiv="Content-Type" content="text/html; charset=%s"></head><body>%s</body></html>'
    assert html_text(tmp_path, page % (label.encode(), content)) == text


def test_a_page_that_is_not_in_the_encoding_it_names(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes(b'<meta charset="euc-jp"><p>caf\xe9</p>')
    refused(path, "euc-jp", "iconv")


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "utf-16", "utf-32", "utf-8-sig"])
def test_html_encodings(tmp_path, encoding):
    page = f'<html><head><meta charset="{encoding}"></head><body>na\u00efve caf\u00e9</body></html>'
    assert html_text(tmp_path, page.encode(encoding)) == "na\u00efve caf\u00e9"


def test_html_whose_elements_lie_too_deep_is_not_read_in_part(tmp_path):
    path = tmp_path / "deep.html"
    path.write_text(f"<p>before</p>{1000 * '<div>'}inside{1000 * '</div>'}<p>after</p>", encoding="utf-8")
    assert extract_text(path)[0] == "before\n\ninside\n\nafter"
    path.write_text(f"<p>before</p>{5000 * '<div>'}inside{5000 * '</div>'}<p>after</p>", encoding="utf-8")
    with pytest.raises(DataError, match=r"deep.html can't be read to its end: Excessive depth"):
        extract_text(path)


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


W = nsdecls("w")


def word_file(path, *blocks, notes=""):
    """A Word file of these blocks in XML, and perhaps footnotes."""
    document = docx.Document()
    body = document.element.body
    for block in blocks:
        body.insert(len(body) - 1, parse_xml(re.sub(r"^<w:(\w+)", rf"<w:\1 {W} {nsdecls('r')}", block)))
    if notes:
        kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"
        content_type = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
        part = Part(PackURI("/word/footnotes.xml"), content_type, f"<w:footnotes {W}>{notes}</w:footnotes>".encode())
        document.part.relate_to(part, kind)
    document.save(str(path))
    return path


def run(text, properties=""):
    return f'<w:r>{properties}<w:t xml:space="preserve">{text}</w:t></w:r>'


WORD = {
    "tracked changes": (
        f'<w:p>{run("It pays ")}<w:del w:id="1" w:author="x"><w:r><w:delText>nine</w:delText></w:r></w:del>'
        f'<w:ins w:id="2" w:author="x">{run("twelve")}</w:ins>{run(" a month.")}</w:p>',
        "It pays twelve a month.",
    ),
    "moved text": (
        f'<w:p><w:moveFrom w:id="1" w:author="x">{run("gone ")}</w:moveFrom>{run("here ")}'
        f'<w:moveTo w:id="2" w:author="x">{run("now")}</w:moveTo></w:p>',
        "here now",
    ),
    "block control": (f"<w:sdt><w:sdtPr/><w:sdtContent><w:p>{run('In it.')}</w:p></w:sdtContent></w:sdt>", "In it."),
    "inline control": (
        f"<w:p>{run('Name: ')}<w:sdt><w:sdtContent>{run('Ada')}</w:sdtContent></w:sdt></w:p>",
        "Name: Ada",
    ),
    "empty control": (
        f"<w:p>{run('Name: ')}<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>{run('Click here')}"
        "</w:sdtContent></w:sdt></w:p>",
        "Name:",
    ),
    "simple field": (f'<w:p><w:fldSimple w:instr=" REF x ">{run("section 2")}</w:fldSimple></w:p>', "section 2"),
    "complex field": (
        '<w:p><w:r><w:fldChar w:fldCharType="begin"/></w:r><w:r><w:instrText> PAGE </w:instrText></w:r>'
        f'<w:r><w:fldChar w:fldCharType="separate"/></w:r>{run("7")}<w:r><w:fldChar w:fldCharType="end"/></w:r></w:p>',
        "7",
    ),
    "smart tag": (f'<w:p><w:smartTag w:uri="x" w:element="place">{run("Vienna")}</w:smartTag></w:p>', "Vienna"),
    "link": (f'<w:p>{run("See ")}<w:hyperlink r:id="rId1">{run("there")}</w:hyperlink></w:p>', "See there"),
    "hidden": (f"<w:p>{run('secret', '<w:rPr><w:vanish/></w:rPr>')}{run('shown')}</w:p>", "shown"),
    "characters": (
        "<w:p><w:r><w:t>e</w:t><w:softHyphen/><w:t>mail</w:t><w:tab/><w:t>co</w:t><w:noBreakHyphen/><w:t>op</w:t>"
        "<w:br/><w:t>x\u00ady\u200bz</w:t></w:r></w:p>",
        "email\tco-op\nxyz",
    ),
    "symbols": (
        '<w:p><w:r><w:sym w:font="Symbol" w:char="F061"/><w:sym w:font="Wingdings" w:char="F0FE"/><w:t xml:space='
        '"preserve"> yes </w:t><w:sym w:font="Symbol" w:char="00B3"/><w:sym w:font="Arial" w:char="20AC"/>'
        '<w:sym w:font="Webdings" w:char="F041"/></w:r></w:p>',
        "\u03b1\u2611 yes \u2265\u20ac\ufffd",
    ),
    "nested table": (
        f"<w:tbl><w:tr><w:tc><w:p>{run('a')}</w:p></w:tc><w:tc><w:tbl><w:tr><w:tc><w:p>{run('b')}</w:p></w:tc>"
        f"<w:tc><w:p>{run('c')}</w:p></w:tc></w:tr></w:tbl><w:p/></w:tc></w:tr></w:tbl>",
        "a | b | c",
    ),
    "row in a control": (
        f"<w:tbl><w:sdt><w:sdtContent><w:tr><w:tc><w:p>{run('a')}</w:p></w:tc></w:tr></w:sdtContent></w:sdt>"
        f'<w:tr><w:trPr><w:del w:id="1" w:author="x"/></w:trPr><w:tc><w:p>{run("b")}</w:p></w:tc></w:tr></w:tbl>',
        "a",
    ),
    "text box": (
        f"<w:p>{run('Before')}<w:r><mc:AlternateContent xmlns:mc='http://schemas.openxmlformats.org/markup-"
        f"compatibility/2006'><mc:Choice><w:drawing><w:txbxContent><w:p>{run('In a box')}</w:p></w:txbxContent>"
        f"</w:drawing></mc:Choice><mc:Fallback><w:pict><w:txbxContent><w:p>{run('In a box')}</w:p></w:txbxContent>"
        f"</w:pict></mc:Fallback></mc:AlternateContent></w:r>{run(' after')}</w:p>",
        "Before after\n\nIn a box",
    ),
    "ruby": (
        f"<w:p><w:r><w:ruby><w:rt>{run('yama')}</w:rt><w:rubyBase>{run('mountain')}</w:rubyBase></w:ruby></w:r></w:p>",
        "mountain",
    ),
    "outline level": (f'<w:p><w:pPr><w:outlineLvl w:val="1"/></w:pPr>{run("Own style")}</w:p>', "## Own style"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORD)
def test_what_stands_inside_of_other_elements_in_word_files(tmp_path, name):
    block, text = WORD[name]
    assert extract_text(word_file(tmp_path / "a.docx", block))[0] == text


def test_footnotes_of_word_files(tmp_path):
    note = f'<w:footnote w:id="5"><w:p><w:r><w:footnoteRef/></w:r>{run(" As agreed.")}</w:p></w:footnote>'
    separator = '<w:footnote w:id="-1" w:type="separator"><w:p><w:r><w:separator/></w:r></w:p></w:footnote>'
    paragraph = f'<w:p>{run("It pays")}<w:r><w:footnoteReference w:id="5"/></w:r>{run(" monthly.")}</w:p>'
    path = word_file(tmp_path / "a.docx", paragraph, f"<w:p>{run('The end.')}</w:p>", notes=separator + note)
    assert extract_text(path)[0] == "It pays[^1] monthly.\n\nThe end.\n\n[^1]: As agreed."


def test_docx_with_password(tmp_path):
    path = tmp_path / "a.docx"
    path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600))
    refused(path, "password")


@pytest.mark.parametrize(
    ("suffix", "package"),
    [(".pdf", "pypdfium2"), (".docx", "lxml"), (".epub", "lxml"), (".html", "lxml"), (".html", "webencodings")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, suffix, package):
    path = tmp_path / f"a{suffix}"
    path.write_text("text")
    monkeypatch.setitem(sys.modules, package, None)
    refused(path, package, "lengthen[documents]")


def test_they_are_documents(tmp_path, picture):
    write_pdf(tmp_path / "b.PDF", [["In a PDF"], picture])
    write_epub(tmp_path / "c.epub")
    (tmp_path / "a.html").write_text("<p>In a page")
    documents, warnings = read_documents([tmp_path])
    assert [document.text.split("\n")[0] for document in documents] == ["In a page", "[page 1]", "[section 1]"]
    assert documents[1].name == str(tmp_path / "b.PDF")
    assert len(warnings) == 1
