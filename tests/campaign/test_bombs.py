"""Files made to fill the memory, to take forever, or to show what is not in them."""

import bz2
import gzip
import io
import json
import lzma
import time
import zipfile
import zlib

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from families import write_epub

from lengthen.data.extract import extract_text
from lengthen.data.text_files import Archive
from lengthen.errors import DataError

MEMORY = 2**30  # bytes beyond what the imports hold
PDF_MEMORY = 5 * 2**29  # pdfium bounds what a stream becomes by 1 GiB
SECONDS = 30
ZEROS = bytes(2**26)


def compressed(kind):
    """6.4 GB of zeros."""
    pack = {
        "gz": gzip.compress, "bz2": bz2.compress, "zst": zstandard.compress,
        "xz": lambda content: lzma.compress(content, preset=1),
    }[kind]  # fmt: skip
    return pack(ZEROS) * 100


def zipped(path, change):
    """An EPUB with other members."""
    write_epub(path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, content)


LAUGHS = b"<!DOCTYPE a [<!ENTITY a 'ha'>" + b"".join(
    b"<!ENTITY %c '%s'>" % (c + 1, b"&%c;" % c * 20) for c in range(97, 110)
) + b"]><html><body><p>&n;</p></body></html>"  # fmt: skip
OUTSIDE = b"<!DOCTYPE a [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><html><body><p>here &a; there</p></body></html>"
REMOTE = b"<!DOCTYPE a SYSTEM 'http://127.0.0.1:1/x.dtd'><html><body><p>here</p></body></html>"


def a_large_page(members):
    members["OEBPS/a.xhtml"] = b"<p>" + ZEROS * 4


def the_same_page_often(members):
    members["OEBPS/a.xhtml"] = b"<p>" + ZEROS[: 2**25] + b"</p>"
    members["OEBPS/book.opf"] = members["OEBPS/book.opf"].replace(
        b"<itemref idref='a'/>", b"<itemref idref='a'/>" * 10_000
    )


def pdf_of(*objects):
    """A PDF of these objects, of which the first is the catalog."""
    content, places = b"%PDF-1.7\n", []
    for number, each in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
    return content + end % (size, table, size, len(content))


def pdf_with(stream, filters=b"/FlateDecode"):
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R>>"
    head = b"<</Length %d/Filter[%s]>>stream\n" % (len(stream), filters)
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    return pdf_of(b"<</Type/Catalog/Pages 2 0 R>>", pages, page, head + stream + b"\nendstream")


def parquet(path):
    """Ten million times the same text."""
    column = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 10**7, pyarrow.int32()), pyarrow.array(["abc def ghi"])
    )
    with pyarrow.parquet.ParquetWriter(path, pyarrow.schema([("text", column.type)])) as writer:
        writer.write_table(pyarrow.table({"text": column}))


# What is written into the file of this name, and a part of the line if it is refused; None where it may be read.
FILES = {
    **{f"zeros.txt.{kind}": (lambda path, kind=kind: path.write_bytes(compressed(kind)), "100 times")
       for kind in ("gz", "bz2", "xz", "zst")},
    "page.epub": (lambda path: zipped(path, a_large_page), "100 times"),
    "pages.epub": (lambda path: zipped(path, the_same_page_often), "100 times"),
    "laughs.epub": (lambda path: zipped(path, lambda members: members.update({"OEBPS/a.xhtml": LAUGHS})), None),
    "outside.epub": (lambda path: zipped(path, lambda members: members.update({"OEBPS/a.xhtml": OUTSIDE})), None),
    "package.epub": (lambda path: zipped(path, lambda members: members.update({"OEBPS/book.opf": LAUGHS})), "no EPUB"),
    "remote.epub": (lambda path: zipped(path, lambda members: members.update({"OEBPS/a.xhtml": REMOTE})), None),
    "laughs.html": (lambda path: path.write_bytes(LAUGHS), None),
    "outside.html": (lambda path: path.write_bytes(OUTSIDE), None),
    "deep.html": (lambda path: path.write_bytes(b"<div>" * 300_000 + b"text"), None),
    "deeper.html": (lambda path: path.write_bytes(b"<div>text" * 30_000), None),
    "formatting.html": (lambda path: path.write_bytes(b"<b><i><u>" * 3000 + b"<p>text" * 3000), None),
    "deep.json": (lambda path: path.write_bytes(b"[" * 10**6), "deep.json"),
    "deep.jsonl": (lambda path: path.write_bytes(b'{"text":' * 10**6 + b"\n"), "deep.jsonl"),
    "number.json": (lambda path: path.write_bytes(b'{"text": ' + b"1" * 10**6 + b"}"), "number.json"),
    "deep.ipynb": (lambda path: path.write_bytes(b'{"cells":' + b"[" * 10**6), "deep.ipynb"),
    "line.txt": (lambda path: path.write_bytes(b"x" * 10**6), None),
    "quotes.csv": (lambda path: path.write_bytes(b"text\n" + b'"' * (10**6 + 1)), "quotes.csv"),
    "same.parquet": (parquet, "100 times"),
    "stream.pdf": (lambda path: path.write_bytes(pdf_with(zlib.compress(b" " * 2**28))), "no text"),
    "twice.pdf": (lambda path: path.write_bytes(pdf_with(zlib.compress(zlib.compress(bytes(2**28))),
                                                         b"/FlateDecode/FlateDecode")), "no text"),
    "circle.pdf": (lambda path: path.write_bytes(pdf_of(b"<</Type/Catalog/Pages 2 0 R>>",
                                                        b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 1000000000>>")), "pdf"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_read_or_refused_in_bounds(forks, base, tmp_path, name):
    make, refusal = FILES[name]
    make(tmp_path / name)
    arguments = ("data", "tokenize", tmp_path / name, "--model", base, "--out", tmp_path / "out.bin", "--quiet")
    ended = forks.run(*arguments, timeout=SECONDS, memory=2**34, LENGTHEN_CACHE=str(tmp_path / "cache"))
    assert not ended.late
    assert ended.memory - forks.held < (PDF_MEMORY if name.endswith(".pdf") else MEMORY)
    if refusal is not None:
        assert ended.is_refusal, ended.err
        assert refusal in ended.err
    else:
        assert ended.code == 0 or ended.is_refusal, ended.err
    if (tmp_path / "out.bin").exists():
        text = bytes((tmp_path / "out.bin").read_bytes()[::2])
        assert b"root:" not in text


def test_what_lies_outside_of_a_file_is_not_in_its_text(tmp_path):
    for name in ("outside.epub", "outside.html", "laughs.html", "laughs.epub"):
        FILES[name][0](tmp_path / name)
        try:
            text, _ = extract_text(tmp_path / name)
        except DataError:
            continue
        assert "root:" not in text
        assert len(text) < 10_000


@pytest.mark.slow
def test_a_line_of_a_billion_characters(forks, base, tmp_path):
    path = tmp_path / "line.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(1000):
            file.write(b"abc def gh" * 100_000)
        file.write(b'", "x": 1')  # and no end
    began = time.monotonic()
    ended = forks.run("data", "tokenize", path, "--model", base, "--out", tmp_path / "out.bin", "--quiet", timeout=300)
    said = {"characters": 10**9, "seconds": round(time.monotonic() - began, 1), "code": ended.code,
            "mib": (ended.memory - forks.held) >> 20}  # fmt: skip
    print(json.dumps(said))
    assert ended.is_refusal, ended.err
    assert ended.memory - forks.held < 5 * 10**9


def test_archives_count_what_is_read_of_them():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(2**25))
    opened = Archive(buffer.getvalue(), "a.zip")
    assert len(opened.read("a")) == 2**25
    assert len(opened.read("a")) == 2**25
    with pytest.raises(DataError, match=r"a\.zip becomes more than 100 times as large"):
        opened.read("a")
