"""A hook of mkdocs: formulas become MathML, which browsers show without a script.

`pymdownx.arithmatex` marks what stands between dollar signs; this hook converts the marked parts of each finished page.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def formula(match: re.Match[str]) -> str:
    """Return one formula as MathML, on a line by itself where it was written so."""
    tag, bracket, source = match.groups()
    shown = convert(html.unescape(source), display="block" if bracket == "[" else "inline")
    return f'<{tag} class="formula">{shown}</{tag}>'


def on_page_content(text: str, **_: Any) -> str:
    """Return the HTML of a page with its formulas converted (mkdocs calls this)."""
    return MARKED.sub(formula, text)
