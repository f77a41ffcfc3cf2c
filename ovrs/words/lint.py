"""What is wrong with a prompt file, before a map is made with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovrs.words.vocabulary import Vocabulary

CONTEXT = 77
"""Tokens of CLIP's text tower, start and end included."""
_BLIND_WORDS = (
    "smell smells smelling fragrant noisy loud quiet sound sounds taste expensive cheap valuable historic historical famous "
    "popular important useful used owned legal dangerous safe temperature warm humid delicious"
)
NOT_VISUAL = frozenset(_BLIND_WORDS.split())


def lint(words: Vocabulary, tokens_of: Callable[[str], int], longest_template: str) -> list[str]:
    """List the findings, one line each.

    Args:
        words: The vocabulary.
        tokens_of: Tokens of a sentence, start and end included, before cutting.
        longest_template: The template that leaves least room, with one `{}`.
    """
    found = []
    names = {c.name.lower() for c in words.classes}
    seen: dict[str, str] = {}
    for entry in words.classes:
        if not entry.descriptions:
            found.append(f"{entry.name}: no descriptions")
        for text in (*entry.asked, *entry.synonyms, *entry.descriptions):
            spoken = text.lower().rstrip(".")
            if not spoken.strip():
                found.append(f"{entry.name}: an empty prompt")
                continue
            length = tokens_of(longest_template.format(f"{entry.name} {spoken}"))
            if length > CONTEXT:
                found.append(f"{entry.name}: {length} tokens with template and name, {CONTEXT} fit: {text!r}")
            if spoken in seen:
                found.append(f"{entry.name}: {text!r} is a prompt of {seen[spoken]} too")
            seen[spoken] = entry.name
            blind = sorted(NOT_VISUAL & set(re.findall(r"[a-z]+", spoken)))
            if blind:
                found.append(f"{entry.name}: not visible from above ({', '.join(blind)}): {text!r}")
            others = sorted(n for n in names - {entry.name.lower()} if re.search(rf"\b{re.escape(n)}\b", spoken))
            if text in entry.synonyms and others:
                found.append(f"{entry.name}: synonym {text!r} names the class {', '.join(others)}")
            elif others:
                found.append(f"{entry.name}: names another class ({', '.join(others)}): {text!r}")
    return found
