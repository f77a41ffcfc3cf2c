"""Class names as files and screens can take them: one printable line each, and short words for machines.

A vocabulary may hold any text. `shown` names go into legends, styles, tables and attributes; `words` into CF
attributes and STAC. Both keep the order of the classes, and no two names of one list are equal.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters and line ends: no XML, attribute table or terminal takes them."""
_TURNING = re.compile("[\u061c\u202a-\u202e\u2066-\u2069]")
"""Characters that turn the direction of the text that follows."""
_IMPOSSIBLE = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Halves of surrogate pairs and non-characters: no UTF-8 or no XML."""
_CF = re.compile(r"[^\w.+@-]")
_ASCII = re.compile(r"[^0-9A-Za-z_-]")


def shown(name: str) -> str:
    """`name` as one printable line that every XML parser, table and terminal takes; `?` where nothing is left."""
    text = _IMPOSSIBLE.sub("\ufffd", _TURNING.sub("", _CONTROL.sub(" ", name)))
    return text.strip() or "?"


def shown_names(names: Sequence[str]) -> list[str]:
    """`shown` for every class, with ` (2)`, ` (3)`, … where two would be equal."""
    return _unequal([shown(n) for n in names], " ({})")


def cf_words(names: Sequence[str]) -> list[str]:
    """Words for CF's `flag_meanings`, one per class: no blanks, letters of any script, none twice."""
    return _unequal([_CF.sub("_", n.strip()) or "_" for n in names], "_{}")


def ascii_words(names: Sequence[str]) -> list[str]:
    """Names of STAC's classification extension (`[0-9A-Za-z_-]+`); `class_7` where the name has no such letter."""
    found = []
    for index, name in enumerate(names):
        letters = "".join(c for c in unicodedata.normalize("NFKD", name.strip()) if not unicodedata.combining(c))
        word = _ASCII.sub("_", letters)
        found.append(word if word.strip("_") else f"class_{index}")
    return _unequal(found, "_{}")


def _unequal(words: list[str], pattern: str) -> list[str]:
    """Make words unique: the first of equal words stays, later ones get the lowest number that no other word has."""
    taken, out = set(words), []
    seen: set[str] = set()
    for word in words:
        chosen, number = word, 2
        while chosen in seen or (chosen != word and chosen in taken):
            chosen, number = word + pattern.format(number), number + 1
        seen.add(chosen)
        out.append(chosen)
    return out
