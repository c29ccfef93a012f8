"""Code repositories as long documents: each file below a comment with its path, and behind those that it imports."""

import ast
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lengthen.data.documents import Document
from lengthen.errors import DataError

__all__ = ["read_repositories", "read_repository"]

_HASH = (".py", ".pyi", ".sh", ".rb", ".r", ".jl", ".toml", ".yaml", ".yml", ".cfg", ".cmake", ".mk", ".nix")
_SLASHES = (
    ".js", ".jsx", ".mjs", ".ts", ".tsx", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".java", ".kt", ".scala",
    ".go", ".rs", ".swift", ".cs", ".php", ".proto", ".zig", ".dart", ".v",
)  # fmt: skip
_COMMENTS = {
    **dict.fromkeys(_HASH, "# {}"),
    **dict.fromkeys(_SLASHES, "// {}"),
    **dict.fromkeys((".sql", ".lua", ".hs", ".elm"), "-- {}"),
    **dict.fromkeys((".md", ".html", ".vue", ".svelte"), "<!-- {} -->"),
    **dict.fromkeys((".tex", ".erl", ".m"), "% {}"),
    ".rst": ".. {}",
}
# Not written here, or not written by hand.
_FOREIGN = {"node_modules", "vendor", "third_party", "dist", "build", "target", "venv", "env", "__pycache__"}
_MOST_BYTES = 1_000_000


def read_repositories(paths: list[str]) -> tuple[list[Document], list[str]]:
    """Read each named folder, and for FOLDER/* each folder in it, as one document.

    Returns:
        The documents, and warnings of one line.

    Raises:
        DataError: a folder is missing, or no code is in it.
    """
    folders: list[Path] = []
    for path in map(Path, paths):
        if path.name == "*":
            inside = sorted(each for each in path.parent.glob("*") if each.is_dir() and not each.name.startswith("."))
            if not inside:
                raise DataError(f"{path.parent} has no folders; name a repository, or a folder of some as {path}")
            folders += inside
        else:
            folders.append(path)
    read = [read_repository(folder) for folder in folders]
    return [document for document, _ in read], [line for _, lines in read for line in lines]


def read_repository(folder: Path) -> tuple[Document, list[str]]:
    """Read the code and documentation of one repository; hidden, foreign, large and binary files are left out.

    Args:
        folder: its root.

    Returns:
        The document, its files in an order in which each comes behind those of the repository that it imports (as far
        as there are no circles), else by path with README files first; and a warning where files are not UTF-8.

    Raises:
        DataError: it is no folder, or has no such file.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name the root of a repository")
    files: dict[str, str] = {}
    undecodable = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parts = set(name.split("/"))
        if path.suffix.lower() not in _COMMENTS or parts & _FOREIGN or any(part.startswith(".") for part in parts):
            continue
        if not path.is_file() or path.name.endswith((".min.js", ".min.css")) or path.stat().st_size > _MOST_BYTES:
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except (UnicodeDecodeError, OSError):
            undecodable.append(name)
            continue
        if text.strip():
            files[name] = text
    if not files:
        raise DataError(f"{folder} has no code ({', '.join(_COMMENTS)}); name the root of a repository")
    warnings = []
    if undecodable:
        warnings.append(f"{folder}: not UTF-8, left out: {len(undecodable)}, the first {undecodable[0]}")
    parts_ = [f"{_COMMENTS[Path(name).suffix.lower()].format(name)}\n{files[name].strip()}\n" for name in _order(files)]
    return Document(str(folder), "\n".join(parts_)), warnings


def _order(files: Mapping[str, str]) -> list[str]:
    """Depth first, so that what a file imports is done before it; a circle is cut where it closes."""
    lookup = _Lookup(files)
    roots = sorted(files, key=lambda name: (not posixpath.basename(name).lower().startswith("readme"), name))
    done: dict[str, None] = {}
    begun: set[str] = set()
    for root in roots:
        stack: list[tuple[str, Iterator[str]]] = []
        if root not in begun:
            begun.add(root)
            stack.append((root, lookup.imports_of(root)))
        while stack:
            name, imports = stack[-1]
            following = next((imported for imported in imports if imported not in begun), None)
            if following is None:
                done[name] = None
                stack.pop()
            else:
                begun.add(following)
                stack.append((following, lookup.imports_of(following)))
    return list(done)


class _Lookup:
    """Which files of a repository a file names."""

    def __init__(self, files: Mapping[str, str]):
        self._files = files
        # Every end of a path at a slash, and the shortest path that ends so.
        self._by_end: dict[str, str] = {}
        for name in sorted(files, key=lambda name: (name.count("/"), name)):
            parts = name.split("/")
            for start in range(len(parts)):
                self._by_end.setdefault("/".join(parts[start:]), name)

    def imports_of(self, name: str) -> Iterator[str]:
        """The files that one imports, in the order in which it names them."""
        find = _IMPORTS.get(Path(name).suffix.lower())
        return iter(()) if find is None else find(self, name, self._files[name])

    def _relative(self, name: str, target: str, ends: tuple[str, ...]) -> Iterator[str]:
        """A path as seen from a file, with the first end that makes it a file's."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        yield from (path + end for end in ends if path + end in self._files)

    def _anywhere(self, target: str, ends: tuple[str, ...]) -> Iterator[str]:
        yield from (self._by_end[target + end] for end in ends if target + end in self._by_end)

    def python(self, name: str, text: str) -> Iterator[str]:
        """`import a.b`, `from a import b`, `from . import b`."""
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._anywhere(alias.name.replace(".", "/"), _MODULE)
            elif isinstance(node, ast.ImportFrom):
                module = (node.module or "").replace(".", "/")
                for alias in node.names:
                    for target in (posixpath.join(module, alias.name), module):
                        if node.level:
                            yield from self._relative(name, "../" * (node.level - 1) + target, _MODULE)
                        elif target:
                            yield from self._anywhere(target, _MODULE)

    def javascript(self, name: str, text: str) -> Iterator[str]:
        """Relative imports and requires."""
        for target in re.findall(r"""(?:from|import|require\()\s*['"](\.[^'"\n]+)['"]""", text):
            yield from self._relative(name, target, ("", *_SCRIPTS, *(f"/index{end}" for end in _SCRIPTS)))

    def c(self, name: str, text: str) -> Iterator[str]:
        """Quoted includes."""
        for target in re.findall(r'^\s*#\s*include\s*"([^"\n]+)"', text, re.MULTILINE):
            yield from (*self._relative(name, target, ("",)), *self._anywhere(posixpath.normpath(target), ("",)))

    def java(self, _name: str, text: str) -> Iterator[str]:
        """Imports of classes."""
        for target in re.findall(r"^\s*import\s+(?:static\s+)?([\w.]+)", text, re.MULTILINE):
            yield from self._anywhere(target.replace(".", "/"), (".java", ".kt", ".scala"))

    def rust(self, name: str, text: str) -> Iterator[str]:
        """Modules, and uses of the own crate."""
        for module in re.findall(r"^\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;", text, re.MULTILINE):
            yield from self._relative(name, module, (".rs", "/mod.rs"))
            yield from self._relative(name, posixpath.join(Path(name).stem, module), (".rs", "/mod.rs"))
        for path in re.findall(r"\bcrate::([\w:]+)", text):
            parts = path.split("::")
            for stop in range(len(parts), 0, -1):
                yield from self._anywhere("src/" + "/".join(parts[:stop]), (".rs", "/mod.rs"))

    def go(self, name: str, text: str) -> Iterator[str]:
        """Packages, which are folders."""
        own = posixpath.dirname(name)
        for target in re.findall(r'^\s*(?:import\s+)?(?:[\w.]+\s+)?"([\w./-]+/[\w./-]+)"', text, re.MULTILINE):
            for other in self._files:
                folder = posixpath.dirname(other)
                if folder and folder != own and other.endswith(".go") and f"/{target}".endswith(f"/{folder}"):
                    yield other


_MODULE = (".py", ".pyi", "/__init__.py")
_SCRIPTS = (".ts", ".tsx", ".js", ".jsx", ".mjs")
_IMPORTS: dict[str, Callable[[_Lookup, str, str], Iterator[str]]] = {
    **dict.fromkeys((".py", ".pyi"), _Lookup.python),
    **dict.fromkeys((*_SCRIPTS, ".vue", ".svelte"), _Lookup.javascript),
    **dict.fromkeys((".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh"), _Lookup.c),
    **dict.fromkeys((".java", ".kt", ".scala"), _Lookup.java),
    ".rs": _Lookup.rust,
    ".go": _Lookup.go,
}
