"""Collects documented public objects of the standard library.

Modules written in Python are parsed, not imported: that is faster, has no side effects, and works without a display.
Only what is written in C is imported, from a short list of modules that do nothing on import.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from camel_ray.errors import DataError

Kind = Literal["module", "class", "function", "method", "property"]

# Left out: games and easter eggs (antigravity, this, turtle), applications (idlelib, pydoc), tables (encodings,
# lib2to3, stringprep), tkinter (many systems ship Python without it), and what recent versions removed, so that all
# versions give much the same corpus.
PYTHON_MODULES = (
    "abc", "argparse", "ast", "asyncio", "base64", "bdb", "bisect", "bz2", "calendar", "cmd", "code", "codecs",
    "codeop", "collections", "_collections_abc", "colorsys", "compileall", "concurrent", "configparser",
    "contextlib", "copy", "copyreg", "csv", "ctypes", "curses", "dataclasses", "datetime", "dbm", "decimal",
    "difflib", "dis", "doctest", "email", "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib",
    "functools", "getopt", "getpass", "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac", "html",
    "http", "imaplib", "importlib", "inspect", "io", "ipaddress", "json", "keyword", "linecache", "locale",
    "logging", "lzma", "mailbox", "mimetypes", "modulefinder", "multiprocessing", "netrc", "numbers",
    "operator", "optparse", "os", "pathlib", "pdb", "pickle", "pickletools", "pkgutil", "platform", "plistlib",
    "poplib", "posixpath", "pprint", "profile", "pstats", "pty", "py_compile", "pyclbr", "queue", "quopri",
    "random", "re", "reprlib", "rlcompleter", "runpy", "sched", "secrets", "selectors", "shelve", "shlex",
    "shutil", "signal", "site", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "stat", "statistics",
    "string", "struct", "subprocess", "symtable", "sysconfig", "tabnanny", "tarfile", "tempfile", "textwrap",
    "threading", "timeit", "token", "tokenize", "tomllib", "trace", "traceback", "tracemalloc", "tty", "types",
    "typing", "unittest", "urllib", "uuid", "venv", "warnings", "wave", "weakref", "webbrowser", "wsgiref",
    "xml", "xmlrpc", "zipapp", "zipfile", "zipimport", "zoneinfo",
)  # fmt: skip
"""Top-level modules and packages that are parsed, with their public submodules."""

C_MODULES = (
    "array", "binascii", "builtins", "cmath", "collections", "csv", "datetime", "decimal", "fcntl", "functools",
    "gc", "io", "itertools", "marshal", "math", "mmap", "operator", "os", "random", "re", "resource", "select",
    "socket", "struct", "sys", "threading", "time", "unicodedata", "weakref", "zlib",
)  # fmt: skip
"""Modules that are imported for what they implement in C."""

# Modules whose contents are known under another name (`pathlib._local` is Python 3.13's).
_ALIASES = {"posixpath": "os.path", "_collections_abc": "collections.abc", "pathlib._local": "pathlib"}
_SKIPPED = re.compile(r"(^|\.)(tests?|testing|idle_test|__\w+__|main|demo|example)(\.|$)")


@dataclass(frozen=True)
class Documented:
    """A public object with its documentation."""

    name: str
    """Qualified name, for example `os.path.join` or `pathlib.Path.mkdir`."""
    kind: Kind
    module: str
    arguments: str | None
    """Parameters as written between the parentheses, without `self`; None if unknown."""
    doc: str


@lru_cache(maxsize=1)
def documented_objects() -> tuple[Documented, ...]:
    """All documented public objects, each name once, in a fixed order.

    Raises DataError if Python has no library source.
    """
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Documented] = {}
    for name in PYTHON_MODULES:
        for module, path in _module_files(library, name):
            for entry in _parsed(_ALIASES.get(module, module), path):
                found.setdefault(entry.name, entry)
    if not found:
        raise DataError(
            f"builtin://python-docs needs the standard library's source, which is not in {library}; use another source"
        )
    for name in C_MODULES:
        for entry in _imported(name):
            found.setdefault(entry.name, entry)
    return tuple(found.values())


def _module_files(library: Path, name: str) -> Iterator[tuple[str, Path]]:
    """A module and, for a package, its public submodules, with their source files."""
    single, package = library / f"{name}.py", library / name
    if single.is_file():
        yield name, single
    elif package.is_dir():
        for path in sorted(package.rglob("*.py")):
            parts = [name, *path.relative_to(package).with_suffix("").parts]
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if module in _ALIASES or not _is_private(module):
                yield module, path


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split(".")) or bool(_SKIPPED.search(name))


def _parsed(module: str, path: Path) -> Iterator[Documented]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        tree = ast.parse(path.read_bytes())
    doc = ast.get_docstring(tree)
    if doc:
        yield Documented(module, "module", module, None, doc)
    yield from _members(tree.body, module, module, in_class=False)


def _members(body: list[ast.stmt], prefix: str, module: str, *, in_class: bool) -> Iterator[Documented]:
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):  # definitions that depend on the platform
            yield from _members(node.body, prefix, module, in_class=in_class)
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        name = f"{prefix}.{node.name}"
        if _is_private(node.name):
            continue
        doc = ast.get_docstring(node)
        if isinstance(node, ast.ClassDef):
            if doc:
                yield Documented(name, "class", module, None, doc)
            yield from _members(node.body, name, module, in_class=True)
        elif doc and any(ast.unparse(entry).endswith("property") for entry in node.decorator_list):
            yield Documented(name, "property", module, None, doc)
        elif doc:
            yield Documented(name, "method" if in_class else "function", module, _arguments(node, in_class), doc)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef, in_class: bool) -> str:
    static = any(isinstance(entry, ast.Name) and entry.id == "staticmethod" for entry in node.decorator_list)
    written = ast.unparse(node.args)
    first = node.args.posonlyargs + node.args.args
    if in_class and not static and first:
        written = written.removeprefix(ast.unparse(first[0])).removeprefix(", ").removeprefix("/").removeprefix(", ")
    return written


def _imported(name: str) -> Iterator[Documented]:
    """Functions and classes of a module that are written in C, under this module's name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
    except ImportError:  # not on this platform
        return
    prefix = "" if name == "builtins" else f"{name}."
    if not hasattr(module, "__file__") and module.__doc__ and name != "builtins":
        yield Documented(name, "module", name, None, inspect.cleandoc(module.__doc__))
    for attribute in sorted(vars(module)):
        value = vars(module)[attribute]
        is_alias = getattr(value, "__name__", None) != attribute
        if is_alias or _is_private(attribute):
            continue
        if inspect.isbuiltin(value):
            yield from _c_object(f"{prefix}{attribute}", "function", name, value)
        elif inspect.isclass(value) and value.__module__.lstrip("_") == name and _is_c_class(value):
            yield from _c_object(f"{prefix}{attribute}", "class", name, value)
            for member in sorted(vars(value)):
                inner = vars(value)[member]
                if not _is_private(member) and (inspect.ismethoddescriptor(inner) or inspect.isbuiltin(inner)):
                    yield from _c_object(f"{prefix}{attribute}.{member}", "method", name, inner)


def _is_c_class(value: type) -> bool:
    """Whether a class is written in C: only those are static types (no Py_TPFLAGS_HEAPTYPE) or immutable ones."""
    heap_type, immutable = 1 << 9, 1 << 8
    return not value.__flags__ & heap_type or bool(value.__flags__ & immutable)


def _c_object(name: str, kind: Kind, module: str, value: object) -> Iterator[Documented]:
    doc = getattr(value, "__doc__", None)
    if not isinstance(doc, str) or not doc.strip():
        return
    try:
        signature = str(inspect.signature(value))  # type: ignore[arg-type]
        arguments = re.sub(r"^\(\$?(self|type)(, )?(/, |/)?", "(", signature)[1:].rpartition(")")[0]
    except (ValueError, TypeError):
        yield Documented(name, kind, module, None, inspect.cleandoc(doc))
    else:
        yield Documented(name, kind, module, arguments, inspect.cleandoc(doc))
