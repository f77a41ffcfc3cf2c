"""Read YAML that people write: vocabularies, catalogs, presets, values of `--set`. Every fault names file, line and mend.

Words stay words: `no`, `yes`, `on`, dates and `12:30` are text (YAML 1.2); only `true`, `false`, `null` and decimal,
octal (`0o17`) or hexadecimal numbers are anything else. Tags other than `!!str` are refused.
"""

from __future__ import annotations

import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ConfigDict

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel, ValidationError

    from ovrs.errors import OvrsError

    Place = tuple[Any, ...]

MAX_BYTES = 16 << 20
"""Larger files are refused."""
MAX_DEPTH = 32
"""Deeper nesting is refused."""
MAX_REPEATED = 20_000
"""Aliases (`*name`) that repeat more values than this, all together, are refused."""

_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_SHOWN_FAULTS = 10
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """Safe loader with the core schema of YAML 1.2; a key that stands twice in one mapping is an error."""

    yaml_implicit_resolvers: dict[str, object] = {}  # noqa: RUF012  (PyYAML copies it for each class)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        first: dict[Any, Any] = {}
        for key, _ in node.value:
            word = key.value if isinstance(key, yaml.ScalarNode) else None
            if key.tag not in (_STRING, _MERGE) and word is not None:
                told = f"the key {word!r} is no word; write it in quotes"
                raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
            if word in first and word != "<<":
                told = f"the key {word!r} stands here a second time (first in line {first[word].start_mark.line + 1})"
                raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
            first[word] = key
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


def _int(text: str) -> int:
    return int(text, 16 if text.startswith("0x") else 8) if text[:2] in ("0x", "0o") else int(text)


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_CORE: tuple[tuple[str, str, str, Callable[[str], Any]], ...] = (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    ("null", "~|null|Null|NULL|", "~nN\0", lambda text: None if text.lower() in ("", "~", "null") else text),
    ("int", "[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}", "-+0123456789", _int),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]{1,400}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,9})?|[-+]?\.inf|\.nan",
        "-+.0123456789",
        _float,
    ),
    ("merge", "<<", "<", str),  # as a key it joins another mapping; elsewhere it is text
)


def _constructor(make: Callable[[str], Any]) -> Callable[[Any, Any], Any]:
    def construct(_: Any, node: Any) -> Any:
        return make(node.value)

    return construct


for _name, _pattern, _first, _make in _CORE:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first))
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _constructor(_make))
_Loader.yaml_implicit_resolvers[""] = _Loader.yaml_implicit_resolvers.pop("\0")  # an empty value is null


@dataclass(frozen=True)
class Document:
    """The content of one YAML text and where each part of it stands."""

    origin: str
    """File name, or what else the text came from."""
    data: Any
    lines: dict[Place, int]
    """Line (from 1) of every key and list item."""
    words: dict[Place, str]
    """Every plain value as it is written."""

    def line(self, place: Place) -> int:
        """Line of a place, or of the nearest part around it that has one."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def told(self, faults: list[tuple[Place, str]]) -> str:
        """Faults as text, one line each: `FILE:LINE: what`; after ten lines only the number of the others."""
        shown = [f"{self.origin}:{self.line(place)}: {text}" for place, text in faults[:_SHOWN_FAULTS]]
        more = len(faults) - len(shown)
        return "\n".join([*shown, *([f"… and {more} more faults in {self.origin}"] if more else [])])

    def faults(self, error: ValidationError) -> list[tuple[Place, str]]:
        """Return what pydantic found, each with its place, what is written there and how to mend it."""
        entries = [(tuple(entry["loc"]), entry) for entry in error.errors(include_url=False)]
        below = {place[:i] for place, _ in entries for i in range(len(place))}
        found = []
        for place, entry in entries:
            if entry["type"] == "too_short" and place in below:  # its items are faulty, not missing
                continue
            where = ".".join(short(str(part)) for part in place) or "file"
            found.append((place, f"{where}: {self._explained(entry, place)}"))
        return found

    def _explained(self, entry: Any, place: Place) -> str:
        written = short(self.words.get(place, entry["input"]))
        kind, message = entry["type"], str(entry["msg"]).removeprefix("Value error, ")
        if kind == "extra_forbidden":
            return "there is no such key here; is it misspelt?"
        if kind == "missing":
            return "this key is missing"
        if kind == "string_too_short":
            return "it is empty; write a word"
        if kind == "string_too_long":
            return f"it has more than {entry['ctx']['max_length']} characters"
        if kind == "too_short":
            return "the list is empty"
        if kind == "string_type" and place in self.words:
            if not self.words[place]:
                return "no value is given; write a word"
            return f'{written} is no text in YAML; write it in quotes: "{written}"'
        if kind == "string_type":
            return f"expected a word, found {_kind(entry['input'])}"
        if kind in ("model_type", "dict_type", "model_attributes_type"):
            return f"expected keys and values, as in `name: …`, found {_kind(entry['input'])}"
        if kind in ("tuple_type", "list_type"):
            return f"expected a list, as in `[a, b]`, found {_kind(entry['input'])}"
        if kind == "value_error":
            return message
        return f"{message} (found {written})"


STRICT: ConfigDict = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
"""How models that people fill in are configured: unknown keys, NaN and infinity are refused."""


def numbers_are_numbers(model: type[BaseModel], data: object) -> object:
    """Refuse true or false for a number, before all other validators of a model."""
    for key, value in data.items() if isinstance(data, dict) else ():
        field = model.model_fields.get(key)
        wanted = "" if field is None else str(field.annotation)
        if isinstance(value, bool) and re.search(r"\b(int|float)\b", wanted) and "bool" not in wanted:
            raise ValueError(f"{key}: expected a number, found {str(value).lower()}")
    return data


_INVISIBLE = frozenset("\u200b\u2060\ufeff\u2028\u2029\u200e\u200f\u061c\u00ad") | frozenset(
    map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)


def visible(text: str, allowed: str = "") -> str:
    """`text` as it is.

    Raises:
        ValueError: It holds control, direction or other invisible characters that are not in `allowed`.
    """
    for position, character in enumerate(text, 1):
        hidden = unicodedata.category(character) in ("Cc", "Cs") or character in _INVISIBLE
        if (hidden or ord(character) & 0xFFFE == 0xFFFE) and character not in allowed:
            name = unicodedata.name(character, "a control character").lower()
            raise ValueError(
                f"character {position} is {name} (U+{ord(character):04X}), which cannot be seen; remove it"
            )
    return text


def read_text(path: Path, error: type[OvrsError]) -> str:
    """Return the text of a small UTF-8 file.

    Raises:
        OvrsError: Of the given class: no such file, a folder, a device, too large, not readable, or not UTF-8.
    """
    try:
        state = path.stat()
    except FileNotFoundError as fault:
        raise error(f"no file at {path}") from fault
    except OSError as fault:
        raise error(f"{short(str(path), 300)} cannot be read: {fault.strerror or fault}") from fault
    except ValueError as fault:  # a zero byte in the name
        raise error(f"{short(str(path), 300)} is no file name: {fault}") from fault
    if stat.S_ISDIR(state.st_mode):
        raise error(f"{path} is a folder, expected a YAML file")
    if not stat.S_ISREG(state.st_mode):
        raise error(f"{path} is no ordinary file; write its content to a file and name that")
    if state.st_size > MAX_BYTES:
        raise error(f"{path} has {state.st_size >> 20} MiB, at most {MAX_BYTES >> 20} are read; is it the right file?")
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror or fault}") from fault
    return _decoded(content, path, error)


def _decoded(content: bytes, path: Path, error: type[OvrsError]) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise error(f"{path} is in UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise error(f"{path}:{line}: byte 0x{content[fault.start]:02x} is no UTF-8; save the file as UTF-8") from fault


def parse(text: str, origin: str, error: type[OvrsError]) -> Document:
    """Read YAML text; `origin` is named in errors.

    Raises:
        OvrsError: Of the given class: no YAML, a key twice, a tag, too deep, or aliases that repeat too much.
    """
    try:
        for line, fault in _excesses(text):
            raise error(f"{origin}:{line}: {fault}")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeEncodeError) as fault:
        raise error(_invalid(text, origin, fault)) from fault
    lines: dict[Place, int] = {}
    words: dict[Place, str] = {}
    if node is not None:
        _index(node, (), lines, words)
    return Document(origin, data, lines, words)


def _excesses(text: str) -> Iterator[tuple[int, str]]:
    """Yield what must not be constructed at all, with its line: tags, deep nesting, aliases that explode."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    values = repeated = 0
    event: Any
    for event in yaml.parse(text, Loader=_Base):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                yield line, f"*{event.anchor} stands for nothing that is complete; write the value out"
                return
            repeated += sizes[event.anchor]
            values += sizes[event.anchor]
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            values += 1
            if event.tag not in (None, "!", _STRING):
                yield line, f"the tag {short(event.tag)} is not taken here; leave it out"
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((event.anchor, values))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = values - before + 1
        if len(open_) > MAX_DEPTH:
            yield line, f"nested more than {MAX_DEPTH} deep"
        if repeated > MAX_REPEATED:
            yield line, f"aliases repeat more than {MAX_REPEATED} values; write them out"


def _index(node: Any, place: Place, lines: dict[Place, int], words: dict[Place, str]) -> None:
    """Fill in lines and written words of a node and all below it."""
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        words[place] = node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines[(*place, key.value)] = key.start_mark.line + 1
                _index(value, (*place, key.value), lines, words)
    else:
        for index, value in enumerate(node.value):
            _index(value, (*place, index), lines, words)


def _invalid(text: str, origin: str, fault: yaml.YAMLError | UnicodeEncodeError) -> str:
    """Return the message for text that is no YAML."""
    mark = getattr(fault, "problem_mark", None) or getattr(fault, "context_mark", None)
    if isinstance(fault, (yaml.reader.ReaderError, UnicodeEncodeError)):
        bad = fault.object[fault.start] if isinstance(fault, UnicodeEncodeError) else chr(int(fault.character))
        line = text.count("\n", 0, max(0, text.find(bad))) + 1
        return f"{origin}:{line}: no valid YAML: the character {bad!r} is not allowed; remove it"
    if mark is None:
        return f"{origin}: no valid YAML: {str(fault).splitlines()[0]}"
    parts = [getattr(fault, name, None) for name in ("context", "problem")]
    told = ", ".join(part for part in parts if part)
    lines = text.split("\n")
    if mark.line < len(lines) and lines[mark.line].lstrip(" ").startswith("\t"):
        told += "; indent with blanks, not with a tab"
    if "unhashable" in told:
        told += "; a key must be a word"
    return f"{origin}:{min(mark.line + 1, len(lines))}: no valid YAML: {told}"


def short(value: Any, limit: int = 60) -> str:
    """Return a value as it can stand in a message: cut, and with escapes for what cannot be printed."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return text if len(text) <= limit else f"{text[:limit]}…"


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "keys and values"
    return "a list" if isinstance(value, (list, tuple)) else short(value)
