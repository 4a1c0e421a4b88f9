"""YAML text to plain values that still know their lines.

PyYAML's composer does the parsing; the values are built here, because the loader has to say `file:line: field` for
mistakes that only the schema can see, and because a safe constructor silently takes the last of two equal keys. Like
kubectl, dates and base-60 numbers stay text; `1e-5` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from camel_ray.errors import SpecError

MAX_BYTES = 256 * 1024
"""Largest file that is read. Kubernetes takes about 1.5 MB per object, and a pipeline of 50 stages has about 30 kB."""
MAX_NODES = 50_000
"""Most values a file may hold once its aliases are expanded, so that ten lines cannot become a billion values."""
MAX_DEPTH = 50
"""Deepest nesting of mappings and lists."""

FieldPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One mistake in a file: the line it is on, the field (a path of keys and list indices) and the sentence."""

    line: int
    path: FieldPath
    message: str

    @property
    def field(self) -> str:
        """The path in the form `spec.stages[2].sft.data`."""
        return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.path).lstrip(".")

    def sentence(self, name: str) -> str:
        """`name:line: field: message`; without a field if the file as a whole is meant."""
        place = f"{name}:{self.line}: "
        return f"{place}{self.field}: {self.message}" if self.path else f"{place}{self.message}"


@dataclass(frozen=True)
class Source:
    """The value of a YAML document, the line of each of its fields, and the mistakes found while building it."""

    value: Any
    lines: dict[FieldPath, int]
    problems: list[Problem]

    def line(self, path: FieldPath) -> int:
        """Line of a field, or of the nearest field around it that stands in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers of YAML 1.2 and without dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute, rebuilt so that the parent's stays as it is
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_source(data: bytes, name: str) -> Source:
    """Parse the bytes of one YAML document. Raises SpecError if they are none; other mistakes are in `problems`."""
    if len(data) > MAX_BYTES:
        raise SpecError(
            f"{name}: has {len(data):,} bytes, more than the {MAX_BYTES:,} a pipeline may have; is it the right file?"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError(
            f"{name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8 text; save the file with UTF-8 encoding"
        ) from error
    nodes = _compose(text, name)
    builder = _Builder()
    value = builder.build(nodes[0], ())
    return Source(value, builder.lines, builder.problems)


def _compose(text: str, name: str) -> list[yaml.Node]:
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        nodes: list[yaml.Node] = []
        while loader.check_node():
            node = loader.get_node()
            if node is not None and not (isinstance(node, yaml.ScalarNode) and node.value == "" and node.style is None):
                nodes.append(node)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise SpecError(
            f"{name}:{line}: the control character U+{error.character:04X} is not allowed in YAML; delete it"
        ) from error
    except yaml.MarkedYAMLError as error:
        line, sentence = _explain(error, text)
        raise SpecError(f"{name}:{line}: {sentence}") from error
    except RecursionError as error:
        raise SpecError(f"{name}:1: is nested deeper than {MAX_DEPTH} levels; is it the right file?") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not nodes:
        raise SpecError(f"{name}:1: the file is empty; `camel-ray init` writes one to start from")
    if len(nodes) > 1:
        raise SpecError(
            f"{name}:{nodes[1].start_mark.line + 1}: a second YAML document starts here; a file holds one pipeline, "
            "so move the others to files of their own"
        )
    return nodes


def _explain(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """Line and plain words of a syntax error."""
    mark = error.problem_mark or error.context_mark
    number = mark.line if mark is not None else 0
    lines = text.splitlines()
    content = lines[number] if number < len(lines) else ""
    problem, context = error.problem or "", error.context or ""
    indent = content[: len(content) - len(content.lstrip())]
    if "\t" in indent or (mark is not None and content[mark.column : mark.column + 1] == "\t"):
        return number + 1, "is indented with a tab; YAML takes only spaces, so replace it by spaces"
    if "quoted scalar" in context and ("end of stream" in problem or "document separator" in problem):
        opened = error.context_mark.line + 1 if error.context_mark is not None else number + 1
        return opened, "a quotation mark opens here and is never closed; add the closing one"
    if "mapping values are not allowed" in problem:
        return number + 1, "a `:` cannot stand here; put the value in quotes, or check the indentation of this line"
    if "could not find expected ':'" in problem:
        start = error.context_mark.line + 1 if error.context_mark is not None else number + 1
        return (
            start,
            "is neither `key: value` nor `- item`; add the `:` with a space after it, or check the indentation",
        )
    if "undefined alias" in problem:
        return (
            number + 1,
            f"{problem.replace('found undefined alias', 'no anchor for the alias')}; write `&name` before the value",
        )
    if "<block end>" in problem:
        return (
            number + 1,
            "the indentation does not fit the lines above; items of one mapping or list start in the same column",
        )
    if "flow" in context:
        opened = error.context_mark.line + 1 if error.context_mark is not None else number + 1
        return opened, "a bracket opens here and is not closed properly; check its commas and add the closing one"
    if "cannot start any token" in problem:
        return number + 1, f"a value cannot start with {content[mark.column]!r}; put it in quotes" if mark else problem
    return number + 1, f"is not valid YAML ({problem})"


@dataclass
class _Builder:
    """Builds plain values from nodes; holds what was found on the way."""

    lines: dict[FieldPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _count: int = 0
    _open: list[int] = field(default_factory=list)
    _scalars: yaml.constructor.SafeConstructor = field(default_factory=yaml.constructor.SafeConstructor)

    def build(self, node: yaml.Node, path: FieldPath) -> Any:
        """The value of a node at `path`; None after a problem."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._count += 1
        if self._count == MAX_NODES + 1:
            self._problem(
                path, f"aliases make the file larger than {MAX_NODES:,} values; write them out where they are needed"
            )
        if self._count > MAX_NODES:
            return None
        if id(node) in self._open:
            return self._problem(path, "the alias stands inside its own anchor, so the value would never end")
        if len(self._open) >= MAX_DEPTH:
            return self._problem(path, f"is nested deeper than {MAX_DEPTH} levels")
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        value: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                for inherited in self._merged(value_node, path, line):
                    for key, item in self.build(inherited, path).items():
                        value.setdefault(key, item)
                continue
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key_node.tag != "tag:yaml.org,2002:str":
                shown = "a list or mapping" if key is None else f"'{key}'" if key else "an empty key"
                self._problem(path, f"{shown} is not text and cannot be a key; put it in quotes", line)
                continue
            if key in first:
                self._problem((*path, key), f"is set twice, first on line {first[key]}; delete one of them", line)
                continue
            first[key] = line
            self.lines[(*path, key)] = line
            value[key] = self.build(value_node, (*path, key))
        return value

    def _merged(self, node: yaml.Node, path: FieldPath, line: int) -> Iterator[yaml.MappingNode]:
        for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(item, yaml.MappingNode) and id(item) not in self._open:
                yield item
            else:
                self._problem(path, "`<<` takes the alias of a mapping, or a list of them", line)

    def _scalar(self, node: yaml.Node, path: FieldPath) -> Any:
        prefix = "tag:yaml.org,2002:"
        if node.tag not in {prefix + tag for tag in ("null", "bool", "int", "float", "str")}:
            tag = node.tag.replace(prefix, "!!")
            return self._problem(
                path, f"the tag {tag} is not supported; write plain text, numbers, true, false or null"
            )
        try:
            if node.tag == prefix + "int":
                return int(str(node.value).replace("_", ""), 0)
            return self._scalars.construct_object(node)
        except (ValueError, KeyError, yaml.MarkedYAMLError):
            return self._problem(path, f"'{node.value}' is not a valid {node.tag.replace(prefix, '!!')}")

    def _problem(self, path: FieldPath, message: str, line: int | None = None) -> None:
        self.problems.append(Problem(line if line is not None else self.lines.get(path, 1), path, message))
