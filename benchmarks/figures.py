"""Find the figures of a page that no results file holds.

A *figure* is a number that tells a measurement:

* a number with a unit of measurement: points, percent, seconds, minutes, hours, bytes, megapixels, or times;
* any other number with a decimal point, unless it tells a length in metres or pixels, a version or a paper of arXiv.

Code, links and what `python -m benchmarks.pages` writes between markers are left out. Every other figure stands in
`benchmarks/results/allowed.yaml`: as a definition (a size, a default, a limit) or as published by others, with the source.
Pages that wait for their results files are named there, too.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
ALLOWED = ROOT / "benchmarks/results/allowed.yaml"
PAGES = (
    *(ROOT / name for name in ("README.md", "ovrs/assets/MODEL_CARD.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/guides/*.md")),
)
UNIT = r"mIoU|points?|%|percent|ms|s|seconds?|min|minutes?|h|hours?|[kMGT]i?B(?:/s)?|Mpx(?:/s|/min)?|megapixels?|tiles/s|times"
NUMBER = r"(?<![\w.,^·/-])[+−-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\w.,^·/-])[+−-]?\d+(?:\.\d+)?"
MEASURED = re.compile(rf"(?:{NUMBER})[ \u00a0]?(?:{UNIT})(?![\w²³])")
VERSION = (
    r"(?:Python|GDAL|Zarr|PyTorch|rasterio|transformers|MLM|STAC|QGIS|CC BY|Apache)(?: before| from)?[ -](?=\d)[\d.]+(?: (?:to|and|or) [\d.]+)?"
    r"|\b\d{4}\.\d{5}\b"
)
DECIMAL = re.compile(r"(?<![\w.,^·/-])[+−-]?\d+\.\d+(?![\w.]|\s?(?:m|px)\b)")
OWN = re.compile(r"<!-- figures: .*?<!-- end of figures -->|<!--=.+?<!--/-->|<!--.*?-->", re.S)
CODE = re.compile(r"^```.*?^```|^(?: {4}|\t)[^\n]*$|`[^`\n]+`|\]\([^)]*\)|\$\$.*?\$\$|\$[^$\n]+\$", re.S | re.M)


def figures(text: str) -> list[str]:
    """Return the figures that a page writes by hand, in their order, each once."""
    plain = re.sub(VERSION, " ", re.sub(r"\s+", " ", CODE.sub(" ", OWN.sub(" ", text))))
    found = dict.fromkeys(MEASURED.findall(plain))
    found |= dict.fromkeys(DECIMAL.findall(MEASURED.sub(" ", plain)))
    return list(found)


def allowed(page: Path) -> set[str]:
    """Return the figures that a page may write by hand."""
    kinds = yaml.safe_load(ALLOWED.read_text())
    name = str(page.relative_to(ROOT))
    if name in kinds["waiting"]:
        return set(figures(page.read_text()))
    own = list(kinds["definitions"].get(name, []))
    for source in kinds["published"]:
        if source["page"] == name:
            own += source["figures"]
    return {str(figure) for figure in own}


def unheld() -> dict[str, list[str]]:
    """Return, by page, the figures that neither a results file nor the list of allowed ones holds."""
    left = {}
    for page in PAGES:
        known = allowed(page)
        left[str(page.relative_to(ROOT))] = [figure for figure in figures(page.read_text()) if figure not in known]
    return {page: found for page, found in left.items() if found}


def unused() -> dict[str, set[str]]:
    """Return, by page, the published figures that the page does not write."""
    left: dict[str, set[str]] = {}
    for source in yaml.safe_load(ALLOWED.read_text())["published"]:
        missing = set(source["figures"]) - set(figures((ROOT / source["page"]).read_text()))
        if missing:
            left.setdefault(source["page"], set()).update(missing)
    return left
