"""Texts of products from the templates in `ovrs/export/templates`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ovrs.export.marks import XML_MARK
from ovrs.names import shown

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(template: str, **values: Any) -> str:
    """Fill a template; every value is escaped for XML and HTML.

    Args:
        template: Name of the file without `.j2`, such as `raster.qml`.
        values: What the template names. `mark` is known: the mark of files that `ovrs` wrote.
    """
    return _environment().get_template(f"{template}.j2").render(mark=XML_MARK, **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("ovrs.export"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["hex"] = _hex
    made.filters["lines"] = _lines
    return made


def _hex(colour: tuple[int, int, int]) -> str:
    """Red, green and blue as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _lines(text: str) -> str:
    """Lines that a page can show; line ends of preformatted text stay."""
    return "\n".join(line if line.isprintable() else shown(line) for line in text.split("\n"))
