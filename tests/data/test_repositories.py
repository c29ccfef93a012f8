"""Repositories as documents: imported files first, nothing foreign, paths above the files."""

import re

import pytest

from lengthen.data.repositories import read_repositories, read_repository
from lengthen.errors import DataError


@pytest.fixture
def repository(tmp_path):
    """A function that writes files and returns the order in which they are read."""

    def order(files):
        for name, text in files.items():
            path = tmp_path / "repo" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        document, warnings = read_repository(tmp_path / "repo")
        return re.findall(r"^(?:#|//|<!--) (\S+\.\w+)(?: -->)?$", document.text, re.MULTILINE), warnings

    return order


def test_python_imports_come_first(repository):
    order, warnings = repository(
        {
            "src/app/__init__.py": "from app.main import run",
            "src/app/main.py": "from . import a\nfrom .deep.b import x\nimport os, app.util",
            "src/app/a.py": "from app.util import *",
            "src/app/util.py": "import json",
            "src/app/deep/__init__.py": "'''deep'''",
            "src/app/deep/b.py": "from ..a import y\nfrom .c import z",
            "src/app/deep/c.py": "from .b import circle",
            "README.md": "read me",
            "broken.py": "def (",
        }
    )
    place = {name: at for at, name in enumerate(order)}
    assert not warnings
    assert place["README.md"] == 0
    assert place["src/app/util.py"] < place["src/app/a.py"] < place["src/app/deep/b.py"] < place["src/app/main.py"]
    assert place["src/app/main.py"] < place["src/app/__init__.py"]
    assert place["src/app/deep/c.py"] < place["src/app/deep/b.py"]  # a circle, cut where it closes
    assert len(order) == len(set(order)) == 9


@pytest.mark.parametrize(
    ("files", "first", "then"),
    [
        ({"a.js": "import x from './lib/z'", "lib/z.js": "1"}, "lib/z.js", "a.js"),
        ({"a.ts": "const x = require('./lib')", "lib/index.ts": "1"}, "lib/index.ts", "a.ts"),
        ({"a.c": '#include "z.h"\n#include <stdio.h>', "include/z.h": "int x;"}, "include/z.h", "a.c"),
        ({"src/a/A.java": "import org.z.Z;", "src/org/z/Z.java": "class Z {}"}, "src/org/z/Z.java", "src/a/A.java"),
        ({"src/lib.rs": "mod z;\nuse crate::y::f;", "src/z.rs": "1", "src/y/mod.rs": "1"}, "src/z.rs", "src/lib.rs"),
        ({"a.go": 'import (\n\t"x.org/me/pkg/z"\n)', "pkg/z/z.go": "package z"}, "pkg/z/z.go", "a.go"),
    ],
)
def test_imports_of_other_languages(repository, files, first, then):
    order, _ = repository(files)
    assert order.index(first) < order.index(then)


def test_a_long_chain_of_imports(repository):
    count = 3000
    order, _ = repository({f"m{n}.py": f"import m{n + 1}\n" for n in range(count)})
    assert order == [f"m{n}.py" for n in reversed(range(count))]


def test_what_is_left_out(repository):
    order, warnings = repository(
        {
            "a.py": "x = 1",
            "latin.py": "# caf\xe9".encode("latin-1"),
            "node_modules/b.js": "1",
            ".git/c.py": "1",
            "d.min.js": "1",
            "picture.png": b"\x89PNG",
            "empty.py": "",
            "large.py": "x = 1\n" * 200_000,
        }
    )
    assert order == ["a.py"]
    assert len(warnings) == 1
    assert "not UTF-8, left out: 1, the first latin.py" in warnings[0]


def test_folders_of_repositories(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text(f"name = {name!r}")
    (tmp_path / ".hidden").mkdir()
    documents, _ = read_repositories([str(tmp_path / "*"), str(tmp_path / "one")])
    assert [document.text for document in documents] == [
        "# a.py\nname = 'one'\n", "# a.py\nname = 'two'\n", "# a.py\nname = 'one'\n",
    ]  # fmt: skip
    for path, match in (("none", "is no folder"), ("one/*", "has no folders"), (".hidden", "has no code")):
        with pytest.raises(DataError, match=match):
            read_repositories([str(tmp_path / path)])
